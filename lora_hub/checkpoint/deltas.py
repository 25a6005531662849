"""The arithmetic of a merge: rows of a weight plus rows of the deltas, rounded once.

One adapter is merged as PEFT does it on a CPU, to the bit: the product B A in float32, times the scaling, plus W in
float32, rounded to the dtype of W. Several are summed with W in float64 and rounded once. What comes out depends
neither on how the rows are cut nor on the number of threads: `rows_at_once` cuts only where that is so.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from lora_hub.rounding import round_once, rounded

BLOCK = 512 * 1024  # elements of a weight that are computed with at once: they stay in the processor's cache
_OTHERS = 2  # threads that hash and write meanwhile
# Matrix products of fewer rows or columns than these take other kernels, which add in another order.
_LEAST_ROWS, _LEAST_ROWS_OF_WIDE = 64, 16
_WIDE = 65_536  # columns


class Term(NamedTuple):
    """One adapter's delta of one module, ``factor * B @ A``: ``[out, r] @ [r, in]``, as they lie in its file."""

    B: Tensor
    A: Tensor
    factor: float

    def to(self, dtype: torch.dtype) -> Term:
        """Return it in *dtype*."""
        return Term(self.B.to(dtype), self.A.to(dtype), self.factor)

    def rows(self, rows: slice, scratch: Tensor, *, transposed: bool) -> Tensor:
        """Return *rows* of the delta as the weight is stored, ``[rows, in]``, or transposed ``[rows, out]``.

        They lie in *scratch*, which has as many elements.
        """
        B, A = (self.B, self.A[:, rows]) if transposed else (self.B[rows], self.A)
        delta = torch.mm(B, A, out=scratch.view(len(B), A.shape[1])).mul_(self.factor)
        return delta.t() if transposed else delta


class Scratch:
    """Memory that every block uses again: to get fresh pages takes longer than the arithmetic in them."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, use: str, count: int, dtype: torch.dtype) -> Tensor:
        """Return *count* elements of *dtype* that nobody else has until the same *use* takes them again."""
        kept = self._kept.get((use, dtype))
        if kept is None or kept.numel() < count:
            self._kept[use, dtype] = kept = torch.empty(count, dtype=dtype)
        return kept[:count]


@dataclass(frozen=True, slots=True)
class Sums:
    """What was realised of a delta D as D', over all of its elements: ``|D'|²``, ``|D|²`` and ``|D' - D|²``."""

    found: float = 0.0
    exact: float = 0.0
    wrong: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(self.found + other.found, self.exact + other.exact, self.wrong + other.wrong)

    @classmethod
    def of(cls, found: Tensor, exact: Tensor) -> Self:
        """Return the sums over one block, each row in its own dtype and all rows in float64; *found* is destroyed."""
        squares = [_square(found), _square(exact), _square(found.sub_(exact))]
        return cls(*squares)

    @property
    def is_finite(self) -> bool:
        """Whether all that was summed is."""
        return math.isfinite(self.found + self.exact + self.wrong)

    @property
    def gain(self) -> float:
        """``<D', D> / <D, D>``: 1.0 if all of the delta is there, on average."""
        return (self.found + self.exact - self.wrong) / (2 * self.exact) if self.exact else 1.0

    @property
    def error(self) -> float:
        """``|D' - D| / |D|``: the relative RMS error."""
        return float((self.wrong / self.exact) ** 0.5) if self.exact else 0.0


def _square(rows: Tensor) -> float:
    # Row by row: a sum over everything would be cut by the number of threads.
    norms = torch.linalg.vector_norm(rows, dim=1).double()
    if not torch.isfinite(norms).all():  # squares that float32 does not hold
        norms = torch.linalg.vector_norm(rows.double(), dim=1)
    return float(norms.square().sum())


@contextlib.contextmanager
def threads_to_spare() -> Iterator[None]:
    """Let torch compute with no more threads than hashing and writing leave processors for.

    Those of OpenMP spin while they wait: where there are too few processors, everything takes ten times as long.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, min(before, len(os.sched_getaffinity(0)) - _OTHERS)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def computing_dtype(weight: torch.dtype, terms: Sequence[Term]) -> torch.dtype:
    """Return what W and deltas are added in: float64 for several deltas, else float32, or wider where W is."""
    return torch.float64 if len(terms) > 1 else torch.promote_types(weight, torch.float32)


def rows_at_once(rows: int, columns: int, *, block: int = BLOCK) -> Iterator[slice]:
    """Yield slices of *rows* that have about *block* elements each, and none so few rows that a sum would change."""
    least = _LEAST_ROWS if columns <= _WIDE else _LEAST_ROWS_OF_WIDE
    step = max(block // max(columns, 1) // least, 1) * least
    start = 0
    while rows - start >= step + least:
        yield slice(start, start + step)
        start += step
    if start < rows:
        yield slice(start, rows)


def add_rows(
    weight: Tensor, terms: Sequence[Term], rows: slice, *, transposed: bool, out: Tensor, scratch: Scratch
) -> Sums:
    """Write *weight*, which are *rows* of W, plus the deltas of *terms* into *out*, rounded once to its dtype.

    *terms* are in `computing_dtype`. Returns how much of the delta there is in *out*, compared with W in its dtype.
    """
    dtype, count = terms[0].B.dtype, weight.numel()
    delta = terms[0].rows(rows, scratch.take("delta", count, dtype), transposed=transposed)
    for term in terms[1:]:
        delta += term.rows(rows, scratch.take("term", count, dtype), transposed=transposed)
    before = scratch.take("before", count, dtype).view(weight.shape).copy_(weight)
    found = torch.add(before, delta, out=scratch.take("found", count, dtype).view(weight.shape))
    round_once(found, out)
    if out.dtype != weight.dtype:
        before.copy_(rounded(before, out.dtype))
    return Sums.of(found.copy_(out).sub_(before), delta)
