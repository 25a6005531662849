"""An inspection as one HTML page that loads nothing, runs no script, and says what it left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from xml.etree.ElementTree import Element

from lora_hub.inspecting import tables
from lora_hub.inspecting.cells import MAX_NARROW, MAX_NARROW_MATRIX, heat_map, matrix, scale
from lora_hub.inspecting.contradictions import Layers, conflict_by_layer, interference_by_layer
from lora_hub.inspecting.findings import AdapterDeltas, Inspection, Overlap, Pair
from lora_hub.inspecting.layers import Place, by_place, labels
from lora_hub.inspecting.lines import key_of
from lora_hub.inspecting.markup import Child, elided, figure_of, percent, serialise, tag
from lora_hub.inspecting.remarks import remarks
from lora_hub.inspecting.spectra import retained_energy, spectra
from lora_hub.inspecting.style import STYLE

# What bounds the page, whatever the adapters are; the JSON has everything.
MAX_DRAWN = 6  # adapters that are drawn one by one
MAX_COMPARED = 24  # in one matrix
MAX_LAYERS = 128
MAX_KINDS = 20  # projections
MAX_ROWS = 64  # modules of one adapter
MAX_REMARKS = 24
MAX_PAIRS = 24
_NAME = 64  # characters

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(inspection: Inspection) -> bytes:
    """Return *inspection* as HTML; same inspection, same bytes."""
    inspection = _with_short_names(inspection)
    title = _title(inspection)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", STYLE),
    )
    main = tag("main", *_overview(inspection, title), *_deltas(inspection), *_spectra(inspection))
    main.extend([*_between(inspection), *_by_layer(inspection), *_numbers(inspection), _footer()])
    return serialise(tag("html", head, tag("body", main), lang="en"))


def _with_short_names(inspection: Inspection) -> Inspection:
    adapters = (replace(adapter, name=elided(adapter.name, _NAME)) for adapter in inspection.adapters)
    return replace(inspection, adapters=tuple(adapters))


def _title(inspection: Inspection) -> str:
    names = [adapter.name for adapter in inspection.adapters]
    return f"Inspection of {names[0]}" if len(names) == 1 else f"Inspection of {len(names)} adapters"


def _overview(inspection: Inspection, title: str) -> Iterator[Element]:
    yield tag("h1", title)
    yield tag(
        "p",
        "What the adapters change, computed from their factors A and B alone. D is the delta ",
        tag("code", "(alpha / r) · B A"),
        " of one module, |D| its Frobenius norm, its energy |D|² the sum of its squared singular values.",
        class_="soft",
    )
    note = (
        "Effective: effective rank, the exponential of the entropy of the energies of the directions, median over the "
        "modules. Rank for 90/99/99.9 %: the lowest to which all modules can be truncated and keep as much of the "
        "energy. Wasted: ranks that are stored beyond the numerical rank."
    )
    table = _table(tables.adapters(_first(inspection, MAX_COMPARED)))
    yield tag("figure", table, tag("figcaption", note))
    yield from _left_out(len(inspection.adapters), MAX_COMPARED, "adapter")
    found = remarks(inspection)
    yield tag("h2", "What stands out")
    items = [tag("li", remark) for remark in found[:MAX_REMARKS]] or [tag("li", "Nothing: no rank is wasted.")]
    yield tag("div", tag("ul", *items, class_="remark"), class_="card")
    yield from _left_out(len(found), MAX_REMARKS, "remark")


def _first(inspection: Inspection, count: int) -> Inspection:
    return Inspection(adapters=inspection.adapters[:count])


def _left_out(count: int, limit: int, what: str, which: str = "") -> Iterator[Element]:
    """Say how many of *count* things are more than the *limit*, and *which* these are."""
    if count > limit:
        more = f"1 more {what}{which} is" if count == limit + 1 else f"{count - limit:,} more {what}s{which} are"
        yield tag("p", f"{more} left out here; ", tag("code", "--json"), " has all.", class_="soft")


def _table(table: tables.Table, caption: str | None = None) -> Element:
    """Return *table* with a row header in each row; the first column is the name of something."""
    header, rows = table
    heads = [tag("th", text, scope="col", class_="name" if n == 0 else None) for n, text in enumerate(header)]
    body = [tag("tr", tag("td", row[0], class_="name"), *(tag("td", cell) for cell in row[1:])) for row in rows]
    return tag(
        "table",
        None if caption is None else tag("caption", caption),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *body),
    )


def _figure(heading: str, drawing: Element, *below: Child) -> Element:
    return tag("figure", tag("h3", heading), drawing, *below)


def _deltas(inspection: Inspection) -> Iterator[Element]:
    """Yield the heat maps, all on one scale."""
    drawn = inspection.adapters[:MAX_DRAWN]
    paths = {module.path: module for adapter in drawn for module in adapter.modules}
    kinds, layers = _plotted(paths)
    cells = [by_place({module.path: module.norm for module in adapter.modules}) for adapter in drawn]
    high = max((sum(n * n for n in norms) ** 0.5 for places in cells for norms in places.values()), default=0.0)
    yield tag("h2", "Where the adapters act")
    yield tag("p", "The norm |D| of every module, by layer and projection; one colour scale for all.", class_="soft")
    yield tag("div", scale(figure_of(high)))
    maps = [
        _figure(adapter.name, heat_map(adapter.name, places, kinds, layers, high))
        for adapter, places in zip(drawn, cells, strict=True)
    ]
    yield tag("div", *maps, class_="pair" if len(layers) <= MAX_NARROW else None)
    yield from _left_out(len(inspection.adapters), MAX_DRAWN, "adapter")
    yield from _left_out(len({Place.of(path).kind for path in paths}), MAX_KINDS, "projection")
    yield from _left_out(len({Place.of(path).layer for path in paths}), MAX_LAYERS, "layer")


def _plotted(paths: Mapping[str, object]) -> tuple[dict[str, str], list[int | None]]:
    """Return the projections, with their labels, and the layers that there is room for; outside of any layer first."""
    places = [Place.of(path) for path in paths]
    kinds = dict(list(labels({place.kind for place in places}).items())[:MAX_KINDS])
    layers = sorted({place.layer for place in places}, key=lambda layer: -1 if layer is None else layer)
    return kinds, layers[:MAX_LAYERS]


def _spectra(inspection: Inspection) -> Iterator[Element]:
    drawn = inspection.adapters[:MAX_DRAWN]
    yield tag("h2", "Which rank they need")
    yield tag(
        "p",
        "Singular values of the deltas relative to the first of their module: the median over the layers, and how far "
        "they spread. Truncating every module to the rank at the dashed line keeps 99 % of the energy.",
        class_="soft",
    )
    energy = _figure("Energy kept by a truncation", retained_energy(drawn), key_of([one.name for one in drawn]))
    figures = (_figure(adapter.name, chart, key) for adapter, chart, key in spectra(drawn))
    yield tag("div", energy, *figures, class_="pair")
    yield from _left_out(len(inspection.adapters), MAX_DRAWN, "adapter")


def _between(inspection: Inspection) -> Iterator[Element]:
    """Yield the matrices of what every two adapters have in common."""
    if not inspection.pairs:
        return
    shown = inspection.adapters[:MAX_COMPARED]
    pairs = {(pair.one, pair.other): pair for pair in inspection.pairs}
    yield tag("h2", "How they get on with each other")
    drawings = [
        _figure("Cosine of the deltas", matrix("Cosine", shown, _of(pairs, lambda p, _: p.cosine), is_share=False)),
        _how_to_read(),
        *(_overlaps(shown, pairs, side) for side in ("outputs", "inputs")),
        *(_energies(shown, pairs, side) for side in ("outputs", "inputs")),
    ]
    yield tag("div", *drawings, class_="pair three" if len(shown) <= MAX_NARROW_MATRIX else "pair")
    yield from _left_out(len(inspection.adapters), MAX_COMPARED, "adapter")


def _of(pairs: Mapping[tuple[int, int], Pair], measure: Callable[[Pair, bool], float]) -> Callable[[int, int], float]:
    """Return *measure* of the pair in a row and a column; it is told whether the row is the first of the two."""

    def value(row: int, column: int) -> float:
        if row == column:
            return 1.0
        return measure(pairs[min(row, column), max(row, column)], row < column)

    return value


def _how_to_read() -> Element:
    return tag(
        "figure",
        tag("h3", "How to read these"),
        scale("1"),
        scale("\u22121", ramp="w"),
        tag(
            "figcaption",
            "Cosine: 0 where two adapters do not disturb each other when they are added up, 1 where one is the other "
            "times a number, negative where they undo each other. Overlap: the mean squared cosine of the principal "
            "angles between what they write, or read, over the modules that both change. Energy inside: how much of "
            "the delta in the row lies in the subspace of the one in the column.",
        ),
    )


def _side(pair: Pair, side: str) -> Overlap:
    return pair.outputs if side == "outputs" else pair.inputs


def _overlaps(shown: Sequence[AdapterDeltas], pairs: Mapping[tuple[int, int], Pair], side: str) -> Element:
    chances = [_side(pair, side).chance for pair in pairs.values()]
    drawing = matrix(f"Overlap of {side}", shown, _of(pairs, lambda p, _: _side(p, side).shared), is_share=True)
    what = "written" if side == "outputs" else "read"
    caption = f"By chance: {percent(max(chances))} at most."
    return _figure(f"Overlap of the subspaces that are {what}", drawing, tag("figcaption", caption))


def _energies(shown: Sequence[AdapterDeltas], pairs: Mapping[tuple[int, int], Pair], side: str) -> Element:
    def inside(pair: Pair, row_is_first: bool) -> float:  # noqa: FBT001 - the one question there is
        overlap = _side(pair, side)
        return overlap.one_in_other if row_is_first else overlap.other_in_one

    drawing = matrix(f"Energy inside, {side}", shown, _of(pairs, inside), is_share=True)
    return _figure(f"Energy inside the {side} of the other", drawing)


def _by_layer(inspection: Inspection) -> Iterator[Element]:
    """Yield conflict and interference from layer to layer, where there are layers."""
    shared = inspection.shared
    layers = Layers.of(shared, MAX_LAYERS)
    if not layers.numbers:
        return
    is_exact = all(module.conflict.rows == module.conflict.of for module in shared)
    rows = "all rows" if is_exact else "a sample of the rows, the same in every run,"
    yield tag("h2", "Where they contradict each other")
    yield tag(
        "p",
        f"Conflict: the share of the entries of D that some adapters raise and others lower, in {rows} of each module. "
        "Interference: the energy of the sum of the adapters over the sum of their energies.",
        class_="soft",
    )
    key = list(layers.labels.values())
    yield tag(
        "div",
        _figure("Sign conflict by layer", conflict_by_layer(layers), key_of(key)),
        _figure("Interference by layer", interference_by_layer(layers), key_of(key)),
        class_="pair",
    )
    yield from _left_out(len({Place.of(module.path).layer for module in shared} - {None}), MAX_LAYERS, "layer")


def _numbers(inspection: Inspection) -> Iterator[Element]:
    yield tag("h2", "The numbers")
    for adapter in inspection.adapters[:MAX_DRAWN]:
        yield tag(
            "details",
            tag("summary", adapter.name),
            tag("p", tag("code", adapter.digest), class_="soft"),
            tag("div", _table(tables.projections(adapter), "By projection"), class_="scroll"),
            tag("div", _table(tables.modules(adapter, MAX_ROWS), "By module"), class_="scroll"),
            *_left_out(len(adapter.modules), MAX_ROWS, "module", ", of those that change least,"),
            class_="card",
        )
    if inspection.pairs:
        yield tag(
            "details",
            tag("summary", "Pairs and shared modules"),
            tag("div", _table(tables.pairs(inspection, MAX_PAIRS), "Every two adapters"), class_="scroll"),
            *_left_out(len(inspection.pairs), MAX_PAIRS, "pair", ", of those that are least alike,"),
            tag("div", _table(tables.shared(inspection, MAX_ROWS), "Modules that several adapt"), class_="scroll"),
            *_left_out(len(inspection.shared), MAX_ROWS, "module", ", of those with least conflict,"),
            class_="card",
        )


def _footer() -> Element:
    text = ". This page loads nothing and runs no script; hover over a cell or a point to read its value."
    return tag("footer", "Made by ", tag("code", "lora-hub inspect"), text)
