"""Words of a finding that every format needs: nothing that a hostile adapter wrote may move, hide or reorder text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lora_hub.checking.finding import Finding, Report, Severity


def visible(text: str) -> str:
    r"""Return *text* with what cannot be seen spelled out, such as ``\x1b`` or ``\u202e``.

    That is every control character, the ends of lines, what reverses the order of writing, halves of surrogate pairs,
    and so all that XML 1.0 cannot hold (https://www.w3.org/TR/xml/#charsets).
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _spelled(c) for c in text)


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode()


def title(finding: Finding) -> str:
    """Return code and name of the rule and, if there is one, the place: ``LH101 shape-differs: model.layers.0``."""
    place = f": {finding.place}" if finding.place else ""
    return visible(f"{finding.rule.code} {finding.rule.name}{place}")


def counts(reports: Iterable[Report]) -> dict[Severity, int]:
    """Return how many findings of each severity there are, the worst first."""
    found = Counter(finding.severity for report in reports for finding in report.findings)
    return {severity: found[severity] for severity in sorted(Severity, reverse=True)}


def amounts(counted: dict[Severity, int]) -> str:
    """Return *counted* in words, such as ``2 errors, 1 warning``; what there is none of is left out."""
    return ", ".join(f"{n} {severity}{'s' if n > 1 else ''}" for severity, n in counted.items() if n)


def worst_first(reports: Sequence[Report]) -> Iterator[tuple[Report, Finding]]:
    """Yield all findings, the worst of all reports first, else in their order."""
    pairs = [(report, finding) for report in reports for finding in report.findings]
    yield from sorted(pairs, key=lambda pair: -pair[1].severity)
