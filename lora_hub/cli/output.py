"""How commands print: data to stdout as text or JSON, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from lora_hub.registry.fetch import Progress

_SOON = 1024 * 1024  # bytes that are there before a bar could be read

registry_option = click.option(
    "--registry", metavar="URL", help="hf://, a directory or a URL; by default $LORA_HUB_REGISTRY, else hf://."
)
key_option = click.option(
    "--key", metavar="FILE", help="The private key; by default $LORA_HUB_KEY, else the one of `key generate ORG`."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON; errors are JSON on stderr as well.")


def print_data(document: object, text: Callable[[], str], *, as_json: bool) -> None:
    """Print *document* as JSON, or what *text* makes of it."""
    click.echo(json.dumps(document, indent=2) if as_json else text())


def progress(items: Sequence[Any], label: str) -> Iterator[Any]:
    """Yield *items* under a progress bar on stderr; without a terminal only the label is shown."""
    with click.progressbar(items, label=label.ljust(34), file=sys.stderr) as bar:
        yield from bar


def byte_progress(*, is_quiet: bool) -> Progress:
    """Return a progress that shows a bar for large files on stderr, if a person looks at it."""
    is_shown = not is_quiet and sys.stderr.isatty()

    @contextlib.contextmanager
    def bar(label: str, total: int) -> Iterator[Callable[[int], object]]:
        if not is_shown or total < _SOON:
            yield lambda _count: None
            return
        with click.progressbar(length=total, label=label.ljust(34), file=sys.stderr) as shown_bar:
            yield shown_bar.update

    return bar


def is_at_terminal() -> bool:
    """Whether there is a person who could answer; a standard stream may be closed."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))


def ask_passphrase(what: str) -> str | None:
    """Return the passphrase of a key: what the environment says, or else what a person at a terminal types."""
    from lora_hub.signing.keys import passphrase_from_environment

    known = passphrase_from_environment(what)
    if known is not None or not is_at_terminal():
        return known
    typed: str = click.prompt(f"Passphrase of {what}", hide_input=True, err=True)
    return typed


def say(text: str) -> None:
    """Print a remark to stderr, where it does not get into the way of data."""
    click.echo(f"{click.style('note:', fg='cyan')} {shown(text)}", err=True)


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
