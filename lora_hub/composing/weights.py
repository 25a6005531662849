"""How much each adapter counts in each module."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lora_hub.composing.factors import norm
from lora_hub.composing.inputs import Input
from lora_hub.documents.fields import printable
from lora_hub.documents.recipe import MAX_LAYERS, MAX_PATTERN, MAX_WEIGHT, WEIGHTS, LayerWeights, Recipe
from lora_hub.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weights of the adapters, by their id in the recipe, and the factors that bring their norms together."""

    own: Mapping[str, float]
    balance: Mapping[str, float]
    layers: Sequence[LayerWeights] = ()

    def of(self, path: str) -> tuple[float, ...]:
        """Return the weight of each adapter, in the order of the recipe, in the module at *path*."""
        named = next((layer.weights for layer in self.layers if layer.covers(path)), {})
        return tuple(named.get(one, weight) * self.balance[one] for one, weight in self.own.items())


def weights_of(inputs: Sequence[Input], recipe: Recipe) -> Weights:
    """Return the weights that *recipe* gives to *inputs*, which are its adapters in its order.

    Raises:
        UsageError: A weight is no number or too large, a layer names no module or no adapter, or `equal` weights were
            asked for beside others.
    """
    own = {one.id: one.weight for one in recipe.inputs}
    if recipe.weights not in WEIGHTS:
        raise UsageError(f"`{recipe.weights}` is no way to weigh", hint=f"there are {', '.join(WEIGHTS)}")
    if recipe.weights == "equal":
        if set(own.values()) != {1.0}:
            raise UsageError("equal weights and other weights contradict each other", hint="leave out one of them")
        own = dict.fromkeys(own, 1 / len(own))
    _check(own)
    _check_layers(recipe.layers, own, {path for one in inputs for path in one.modules})
    balance = _balance(inputs) if recipe.weights == "norm" else [1.0] * len(inputs)
    return Weights(own=own, balance=dict(zip(own, balance, strict=True)), layers=recipe.layers)


def _balance(inputs: Sequence[Input]) -> list[float]:
    """Return what brings each delta, over all of its modules, to the mean norm of those that are not zero."""
    norms = [math.hypot(*(norm(one.factors(module)) for module in one.modules.values())) for one in inputs]
    mean = sum(norms) / max(1, sum(found > 0 for found in norms))
    return [mean / found if found > 0 else 1.0 for found in norms]


def _check(weights: Mapping[str, float]) -> None:
    for one, weight in weights.items():
        if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
            raise UsageError(f"the weight of `{one}` is {weight:g}", hint=f"at most {MAX_WEIGHT:g} either way")


def _check_layers(layers: Sequence[LayerWeights], own: Mapping[str, float], paths: Iterable[str]) -> None:
    if len(layers) > MAX_LAYERS:
        raise UsageError(f"there are {len(layers)} entries of layers", hint=f"at most {MAX_LAYERS} are read")
    for layer in layers:
        unknown = sorted(layer.weights.keys() - own.keys())
        if unknown:
            raise UsageError(
                f"the weights of {printable(layer.match)} name `{unknown[0]}`, which is no adapter of the composition",
                hint=f"there are {', '.join(own)}",
            )
        _check(layer.weights)
        if len(layer.match) > MAX_PATTERN or not any(map(layer.covers, paths)):
            raise UsageError(
                f"no adapted module has a path like {printable(layer.match)}",
                hint="it must match the whole path, as `*.layers.3.*` does; `lora-hub inspect` lists them",
            )
