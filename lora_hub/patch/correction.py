"""The way back from a merged weight without a copy of the original: what subtracting the delta does not give back.

Subtracting the delta and rounding gives the original bits wherever the merge did not lose some: where the sum has the
larger exponent. Those numbers are kept, with their positions. A correction of W in bfloat16 takes, in units of W, 2.6%
for a delta of 1% of W, 6% for one of 3%, 15% for one of 10%; a copy takes 100%.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_hub.patch.bits import checksum
from lora_hub.patch.low_rank import LowRank, Scratch, sum_of, threads

_SPAN = 16  # bits of a position inside of its group
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True)
class Correction:
    """The numbers of a weight that subtraction does not give back.

    Attributes:
        values: The original numbers ``[n]``.
        positions: Where they stand ``[n]``, in the flat weight: the lower 16 bits.
        counts: How many stand in each group of 2^16 numbers: the upper bits.
        threads: On how many threads the subtraction was computed.
        checksum: That of the original weight.
    """

    values: Tensor
    positions: Tensor
    counts: Tensor
    threads: int
    checksum: bytes

    @property
    def nbytes(self) -> int:
        """The size of the tensors in bytes."""
        return self.values.nbytes + self.positions.nbytes + self.counts.nbytes

    def flat_positions(self) -> Tensor:
        """Return where the values stand in the flat weight ``[n]``."""
        groups = torch.arange(len(self.counts), device=self.counts.device).repeat_interleave(self.counts)
        return (groups << _SPAN) + (self.positions.long() & ((1 << _SPAN) - 1))


def correction_of(original: Tensor, merged: Tensor, delta: LowRank, scratch: Scratch) -> Correction:
    """Return what `restored` needs to make *original* of *merged*; both lie on one device."""
    groups = (original.numel() >> _SPAN) + 1
    counts = torch.zeros(groups, dtype=torch.int64, device=original.device)
    values, positions = [original.new_empty(0)], [counts.new_empty(0, dtype=torch.int16)]
    for rows, found in _subtracted(merged, delta, scratch):
        block = original[rows]
        differing = (_bits(found) != _bits(block)).flatten().nonzero().squeeze(1)
        values.append(block.flatten()[differing])
        differing += rows.start * original.shape[1]
        counts += torch.bincount(differing >> _SPAN, minlength=groups)
        positions.append(differing.to(torch.int16))
    return Correction(
        torch.cat(values), torch.cat(positions), counts, threads=torch.get_num_threads(), checksum=checksum(original)
    )


def restored(merged: Tensor, delta: LowRank, correction: Correction, scratch: Scratch) -> Tensor | None:
    """Return the original of *merged* as a new tensor, or None if what comes out is not the original.

    It does not if *merged* was changed, if *delta* is another one, or if this device does not multiply as the one of
    the merge did.
    """
    if merged.dtype is not correction.values.dtype:
        return None
    result = torch.empty_like(merged, memory_format=torch.contiguous_format)
    with threads(correction.threads):
        for rows, found in _subtracted(merged, delta, scratch):
            result[rows].copy_(found)
    result.view(-1)[correction.flat_positions().to(result.device)] = correction.values.to(result.device)
    return result if checksum(result) == correction.checksum else None


def _subtracted(merged: Tensor, delta: LowRank, scratch: Scratch) -> Iterator[tuple[slice, Tensor]]:
    for rows in delta.blocks():
        yield rows, sum_of(merged[rows], delta, rows, scratch, sign=-1).to(merged.dtype)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(_BITS[tensor.dtype.itemsize])
