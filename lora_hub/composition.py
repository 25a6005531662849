"""Compose adapters that lie in directories or registries; what comes out can be saved, published or applied."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_hub import reference as references
from lora_hub.adapter_directory import write_adapter
from lora_hub.api import load
from lora_hub.documents.fields import Bytes
from lora_hub.documents.recipe import LayerWeights, Recipe, RecipeInput
from lora_hub.documents.verified_adapter import VerifiedAdapter, verify
from lora_hub.errors import UsageError
from lora_hub.extras import needs_torch
from lora_hub.files import machine_errors
from lora_hub.reference import AdapterRef
from lora_hub.registry.locate import RegistryLike

if TYPE_CHECKING:
    from lora_hub.composing.compose import Track
    from lora_hub.composing.report import Report

Source = str | os.PathLike[str] | AdapterRef
Weighted = Mapping[Source, float] | Iterable[Source | tuple[Source, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Composition:
    """An adapter that was made of others.

    Attributes:
        recipe: How.
        inputs: Of what: the proven adapters, in the order of the recipe.
        adapter: What came out; `lora_hub.apply_adapter` takes it.
        files: Its three files by name.
        report: Ranks, retained energy and norm of every module.
    """

    recipe: Recipe
    inputs: tuple[VerifiedAdapter, ...]
    adapter: VerifiedAdapter
    files: Mapping[str, Bytes]
    report: Report

    def save(self, directory: str | os.PathLike[str], *, force: bool = False) -> Path:
        """Write the adapter into *directory* and return it; what lies there stays, unless *force* says otherwise.

        Raises:
            UsageError: The directory is not empty.
            MachineError: Disk full or no permission.
        """
        target = check_output(directory, force=force)
        write_adapter(target, self.files)
        return target


def compose(
    sources: Weighted,
    *,
    method: str = "linear",
    space: str | None = None,
    rank: str | int = "exact",
    weights: str = "given",
    layers: Sequence[LayerWeights] = (),
    dtype: str | None = None,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    registry: RegistryLike = None,
    allow_other_base: bool = False,
    **parameters: float,
) -> Composition:
    """Return one adapter made of several: ``compose({"org/a@1": 0.7, "./b": 0.3}, method="ties", density=0.5)``.

    The base model is not needed. With one source and a *rank*, it is a resize.

    Args:
        sources: References or directories with their weights; or several of them, of weight 1 or as pairs.
        method: The rule: ``linear``, ``ties``, ``dare``, …; plugins may add others.
        space: Where a rule that looks at entries acts: ``core``, ``knots`` or ``full``.
        rank: ``exact``, a number, ``max:N``, ``energy:P``, ``ratio:X`` or ``fit:vllm``.
        weights: ``given``, ``equal`` (1/n), or ``norm``: each adapter is first brought to the mean norm of all.
        layers: Other weights for modules whose path matches; ids are the last part of each source's name.
        dtype: Of the result; by default the narrowest that holds all inputs.
        seed: Of the rules that draw at random.
        output: A directory to save it in.
        registry: Where references are looked up.
        allow_other_base: Whether the adapters may be of sibling bases.
        parameters: Of the rule: ``density``, ``scale``, ….

    Raises:
        UsageError: There is no such rule, space, rank or parameter; or *output* is not empty.
        CompatibilityError: The adapters are of different bases.
        NotFoundError, IntegrityError, UntrustedError, PolicyError, RegistryError: As in `pull`.
    """
    if output is not None:
        check_output(output)
    recipe = Recipe(
        inputs=recipe_inputs(_pairs(sources)),
        rule=method,
        space=space,
        parameters=parameters,
        rank=str(rank),
        weights=weights,
        layers=tuple(layers),
        dtype=dtype,
        seed=seed,
    )
    made = compose_recipe(recipe, registry=registry, allow_other_base=allow_other_base)
    if output is not None:
        made.save(output)
    return made


def compose_recipe(
    recipe: Recipe, *, registry: RegistryLike = None, allow_other_base: bool = False, track: Track = iter
) -> Composition:
    """Return what *recipe* makes of its adapters, each proven first; `compose` says what it raises."""
    with needs_torch("composing adapters"):
        from lora_hub.composing import compose as composing
        from lora_hub.composing.inputs import Input
    adapters = tuple(load(references.parse(one.reference), registry=registry) for one in recipe.inputs)
    inputs = [Input(name=one.id, adapter=adapter) for one, adapter in zip(recipe.inputs, adapters, strict=True)]
    composed = composing.compose(inputs, recipe, allow_other_base=allow_other_base, track=track)
    adapter = verify(composed.files, source=" + ".join(one.reference for one in recipe.inputs))
    return Composition(recipe=recipe, inputs=adapters, adapter=adapter, files=composed.files, report=composed.report)


def recipe_inputs(pairs: Iterable[tuple[Source, float]]) -> tuple[RecipeInput, ...]:
    """Return the inputs of a recipe for sources and weights: each called by the last part of its name.

    Of several that would be called alike, the second is called ``name-2``.
    """
    inputs: list[RecipeInput] = []
    seen: Counter[str] = Counter()
    for source, weight in pairs:
        if not math.isfinite(weight):
            raise UsageError(f"the weight of `{source}` is {weight}", hint="write a finite number")
        named = references.parse(source)
        name = (named.resolve().name or "root") if isinstance(named, Path) else named.task
        seen[name] += 1
        own = name if seen[name] == 1 else f"{name}-{seen[name]}"
        inputs.append(RecipeInput(reference=_written(named), id=own, weight=float(weight)))
    return tuple(inputs)


def check_output(directory: str | os.PathLike[str], *, force: bool = False) -> Path:
    """Return *directory* as a path, if an adapter may be written there.

    Raises:
        UsageError: It is not empty, and *force* does not say that it may be overwritten.
    """
    target = Path(directory)
    with machine_errors():
        if not force and target.is_dir() and any(target.iterdir()):
            raise UsageError(f"`{target}` is not empty", hint="name another directory, or overwrite it with `--force`")
    return target


def _pairs(sources: Weighted) -> Iterable[tuple[Source, float]]:
    if isinstance(sources, str | os.PathLike | AdapterRef):
        return [(sources, 1.0)]
    if isinstance(sources, Mapping):
        return list(sources.items())
    return [source if isinstance(source, tuple) else (source, 1.0) for source in sources]


def _written(named: Path | AdapterRef) -> str:
    """Return how a recipe spells *named*, so that it is read as the same again."""
    text = str(named)
    return f"./{text}" if isinstance(named, Path) and not text.startswith((".", "/")) else text
