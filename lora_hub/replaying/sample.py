"""Which of the numbers that a model gives are written down: those that the adapter changes most, and some of all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_hub.documents.golden import MAX_VALUES, MIN_SCALE, GoldenCase
from lora_hub.errors import MalformedError

_DIGITS = 9  # what a float32 needs


def sample(ids: Sequence[int], base: Tensor, adapted: Tensor) -> GoldenCase:
    """Return the case of *ids*, for which the model gave *base* and *adapted*, both ``[features]``, finite or not.

    Raises:
        MalformedError: An output is NaN or infinite.
    """
    if not (torch.isfinite(base).all() and torch.isfinite(adapted).all()):
        raise MalformedError(
            "the outputs of the model hold NaN or infinity", hint="run it in float32 or bfloat16, or train it again"
        )
    indices = _indices((adapted - base).abs())
    return GoldenCase(
        tokens=tuple(ids),
        scale=max(_rounded(adapted.abs().max().item()), MIN_SCALE),
        values=tuple((i, _rounded(base[i].item()), _rounded(adapted[i].item())) for i in indices),
    )


def _indices(change: Tensor) -> list[int]:
    """Return half of them where *change*, ``[features]``, is largest, the others spread evenly; in rising order."""
    count, features = min(MAX_VALUES, len(change)), len(change)
    most = set(torch.topk(change, (count + 1) // 2).indices.tolist())
    spread = (features * step // MAX_VALUES for step in range(MAX_VALUES))
    for index in spread:
        if len(most) < count:
            most.add(index)
    return sorted(most)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
