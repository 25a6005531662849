"""merge: adapters into a full checkpoint."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from lora_hub.cli.output import byte_progress, json_option, print_data, registry_option, say, shown, size, table
from lora_hub.cli.weights import weighted

if TYPE_CHECKING:
    from lora_hub.checkpoint.provenance import Merged
    from lora_hub.merging import Planned

_WORST = 5  # modules that are shown


@click.command()
@click.argument("base")
@click.argument("refs", metavar="REF[=W]...", nargs=-1, required=True)
@click.option("--output", "-o", metavar="DIR", required=True, type=click.Path(file_okay=False), help="A new directory.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16"]),
    help="Of all floating tensors; by default each keeps its own.",
)
@click.option("--resume", is_flag=True, help="Go on with the same merge, which was cut off in DIR.")
@click.option("--dry-run", is_flag=True, help="Print what would be written, and write nothing.")
@click.option("--allow-other-base", is_flag=True, help="Merge although an adapter was made for a sibling of BASE.")
@registry_option
@json_option
def merge(
    base: str,
    refs: tuple[str, ...],
    output: str,
    dtype: str | None,
    resume: bool,
    dry_run: bool,
    allow_other_base: bool,
    registry: str | None,
    as_json: bool,
) -> None:
    """Write a full checkpoint: BASE plus each REF times its weight W (1 if left out), in memory that does not grow.

    BASE is a directory (./model) or a model on the Hub (org/model[@revision]) in safetensors. REF is org/task[@version]
    or a directory. What no adapter touches is copied byte for byte; config and tokenizer come along.
    """
    from lora_hub import merging

    adapters = _weights(refs)
    if dry_run:
        planned = merging.plan_checkpoint(
            base, adapters, output, dtype=dtype, allow_other_base=allow_other_base, registry=registry
        )
        _say_all(planned.notes)
        print_data(dataclasses.asdict(planned), lambda: _plan(planned), as_json=as_json)
        return
    merged = merging.merge_checkpoint(
        base,
        adapters,
        output,
        dtype=dtype,
        resume=resume,
        allow_other_base=allow_other_base,
        registry=registry,
        progress=byte_progress(is_quiet=as_json),
    )
    _say_all(merged.notes)
    print_data(_document(merged), lambda: _report(merged), as_json=as_json)


def _weights(refs: tuple[str, ...]) -> dict[str, float]:
    """Return the weight of each REF by its name."""
    from lora_hub.errors import UsageError

    weights: dict[str, float] = {}
    for ref in refs:
        name, weight = weighted(ref)
        if name in weights:
            raise UsageError(f"`{name}` is named twice", hint="name it once, with the sum of the weights")
        weights[name] = weight
    return weights


def _say_all(notes: tuple[str, ...]) -> None:
    for note in notes:
        say(note)


def _plan(planned: Planned) -> str:
    rows = [(shard.name, size(shard.size), len(shard.touched)) for shard in planned.shards]
    touched = sum(len(shard.touched) for shard in planned.shards)
    total = f"{size(planned.size)} would be written, {touched} tensors changed; {size(planned.free)} are free"
    return f"{table(rows, ('SHARD', 'SIZE', 'CHANGED TENSORS'))}\n{total}"


def _document(merged: Merged) -> dict[str, Any]:
    return dataclasses.asdict(merged) | {"output": str(merged.output)}


def _report(merged: Merged) -> str:
    worst = sorted(merged.modules.items(), key=lambda item: (-item[1].error, item[0]))[:_WORST]
    rows = [(path, f"{one.gain:.4f}", f"{one.error:.4f}") for path, one in worst]
    modules = f"{table(rows, ('LEAST EXACT MODULES', 'GAIN', 'ERROR'))}\n" if rows else ""
    return (
        f"{modules}{len(merged.modules)} modules changed, gain {merged.gain:.4f}, error {merged.error:.4f}\n"
        f"{shown(merged.output)}  {size(merged.size)}  {merged.recipe}"
    )
