"""A and B of one adapted part of a module, and how their product is added to the module's output."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_hub.architecture import Rows
from lora_hub.documents.adapter_config import scaling


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one pair of A and B adapts: all outputs of a module, or the *rows* that its part (q, k, v, o) holds."""

    r: int
    alpha: float
    use_rslora: bool = False
    name: str | None = None
    rows: Rows | None = None

    @property
    def scaling(self) -> float:
        """alpha/r, or alpha/√r."""
        return scaling(self.r, self.alpha, use_rslora=self.use_rslora)

    def runs(self, out_features: int) -> Rows:
        """Return the half-open runs of outputs that this part adapts."""
        return self.rows or ((0, out_features),)


class Factors(Protocol):
    """Where A ``[r, in]`` and B ``[out, r]`` live."""

    def stored(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Return A and B as they are stored."""

    def on(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return A and B where and how the computation needs them."""


class FrozenFactors:
    """Plain tensors for inference: not in `parameters()`, not in `state_dict()`, placed where the input is."""

    def __init__(self, lora_A: Tensor, lora_B: Tensor) -> None:
        self._stored = (lora_A, lora_B)
        self._placed = self._stored

    def stored(self, module: nn.Module) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return A and B in the dtype they were read in."""
        return self._stored

    def on(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return A and B on *device* in *dtype*; the last placement is kept."""
        a, b = placed = self._placed
        if a.device != device or a.dtype != dtype:
            a, b = self._stored
            self._placed = placed = (a.to(device, dtype), b.to(device, dtype))
        return placed


@dataclass(frozen=True, slots=True)
class TrainableFactors:
    """Parameters on the module, looked up at every call: FSDP and `.to()` may replace the objects."""

    name_A: str
    name_B: str

    def stored(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Return A and B as the optimizer sees them."""
        return getattr(module, self.name_A), getattr(module, self.name_B)

    def on(self, module: nn.Module, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return A and B on *device* in *dtype*; gradients flow back through the cast."""
        a, b = self.stored(module)
        return a.to(device, dtype), b.to(device, dtype)


def init_factors(r: int, in_features: int, out_features: int, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return A ``[r, in]`` random and B ``[out, r]`` zero, so that training starts from the base (LoRA, section 4.1).

    A is drawn like the weight of `nn.Linear`, as loralib and PEFT do: Kaiming uniform with a = √5.
    """
    lora_A = torch.empty(r, in_features, dtype=dtype)
    nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))
    return lora_A, torch.zeros(out_features, r, dtype=dtype)


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """Return the dtype in which autocast computes on *device* at the moment, or None if it is off."""
    kind = device.type
    if not _has_autocast(kind) or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


_has_autocast = functools.cache(torch.amp.is_autocast_available)


def add_delta(y: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, runs: Rows, factor: float) -> Tensor:
    """Return ``y + factor * x A^T B^T`` on the *runs* of the last axis; *y* ``[..., out]`` is changed in place.

    The backward of the layer that made *y* does not need it: linear layers save their input and their weight.
    """
    s = F.linear(x, lora_A)  # [..., in] @ [in, r] -> [..., r]
    is_plain = s.dtype == y.dtype and y.is_contiguous() and autocast_dtype(y.device) is None
    rows = 0
    for start, stop in runs:
        B = lora_B[rows : rows + stop - start]
        rows += stop - start
        if is_plain:
            # One GEMM that accumulates and rounds once.
            flat = y.view(-1, y.shape[-1])
            part = flat if stop - start == y.shape[-1] else flat[:, start:stop]
            part.addmm_(s.reshape(-1, s.shape[-1]), B.t(), alpha=factor)
        else:
            # addmm_ takes no mixed dtypes, and none of autocast's.
            y[..., start:stop].add_(F.linear(s, B).to(y.dtype), alpha=factor)
    return y


def delta_weight(
    pairs: Iterable[tuple[Tensor, Tensor, Rows, float]],
    shape: tuple[int, int],
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """Return the sum of ``factor * B A`` as ``[out, in]``, accumulated in *dtype*."""
    total = torch.zeros(shape, device=device, dtype=dtype)
    for lora_A, lora_B, runs, factor in pairs:
        product = lora_B.to(device, dtype) @ lora_A.to(device, dtype)  # [rows, r] @ [r, in] -> [rows, in]
        start_B = 0
        for start, stop in runs:
            total[start:stop].add_(product[start_B : start_B + stop - start], alpha=factor)
            start_B += stop - start
    return total
