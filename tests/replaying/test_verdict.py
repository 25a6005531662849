"""The verdict, from distances alone."""

import math

import pytest

from lora_hub.documents.golden import Golden, GoldenCase
from lora_hub.replaying.verdict import Verdict, judge

P, F, B, U = Verdict.PASSED, Verdict.FAILED, Verdict.OTHER_BASE, Verdict.UNDECIDED


def judged(effect, *, base=0.0, adapted=0.0, tolerance=1e-4):
    """Judge one value that the adapter changed by *effect*, off by *base* without it and by *adapted* with it."""
    scale = 4.0
    case = GoldenCase(tokens=(1,), scale=scale, values=((0, 1.0, 1.0 + effect * scale),))
    golden = Golden(output="logits", dtype="float32", cases=(case,))
    found = [(1.0 + base * scale, 1.0 + (effect + adapted) * scale)]
    return judge(golden, [found], dtype="float32", tolerance=tolerance)


@pytest.mark.parametrize(
    ("effect", "base", "adapted", "tolerance", "expected"),
    [
        (0.5, 0.0, 0.0, 1e-4, P),
        (0.5, 9e-5, 9e-5, 1e-4, P),
        (0.5, 2e-4, 0.0, 1e-4, B),
        (0.5, 2e-4, 2e-4, 1e-4, B),
        (0.5, 0.0, 2e-4, 1e-4, F),
        (0.5, 0.0, -0.5, 1e-4, F),  # the bare base
        (1.5, 0.0, -0.5, 1e-4, F),
        (1e-4, 0.0, 0.0, 1e-4, U),
        (1e-4, 0.0, -1e-4, 1e-4, U),  # the bare base is as close
        (3e-4, 0.0, 0.0, 1e-4, P),
        (0.1, 0.0, 0.0, 6e-2, U),
        (0.15, 0.0, 0.0, 6e-2, P),
        (0.5, 0.0, 0.2, 6e-2, F),
        (1.5, 0.0, 0.1, 6e-2, P),  # what the adapter adds is rounded as well
        (1.5, 0.0, 0.4, 6e-2, U),  # one as strong as this makes rounding errors large
        (0.5, math.nan, 0.0, 1e-4, B),
        (0.5, 0.0, math.inf, 1e-4, F),
        (0.5, 0.0, 0.0, None, U),
        (0.5, 1.0, 1.0, None, U),
    ],
)
def test_distances_decide(effect, base, adapted, tolerance, expected):
    """The base comes first, then the adapter; what noise could explain is neither passed nor failed."""
    assert judged(effect, base=base, adapted=adapted, tolerance=tolerance).verdict is expected


def test_distances_are_relative_to_the_output():
    """What is reported is in units of the largest output."""
    replayed = judged(0.5, base=1e-5, adapted=2e-5)

    assert (replayed.base, replayed.adapted, replayed.effect) == pytest.approx((1e-5, 2e-5, 0.5))
