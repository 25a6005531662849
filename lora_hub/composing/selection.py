"""The k-th largest of numbers that are made anew whenever they are looked at: exact, in four passes, holding none.

The bits of non-negative float64 numbers are ordered as the numbers are. So the k-th largest is found like a word in a
dictionary, 16 bits at a time: count how many numbers have each value of the next 16 bits, among those that begin with
what is known already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_DIGITS = (48, 32, 16, 0)  # positions of the 16-bit digits, the highest first
_BASE = 1 << 16


def kth_largest(passes: Callable[[], Iterable[Tensor]], k: int) -> Tensor:
    """Return the *k*-th largest entry of each of m matrices, ``[m, 1, 1]``; k is 1 for the largest.

    Args:
        passes: Returns the rows of the matrices, block by block, ``[m, rows, columns]``: float64, none negative.
        k: At most as many as a matrix has entries.
    """
    known = torch.zeros(0, dtype=torch.int64)  # the higher digits of each answer, [m]
    left = torch.zeros(0, dtype=torch.int64)  # which of the numbers that begin so it is, from the largest, [m]
    for shift in _DIGITS:
        counts = torch.zeros(0, dtype=torch.int64)  # [m, _BASE]
        for block in passes():
            bits = (block + 0.0).view(torch.int64).flatten(1)  # + 0.0, since -0.0 has the highest bit
            if not len(counts):
                counts = torch.zeros(len(bits), _BASE, dtype=torch.int64)
                known, left = (known, left) if len(known) else (counts[:, 0].clone(), counts[:, 0] + k)
            counts += torch.stack([_histogram(row, shift, known[m]) for m, row in enumerate(bits)])
        above = counts.flip(1).cumsum(dim=1)  # [m, i]: how many have one of the i + 1 largest digits
        place = (above < left[:, None]).sum(dim=1)
        left = left - torch.where(place > 0, above.gather(1, (place - 1).clamp(min=0)[:, None])[:, 0], 0)
        known = known * _BASE + (_BASE - 1 - place)
    return known.view(torch.float64)[:, None, None]


def _histogram(bits: Tensor, shift: int, known: Tensor) -> Tensor:
    """Return how many of *bits* have each value of the digit at *shift*, of those whose higher digits are *known*."""
    higher = bits >> shift
    if shift < _DIGITS[0]:
        higher = higher[higher >> 16 == known]
    return torch.bincount(higher & (_BASE - 1), minlength=_BASE)
