"""check: does an adapter fit its base, and will others load it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lora_hub.cli.output import registry_option

if TYPE_CHECKING:
    from lora_hub.checked_sources import Source
    from lora_hub.checking.finding import Report, Severity
    from lora_hub.checking.settings import Settings
    from lora_hub.checking.text import Style

FORMATS = ("text", "json", "junit", "sarif", "github", "markdown")
_SOON = 8  # adapters that are checked before a bar could be read
_COLORS = {3: "red", 2: "yellow", 1: "cyan"}


@click.command()
@click.argument("sources", metavar="[DIR|REF]...", nargs=-1)
@click.option("--base", metavar="MODEL", help="What it is to fit: org/model[@revision], or a directory.")
@click.option("--select", metavar="LH1,…", multiple=True, help="Only these rules: codes, or beginnings of codes.")
@click.option("--ignore", metavar="LH3,…", multiple=True, help="Not these rules; the longer code decides.")
@click.option("--fail-on", type=click.Choice(["error", "warning", "note"]), help="What fails; by default an error.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="By default text.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json; errors are JSON on stderr as well.")
@click.option("--output", "outputs", metavar="FORMAT=FILE", multiple=True, help="Write a file too: sarif=check.sarif.")
@click.option("--replay", is_flag=True, help="Run the golden inputs on the base, too; this needs torch.")
@click.option("--require-base", is_flag=True, help="What cannot be decided about the base is an error.")
@click.option("--sample", is_flag=True, help="Ask the Hub for some of the base's weights, up to 64 requests more.")
@click.option("--lock", "lock", metavar="FILE", help="Check all that this lock file locks.")
@click.option("--all", "prefix", metavar="PREFIX", help="The newest version of each adapter whose name begins so.")
@registry_option
@click.option("--jobs", type=click.IntRange(min=1), help="Processes for many adapters; by default one for each core.")
@click.option("--explain", metavar="CODE", help="Print the page of a rule; `all` lists them.")
def check(
    sources: tuple[str, ...],
    base: str | None,
    select: tuple[str, ...],
    ignore: tuple[str, ...],
    fail_on: str | None,
    form: str | None,
    as_json: bool,
    outputs: tuple[str, ...],
    replay: bool,
    require_base: bool,
    sample: bool,
    lock: str | None,
    prefix: str | None,
    registry: str | None,
    jobs: int | None,
    explain: str | None,
) -> None:
    """Say what is wrong with adapters: alone, on their base, for PEFT and for servers. No weights of a base are read.

    Each is a directory, a pattern of directories ('./adapters/*'), or a reference. Ends with 9 if an error concerns the
    base, with 8 if one does not, else with 0. `[tool.lora-hub.check]` in pyproject.toml says what is not said here.
    """
    from lora_hub import checked_sources, checkup
    from lora_hub.checking.finding import Severity
    from lora_hub.checking.settings import SEVERITIES, Settings, read_settings
    from lora_hub.checking.text import plain
    from lora_hub.errors import UsageError

    if explain is not None:
        click.echo(_page(explain))
        return
    if as_json and form not in {None, "json"}:
        raise UsageError(f"--json and --format {form} contradict each other", hint="leave out one of them")
    given = Settings(
        select=_codes(select),
        ignore=_codes(ignore),
        fail_on=SEVERITIES[fail_on] if fail_on else None,
        base=base,
        requires_base=require_base,
        samples=sample,
    )
    files = _files(outputs)
    settled = checkup.settle(given, read_settings(Path()))
    found = checked_sources.find_sources(sources, lock=lock, prefix=prefix, registry=registry)
    if not found:
        raise UsageError("no adapter is named", hint="name a directory or a reference, or see `lora-hub check --help`")
    named = checkup.check_all(found, settled.base, settings=settled, jobs=jobs or os.cpu_count() or 1)
    reports = list(_bar(_replayed(named, found, settled) if replay else named, len(found)))
    threshold = settled.fail_on or Severity.ERROR
    text = _text("json" if as_json else form or "text", reports, threshold, _styled)
    click.echo(text, nl=not text.endswith("\n"))
    for path, name in files.items():
        _write(path, _text(name, reports, threshold, plain))
    code = max((report.exit_code(threshold) for report in reports), default=0)
    if code:
        raise click.exceptions.Exit(code)


def _codes(words: Iterable[str]) -> tuple[str, ...]:
    return tuple(code for word in words for code in word.split(",") if code.strip())


def _page(code: str) -> str:
    from lora_hub.checking.catalogue import catalogue, rule
    from lora_hub.checking.pages import overview, page
    from lora_hub.checking.run import FAILED

    checks = catalogue()
    if code == "all":
        return overview([FAILED, *(check.rule for check in checks.values())])
    return page(FAILED if code.upper() == FAILED.code else rule(code, checks)).rstrip()


def _bar(reports: Iterable[Report], count: int) -> Iterable[Report]:
    """Show how many are done on stderr, if a person looks at it and it takes a while."""
    if count < _SOON or not sys.stderr.isatty():
        yield from reports
        return
    with click.progressbar(reports, length=count, label="Checking".ljust(34), file=sys.stderr) as bar:
        yield from bar


def _replayed(reports: Iterable[Report], sources: Sequence[Source], settings: Settings) -> Iterable[Report]:
    from lora_hub import replays
    from lora_hub.errors import UsageError

    if settings.base is None:
        raise UsageError("a replay runs the base, and none is named", hint="name it with --base")
    return replays.with_replays(reports, sources, settings.base, settings)


def _files(outputs: Iterable[str]) -> dict[Path, str]:
    """Return the format of each file that is to be written."""
    from lora_hub.errors import UsageError

    files = {}
    for output in outputs:
        name, _, file = output.partition("=")
        if name not in FORMATS or not file or (Path(file).exists() and not Path(file).is_file()):
            raise UsageError(
                f"--output {output!a} is no format and file",
                hint=f"write --output sarif=check.sarif; formats are {', '.join(FORMATS)}",
            )
        files[Path(file)] = name
    return files


def _write(path: Path, text: str) -> None:
    from lora_hub.files import write_files

    write_files(path.parent, {path.name: f"{text.rstrip()}\n".encode(errors="backslashreplace")})


def _text(name: str, reports: Sequence[Report], fail_on: Severity, style: Style) -> str:
    """Return one text of *reports* in the format *name*."""
    from lora_hub.checking.outputs import render
    from lora_hub.checking.text import as_text

    return as_text(reports, style) if name == "text" else render(name, reports, fail_on=fail_on)


def _styled(text: str, severity: Severity | None) -> str:
    return click.style(text, fg="green" if severity is None else _COLORS[severity])
