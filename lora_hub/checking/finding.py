"""What a check finds: by which rule, where, and how bad it is."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora_hub.errors import CompatibilityError, MalformedError


class Severity(enum.IntEnum):
    """How bad a finding is; the greater, the worse."""

    NOTE = 1
    WARNING = 2
    ERROR = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that is checked.

    Attributes:
        code: ``LH101``; of a plugin, letters of its own and three digits.
        name: Words with hyphens, such as ``shape-differs``.
        summary: One sentence: what is wrong if this is found.
        explanation: A page in Markdown: what it is, why it matters, an example, how to mend it.
        severity: Unless a finding says otherwise.
        concerns_base: Whether it is about the base model (exit code 9), not about the adapter alone (8).
    """

    code: str
    name: str
    summary: str
    explanation: str
    severity: Severity = Severity.ERROR
    concerns_base: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a rule found.

    Attributes:
        rule: Which.
        message: What was found, where, and what was expected.
        hint: What to do next.
        file: Which of the adapter's files it is about, if it is about one.
        place: The module, tensor or key that it is about.
        severity: How bad it is here.
    """

    rule: Rule
    message: str
    hint: str
    severity: Severity
    file: str | None = None
    place: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was found in one adapter.

    Attributes:
        source: The directory or the reference that was checked.
        digest: ``sha256:…`` of its manifest, or None where it has no whole one.
        base: What it was checked against, or None.
        findings: The worst first, then by code and place.
        ignored: What would have been found, but for a selection or an exception of the manifest.
        facts: What the adapter is: r, alpha, parameters, coverage such as ``{"q": [32, 32]}``.
    """

    source: str
    digest: str | None
    base: str | None
    findings: Sequence[Finding] = ()
    ignored: Sequence[Finding] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def worst(self) -> Severity | None:
        """The severity of the worst finding, or None if there is none."""
        return max((finding.severity for finding in self.findings), default=None)

    def exit_code(self, fail_on: Severity = Severity.ERROR) -> int:
        """Return 0 if no finding is as bad as *fail_on*; else 9 if one of those concerns the base, or 8."""
        counting = [finding for finding in self.findings if finding.severity >= fail_on]
        if any(finding.rule.concerns_base for finding in counting):
            return CompatibilityError.exit_code
        return MalformedError.exit_code if counting else 0
