"""How much of a delta a merge brings into the weights of its dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lora_hub.patch.low_rank import LowRank


@dataclass(frozen=True, slots=True)
class Realised:
    """The delta D' that is in a merged weight, compared with the exact one D = sum of factor * B A, ``[out, in]`` both.

    Rounding to bfloat16 (8 bits) leaves a weight as it is where the delta is less than half a unit in its last place.
    For a delta of 1% of W that are 18% of the weights, and the error is 0.17; of 0.1%: 78%, and 0.79. Unmerged, the
    adapter does not lose this.

    Attributes:
        gain: ``<D', D> / <D, D>``: 1.0 if all of the delta is there, on average.
        error: ``|D' - D| / |D|``: the relative RMS error.
    """

    gain: float
    error: float


def realised(merged: Tensor, original: Tensor, delta: LowRank) -> Realised:
    """Return how much of *delta*, given in float64, *merged* - *original* is. Changes nothing."""
    sums = torch.zeros(3, dtype=torch.float64, device=merged.device)
    for rows in delta.blocks():
        exact = delta.left[rows] @ delta.right
        found = merged[rows].double() - original[rows].double()
        sums += torch.stack([(found * exact).sum(), exact.square().sum(), (found - exact).square().sum()])
    both, square, squared_error = sums.tolist()
    # A delta of zero is there in full.
    return Realised(both / square, (squared_error / square) ** 0.5) if square else Realised(1.0, 0.0)
