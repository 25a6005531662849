"""What was found, as machines read it: JSON, JUnit XML, SARIF, GitHub annotations, a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from lora_hub.checking.finding import Report, Severity
from lora_hub.checking.outputs import as_json, github, junit, markdown, sarif
from lora_hub.errors import UsageError

FORMATS = ("json", "junit", "sarif", "github", "markdown")


def render(format_name: str, reports: Sequence[Report], *, fail_on: Severity = Severity.ERROR) -> str:
    """Return *reports* in the format *format_name*; same reports, same text.

    Args:
        format_name: One of `FORMATS`.
        reports: Of any number of adapters, in the order in which they are to stand there.
        fail_on: From which severity on a finding is a failed test case, where a format knows only passed and failed.

    Raises:
        UsageError: There is no such format.
    """
    match format_name:
        case "json":
            return as_json.render(reports)
        case "junit":
            return junit.render(reports, fail_on=fail_on)
        case "sarif":
            return sarif.render(reports)
        case "github":
            return github.render(reports)
        case "markdown":
            return markdown.render(reports)
    raise UsageError(f"no format is called {format_name!a}", hint=f"there are: {', '.join(FORMATS)}")
