"""The difference of two stored tensors: read in blocks of rows, compared, measured, and brought to a low rank."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_hub.checkpoint.base_files import opened
from lora_hub.checkpoint.extract_pairs import Stored
from lora_hub.checkpoint.hashed_file import read_into
from lora_hub.composing.factors import Factors, Svd
from lora_hub.composing.randomness import key_of
from lora_hub.composing.rank import Rank
from lora_hub.composing.streamed import OVERSAMPLING, Streamed, range_svd
from lora_hub.errors import CompatibilityError, IntegrityError, MalformedError
from lora_hub.tensors import DTYPES

_BLOCK = 1024 * 1024  # elements that are in memory at once of each tensor
_HELD = 8 * _BLOCK  # elements of a difference that is kept in memory between passes
_FIRST = 48  # singular values that are looked for first, where nobody says how many there are
_FEW = 4  # times fewer than there are: then random columns find them faster than a whole decomposition
# Of the largest singular value of rounding errors, in units of what independent ones have on average.
_MARGIN = 1.5
# What a merge in float32 adds to |D|, relative to it: it rounds B A before it adds W.
_ARITHMETIC = 2 * torch.finfo(torch.float32).eps


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How two tensors differ.

    Attributes:
        shape: Rows and columns, as they are stored.
        energy: ``|W - W0|²``, the sum of the squares; 0 if they are the same.
        base_energy: ``|W0|²``.
        noise_energy: What rounding adds to *energy*, on average: for each element of W one twelfth of the square of the
            gap between neighbouring numbers of its dtype, and for the arithmetic that made it a little of *energy*.
    """

    shape: tuple[int, int]
    energy: float
    base_energy: float
    noise_energy: float

    @property
    def relative(self) -> float:
        """``|W - W0| / |W0|``."""
        return math.sqrt(self.energy / self.base_energy) if self.base_energy else math.inf

    @property
    def noise(self) -> float:
        """The largest singular value that rounding errors alone would have: √(rows) + √(columns) times their RMS."""
        rows, columns = self.shape
        rms = math.sqrt(self.noise_energy / (rows * columns))
        return _MARGIN * rms * (math.sqrt(rows) + math.sqrt(columns))


def compare(fine: Stored, base: Stored) -> Difference | None:
    """Return how *fine* differs from *base*, or None if it does not.

    Of two dtypes the narrower decides: what was only rounded did not change.

    Raises:
        CompatibilityError: They differ, and are not of floating numbers.
        MalformedError: They differ, and one holds NaN or infinity.
    """
    if not {fine.info.dtype, base.info.dtype} <= DTYPES.keys():
        _check_same_bytes(fine, base)
        return None
    if all(_are_same(one, other) for one, other in _blocks(fine, base)):
        return None
    sums = torch.zeros(3, dtype=torch.float64)
    for one, other in _blocks(fine, base):
        after, before = one.double(), other.double()
        sums += torch.stack([(after - before).square().sum(), before.square().sum(), _rounding(one)])
    if not sums[:2].isfinite().all():
        raise MalformedError(f"`{fine.name}` holds NaN or infinity, or its base does", hint="the training diverged")
    energy, base_energy, noise = sums.tolist()
    if not energy:  # squares that float64 does not hold
        return None
    noise += _ARITHMETIC**2 * energy
    return Difference(shape=_matrix(fine), energy=energy, base_energy=base_energy, noise_energy=noise)


def _check_same_bytes(fine: Stored, base: Stored) -> None:
    """What is quantised, or counts something, is the same in both or cannot be told apart."""
    size = fine.info.stop - fine.info.start
    with opened(fine.file) as one, opened(base.file) as other:
        is_same = fine.info.dtype == base.info.dtype and all(
            _bytes(one, fine, start, min(start + _BLOCK, size)) == _bytes(other, base, start, min(start + _BLOCK, size))
            for start in range(0, size, _BLOCK)
        )
    if not is_same:
        raise CompatibilityError(
            f"`{fine.name}` changed and is stored as {fine.info.dtype}, in the base as {base.info.dtype}: it is "
            "quantised, or no weight",
            hint="compare checkpoints in 16 or 32 bits",
        )


def _are_same(one: Tensor, other: Tensor) -> bool:
    if one.dtype == other.dtype:  # NaN is the same as itself, and 0 as -0
        return torch.equal(one, other) or torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    if one.element_size() == other.element_size():
        return torch.equal(one.double(), other.double())
    narrow = min(one.dtype, other.dtype, key=lambda dtype: dtype.itemsize)
    return torch.equal(one.to(narrow), other.to(narrow))


def _rounding(stored: Tensor) -> Tensor:
    """Return the sum of gap² / 12 over the elements: the mean square of a rounding error is that."""
    _, exponent = torch.frexp(stored.double())  # w = m * 2^e, m in [0.5, 1)
    gap = torch.ldexp(torch.full_like(stored, torch.finfo(stored.dtype).eps, dtype=torch.float64), exponent - 1)
    return torch.where(stored == 0, 0.0, gap).square().sum() / 12


def _matrix(stored: Stored) -> tuple[int, int]:
    """Return rows and columns; a vector is one row."""
    shape = stored.info.shape
    rows = shape[0] if len(shape) > 1 else 1
    return rows, math.prod(shape) // max(rows, 1)


def _blocks(fine: Stored, base: Stored) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield blocks of rows of both tensors, ``[rows, columns]``, from the first to the last."""
    rows, columns = _matrix(fine)
    step = max(1, _BLOCK // max(columns, 1))
    with opened(fine.file) as one, opened(base.file) as other:
        for start in range(0, rows, step):
            stop = min(start + step, rows)
            yield _read(one, fine, columns, start, stop), _read(other, base, columns, start, stop)


def _read(descriptor: int, stored: Stored, columns: int, start: int, stop: int) -> Tensor:
    dtype = DTYPES[stored.info.dtype]
    if start == stop or not columns:
        return torch.empty(stop - start, columns, dtype=dtype)
    row = columns * dtype.itemsize
    return torch.frombuffer(_bytes(descriptor, stored, start * row, stop * row), dtype=dtype).view(-1, columns)


def _bytes(descriptor: int, stored: Stored, start: int, stop: int) -> bytearray:
    content = bytearray(stop - start)
    try:
        read_into(descriptor, memoryview(content), stored.info.start + start)
    except EOFError as error:
        raise IntegrityError(f"`{stored.shard}` was cut off while it was read", hint="run it again") from error
    return content


def tensor_of(stored: Stored) -> Tensor:
    """Return the whole tensor, which must be of floating numbers."""
    if stored.info.dtype not in DTYPES:
        raise CompatibilityError(
            f"`{stored.name}` is stored as {stored.info.dtype}, which no adapter holds",
            hint="leave its module out of what is taken as a whole",
        )
    rows, columns = _matrix(stored)
    with opened(stored.file) as descriptor:
        return _read(descriptor, stored, columns, 0, rows).view(stored.info.shape)


def difference_of(fine: Stored, base: Stored) -> Streamed:
    """Return ``W - W0`` as it is stored, in float64; small ones are read once."""
    shape = _matrix(fine)

    def rows() -> Iterator[Tensor]:
        return (one.double() - other.double() for one, other in _blocks(fine, base))

    if shape[0] * shape[1] > _HELD:
        return Streamed(shape, rows)
    held = list(rows())
    return Streamed(shape, lambda: iter(held))


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRank:
    """The best approximation of a difference by the rank that is wanted.

    Attributes:
        factors: As it is stored, in float64.
        kept: ``|D_r|² / |D|²``, exact: D_r is a projection of D, so that what is lost is the difference of the two.
    """

    factors: Factors
    kept: float


def approximate(matrix: Streamed, difference: Difference, rank: Rank, *, path: str) -> LowRank:
    """Return *matrix*, of which *difference* tells the size, cut to *rank*; what is no more than rounding is cut off.

    Where few singular values are wanted, by subspace iteration from random columns (Halko et al. 2011,
    arXiv:0909.4061), drawn by *path*; else by a whole singular value decomposition.
    """
    found = _strongest(matrix, difference, rank, path)
    significant = max(1, int((difference.noise < found.S).sum()))
    r = max(1, rank.choose(found.S, rank=significant, energy=difference.energy))
    kept = found.S[:r].square().sum().item() / difference.energy
    return LowRank(factors=_balanced(found, r), kept=min(kept, 1.0))


def _strongest(matrix: Streamed, difference: Difference, rank: Rank, path: str) -> Svd:
    most = min(matrix.shape)
    wanted = int(rank.value) if rank.kind in {"number", "max"} else _FIRST
    while _FEW * (wanted + OVERSAMPLING) <= most:
        found, _ = range_svd(matrix, wanted, key_of("lora-hub/extract/v1", path))
        if rank.kind in {"number", "max"} or found.S[wanted - 1] <= difference.noise:
            return found
        if rank.kind != "exact" and rank.is_reached(found.S[:wanted], difference.energy):
            return found
        wanted *= 2
    dense = torch.cat(list(matrix.rows()))
    return Svd(*torch.linalg.svd(dense, full_matrices=False))


def _balanced(found: Svd, r: int) -> Factors:
    largest = found.U.gather(0, found.U.abs().argmax(dim=0, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0).to(found.U.dtype)  # one of two is arbitrary
    return Svd(found.U * signs, found.S, found.Vh * signs.T).truncated(r)


def error_of(matrix: Streamed, written: Factors, energy: float) -> float:
    """Return ``|D - B A| / |D|`` for what was *written*, B and A as they lie in *matrix*, after their rounding."""
    B, A = written.B.double(), written.A.double()
    wrong, start = 0.0, 0
    for rows in matrix.rows():
        wrong += (rows - B[start : start + len(rows)] @ A).square().sum().item()
        start += len(rows)
    return math.sqrt(wrong / energy)
