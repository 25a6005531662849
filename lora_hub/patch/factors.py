"""A and B of one adapted part of a module, and how their product is added to the module's output."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

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

    def blocks(self, out_features: int) -> tuple[tuple[slice, slice], ...]:
        """Return what belongs together: slices of the module's outputs, and of the rows of B."""
        blocks, row = [], 0
        for start, stop in self.rows or ((0, out_features),):
            blocks.append((slice(start, stop), slice(row, row + stop - start)))
            row += stop - start
        return tuple(blocks)

    def width(self, out_features: int) -> int:
        """Return how many rows B has, of a module with *out_features* outputs."""
        return sum(rows.stop - rows.start for _, rows in self.blocks(out_features))


class PartWeights(NamedTuple):
    """A part with its A ``[r, in]`` and B ``[rows of the part, r]``."""

    part: Part
    lora_A: Tensor
    lora_B: Tensor


class Factors(Protocol):
    """Where A and B live."""

    def stored(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Return A and B as they are stored."""

    def placed(self, module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return A and B on the device of the input *x*, in the dtype in which to compute."""


class FrozenFactors:
    """Plain tensors for inference: not in `parameters()`, not in `state_dict()`; they compute in the input's dtype."""

    def __init__(self, lora_A: Tensor, lora_B: Tensor) -> None:
        self._stored = (lora_A, lora_B)
        dtype = torch.promote_types(lora_A.dtype, lora_B.dtype)  # a file may hold each in its own
        self._placed = (lora_A.to(dtype), lora_B.to(dtype))

    def stored(self, module: nn.Module) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return A and B in the dtype they were read in."""
        return self._stored

    def placed(self, module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return A and B where *x* is; the last placement is kept."""
        dtype = autocast_dtype(x) or x.dtype
        placed = self._placed
        if placed[0].device != x.device or placed[0].dtype != dtype:
            # What is kept may be needed for a backward, also if this call is under `inference_mode`.
            with torch.inference_mode(False):
                a, b = self._stored
                self._placed = placed = (a.to(x.device, dtype), b.to(x.device, dtype))
        return placed


@dataclass(frozen=True, slots=True)
class TrainableFactors:
    """Parameters on the module, looked up at every call: FSDP and `.to()` may replace the objects."""

    name_A: str
    name_B: str

    def stored(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """Return A and B as the optimizer sees them."""
        return getattr(module, self.name_A), getattr(module, self.name_B)

    def placed(self, module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return A and B in their own precision if it is the wider one, so that gradients are not rounded."""
        a, b = self.stored(module)
        dtype = autocast_dtype(x) or torch.promote_types(a.dtype, x.dtype)
        return a.to(x.device, dtype), b.to(x.device, dtype)


def init_factors(r: int, in_features: int, out_features: int, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return A ``[r, in]`` random and B ``[out, r]`` zero, so that training starts from the base (LoRA, section 4.1).

    A is drawn like the weight of `nn.Linear`, as loralib and PEFT do: Kaiming uniform with a = √5.
    """
    lora_A = torch.empty(r, in_features, dtype=dtype)
    nn.init.kaiming_uniform_(lora_A, a=math.sqrt(5))
    return lora_A, torch.zeros(out_features, r, dtype=dtype)


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the dtype in which autocast computes with *x*, or None if it is off, or leaves *x* alone (float64)."""
    kind = x.device.type
    if not _has_autocast(kind) or not torch.is_autocast_enabled(kind) or x.dtype is torch.float64:
        return None
    return torch.get_autocast_dtype(kind)


_has_autocast = functools.cache(torch.amp.is_autocast_available)


def add_delta(
    y: Tensor, x: Tensor, lora_A: Tensor, lora_B: Tensor, blocks: tuple[tuple[slice, slice], ...], factor: float
) -> None:
    """Add ``factor * x A^T B^T`` to the *blocks* of the last axis of *y* ``[..., out]``, in place."""
    s = F.linear(x if x.dtype is lora_A.dtype else x.to(lora_A.dtype), lora_A)  # [..., in] @ [in, r] -> [..., r]
    is_plain = s.dtype is y.dtype and y.is_contiguous() and autocast_dtype(y) is None
    for outputs, rows in blocks:
        B = lora_B if len(blocks) == 1 else lora_B[rows]
        if is_plain:
            # One GEMM that accumulates and rounds once.
            flat = y.view(-1, y.shape[-1])
            part = flat if len(B) == y.shape[-1] else flat[:, outputs]
            part.addmm_(s.view(-1, s.shape[-1]), B.t(), alpha=factor)
        else:
            # addmm_ takes no mixed dtypes, and none of autocast's; add_ computes in the wider one and rounds once.
            y[..., outputs].add_(F.linear(s, B), alpha=factor)
