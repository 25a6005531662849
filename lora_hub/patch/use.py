"""Choose which adapters of a model run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

from torch import nn

from lora_hub.errors import UsageError
from lora_hub.patch.applied_adapter import AppliedAdapter
from lora_hub.patch.choice import Choice, Use
from lora_hub.patch.on_model import find_patch


def use(model: nn.Module, choice: str | AppliedAdapter | Mapping[str, float] | None) -> Use:
    """Return a context manager in which exactly the chosen adapters of *model* run.

    Args:
        model: A model with adapters, also wrapped (compiled, DDP).
        choice: A name, a handle, a weighted sum such as ``{"task": 0.7, "style": 0.3}``, or None for the bare base. The
            factor of a delta is weight x scale x scaling; a head is replaced whole, unless its factor is 0.

    The choice holds in the calling thread or asyncio task, and for the backward of what was computed under it, also
    with gradient checkpointing. Enter other saved-tensor hooks (``save_on_cpu``) and transforms of ``torch.func``
    outside of the block: inside, the ones hide it from a recomputation, the others forbid hooks. A generator that is
    suspended inside of the block leaves its caller in it.

    Raises:
        UsageError: An unknown name, a handle of another model, or a weight that is no finite number.
        StateError: A merged adapter would have to be off, or two chosen adapters change a module that one replaces.
    """
    patch = find_patch(model)
    if isinstance(choice, AppliedAdapter) and patch.state.handles.get(choice.name) is not choice:
        raise UsageError(
            f"{choice!r} is not on this model", hint="pass a handle or a name of `lora_hub.adapters(model)`"
        )
    return Use(patch, Choice(_weights(choice), choice if isinstance(choice, AppliedAdapter) else None))


def _weights(choice: str | AppliedAdapter | Mapping[str, float] | None) -> dict[str, float]:
    match choice:
        case None:
            return {}
        case AppliedAdapter():
            return {choice.name: 1.0}
        case str():
            return {choice: 1.0}
        case Mapping():
            return {name: _finite(name, weight) for name, weight in choice.items()}
    raise UsageError(f"{choice!r} is no choice of adapters", hint='write "task", {"task": 0.7, "style": 0.3}, or None')


def _finite(name: str, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
        raise UsageError(f"the weight of `{name}` is {weight!r}, expected a finite number", hint="0 leaves it out")
    return float(weight)
