"""Drop entries at random and rescale the others, so that the expected delta stays; alone, or before an election."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_hub.composing.election import elected_mean
from lora_hub.rule import DENSITY, SCALE, Block, Merge, Rule, Settings, Tasks

if TYPE_CHECKING:
    from torch import Tensor


def _survivors(tasks: Tasks, block: Block, density: float) -> Tensor:
    """Return the entries of *block* of which each is kept with the probability *density*, and then divided by it."""
    return block.values * (tasks.draws(block) < density) / density


def merge(tasks: Tasks, settings: Settings) -> Merge:
    """Return the weighted sum of the survivors."""

    def merge_block(block: Block) -> Tensor:
        return settings["scale"] * (_survivors(tasks, block, settings["density"]) * tasks.weights).sum(dim=0)

    return merge_block


def merge_elected(tasks: Tasks, settings: Settings) -> Merge:
    """Return the mean of the survivors that have the sign which their weighted sum has."""

    def merge_block(block: Block) -> Tensor:
        return settings["scale"] * elected_mean(_survivors(tasks, block, settings["density"]), tasks.weights)

    return merge_block


_PAPER = "Yu et al. 2024, Language Models are Super Mario, arXiv:2311.03099"

RULE = Rule(
    name="dare",
    paper=_PAPER,
    formula="D = λ Σ wᵢ mᵢ Tᵢ / p, mᵢ ~ Bernoulli(p)",
    merge=merge,
    parameters={"density": DENSITY, "scale": SCALE},
)
WITH_TIES = Rule(
    name="dare-ties",
    paper=f"{_PAPER}, with the election of TIES-Merging, arXiv:2306.01708",
    formula="D = λ Σₐ wᵢ Sᵢ / Σₐ |wᵢ|, Sᵢ = mᵢ Tᵢ / p",
    merge=merge_elected,
    parameters={"density": DENSITY, "scale": SCALE},
)
