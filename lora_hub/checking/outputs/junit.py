"""Reports as JUnit XML, which GitLab, Jenkins and most others show: a suite per adapter, a case per finding.

There is no standard. This is what the schemas of Maven Surefire and of Jenkins' xUnit plugin both accept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from lora_hub.checking.finding import Finding, Report, Severity
from lora_hub.checking.outputs.words import title, visible

_NOTHING_FOUND = "nothing found"


def render(reports: Sequence[Report], *, fail_on: Severity = Severity.ERROR) -> str:
    """Return *reports* as XML.

    A finding as bad as *fail_on* is a failure, one that is less bad a case that passes and says so in ``system-out``,
    one that is ignored a case that is skipped. An adapter without findings is one case that passes.
    """
    root = ET.Element("testsuites", name="lora-hub check")
    suites = [_suite(report, fail_on) for report in reports]
    for count in ("tests", "failures", "errors"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    root.extend(suites)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _suite(report: Report, fail_on: Severity) -> ET.Element:
    suite = ET.Element("testsuite", name=visible(report.source))
    seen: Counter[str] = Counter()
    for finding in report.findings:
        _outcome(_case(suite, report, _unique(title(finding), seen)), finding, fails=finding.severity >= fail_on)
    for finding in report.ignored:
        case = _case(suite, report, _unique(title(finding), seen))
        ET.SubElement(case, "skipped", message=visible(f"ignored: {finding.message}"))
    if not seen:
        _case(suite, report, _NOTHING_FOUND)
    suite.set("tests", str(len(suite)))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", "0")  # those are tests that could not run
    suite.set("skipped", str(len(report.ignored)))
    suite.set("time", "0")
    return suite


def _case(suite: ET.Element, report: Report, name: str) -> ET.Element:
    return ET.SubElement(suite, "testcase", name=name, classname=visible(report.source), time="0")


def _unique(name: str, seen: Counter[str]) -> str:
    """GitLab shows one case of each name only, so a second one of this name gets a number."""
    seen[name] += 1
    return name if seen[name] == 1 else f"{name} ({seen[name]})"


def _outcome(case: ET.Element, finding: Finding, *, fails: bool) -> None:
    about = [f"{finding.severity}: {finding.message}", f"hint: {finding.hint}"]
    about += [f"file: {finding.file}"] if finding.file else []
    text = "\n".join(map(visible, about))
    if fails:
        failure = ET.SubElement(case, "failure", type=finding.rule.code, message=visible(finding.message))
        failure.text = text
    else:
        ET.SubElement(case, "system-out").text = text
