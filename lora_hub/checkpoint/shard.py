"""Write one shard: copy what stays, compute what changes in blocks of rows, hash both ends. Memory does not grow."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from lora_hub.checkpoint.base_files import opened
from lora_hub.checkpoint.deltas import BLOCK, Scratch, Sums, add_rows, computing_dtype, rows_at_once
from lora_hub.checkpoint.hashed_file import PIECE, HashedFile, HashedSource, hash_file, hashed_file
from lora_hub.checkpoint.plan import Added, Replaced, ShardPlan, Target
from lora_hub.documents.fields import printable
from lora_hub.errors import CompatibilityError, IntegrityError, LoraHubError, MalformedError
from lora_hub.files import machine_errors
from lora_hub.rounding import round_once
from lora_hub.tensors import DTYPES

OnBytes = Callable[[int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShard:
    """What was written: bytes, SHA-256 of it and of the base's shard, and what was realised of each module's delta."""

    size: int
    sha256: str
    base_sha256: str
    sums: dict[str, Sums] = field(default_factory=dict)


def write_shard(plan: ShardPlan, source: Path, target: Path, *, on_bytes: OnBytes, block: int = BLOCK) -> WrittenShard:
    """Write the shard that *plan* describes to *target* from the base's shard at *source*, durably.

    Args:
        plan: What is written.
        source: The base's shard on this machine.
        target: A new file; a half of one that lies there is overwritten.
        on_bytes: Called with the bytes that were done.
        block: Elements that are computed with at once; changes nothing but the memory that it takes.

    Raises:
        IntegrityError: The shard is not the one that was planned with, or was changed meanwhile.
        CompatibilityError: A sum is too large for the dtype.
        MachineError: The disk is full.
    """
    with machine_errors(), contextlib.ExitStack() as stack:
        descriptor = stack.enter_context(opened(source))
        base = stack.enter_context(contextlib.closing(HashedSource(descriptor, is_hashed=not plan.is_copy)))
        with hashed_file(target) as out:
            writer = _Writer(base, out, on_bytes, block)
            try:
                writer.check_header(plan)
                out.write_bytes(plan.header)
                sums = writer.write_all(plan)
            except EOFError as error:
                raise _changed(plan) from error
        sha256 = out.hexdigest()
        # Where tensors are left out or come twice, the shard was not read from beginning to end.
        base_sha256 = sha256 if plan.is_copy else base.hexdigest() or hash_file(source)[1]
    return WrittenShard(size=out.size, sha256=sha256, base_sha256=base_sha256, sums=sums)


def _changed(plan: ShardPlan) -> IntegrityError:
    return IntegrityError(
        f"the shard `{plan.name}` of the base is not the one that was planned with",
        hint="it was changed meanwhile: run it again",
    )


class _Writer:
    """Fills the new shard tensor by tensor."""

    def __init__(self, base: HashedSource, out: HashedFile, on_bytes: OnBytes, block: int) -> None:
        self._base = base
        self._out = out
        self._on_bytes = on_bytes
        self._block = block
        self._scratch = Scratch()

    def check_header(self, plan: ShardPlan) -> None:
        """Raise `IntegrityError` if the shard has another header than the one that was planned with."""
        if self._base.read(len(plan.base.header), 0) != plan.base.header:
            raise _changed(plan)

    def write_all(self, plan: ShardPlan) -> dict[str, Sums]:
        """Write all tensors, and return what was realised of the deltas, by the path of the module."""
        sums: dict[str, Sums] = {}
        for item in _runs(plan.targets):
            if isinstance(item, Target):
                if isinstance(item.change, Added):
                    sums[item.change.path] = self._write_added(item, item.change)
                else:
                    self._write_converted(item)
            else:
                self._copy(*item)
        return sums

    def _copy(self, start: int, stop: int) -> None:
        for position in range(start, stop, PIECE):
            piece = self._out.piece(min(PIECE, stop - position))
            self._write(piece, self._base.read_into(piece, position))

    def _write(self, piece: memoryview, also: Iterable[Future[None]] = ()) -> None:
        self._out.write(piece, also)
        self._on_bytes(len(piece))

    def _write_added(self, target: Target, change: Added) -> Sums:
        """Write a weight plus its deltas in blocks of rows."""
        dtype = self._stored_dtype(target)
        terms = change.terms()
        terms = [term.to(computing_dtype(dtype, terms)) for term in terms]
        count, columns = target.shape
        total = Sums()
        for rows in rows_at_once(count, columns, block=self._block):
            weight = self._weight(target, rows.start * columns, rows.stop * columns).view(-1, columns)
            piece, out = self._out_tensor(target, weight.numel())
            sums = add_rows(
                weight, terms, rows, transposed=change.transposed, out=out.view(-1, columns), scratch=self._scratch
            )
            if not sums.is_finite:
                raise _not_finite(target.name, weight, out)
            total += sums
            self._write(piece)
        return total

    def _write_converted(self, target: Target) -> None:
        """Write a tensor in another dtype, or one that stands in for it, in blocks."""
        replaced = target.change.tensor().reshape(-1) if isinstance(target.change, Replaced) else None
        count = math.prod(target.shape)
        for start in range(0, count, self._block):
            stop = min(start + self._block, count)
            values = self._weight(target, start, stop) if replaced is None else replaced[start:stop]
            piece, out = self._out_tensor(target, stop - start)
            round_once(values, out)
            if (torch.isfinite(values) & ~torch.isfinite(out)).any():
                raise _too_large(target.name, out.dtype)
            self._write(piece)

    @staticmethod
    def _stored_dtype(target: Target) -> torch.dtype:
        assert target.base is not None  # noqa: S101 - for the type checker: it was planned so
        return DTYPES[target.base.dtype]

    def _weight(self, target: Target, start: int, stop: int) -> Tensor:
        """Return the elements from *start* to *stop* of a tensor of the base, not to be changed."""
        assert target.base is not None  # noqa: S101 - as above
        dtype = self._stored_dtype(target)
        content = self._base.read((stop - start) * dtype.itemsize, target.base.start + start * dtype.itemsize)
        return torch.frombuffer(content, dtype=dtype)

    def _out_tensor(self, target: Target, count: int) -> tuple[memoryview, Tensor]:
        dtype = DTYPES[target.dtype]
        piece = self._out.piece(count * dtype.itemsize)
        return piece, torch.frombuffer(piece, dtype=dtype)


def _runs(targets: tuple[Target, ...]) -> Iterator[Target | tuple[int, int]]:
    """Yield the tensors that are computed, and between them the runs of bytes of the base that are copied."""
    start = stop = 0
    for target in targets:
        if not target.size:
            continue
        if target.is_copied and target.base is not None and target.base.start == stop:
            stop = target.base.stop
            continue
        if stop > start:
            yield start, stop
        start = stop = 0
        if target.is_copied and target.base is not None:
            start, stop = target.base.start, target.base.stop
        else:
            yield target
    if stop > start:
        yield start, stop


def _not_finite(name: str, weight: Tensor, out: Tensor) -> LoraHubError:
    """Return the error about a weight or a delta that cannot be measured."""
    if not torch.isfinite(weight).all():
        return MalformedError(f"{printable(name)} of the base holds NaN or infinity", hint="download the base again")
    if not torch.isfinite(out).all():
        return _too_large(name, out.dtype)
    return MalformedError(
        f"the delta of {printable(name)} has numbers whose squares are too large for float64",
        hint="the training diverged: go back to a checkpoint",
    )


def _too_large(name: str, dtype: torch.dtype) -> CompatibilityError:
    return CompatibilityError(
        f"a value of {printable(name)} is too large for {str(dtype).removeprefix('torch.')}",
        hint="merge with `--dtype bfloat16` or `float32`",
    )
