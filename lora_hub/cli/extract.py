"""extract: an adapter out of a fine-tuned checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lora_hub.cli.output import json_option, print_data, progress, say, shown, table

if TYPE_CHECKING:
    from lora_hub.checkpoint.extract_report import ExtractReport


@click.command()
@click.argument("finetuned", type=click.Path(file_okay=False))
@click.option("--base", metavar="DIR", required=True, type=click.Path(file_okay=False), help="What it was tuned from.")
@click.option("-o", "--output", metavar="DIR", required=True, type=click.Path(file_okay=False), help="The new adapter.")
@click.option(
    "--rank",
    metavar="N|max:N|energy:P|ratio:X|exact",
    default="max:64",
    show_default=True,
    help="How many singular values each module keeps; `exact` is all that are more than rounding.",
)
@click.option("--dtype", metavar="DTYPE", help="float32, bfloat16, …; by default that of the fine-tuned checkpoint.")
@click.option("--full", metavar="NAME", multiple=True, help="Store this module as a whole, such as lm_head.")
@json_option
def extract(
    finetuned: str, base: str, output: str, rank: str, dtype: str | None, full: tuple[str, ...], as_json: bool
) -> None:
    """Make an adapter out of the checkpoint in the directory FINETUNED and its base.

    Both are directories with config.json and safetensors. Modules that did not change are left alone. Norms, biases and
    embeddings that changed are listed, and stored only with --full.
    """
    from lora_hub.extraction import extract_adapter

    report = extract_adapter(
        finetuned, base, output, rank=rank, dtype=dtype, full=full, progress=None if as_json else progress
    )
    for note in report.notes:
        say(note)
    print_data(report.to_document(), lambda: _as_text(report, output), as_json=as_json)


def _as_text(report: ExtractReport, output: str) -> str:
    modules = [
        (m.path, f"{m.shape[0]} x {m.shape[1]}", m.r, f"{m.change:.2e}", f"{m.kept:.4f}", f"{m.error:.2e}")
        for m in report.modules
    ]
    texts = [table(modules, ("MODULE", "SHAPE", "r", "|D|/|W|", "KEPT", "ERROR"))]
    if report.left_out:
        rows = [(one.name, "" if one.change is None else f"{one.change:.2e}", one.why) for one in report.left_out]
        texts.append(table(rows, ("CHANGED, LEFT OUT", "|D|/|W|", "WHY")))
    if report.full:
        texts.append(f"stored as a whole: {shown(', '.join(report.full))}")
    texts.append(
        f"{shown(output)}: {len(modules)} modules in {report.dtype}, {report.unchanged} tensors unchanged, kept "
        f"{report.kept:.4f} of what changed (least: {report.worst.kept:.4f} in {shown(report.worst.path)})"
    )
    return "\n\n".join(texts)
