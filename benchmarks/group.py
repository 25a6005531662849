"""What a group of cases is, and what its cases are given."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.machine import synchronise
from benchmarks.measure import Way, interleave


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What a case is given.

    Attributes:
        rounds: How many samples to take.
        folder: A directory of this run.
    """

    rounds: int
    folder: Path

    def time(self, ways: Mapping[str, Way], *, at_most: int | None = None) -> dict[str, list[float]]:
        """Return the seconds of each of *ways*, in turn, in *rounds* or *at_most* so many."""
        rounds = self.rounds if at_most is None else min(self.rounds, at_most)
        return interleave(ways, rounds=rounds, synchronise=synchronise)


Case = Callable[[Bench], Iterable[Figure]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Cases that measure one promise.

    Attributes:
        name: One word.
        title: What is compared, for the reader of the table.
        cases: By name; each is run alone, and its figures are written down before the next.
    """

    name: str
    title: str
    cases: Mapping[str, Case]

    def selected(self, patterns: Iterable[str]) -> dict[str, Case]:
        """Return the cases that one of *patterns* names: the group, a case, or ``group/case``; all if there is none."""
        globs = list(patterns)
        return {name: case for name, case in self.cases.items() if not globs or self._is_named(name, globs)}

    def _is_named(self, case: str, globs: list[str]) -> bool:
        names = (self.name, case, f"{self.name}/{case}")
        return any(fnmatch.fnmatchcase(name, glob) for name in names for glob in globs)
