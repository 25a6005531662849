"""Sets of whole numbers as half-open runs ``[start, stop]`` that rise and do not overlap."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

MAX_STOP = 2**31


def are_runs(runs: list[Any]) -> bool:
    """Whether *runs* are non-empty half-open runs that rise and do not overlap."""
    position = 0
    for run in runs:
        match run:
            case [start, stop] if type(start) is type(stop) is int and position <= start < stop <= MAX_STOP:
                position = stop
            case _:
                return False
    return bool(runs)


def runs_of(numbers: Iterable[int]) -> list[list[int]]:
    """Return rising *numbers* as runs."""
    grouped = itertools.groupby(enumerate(numbers), key=lambda entry: entry[1] - entry[0])
    return [[run[0][1], run[-1][1] + 1] for run in (list(run) for _, run in grouped)]
