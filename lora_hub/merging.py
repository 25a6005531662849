"""Merge adapters into a full checkpoint: the registry brings the adapters and the base, `checkpoint` writes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lora_hub import api
from lora_hub import reference as references
from lora_hub.base_model import base_files
from lora_hub.documents.fields import MAX_NUMBER
from lora_hub.errors import UsageError
from lora_hub.extras import needs_torch
from lora_hub.reference import AdapterRef, PathLike
from lora_hub.registry.fetch import Progress, no_progress
from lora_hub.registry.locate import RegistryLike

if TYPE_CHECKING:
    from lora_hub.checkpoint.base_files import LocalBase
    from lora_hub.checkpoint.plan import MergePlan, Source
    from lora_hub.checkpoint.provenance import Merged
    from lora_hub.documents.verified_adapter import VerifiedAdapter

AdapterLike = TypeVar("AdapterLike", bound=str | os.PathLike[str] | AdapterRef)  # keys of a mapping are invariant


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedShard:
    """One shard that would be written: bytes, and the tensors that the adapters change in it."""

    name: str
    size: int
    touched: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What a merge would write.

    Attributes:
        base: What the base is called, and the commit if it is on the Hub.
        recipe: ``sha256:…`` of what decides about the weights.
        shards: What would be written.
        size: Bytes of all of them.
        free: Bytes that are free where the output goes.
        notes: What the user should know.
    """

    base: str
    commit: str | None
    recipe: str
    shards: tuple[PlannedShard, ...]
    size: int
    free: int
    notes: tuple[str, ...]


def merge_checkpoint(
    base: PathLike,
    adapters: Mapping[AdapterLike, float],
    output: PathLike,
    *,
    dtype: str | None = None,
    resume: bool = False,
    allow_other_base: bool = False,
    registry: RegistryLike = None,
    progress: Progress = no_progress,
) -> Merged:
    """Write the checkpoint *base* with *adapters* merged into it to *output*, and return what was written.

    Shard by shard, in memory that does not grow with the model: tensors that no adapter touches are copied byte for
    byte, the others are ``W + sum of weight * scaling * B A``, rounded once. One adapter gives the very bits of PEFT's
    ``merge_and_unload``.

    Args:
        base: The directory of a model in safetensors (a path, or a string that starts with ``.`` or ``/``), or a
            repository on the Hub, ``org/model[@revision]``.
        adapters: The weight of each adapter, a reference or a directory.
        output: A new directory.
        dtype: ``float32``, ``float16`` or ``bfloat16`` for all floating tensors; by default each keeps its own.
        resume: Go on with a merge of the same recipe that was cut off in *output*.
        allow_other_base: Merge although an adapter was made for a sibling of this base.
        registry: Where adapters are, as everywhere.
        progress: How to show what is written; ``progress(label, total bytes)`` opens a bar.

    Raises:
        UsageError: *output* is not empty, or holds another merge.
        CompatibilityError: An adapter does not fit the base, a tensor of it has no place, or nothing would change.
        MalformedError, IntegrityError: Base or adapter are malformed, or changed while they were read.
        UntrustedError, PolicyError: As with `pull`.
        MachineError: The disk has not enough space.
    """
    with needs_torch("merging"):
        from lora_hub.checkpoint.merge import merge
    plan = _plan(base, adapters, dtype=dtype, allow_other_base=allow_other_base, registry=registry)
    return merge(
        plan,
        Path(output),
        tool=version("lora-hub"),
        resume=resume,
        tokenizers=_tokenizers(adapters),
        progress=progress,
    )


def plan_checkpoint(
    base: PathLike,
    adapters: Mapping[AdapterLike, float],
    output: PathLike,
    *,
    dtype: str | None = None,
    allow_other_base: bool = False,
    registry: RegistryLike = None,
) -> Planned:
    """Return what `merge_checkpoint` with the same arguments would write.

    Of the base headers are read, and the few weights of which an adapter has the fingerprint.
    """
    with needs_torch("merging"):
        from lora_hub.checkpoint.companions import companions
        from lora_hub.checkpoint.merge import free_space
    plan = _plan(base, adapters, dtype=dtype, allow_other_base=allow_other_base, registry=registry)
    return Planned(
        base=plan.checkpoint.files.name,
        commit=plan.checkpoint.files.commit,
        recipe=plan.digest(),
        shards=tuple(
            PlannedShard(name=shard.name, size=shard.size, touched=tuple(target.name for target in shard.touched))
            for shard in plan.shards
        ),
        size=plan.size,
        free=free_space(Path(output)),
        notes=(*plan.notes, *companions(plan, _tokenizers(adapters))[1]),
    )


def _plan(
    base: PathLike,
    adapters: Mapping[AdapterLike, float],
    *,
    dtype: str | None,
    allow_other_base: bool,
    registry: RegistryLike,
) -> MergePlan:
    from lora_hub.checkpoint.checkpoint import read_checkpoint
    from lora_hub.checkpoint.planning import plan_merge

    _check_weights(adapters)
    checkpoint = read_checkpoint(base_files(base))  # before any adapter is pulled
    sources = _sources(adapters, registry=registry)
    return plan_merge(checkpoint, sources, dtype=dtype, allow_other_base=allow_other_base)


def _tokenizers(adapters: Mapping[AdapterLike, float]) -> dict[str, LocalBase]:
    """Return the directories among *adapters*, in which a tokenizer may lie, by the adapters' names."""
    from lora_hub.checkpoint.base_files import LocalBase

    directories = {str(source): references.parse(source) for source in adapters}
    return {name: LocalBase(path) for name, path in directories.items() if isinstance(path, Path)}


def _check_weights(adapters: Mapping[AdapterLike, float]) -> None:
    for source, weight in adapters.items():
        if not (0 < abs(weight) <= MAX_NUMBER):  # NaN is neither
            raise UsageError(
                f"the weight of `{source}` is {weight}, expected a number that is not 0",
                hint="leave out what shall not be merged",
            )


def _sources(adapters: Mapping[AdapterLike, float], *, registry: RegistryLike) -> Sequence[Source]:
    from lora_hub.checkpoint.plan import Source
    from lora_hub.composing.inputs import Input

    sources = []
    for named, weight in adapters.items():
        adapter = api.load(named, registry=registry)
        description = _describe(adapter, float(weight))
        one = Input(name=str(named), adapter=adapter)
        sources.append(Source(input=one, weight=float(weight), description=description))
    return sources


def _describe(adapter: VerifiedAdapter, weight: float) -> dict[str, Any]:
    """Return what the provenance says of an adapter; where it lay on somebody's machine is nobody's business."""
    return {
        "name": adapter.manifest.name,
        "version": adapter.manifest.version,
        "digest": adapter.digest,
        "signers": [str(signer) for signer in adapter.signers],
        "license": adapter.manifest.license,
        "weight": weight,
    }
