"""Make the singular vectors of the adapters orthogonal to each other before they are summed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_hub.rule import SCALE, Block, Law, Merge, Parameter, Rule, Settings, Tasks

if TYPE_CHECKING:
    from torch import Tensor


def merge(tasks: Tasks, settings: Settings) -> Merge:
    """Return the sum of the strongest singular triplets of all deltas, their vectors replaced by polar factors.

    The core holds each delta whole, in orthonormal bases, so its singular vectors are those of the delta.
    """
    from torch import cat

    from lora_hub.composing.factors import leading, polar

    def merge_block(block: Block) -> Tensor:
        share = settings.get("density", 1 / len(block.values))
        kept = [leading(delta, share) for delta in block.values]
        sizes = cat([S * weight for (_, S, _), weight in zip(kept, tasks.weights.flatten(), strict=True)])
        U, V = polar(cat([U for U, _, _ in kept], dim=1)), polar(cat([Vh for _, _, Vh in kept]).mT)
        return settings["scale"] * (U * sizes) @ V.mT

    return merge_block


RULE = Rule(
    name="tsv",
    paper="Gargiulo et al. 2025, Task Singular Vectors: Reducing Task Interference in Model Merging, arXiv:2412.00081",
    formula="D = λ polar([U₁ … Uₙ]) diag(w₁S₁ … wₙSₙ) polar([V₁ … Vₙ])ᵀ",
    merge=merge,
    spaces=("core",),
    laws=frozenset(Law) - {Law.AVERAGE},
    parameters={
        "density": Parameter(
            meaning="share of each adapter's rank that is kept", default=None, low=0, high=1, above=True
        ),
        "scale": SCALE,
    },
)
