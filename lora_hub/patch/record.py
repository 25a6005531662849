"""What a module under adapters carries: what they add to it, what replaces it, what it was before a merge."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from lora_hub.patch.choice import Plan
from lora_hub.patch.factors import Factors, Part, add_delta, autocast_dtype

RECORD = "_lora_hub"  # in the instance dict of the module, where torch does not look


class Owner(Protocol):
    """The state of the whole model."""

    def running(self) -> Plan:
        """Return what runs in the calling context."""


class Replaces(Protocol):
    """Something that is run in place of a module."""

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return what takes the place of the module's output."""

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """Return what takes the place of the module's state."""


@dataclass(slots=True)
class Slot:
    """What one adapter adds to one module."""

    parts: tuple[tuple[Part, Factors], ...]
    dropout: float = 0.0

    def add_to(self, y: Tensor, x: Tensor, weight: float, module: nn.Module) -> Tensor:
        """Return *y* ``[..., out]`` plus what the adapter computes from the module's input *x* ``[..., in]``."""
        if self.dropout and module.training:
            x = F.dropout(x, self.dropout)
        for part, factors in self.parts:
            lora_A, lora_B = factors.on(module, x.device, autocast_dtype(x.device) or x.dtype)
            y = add_delta(y, x, lora_A, lora_B, part.runs(y.shape[-1]), weight * part.scaling)
        return y


@dataclass(slots=True)
class Merged:
    """What a merged module keeps: its original tensors by name, and checksums of what the merge made of them."""

    originals: dict[str, Tensor]
    checksums: dict[str, tuple[int, int]]


@dataclass(slots=True)
class Record:
    """All that a module under adapters carries, by the adapters' names."""

    patch: Owner
    slots: dict[str, Slot] = field(default_factory=dict)
    replacements: dict[str, Replaces] = field(default_factory=dict)
    parameter_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    merged: Merged | None = None

    @property
    def is_empty(self) -> bool:
        """Whether no adapter is left on the module."""
        return not self.slots and not self.replacements


def record_of(module: nn.Module) -> Record | None:
    """Return the record of *module*, or None if it is not patched."""
    return module.__dict__.get(RECORD)
