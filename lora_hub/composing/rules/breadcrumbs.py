"""Sum the entries of medium size: the outliers are dropped, and the many small ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lora_hub.composing.election import how_many
from lora_hub.rule import DENSITY, SCALE, Block, Merge, Parameter, Rule, Settings, Tasks

if TYPE_CHECKING:
    from torch import Tensor


def resolve(settings: Settings) -> Settings:
    """Return *settings* with the gamma that was named, or 0.01, or what the density leaves of it."""
    density = settings["density"]
    gamma = settings.get("gamma", min(0.01, 1 - density))
    if density + gamma > 1:
        raise ValueError(f"density {density:g} and gamma {gamma:g} are more than 1 together")
    return {**settings, "gamma": gamma}


def merge(tasks: Tasks, settings: Settings) -> Merge:
    """Return the weighted sum without the *gamma* largest of each delta, and without the smallest."""
    rows, columns = tasks.shape
    dropped = min(round(settings["gamma"] * rows * columns), rows * columns - 1)
    last = min(dropped + how_many(settings["density"], tasks.shape), rows * columns)
    largest, smallest = tasks.kth_largest(dropped + 1), tasks.kth_largest(last)

    def merge_block(block: Block) -> Tensor:
        size = block.values.abs()
        kept = block.values * ((size >= smallest) & (size <= largest))
        return settings["scale"] * (kept * tasks.weights).sum(dim=0)

    return merge_block


RULE = Rule(
    name="breadcrumbs",
    paper="Davari and Belilovsky 2024, Model Breadcrumbs, arXiv:2312.06795",
    formula="D = λ Σ wᵢ mid(Tᵢ)",
    merge=merge,
    resolve=resolve,
    parameters={
        "density": replace(DENSITY, default=0.9),
        "gamma": Parameter(meaning="share of the entries that is dropped as too large", default=None, low=0, high=1),
        "scale": SCALE,
    },
)
