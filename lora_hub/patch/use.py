"""Choose which adapters of a model run."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import nn

from lora_hub.errors import UsageError
from lora_hub.patch.applied_adapter import AppliedAdapter
from lora_hub.patch.choice import Choice, Use
from lora_hub.patch.model_patch import find_patch


def use(model: nn.Module, choice: str | AppliedAdapter | Mapping[str, float] | None) -> Use:
    """Return a context manager in which exactly the chosen adapters of *model* run.

    Args:
        model: A model with adapters, also wrapped (compiled, DDP).
        choice: A name, a handle, a weighted sum such as ``{"task": 0.7, "style": 0.3}``, or None for the bare base. The
            factor of an adapter is weight x scale x scaling.

    The choice holds in the calling thread or asyncio task, and for the backward of what was computed under it.

    Raises:
        UsageError: An unknown name, or a weight that is no finite number.
        StateError: A merged adapter would have to be off, or two chosen adapters replace the same head.
    """
    return Use(find_patch(model), Choice(_weights(choice)))


def _weights(choice: str | AppliedAdapter | Mapping[str, float] | None) -> dict[str, float]:
    if choice is None:
        return {}
    if isinstance(choice, AppliedAdapter):
        return {choice.name: 1.0}
    if isinstance(choice, str):
        return {choice: 1.0}
    for name, weight in choice.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise UsageError(f"the weight of `{name}` is {weight!r}, expected a finite number")
    return dict(choice)
