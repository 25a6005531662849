"""inspect: what adapters change, and how several of them get on with each other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lora_hub.cli.output import json_option, progress, registry_option, say, shown, table

if TYPE_CHECKING:
    from lora_hub.inspecting.findings import Inspection

MAX_PAIRS = 28  # lines
MAX_PROJECTIONS = 28


@click.command()
@click.argument("sources", metavar="REF|DIR...", nargs=-1, required=True)
@click.option("--html", metavar="FILE", type=click.Path(dir_okay=False), help="Write a page with plots, one file.")
@click.option("--allow-other-base", is_flag=True, help="Compare adapters of siblings of one base too.")
@registry_option
@json_option
def inspect(
    sources: tuple[str, ...], html: str | None, allow_other_base: bool, registry: str | None, as_json: bool
) -> None:
    """Show norms, spectra and ranks of each adapter, and overlap, interference and conflict of every two.

    Each is a reference or a directory. From the factors alone: no base model is needed.
    """
    from lora_hub import inspection

    path = None if html is None else _page_path(html)
    found = inspection.inspect_adapters(
        *sources, registry=registry, allow_other_base=allow_other_base, progress=_bar(is_quiet=as_json)
    )
    if path is not None:
        _write(path, inspection.to_html(found))
    click.echo(inspection.to_json(found).decode() if as_json else _as_text(found), nl=not as_json)


def _page_path(html: str) -> Path:
    """A page replaces a page; a device or a pipe would be replaced just the same, so it is refused."""
    from lora_hub.errors import UsageError

    path = Path(html)
    if path.exists() and not path.is_file():
        raise UsageError(f"`{path}` is not a regular file", hint="name a file for the page, such as page.html")
    return path


def _write(path: Path, page: bytes) -> None:
    from lora_hub.files import write_files

    write_files(path.parent, {path.name: page})
    say(f"wrote {path}, {len(page):,} bytes")


def _bar(*, is_quiet: bool) -> Callable[[Sequence[Any]], Iterable[Any]]:
    """Return a progress over modules, on stderr if a person looks at it."""

    def bar(modules: Sequence[Any]) -> Iterator[Any]:
        return progress(modules, "Inspecting modules")

    return iter if is_quiet or not sys.stderr.isatty() else bar


def _as_text(inspection: Inspection) -> str:
    """Return a table for each adapter, one of every two, and what stands out."""
    from lora_hub.inspecting import tables
    from lora_hub.inspecting.remarks import remarks

    blocks = []
    for adapter in inspection.adapters:
        header, rows = tables.projections(adapter)
        about = f"r {adapter.r}, alpha {adapter.alpha:g}, {adapter.dtype}, {adapter.parameters:,} parameters"
        text = table([*rows[: MAX_PROJECTIONS - 1], rows[-1]] if len(rows) > MAX_PROJECTIONS else rows, header)
        blocks.append(f"{click.style(shown(adapter.name), bold=True)}  {about}\n{text}")
        blocks += _left_out(len(rows), MAX_PROJECTIONS, "projections")
    if inspection.pairs:
        header, rows = tables.pairs(inspection, MAX_PAIRS)
        blocks.append(table(rows, header))
        blocks += _left_out(len(inspection.pairs), MAX_PAIRS, "pairs")
    blocks += ["\n".join(f"- {shown(remark)}" for remark in found)] if (found := remarks(inspection)) else []
    return "\n\n".join(blocks)


def _left_out(count: int, limit: int, what: str) -> list[str]:
    return [f"{count - limit} more {what} are left out; --json has all"] if count > limit else []
