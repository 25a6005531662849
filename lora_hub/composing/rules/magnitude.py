"""Sum what is left of each delta after its small entries are dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_hub.composing.election import how_many
from lora_hub.rule import DENSITY, SCALE, Block, Merge, Rule, Settings, Tasks

if TYPE_CHECKING:
    from torch import Tensor


def merge(tasks: Tasks, settings: Settings) -> Merge:
    """Return the weighted sum of the entries among the largest *density* of each delta."""
    smallest = tasks.kth_largest(how_many(settings["density"], tasks.shape))

    def merge_block(block: Block) -> Tensor:
        kept = block.values * (block.values.abs() >= smallest)
        return settings["scale"] * (kept * tasks.weights).sum(dim=0)

    return merge_block


RULE = Rule(
    name="magnitude",
    paper="Han et al. 2015, Learning both Weights and Connections for Efficient Neural Networks, arXiv:1506.02626",
    formula="D = λ Σ wᵢ top(Tᵢ)",
    merge=merge,
    parameters={"density": DENSITY, "scale": SCALE},
)
