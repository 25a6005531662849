"""Replays as a check reports them: the golden outputs of many adapters, on one base that transformers loads."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from lora_hub import api
from lora_hub.checking.catalogue import Selection, catalogue
from lora_hub.checking.finding import Finding, Report, Rule, Severity
from lora_hub.checking.rules.replay import base_differs, not_recorded, outputs_differ, undecided
from lora_hub.checking.settings import Settings
from lora_hub.documents.golden import CLASSES, HIDDEN, LOGITS, Golden
from lora_hub.documents.manifest import MANIFEST_NAME
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import CompatibilityError
from lora_hub.extras import needs_torch
from lora_hub.golden import replay
from lora_hub.replaying.verdict import Replay, Verdict

if TYPE_CHECKING:
    from torch import nn

    from lora_hub.checked_sources import Source
    from lora_hub.searching.base import Kind

_KINDS: Mapping[str, Kind] = {LOGITS: "causal", CLASSES: "classifier", HIDDEN: "encoder"}
_RULES: Mapping[Verdict, tuple[Rule, str]] = {
    Verdict.FAILED: (
        outputs_differ.rule,
        "record them again if the adapter was meant to change: `lora_hub.record_golden(model, directory)`",
    ),
    Verdict.OTHER_BASE: (base_differs.rule, "name the base that it was recorded with, in float32 without TF32"),
    Verdict.UNDECIDED: (undecided.rule, "replay it in float32, or record inputs of the adapter's own task"),
    Verdict.NOT_RECORDED: (
        not_recorded.rule,
        "record them before it is pushed: `lora_hub.record_golden(model, directory)`",
    ),
}
_ON_HUB = re.compile(r"(?P<repo>[^@./][^@]*)@(?P<revision>[^@]+)")


def findings_of(replayed: Replay) -> tuple[Finding, ...]:
    """Return what *replayed* found, as a check says it; nothing if it passed."""
    if replayed.verdict not in _RULES:
        return ()
    rule, hint = _RULES[replayed.verdict]
    return (_finding(rule, replayed.reason, hint),)


def _finding(rule: Rule, message: str, hint: str) -> Finding:
    return Finding(rule=rule, message=message, hint=hint, severity=rule.severity, file=MANIFEST_NAME, place="golden")


def with_replays(
    reports: Iterable[Report], sources: Sequence[Source], base: str, settings: Settings
) -> Iterator[Report]:
    """Yield *reports*, one for each of *sources*, with what a replay on *base* finds; the base is loaded when needed.

    An adapter that has an error already is not run.

    Raises:
        NotFoundError, CompatibilityError: The base cannot be loaded.
        UntrustedError: Nothing vouches for a reference: what is run must be trusted, as what is applied.
    """
    base_model = Base(base)
    checks = catalogue()
    for report, source in zip(reports, sources, strict=True):
        if report.worst is Severity.ERROR:
            yield report
            continue
        ignored = (*settings.ignore, *settings.ignored_at(str(source)))
        adapter = api.load(source.place, registry=source.registry, digest=source.digest)
        found = base_model.findings(adapter)
        excepted = adapter.manifest.exceptions
        yield _added(report, found, Selection.of(settings.select, ignored, checks), excepted)


def _added(report: Report, found: Iterable[Finding], selection: Selection, excepted: Sequence[str]) -> Report:
    counting, ignored = list(report.findings), list(report.ignored)
    for finding in found:
        counts = selection.covers(finding.rule.code) and finding.rule.code not in excepted
        (counting if counts else ignored).append(finding)
    counting.sort(key=lambda f: (-f.severity, f.rule.code, f.place or ""))
    return dataclasses.replace(report, findings=tuple(counting), ignored=tuple(ignored))


class Base:
    """The model *name*, a directory or ``org/model[@revision]``, loaded when the first adapter asks for it."""

    def __init__(self, name: str) -> None:
        match = _ON_HUB.fullmatch(name)
        self._name: str = match["repo"] if match else name
        self._revision: str | None = match["revision"] if match else None
        self._loaded: tuple[object, nn.Module] | None = None  # and how it was loaded

    def findings(self, adapter: VerifiedAdapter) -> tuple[Finding, ...]:
        """Return what a replay of *adapter* finds."""
        golden = adapter.manifest.golden
        if golden is None:
            reason = f"the manifest of `{adapter.source}` has no golden outputs"
            return findings_of(Replay(verdict=Verdict.NOT_RECORDED, reason=reason))
        model = self._model(adapter, golden)
        try:
            return findings_of(replay(model, adapter))
        except CompatibilityError as error:
            return (
                _finding(base_differs.rule, error.message, error.hint or "name the base that it was recorded with"),
            )

    def _model(self, adapter: VerifiedAdapter, golden: Golden) -> nn.Module:
        """Return the model as *golden* was recorded; one at a time is in memory."""
        with needs_torch("replaying golden outputs"):
            from lora_hub.searching.base import load_model
            from lora_hub.searching.candidates import heads_of
        kind, heads = _KINDS[golden.output], heads_of({"adapter": adapter})
        key = (kind, {path: {name: tensor.shape for name, tensor in head.items()} for path, head in heads.items()})
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = None
            self._loaded = (key, load_model(self._name, kind=kind, heads=heads, revision=self._revision))
        return self._loaded[1]
