"""Scales, and the frame of a chart: grid, ticks and titles."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self
from xml.etree.ElementTree import Element

from lora_hub.inspecting.markup import percent, tag

_MAX_TICKS = 10  # whose labels do not touch


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One direction of a chart: what it shows, from *low* to *high*, and where it is labelled."""

    title: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Return where *value* lies: 0 at the low end, 1 at the high one; what is outside lies at an end."""
        low, high, x = (math.log(v) if self.is_log else v for v in (self.low, self.high, max(value, self.low)))
        return min(1.0, (x - low) / (high - low))

    @classmethod
    def counting(cls, title: str, low: int, high: int) -> Self:
        """Return an axis of whole numbers."""
        step = next(s for s in steps() if (high - low) / s <= _MAX_TICKS)
        numbers = [low, *(n for n in range(0, high + 1, step) if n - low >= step / 2)]
        # Half a step of air, so that a single number lies in the middle.
        return cls(title=title, low=low - 0.5, high=high + 0.5, ticks=tuple((n, f"{n}") for n in numbers))

    @classmethod
    def shares(cls, title: str, high: float = 1.0) -> Self:
        """Return an axis of percentages from 0 to at least *high*."""
        top = next(t for t in (0.25, 0.5, 0.75, 1.0) if t >= min(high, 1.0))
        return cls(title=title, low=0, high=top, ticks=tuple((top * n / 5, percent(top * n / 5)) for n in range(6)))

    @classmethod
    def from_zero(cls, title: str, high: float) -> Self:
        """Return an axis from 0 to at least *high*."""
        step = next(s for n in range(-9, 300) for s in (10.0**n, 2 * 10.0**n, 5 * 10.0**n) if high <= 5 * s)
        return cls(title=title, low=0, high=5 * step, ticks=tuple((n * step, f"{n * step:g}") for n in range(6)))

    @classmethod
    def logarithmic(cls, title: str, low: float) -> Self:
        """Return a logarithmic axis from at most *low*, which is at most 1, up to 1."""
        marks = [digit * 10.0**n for n in range(-9, 0) for digit in (1, 2, 5)] + [1.0]
        first = max(mark for mark in marks[:-1] if mark <= max(low, marks[0]))
        inside = [mark for mark in marks if mark >= first]
        if len(inside) > _MAX_TICKS:
            inside = [mark for mark in inside if mark in {10.0**n for n in range(-9, 1)}]
        return cls(title=title, low=first, high=1, ticks=tuple((mark, f"{mark:g}") for mark in inside), is_log=True)


def steps() -> Iterator[int]:
    """Yield 1, 2, 5, 10, 20, …: what people count in."""
    return (digit * 10**n for n in range(9) for digit in (1, 2, 5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The rectangle of a chart, in pixels, and its two axes."""

    x: Axis
    y: Axis
    width: int = 520
    height: int = 290
    left: int = 66
    bottom: int = 44
    top: int = 14
    right: int = 14

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Return where the values *x* and *y* lie, in pixels."""
        across = self.width - self.left - self.right
        down = self.height - self.top - self.bottom
        return self.left + self.x.place(x) * across, self.top + (1 - self.y.place(y)) * down

    def draw(self, label: str, *content: Element) -> Element:
        """Return the chart *label* of *content*."""
        return svg(self.width, self.height, label, *self._grid(), *self._titles(), *content)

    def _grid(self) -> Iterator[Element]:
        floor, wall = self.height - self.bottom, self.width - self.right
        for value, text in self.y.ticks:
            _, y = self.point(self.x.low, value)
            yield tag("line", x1=self.left, x2=wall, y1=y, y2=y, class_="grid")
            yield tag("text", text, x=self.left - 8, y=y + 4, class_="tick end")
        for value, text in self.x.ticks:
            x, _ = self.point(value, self.y.low)
            yield tag("line", x1=x, x2=x, y1=floor, y2=floor + 4, class_="axis")
            yield tag("text", text, x=x, y=floor + 17, class_="tick mid")
        yield tag("line", x1=self.left, x2=wall, y1=floor, y2=floor, class_="axis")

    def _titles(self) -> Iterator[Element]:
        middle = (self.top + self.height - self.bottom) / 2
        centre = (self.left + self.width - self.right) / 2
        yield tag("text", self.x.title, x=centre, y=self.height - 8, class_="title mid")
        yield tag("text", self.y.title, x=13, y=middle, class_="title mid", transform=f"rotate(-90 13 {middle:.0f})")


def svg(width: float, height: float, label: str, *content: Element) -> Element:
    """Return a picture of this size in pixels; *label* is what is read out where it cannot be seen."""
    return tag(
        "svg",
        *content,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        width=width,
        height=height,
        role="img",
        aria_label=label,
    )


def thinned(count: int, limit: int) -> Sequence[int]:
    """Return at most *limit* of the positions 0 to *count* - 1, both ends among them."""
    if count <= limit:
        return range(count)
    return sorted({round(n * (count - 1) / (limit - 1)) for n in range(limit)})
