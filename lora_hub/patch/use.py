"""Choose which adapters of a model run: the same for all rows of a batch, or for each row its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real

from torch import nn

from lora_hub.errors import UsageError
from lora_hub.patch.applied_adapter import AppliedAdapter
from lora_hub.patch.choice import Choice, Use
from lora_hub.patch.model_patch import ModelPatch
from lora_hub.patch.on_model import find_patch

OneChoice = str | AppliedAdapter | Mapping[str, float] | None


def use(model: nn.Module, choice: OneChoice) -> Use:
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
    return _use(find_patch(model), [choice])


def route(model: nn.Module, choices: Sequence[OneChoice]) -> Use:
    """Return a context manager in which each row of a batch runs its own adapters of *model*, in one forward pass.

    Args:
        model: As for `use`.
        choices: For each row of the batch what `use` takes: a name, a handle, a weighted sum, or None.

    The batch is the first axis of what the adapted modules get. Rows that were repeated keep their choice, if the
    copies stand side by side, as `generate` puts its beams; a batch that a model repeats as a whole cannot be told
    apart. The matrices of the last two sets of choices stay stacked, up to 1 GiB each, so that a route may change at
    every call; any number of adapters may differ in rank, targets and dtype.

    Raises:
        UsageError: As for `use`; no choices at all; and when a module runs whose input's rows cannot be proven to be
            those of the batch (packed sequences, experts, towers of images, the sequence in front of the batch), unless
            all rows choose the same.
        StateError: As for `use`.
    """
    if isinstance(choices, str | Mapping) or not isinstance(choices, Sequence) or not choices:
        raise UsageError(
            f"{choices!r} is no list of one choice per row", hint='write ["task", "style", None], or `use` one for all'
        )
    return _use(find_patch(model), choices)


def _use(patch: ModelPatch, choices: Sequence[OneChoice]) -> Use:
    sums: dict[tuple[tuple[str, float], ...], int] = {}
    rows, meant = [], {}
    for choice in choices:
        if isinstance(choice, AppliedAdapter):
            if patch.state.handles.get(choice.name) is not choice:
                raise UsageError(
                    f"{choice!r} is not on this model", hint="pass a handle or a name of `lora_hub.adapters(model)`"
                )
            meant[choice.name] = choice
        rows.append(sums.setdefault(_weights(choice), len(sums)))
    return Use(patch, Choice(tuple(dict(weights) for weights in sums), tuple(rows) if len(sums) > 1 else (0,), meant))


def _weights(choice: OneChoice) -> tuple[tuple[str, float], ...]:
    match choice:
        case None:
            return ()
        case AppliedAdapter():
            return ((choice.name, 1.0),)
        case str():
            return ((choice, 1.0),)
        case Mapping():
            return tuple((name, _finite(name, weight)) for name, weight in choice.items())
    raise UsageError(f"{choice!r} is no choice of adapters", hint='write "task", {"task": 0.7, "style": 0.3}, or None')


def _finite(name: str, weight: object) -> float:
    if isinstance(weight, bool) or not isinstance(weight, Real) or not math.isfinite(weight):
        raise UsageError(f"the weight of `{name}` is {weight!r}, expected a finite number", hint="0 leaves it out")
    return float(weight)
