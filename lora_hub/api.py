"""The verbs of lora-hub, and the only place where the registry meets the patcher."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from lora_hub import reference as references
from lora_hub.adapter_directory import read_adapter
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.extras import needs_torch
from lora_hub.reference import AdapterRef
from lora_hub.registry import transfer
from lora_hub.registry.locate import open_registry
from lora_hub.registry.registry import Registry
from lora_hub.registry.store import Store, default_store
from lora_hub.registry.transfer import Pulled, Pushed
from lora_hub.version import Version

if TYPE_CHECKING:
    from torch import nn

    from lora_hub.patch.applied_adapter import AppliedAdapter

RegistryLike = str | os.PathLike[str] | Registry | None


def push(directory: str | os.PathLike[str], reference: str | AdapterRef, *, registry: RegistryLike = None) -> Pushed:
    """Publish the adapter in *directory* as the immutable version *reference* (``org/task@1.2.0``).

    The same content again is a success; nothing is written into *directory*.

    Args:
        directory: What `save_adapter` or PEFT's ``save_pretrained`` wrote.
        reference: An exact version.
        registry: A directory or a URL; by default ``LORA_HUB_REGISTRY``.

    Raises:
        VersionConflictError: The version exists with other content.
        MalformedError, IntegrityError: The directory holds no adapter that could be applied.
    """
    return transfer.push(Path(directory), _as_reference(reference), _as_registry(registry))


def pull(reference: str | AdapterRef, *, registry: RegistryLike = None) -> Pulled:
    """Bring the version that *reference* selects into the local store, every byte proven, and say where it lies.

    Args:
        reference: ``org/task`` (the newest release), ``org/task@1.2.0``, ``@^1.2``, ``@1`` or ``@sha256:…``.
        registry: A directory or a URL; by default ``LORA_HUB_REGISTRY``.

    Raises:
        NotFoundError: No such adapter or version.
        IntegrityError: Bytes do not match their digests.
        PolicyError: A version that was pulled before is another one now.
    """
    return transfer.pull(_as_reference(reference), _as_registry(registry), default_store())


def load(source: str | os.PathLike[str] | AdapterRef, *, registry: RegistryLike = None) -> VerifiedAdapter:
    """Return the proven adapter that *source*, a directory or a reference, names."""
    named = references.parse(source)
    return read_adapter(named) if isinstance(named, Path) else pull(named, registry=registry).adapter


def list_adapters(prefix: str = "", *, registry: RegistryLike = None) -> dict[str, list[Version]]:
    """Return the versions, newest first, of every adapter of the registry whose ``org/task`` begins with *prefix*."""
    opened = _as_registry(registry)
    names = [name for name in opened.names() if name.startswith(prefix)]
    return {name: opened.versions(AdapterRef.parse(name))[::-1] for name in names}


def store() -> Store:
    """Return the local store: under ``LORA_HUB_HOME``, or in the user's cache directory."""
    return default_store()


def apply_adapter(
    model: nn.Module,
    source: str | os.PathLike[str] | AdapterRef | VerifiedAdapter,
    *,
    name: str | None = None,
    scale: float = 1.0,
    active: bool = True,
    replace: bool = False,
    trainable: bool = False,
    allow_other_base: bool = False,
    registry: RegistryLike = None,
) -> AppliedAdapter:
    """Return a handle on the adapter that *source* names, now attached to *model*.

    Computes ``W x + scale * (lora_alpha / r) B A x`` in every module that the adapter has tensors for. Names, classes
    by `isinstance` and ``state_dict`` keys of the base stay; ``adapter.remove()`` gives back the same bits.

    Args:
        model: A model of transformers, or any module with linear modules of the same paths and shapes.
        source: ``org/task[@version]``, a directory (a path, or a string that starts with ``.`` or ``/``).
        name: What it is called on this model; by default the task, or the name of the directory.
        scale: Multiplies the delta.
        active: Whether it runs outside of `use`; active adapters add up.
        replace: Whether an adapter of the same name gives way.
        trainable: Whether it is to be trained on: A and B become parameters in float32 at least, heads in the dtype of
            the base, which is frozen.
        allow_other_base: Apply it although its base is of another model type.
        registry: A directory or a URL; by default ``LORA_HUB_REGISTRY``.

    Raises:
        CompatibilityError: It does not fit this model, which is as it was.
        MalformedError, IntegrityError, NotFoundError: There is no such adapter, or not a whole one.
    """
    with needs_torch("applying an adapter"):
        from lora_hub.patch.attach import Options, apply
    adapter = source if isinstance(source, VerifiedAdapter) else load(source, registry=registry)
    options = Options(
        name=name if name is not None else _default_name(source, adapter),
        scale=scale,
        active=active,
        replace=replace,
        trainable=trainable,
        allow_other_base=allow_other_base,
    )
    return apply(model, adapter, options)


def _default_name(source: str | os.PathLike[str] | AdapterRef | VerifiedAdapter, adapter: VerifiedAdapter) -> str:
    named = None if isinstance(source, VerifiedAdapter) else references.parse(source)
    if isinstance(named, Path):
        return named.resolve().name
    published = adapter.manifest.reference
    return published.task if published is not None else "adapter"


def _as_reference(reference: str | AdapterRef) -> AdapterRef:
    return reference if isinstance(reference, AdapterRef) else AdapterRef.parse(reference)


def _as_registry(registry: RegistryLike) -> Registry:
    return open_registry(registry) if registry is None or isinstance(registry, str | os.PathLike) else registry
