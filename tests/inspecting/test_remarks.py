"""What stands out, in sentences."""

import torch
from inspected import QUERY, adapter, draw, inspect, module

from lora_hub.inspecting.analysis import analyse
from lora_hub.inspecting.remarks import remarks

PATH = QUERY.format(0)


def said(*adapters):
    """Return the remarks on *adapters*, as one text."""
    return "\n".join(remarks(inspect(*({PATH: one} for one in adapters))))


def test_of_an_adapter_that_wastes_nothing_there_is_nothing_to_say():
    """One adapter of full rank has no remark."""
    assert said(module()) == ""


def test_wasted_ranks_are_told():
    """Ranks that do nothing are counted, those that are zero in the file apart."""
    B, A = module(8, 4, 6)
    B[:, 0] = 0
    B[:, 1] = B[:, 2]
    A[1] = A[2]

    assert (
        said((B, A))
        == "a: 2 of 4 stored ranks are wasted, 1 of them zero in the file; a lower rank would hold the same."
    )


def test_an_untrained_adapter_is_told():
    """An adapter with B = 0 changes nothing."""
    assert "a: 1 of 1 modules change nothing." in said((torch.zeros(8, 2), draw(2, 6)))


def test_a_common_start_is_told():
    """Adapters that share A read the same inputs; what they write is not said to be alike."""
    A = draw(2, 40)
    text = said((draw(50, 2, seed=1), A), (draw(50, 2, seed=2), A))

    assert "a and b read the same inputs: their subspaces share 100 % (chance: 5 %)." in text
    assert "write to the same outputs" not in text


def test_what_cancels_and_what_adds_up_is_told():
    """Interference is put in words."""
    B, A = module(30, 2, 30)
    stranger = module(30, 2, 30, seed=8)

    assert "cancel each other: the sum has" in said((B, A), (-0.5 * B, A), stranger)
    assert "reinforce each other: the sum has" in said((B, A), (B, A), stranger)


def test_conflict_is_compared_with_chance():
    """Three adapters that have nothing to do with each other conflict in three entries of four."""
    assert "several adapters change (chance: 75 %)" in said(module(), module(seed=1), module(seed=2))


def test_strangers_are_told():
    """Adapters without a common module are not compared silently."""
    found = analyse(
        [adapter("a", {PATH: module()}), adapter("b", {QUERY.format(1): module()}, heads={"h": draw(2, 2)})]
    )

    assert remarks(found) == [
        "b: replaces h; what is replaced has no delta, and is not compared.",
        "a and b adapt no module in common.",
    ]
