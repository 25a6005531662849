"""Several ways to do one thing, in turn: each round does every way once, so that what drifts hits all alike."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to do what is measured.

    Attributes:
        call: Does it.
        repeat: How often a sample calls it.
        counts: How many of what is measured one call does.
        undo: Takes what the call returned and undoes it, untimed, after each call.
    """

    call: Callable[[], object]
    repeat: int = 1
    counts: int = 1
    undo: Callable[[Any], object] | None = None


def _nothing() -> None:
    pass


def interleave(
    ways: Mapping[str, Way],
    *,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    synchronise: Callable[[], object] = _nothing,
) -> dict[str, list[float]]:
    """Return the seconds that each of *ways* took, one sample for each of *rounds*.

    Who begins changes from round to round, and one round before is not counted. *synchronise* waits for a device.
    """
    samples: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    with _no_collection():
        for number in range(rounds + 1):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                samples[name].append(_sample(ways[name], clock, synchronise))
            gc.collect()
    return {name: seconds[1:] for name, seconds in samples.items()}


def _sample(way: Way, clock: Callable[[], float], synchronise: Callable[[], object]) -> float:
    """Return the seconds of one of what is measured."""
    if way.undo is not None:
        return sum(_undone(way, way.undo, clock, synchronise) for _ in range(way.repeat)) / (way.repeat * way.counts)
    synchronise()
    start = clock()
    for _ in range(way.repeat):
        way.call()
    synchronise()
    return (clock() - start) / (way.repeat * way.counts)


def _undone(
    way: Way, undo: Callable[[Any], object], clock: Callable[[], float], synchronise: Callable[[], object]
) -> float:
    synchronise()
    start = clock()
    result = way.call()
    synchronise()
    seconds = clock() - start
    undo(result)
    return seconds


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector out of the samples, and what lives already out of its way between them."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
