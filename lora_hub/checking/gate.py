"""What `push` asks before it signs: does the adapter alone break a rule, other than those that its publisher allows."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_hub.checking.catalogue import catalogue, named
from lora_hub.checking.check import Check
from lora_hub.checking.finding import Finding, Severity
from lora_hub.checking.reading import files_in, read_directory, subject_of
from lora_hub.checking.run import run_checks
from lora_hub.documents.fields import Bytes
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import IntegrityError, LoraHubError, MalformedError, UsageError

_SHOWN = 3  # findings in one message


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The check of one adapter that is to be published.

    Attributes:
        directory: Where it lies.
        checks: All rules.
        allowed: The codes of those that it may break.
    """

    directory: Path
    checks: Mapping[str, Check]
    allowed: tuple[str, ...] = ()

    @classmethod
    def of(cls, directory: Path, allow: Iterable[str]) -> Gate:
        """Return the gate for the adapter in *directory*; raise `UsageError` if *allow* names no rule, or several."""
        checks = catalogue()
        allowed = named(allow, checks)
        for code in allowed:
            if code not in checks:
                raise UsageError(f"`{code}` names several rules", hint="name each one that it may break")
        return cls(directory=directory, checks=checks, allowed=tuple(sorted(set(allowed))))

    def approve(self, adapter: VerifiedAdapter, files: Mapping[str, Bytes]) -> None:
        """Raise `MalformedError`, with the codes, if a rule finds an error in *files*, which are those of *adapter*."""
        beside = files_in(self.directory)
        subject = subject_of(str(self.directory), files, beside=beside, hashed=adapter.manifest.files)
        found = [finding for finding in run_checks(subject, self.checks).findings if self._counts(finding)]
        if found:
            raise MalformedError(
                f"`{self.directory}` does not pass the check: {_listed(found)}",
                hint=f"{found[0].hint}; or publish it all the same with `--allow {found[0].rule.code}`, which is "
                "written into its manifest",
            )

    def _counts(self, finding: Finding) -> bool:
        return finding.severity is Severity.ERROR and finding.rule.code not in self.allowed

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Add the codes of what is wrong to an error about the files themselves, which nothing can allow."""
        try:
            yield
        except (MalformedError, IntegrityError) as error:
            codes = self._codes()
            if not codes:
                raise
            raise error.within(", ".join(codes)) from error

    def _codes(self) -> list[str]:
        try:
            subject = read_directory(self.directory)
        except LoraHubError:
            return []
        if subject.refusal is None:
            return []  # the error is about something else: a rule, the policy, the registry
        findings = run_checks(subject, self.checks).findings
        return sorted({finding.rule.code for finding in findings if finding.severity is Severity.ERROR})


def _listed(findings: list[Finding]) -> str:
    shown = "; ".join(f"{finding.rule.code} {finding.message}" for finding in findings[:_SHOWN])
    return shown if len(findings) <= _SHOWN else f"{shown}; and {len(findings) - _SHOWN} more"
