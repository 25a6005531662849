"""Charts of singular values, and of the energy that a truncation keeps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median
from xml.etree.ElementTree import Element

from lora_hub.inspecting.axes import Axis, Frame, thinned
from lora_hub.inspecting.findings import AdapterDeltas, ModuleDelta
from lora_hub.inspecting.layers import by_kind
from lora_hub.inspecting.lines import COLOURS, MAX_POINTS, Line, draw_lines, key_of, level
from lora_hub.inspecting.markup import figure_of, percent, tag

CUT = 0.99  # of the energy
_FLOOR = 1e-4  # a singular value below this share of the first is drawn there


def spectra(adapters: Sequence[AdapterDeltas]) -> Iterator[tuple[AdapterDeltas, Element, Element]]:
    """Yield for each adapter a chart of its singular values by projection, all on one scale, and the key to it."""
    lines = [_lines(adapter) for adapter in adapters]
    lowest = min((low for several in lines for line in several for _, low, _ in line.band), default=1.0)
    height = Axis.logarithmic("relative to the first", max(lowest, _FLOOR))
    for adapter, several in zip(adapters, lines, strict=True):
        longest = max(module.r for module in adapter.modules)
        frame = Frame(x=Axis.counting("singular value", 1, longest), y=height)
        cut = adapter.rank_for(CUT)
        says = f"Singular values of {adapter.name} by projection; {percent(CUT)} of the energy lies in the first {cut}."
        chart = frame.draw(says, *_cut(frame, cut), *draw_lines(frame, several))
        yield adapter, chart, key_of([line.label for line in several])


def _lines(adapter: AdapterDeltas) -> list[Line]:
    kinds = by_kind({module.path: module for module in adapter.modules})
    return [_line(label, modules) for label, modules in list(kinds.items())[:COLOURS]]


def _line(label: str, modules: Sequence[ModuleDelta]) -> Line:
    """Return the median over *modules* of each singular value relative to the first, as far as it is not zero."""
    found = [module.singular_values for module in modules if module.singular_values]
    points, band = [], []
    for n in thinned(max(map(len, found), default=0), MAX_POINTS):
        values = [each[n] / each[0] if n < len(each) else 0.0 for each in found]
        if (middle := median(values)) > 0:
            points.append((n + 1.0, middle, f"{label}, singular value {n + 1}: {figure_of(middle)} of the first"))
            band.append((n + 1.0, min(value for value in values if value), max(values)))
    return Line(label, points, band)


def _cut(frame: Frame, rank: int) -> Iterator[Element]:
    """Yield the line behind the last singular value that is kept."""
    if rank:
        x, top = frame.point(rank + 0.5, frame.y.high)
        side, away = ("end", -6) if x > frame.width / 2 else ("start", 6)
        yield tag("line", x1=x, x2=x, y1=top, y2=frame.height - frame.bottom, class_="cut")
        yield tag("text", f"{percent(CUT)} at rank {rank}", x=x + away, y=top + 11, class_=f"note {side}")


def retained_energy(adapters: Sequence[AdapterDeltas]) -> Element:
    """Return how much of each of *adapters* is left after a truncation to each rank."""
    lines = [Line(adapter.name, _energies(adapter)) for adapter in adapters]
    longest = max(module.r for adapter in adapters for module in adapter.modules)
    frame = Frame(x=Axis.counting("rank kept", 1, longest), y=Axis.shares("energy kept"))
    says = "Retained energy against rank, one line for each adapter."
    return frame.draw(says, *level(frame, CUT, percent(CUT)), *draw_lines(frame, lines))


def _energies(adapter: AdapterDeltas) -> list[tuple[float, float, str]]:
    kept = adapter.retained()
    return [
        (n + 1.0, kept[n], f"{adapter.name}, rank {n + 1}: {100 * kept[n]:.2f} % of the energy")
        for n in thinned(len(kept), MAX_POINTS)
    ]
