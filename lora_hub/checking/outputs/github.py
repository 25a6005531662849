"""Reports as GitHub's annotations: workflow commands that the runner reads from what a step prints.

https://docs.github.com/actions/reference/workflow-commands-for-github-actions
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lora_hub.checking.finding import Finding, Report, Severity
from lora_hub.checking.outputs.locations import is_version, path
from lora_hub.checking.outputs.words import amounts, counts, title, visible, worst_first

MAX_ANNOTATIONS = 10  # of each kind in one step: GitHub shows no more
_COMMANDS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def render(reports: Sequence[Report]) -> str:
    """Return a workflow command for each finding, as many as GitHub shows, then the others as plain lines.

    The last line says how much was found in how many adapters.
    """
    commands, others, shown = [], [], Counter[Severity]()
    for report, finding in worst_first(reports):
        shown[finding.severity] += 1
        if shown[finding.severity] <= MAX_ANNOTATIONS:
            commands.append(_command(report, finding))
        else:
            others.append(_plain_line(report, finding))
    if others:
        more = f"{len(others)} more findings, which GitHub would not annotate"
        others = [f"::group::{more}", *others, "::endgroup::"]
    return "".join(f"{line}\n" for line in [*commands, *others, _summary(reports)])


def _summary(reports: Sequence[Report]) -> str:
    found = amounts(counts(reports)) or "nothing found"
    return f"lora-hub check: {len(reports)} adapter{'' if len(reports) == 1 else 's'}, {found}"


def _command(report: Report, finding: Finding) -> str:
    has_file = finding.file is not None and not is_version(report.source)
    properties = {"file": path(report.source, str(finding.file))} if has_file else {}
    properties["title"] = title(finding)
    # An annotation without a file does not say which adapter it is about.
    about = "" if has_file else f"{visible(report.source)}: "
    listed = ",".join(f"{key}={escape_property(visible(value))}" for key, value in properties.items())
    data = escape_data(f"{about}{visible(finding.message)}\nhint: {visible(finding.hint)}")
    return f"::{_COMMANDS[finding.severity]} {listed}::{data}"


def _plain_line(report: Report, finding: Finding) -> str:
    line = f"{finding.severity} {visible(report.source)} {title(finding)}: {visible(finding.message)}"
    # The runner also obeys commands of the older form, `##[name]`, wherever in a line they stand.
    return line.replace("##[", "## [")


def escape_data(text: str) -> str:
    """Return *text* as the message of a command."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def escape_property(text: str) -> str:
    """Return *text* as a property of a command."""
    return escape_data(text).replace(":", "%3A").replace(",", "%2C")
