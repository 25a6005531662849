"""What a merge will write: for each shard which tensors, and what happens to each of them. No weights are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lora_hub.checkpoint.checkpoint import Checkpoint, Shard
from lora_hub.checkpoint.deltas import Term
from lora_hub.composing.inputs import Input
from lora_hub.documents.adapter_config import scaling
from lora_hub.documents.adapter_layout import LoraModule
from lora_hub.documents.fields import canonical_json, sha256
from lora_hub.documents.safetensors_header import CHECKPOINT, TensorInfo, write_header


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One adapter of a merge, with its weight and what is known of where it is from."""

    input: Input
    weight: float
    description: dict[str, Any]

    def term(self, module: LoraModule) -> Term:
        """Return the delta of *module* as it lies in the file; its factor is what PEFT's `set_scale` makes it."""
        lora_A, lora_B = self.input.stored(module)
        use_rslora = self.input.adapter.config.use_rslora
        return Term(lora_B, lora_A, scaling(module.r, self.weight * module.alpha, use_rslora=use_rslora))


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """Deltas that are added to a weight, which is stored ``[in, out]`` if it is *transposed*."""

    path: str
    parts: tuple[tuple[Source, LoraModule], ...]
    transposed: bool

    def terms(self) -> list[Term]:
        """Return the deltas: views of the adapters' bytes."""
        return [source.term(module) for source, module in self.parts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """A tensor of a head (PEFT's ``modules_to_save``) that stands in for the base's, or is new."""

    source: Source
    path: str
    parameter: str

    def tensor(self) -> Tensor:
        """Return it as it lies in the adapter's file."""
        return self.source.input.head(self.path)[self.parameter]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One tensor that will be written: where its base lies in the shard, if it has one, and what happens to it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    base: TensorInfo | None
    change: Added | Replaced | None = None

    @property
    def is_copied(self) -> bool:
        """Whether its bytes are those of the base."""
        return self.change is None and self.base is not None and self.base.dtype == self.dtype

    @property
    def size(self) -> int:
        """Bytes that it takes."""
        return math.prod(self.shape) * CHECKPOINT.bits[self.dtype] // 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """One shard that will be written: its beginning, and the tensors in the order of their bytes."""

    base: Shard
    header: bytes
    targets: tuple[Target, ...]

    @property
    def name(self) -> str:
        """Name of the file, the same as that of the base's shard."""
        return self.base.name

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(target.size for target in self.targets)

    @property
    def is_copy(self) -> bool:
        """Whether the file is that of the base, byte for byte."""
        return self.header == self.base.header and all(target.is_copied for target in self.targets)

    @property
    def touched(self) -> tuple[Target, ...]:
        """The tensors that adapters change."""
        return tuple(target for target in self.targets if target.change is not None)

    @classmethod
    def of(cls, base: Shard, targets: list[Target]) -> ShardPlan:
        """Return the plan for *base*: the same header if all *targets* lie as its tensors do, else a new one."""
        by_place = sorted(targets, key=lambda t: (t.base is None, (t.base.start, t.base.stop) if t.base else (0, 0)))
        if {target.name: (target.dtype, target.shape) for target in targets} == {
            name: (info.dtype, info.shape) for name, info in base.tensors.items()
        }:
            return cls(base=base, header=base.header, targets=tuple(by_place))
        # The largest items first, so that each tensor is aligned as readers like it; the sort keeps the order else.
        in_order = sorted(by_place, key=lambda target: -CHECKPOINT.bits[target.dtype])
        header = write_header({target.name: (target.dtype, target.shape) for target in in_order}, base.metadata)
        return cls(base=base, header=header, targets=tuple(in_order))


@dataclass(frozen=True, slots=True, kw_only=True)
class MergePlan:
    """All that a merge will write.

    Attributes:
        checkpoint: The base.
        sources: The adapters.
        dtype: What all floating tensors become (``BF16``), or None: each keeps its own.
        shards: What becomes of each shard.
        config: The new ``config.json``, or None where that of the base is right.
        resized: The rows of a vocabulary that was resized.
        notes: What the user should know.
    """

    checkpoint: Checkpoint
    sources: tuple[Source, ...]
    dtype: str | None
    shards: tuple[ShardPlan, ...]
    config: dict[str, Any] | None
    resized: int | None
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size for shard in self.shards)

    def touched(self) -> Iterator[Target]:
        """Yield all tensors that adapters change."""
        for shard in self.shards:
            yield from shard.touched

    def recipe(self) -> dict[str, Any]:
        """Return what decides about every byte that is written, but for the weights of a base in a directory."""
        return {
            "base": self.checkpoint.identity(),
            "adapters": [{"digest": source.description["digest"], "weight": source.weight} for source in self.sources],
            "dtype": self.dtype,
        }

    def digest(self) -> str:
        """Return ``sha256:…`` of the recipe: two merges of one digest write the same weights into the same base."""
        return f"sha256:{sha256(canonical_json(self.recipe()))}"
