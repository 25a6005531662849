"""Sign conflict of deltas, in rows that are drawn by the module's path: rows are cheap, ``B[rows] @ A``."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from lora_hub.composing.factors import EPSILON, Factors
from lora_hub.inspecting.relations import SignConflict

ENTRIES = 2**18  # of a delta that are looked at; up to here all of them
MIN_ROWS = 64


def sign_conflict(deltas: Sequence[Factors], path: str) -> SignConflict:
    """Return where the signs of *deltas* of the module at *path* contradict each other, ``[out, in]`` each."""
    out_features, in_features = deltas[0].shape
    rows = sampled_rows(out_features, in_features, path)
    # One at a time, since all of them at once would be read from memory again and again.
    high, low, total = (torch.zeros(len(rows), in_features, dtype=torch.float64) for _ in range(3))
    changed = torch.zeros(len(rows), in_features, dtype=torch.int16)
    mass = 0.0
    for delta in deltas:
        entries = _entries(delta, rows)
        torch.maximum(high, entries, out=high)
        torch.minimum(low, entries, out=low)
        total += entries
        changed += entries != 0
        mass += entries.abs().sum().item()
    return SignConflict(
        rows=len(rows),
        of=out_features,
        contested=int((changed > 1).sum()),
        conflicting=int(((high > 0) & (low < 0)).sum()),
        mass=mass,
        lost=max(0.0, mass - total.abs().sum().item()) / 2,  # what opposes the sum makes it smaller twice
    )


def sampled_rows(out_features: int, in_features: int, path: str) -> list[int]:
    """Return which rows are looked at: all of a small module, else one of each of equally many neighbours.

    Drawn, since equal steps would fall on the same place of every head; by the path, so that they are always the same.
    """
    count = max(MIN_ROWS, ENTRIES // in_features)
    if count >= out_features:
        return list(range(out_features))
    draw = random.Random(path)  # noqa: S311 - a sample, no secret
    bounds = [position * out_features // count for position in range(count + 1)]
    return [start + int(draw.random() * (stop - start)) for start, stop in pairwise(bounds)]


def _entries(delta: Factors, rows: list[int]) -> Tensor:
    """Return the *rows* of ``B @ A``; what is only rounding is zero, and has no sign."""
    entries = delta.B[rows] @ delta.A  # [rows, r] @ [r, in]
    sizes = torch.linalg.vector_norm(delta.B, dim=0) * torch.linalg.vector_norm(delta.A, dim=1)
    return F.hardshrink(entries, delta.r * EPSILON * sizes.max().item())
