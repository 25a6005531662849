"""Reports as SARIF 2.1.0, the format of code scanning (https://docs.oasis-open.org/sarif/sarif/v2.1.0/)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from lora_hub.checking.finding import Finding, Report, Rule, Severity
from lora_hub.checking.outputs.locations import uri
from lora_hub.checking.outputs.words import visible
from lora_hub.documents.fields import canonical_json
from lora_hub.documents.manifest import MANIFEST_NAME, WEIGHTS_NAME

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def render(reports: Sequence[Report]) -> str:
    """Return *reports* as one run of SARIF; what is ignored is there as a result that is suppressed."""
    rules = _rules(reports)
    places = {rule.code: place for place, rule in enumerate(rules)}
    seen: Counter[str] = Counter()
    run = {
        "tool": {
            "driver": {
                "name": "lora-hub",
                "semanticVersion": version("lora-hub"),
                "rules": [_rule(rule) for rule in rules],
            }
        },
        "invocations": [{"executionSuccessful": True}],
        "columnKind": "unicodeCodePoints",
        "results": [
            _result(report, finding, places[finding.rule.code], seen, is_ignored=is_ignored)
            for report in reports
            for is_ignored, found in ((False, report.findings), (True, report.ignored))
            for finding in found
        ],
    }
    return canonical_json({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}).decode()


def _rules(reports: Sequence[Report]) -> list[Rule]:
    """Return the rules that found something, by code: a rule without a result need not stand there."""
    found = {f.rule.code: f.rule for report in reports for f in (*report.findings, *report.ignored)}
    return [found[code] for code in sorted(found)]


def _rule(rule: Rule) -> dict[str, Any]:
    level = _level(rule.severity)
    return {
        "id": rule.code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": visible(rule.summary)},
        "fullDescription": {"text": visible(rule.summary)},
        "help": {"text": rule.explanation, "markdown": rule.explanation},
        "defaultConfiguration": {"level": level},
        # GitHub sorts by this severity (https://docs.github.com/code-security, "SARIF support for code scanning").
        "properties": {
            "problem.severity": "recommendation" if level == "note" else level,
            "precision": "very-high",
            "tags": ["lora", "base-model"] if rule.concerns_base else ["lora"],
        },
    }


def _level(severity: Severity) -> str:
    return str(severity)  # SARIF's words are ours: error, warning, note


def _result(
    report: Report, finding: Finding, rule_index: int, seen: Counter[str], *, is_ignored: bool
) -> dict[str, Any]:
    fingerprint = _fingerprint(report, finding, seen)
    result: dict[str, Any] = {
        "ruleId": finding.rule.code,
        "ruleIndex": rule_index,
        "level": _level(finding.severity),
        "message": {"text": f"{visible(finding.message)}\n\n{visible(finding.hint)}"},
        "locations": [_location(report.source, finding)],
        # GitHub tells results apart by the second: of its own, made of a line, all findings in one file would be one.
        "partialFingerprints": {"loraHubFinding/v1": fingerprint, "primaryLocationLineHash": f"{fingerprint}:1"},
    }
    if is_ignored:
        result["suppressions"] = [{"kind": "external", "justification": "ignored by an option or by the manifest"}]
    return result


def _location(source: str, finding: Finding) -> dict[str, Any]:
    file = finding.file or (WEIGHTS_NAME if finding.place else MANIFEST_NAME)
    location: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": {"uri": uri(source, file)},
            "region": {"startLine": 1},  # without a line, GitHub shows no result
        }
    }
    if finding.place:
        location["logicalLocations"] = [{"fullyQualifiedName": visible(finding.place), "kind": "module"}]
    return location


def _fingerprint(report: Report, finding: Finding, seen: Counter[str]) -> str:
    """Return what stays the same from run to run while the finding is there: it is made of no message."""
    about = "\0".join([finding.rule.code, report.source, finding.file or "", finding.place or ""])
    seen[about] += 1
    return hashlib.sha256(f"{about}\0{seen[about]}".encode(errors="surrogatepass")).hexdigest()
