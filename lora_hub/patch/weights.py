"""Tensors in PEFT's file, and A and B as they are attached: the way in and the way back, without loss.

A fused projection of which only some parts are adapted is one LoRA of rank Σr in the file: the A's stacked, each B in
its rows and its columns, zeros elsewhere. The manifest's slices say how to cut it up again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_hub.documents.adapter_layout import PREFIX, LoraModule
from lora_hub.documents.manifest import Slice, SliceGroup
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import MalformedError
from lora_hub.patch.factors import Part, PartWeights, side_by_side
from lora_hub.tensors import tensor_of


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeights:
    """The tensors of an adapter: A and B by path of the module, and those of replaced modules by path and name."""

    modules: Mapping[str, tuple[PartWeights, ...]]
    heads: Mapping[str, Mapping[str, Tensor]]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor, with a name that is its own."""
        for path, parts in self.modules.items():
            for part, lora_A, lora_B in parts:
                prefix = ".".join(filter(None, [path, part.name]))
                yield f"{prefix}.lora_A", lora_A.detach()
                yield f"{prefix}.lora_B", lora_B.detach()
        for path, tensors in self.heads.items():
            for name, tensor in tensors.items():
                yield f"{path}.{name}", tensor.detach()

    def parts(self) -> dict[str, tuple[Part, ...]]:
        """Return which parts of each module are adapted, and how."""
        return {path: tuple(part for part, _, _ in parts) for path, parts in self.modules.items()}


def load_weights(adapter: VerifiedAdapter) -> AdapterWeights:
    """Return the tensors of *adapter* as views of its bytes, A and B cut up as its manifest says.

    Raises:
        MalformedError: A block that the slices leave out is not zero.
    """
    return AdapterWeights(
        modules={module.path: tuple(_cut(module, adapter)) for module in adapter.layout.modules},
        heads={
            path: {name: tensor_of(adapter, key) for name, key in keys.items()}
            for path, keys in adapter.layout.heads.items()
        },
    )


def _cut(module: LoraModule, adapter: VerifiedAdapter) -> Iterator[PartWeights]:
    lora_A, lora_B = tensor_of(adapter, module.lora_A), tensor_of(adapter, module.lora_B)
    use_rslora = adapter.config.use_rslora
    if not module.slices:
        yield PartWeights(Part(r=module.r, alpha=module.alpha, use_rslora=use_rslora), lora_A, lora_B)
        return
    left_out = lora_B.clone()
    start = 0
    for piece in module.slices:
        columns = slice(start, start + piece.r)
        start += piece.r
        part = Part(r=piece.r, alpha=piece.alpha, use_rslora=use_rslora, name=piece.part, rows=piece.rows)
        blocks = part.blocks(module.out_features)
        yield PartWeights(part, lora_A[columns], torch.cat([lora_B[outputs, columns] for outputs, _ in blocks]))
        for outputs, _ in blocks:
            left_out[outputs, columns] = 0
    if left_out.any():
        raise MalformedError(
            f"B of `{module.path}` is not zero outside of the slices that the manifest names",
            hint="the manifest and the tensors are not of one adapter: save it again",
        )


def peft_tensors(weights: AdapterWeights, widths: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the tensors under PEFT's keys; *widths* are the output features of each module."""
    tensors = {f"{path}.{name}": tensor for path, head in weights.heads.items() for name, tensor in head.items()}
    for path, parts in weights.modules.items():
        tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"] = _stack(parts, widths[path])
    return {f"{PREFIX}{name}": tensor.detach() for name, tensor in tensors.items()}


def _stack(parts: tuple[PartWeights, ...], out_features: int) -> tuple[Tensor, Tensor]:
    """Return A ``[sum of r, in]`` and B ``[out, sum of r]`` with each part's B in its block."""
    if parts[0].part.rows is None:
        return parts[0].lora_A, parts[0].lora_B
    stacked_A = torch.cat([lora_A for _, lora_A, _ in parts])
    return stacked_A, side_by_side([(part, lora_B) for part, _, lora_B in parts], out_features)


def stacked_rank_and_alpha(parts: Iterable[Part]) -> tuple[int, float]:
    """Return the r and alpha with which PEFT computes the same scaling for the stacked matrices."""
    parts = tuple(parts)
    first = parts[0]
    if len(parts) == 1:
        return first.r, first.alpha
    r = sum(part.r for part in parts)
    alpha = first.scaling * (math.sqrt(r) if first.use_rslora else r)
    return r, int(alpha) if alpha == int(alpha) else alpha


def slices_of(parts: Mapping[str, tuple[Part, ...]]) -> tuple[SliceGroup, ...]:
    """Return how the stacked matrices of each module are to be cut up again."""
    return tuple(
        SliceGroup(modules=(path,), parts=tuple(_slice(part) for part in pieces))
        for path, pieces in parts.items()
        if pieces[0].rows is not None
    )


def _slice(part: Part) -> Slice:
    assert part.name is not None and part.rows is not None  # noqa: S101, PT018 - for the type checker
    return Slice(part=part.name, r=part.r, alpha=part.alpha, rows=part.rows)
