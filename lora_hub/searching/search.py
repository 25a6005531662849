"""The search itself: from a loss of weights to the best weights that were tried. No model, no files.

LoraHub (arXiv 2307.13269, section 3.3) minimises ``loss(w) + 0.05 * mean(|w|)`` over weights from -1.5 to 1.5. There
it starts at 0 and averages factors, so that w and -w are the same adapter; here w is the weight of a delta in an exact
sum, and the start is 1/n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from lora_hub.documents.recipe import MAX_SEED
from lora_hub.errors import CompatibilityError, UsageError
from lora_hub.searching.optimiser import check_installed, proposals
from lora_hub.searching.result import EQUAL, FOUND, NONE, Measured, SearchResult, Step, alone

BOUND = 1.5  # of a weight
PENALTY = 0.05  # of the mean absolute weight
BUDGET = 40  # steps of the optimiser
MAX_BUDGET = 100_000
MAX_ADAPTERS = 256

Objective = Callable[[Mapping[str, float]], float]
Progress = Callable[[Sequence[int], str], Iterable[Any]]


def no_progress(items: Sequence[int], _label: str) -> Iterable[Any]:
    """Show nothing."""
    return items


def search_by_objective(
    objective: Objective,
    names: Sequence[str],
    *,
    budget: int = BUDGET,
    seed: int = 0,
    penalty: float = PENALTY,
    holdout: Objective | None = None,
    progress: Progress = no_progress,
) -> SearchResult:
    """Return the weights of *names*, each from -1.5 to 1.5, for which ``objective(w) + penalty * mean(|w|)`` is lowest.

    Before the optimiser starts, equal weights (1/n), each name alone, and none are tried; so what is returned is never
    worse than equal weights or one alone. Weights for which the loss is not finite are passed over.

    Args:
        objective: The loss of a mixture; deterministic, since it is called once for the same weights.
        names: What is mixed.
        budget: Steps of the optimiser; those that come before do not count.
        seed: The same seed gives the same result; from 0 to 2⁶³ - 1.
        penalty: The factor of the mean absolute weight.
        holdout: Another loss, that of what is returned and of what is tried first is reported, and nothing else.
        progress: ``progress(range(n), label)`` yields from the range and shows how far it is.

    Raises:
        UsageError: No names, one twice, a budget below 1, or a seed out of its range.
        CompatibilityError: No mixture has a finite loss.
        MissingExtraError: nevergrad is not installed.
    """
    check_search(names, budget=budget, seed=seed)
    recorder = _Recorder(objective, tuple(names), penalty)
    references = _references(recorder.names)
    shown = iter(progress(range(len(references) + budget), "Searching"))
    for (point, reference), _ in zip(references.items(), shown, strict=False):
        recorder.try_(point, reference)
    with closing(proposals(recorder.start(), bound=BOUND, budget=budget, seed=seed)) as proposed:
        weights = next(proposed)
        for number, _ in enumerate(shown, start=1):
            loss = recorder.try_(f"step {number}", weights)
            weights = proposed.send(loss) if number < budget else weights
    best = recorder.best()
    reported = {**{s.point: s for s in recorder.trace[: len(references)]}, FOUND: best}
    return SearchResult(
        weights=best.weights,
        losses=tuple(_measured(point, step, holdout) for point, step in reported.items()),
        trace=tuple(recorder.trace),
        budget=budget,
        seed=seed,
        penalty=penalty,
    )


def check_search(names: Sequence[str], *, budget: int, seed: int) -> None:
    """Raise what `search_by_objective` raises before it has waited for anything."""
    if not names or len(names) > MAX_ADAPTERS:
        raise UsageError(f"{len(names)} adapters to mix", hint=f"name from 1 to {MAX_ADAPTERS}")
    if len(set(names)) < len(names):
        raise UsageError("one name stands for two adapters", hint="give each adapter a name of its own")
    if not 1 <= budget <= MAX_BUDGET:
        raise UsageError(
            f"a budget of {budget} steps", hint=f"expected from 1 to {MAX_BUDGET}; {BUDGET} is the default"
        )
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"a seed of {seed}", hint=f"expected from 0 to {MAX_SEED}")
    check_installed()


def _references(names: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """Return what a mixture is compared with, by what a report calls it."""
    count = len(names)
    singles = {alone(name): tuple(float(other == name) for other in names) for name in names}
    return {EQUAL: (1 / count,) * count, NONE: (0.0,) * count, **singles}


def _measured(point: str, step: Step, holdout: Objective | None) -> Measured:
    other = holdout(step.weights) if holdout is not None else None
    return Measured(point=point, weights=step.weights, search=step.loss, holdout=other)


@dataclass(slots=True)
class _Recorder:
    """Runs the objective, once for the same weights, and keeps the trace."""

    objective: Objective
    names: tuple[str, ...]
    penalty: float
    trace: list[Step] = field(default_factory=list)
    losses: dict[tuple[float, ...], float] = field(default_factory=dict)

    def try_(self, point: str, weights: tuple[float, ...]) -> float:
        """Return the objective at *weights*, as a finite number that an optimiser can take."""
        named = dict(zip(self.names, weights, strict=True))
        if weights not in self.losses:
            self.losses[weights] = float(self.objective(named))
        loss = self.losses[weights]
        total = loss + self.penalty * sum(map(abs, weights)) / len(weights)
        step = Step(point=point, weights=named, loss=loss, objective=total)
        self.trace.append(step)
        return total if step.is_finite else self._worst()

    def _worst(self) -> float:
        """Of the same size as the others: a huge number would blind whoever fits a model to the losses."""
        return max((step.objective for step in self.trace if step.is_finite), default=0.0) + 1.0

    def start(self) -> tuple[float, ...]:
        """Return equal weights; where they have no loss the best of what was tried, since from there no way is seen."""
        finite = [step for step in self._mixtures() if step.is_finite]
        chosen = self.trace[0] if self.trace[0] in finite or not finite else min(finite, key=lambda s: s.objective)
        return tuple(chosen.weights.values())

    def best(self) -> Step:
        """Return the best mixture, the first of several; no adapter at all is none."""
        finite = [step for step in self._mixtures() if step.is_finite]
        if not finite:
            broken = [step.point for step in self.trace if step.point.startswith("only")]
            raise CompatibilityError(
                f"none of {len(self.trace)} mixtures has a finite loss, not even {', '.join(broken)}",
                hint="check the base model and the examples: the loss of the bare base is "
                f"{self.losses[(0.0,) * len(self.names)]}",
            )
        return min(finite, key=lambda step: step.objective)

    def _mixtures(self) -> Iterator[Step]:
        return (step for step in self.trace if any(step.weights.values()))
