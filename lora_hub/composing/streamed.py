"""The strongest singular triplets of a matrix that is made row by row and never held.

The randomised range finder with power passes (Halko, Martinsson and Tropp 2011, Finding Structure with Randomness,
arXiv:0909.4061, algorithm 4.4): multiply the matrix with random columns, orthonormalise, and sharpen what came out by
going back and forth. A matrix of full rank, as rules leave it in the space of the weights, has no exact short form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lora_hub.composing.factors import Svd
from lora_hub.composing.randomness import signs

POWER_PASSES = 2
OVERSAMPLING = 16

Rows = Callable[[], Iterator[tuple[int, Tensor]]]  # yields (first row, [rows, in]) for all rows, as often as called


class Streamed(NamedTuple):
    """A matrix ``[out, in]`` in float64 that is made anew whenever it is looked at."""

    shape: tuple[int, int]
    rows: Rows

    def times(self, columns: Tensor) -> Tensor:
        """Return the matrix times *columns*: ``[out, in] @ [in, n]``."""
        return torch.cat([rows @ columns for _, rows in self.rows()])

    def transposed_times(self, columns: Tensor) -> Tensor:
        """Return its transpose times *columns*: ``[in, out] @ [out, n]``."""
        total = torch.zeros(self.shape[1], columns.shape[1], dtype=torch.float64)
        for start, rows in self.rows():
            total += rows.T @ columns[start : start + len(rows)]
        return total

    def energy(self) -> float:
        """Return the sum of the squares of all entries."""
        return float(sum((rows * rows).sum().item() for _, rows in self.rows()))


def range_svd(matrix: Streamed, r: int, key: int) -> Svd:
    """Return the *r* strongest singular triplets of *matrix*, and some weaker ones; *key* is that of what is drawn."""
    columns = min(r + OVERSAMPLING, *matrix.shape)
    Q, _ = torch.linalg.qr(matrix.times(signs(key, matrix.shape[1], columns)))
    for _ in range(POWER_PASSES):
        back, _ = torch.linalg.qr(matrix.transposed_times(Q))
        Q, _ = torch.linalg.qr(matrix.times(back))
    V, S, Uh = torch.linalg.svd(matrix.transposed_times(Q), full_matrices=False)
    return Svd(Q @ Uh.T, S, V.T)
