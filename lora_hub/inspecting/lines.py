"""Lines in a chart: their colours, what each point says, and what they are to be compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple
from xml.etree.ElementTree import Element

from lora_hub.inspecting.axes import Frame
from lora_hub.inspecting.markup import elided, tag

COLOURS = 8
MAX_POINTS = 64  # of one line
_LABEL = 40  # characters


class Line(NamedTuple):
    """What a line is, its points with what each says, and how far its y spread at each x."""

    label: str
    points: Sequence[tuple[float, float, str]]
    band: Sequence[tuple[float, float, float]] = ()


def draw_lines(frame: Frame, lines: Sequence[Line]) -> Iterator[Element]:
    """Yield the *lines* in *frame*, each in its own colour: bands below, points above."""
    for colour, line in enumerate(lines):
        if len(line.band) > 1:
            around = [frame.point(x, low) for x, low, _ in line.band]
            around += [frame.point(x, high) for x, _, high in reversed(line.band)]
            yield tag("polygon", points=_pairs(around), class_=f"band k{colour}")
    for colour, line in enumerate(lines):
        points = [frame.point(x, y) for x, y, _ in line.points]
        if len(points) > 1:
            yield tag("polyline", points=_pairs(points), class_=f"line k{colour}")
        for (x, y), (*_, says) in zip(points, line.points, strict=True):
            yield tag("circle", tag("title", says), cx=x, cy=y, r=3, class_=f"dot k{colour}")


def _pairs(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def level(frame: Frame, y: float, text: str) -> Iterator[Element]:
    """Yield a level to compare lines with."""
    right, height = frame.point(frame.x.high, y)
    yield tag("line", x1=frame.left, x2=right, y1=height, y2=height, class_="cut")
    yield tag("text", text, x=right - 4, y=height + 15 if height < frame.top + 16 else height - 5, class_="note end")


def key_of(labels: Sequence[str]) -> Element:
    """Return the key to the colours of the lines of these *labels*."""
    items = (tag("li", tag("span", class_=f"swatch k{n}"), elided(label, _LABEL)) for n, label in enumerate(labels))
    return tag("ul", *items, class_="key")
