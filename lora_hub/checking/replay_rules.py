"""The rules of a replay, which needs torch and the base: they find nothing in files, so no check of files has them."""

from __future__ import annotations

from lora_hub.checking.finding import Rule, Severity

OUTPUTS_DIFFER = Rule(
    code="LH901",
    name="golden-outputs-differ",
    summary="With the adapter, the model gives other outputs than when they were recorded.",
    explanation="""\
Without the adapter, the base gives what was recorded; with it, it does not. So the adapter that was loaded does not do
what it did when it was published: its weights were exchanged after the outputs were recorded, or the program that applies
it multiplies by another scaling, leaves modules out, or reads a fused projection in another order.

Record them again with `lora_hub.record_golden(model, directory)` if the adapter was meant to change. If not, compare
`lora-hub inspect` of both versions.
""",
)
OTHER_BASE = Rule(
    code="LH902",
    name="golden-base-differs",
    summary="Without the adapter, the base gives other outputs than the one that was recorded with.",
    explanation="""\
The base alone, before the adapter is applied, gives other outputs than when they were recorded. It is another model of the
same shape (a sibling, a later revision, a fine-tuned copy), or it computes in another way: TF32, another implementation of
attention, a quantised kernel.

Name the base and the revision that the manifest names. To use the adapter on a sibling of its base on purpose, ignore this
rule.
""",
    concerns_base=True,
)
UNDECIDED = Rule(
    code="LH903",
    name="golden-undecided",
    summary="The replay could not tell whether the adapter does what it did.",
    explanation="""\
In the dtype in which the base runs here, two runs of one model lie further apart than the adapter changes its outputs; or
the base is quantised, for which no tolerance is known. Nothing is wrong as far as can be told.

Run the replay in float32, or record outputs on inputs of the adapter's own task, which it changes more than random ones.
""",
    severity=Severity.NOTE,
)
NOT_RECORDED = Rule(
    code="LH904",
    name="golden-not-recorded",
    summary="The manifest has no golden outputs, so there is nothing to replay.",
    explanation="""\
`lora_hub.record_golden(model, directory)` runs the model on a few short inputs, with the adapter and without it, and writes
a few of the numbers into the draft manifest. What is pushed then is signed with them, and `lora-hub check --replay` runs
the same inputs again.
""",
    severity=Severity.NOTE,
)
RULES = (OUTPUTS_DIFFER, OTHER_BASE, UNDECIDED, NOT_RECORDED)
