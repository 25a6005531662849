"""What an extraction says of itself: what became of each module, and what was left out."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractedModule:
    """One linear module that changed.

    Attributes:
        path: Where it is in the model.
        shape: ``(out, in)``.
        r: The rank that was written.
        change: ``|W - W0| / |W0|``, Frobenius norms.
        norm: ``|W - W0|``.
        kept: The share of the squares of all singular values of W - W0 ("energy") that rank r has.
        error: ``|W - W0 - B A| / |W - W0|`` of what was written, its rounding included.
        rounding: The share of ``|W - W0|²`` that rounding W to its dtype alone would make.
    """

    path: str
    shape: tuple[int, int]
    r: int
    change: float
    norm: float
    kept: float
    error: float
    rounding: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A tensor that changed and is not in the adapter: why, and ``|W - W0| / |W0|``, if the base has it."""

    name: str
    why: str
    change: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractReport:
    """What became of all tensors.

    Attributes:
        modules: What was extracted.
        full: The modules that were taken as a whole.
        left_out: What changed and is not in the adapter.
        unchanged: How many tensors are the same in both.
        dtype: What A and B are stored in.
        notes: Remarks on the two checkpoints.
    """

    modules: tuple[ExtractedModule, ...]
    full: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    unchanged: int
    dtype: str
    notes: tuple[str, ...]

    @property
    def kept(self) -> float:
        """The share of the energy of all extracted modules together that was written."""
        energy = sum(module.norm**2 for module in self.modules)
        return sum(module.kept * module.norm**2 for module in self.modules) / energy

    @property
    def worst(self) -> ExtractedModule:
        """The module that lost the largest share of its own energy."""
        return min(self.modules, key=lambda module: module.kept)

    def to_document(self) -> dict[str, Any]:
        """Return it as JSON values; a change against zeros is null."""
        left_out = [dataclasses.asdict(one) for one in self.left_out]
        modules = [dataclasses.asdict(module) for module in self.modules]
        for entry in (*left_out, *modules):
            entry["change"] = _finite(entry["change"])
        return {
            "dtype": self.dtype,
            "kept": self.kept,
            "worst": self.worst.path,
            "unchanged": self.unchanged,
            "modules": modules,
            "full": list(self.full),
            "left_out": left_out,
            "notes": list(self.notes),
        }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
