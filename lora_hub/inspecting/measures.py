"""What linear algebra says of the deltas of one module, without forming any of them: `[out, in]` never exists.

QR of all B side by side, and of all A, writes every delta in one common pair of orthonormal bases. There they are R x R
at most, R the sum of their ranks, and have the same singular values, inner products and angles. All of it in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from lora_hub.composing.factors import Factors, Svd, numerical_rank, svd
from lora_hub.errors import MalformedError
from lora_hub.inspecting.relations import Overlap, Pair

LARGEST = 1e100  # of a number: its square, and a sum of those, is still a number
SMALLEST = 1e-100  # what is less is zero


def spectra(deltas: Sequence[Factors], path: str) -> list[Svd]:
    """Return U, S and V of each of *deltas*, in common bases, down to its numerical rank.

    Raises:
        MalformedError: The numbers of one are too large to calculate with.
    """
    return [
        _numerical(svd(_bounded(small, path)), delta)
        for small, delta in zip(in_common_bases(deltas), deltas, strict=True)
    ]


def in_common_bases(deltas: Sequence[Factors]) -> list[Factors]:
    """Return each ``B @ A`` as ``(Q_B' B) @ (A Q_A)``, the bases those of all B and of all A."""
    ranks = [delta.r for delta in deltas]
    B = torch.split(_triangle(torch.cat([delta.B for delta in deltas], dim=1)), ranks, dim=1)
    A = torch.split(_triangle(torch.cat([delta.A for delta in deltas]).T), ranks, dim=1)
    return [Factors(b, a.T) for b, a in zip(B, A, strict=True)]


def _triangle(columns: Tensor) -> Tensor:
    R: Tensor = torch.linalg.qr(columns, mode="r")[1]
    return R


def _bounded(delta: Factors, path: str) -> Factors:
    """LAPACK does not end well on infinities, and squares of what is larger are infinite."""
    if not all(part.abs().max() < LARGEST for part in (delta.B, delta.A, delta.B @ delta.A)):
        raise MalformedError(
            f"a number of the delta of `{path}` is not below {LARGEST:g}", hint="the training diverged: train again"
        )
    return delta


def _numerical(whole: Svd, delta: Factors) -> Svd:
    rank = min(numerical_rank(whole.S, delta), int((whole.S > SMALLEST).sum()))
    return Svd(whole.U[:, :rank], whole.S[:rank], whole.Vh[:rank])


def dead_ranks(delta: Factors) -> int:
    """Return how many columns of B, or the rows of A that belong to them, are zero."""
    B, A = (torch.linalg.vector_norm(side, ord=math.inf, dim=dim) for side, dim in ((delta.B, 0), (delta.A, 1)))
    return int(((B == 0) | (A == 0)).sum())


def pairs(found: Sequence[Svd], positions: Sequence[int], shape: tuple[int, int]) -> tuple[Pair, ...]:
    """Return every two of the deltas *found* in one module of this *shape*, ``(out, in)``, in common bases."""
    return tuple(
        _pair(found[i], found[j], (positions[i], positions[j]), shape) for i, j in combinations(range(len(found)), 2)
    )


def _pair(one: Svd, other: Svd, positions: tuple[int, int], shape: tuple[int, int]) -> Pair:
    U, V = one.U.T @ other.U, one.Vh @ other.Vh.T  # [rank, rank'] each
    # Relative to their norms first, so that no product is too small or too large.
    S, S_other = (s / torch.linalg.vector_norm(s) for s in (one.S, other.S))
    cosine = (S[:, None] * U * V * S_other).sum().item()
    return Pair(
        one=positions[0],
        other=positions[1],
        modules=1,
        cosine=max(-1.0, min(1.0, cosine)),
        outputs=_overlap(U, S, S_other, shape[0]),
        inputs=_overlap(V, S, S_other, shape[1]),
    )


def _overlap(products: Tensor, S: Tensor, S_other: Tensor, features: int) -> Overlap:
    """Return the overlap of two orthonormal bases by their *products* ``Q' Q'``, in a space of so many *features*."""
    if not products.numel():
        return Overlap(shared=0.0, chance=0.0, one_in_other=0.0, other_in_one=0.0)
    cosines = torch.linalg.svdvals(products).clamp(max=1.0)
    return Overlap(
        shared=min(1.0, (products**2).sum().item() / min(products.shape)),
        chance=min(1.0, max(products.shape) / features),
        one_in_other=min(1.0, ((S[:, None] * products) ** 2).sum().item()),
        other_in_one=min(1.0, ((products * S_other) ** 2).sum().item()),
        cosines=tuple(cosines.tolist()),
    )
