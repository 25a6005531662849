"""Trim, elect signs, and average those who agree."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_hub.composing.election import elected_mean, how_many
from lora_hub.rule import DENSITY, SCALE, Block, Merge, Rule, Settings, Tasks

if TYPE_CHECKING:
    from torch import Tensor


def merge(tasks: Tasks, settings: Settings) -> Merge:
    """Return the mean of the trimmed entries that have the sign which the weighted sum has."""
    smallest = tasks.kth_largest(how_many(settings["density"], tasks.shape))

    def merge_block(block: Block) -> Tensor:
        trimmed = block.values * (block.values.abs() >= smallest)
        return settings["scale"] * elected_mean(trimmed, tasks.weights)

    return merge_block


RULE = Rule(
    name="ties",
    paper="Yadav et al. 2023, TIES-Merging: Resolving Interference When Merging Models, arXiv:2306.01708",
    formula="D = λ Σₐ wᵢ top(Tᵢ) / Σₐ |wᵢ| over those that agree with sgn(Σ wᵢ top(Tᵢ))",
    merge=merge,
    parameters={"density": replace(DENSITY, default=0.2), "scale": SCALE},
)
