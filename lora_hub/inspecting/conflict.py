"""Sign conflict of deltas, in rows that are drawn by the module's path: rows are cheap, ``B[rows] @ A``."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from lora_hub.compose.factors import EPSILON, Factors
from lora_hub.inspecting.findings import SignConflict

ENTRIES = 2**18  # of a delta that are looked at; up to here all of them
MIN_ROWS = 64


def sign_conflict(deltas: Sequence[Factors], path: str) -> SignConflict:
    """Return where the signs of *deltas* of the module at *path* contradict each other, ``[out, in]`` each."""
    out_features, in_features = deltas[0].shape
    rows = sampled_rows(out_features, in_features, path)
    entries = torch.stack([_entries(delta, rows) for delta in deltas])  # [adapters, rows, in]
    is_up, is_down = entries > 0, entries < 0
    contested = (is_up | is_down).sum(dim=0) > 1
    mass, left = entries.abs().sum().item(), entries.sum(dim=0).abs().sum().item()
    return SignConflict(
        rows=len(rows),
        of=out_features,
        contested=int(contested.sum()),
        conflicting=int((is_up.any(dim=0) & is_down.any(dim=0)).sum()),
        mass=mass,
        lost=max(0.0, mass - left) / 2,  # what opposes the sum makes it smaller twice
    )


def sampled_rows(out_features: int, in_features: int, path: str) -> list[int]:
    """Return which rows are looked at: all of a small module, else one of each of equally many neighbours.

    Drawn, since equal steps would fall on the same place of every head; by the path, so that they are always the same.
    """
    count = max(MIN_ROWS, ENTRIES // in_features)
    if count >= out_features:
        return list(range(out_features))
    draw = random.Random(path)  # noqa: S311 - a sample, no secret
    return [int((position + draw.random()) * out_features / count) for position in range(count)]


def _entries(delta: Factors, rows: list[int]) -> Tensor:
    """Return the *rows* of ``B @ A``; what is only rounding is zero, and has no sign."""
    entries = delta.B[rows] @ delta.A
    sizes = torch.linalg.vector_norm(delta.B, dim=0) * torch.linalg.vector_norm(delta.A, dim=1)
    entries[entries.abs() <= delta.r * EPSILON * sizes.max()] = 0
    return entries
