"""How `compose --search` asks for weights, and how it prints what was found."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lora_hub.cli.output import progress, say, table
from lora_hub.errors import UsageError

if TYPE_CHECKING:
    from lora_hub.documents.recipe import Recipe
    from lora_hub.searching.result import SearchResult

Command = TypeVar("Command", bound=Callable[..., Any])


def search_options(command: Command) -> Command:
    """Add the options of a search to *command*."""
    for option in (
        click.option("--budget", type=click.IntRange(min=1), help="Of a search: how many mixtures it tries; 40."),
        click.option("--base", metavar="DIR|MODEL", help="Of a search: the base model, a directory or one on the Hub."),
        click.option("--search", "examples", metavar="FILE", help="Find the weights on these examples, JSONL."),
    ):
        command = option(command)
    return command


def searched(
    recipe: Recipe,
    *,
    examples: str | None,
    base: str | None,
    budget: int | None,
    is_quiet: bool,
    **options: Any,  # noqa: ANN401
) -> tuple[Recipe, SearchResult | None]:
    """Return *recipe*, and if there are *examples*, with the weights that are best on them, and how they were found."""
    if examples is None:
        if base is not None or budget is not None:
            raise UsageError("--base and --budget belong to a search", hint="add `--search examples.jsonl`")
        return recipe, None
    if base is None:
        raise UsageError("a search needs the base model", hint="add `--base DIR`, or `--base org/model`")
    from lora_hub import weight_search
    from lora_hub.searching.search import BUDGET

    found, result = weight_search.search_recipe(
        recipe, base, examples, budget=budget or BUDGET, progress=_bar(is_quiet=is_quiet), **options
    )
    for remark in result.remarks():
        say(remark)
    return found, result


def _bar(*, is_quiet: bool) -> Callable[[Sequence[int], str], Iterable[Any]]:
    is_shown = not is_quiet and sys.stderr.isatty()
    return progress if is_shown else lambda items, _label: items


def losses(result: SearchResult) -> str:
    """Return what was compared as a table."""
    rows = [
        (
            measured.point,
            f"{measured.search:.4f}",
            "" if measured.holdout is None else f"{measured.holdout:.4f}",
            " ".join(f"{weight:+.3f} {name}" for name, weight in measured.weights.items()),
        )
        for measured in result.losses
    ]
    header = ("MIXTURE", f"LOSS ON {result.examples}", f"ON {result.holdout} HELD OUT", "WEIGHTS")
    return table(rows, header)
