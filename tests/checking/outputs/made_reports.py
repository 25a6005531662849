"""Reports made by hand, harmless and hostile, for all formats."""

from __future__ import annotations

from typing import Any

from lora_hub.checking.finding import Finding, Report, Rule, Severity

SHAPE = Rule(
    code="LH101",
    name="shape-differs",
    summary="A tensor has another shape than the base needs.",
    explanation="# Shape differs\n\nB must be `[out, r]`.",
    concerns_base=True,
)
ZERO = Rule(
    code="LH301",
    name="all-zero",
    summary="A tensor is zero throughout.",
    explanation="# All zero\n\nB = 0 adds nothing.",
    severity=Severity.WARNING,
)
LICENSE = Rule(
    code="LH501",
    name="no-license",
    summary="No license is named.",
    explanation="# No license",
    severity=Severity.NOTE,
)

# What a name in an adapter of an enemy may hold: ends of lines, escapes, commands of CI systems, markup.
HOSTILE = [
    "a\nb",
    "a\r\n::error::injected",
    "::stop-commands::x",
    "##[add-mask]x",
    "x##[error]y",
    "\x00\x01\x08\x0b\x1b[31m\x7f\x85",
    "\ufffe\uffff\u2028\u2029\u202e\u200b",
    "\ud800",
    "caf\udce9",
    "]]>&<!--\"'",
    "<script>alert(1)</script>",
    "a|b`c`*d*_e_[f](http://g)@org/team",
    "%0A%3A,:=%25",
    "\U0001f600 déjà vu 語",
    "${{ secrets.X }} $(id) `id`",
    "",
    " ",
]


def finding(rule: Rule = SHAPE, **changes: Any) -> Finding:
    """Return a finding of *rule*, with *changes*."""
    known = {
        "message": "`lora_B` is [4, 2], expected [8, 2]",
        "hint": "name the base it was trained on",
        "severity": rule.severity,
        "file": "adapter_model.safetensors",
        "place": "model.layers.0.self_attn.q_proj",
    }
    return Finding(rule=rule, **{**known, **changes})


def report(*findings: Finding, **changes: Any) -> Report:
    """Return a report with *findings* on the adapter in ``./out``, with *changes*."""
    known = {"source": "./out", "digest": f"sha256:{64 * 'a'}", "base": "org/base", "facts": {"r": 2}}
    return Report(findings=findings, **{**known, **changes})


def mixed() -> list[Report]:
    """Return reports with and without findings, of a directory and of a version, with and without places."""
    return [
        report(),
        report(finding(), finding(ZERO), finding(LICENSE, file="lora-hub.json", place=None)),
        report(
            finding(LICENSE, file=None, place=None),
            source="org/task@1.2.0",
            base=None,
            ignored=(finding(ZERO, place="lm_head"),),
        ),
        report(finding(SHAPE, file=None), source="/srv/adapters/ä b", digest=None, facts={"nan": float("nan")}),
    ]


def hostile(text: str) -> list[Report]:
    """Return a report in which everything that an adapter may choose is *text*."""
    found = finding(message=text, hint=text, file=text, place=text)
    return [report(found, finding(ZERO, message=text), source=text or "x", base=text, facts={text: [text]})]
