"""The conditions under which the same inputs give the same bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside: dict[int, int] = {}  # how many threads of the CPU each thread of Python gives itself back


@contextmanager
def reproducible() -> Iterator[None]:
    """Compute on one thread of the CPU, whatever else is set: sums are split by threads, and so are their roundings.

    In float64 the difference is some 1e-16, but now and then it decides how the result is rounded. Each thread of
    Python has a number of its own, and one that begins takes over what was set last: 1, while anybody is in here.
    """
    me = threading.get_ident()
    is_outermost = _enter(me)
    try:
        with torch.no_grad(), torch.device("cpu"):
            yield
    finally:
        if is_outermost:
            _leave(me)


def _enter(me: int) -> bool:
    """Set one thread, and return whether it was not so already; a 1 that may be taken over is not what was there."""
    with _lock:
        if me in _inside:
            return False
        own = torch.get_num_threads()
        _inside[me] = next(iter(_inside.values()), 1) if own == 1 else own
        torch.set_num_threads(1)
        return True


def _leave(me: int) -> None:
    with _lock:
        torch.set_num_threads(_inside.pop(me))
