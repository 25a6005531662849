"""What the adapters add to one weight, as one product of two narrow matrices, worked in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lora_hub.patch.factors import PartWeights, side_by_side

# Numbers of one block: 2 MiB of float32 stay in a processor's cache; elsewhere a launch must be worth its while.
_BLOCK = 1 << 19
_LARGE_BLOCK = 1 << 24

Parts = Sequence[tuple[PartWeights, float]]  # A and B, each with its factor: weight x scale


class LowRank(NamedTuple):
    """``left @ right`` is what is added to a weight: ``[rows, R] @ [R, columns]``, R the sum of all ranks."""

    left: Tensor
    right: Tensor

    def blocks(self) -> Iterator[slice]:
        """Yield the rows of each block; the same ones, wherever weights of this shape lie on this kind of device."""
        rows, columns = self.left.shape[0], self.right.shape[1]
        size = _BLOCK if self.left.device.type == "cpu" else _LARGE_BLOCK
        step = max(1, size // max(1, columns))
        for start in range(0, rows, step):
            yield slice(start, min(start + step, rows))


def low_rank(parts: Parts, weight: Tensor, *, transposed: bool, dtype: torch.dtype | None = None) -> LowRank:
    """Return the sum of ``factor * scaling * B A`` over *parts*, for a *weight* ``[out, in]``, or its transpose.

    A's are stacked, B's stand side by side, each in the rows of its part: one product, so that the sum is accumulated
    in *dtype* (float32, or float64 for a float64 weight) whatever the number of adapters. Both are new tensors.
    """
    dtype = dtype or torch.promote_types(weight.dtype, torch.float32)
    placed = [
        (part, A.detach().to(weight.device, dtype), B.detach().to(weight.device, dtype) * (factor * part.scaling))
        for (part, A, B), factor in parts
    ]
    if len(placed) == 1 and placed[0][0].rows is None:
        _, A, B = placed[0]
        A = A.clone()
    else:
        A = torch.cat([A for _, A, _ in placed])  # [R, in]
        B = side_by_side([(part, B) for part, _, B in placed], weight.shape[1 if transposed else 0])
    return LowRank(A.T, B.T) if transposed else LowRank(B, A)


@dataclass(slots=True)
class Scratch:
    """Memory for one block, used again for all weights of a pass."""

    _memory: Tensor = field(default_factory=lambda: torch.empty(0))

    def copy_of(self, block: Tensor, dtype: torch.dtype) -> Tensor:
        """Return *block* in *dtype*; the next call overwrites it."""
        memory = self._memory
        if memory.shape != block.shape or memory.dtype is not dtype or memory.device != block.device:
            self._memory = memory = torch.empty(block.shape, dtype=dtype, device=block.device)
        return memory.copy_(block)


def add_low_rank(target: Tensor, original: Tensor, delta: LowRank, scratch: Scratch) -> None:
    """Write *original* + *delta*, rounded once, into *target*, which may be *original* itself."""
    if target.dtype is delta.left.dtype:
        if target is not original:
            target.copy_(original)
        target.addmm_(delta.left, delta.right)
        return
    for rows in delta.blocks():
        target[rows].copy_(sum_of(original[rows], delta, rows, scratch))


def sum_of(block: Tensor, delta: LowRank, rows: slice, scratch: Scratch, *, sign: int = 1) -> Tensor:
    """Return *block*, which are the *rows* of a weight, plus or minus *delta*, not rounded yet, in *scratch*.

    ``addmm_`` is one product that accumulates on top of the block, and none of autocast's.
    """
    return scratch.copy_of(block, delta.left.dtype).addmm_(delta.left[rows], delta.right, alpha=sign)


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """While this is entered, there is no autograd, and float32 is multiplied in float32: no TF32, no bfloat16."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.no_grad():
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


@contextmanager
def threads(number: int) -> Iterator[None]:
    """While this is entered, torch computes on *number* threads."""
    before = torch.get_num_threads()
    if number != before:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number != before:
            torch.set_num_threads(before)
