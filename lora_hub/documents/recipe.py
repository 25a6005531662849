"""The recipe of a composition: which adapters, by which rule, to which rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeInput:
    """One adapter of the composition.

    Attributes:
        reference: ``org/task[@version]`` or a directory.
        id: What it is called in the recipe.
        weight: What its delta is multiplied with.
    """

    reference: str
    id: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """Other weights for some modules.

    Attributes:
        match: A shell pattern for the whole path of a module, such as ``*.layers.3.*``; no regular expression.
        weights: Weight by the id of the input; an input that is not named keeps its own.
    """

    match: str
    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is composed, and how.

    Attributes:
        inputs: The adapters.
        rule: Name of the rule that makes one delta of several: ``linear``, ``ties``, …
        space: Where a rule that looks at entries acts: ``core``, ``knots`` or ``full``; None is the rule's own.
        parameters: Of the rule: ``density``, ``epsilon``, …; what is left out has the rule's default.
        rank: ``exact``, a number, ``energy:P``, ``max:N`` or ``fit:vllm``.
        weights: ``given``, ``equal`` (1/n each) or ``norm`` (each delta is brought to the mean norm of all first).
        layers: Other weights for some modules; the first entry that matches counts.
        dtype: ``float32``, ``float16``, ``bfloat16``, ``float64``; None is the narrowest that holds all inputs.
        seed: Of the rules that draw at random.
    """

    inputs: tuple[RecipeInput, ...]
    rule: str = "linear"
    space: str | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    rank: str = "exact"
    weights: str = "given"
    layers: tuple[LayerWeights, ...] = ()
    dtype: str | None = None
    seed: int = 0
