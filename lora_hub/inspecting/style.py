"""The style sheet of the page, for light and dark screens and for paper."""

from __future__ import annotations

# In OKLCH from pale to deep (light) and from deep to bright (dark), so that equal steps look equal in both.
_COOL = "#ebf6f7 #cce6eb #aed5e1 #90c4d8 #74b3d0 #59a0c9 #408dc2 #2c79ba #2c65a7 #2a5294 #273f80 #232d6d"
_WARM = "#f8f2eb #efdfcd #e7cbb0 #dfb695 #d8a17a #d08c61 #c8764a #be5f35 #ab5031 #98412d #853228 #722423"
_DARK_COOL = "#20252f #293445 #30445b #355571 #386887 #387b9d #348fb1 #2fa4c4 #44b8d0 #59ccdc #70dfe7 #87f3f2"
_DARK_WARM = "#2e2220 #442c28 #5a372f #714334 #884f38 #9f5c39 #b66b38 #cb7a38 #d7904f #e3a565 #efba7c #fbd094"
_LINES = "#2a67bd #ad4216 #008140 #8e479d #846500 #00808b #a93b65 #5b5f66"
_DARK_LINES = "#70b6fd #f2966c #69c88e #d995dd #cab049 #1ec8d0 #f38ea6 #b4b9c2"
_FLIP, _DARK_FLIP = 7, 6  # from which step on text in a cell has the colour of the paper


def _scheme(cool: str, warm: str, lines: str, flip: int, paper: str) -> str:
    rules = [f".s{n}{{fill:{colour}}}" for n, colour in enumerate(cool.split())]
    rules += [f".w{n}{{fill:{colour}}}" for n, colour in enumerate(warm.split())]
    rules += [f"svg .t{n}{{fill:{paper}}}" for n in range(flip, len(cool.split()))]
    rules += [f".k{n}{{--k:{colour}}}" for n, colour in enumerate(lines.split())]
    return "".join(rules)


_RULES = """
:root{color-scheme:light dark;--paper:#fff;--ground:#f5f6f8;--ink:#1c222b;--soft:#5a6472;--rule:#dde1e7}
@media(prefers-color-scheme:dark){
:root{--paper:#161a21;--ground:#0e1116;--ink:#e4e8ee;--soft:#9aa4b2;--rule:#2a313c}
}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:36px 24px 64px}
h1{font-size:27px;line-height:1.2;margin:0 0 6px;letter-spacing:-.01em}
h2{font-size:19px;margin:44px 0 4px}
h3{font-size:14.5px;margin:0 0 8px;overflow-wrap:anywhere}
p{margin:0 0 12px;max-width:96ch}
p code{white-space:nowrap}
.soft,figcaption,caption{color:var(--soft)}
code{font:12.5px/1.4 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
.card,figure{background:var(--paper);border:1px solid var(--rule);border-radius:10px;padding:18px 20px;margin:14px 0 0}
figure,.scroll{overflow-x:auto}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,490px),1fr));gap:14px;margin-top:14px}
.pair.three{grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr))}
.pair>figure{margin:0}
.remarks{margin:0;padding-left:20px;max-width:92ch;overflow-wrap:anywhere}
.remarks li{margin:3px 0}
figcaption{font-size:13px;margin-top:8px;max-width:88ch}
svg{display:block;max-width:100%;height:auto}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;fill:var(--soft)}
svg .in{font-size:12.5px;fill:var(--ink);font-variant-numeric:tabular-nums}
svg .note{fill:var(--ink)}
.mid{text-anchor:middle}.end{text-anchor:end}.start{text-anchor:start}
.grid{stroke:var(--rule)}.axis{stroke:var(--soft)}
.cut{stroke:var(--ink);stroke-dasharray:4 3;opacity:.55}
.line{fill:none;stroke:var(--k);stroke-width:1.8;stroke-linejoin:round}
.band{fill:var(--k);opacity:.12}
.absent{fill:none;stroke:var(--rule)}
.dot{fill:var(--k);stroke:var(--paper);stroke-width:1}
.dot:hover{stroke:var(--ink)}
rect:hover{stroke:var(--ink);stroke-width:1.5}
.key{list-style:none;display:flex;flex-wrap:wrap;gap:4px 18px;margin:10px 0 0;padding:0;font-size:13px}
.swatch{display:inline-block;width:14px;height:4px;border-radius:2px;background:var(--k);margin-right:7px;vertical-align:3px}
table{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:0 0 8px}
th,td{padding:6px 12px 6px 0;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{font-weight:600;color:var(--soft);font-size:11.5px;letter-spacing:.03em}
.name{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:11em}
tbody .name{font-weight:400;font-size:inherit;letter-spacing:0;color:var(--ink)}
tbody tr:last-child>*{border-bottom:0}
details{margin-top:14px}
summary{cursor:pointer;font-weight:600;font-size:14.5px;overflow-wrap:anywhere}
details>.scroll{margin-top:12px}
footer{margin-top:44px;font-size:13px;color:var(--soft)}
@media print{body{background:none}figure,.card{break-inside:avoid}}
"""

STYLE = (
    _RULES.replace("\n", "")
    + _scheme(_COOL, _WARM, _LINES, _FLIP, "#fff")
    + "@media(prefers-color-scheme:dark){"
    + _scheme(_DARK_COOL, _DARK_WARM, _DARK_LINES, _DARK_FLIP, "#0b0f14")
    + "}"
)
