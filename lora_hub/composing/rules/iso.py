"""Sum the deltas, and give all directions of the sum the same strength."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_hub.rule import SCALE, Block, Law, Merge, Rule, Settings, Tasks

if TYPE_CHECKING:
    from torch import Tensor


def merge(tasks: Tasks, settings: Settings) -> Merge:
    """Return the sum with every singular value replaced by their mean over the numerical rank.

    The authors' code takes the mean over min(d, k), which for deltas of low rank is smaller by min(d, k)/R.
    """
    from lora_hub.composing.factors import thin_svd

    def merge_block(block: Block) -> Tensor:
        weighted = block.values * tasks.weights
        U, S, Vh = thin_svd(weighted.sum(dim=0), size=weighted.flatten(1).norm(dim=1).max().item())
        mean = S.mean() if len(S) else 0.0
        return settings["scale"] * mean * (U @ Vh)

    return merge_block


RULE = Rule(
    name="iso",
    paper="Marczak et al. 2025, No Task Left Behind: Isotropic Model Merging, arXiv:2502.04959 (Iso-C)",
    formula="D = λ mean(S) U Vᵀ, U S Vᵀ = Σ wᵢ Tᵢ",
    merge=merge,
    spaces=("core",),
    laws=frozenset(Law) - {Law.IDENTITY, Law.AVERAGE},
    parameters={"scale": SCALE},
)
