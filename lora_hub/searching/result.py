"""What a search found, what it cost to know it, and what should be said about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

EQUAL = "equal weights"
NONE = "no adapter"
FOUND = "found"
_DIGITS = 6  # of a loss in a lineage: the last bits depend on the machine


def alone(name: str) -> str:
    """Return what the mixture of the adapter *name* alone is called in a report."""
    return f"only {name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One mixture that was tried.

    Attributes:
        point: ``equal weights``, ``no adapter``, ``only NAME``, or ``step N`` of the optimiser.
        weights: By name of the adapter.
        loss: On the examples that the search is judged by; may be NaN or infinite.
        objective: The loss and the penalty on the weights, which is what the search minimises.
    """

    point: str
    weights: Mapping[str, float]
    loss: float
    objective: float

    @property
    def is_finite(self) -> bool:
        """Whether the mixture has a loss at all."""
        return math.isfinite(self.objective)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The loss of one mixture on the examples of the search, and on those held out, if there are any."""

    point: str
    weights: Mapping[str, float]
    search: float
    holdout: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The weights of the best mixture that was tried, and how it was found.

    Attributes:
        weights: By name of the adapter.
        losses: Of equal weights, no adapter, each adapter alone, and what was found.
        trace: Every mixture that was tried, in order.
        budget: How many the optimiser might try.
        seed: Of the hold-out and of the optimiser.
        penalty: The factor of the mean absolute weight in the objective.
        examples: How many the search was judged by; None for a loss of the caller's own.
        holdout: How many were held out.
        digest: SHA-256 of the examples as JSON, in hex.
    """

    weights: Mapping[str, float]
    losses: tuple[Measured, ...]
    trace: tuple[Step, ...]
    budget: int
    seed: int
    penalty: float
    examples: int | None = None
    holdout: int = 0
    digest: str | None = None

    def at(self, point: str) -> Measured:
        """Return what was measured at *point*."""
        return next(measured for measured in self.losses if measured.point == point)

    def remarks(self) -> tuple[str, ...]:
        """Return what whoever takes these weights should know."""
        found, said = self.at(FOUND), []
        for other in (m for m in self.losses if m is not found):
            if found.search >= other.search and found.weights != other.weights:
                said.append(
                    f"the loss of {other.point} is no higher ({other.search:.4f}) than what was found "
                    f"({found.search:.4f})"
                )
            elif found.holdout is not None and other.holdout is not None and found.holdout > other.holdout:
                said.append(
                    f"on the examples held out, {other.point} is better ({other.holdout:.4f}) than what was found "
                    f"({found.holdout:.4f}): the search fitted its examples"
                )
        said.extend(f"{s.point} has no finite loss, and was passed over" for s in self.trace if not s.is_finite)
        if self.examples is not None and not self.holdout:
            said.append(
                f"{self.examples} examples are too few to hold some out: nothing says how well this generalises"
            )
        return tuple(said)

    def measured(self) -> dict[str, float | str]:
        """Return what the lineage of a composition with these weights says: losses by a word each, and the examples."""
        losses = {
            "search_loss": self.at(FOUND).search,
            "holdout_loss": self.at(FOUND).holdout,
            "search_loss_equal": self.at(EQUAL).search,
            "holdout_loss_equal": self.at(EQUAL).holdout,
        }
        known = {name: float(f"{x:.{_DIGITS}g}") for name, x in losses.items() if x is not None and math.isfinite(x)}
        return known | ({} if self.digest is None else {"examples_sha256": self.digest})

    def to_document(self) -> dict[str, Any]:
        """Return the report as JSON values; a loss that is not finite is null."""
        return {
            "weights": dict(self.weights),
            "losses": [
                {
                    "point": m.point,
                    "weights": dict(m.weights),
                    "search": _number(m.search),
                    "holdout": _number(m.holdout),
                }
                for m in self.losses
            ],
            "examples": {"search": self.examples, "holdout": self.holdout, "sha256": self.digest},
            "optimiser": {"budget": self.budget, "seed": self.seed, "penalty": self.penalty},
            "trace": [
                {
                    "point": s.point,
                    "weights": dict(s.weights),
                    "loss": _number(s.loss),
                    "objective": _number(s.objective),
                }
                for s in self.trace
            ],
            "remarks": list(self.remarks()),
        }


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
