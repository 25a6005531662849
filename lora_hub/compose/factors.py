"""The delta of one module as two narrow matrices, and what linear algebra says of it without forming the product.

With B = Q_B R_B and Aᵀ = Q_A R_A, the singular value decomposition of the R x R core R_B R_Aᵀ = U S Vᵀ gives that of
the delta: B A = (Q_B U) S (Q_A V)ᵀ, because Q_B and Q_A have orthonormal columns. All of it in float64: subtracting
adapters that are nearly equal cancels, and what is left must not be noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float64).eps


class Factors(NamedTuple):
    """The delta ``B @ A`` of one module, the scaling in B: ``[out, R] @ [R, in]``, both float64."""

    B: Tensor
    A: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """``(out, in)`` of the delta."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def r(self) -> int:
        """R, the number of columns of B: the rank at most."""
        return self.A.shape[0]


class Svd(NamedTuple):
    """``U @ diag(S) @ Vh`` is the delta: ``[out, n]``, ``[n]`` falling, ``[n, in]``; n is R, or min(out, in)."""

    U: Tensor
    S: Tensor
    Vh: Tensor

    def truncated(self, r: int) -> Factors:
        """Return the best approximation of rank *r* (Eckart and Young 1936), its size in equal shares in B and A.

        In shares, since float16 would lose all of a small B, and little of two roots.
        """
        root = self.S[:r].sqrt()
        return Factors(self.U[:, :r] * root, root[:, None] * self.Vh[:r])


def stack(deltas: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Return the sum of ``weight * delta``, exactly: B's side by side, each times its weight, above them the A's."""
    B = torch.cat([delta.B * weight for delta, weight in zip(deltas, weights, strict=True)], dim=1)
    return Factors(B, torch.cat([delta.A for delta in deltas]))


def svd(factors: Factors) -> Svd:
    """Return the singular value decomposition of ``B @ A``; the largest entry of each column of U is positive.

    Rows of B and columns of A that are zero stay exactly zero: what a fused projection leaves alone is left alone.
    """
    if factors.r >= min(factors.shape):
        U, S, Vh = torch.linalg.svd(factors.B @ factors.A, full_matrices=False)
    else:
        Q_B, R_B = torch.linalg.qr(factors.B)
        Q_A, R_A = torch.linalg.qr(factors.A.T)
        core, S, core_h = torch.linalg.svd(R_B @ R_A.T)
        U, Vh = Q_B @ core, core_h @ Q_A.T
    U[~factors.B.any(dim=1)] = 0
    Vh[:, ~factors.A.any(dim=0)] = 0
    largest = U.gather(0, U.abs().argmax(dim=0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(U.dtype)  # [1, n]
    return Svd(U * signs, S, Vh * signs.T)


def numerical_rank(singular_values: Tensor, factors: Factors) -> int:
    """Return how many of the *singular_values* of *factors* are more than the rounding of their computation.

    The bound is relative to the factors, not to the largest value: where two of them cancel, all that is left is noise.
    """
    size = (torch.linalg.vector_norm(factors.B, dim=0) * torch.linalg.vector_norm(factors.A, dim=1)).max()
    return int((singular_values > max(factors.shape) * EPSILON * size).sum())


def norm(factors: Factors) -> float:
    """Return the Frobenius norm of ``B @ A``."""
    return math.sqrt(max(inner(factors, factors), 0.0))


def inner(one: Factors, other: Factors) -> float:
    """Return the inner product of two deltas, ``<B A, B' A'> = sum of (Bᵀ B') * (A A'ᵀ)``, from R x R matrices."""
    return ((one.B.T @ other.B) * (one.A @ other.A.T)).sum().item()
