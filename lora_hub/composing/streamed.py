"""The strongest singular triplets of a matrix that is made row by row and never held.

Subspace iteration from a random start, with more columns than are wanted (Halko, Martinsson and Tropp 2011, Finding
Structure with Randomness, arXiv:0909.4061, section 4.5). Rows are expensive here, so each pass over them multiplies
with DᵀD, not with D alone. A matrix of full rank, as rules leave it in the space of the weights, has no exact short
form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from lora_hub.composing.factors import Svd
from lora_hub.composing.randomness import signs

PASSES = 3
OVERSAMPLING = 16

Rows = Callable[[], Iterator[Tensor]]  # yields blocks [rows, in], from the first row to the last, as often as called


class Streamed(NamedTuple):
    """A matrix D ``[out, in]`` in float64 that is made anew whenever it is looked at."""

    shape: tuple[int, int]
    rows: Rows

    def times(self, columns: Tensor) -> Tensor:
        """Return D X: ``[out, in] @ [in, n]``."""
        return torch.cat([rows @ columns for rows in self.rows()])

    def gram_times(self, columns: Tensor) -> tuple[Tensor, float]:
        """Return Dᵀ D X, ``[in, n]``, and the sum of the squares of all entries of D."""
        product, energy = torch.zeros_like(columns), 0.0
        for rows in self.rows():
            product += rows.T @ (rows @ columns)
            energy += rows.square().sum().item()
        return product, energy


def range_svd(matrix: Streamed, r: int, key: int) -> tuple[Svd, float]:
    """Return the *r* strongest singular triplets of *matrix*, some weaker ones, and the sum of squares of its entries.

    *key* is that of what is drawn.
    """
    V, energy = signs(key, matrix.shape[1], min(r + OVERSAMPLING, *matrix.shape)), 0.0
    for _ in range(PASSES):
        product, energy = matrix.gram_times(V)
        V, _ = torch.linalg.qr(product)
    U, S, Vh = torch.linalg.svd(matrix.times(V), full_matrices=False)
    return Svd(U, S, Vh @ V.T), energy
