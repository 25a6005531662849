"""The weighted sum of the deltas: exact, and the only rule that keeps the factors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_hub.rule import Block, Merge, Rule, Settings, Tasks

if TYPE_CHECKING:
    from torch import Tensor


def merge(tasks: Tasks, _settings: Settings) -> Merge:
    """Return the weighted sum of a block's entries."""

    def merge_block(block: Block) -> Tensor:
        return (block.values * tasks.weights).sum(dim=0)

    return merge_block


RULE = Rule(
    name="linear",
    paper="Ilharco et al. 2023, Editing Models with Task Arithmetic, arXiv:2212.04089",
    formula="D = Σ wᵢ Tᵢ",
    merge=merge,
    is_linear=True,
)
