"""All rules: those built in, and those that plugins add."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora_hub.checking.check import Check
from lora_hub.checking.finding import Rule
from lora_hub.checking.rules import (
    base_modules,
    base_names,
    base_vocabulary,
    config,
    documents,
    manifest,
    numbers,
    peft,
    publishing,
    replay,
    serving,
    targets,
    tensors,
)
from lora_hub.errors import UsageError
from lora_hub.plugin_manager import Plugins, contradiction, plugins
from lora_hub.rule import nearest

_GROUPS = (
    documents,
    config,
    manifest,
    tensors,
    targets,
    numbers,
    base_modules,
    base_names,
    base_vocabulary,
    peft,
    serving,
    publishing,
    replay,
)
BUILT_IN: Mapping[str, Check] = {
    check.rule.code: check
    for check in sorted((check for group in _GROUPS for check in group.CHECKS), key=lambda check: check.rule.code)
}


def catalogue(loaded: Plugins | None = None) -> dict[str, Check]:
    """Return every check by its code: the built-in ones, and those of the plugins *loaded*.

    Raises:
        PluginError: Two plugins add a rule of one code.
    """
    added = (loaded or plugins()).checks()
    for code, claims in added.items():
        if len(claims) > 1:
            raise contradiction(f"the rule `{code}`", [plugin for plugin, _ in claims])
    return {**BUILT_IN, **{code: claims[0][1] for code, claims in sorted(added.items())}}


def rule(code: str, checks: Mapping[str, Check]) -> Rule:
    """Return the rule that is called *code*, in any case; raise `UsageError` if there is none."""
    found = checks.get(code.upper())
    if found is None:
        raise UsageError(f"there is no rule `{code}`", hint=_there_are(code, checks))
    return found.rule


def _there_are(code: str, checks: Mapping[str, Check]) -> str:
    return f"`lora-hub check --explain all` lists them{nearest(code.upper(), checks)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rules count: codes, or beginnings of codes such as ``LH1``; the longest that fits a rule decides.

    Attributes:
        select: Only these, if there are any.
        ignore: Not these.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()

    @classmethod
    def of(cls, select: Iterable[str], ignore: Iterable[str], checks: Mapping[str, Check]) -> Selection:
        """Return the selection that *select* and *ignore* spell; raise `UsageError` if one of them names no rule."""
        return cls(select=named(select, checks), ignore=named(ignore, checks))

    def covers(self, code: str) -> bool:
        """Whether the rule *code* counts."""
        chosen = max((len(begin) for begin in self.select if code.startswith(begin)), default=-1)
        ignored = max((len(begin) for begin in self.ignore if code.startswith(begin)), default=-1)
        return ignored < chosen if self.select else ignored < 0


def named(codes: Iterable[str], checks: Mapping[str, Check]) -> tuple[str, ...]:
    """Return *codes* in capitals; raise `UsageError` if one is no code, and no beginning of one."""
    found = tuple(code.strip().upper() for code in codes)
    for code in found:
        if not code or not any(known.startswith(code) for known in checks):
            raise UsageError(f"`{code}` names no rule", hint=_there_are(code, checks))
    return found
