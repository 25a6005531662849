"""Drop entries at random, small ones more often, then elect signs and average those who agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_hub.composing.election import elected_mean
from lora_hub.rule import DENSITY, SCALE, Block, Merge, Parameter, Rule, Settings, Tasks

if TYPE_CHECKING:
    from torch import Tensor


def resolve(settings: Settings) -> Settings:
    """Return *settings* with an epsilon that keeps all probabilities in (0, 1]: the named one, or at most 0.1."""
    density = settings["density"]
    epsilon = settings.get("epsilon", min(0.1, 1 - density, density / 2))
    if density - epsilon <= 0 or density + epsilon > 1:
        raise ValueError(f"density {density:g} ± epsilon {epsilon:g} are no probabilities in (0, 1]")
    return {**settings, "epsilon": epsilon}


def probabilities(values: Tensor, density: float, epsilon: float) -> Tensor:
    """Return what each entry of *values* ``[n, rows, columns]`` is kept with: linear in its rank within its row.

    From density - epsilon for the smallest magnitude to density + epsilon for the largest; equals rank by position.
    """
    columns = values.shape[-1]
    ranks = values.abs().argsort(dim=-1, stable=True).argsort(dim=-1)
    return density + epsilon * (2.0 * ranks.to(values.dtype) / max(columns - 1, 1) - float(columns > 1))


def merge(tasks: Tasks, settings: Settings) -> Merge:
    """Return the mean of the survivors, each divided by its own probability, that have the elected sign."""

    def merge_block(block: Block) -> Tensor:
        keep = probabilities(block.values, settings["density"], settings["epsilon"])
        survivors = block.values * (tasks.draws(block) < keep) / keep
        return settings["scale"] * elected_mean(survivors, tasks.weights)

    return merge_block


RULE = Rule(
    name="della",
    paper="Deep et al. 2024, DELLA-Merging: Reducing Interference through Magnitude-Based Sampling, arXiv:2406.11617",
    formula="D = λ Σₐ wᵢ Sᵢ / Σₐ |wᵢ|, Sᵢ = mᵢ Tᵢ / p, p = density ± ε by rank in the row",
    merge=merge,
    resolve=resolve,
    parameters={
        "density": DENSITY,
        "epsilon": Parameter(
            meaning="spread of the probabilities above and below the density", default=None, low=0, high=0.5
        ),
        "scale": SCALE,
    },
)
