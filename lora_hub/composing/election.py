"""What several rules share: how many entries a density is, and the mean of those who agree on a sign."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EVEN = 1e-9  # of the votes: what float64 leaves where adapters cancel is no majority


def how_many(density: float, shape: tuple[int, int]) -> int:
    """Return how many entries of a matrix of *shape* the share *density* of them is, one at least."""
    return max(1, round(density * shape[0] * shape[1]))


def elected_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return Σ wᵢ Tᵢ / Σ |wᵢ| over those i whose wᵢ Tᵢ has the sign of Σ wᵢ Tᵢ, entry by entry; 0 where it is even.

    Args:
        values: T, ``[n, rows, columns]``; a zero does not vote.
        weights: w, ``[n, 1, 1]``.
    """
    votes = values * weights
    total = votes.sum(dim=0)
    elected = total.sign() * (total.abs() > EVEN * votes.abs().sum(dim=0))
    agrees = votes * elected > 0
    size = (agrees * weights.abs()).sum(dim=0)
    return (votes * agrees).sum(dim=0) / size.where(size > 0, 1.0)
