"""What a composition says of itself: what became of each module, and what was lost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleReport:
    """What became of one module.

    Attributes:
        path: Where it is.
        ranks: r of each input, in the order of the recipe; None where it does not adapt this module.
        weights: What each counted.
        rank: How many singular values the result has before it is cut, apart from rounding.
        r: The rank that was written.
        kept: The share of the squares of all singular values ("energy") that was written. The relative error in the
            Frobenius norm is √(1 - kept): 0.14 for 0.98.
        norm: The Frobenius norm of the result before it is cut.
    """

    path: str
    ranks: tuple[int | None, ...]
    weights: tuple[float, ...]
    rank: int
    r: int
    kept: float
    norm: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of all modules, and remarks on what weights cannot do or documents do not agree on."""

    modules: tuple[ModuleReport, ...]
    notes: tuple[str, ...] = ()

    @property
    def rank_in(self) -> int:
        """The largest sum of the inputs' ranks in a module."""
        return max(sum(r or 0 for r in module.ranks) for module in self.modules)

    @property
    def rank_out(self) -> int:
        """The largest rank that was written."""
        return max(module.r for module in self.modules)

    @property
    def kept(self) -> float:
        """The share of the energy of all modules together that was written."""
        energy = sum(module.norm**2 for module in self.modules)
        return sum(module.kept * module.norm**2 for module in self.modules) / energy if energy else 1.0

    @property
    def worst(self) -> ModuleReport:
        """The module that lost the largest share of its own energy."""
        return min(self.modules, key=lambda module: module.kept)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "rank_in": self.rank_in,
            "rank_out": self.rank_out,
            "kept": self.kept,
            "worst": self.worst.path,
            "notes": list(self.notes),
            "modules": [dataclasses.asdict(module) for module in self.modules],
        }
