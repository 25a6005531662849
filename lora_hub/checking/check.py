"""A check: a rule, and the function that finds what breaks it. The function's docstring is the rule's page."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_hub.checking.finding import Finding, Rule, Severity

if TYPE_CHECKING:
    from lora_hub.checking.subject import Subject

MAX_HITS = 200  # of one rule in one adapter
_CODE = re.compile(r"[A-Z]{2,8}[0-9]{3}", re.ASCII)
_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """One place where a rule is broken.

    Attributes:
        message: What was found, where, and what was expected.
        hint: What to do next.
        file: Which of the adapter's files it is about, if it is about one.
        place: The module, tensor or key that it is about.
        severity: How bad it is here, if not as bad as the rule says.
    """

    message: str
    hint: str
    file: str | None = None
    place: str | None = None
    severity: Severity | None = None


Find = Callable[["Subject"], Iterable[Hit]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One rule and how it is checked: ``find(subject)`` yields every place where it is broken."""

    rule: Rule
    find: Find

    def findings(self, subject: Subject) -> list[Finding]:
        """Return what is found in *subject*: the first `MAX_HITS` places, and whether there are more."""
        hits = list(itertools.islice(self.find(subject), MAX_HITS + 1))
        if len(hits) > MAX_HITS:
            last = hits[-1]
            more = f"it is so in more than {MAX_HITS} places, of which no more are listed"
            hits[-1] = Hit(message=more, hint=last.hint, file=last.file, severity=last.severity)
        return [self._finding(hit) for hit in hits]

    def _finding(self, hit: Hit) -> Finding:
        return Finding(
            rule=self.rule,
            message=hit.message,
            hint=hit.hint,
            severity=hit.severity or self.rule.severity,
            file=hit.file,
            place=hit.place,
        )


def finds(
    code: str, name: str, *, severity: Severity = Severity.ERROR, concerns_base: bool = False
) -> Callable[[Find], Check]:
    """Make a function the check of the rule *code*: the first line of its docstring sums it up, the rest explains it.

    Args:
        code: Two to eight capital letters and three digits. ``LH`` is ours; a plugin takes letters of its own.
        name: Words with hyphens.
        severity: Unless a hit says otherwise.
        concerns_base: Whether it is about the base model, not about the adapter alone.
    """
    for what, value, form in (("code", code, _CODE), ("name", name, _NAME)):
        if not isinstance(value, str) or not form.fullmatch(value):
            raise TypeError(f"the {what} of a rule is {value!r}, expected {form.pattern}")

    def check(find: Find) -> Check:
        summary, _, explanation = inspect.cleandoc(find.__doc__ or name).partition("\n")
        rule = Rule(
            code=code,
            name=name,
            summary=summary,
            explanation=explanation.strip(),
            severity=severity,
            concerns_base=concerns_base,
        )
        return Check(rule=rule, find=find)

    return check
