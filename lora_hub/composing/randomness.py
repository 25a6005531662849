"""Random numbers that depend on what they are for and where they stand, never on when they are drawn.

Philox is a counter-based generator (Salmon et al. 2011, Parallel Random Numbers: As Easy as 1, 2, 3): its n-th number
is a function of key and n. So a mask is the same in blocks of any size, in any order, on any number of threads.
"""

from __future__ import annotations

import hashlib

import torch
from numpy.random import Philox
from torch import Tensor

_NUMBERS_OF_A_COUNTER = 4


def key_of(*parts: object) -> int:
    """Return a key of 128 bits that stands for *parts*; other parts, other numbers."""
    text = "\0".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def uniform(key: int, start: int, count: int) -> Tensor:
    """Return the numbers *start* to *start* + *count* of *key*, in [0, 1): float64, ``[count]``."""
    return (_raw(key, start, count) >> 10).double() * 2.0**-53


def signs(key: int, rows: int, columns: int) -> Tensor:
    """Return +1 and -1 at random: float64, ``[rows, columns]``."""
    return 1.0 - 2.0 * (_raw(key, 0, rows * columns) & 1).double().view(rows, columns)


def _raw(key: int, start: int, count: int) -> Tensor:
    """Return 63 random bits for each position."""
    skipped, extra = divmod(start, _NUMBERS_OF_A_COUNTER)
    generator = Philox(key=key)
    generator.advance(skipped)
    return torch.from_numpy((generator.random_raw(count + extra)[extra:] >> 1).view("int64"))
