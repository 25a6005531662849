"""Coloured cells: norms over layers and projections, and one number for every two adapters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from xml.etree.ElementTree import Element

from lora_hub.inspecting.axes import steps, svg
from lora_hub.inspecting.findings import AdapterDeltas
from lora_hub.inspecting.layers import Place
from lora_hub.inspecting.markup import elided, figure_of, percent, tag

STEPS = 12  # of the colour scale
MAX_NUMBERED = 12  # adapters, whose matrix still has room for numbers in its cells
MAX_NARROW_MATRIX = 3  # adapters, whose matrix has two others beside it
_ROW, _TOP = 24, 6  # pixels
_WIDE, _NARROW = 1040, 480
MAX_NARROW = 32  # layers of a heat map that has another one beside it
_NAME = 22  # characters
_TEXT = 24  # pixels from one number of a layer to the next


def step(value: float, high: float) -> int:
    """Return the step of the colour scale, which ends at *high*, for *value*."""
    return min(STEPS - 1, int(value / high * STEPS)) if high else 0


def heat_map(
    name: str,
    cells: Mapping[Place, Sequence[float]],
    kinds: Mapping[str, str],
    layers: Sequence[int | None],
    high: float,
) -> Element:
    """Return the norms of one adapter: a column for each of *layers*, a row for each of *kinds*, which have labels.

    Modules in one cell, experts say, are taken together: as the root of the sum of their squares.
    """
    left = _margin(kinds.values())
    width = min(44.0, ((_NARROW if len(layers) <= MAX_NARROW else _WIDE) - left - 10) / len(layers))
    content: list[Element] = []
    for row, (kind, label) in enumerate(kinds.items()):
        y = _TOP + row * _ROW
        content.append(_row_label(label, elided(label, _NAME), (left, y + 15)))
        for column, layer in enumerate(layers):
            box = (left + column * width, y, width - min(2.0, width / 8), _ROW - 2.0)
            found = cells.get(Place(layer, kind), ())
            content.append(
                _cell(box, step(math.hypot(*found), high), _says(layer, label, found)) if found else _gap(box)
            )
    floor = _TOP + len(kinds) * _ROW
    content += _layer_labels(layers, left, width, floor)
    label = f"Norm of the delta of {name} in every layer (columns) and projection (rows), from 0 to {figure_of(high)}."
    return svg(left + len(layers) * width + 10, floor + 40, label, *content)


def _says(layer: int | None, label: str, found: Sequence[float]) -> str:
    where = label if layer is None else f"layer {layer}, {label}"
    together = f" ({len(found)} modules)" if len(found) > 1 else ""
    return f"{where}: {figure_of(math.hypot(*found))}{together}"


def _margin(texts: Iterable[str]) -> int:
    """Return how much room labels take, in pixels."""
    return 20 + 7 * min(_NAME, max(map(len, texts)))


def _row_label(whole: str, text: str, end: tuple[float, float]) -> Element:
    return tag("text", tag("title", whole), text, x=end[0] - 8, y=end[1], class_="tick end")


def _cell(box: tuple[float, float, float, float], colour: int, says: str, *, ramp: str = "s") -> Element:
    x, y, width, height = box
    return tag("rect", tag("title", says), x=x, y=y, width=width, height=height, rx=2, class_=f"{ramp}{colour}")


def _gap(box: tuple[float, float, float, float]) -> Element:
    """Return the mark of a module that the adapter leaves alone."""
    x, y, width, height = box
    return tag("circle", cx=x + width / 2, cy=y + height / 2, r=1.5, class_="absent")


def _layer_labels(layers: Sequence[int | None], left: float, width: float, floor: float) -> Iterator[Element]:
    for column in range(0, len(layers), next(s for s in steps() if s * width >= _TEXT)):
        text = "none" if layers[column] is None else f"{layers[column]}"
        yield tag("text", text, x=left + (column + 0.5) * width, y=floor + 14, class_="tick mid")
    yield tag("text", "layer", x=left + len(layers) * width / 2, y=floor + 32, class_="title mid")


def scale(high: str, *, ramp: str = "s", low: str = "0") -> Element:
    """Return the key to the colours of a *ramp*, which goes from *low* to *high*."""
    start = 8 + 7 * len(low)
    boxes = [tag("rect", x=start + 8 + n * 16, y=4, width=16, height=12, class_=f"{ramp}{n}") for n in range(STEPS)]
    end = start + 8 + STEPS * 16
    texts = tag("text", low, x=start, y=14, class_="tick end"), tag("text", high, x=end + 8, y=14, class_="tick")
    return svg(end + 16 + 7 * len(high), 22, f"Colours from {low} to {high}", *texts, *boxes)


def matrix(
    title: str, adapters: Sequence[AdapterDeltas], value: Callable[[int, int], float], *, is_share: bool
) -> Element:
    """Return one cell for every two of *adapters*: *value* of row and column; cosines may be negative, shares not."""
    count = len(adapters)
    names = [f"{row + 1} · {elided(adapter.name, _NAME - 5)}" for row, adapter in enumerate(adapters)]
    left, width = _margin(names), 56.0 if count <= MAX_NUMBERED else 26.0
    content: list[Element] = []
    for row, adapter in enumerate(adapters):
        y = 22.0 + row * 34
        content.append(_row_label(adapter.name, names[row], (left, y + 20)))
        content.append(tag("text", f"{row + 1}", x=left + (row + 0.5) * width, y=14, class_="tick mid"))
        for column in range(count):
            found = round(value(row, column), 3) + 0.0 if not is_share else value(row, column)
            text = percent(found) if is_share else f"{found:.3f}".replace("-", "\u2212")
            says = f"{adapter.name} and {adapters[column].name}: {text}"
            content += _matrix_cell((left + column * width, y, width - 3, 31.0), found, says, text, count)
    return svg(left + count * width + 10, 22 + count * 34 + 4, f"{title}, for every two adapters", *content)


def _matrix_cell(
    box: tuple[float, float, float, float], found: float, says: str, text: str, count: int
) -> Iterator[Element]:
    colour = step(abs(found), 1.0)
    yield _cell(box, colour, says, ramp="w" if found < 0 else "s")
    if count <= MAX_NUMBERED:
        yield tag("text", text, x=box[0] + box[2] / 2, y=box[1] + 20, class_=f"in mid t{colour}")
