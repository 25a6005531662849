"""What was found: the samples of every way in which one thing was done, and what follows from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

Samples = Mapping[str, Sequence[float]]  # by way: "base" (no adapter), "ours", "peft"; "full" is full fine-tuning

_STEPS = {
    "s": ((1, "s"), (1e-3, "ms"), (1e-6, "us")),
    "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of a table.

    Attributes:
        name: What was done; unique in all groups, since the README quotes it.
        samples: What each round gave, by way, in *unit*.
        unit: ``s``, ``bytes``, or nothing for counts.
        above_base: Whether what the adapter adds to the base is compared, not the whole.
        against: The way that ours is compared with; None if its own value is what counts.
        goal: What is compared may be this much.
    """

    name: str
    samples: Samples
    unit: str = "s"
    above_base: bool = False
    against: str | None = "peft"
    goal: float | None = None

    @property
    def label(self) -> str:
        """The name, and whether the base is subtracted."""
        return f"{self.name}, above the base" if self.above_base else self.name

    def median(self, way: str) -> float:
        """Return the median over the rounds."""
        return statistics.median(self.samples[way])

    @property
    def found(self) -> float:
        """What the goal limits: the ratio to *against*, or our own value. NaN if nothing was there to compare with.

        What is above the base is subtracted within each round, where both saw the same machine.
        """
        if self.against is None:
            return self.median("ours")
        if self.against not in self.samples:
            return math.nan
        ours, theirs = self._compared("ours"), self._compared(self.against)
        return ours / theirs if theirs > 0 else math.nan

    def _compared(self, way: str) -> float:
        if not self.above_base:
            return self.median(way)
        pairs = zip(self.samples[way], self.samples["base"], strict=True)
        return statistics.median(seconds - base for seconds, base in pairs)

    @property
    def found_cell(self) -> str:
        """What was found, for a table: a ratio, or our value with its unit."""
        if self.against is None:
            return self.cell("ours")
        return short(self.found) + (" of the base" if self.against == "base" else "")

    @property
    def is_met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        return None if self.goal is None else self.found <= self.goal

    def cell(self, way: str) -> str:
        """Return the median of *way* for a table, or nothing."""
        return with_unit(self.median(way), self.unit) if way in self.samples else ""

    def to_json(self) -> dict[str, Any]:
        """Return what `from_json` reads, with four digits of each time."""
        fields = {name: getattr(self, name) for name in ("name", "unit", "above_base", "against", "goal")}
        digits = ".4g" if self.unit == "s" else ".17g"
        return fields | {"samples": {way: [float(format(x, digits)) for x in xs] for way, xs in self.samples.items()}}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Self:
        """Return the figure that `to_json` wrote."""
        return cls(**document)


def with_unit(value: float, unit: str) -> str:
    """Return *value* with three digits at least, in the step of *unit* that suits it."""
    if not unit:
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:.2f}"
    size, name = next((step for step in _STEPS[unit] if value >= step[0]), _STEPS[unit][-1])
    digits = 0 if name == "B" else 3 if value / size < 10 else 2 if value / size < 100 else 1
    return f"{value / size:.{digits}f} {name}"


def short(ratio: float) -> str:
    """Return *ratio* with two digits that mean something: 0.92, 0.0014, 2.50; nothing for NaN."""
    if math.isnan(ratio):
        return ""
    return f"{ratio:.2f}" if abs(ratio) >= 0.1 else f"{ratio:.2g}"
