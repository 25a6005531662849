"""Adapters made of tensors, and the deltas that they are, computed as the papers write it: alpha/r · B A."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lora_hub.adapter_files import config_of, files_of
from lora_hub.composing.compose import Composed, compose
from lora_hub.composing.factors import Factors
from lora_hub.composing.inputs import Input
from lora_hub.documents.base_model import BaseModel
from lora_hub.documents.recipe import Recipe, RecipeInput
from lora_hub.documents.verified_adapter import VerifiedAdapter, verify
from lora_hub.tensors import tensor_of

BASE = BaseModel(repo="org/base", model_type="llama")
Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
SHAPES = {Q: (12, 10), V: (6, 10)}  # (out, in)


def numbers(seed: int, *shape: int) -> Tensor:
    """Return random numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_factors(seed: int, shape: tuple[int, int], r: int) -> Factors:
    """Return a delta of rank *r*."""
    return Factors(numbers(2 * seed, shape[0], r), numbers(2 * seed + 1, r, shape[1]))


def adapter(
    factors: Mapping[str, Factors],
    *,
    alphas: Mapping[str, float] | None = None,
    use_rslora: bool = False,
    dtype: torch.dtype = torch.float64,
    base: BaseModel = BASE,
    heads: Mapping[str, Tensor] | None = None,
    task_type: str | None = "CAUSAL_LM",
    **described: Any,
) -> VerifiedAdapter:
    """Return an adapter of these A and B; alpha is r, and so the scaling 1, unless *alphas* say otherwise."""
    ranks = {path: (one.r, (alphas or {}).get(path, one.r)) for path, one in factors.items()}
    tensors = {}
    for path, (B, A) in factors.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = A.to(dtype)
        tensors[f"base_model.model.{path}.lora_B.weight"] = B.to(dtype)
    tensors |= {f"base_model.model.{path}.weight": weight for path, weight in (heads or {}).items()}
    config = config_of(ranks, base=base, heads=heads or (), use_rslora=use_rslora, task_type=task_type)
    return verify(files_of(config, tensors, base=base, **described), source="made")


def random_adapter(seed: int, r: int = 2, **options: Any) -> VerifiedAdapter:
    """Return an adapter of q and v."""
    return adapter({path: random_factors(10 * seed + i, s, r) for i, (path, s) in enumerate(SHAPES.items())}, **options)


def delta(of: VerifiedAdapter, path: str = Q) -> Tensor:
    """Return what *of* adds to the weight of the module at *path*, in float64; 0 where it adds nothing."""
    module = next((module for module in of.layout.modules if module.path == path), None)
    if module is None:
        return torch.zeros(SHAPES[path], dtype=torch.float64)
    divisor = math.sqrt(module.r) if of.config.use_rslora else module.r
    A, B = (tensor_of(of, key).double() for key in (module.lora_A, module.lora_B))
    return module.alpha / divisor * B @ A


def composed(weighted: Mapping[str, tuple[VerifiedAdapter, float]], *, allow_other_base: bool = False, **recipe: Any):
    """Return what a recipe makes of adapters with weights, by their ids: the adapter and the report."""
    inputs = [Input(name=name, adapter=one) for name, (one, _) in weighted.items()]
    named = tuple(RecipeInput(reference=f"org/{n}", id=n, weight=w) for n, (_, w) in weighted.items())
    made = compose(inputs, Recipe(inputs=named, **recipe), allow_other_base=allow_other_base)
    return read(made), made.report


def read(made: Composed) -> VerifiedAdapter:
    """Return the adapter that was made, proven anew from its files."""
    return verify(made.files, source="made")


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    """Fail unless two deltas differ by less than *tolerance*, relative to the larger."""
    size = max(found.norm().item(), expected.norm().item(), 1e-300)
    difference = (found - expected).norm().item() / size
    assert difference <= tolerance, f"differs by {difference:.1e}"
