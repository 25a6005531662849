"""Reports as JSON, after ``registry_schema/v1/check.schema.json``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lora_hub.checking.finding import Finding, Report
from lora_hub.checking.outputs.words import counts
from lora_hub.documents.fields import canonical_json

SCHEMA = "lora-hub/check/v1"


def render(reports: Sequence[Report]) -> str:
    """Return *reports* as one JSON document: sorted keys, indent 2, a final newline; nothing in it is shortened."""
    document = {
        "schema": SCHEMA,
        "summary": {"adapters": len(reports), **{f"{severity}s": n for severity, n in counts(reports).items()}},
        "reports": [_report(report) for report in reports],
    }
    return canonical_json(document).decode()


def _report(report: Report) -> dict[str, Any]:
    return {
        "source": _text(report.source),
        "digest": report.digest,
        "base": None if report.base is None else _text(report.base),
        "worst": None if report.worst is None else str(report.worst),
        "findings": [_finding(finding) for finding in report.findings],
        "ignored": [_finding(finding) for finding in report.ignored],
        "facts": _plain(report.facts),
    }


def _finding(finding: Finding) -> dict[str, Any]:
    return {
        "code": finding.rule.code,
        "name": finding.rule.name,
        "severity": str(finding.severity),
        "concerns_base": finding.rule.concerns_base,
        "message": _text(finding.message),
        "hint": _text(finding.hint),
        "file": None if finding.file is None else _text(finding.file),
        "place": None if finding.place is None else _text(finding.place),
    }


def _text(text: str) -> str:
    """A name of a file that is not UTF-8 has halves of surrogate pairs, which no UTF-8 can hold: they are spelled."""
    return text.encode(errors="backslashreplace").decode()


def _plain(value: object) -> Any:  # noqa: ANN401 - any JSON value
    """Return *value* as JSON knows it: what is no finite number is a word, what is nothing of JSON's is text."""
    match value:
        case None | bool() | int():
            return value
        case float() if math.isfinite(value):
            return value
        case Mapping():
            return {_text(str(key)): _plain(entry) for key, entry in value.items()}
        case set() | frozenset():
            return sorted((_plain(entry) for entry in value), key=str)
        case list() | tuple():
            return [_plain(entry) for entry in value]
    return _text(str(value))
