"""LH901 to LH904: what a replay of golden outputs finds; it needs torch and the base, and no reading of files finds it.

`lora_hub.replays` makes the findings. The rules are in the catalogue so that they are explained and ignored as others.
"""

from __future__ import annotations

from lora_hub.checking.check import Hit, finds
from lora_hub.checking.finding import Severity
from lora_hub.checking.subject import Subject


@finds("LH901", "golden-outputs-differ")
def outputs_differ(_subject: Subject) -> tuple[Hit, ...]:
    """With the adapter, the model gives other outputs than when they were recorded.

    Without the adapter, the base gives what was recorded; with it, it does not. So the adapter does not do what it did:
    its weights were exchanged after the outputs were recorded, or the program that applies it multiplies by another
    scaling, leaves modules out, or reads a fused projection in another order.

    ## Example

        with the adapter the outputs are 0.31 off, at most 0.00012 is noise

    ## How to mend it

    If it was meant to change, record them again: `lora_hub.record_golden(model, directory)`. If not, compare both
    versions with `lora-hub inspect`.
    """
    return ()


@finds("LH902", "golden-base-differs", concerns_base=True)
def base_differs(_subject: Subject) -> tuple[Hit, ...]:
    """Without the adapter, the base gives other outputs than the one that they were recorded with.

    The base alone is another model of the same shape (a sibling, a later revision, a fine-tuned copy), or it computes
    in another way: TF32, another implementation of attention, quantised weights. What the adapter does on it is not
    what its publisher tested.

    ## Example

        without the adapter the outputs are 0.09 off, at most 0.0001 is noise

    ## How to mend it

    Name the base and the revision that the manifest names, and run it in float32 without TF32. To use the adapter on a
    sibling of its base on purpose, ignore this rule.
    """
    return ()


@finds("LH903", "golden-undecided", severity=Severity.NOTE)
def undecided(_subject: Subject) -> tuple[Hit, ...]:
    """The replay cannot tell whether the adapter does what it did.

    In the dtype in which the base runs, two runs of one model lie further apart than the adapter moves its outputs; or
    the adapter changes them so much that rounding in 16 bits is made large; or the base is quantised, for which no
    tolerance is known. Nothing is wrong as far as can be told.

    ## Example

        the adapter changes the outputs by 0.04, and 0.062 may be noise

    ## How to mend it

    Replay it in float32, or record outputs on inputs of the adapter's own task, which it changes more than random ones.
    """
    return ()


@finds("LH904", "golden-not-recorded", severity=Severity.NOTE)
def not_recorded(_subject: Subject) -> tuple[Hit, ...]:
    """The manifest has no golden outputs, so there is nothing to replay.

    `lora_hub.record_golden(model, directory)` runs the base on a few short inputs, with the adapter and without it, and
    writes some of the numbers into the draft manifest. They are signed with it, and `lora-hub check --replay` compares.

    ## How to mend it

    Record them before the next version is pushed.
    """
    return ()


CHECKS = (outputs_differ, base_differs, undecided, not_recorded)
