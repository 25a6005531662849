"""What a recipe means for the adapters that it is given: all that can be known before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lora_hub.composing.heads import Heads, common_heads
from lora_hub.composing.inputs import Input, common_base, common_dtype, modules_of
from lora_hub.composing.merging import Method
from lora_hub.composing.rank import Rank
from lora_hub.composing.weights import Weights, weights_of
from lora_hub.documents.adapter_layout import LoraModule
from lora_hub.documents.base_model import BaseModel
from lora_hub.documents.manifest import MAX_FILE
from lora_hub.documents.recipe import Recipe
from lora_hub.errors import UsageError
from lora_hub.plugin_manager import plugins

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that is known before anything is computed.

    Attributes:
        inputs: The adapters, in the order of the recipe.
        modules: Which of them adapt each module, by position, and how.
        notes: What was decided on the way.
    """

    inputs: Sequence[Input]
    recipe: Recipe
    method: Method
    weights: Weights
    base: BaseModel
    heads: Heads
    dtype: torch.dtype
    modules: Mapping[str, Mapping[int, LoraModule]]
    notes: tuple[str, ...] = ()

    @property
    def is_unchanged(self) -> bool:
        """Whether the recipe asks for the one adapter that goes in."""
        return (
            len(self.inputs) == 1
            and self.method.rule.is_linear
            and self.method.rank.kind == "exact"
            and self.recipe.dtype is None
            and all(self.weights.of(path) == (1.0,) for path in self.modules)
        )


def plan_of(inputs: Sequence[Input], recipe: Recipe, *, allow_other_base: bool = False) -> Plan:
    """Return what *recipe* means for *inputs*; raises what `compose` raises, but for what the numbers say."""
    _check_inputs(inputs, recipe)
    rule = plugins().rule(recipe.rule)
    method = Method(
        rule=rule,
        settings=rule.settings(recipe.parameters),
        space=rule.space(recipe.space),
        rank=Rank.parse(recipe.rank),
        seed=recipe.seed,
    )
    base = common_base(inputs, allow_other_base=allow_other_base)
    modules = dict(modules_of(inputs))
    dtype = _dtype(inputs, recipe)
    if method.rank.kind == "number":
        _check_rank(int(method.rank.value), [next(iter(m.values())) for m in modules.values()], dtype)
    return Plan(
        inputs=inputs,
        recipe=recipe,
        method=method,
        weights=weights_of(inputs, recipe),
        base=base,
        heads=common_heads(inputs),
        dtype=dtype,
        modules=modules,
    )


def _check_rank(r: int, modules: Sequence[LoraModule], dtype: torch.dtype) -> None:
    """Refuse a rank that no module has, and one of so many zeros that nobody would read them."""
    widest = max(min(one.out_features, one.in_features) for one in modules)
    if r > widest:
        raise UsageError(f"the rank {r} is more than any module has", hint=f"at most {widest}, min(out, in)")
    size = sum(r * (one.out_features + one.in_features) for one in modules) * dtype.itemsize
    if size > MAX_FILE:
        raise UsageError(
            f"the adapter would have {size:,} bytes, at most {MAX_FILE:,} are read",
            hint="name a lower rank, or a limit, as `--rank max:64`, which fills nothing up",
        )


def _check_inputs(inputs: Sequence[Input], recipe: Recipe) -> None:
    ids = [one.id for one in recipe.inputs]
    if not ids:
        raise UsageError("the recipe names no adapter", hint="name one at least")
    if len(set(ids)) < len(ids):
        raise UsageError(f"two adapters of the recipe have one id, of {', '.join(ids)}", hint="give each its own")
    if ids != [one.name for one in inputs]:
        raise UsageError(f"the recipe has {', '.join(ids)}, not what it is given", hint="name them alike")


def _dtype(inputs: Sequence[Input], recipe: Recipe) -> torch.dtype:
    if recipe.dtype is None:
        return common_dtype(inputs)
    if recipe.dtype not in DTYPES:
        raise UsageError(f"`{recipe.dtype}` is no dtype of an adapter", hint=f"there are {', '.join(DTYPES)}")
    return DTYPES[recipe.dtype]
