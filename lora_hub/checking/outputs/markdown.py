"""Reports as a table in Markdown: for the summary of a job, or a comment on a pull request."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lora_hub.checking.finding import Report, Severity
from lora_hub.checking.outputs.words import amounts, counts, visible, worst_first

MAX_ROWS = 100  # GitHub cuts a summary off at 1 MiB, and nobody reads more
_MARKS = {Severity.ERROR: "❌ error", Severity.WARNING: "⚠️ warning", Severity.NOTE: "note"}
_SPECIAL = frozenset("\\`*_[]<>#.|~&@:$^=")

_MENTION = re.compile(r"(?<![A-Za-z0-9])&#64;")


def render(reports: Sequence[Report]) -> str:
    """Return how much was found, and a row for each finding, the worst first."""
    found = amounts(counts(reports)) or "nothing found"
    lines = [f"### lora-hub check: {len(reports)} adapter{'' if len(reports) == 1 else 's'}, {found}", ""]
    rows = list(worst_first(reports))
    if rows:
        lines += ["| | adapter | rule | what was found |", "|---|---|---|---|"]
    for report, finding in rows[:MAX_ROWS]:
        rule = escape(f"{finding.rule.code} {finding.rule.name}")
        lines.append(
            f"| {_MARKS[finding.severity]} | {escape(report.source)} | {rule} | {escape(finding.message)}"
            f"<br>{escape(finding.hint)} |"
        )
    if len(rows) > MAX_ROWS:
        lines += ["", f"{len(rows) - MAX_ROWS} more are left out; `--format json` has all."]
    return "".join(f"{line}\n" for line in lines)


def escape(text: str) -> str:
    """Return *text* so that nothing in it is Markdown, HTML, a link, or a mention of somebody who would be told.

    Any ASCII punctuation may be escaped by its number: https://spec.commonmark.org/0.31.2/#entity-and-numeric-character-references
    """
    numbered = "".join(f"&#{ord(c)};" if c in _SPECIAL else c for c in visible(text))
    # GitHub looks for mentions in what was rendered; a space of no width keeps `@` and the name apart.
    return _MENTION.sub("&#64;&#8203;", numbered)
