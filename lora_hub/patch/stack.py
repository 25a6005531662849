"""The arithmetic of LoRA on stacked matrices: two batched matrix products forward, five backward.

A stack holds A and B of G groups of rows, all of one rank R: one group if every row of a batch runs the same, one group
for each row of a route. For group g, ``y[g] += alpha * x[g] A[g]^T B[g]^T``; nothing here knows what adapters are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# How many elements of the input are converted or dropped at a time. On a CPU: what stays in a core's cache, in float32.
_BLOCK_ON_CPU = 1 << 18
_BLOCK = 1 << 24


@dataclass(frozen=True, slots=True)
class Stack:
    """A and B of each group, as they are multiplied, in the dtype in which to compute."""

    A_t: Tensor  # [G, in, R]
    B_t: Tensor  # [G, R, out]
    alpha: float = 1.0

    @property
    def nbytes(self) -> int:
        """How many bytes the matrices take."""
        return int(self.A_t.nbytes + self.B_t.nbytes)

    def of(self, groups: Tensor) -> Stack:
        """Return the stack of the *groups* with these numbers."""
        return Stack(self.A_t.mT.index_select(0, groups).mT, self.B_t.index_select(0, groups), self.alpha)

    def one(self, group: int) -> Stack:
        """Return the stack of one group."""
        return Stack(self.A_t[group : group + 1], self.B_t[group : group + 1], self.alpha)

    def grouped(self, tensor: Tensor) -> Tensor:
        """Return *tensor* ``[..., n]`` as ``[G, T, n]``: its rows, in order, divided evenly among the groups."""
        return tensor.reshape(self.A_t.shape[0], -1, tensor.shape[-1])


@dataclass(frozen=True, slots=True)
class Dropout:
    """Which inputs of A are zeroed: drawn from *seed*, so that the backward draws the same and no mask is kept."""

    seed: int
    p: float

    def masks(self, x: Tensor, dtype: torch.dtype, blocks: list[slice]) -> Iterator[Tensor]:
        """Yield for each of the *blocks* of *x* ``[G, T, in]`` what to multiply it with: 0 or 1."""
        generator = torch.Generator(x.device).manual_seed(self.seed)
        for rows in blocks:
            mask = torch.empty(x[:, rows].shape, device=x.device, dtype=dtype)
            yield mask.bernoulli_(1 - self.p, generator=generator)


def add(y: Tensor, x: Tensor, stack: Stack, dropout: Dropout | None = None) -> None:
    """Add the delta to *y* ``[..., out]`` in place, from *x* ``[..., in]``; the sum is rounded once."""
    A_t = stack.A_t
    if dropout is not None or x.dtype is not A_t.dtype or y.dtype is not x.dtype:
        _add_in_blocks(y, x, stack, dropout)
    elif x.dim() == 3 == y.dim() and x.shape[0] == A_t.shape[0]:  # noqa: PLR2004 - grouped already
        y.baddbmm_(torch.bmm(x, A_t), stack.B_t, alpha=stack.alpha)
    elif y.is_contiguous():
        s = torch.bmm(stack.grouped(x), A_t)  # [G, T, in] @ [G, in, R] -> [G, T, R]
        y.view(A_t.shape[0], -1, y.shape[-1]).baddbmm_(s, stack.B_t, alpha=stack.alpha)
    else:
        _add_in_blocks(y, x, stack, dropout)


def _add_in_blocks(y: Tensor, x: Tensor, stack: Stack, dropout: Dropout | None) -> None:
    alpha = _alpha(stack, dropout)
    total = y if y.is_contiguous() else y.clone(memory_format=torch.contiguous_format)
    grouped_x, grouped_y = stack.grouped(x), stack.grouped(total)
    for rows, block, _ in _blocks(grouped_x, stack.A_t.dtype, dropout):
        delta = torch.bmm(torch.bmm(block, stack.A_t), stack.B_t)
        # add_ computes in the wider of the two dtypes and rounds once.
        _at(grouped_y, rows).add_(delta, alpha=alpha)
    if total is not y:
        y.copy_(total)


def added(y: Tensor, x: Tensor, stack: Stack) -> Tensor:
    """Return *y* plus the delta as a new tensor, by operations that the transforms and exporters of torch know."""
    delta = torch.bmm(torch.bmm(stack.grouped(x).to(stack.A_t.dtype), stack.A_t), stack.B_t)
    return torch.add(y, delta.reshape(y.shape), alpha=stack.alpha).to(y.dtype)


def is_one_block(x: Tensor, dtype: torch.dtype) -> bool:
    """Whether *x* is computed with in *dtype* as it is, or converted as a whole."""
    return x.dtype is dtype or x.numel() <= _block_size(x)


def _block_size(x: Tensor) -> int:
    return _BLOCK_ON_CPU if x.is_cpu else _BLOCK


def add_one(y: Tensor, x: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    """Add ``alpha * x A^T B^T`` to a contiguous *y* in place and return ``x A^T``: `add` for one pair and one block."""
    s = torch.mm(x.reshape(-1, x.shape[-1]).to(A.dtype), A.t())  # [T, in] @ [in, r] -> [T, r]
    _add_product(y, s, B.t(), alpha)
    return s


def gradients_of_one(
    dy: Tensor, x: Tensor, A: Tensor, B: Tensor, alpha: float, *, s: Tensor | None, onto: Tensor | None
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Return dx, dA and dB, as `gradients` does for one pair and one block.

    *s* is what `add_one` returned; dx is added *onto* another gradient of x, which may be changed.
    """
    rows, rows_dy = x.reshape(-1, x.shape[-1]).to(A.dtype), dy.reshape(-1, dy.shape[-1]).to(A.dtype)
    s = torch.mm(rows, A.t()) if s is None else s
    # With beta 0 what is named first only has the right shape: alpha costs no operation of its own.
    ds = torch.addmm(s, rows_dy, B, beta=0, alpha=alpha)  # [T, out] @ [out, r] -> [T, r]
    dA = torch.mm(ds.t(), rows)
    dB = torch.addmm(B, rows_dy.t(), s, beta=0, alpha=alpha)
    if onto is not None:
        _add_product(onto, ds, A)
    return onto, dA, dB


def _add_product(total: Tensor, one: Tensor, other: Tensor, alpha: float = 1.0) -> None:
    """Add ``alpha * one @ other`` to a contiguous *total* in place, in the dtype of the two, rounded once."""
    rows = total.view(-1, total.shape[-1])
    if rows.dtype is one.dtype:
        rows.addmm_(one, other, alpha=alpha)
    else:  # faster than to add tensors of two dtypes
        rows.copy_(rows.to(one.dtype).addmm_(one, other, alpha=alpha))


@dataclass(frozen=True, slots=True)
class Gradients:
    """The gradients of a stack's input and matrices; None is what was not asked for."""

    x: Tensor | None
    A: Tensor | None = None  # [G, R, in]
    B: Tensor | None = None  # [G, out, R]


def input_gradient(dy: Tensor, stack: Stack, dtype: torch.dtype) -> Tensor:
    """Return ``dx = alpha dy B A`` as ``[..., in]`` in *dtype*, the gradient for *dy* ``[..., out]``; no dropout."""
    grouped = stack.grouped(dy)
    dx = [
        (torch.bmm(torch.bmm(block, stack.B_t.mT) * stack.alpha, stack.A_t.mT)).to(dtype)
        for _, block, _ in _blocks(grouped, stack.A_t.dtype, None)
    ]
    return _joined(dx, dy)


def gradients(dy: Tensor, x: Tensor, stack: Stack, dropout: Dropout | None, *, wants_x: bool) -> Gradients:
    """Return the gradients for *dy* ``[..., out]`` at the input *x* ``[..., in]``.

    ``ds = dy B``, ``dA = alpha ds^T x``, ``dB = alpha dy^T s``, ``dx = alpha ds A``; ``s = x A^T`` is computed again.
    All operations are differentiable, so that it can be differentiated once more.
    """
    A, B, dtype = stack.A_t.mT, stack.B_t.mT, stack.A_t.dtype  # [G, R, in], [G, out, R]
    wide = torch.promote_types(dtype, torch.float32)  # in which blocks are summed, and alpha comes in
    grouped, alpha = stack.grouped(dy), _alpha(stack, dropout)
    dx: list[Tensor] = []
    dA: Tensor | None = None
    dB: Tensor | None = None
    for rows, block, mask in _blocks(stack.grouped(x), dtype, dropout):
        block_dy = _at(grouped, rows).to(dtype)
        ds = torch.bmm(block_dy, B)  # [G, T, out] @ [G, out, R] -> [G, T, R]
        dA = _plus(dA, torch.bmm(ds.mT, block).to(wide))
        dB = _plus(dB, torch.bmm(block_dy.mT, torch.bmm(block, stack.A_t)).to(wide))
        if wants_x:
            block_dx = torch.bmm(ds * alpha, A)
            dx.append((block_dx if mask is None else block_dx * mask).to(x.dtype))
    assert dA is not None and dB is not None  # noqa: S101, PT018 - there is a block at least
    return Gradients(_joined(dx, dy) if wants_x else None, dA * alpha, dB * alpha)


def _blocks(
    x: Tensor, dtype: torch.dtype, dropout: Dropout | None
) -> Iterator[tuple[slice | None, Tensor, Tensor | None]]:
    """Yield *x* ``[G, T, n]`` along T in *dtype*: the slice, the block after dropout, and the mask if there is one.

    Whole, if nothing is to be done to it.
    """
    if x.dtype is dtype and dropout is None:
        yield None, x, None
        return
    step = max(1, _block_size(x) // (x.shape[0] * x.shape[2]))
    blocks = [slice(start, start + step) for start in range(0, max(x.shape[1], 1), step)]
    masks = dropout.masks(x, dtype, blocks) if dropout is not None else iter([None] * len(blocks))
    for rows, mask in zip(blocks, masks, strict=True):
        block = _at(x, rows).to(dtype)
        yield rows, block if mask is None else block * mask, mask


def _alpha(stack: Stack, dropout: Dropout | None) -> float:
    """Return alpha, and with it what makes up for the inputs that are dropped."""
    return stack.alpha if dropout is None else stack.alpha / (1 - dropout.p)


def _at(tensor: Tensor, rows: slice | None) -> Tensor:
    # A slice of all would be a view, for which not every transform of torch has a rule.
    return tensor if rows is None else tensor[:, rows]


def _joined(blocks: list[Tensor], like: Tensor) -> Tensor:
    whole = blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)
    return whole.reshape(*like.shape[:-1], whole.shape[-1])


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total + more
