"""The conditions under which the same inputs give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def reproducible() -> Iterator[None]:
    """Compute on one thread of the CPU, whatever else is set: sums are split by threads, and so are their roundings.

    In float64 the difference is some 1e-16, but now and then it decides how the result is rounded. The number of
    threads is the process's, so other threads of it compute on one as well until this is left.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad(), torch.device("cpu"):
            yield
    finally:
        torch.set_num_threads(threads)
