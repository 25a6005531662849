"""What a module under adapters carries: who is on it, what replaces it, what it was before a merge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from lora_hub.patch.choice import PatchedModel
from lora_hub.patch.correction import Correction
from lora_hub.patch.factors import PartWeights

Keep = Literal["originals", "corrections"]  # how merged weights come back

RECORD = "_lora_hub"  # in the instance dict of the module, where torch does not look


class Replaces(Protocol):
    """Something that is run in place of a module."""

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return what takes the place of the module's output."""

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """Return what takes the place of the module's state."""


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


@dataclass(slots=True, eq=False)
class Record:
    """All that a module under adapters carries; what each adapter adds to it is kept by the adapter's handle."""

    patch: PatchedModel
    path: str
    number: Tensor  # by which compiled code finds the module
    adapters: dict[str, None] = field(default_factory=dict)
    replacements: dict[str, Replaces] = field(default_factory=dict)
    parameter_names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    merged: Merged | None = None
    stranger: str | None = None  # the part around it whose rows are not the batch's, "" for none; None is unknown

    @property
    def is_empty(self) -> bool:
        """Whether nothing is left that the module needs: no adapter, and no originals of merged weights."""
        return not self.adapters and self.merged is None

    def forget(self, name: str) -> tuple[str, ...]:
        """Drop what the adapter *name* has here, and return the names of its parameters."""
        self.adapters.pop(name, None)
        self.replacements.pop(name, None)
        return self.parameter_names.pop(name, ())


def record_of(module: nn.Module) -> Record | None:
    """Return the record of *module*, or None if it is not patched."""
    return module.__dict__.get(RECORD)
