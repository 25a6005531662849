"""compose: one adapter out of several, or one of another rank."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click

from lora_hub.cli.output import json_option, print_data, progress, registry_option, say, shown
from lora_hub.cli.weight_search import losses, search_options, searched
from lora_hub.cli.weights import weighted
from lora_hub.errors import UsageError

if TYPE_CHECKING:
    from lora_hub.composition import Composition
    from lora_hub.documents.recipe import LayerWeights, Recipe

_PARAMETERS = ("density", "epsilon", "gamma", "scale")


@click.command()
@click.argument("refs", metavar="[REF[=W]]...", nargs=-1)
@click.option("-o", "--output", metavar="DIR", type=click.Path(file_okay=False), help="Where the new adapter goes.")
@click.option("-f", "--recipe", metavar="FILE", type=click.Path(dir_okay=False), help="A recipe in TOML.")
@click.option("--method", help="linear (the default), ties, dare, …; `lora-hub plugins` has all.")
@click.option("--space", help="Where the method looks at entries: core, knots or full.")
@click.option("--density", type=float, help="Share of the entries that the method keeps.")
@click.option("--epsilon", type=float, help="Of della: how far its probabilities spread around the density.")
@click.option("--gamma", type=float, help="Of breadcrumbs: share of the largest entries that are dropped.")
@click.option("--scale", type=float, help="Factor of the merged delta; for linear, change the weights.")
@click.option("--set", "others", metavar="NAME=X", multiple=True, help="Another parameter, of a method of a plugin.")
@click.option("--rank", help="exact (the default), N, max:N, energy:P, ratio:X or fit:vllm.")
@click.option("--weights", help="given (the default), equal (1/n), or norm: balanced first.")
@click.option("--layer", "layers", metavar="PATTERN:ID=W", multiple=True, help="Another weight in some modules.")
@click.option("--dtype", help="float32, bfloat16, float16 or float64; by default what holds all inputs.")
@click.option("--seed", type=int, help="Of what draws at random; 0 by default.")
@search_options
@registry_option
@click.option("--allow-other-base", is_flag=True, help="Take adapters of sibling bases as well.")
@click.option("--force", is_flag=True, help="Write into a directory that is not empty.")
@click.option("--dry-run", is_flag=True, help="Compute and report, and write nothing.")
@json_option
def compose(
    refs: tuple[str, ...],
    output: str | None,
    recipe: str | None,
    layers: tuple[str, ...],
    others: tuple[str, ...],
    method: str | None,
    registry: str | None,
    examples: str | None,
    base: str | None,
    budget: int | None,
    allow_other_base: bool,
    force: bool,
    dry_run: bool,
    as_json: bool,
    **options: Any,  # noqa: ANN401 - click's, by the names of the recipe
) -> None:
    """Make one adapter of those that REF names, each times its weight W (1 if there is none, negative to subtract).

    REF is org/task[@version] or a directory (./dir). Neither the base model nor a GPU is needed. With one REF and a
    --rank, it is a resize. With --search, the weights are those of the lowest loss on examples. An adapter is called by
    the last part of its name in --layer, as in '*.layers.3.*:task=0.2'.

    A recipe in a file says the same (`lora-hub schema recipe`); what is named beside it counts instead. The manifest of
    the new adapter has the recipe and the digests of its inputs: `lora-hub info` shows them, `verify --recompute`
    composes it anew.
    """
    from lora_hub import composition

    if output is None and not dry_run:
        raise UsageError("no directory for the result is named", hint="add `-o DIR`, or `--dry-run`")
    if output is not None:
        composition.check_output(output, force=force)
    given = {name: options.pop(name) for name in _PARAMETERS} | dict(map(_parameter, others))
    parameters = {name: value for name, value in given.items() if value is not None}
    changes = {name: value for name, value in options.items() if value is not None}
    if refs:
        changes["inputs"] = composition.recipe_inputs(map(weighted, refs))
    if layers:
        changes["layers"] = tuple(_layers(layers))
    wanted = _changed(recipe, method, parameters, changes)
    are_given = any(weighted(ref)[0] != ref for ref in refs) or any(one.weight != 1 for one in wanted.inputs)
    if examples is not None and are_given:
        raise UsageError("a search finds the weights, and some are given", hint="write each REF without `=W`")
    shared: dict[str, Any] = {"registry": registry, "allow_other_base": allow_other_base}
    wanted, found = searched(wanted, examples=examples, base=base, budget=budget, is_quiet=as_json, **shared)
    measured = found.measured() if found else {}
    made = composition.compose_recipe(wanted, track=_bar(is_quiet=as_json), measured=measured, **shared)
    if output is not None and not dry_run:
        made.save(output, force=force)
    written = None if dry_run else output
    document = _document(made, written) | ({"search": found.to_document()} if found else {})
    tables = [losses(found), ""] if found else []
    print_data(document, lambda: "\n".join([*tables, _as_text(made, written)]), as_json=as_json)
    for note in made.report.notes:
        say(note)


def _changed(path: str | None, method: str | None, parameters: dict[str, float], changes: dict[str, Any]) -> Recipe:
    """Return the recipe in the file at *path*, if there is one, with what was named beside it.

    Parameters and space belong to a method: of another one, those of the file are not.
    """
    from lora_hub import composition
    from lora_hub.documents.recipe import Recipe

    recipe = Recipe(inputs=()) if path is None else composition.read_recipe(path)
    if not recipe.inputs and "inputs" not in changes:
        raise UsageError("no adapter is named", hint="name one as REF or REF=W, or a recipe with `-f FILE`")
    if method is not None and method != recipe.rule:
        recipe = dataclasses.replace(recipe, rule=method, parameters={}, space=None)
    return dataclasses.replace(recipe, parameters={**recipe.parameters, **parameters}, **changes)


def _parameter(text: str) -> tuple[str, float]:
    name, value = weighted(text)
    if name == text:
        raise UsageError(f"`{text}` sets no parameter", hint="write it as in `--set density=0.5`")
    return name, value


def _layers(texts: Iterable[str]) -> Iterable[LayerWeights]:
    """Yield what each pattern says, in the order in which the patterns are first named."""
    from lora_hub.documents.recipe import LayerWeights

    found: dict[str, dict[str, float]] = {}
    for text in texts:
        pattern, colon, rest = text.rpartition(":")
        name, weight = weighted(rest)
        if not (pattern and colon and name != rest):
            raise UsageError(f"`{text}` is no weight of a layer", hint="write it as in '*.layers.3.*:task=0.5'")
        found.setdefault(pattern, {})[name] = weight
    return (LayerWeights(match=pattern, weights=weights) for pattern, weights in found.items())


def _bar(*, is_quiet: bool) -> Any:  # noqa: ANN401 - a Track, which only torch's side can import
    def track(paths: Sequence[str]) -> Iterable[str]:
        return iter(paths) if is_quiet or not sys.stderr.isatty() else progress(paths, "composing")

    return track


def _document(made: Composition, output: str | None) -> dict[str, Any]:
    inputs = [
        {"id": one.id, "reference": one.reference, "digest": adapter.digest, "weight": one.weight}
        for one, adapter in zip(made.recipe.inputs, made.inputs, strict=True)
    ]
    return {
        "output": output,
        "digest": made.adapter.digest,
        "method": made.recipe.rule,
        "rank": made.recipe.rank,
        "dtype": made.adapter.manifest.lora.dtype,
        "inputs": inputs,
        "report": made.report.to_json(),
    }


def _as_text(made: Composition, output: str | None) -> str:
    report, manifest = made.report, made.adapter.manifest
    parts = " ".join(f"{one.weight:+g} {one.id}" for one in made.recipe.inputs)
    lines = [
        f"{made.recipe.rule}: {parts}" + (f", weights {way}" if (way := made.recipe.weights) != "given" else ""),
        f"{len(report.modules)} modules, rank {report.rank_in} -> {report.rank_out}, {manifest.lora.dtype}",
        f"retained energy {report.kept:.6f}, worst module {report.worst.path} {report.worst.kept:.6f}",
        f"{output}  {made.adapter.digest}" if output else "nothing was written (--dry-run)",
    ]
    return "\n".join(map(shown, lines))
