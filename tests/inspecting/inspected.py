"""Adapters made of given factors, and what dense linear algebra says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lora_hub.adapter_files import config_of, files_of
from lora_hub.composing.inputs import Input
from lora_hub.documents.base_model import BaseModel
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import SliceGroup
from lora_hub.documents.verified_adapter import verify
from lora_hub.inspecting.analysis import analyse
from lora_hub.inspecting.findings import Inspection

Module = tuple[Tensor, Tensor]  # B [out, r] and A [r, in]

QUERY = "model.layers.{}.self_attn.q_proj"


def files(
    modules: Mapping[str, Module],
    *,
    heads: Mapping[str, Tensor] | None = None,
    slices: tuple[SliceGroup, ...] = (),
) -> dict[str, Bytes]:
    """Return the files of an adapter whose delta in each of *modules* is ``B @ A``."""
    tensors = {f"base_model.model.{path}.lora_B.weight": B.clone() for path, (B, _) in modules.items()}
    tensors |= {f"base_model.model.{path}.lora_A.weight": A.clone() for path, (_, A) in modules.items()}
    tensors |= {f"base_model.model.{path}.weight": weight for path, weight in (heads or {}).items()}
    base = BaseModel(repo="org/base")
    ranks = {path: (len(A), float(len(A))) for path, (_, A) in modules.items()}
    return files_of(config_of(ranks, base=base, heads=heads or ()), tensors, base=base, slices=slices)


def adapter(name: str, modules: Mapping[str, Module], **options: Any) -> Input:
    """Return the adapter *name*."""
    return Input(name=name, adapter=verify(files(modules, **options), source=name))


def inspect(*adapters: Mapping[str, Module]) -> Inspection:
    """Return what is found in *adapters*, which are called a, b, c."""
    return analyse([adapter(chr(ord("a") + n), modules) for n, modules in enumerate(adapters)])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def module(out: int = 8, r: int = 2, features: int = 6, *, seed: int = 0) -> Module:
    """Return the factors of a random delta."""
    return draw(out, r, seed=2 * seed), draw(r, features, seed=2 * seed + 1)


def dense(B: Tensor, A: Tensor) -> Tensor:
    """Return the delta."""
    return B.double() @ A.double()


def dense_cosine(one: Tensor, other: Tensor) -> float:
    sizes = one.norm() * other.norm()
    return ((one * other).sum() / sizes).item() if sizes else 0.0


def spaces(delta: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return orthonormal bases of the column and the row space of *delta*."""
    U, _, Vh = torch.linalg.svd(delta, full_matrices=False)
    return U[:, :rank], Vh[:rank].T


def close(one: float | Sequence[float], other: float | Sequence[float], *, within: float = 1e-9) -> bool:
    """Whether two numbers, or two lists of them, are equal up to *within*, relative to what is above one."""
    ones, others = ([value] if isinstance(value, float | int) else list(value) for value in (one, other))
    pairs = zip(ones, others, strict=False)
    return len(ones) == len(others) and all(math.isclose(a, b, rel_tol=within, abs_tol=within) for a, b in pairs)
