"""The space in which a rule sees the deltas of one module: which basis their entries belong to.

- ``full``: that of the weights; a delta is ``[out, in]`` and is made block by block, never held.
- ``knots``: the columns of all deltas in a common basis U of their outputs (Stoica et al. 2024, Model merging with SVD
  to tie the KnOTS, arXiv:2410.19735), ``[R, in]``: with ``[D₁ … Dₙ] = U S [V₁ᵀ … Vₙᵀ]``, what a rule sees is S Vᵢᵀ.
- ``core``: both sides in common bases (Panariello et al. 2025, Accurate and Efficient Low-Rank Model Merging in Core
  Space, arXiv:2509.17786), ``[R, R]``.

The published core takes its bases from the factors, so that B c and A/c, which are the same delta, are merged to
something else. Here the bases are singular vectors of the deltas themselves, which no rewriting of factors changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_hub.composing.factors import Factors, thin_svd
from lora_hub.composing.randomness import key_of, uniform
from lora_hub.composing.selection import kth_largest
from lora_hub.rule import Block

BLOCK = 2 * 1024 * 1024  # bytes of all deltas in one block


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Orthonormal bases, ``left`` ``[out, p]`` and ``right`` ``[in, q]``; None is the basis of the weights."""

    left: Tensor | None = None
    right: Tensor | None = None

    @classmethod
    def of(cls, name: str, deltas: Sequence[Factors]) -> Space:
        """Return the space *name* of *deltas*, which holds each of them whole."""
        if name == "full":
            return cls()
        left, right = canonical_bases(deltas)
        return cls(left=left, right=None if name == "knots" else right)

    def project(self, delta: Factors) -> Factors:
        """Return *delta* in this space, as factors."""
        B = delta.B if self.left is None else self.left.T @ delta.B
        A = delta.A if self.right is None else delta.A @ self.right
        return Factors(B, A)


def canonical_bases(deltas: Sequence[Factors]) -> tuple[Tensor, Tensor]:
    """Return the left singular vectors of ``[D₁ … Dₙ]`` and the right ones of ``[D₁; …; Dₙ]``: [out, p] and [in, q]."""
    Q_B, R_B = torch.linalg.qr(torch.cat([delta.B for delta in deltas], dim=1))
    Q_A, R_A = torch.linalg.qr(torch.cat([delta.A for delta in deltas]).T)
    ranks = [delta.r for delta in deltas]
    cores = [B @ A.T for B, A in zip(R_B.split(ranks, dim=1), R_A.split(ranks, dim=1), strict=True)]
    size = max(core.norm().item() for core in cores)
    left = thin_svd(torch.cat(cores, dim=1), size=size).U
    right = thin_svd(torch.cat(cores), size=size).Vh.T
    return Q_B @ left, Q_A @ right


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectedTasks:
    """The deltas of one module in a space, as a rule sees them (`lora_hub.rule.Tasks`).

    Attributes:
        deltas: In that space.
        numbers: The weights; none is 0.
        keys: Of each delta's random numbers.
        block_bytes: What a block may have, at most, if it is not a single row.
    """

    deltas: Sequence[Factors]
    numbers: Sequence[float]
    keys: Sequence[int]
    block_bytes: int = BLOCK

    @property
    def weights(self) -> Tensor:
        """``[n, 1, 1]``."""
        return torch.tensor(self.numbers, dtype=torch.float64)[:, None, None]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.deltas[0].shape

    def blocks(self) -> Iterator[Block]:
        """Yield all rows, as many at once as `block_bytes` allow."""
        rows, columns = self.shape
        step = max(1, self.block_bytes // (8 * columns * len(self.deltas)))
        for start in range(0, rows, step):
            yield Block(torch.stack([delta.B[start : start + step] @ delta.A for delta in self.deltas]), start)

    def kth_largest(self, k: int, of: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the *k*-th largest of what *of* makes of each delta, ``[m, 1, 1]``."""
        measure = of or Tensor.abs
        count = self.shape[0] * self.shape[1]
        if k in {1, count}:  # what is largest or smallest of all takes one pass
            extreme = Tensor.amax if k == 1 else Tensor.amin
            found = [extreme(measure(block.values), dim=(1, 2), keepdim=True) for block in self.blocks()]
            return extreme(torch.stack(found), dim=0)
        return kth_largest(lambda: (measure(block.values) for block in self.blocks()), k)

    def draws(self, block: Block) -> Tensor:
        """Return numbers in [0, 1), ``[n, rows, columns]``."""
        _, rows, columns = block.values.shape
        drawn = [uniform(key, block.start * columns, rows * columns) for key in self.keys]
        return torch.stack(drawn).view(-1, rows, columns)


def mask_key(seed: int, digest: str, path: str) -> int:
    """Return the key of the random numbers of the adapter *digest* in the module at *path*."""
    return key_of("lora-hub/mask/v1", seed, digest, path)
