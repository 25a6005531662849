"""From a model to its adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lora_hub.errors import UsageError
from lora_hub.patch.layer import showing_parameters
from lora_hub.patch.model_patch import PATCH, ModelPatch

if TYPE_CHECKING:
    from lora_hub.patch.applied_adapter import AppliedAdapter


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model behind torch.compile's and DDP's wrappers: its paths are the ones that adapters know."""
    while True:
        compiled = model._modules.get("_orig_mod")  # noqa: SLF001
        inner = model.module if isinstance(model, DataParallel | DistributedDataParallel) else compiled
        if inner is None:
            return model
        model = inner


def patch_of(model: nn.Module) -> ModelPatch | None:
    """Return the state of *model*, looking through wrappers of any kind, or None if it has no adapters."""
    seen: nn.Module | None = model
    while seen is not None:
        patch = seen.__dict__.get(PATCH)
        if patch is not None:
            return patch  # type: ignore[no-any-return]
        children = seen._modules  # noqa: SLF001
        seen = children["_orig_mod"] if "_orig_mod" in children else children.get("module")
    return None


def find_patch(model: nn.Module) -> ModelPatch:
    """Return the state of *model*; raise `UsageError` if it has no adapters."""
    patch = patch_of(model)
    if patch is None:
        raise UsageError(
            f"no adapters on this {type(model).__name__}", hint="pass the model that was given to `apply_adapter`"
        )
    return patch


def adapters(model: nn.Module) -> Mapping[str, AppliedAdapter]:
    """Return the adapters on *model*, by name, in the order in which they came."""
    patch = patch_of(model)
    return MappingProxyType(dict(patch.state.handles) if patch else {})


@contextmanager
def adapters_in_state_dict(model: nn.Module) -> Iterator[None]:
    """While this is entered, ``model.state_dict()`` shows trainable adapters, and loading expects them.

    For frameworks that move or save parameters through `state_dict` (FSDP's RAM-efficient loading, DCP).
    """
    with showing_parameters(find_patch(model)):
        yield
