"""The delta of one module as two narrow matrices, and what linear algebra says of it without forming the product.

With B = Q_B R_B and Aᵀ = Q_A R_A, the singular value decomposition of the R x R core R_B R_Aᵀ = U S Vᵀ gives that of
the delta: B A = (Q_B U) S (Q_A V)ᵀ, because Q_B and Q_A have orthonormal columns. All of it in float64: subtracting
adapters that are nearly equal cancels, and what is left must not be noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lora_hub.errors import UsageError
from lora_hub.rounding import rounded

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

    def balanced(self) -> Factors:
        """Return the same delta, each column of B and its row of A brought to like sizes by a power of two: exactly.

        For float16, to which a small column of B is zero even where its row of A is large.
        """
        B, A = (torch.frexp(sizes).exponent for sizes in (self.B.abs().amax(dim=0), self.A.abs().amax(dim=1)))
        factor = torch.tensor([math.ldexp(1.0, n) for n in ((A - B) // 2).tolist()], dtype=torch.float64)
        return Factors(self.B * factor, self.A / factor[:, None])

    def stored(self, dtype: torch.dtype, path: str) -> Factors:
        """Return what is written of them, for the module at *path*: in *dtype*, each number rounded once.

        Raises:
            UsageError: A number is too large for *dtype*.
        """
        found = Factors(rounded(self.B, dtype), rounded(self.A, dtype))
        if not (found.B.isfinite().all() and found.A.isfinite().all()):
            raise UsageError(
                f"`{path}` has numbers that {dtype_name(dtype)} cannot hold",
                hint="name a wider dtype, such as `--dtype float32`, or smaller weights",
            )
        return found


def dtype_name(dtype: torch.dtype) -> str:
    """Return what people call *dtype*, such as ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Decomposition:
    """The singular values ``S`` of *factors*, and what their vectors are made of once somebody wants them.

    ``B`` and ``A`` are Q and R of a QR decomposition as LAPACK leaves them (``geqrf``), or None where Q is not needed.
    """

    factors: Factors
    U: Tensor
    S: Tensor
    Vh: Tensor
    B: tuple[Tensor, Tensor] | None = None
    A: tuple[Tensor, Tensor] | None = None

    def strongest(self, r: int) -> Svd:
        """Return the *r* strongest singular triplets; the largest entry of each column of U is positive.

        Rows of B and columns of A that are zero stay exactly zero: what a fused projection leaves alone is left alone.
        """
        U, V = _times(self.B, self.U[:, :r]), _times(self.A, self.Vh[:r].T)
        return canonical(Svd(U, self.S[:r], V.T), self.factors.B.any(dim=1), self.factors.A.any(dim=0))


def decompose(factors: Factors) -> Decomposition:
    """Return the singular value decomposition of ``B @ A``."""
    if factors.r >= min(factors.shape):
        U, S, Vh = torch.linalg.svd(factors.B @ factors.A, full_matrices=False)
        return Decomposition(factors=factors, U=U, S=S, Vh=Vh)
    B, A = torch.geqrf(factors.B), torch.geqrf(factors.A.T)
    R_B, R_A = B[0][: factors.r].triu(), A[0][: factors.r].triu()
    U, S, Vh = torch.linalg.svd(R_B @ R_A.T)
    return Decomposition(factors=factors, U=U, S=S, Vh=Vh, B=(B[0], B[1]), A=(A[0], A[1]))


def svd(factors: Factors) -> Svd:
    """Return all singular triplets of ``B @ A``, as `Decomposition.strongest` does."""
    return decompose(factors).strongest(factors.r)


def _times(qr: tuple[Tensor, Tensor] | None, narrow: Tensor) -> Tensor:
    """Return Q times *narrow*: Q is never formed, its reflections are applied one after the other."""
    if qr is None:
        return narrow
    reflections, sizes = qr
    padded = narrow.new_zeros(len(reflections), narrow.shape[1])
    padded[: len(narrow)] = narrow
    product: Tensor = torch.ormqr(reflections, sizes, padded)
    return product


def canonical(svd: Svd, rows: Tensor, columns: Tensor) -> Svd:
    """Return *svd* with the largest entry of each column of U positive, and nothing in other *rows* and *columns*.

    Args:
        svd: A decomposition, whose signs are arbitrary.
        rows: Which rows of the delta are not zero, ``[out]``.
        columns: Which columns, ``[in]``.
    """
    U, Vh = svd.U * rows[:, None], svd.Vh * columns
    if not len(svd.S):
        return Svd(U, svd.S, Vh)
    largest = U.gather(0, U.abs().argmax(dim=0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(U.dtype)  # [1, n]
    return Svd(U * signs, svd.S, Vh * signs.T)


def numerical_rank(singular_values: Tensor, factors: Factors) -> int:
    """Return how many of the *singular_values* of *factors* are more than the rounding of their computation.

    The bound is relative to the factors, not to the largest value: where two of them cancel, all that is left is noise.
    """
    if not factors.r:
        return 0
    size = (_column_norms(factors.B) * _column_norms(factors.A.T)).max()
    return significant(singular_values, factors.shape, size.item())


def _column_norms(narrow: Tensor) -> Tensor:
    """Return the norms of the columns of *narrow*: by products, which are faster here than norms along an axis."""
    return (narrow.T @ narrow).diagonal().clamp(min=0).sqrt()


def significant(singular_values: Tensor, shape: Sequence[int], size: float) -> int:
    """Return how many of the *singular_values* of a matrix of *shape* are no noise, if its parts have norms to *size*.

    The bound is that of numpy's and MATLAB's ``rank``, but relative to what was added up, not to what came out.
    """
    return int((singular_values > max(shape) * EPSILON * size).sum())


def thin_svd(matrix: Tensor, *, size: float) -> Svd:
    """Return the decomposition of a small *matrix*, cut to its rank where what went into it has norms up to *size*."""
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    r = significant(S, matrix.shape, size)
    return Svd(U[:, :r], S[:r], Vh[:r])


def leading(matrix: Tensor, share: float) -> Svd:
    """Return the strongest singular triplets of a small *matrix*: the *share* of its rank, one at least."""
    U, S, Vh = thin_svd(matrix, size=matrix.norm().item())
    r = max(1, round(share * len(S)))
    return Svd(U[:, :r], S[:r], Vh[:r])


def polar(matrix: Tensor) -> Tensor:
    """Return the polar factor of *matrix*: the nearest one with orthonormal columns, or partial isometry.

    Directions that are linear combinations of others have none of their own: they get nothing, not noise.
    """
    U, _, Vh = thin_svd(matrix, size=torch.linalg.matrix_norm(matrix).item())
    return U @ Vh


def norm(factors: Factors) -> float:
    """Return the Frobenius norm of ``B @ A``."""
    return math.sqrt(max(inner(factors, factors), 0.0))


def inner(one: Factors, other: Factors) -> float:
    """Return the inner product of two deltas, ``<B A, B' A'> = sum of (Bᵀ B') * (A A'ᵀ)``, from R x R matrices."""
    return ((one.B.T @ other.B) * (one.A @ other.A.T)).sum().item()
