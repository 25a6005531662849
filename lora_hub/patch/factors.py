"""A and B of one adapted part of a module: what they adapt, where they live, and their product."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from lora_hub.architecture import Rows
from lora_hub.documents.adapter_config import scaling

Parameters = Mapping[str, Tensor]  # of a module, by name


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

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The names under which the module has them as parameters that are trained; none if they are frozen."""

    def stored(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Return A and B as they are stored; *parameters* are those of the module."""


@dataclass(frozen=True, slots=True)
class FrozenFactors:
    """Plain tensors for inference: not in `parameters()`, not in `state_dict()`."""

    lora_A: Tensor
    lora_B: Tensor
    parameter_names: tuple[str, ...] = ()

    def stored(self, parameters: Parameters) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """Return A and B in the dtype they were read in."""
        return self.lora_A, self.lora_B


@dataclass(frozen=True, slots=True)
class TrainableFactors:
    """Parameters of the module, looked up at every call: FSDP and `.to()` may replace the objects."""

    name_A: str
    name_B: str

    @property
    def parameter_names(self) -> tuple[str, ...]:
        """The names of both."""
        return self.name_A, self.name_B

    def stored(self, parameters: Parameters) -> tuple[Tensor, Tensor]:
        """Return A and B as the optimizer sees them."""
        return parameters[self.name_A], parameters[self.name_B]


def side_by_side(parts: Sequence[tuple[Part, Tensor]], out_features: int) -> Tensor:
    """Return the B's of *parts* as ``[out, sum of r]``: each in its rows and its columns, zeros elsewhere."""
    total = parts[0][1].new_zeros(out_features, sum(part.r for part, _ in parts))
    column = 0
    for part, lora_B in parts:
        for outputs, rows in part.blocks(out_features):
            total[outputs, column : column + part.r] = lora_B[rows]
        column += part.r
    return total


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


def computing_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which frozen adapters compute with *x*: its own, or autocast's."""
    return (_is_any_autocast_enabled() and autocast_dtype(x)) or x.dtype


def training_dtype(x: Tensor, parameters: Iterable[Tensor]) -> torch.dtype:
    """Return the dtype in which trained *parameters* compute with *x*: autocast's, else the widest, so that gradients
    are not rounded.
    """  # noqa: D205
    dtype = computing_dtype(x)
    if dtype is x.dtype and not (_is_any_autocast_enabled() and autocast_dtype(x)):
        for parameter in parameters:
            dtype = torch.promote_types(dtype, parameter.dtype)
    return dtype


_is_any_autocast_enabled = torch._C._is_any_autocast_enabled  # noqa: SLF001 - for all kinds of devices at once
