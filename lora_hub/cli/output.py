"""How commands print: data to stdout as text or JSON, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import click

registry_option = click.option("--registry", metavar="URL", help="A directory; by default $LORA_HUB_REGISTRY.")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; errors are JSON on stderr as well.")


def print_data(document: object, text: Callable[[], str], *, as_json: bool) -> None:
    """Print *document* as JSON, or what *text* makes of it."""
    click.echo(json.dumps(document, indent=2) if as_json else text())


def progress(items: Sequence[Any], label: str) -> Iterator[Any]:
    """Yield *items* under a progress bar on stderr; without a terminal only the label is shown."""
    with click.progressbar(items, label=label.ljust(34), file=sys.stderr) as bar:
        yield from bar


def table(rows: Sequence[Sequence[object]], header: Sequence[str]) -> str:
    """Return *rows* under *header* in aligned columns."""
    cells = [list(header), *([shown(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def shown(value: object) -> str:
    """Return *value* without anything that would move the cursor of a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(value))


def size(count: int) -> str:
    """Return *count* bytes for people."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:  # noqa: PLR2004
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
