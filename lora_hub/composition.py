"""Compose adapters that lie in directories or registries; what comes out can be saved, published or applied."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from lora_hub import reference as references
from lora_hub.adapter_directory import write_adapter
from lora_hub.api import load, load_published
from lora_hub.documents.fields import Bytes
from lora_hub.documents.lineage import LineageInput
from lora_hub.documents.recipe import MAX_RECIPE, LayerWeights, Recipe, RecipeInput, default_id
from lora_hub.documents.verified_adapter import VerifiedAdapter, verify
from lora_hub.errors import DocumentError, UsageError
from lora_hub.extras import needs_torch
from lora_hub.files import machine_errors, read_file
from lora_hub.plugin_manager import plugins
from lora_hub.reference import AdapterRef
from lora_hub.registry.locate import RegistryLike

if TYPE_CHECKING:
    from lora_hub.composing.compose import Track
    from lora_hub.composing.report import Report

Source = str | os.PathLike[str] | AdapterRef
_DIST = "lora-hub"

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
    recipe: Recipe,
    *,
    registry: RegistryLike = None,
    allow_other_base: bool = False,
    track: Track = iter,
    measured: Mapping[str, float | str] = MappingProxyType({}),
) -> Composition:
    """Return what *recipe* makes of its adapters, each proven first; `compose` says what it raises.

    The manifest of what comes out has the lineage: the inputs by name, digest and signers, the resolved recipe, and
    what was *measured* of it, such as losses.
    """
    recipe = resolved(recipe)
    with needs_torch("composing adapters"):
        from lora_hub.composing import compose as composing
        from lora_hub.composing.inputs import Input
        from lora_hub.composing.lineage import files_with_lineage
        from lora_hub.composing.plan import plan_of
    loaded = [_load(one, registry) for one in recipe.inputs]
    adapters = tuple(adapter for adapter, _ in loaded)
    inputs = [Input(name=one.id, adapter=adapter) for one, adapter in zip(recipe.inputs, adapters, strict=True)]
    recipe = _recordable(recipe, lambda: plan_of(inputs, recipe, allow_other_base=allow_other_base))
    composed = composing.compose(inputs, recipe, allow_other_base=allow_other_base, track=track)
    origins, tool = [origin for _, origin in loaded], f"lora-hub {version(_DIST)}"
    files = files_with_lineage(composed, recipe, origins, tool=tool, measured=measured)
    adapter = verify(files, source=" + ".join(one.reference for one in recipe.inputs))
    return Composition(recipe=recipe, inputs=adapters, adapter=adapter, files=files, report=composed.report)


def resolved(recipe: Recipe) -> Recipe:
    """Return *recipe* with what its rule says where it names no parameters and no space.

    Raises:
        UsageError: There is no such rule, space or parameter.
    """
    rule = plugins().rule(recipe.rule)
    space = rule.space(recipe.space)
    # A weighted sum is the same in any space.
    return replace(recipe, parameters=rule.settings(recipe.parameters), space=None if rule.is_linear else space)


def _recordable(recipe: Recipe, plan: Callable[[], object]) -> Recipe:
    """Return *recipe* as its lineage will be read; of one that says what no file could, *plan* often knows more."""
    try:
        return Recipe.from_json(recipe.to_json())
    except DocumentError as error:
        plan()
        raise UsageError(error.message, hint=str(error.hint)) from error


def read_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Return the recipe in the file at *path*; its relative directories are seen from where the file lies.

    Raises:
        NotFoundError: There is no such file.
        DocumentError: It is no recipe; the path of the offending value is in ``.context``.
    """
    place = Path(path)
    recipe = Recipe.parse(bytes(read_file(place, limit=MAX_RECIPE)))
    return replace(recipe, inputs=tuple(replace(one, reference=_seen_from(place, one)) for one in recipe.inputs))


def _seen_from(place: Path, one: RecipeInput) -> str:
    named = references.parse(one.reference)
    return str(place.absolute().parent / named) if isinstance(named, Path) else one.reference


def _load(one: RecipeInput, registry: RegistryLike) -> tuple[VerifiedAdapter, LineageInput]:
    """Return the proven adapter of *one*, and what its lineage is to say of it."""
    named = references.parse(one.reference)
    if isinstance(named, Path):
        adapter = load(named)
        return adapter, LineageInput(id=one.id, weight=one.weight, digest=adapter.digest, signers=())
    pulled = load_published(named, registry=registry)
    exact, adapter = pulled.reference, pulled.adapter
    origin = LineageInput(
        id=one.id,
        weight=one.weight,
        digest=adapter.digest,
        signers=tuple(str(signer) for signer in adapter.signers),
        name=exact.name,
        version=str(exact.version) if exact.version else None,
        commit=None if exact.version else exact.commit or pulled.commit,
    )
    return adapter, origin


def recipe_inputs(pairs: Iterable[tuple[Source, float]]) -> tuple[RecipeInput, ...]:
    """Return the inputs of a recipe for sources and weights: each called by the last part of its name.

    Of several that would be called alike, the second is called ``name-2``.
    """
    inputs: dict[str, RecipeInput] = {}
    for source, weight in pairs:
        if not math.isfinite(weight):
            raise UsageError(f"the weight of `{source}` is {weight}", hint="write a finite number")
        reference = _written(references.parse(source))
        name = default_id(reference, inputs)
        inputs[name] = RecipeInput(reference=reference, id=name, weight=float(weight))
    return tuple(inputs.values())


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
