"""What a module under adapters carries: what they add to it, what replaces it, what it was before a merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_hub.patch.choice import PatchedModel
from lora_hub.patch.correction import Correction
from lora_hub.patch.factors import Factors, Part, PartWeights, add_delta

Keep = Literal["originals", "corrections"]  # how merged weights come back

RECORD = "_lora_hub"  # in the instance dict of the module, where torch does not look


class Replaces(Protocol):
    """Something that is run in place of a module."""

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return what takes the place of the module's output."""

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """Return what takes the place of the module's state."""


class AdaptedPart(NamedTuple):
    """A part, where its A and B live, and what would be the same at every call."""

    part: Part
    factors: Factors
    blocks: tuple[tuple[slice, slice], ...]
    scaling: float


@dataclass(frozen=True, slots=True)
class Delta:
    """What one adapter adds to one module."""

    parts: tuple[AdaptedPart, ...]
    dropout: float = 0.0

    def add_to(self, y: Tensor, x: Tensor, weight: float, module: nn.Module) -> None:
        """Add to *y* ``[..., out]``, in place, what the adapter computes from the module's input *x* ``[..., in]``."""
        if self.dropout and module.training:
            x = F.dropout(x, self.dropout)
        for _, factors, blocks, scaling in self.parts:
            lora_A, lora_B = factors.placed(module, x)
            add_delta(y, x, lora_A, lora_B, blocks, weight * scaling)

    def weights(self, module: nn.Module) -> tuple[PartWeights, ...]:
        """Return A and B of each part as they are stored."""
        return tuple(PartWeights(adapted.part, *adapted.factors.stored(module)) for adapted in self.parts)


def add_deltas(y: Tensor, x: Tensor, deltas: Sequence[tuple[Delta, float]], module: nn.Module) -> Tensor:
    """Return *y* plus the weighted *deltas*, rounded once; *y* is changed in place."""
    is_narrow = y.dtype.itemsize < torch.float32.itemsize
    total = torch.zeros_like(y, dtype=torch.float32) if is_narrow and len(deltas) > 1 else y
    for delta, weight in deltas:
        delta.add_to(total, x, weight, module)
    return y if total is y else y.add_(total)


@dataclass(frozen=True, slots=True)
class Content:
    """What is merged into one module: A and B of each part with their factor (weight x scale), or a head's tensors."""

    parts: tuple[tuple[PartWeights, float], ...] = ()
    head: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merged module keeps.

    Attributes:
        content: What is merged, as it was when it was merged.
        originals: The tensors as they were before, by name.
        checksums: What the merge made of them, by name.
        correction: In place of the original of ``weight``.
    """

    content: Content
    originals: Mapping[str, Tensor]
    checksums: Mapping[str, bytes]
    correction: Correction | None = None

    @property
    def nbytes(self) -> int:
        """The size of what is kept for the way back, in bytes."""
        corrected = self.correction.nbytes if self.correction is not None else 0
        return corrected + sum(tensor.nbytes for tensor in self.originals.values())


@dataclass(slots=True)
class Record:
    """All that a module under adapters carries, by the adapters' names."""

    patch: PatchedModel
    deltas: dict[str, Delta] = field(default_factory=dict)
    replacements: dict[str, Replaces] = field(default_factory=dict)
    parameter_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    merged: Merged | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left that the module needs: no adapter, and no originals of merged weights."""
        return not self.deltas and not self.replacements and self.merged is None

    def forget(self, name: str) -> tuple[str, ...]:
        """Drop what the adapter *name* has here, and return the names of its parameters."""
        self.deltas.pop(name, None)
        self.replacements.pop(name, None)
        return self.parameter_names.pop(name, ())


def record_of(module: nn.Module) -> Record | None:
    """Return the record of *module*, or None if it is not patched."""
    return module.__dict__.get(RECORD)
