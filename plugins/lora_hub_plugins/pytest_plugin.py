"""pytest: check adapters in a test suite, by the fixture `adapter_report` or the marker `lora_adapter`.

    def test_my_adapter(adapter_report):
        report = adapter_report("./out", base="org/base", fail_on="warning")
        assert report.facts["r"] == 8

    @pytest.mark.lora_adapter("./out", base="org/base")
    def test_something_with_it(): ...

Nothing of lora-hub is loaded before one of them is used. Neither torch nor weights of the base are needed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from lora_hub import Finding, Report

_PROPERTY = "lora_adapter"
_SEVERITIES = ("note", "warning", "error")


def pytest_configure(config: pytest.Config) -> None:
    """Tell of the marker, which ``--strict-markers`` wants to know."""
    config.addinivalue_line(
        "markers",
        "lora_adapter(source, base=None, fail_on='error', **options): "
        "the test fails unless this adapter passes `lora-hub check`",
    )


@pytest.fixture
def adapter_report(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """Return a function that checks an adapter and returns the report, or fails the test.

    ``adapter_report(source, base=None, *, fail_on="error", **options)``: *source*, *base* and options are those of
    `lora_hub.check`; relative paths are relative to pytest's root directory. *fail_on* is ``error``, ``warning``,
    ``note``, or None to look at the findings oneself.
    """

    def adapter_report(source: Any, base: Any = None, **options: Any) -> Report:  # noqa: ANN401 - what `check` takes
        return _check(request.node, source, base, **options)

    return adapter_report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """Check what the markers of *item* name before it runs: it fails, as if it had checked this itself."""
    for marker in reversed(list(item.iter_markers("lora_adapter"))):
        if len(marker.args) not in {1, 2}:
            pytest.fail("write @pytest.mark.lora_adapter(source, base=...)", pytrace=False)
        _check(item, *marker.args, **marker.kwargs)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List what was checked, if anything was."""
    # What workers of pytest-xdist did arrives in the reports of their tests, in which properties are kept.
    done = [report for reports in terminalreporter.stats.values() for report in reports]
    lines = {
        value: None
        for report in done
        if getattr(report, "when", None) == "teardown"
        for name, value in report.user_properties
        if name == _PROPERTY
    }
    if lines:
        terminalreporter.section("LoRA adapters")
        for line in lines:
            terminalreporter.line(str(line))


def _check(
    item: pytest.Item,
    source: Any,  # noqa: ANN401 - what `check` takes
    base: Any = None,  # noqa: ANN401
    *,
    fail_on: str | None = "error",
    **options: Any,  # noqa: ANN401
) -> Report:
    """Return the report on *source*, or fail *item* with what is wrong."""
    from lora_hub import check, errors

    if fail_on is not None and fail_on not in _SEVERITIES:
        pytest.fail(f"fail_on is {fail_on!r}, expected one of {', '.join(_SEVERITIES)}, or None", pytrace=False)
    root = item.config.rootpath
    try:
        report = check(_at(root, source), None if base is None else _at(root, base), **options)
    except errors.LoraHubError as error:
        pytest.fail(_shown(f"{source}: {error}"), pytrace=False)
    item.user_properties.append((_PROPERTY, _summary(report)))
    failing = [f for f in report.findings if fail_on and str(f.severity) in _SEVERITIES[_SEVERITIES.index(fail_on) :]]
    if failing:
        pytest.fail("\n".join([_summary(report), *map(_lines, failing)]), pytrace=False)
    return report


def _at(root: Path, place: Any) -> Any:  # noqa: ANN401
    """A relative path is one from *root*: the working directory of a test may be anywhere."""
    if isinstance(place, Path) or (isinstance(place, str) and place.startswith(".")):
        return root / place
    return place


def _summary(report: Report) -> str:
    counts = {severity: sum(str(f.severity) == severity for f in report.findings) for severity in reversed(_SEVERITIES)}
    found = ", ".join(f"{n} {severity}{'s' if n > 1 else ''}" for severity, n in counts.items() if n) or "ok"
    return _shown(f"{report.source}{f' on {report.base}' if report.base else ''}: {found}")


def _lines(finding: Finding) -> str:
    lines = [f"  {finding.severity} {finding.rule.code} {finding.message}", f"    hint: {finding.hint}"]
    return "\n".join(map(_shown, lines))


def _shown(text: str) -> str:
    """Return *text* without anything that would move the cursor of a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
