"""From what is checked to the report: every rule is asked, then it is said which of the findings count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from lora_hub.checking.catalogue import BUILT_IN, Selection
from lora_hub.checking.check import Check
from lora_hub.checking.finding import Finding, Report, Rule, Severity
from lora_hub.checking.subject import Subject
from lora_hub.documents.adapter_layout import LoraModule
from lora_hub.documents.verified_adapter import DTYPE_NAMES, most_common
from lora_hub.errors import PluginError
from lora_hub.plugin_manager import plugins

_REFUSED = "LH001"
FAILED = Rule(
    code="LH099",
    name="rule-failed",
    summary="A rule that a plugin added could not be checked.",
    explanation="The plugin raised an error, which the message names. The other rules were checked.\n\n"
    "## Why it matters\n\nA rule that is not checked must not look like one that was kept.\n\n"
    "## How to mend it\n\nMend the plugin, or leave it out with `LORA_HUB_DISABLE_PLUGINS`.",
)


def run_checks(subject: Subject, checks: Mapping[str, Check], selection: Selection | None = None) -> Report:
    """Return what *checks* find in *subject*; what the *selection* or the manifest excepts stands apart.

    If `verify` refuses the adapter, there is an error, and the exceptions of its manifest do not count: they are those
    of whoever wrote it.
    """
    found = [finding for check in checks.values() for finding in _findings(check, subject)]
    if subject.refusal is not None and not any(finding.severity is Severity.ERROR for finding in found):
        found += BUILT_IN[_REFUSED].findings(subject)
    chosen = selection or Selection()
    excepted = subject.manifest.exceptions if subject.manifest is not None and subject.refusal is None else ()
    counting: list[Finding] = []
    ignored: list[Finding] = []
    for finding in found:
        counts = chosen.covers(finding.rule.code) and finding.rule.code not in excepted
        (counting if counts else ignored).append(finding)
    return Report(
        source=subject.source,
        digest=subject.digest,
        base=subject.base.name if subject.base else None,
        findings=tuple(sorted(counting, key=_order)),
        ignored=tuple(sorted(ignored, key=_order)),
        facts=_facts(subject),
    )


def _findings(check: Check, subject: Subject) -> list[Finding]:
    if check.rule.code == _REFUSED:
        return []  # what is left when no other rule has found an error
    if check.rule.code in BUILT_IN:
        return check.findings(subject)
    try:
        return check.findings(subject)
    except Exception as problem:  # noqa: BLE001 - a plugin may raise anything
        text = "".join(c if c.isprintable() else " " for c in f"{type(problem).__name__}: {problem}")
        message = f"the rule {check.rule.code} of the plugin `{check.find.__module__}` failed: {text}"
        return [Finding(rule=FAILED, message=message, hint="mend the plugin", severity=FAILED.severity)]


def _order(finding: Finding) -> tuple[int, str, str]:
    return (-finding.severity, finding.rule.code, finding.place or "")


def _facts(subject: Subject) -> dict[str, Any]:
    """Return what the adapter is, in numbers."""
    modules = subject.modules
    if not modules:
        return {}
    dtypes = sorted({tensor.dtype for tensor in subject.tensors.values()})
    facts: dict[str, Any] = {
        "r": most_common(module.r for module in modules),
        "alpha": most_common(module.alpha for module in modules),
        "modules": len(modules),
        "parameters": sum(map(subject.values.size, subject.tensors)),
        "dtype": "+".join(DTYPE_NAMES.get(dtype, dtype) for dtype in dtypes),
        "base": subject.named_base,
    }
    return facts | ({"coverage": _coverage(subject)} if subject.fit is not None else {})


def _coverage(subject: Subject) -> dict[str, list[int]]:
    """Return for each part that is adapted in how many layers it is, and in how many it could be."""
    coverage: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    by_path = {module.path: module for module in subject.modules}
    for adapted, there in subject.fit.layers(by_path).values() if subject.fit else ():
        for part in _parts(by_path[adapted[0]], subject.model_type):
            coverage[part][0] += len(adapted)
            coverage[part][1] += len(there)
    return dict(coverage)


def _parts(module: LoraModule, model_type: str | None) -> list[str]:
    if module.slices:
        return [part.part for part in module.slices]
    try:
        projection = plugins().find(model_type).projection(module.path)
    except PluginError:
        projection = None
    return ["+".join(projection.parts)] if projection else [module.path.rpartition(".")[2]]
