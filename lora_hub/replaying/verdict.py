"""What a replay says: whether base and adapter give again what was recorded, as far as the dtype can tell."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lora_hub.documents.golden import Golden, GoldenCase

_HALF_PRECISION = 1e-3  # the tolerance of a dtype of 16 bits is larger
Pairs = Sequence[tuple[float, float]]  # of one case: what came without the adapter, and with it, value by value


class Verdict(enum.Enum):
    """The outcome of a replay."""

    PASSED = "passed"
    FAILED = "failed"
    OTHER_BASE = "other base"
    UNDECIDED = "undecided"
    NOT_RECORDED = "not recorded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """How far a replay lies from what was recorded; all distances are relative to the magnitude of the output.

    Attributes:
        verdict: What follows.
        reason: Why, in words.
        base: The largest distance without the adapter; None if nothing ran.
        adapted: The largest distance with it.
        effect: The largest change by the adapter, as it was recorded.
        tolerance: How far two runs in these dtypes may lie apart, or None if that is not known.
        dtype: The narrowest dtype of the base in this replay.
    """

    verdict: Verdict
    reason: str
    base: float | None = None
    adapted: float | None = None
    effect: float | None = None
    tolerance: float | None = None
    dtype: str | None = None


def judge(golden: Golden, outputs: Sequence[Pairs], *, dtype: str, tolerance: float | None) -> Replay:
    """Return what *outputs*, a pair for each value of each case of *golden*, say.

    Args:
        golden: What was recorded.
        outputs: What came now.
        dtype: In which dtype.
        tolerance: How far they may lie apart, or None if that is not known.
    """
    pairs = list(zip(golden.cases, outputs, strict=True))
    base = max(_distance(case, found, which=0) for case, found in pairs)
    adapted = max(_distance(case, found, which=1) for case, found in pairs)
    effect = max(case.effect for case in golden.cases)
    verdict, reason = _verdict(base, adapted, effect, tolerance)
    return Replay(
        verdict=verdict, reason=reason, base=base, adapted=adapted, effect=effect, tolerance=tolerance, dtype=dtype
    )


def _distance(case: GoldenCase, found: Pairs, *, which: int) -> float:
    distances = [abs(pair[which] - value[which + 1]) for value, pair in zip(case.values, found, strict=True)]
    return max(math.inf if math.isnan(distance) else distance / case.scale for distance in distances)


def _verdict(base: float, adapted: float, effect: float, tolerance: float | None) -> tuple[Verdict, str]:
    if tolerance is None:
        return Verdict.UNDECIDED, "how far a quantised base may lie apart from what was recorded is not known"
    if base > tolerance:
        return Verdict.OTHER_BASE, f"without the adapter the outputs are {base:.2g} off, at most {tolerance:g} is noise"
    noise = tolerance * (1 + effect)  # what the adapter adds is rounded as well
    far = f"with the adapter the outputs are {adapted:.2g} off, at most {noise:.2g} is noise"
    if adapted > noise:
        # One that changes the outputs by more than their own size makes small differences large.
        is_sensitive = tolerance >= _HALF_PRECISION and effect > 1
        return (Verdict.UNDECIDED, f"{far} of a gentler adapter") if is_sensitive else (Verdict.FAILED, far)
    # The bare base would be as close: so nothing is shown about the adapter.
    if effect <= 2 * noise:
        return Verdict.UNDECIDED, f"the adapter changes the outputs by {effect:.2g}, and {noise:.2g} may be noise"
    return Verdict.PASSED, f"with the adapter the outputs are {adapted:.2g} off, of an effect of {effect:.2g}"
