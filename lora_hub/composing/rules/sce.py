"""Select the entries that differ most between adapters, calculate weights from them, and erase who disagrees."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_hub.composing.election import elected_mean, how_many
from lora_hub.rule import DENSITY, SCALE, Block, Merge, Rule, Settings, Tasks

if TYPE_CHECKING:
    from torch import Tensor


def _variance(values: Tensor) -> Tensor:
    """Return the variance over the adapters, ``[n, rows, columns] -> [1, rows, columns]``."""
    return values.var(dim=0, correction=0, keepdim=True)


def merge(tasks: Tasks, settings: Settings) -> Merge:
    """Return the elected mean of the selected entries; an adapter counts as much as the squares of its entries."""
    smallest = tasks.kth_largest(how_many(settings["density"], tasks.shape), _variance)

    def selected(block: Block) -> Tensor:
        return block.values * (_variance(block.values) >= smallest)

    squares = tasks.weights * 0
    for block in tasks.blocks():
        squares += (selected(block) ** 2).sum(dim=(1, 2), keepdim=True)
    shares = squares / squares.sum() if squares.any() else squares
    weights = tasks.weights * shares

    def merge_block(block: Block) -> Tensor:
        return settings["scale"] * elected_mean(selected(block), weights)

    return merge_block


RULE = Rule(
    name="sce",
    paper="Wan et al. 2024, FuseChat: Knowledge Fusion of Chat Models, arXiv:2408.07990",
    formula="D = λ Σₐ wᵢ cᵢ Sᵢ / Σₐ |wᵢ cᵢ|, cᵢ = ‖Sᵢ‖² / Σ ‖Sⱼ‖², S = the entries of largest variance",
    merge=merge,
    parameters={"density": replace(DENSITY, default=1.0), "scale": SCALE},
)
