"""Reports for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from lora_hub.checking.finding import Finding, Report, Severity

# ``style(text, severity)`` returns the text as a terminal shows what is so bad; None is what is well.
Style = Callable[[str, Severity | None], str]


def plain(text: str, _severity: Severity | None) -> str:
    """Return *text* as it is."""
    return text


def as_text(reports: Sequence[Report], style: Style = plain) -> str:
    """Return *reports* for people: what was found in each, and how often in all.

    Of several adapters, the notes are only counted.
    """
    lowest = Severity.NOTE if len(reports) == 1 else Severity.WARNING
    lines = [line for report in reports for line in _lines(report, lowest, style)]
    return "\n".join([*lines, *([_total(reports, style)] if len(reports) > 1 else [])])


def _lines(report: Report, lowest: Severity, style: Style) -> Iterator[str]:
    against = f" on {report.base}" if report.base else ""
    yield style(f"{_shown(report.source)}{_shown(against)}: {_counts(report.findings)}", report.worst)
    coverage = report.facts.get("coverage")
    if coverage:
        parts = ", ".join(f"{part} on {adapted}/{there} layers" for part, (adapted, there) in coverage.items())
        yield f"  {_shown(parts)}"
    for finding in report.findings:
        if finding.severity >= lowest:
            yield f"  {style(str(finding.severity), finding.severity)} {finding.rule.code} {_shown(finding.message)}"
            yield f"    hint: {_shown(finding.hint)}"
    if report.ignored:
        codes = sorted({finding.rule.code for finding in report.ignored})
        yield f"  {len(report.ignored)} not counted: {', '.join(codes)}"


def _counts(findings: Sequence[Finding]) -> str:
    counted = Counter(finding.severity for finding in findings)
    named = (_plural(counted[severity], str(severity)) for severity in reversed(Severity) if counted[severity])
    return ", ".join(named) or "ok"


def _plural(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _total(reports: Sequence[Report], style: Style) -> str:
    bad = sum(1 for report in reports if report.worst is Severity.ERROR)
    found = [finding for report in reports for finding in report.findings]
    worst = max((finding.severity for finding in found), default=None)
    return style(f"{_plural(len(reports), 'adapter')}, {bad:,} with errors: {_counts(found)}", worst)


def _shown(text: str) -> str:
    """Return *text* without anything that would move the cursor of a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
