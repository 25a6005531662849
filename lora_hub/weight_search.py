"""Find the weights of a mixture of adapters on a few examples: where adapters, base, examples and search meet."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lora_hub.api import load
from lora_hub.composition import resolved
from lora_hub.documents.fields import canonical_json, sha256
from lora_hub.documents.recipe import Recipe
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import UsageError
from lora_hub.extras import needs_torch
from lora_hub.reference import AdapterRef
from lora_hub.registry.locate import RegistryLike
from lora_hub.searching.examples import Completion, Examples, Labelled, read_examples, split
from lora_hub.searching.result import SearchResult
from lora_hub.searching.search import (
    BUDGET,
    PENALTY,
    Objective,
    Progress,
    check_search,
    no_progress,
    search_by_objective,
)

if TYPE_CHECKING:
    from torch import nn

    from lora_hub.searching.candidates import Mixture
    from lora_hub.searching.tokens import Tokenizer

Source = str | os.PathLike[str] | AdapterRef | VerifiedAdapter


def search_weights(
    model: nn.Module,
    tokenizer: Tokenizer,
    adapters: Mapping[str, Source],
    examples: str | os.PathLike[str] | Examples,
    *,
    budget: int = BUDGET,
    seed: int = 0,
    penalty: float = PENALTY,
    holdout: float | None = None,
    allow_other_base: bool = False,
    registry: RegistryLike = None,
    progress: Progress = no_progress,
) -> SearchResult:
    """Return the weights with which the sum of the deltas of *adapters* has the lowest loss on *examples*.

    LoraHub (arXiv 2307.13269), over the exact sum ``W x + sum of w_i * (alpha_i / r_i) B_i A_i x``. The candidates are
    attached to *model* once and taken off again; what it has otherwise is off meanwhile. `lora_hub.compose` makes one
    adapter with these weights.

    Args:
        model: A causal language model or a sequence classifier of transformers, or one that is called like them.
        tokenizer: Its tokenizer.
        adapters: What `apply_adapter` takes, by the name that the result calls it.
        examples: A JSONL file, or what `parse_examples` returned.
        budget: Steps of the optimiser; equal weights, none, and each adapter alone are tried before.
        seed: Which examples are held out, and what the optimiser draws. Same seed, same result, on one machine.
        penalty: Factor of the mean absolute weight in what is minimised; 0.05 in the paper.
        holdout: The share of examples that the search does not see; by default 0.2 of 10 or more, else 0.
        allow_other_base: Take adapters whose base is of another model type.
        registry: A URL or a directory; by default ``LORA_HUB_REGISTRY``, else the Hub.
        progress: ``progress(range(n), label)`` yields from the range and shows how far it is.

    Raises:
        DocumentError: A line of the file is no example; the line is named.
        UsageError: A label or a length that this model does not have.
        CompatibilityError: An adapter does not fit, heads differ, the examples are for another kind of model, or no
            mixture has a finite loss.
        MissingExtraError: nevergrad is not installed (``pip install 'lora-hub[search]'``).
    """
    with needs_torch("searching weights"):
        from lora_hub.searching.candidates import attached
        from lora_hub.searching.loss import loss_on
    all_of_them = read_examples(Path(examples)) if isinstance(examples, str | os.PathLike) else examples
    order = random.Random(seed).sample(range(len(all_of_them)), len(all_of_them))  # noqa: S311 - an order, no secret
    kept, held = split(all_of_them, order, holdout=holdout)
    on_kept, on_held = loss_on(model, tokenizer, kept), loss_on(model, tokenizer, held) if held else None
    loaded = {name: _load(source, registry) for name, source in adapters.items()}
    with attached(model, loaded, allow_other_base=allow_other_base) as mixture:
        found = search_by_objective(
            _objective(mixture, on_kept),
            tuple(loaded),
            budget=budget,
            seed=seed,
            penalty=penalty,
            holdout=None if on_held is None else _objective(mixture, on_held),
            progress=progress,
        )
    return dataclasses.replace(found, examples=len(kept), holdout=len(held), digest=_digest(all_of_them))


def _objective(mixture: Mixture, loss: Callable[[], float]) -> Objective:
    """Return *loss*, of the model as it is, as one of the weights that it has then."""

    def objective(weights: Mapping[str, float]) -> float:
        with mixture(weights):
            return loss()

    return objective


def search_on_base(
    base: str,
    adapters: Mapping[str, Source],
    examples: str | os.PathLike[str],
    *,
    budget: int = BUDGET,
    seed: int = 0,
    penalty: float = PENALTY,
    holdout: float | None = None,
    allow_other_base: bool = False,
    registry: RegistryLike = None,
    progress: Progress = no_progress,
) -> SearchResult:
    """Return what `search_weights` finds on the model *base*: a directory, or a repository on the Hub.

    It is loaded by transformers from safetensors; code that comes with it is never run. What the examples are decides
    whether it is loaded as a causal language model or as a sequence classifier.

    Raises:
        NotFoundError: There is no such base, or no such file.
        CompatibilityError: The base is of another kind, or lacks a head that no adapter brings.
    """
    with needs_torch("searching weights"):
        from lora_hub.searching.base import load_base
        from lora_hub.searching.candidates import heads_of
    # Everything that can be wrong with what is small comes before the base is loaded.
    check_search(tuple(adapters), budget=budget, seed=seed)
    read = read_examples(Path(examples))
    loaded = {name: _load(source, registry) for name, source in adapters.items()}
    is_classifier = isinstance(read[0], Labelled)
    model, tokenizer = load_base(base, is_classifier=is_classifier, heads=heads_of(loaded))
    return search_weights(
        model,
        tokenizer,
        loaded,
        read,
        budget=budget,
        seed=seed,
        penalty=penalty,
        holdout=holdout,
        allow_other_base=allow_other_base,
        progress=progress,
    )


def search_recipe(
    recipe: Recipe,
    base: str,
    examples: str | os.PathLike[str],
    *,
    budget: int = BUDGET,
    allow_other_base: bool = False,
    registry: RegistryLike = None,
    progress: Progress = no_progress,
) -> tuple[Recipe, SearchResult]:
    """Return *recipe* with the weights that `search_on_base` finds for its inputs, and how they were found.

    Raises:
        UsageError: Its rule is not ``linear``, it says something of weights already, or `compose_recipe` would refuse
            it in the end.
    """
    if recipe.rule != "linear" or recipe.weights != "given" or recipe.layers:
        raise UsageError(
            "a search finds the weights of an exact sum: `linear`, with one weight for all modules",
            hint="leave out the method and what is said of weights",
        )
    adapters = {one.id: _load(one.reference, registry) for one in recipe.inputs}
    _check_composes(adapters, recipe, allow_other_base=allow_other_base)
    found = search_on_base(
        base,
        adapters,
        examples,
        budget=budget,
        seed=recipe.seed,
        allow_other_base=allow_other_base,
        progress=progress,
    )
    inputs = tuple(dataclasses.replace(one, weight=found.weights[one.id]) for one in recipe.inputs)
    return dataclasses.replace(recipe, inputs=inputs), found


def _check_composes(adapters: Mapping[str, VerifiedAdapter], recipe: Recipe, *, allow_other_base: bool) -> None:
    """Raise what composing would raise, since nobody wants to hear it after a search."""
    with needs_torch("searching weights"):
        from lora_hub.composing.inputs import Input
        from lora_hub.composing.plan import plan_of
    inputs = [Input(name=name, adapter=adapter) for name, adapter in adapters.items()]
    plan_of(inputs, resolved(recipe), allow_other_base=allow_other_base)


def _load(source: Source, registry: RegistryLike) -> VerifiedAdapter:
    return source if isinstance(source, VerifiedAdapter) else load(source, registry=registry)


def _digest(examples: Examples) -> str:
    """Return a digest of what the examples say, not of how their file is laid out."""
    said = [[e.prompt, e.completion] if isinstance(e, Completion) else [e.text, e.label] for e in examples]
    return sha256(canonical_json({"examples": said}))
