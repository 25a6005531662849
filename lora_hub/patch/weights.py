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
from lora_hub.patch.factors import Part

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

Pair = tuple[Part, Tensor, Tensor]  # A is [r, in], B is [rows of the part, r]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterWeights:
    """What is to be attached: pairs of A and B by module path, and the new values of replaced parameters by name."""

    modules: Mapping[str, tuple[Pair, ...]]
    saved: Mapping[str, Tensor]


def load_weights(adapter: VerifiedAdapter) -> AdapterWeights:
    """Return the tensors of *adapter* as views of its bytes, A and B cut up as its manifest says.

    Raises:
        MalformedError: A block that the slices leave out is not zero.
    """
    tensors = {key: _tensor(adapter, key) for key in adapter.tensors}
    return AdapterWeights(
        modules={
            module.path: tuple(_cut(module, tensors[module.lora_A], tensors[module.lora_B], adapter))
            for module in adapter.layout.modules
        },
        saved={name: tensors[key] for name, key in adapter.layout.saved.items()},
    )


def _tensor(adapter: VerifiedAdapter, key: str) -> Tensor:
    info = adapter.tensors[key]
    dtype = _DTYPES[info.dtype]
    content = adapter.weights
    if not math.prod(info.shape):
        return torch.empty(info.shape, dtype=dtype)
    if not isinstance(content, bytearray) or info.start % dtype.itemsize:
        # torch wants a writable and aligned buffer.
        content, start = bytearray(content[info.start : info.stop]), 0
    else:
        start = info.start
    return torch.frombuffer(content, dtype=dtype, count=math.prod(info.shape), offset=start).view(info.shape)


def _cut(module: LoraModule, lora_A: Tensor, lora_B: Tensor, adapter: VerifiedAdapter) -> Iterator[Pair]:
    use_rslora = adapter.config.use_rslora
    if not module.slices:
        yield Part(r=module.r, alpha=module.alpha, use_rslora=use_rslora), lora_A, lora_B
        return
    left_out = lora_B.clone()
    start = 0
    for piece in module.slices:
        columns = slice(start, start + piece.r)
        start += piece.r
        part = Part(r=piece.r, alpha=piece.alpha, use_rslora=use_rslora, name=piece.part, rows=piece.rows)
        yield part, lora_A[columns], torch.cat([lora_B[a:b, columns] for a, b in piece.rows])
        for a, b in piece.rows:
            left_out[a:b, columns] = 0
    if left_out.any():
        raise MalformedError(
            f"B of `{module.path}` is not zero outside of the slices that the manifest names",
            hint="the manifest and the tensors are not of one adapter: save it again",
        )


def peft_tensors(
    modules: Mapping[str, tuple[Pair, ...]], saved: Mapping[str, Tensor], widths: Mapping[str, int]
) -> dict[str, Tensor]:
    """Return the tensors under PEFT's keys; *widths* are the output features of each module."""
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in saved.items()}
    for path, pairs in modules.items():
        lora_A, lora_B = _stack(pairs, widths[path])
        tensors[f"{PREFIX}{path}.lora_A.weight"] = lora_A
        tensors[f"{PREFIX}{path}.lora_B.weight"] = lora_B
    return {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}


def _stack(pairs: tuple[Pair, ...], out_features: int) -> tuple[Tensor, Tensor]:
    """Return A ``[sum of r, in]`` and B ``[out, sum of r]`` with each part's B in its block."""
    if pairs[0][0].rows is None:
        return pairs[0][1:]
    stacked_A = torch.cat([lora_A for _, lora_A, _ in pairs])
    stacked_B = stacked_A.new_zeros(out_features, len(stacked_A))
    column = 0
    for part, _, lora_B in pairs:
        row = 0
        for a, b in part.runs(out_features):
            stacked_B[a:b, column : column + part.r] = lora_B[row : row + b - a]
            row += b - a
        column += part.r
    return stacked_A, stacked_B


def stacked_rank_and_alpha(parts: Iterable[Part]) -> tuple[int, float]:
    """Return the r and alpha with which PEFT computes the same scaling for the stacked matrices."""
    parts = tuple(parts)
    first = parts[0]
    if len(parts) == 1:
        return first.r, first.alpha
    r = sum(part.r for part in parts)
    alpha = first.scaling * (math.sqrt(r) if first.use_rslora else r)
    return r, int(alpha) if alpha == int(alpha) else alpha


def slices_of(modules: Mapping[str, tuple[Pair, ...]]) -> tuple[SliceGroup, ...]:
    """Return how the stacked matrices of each of *modules* are to be cut up again."""
    return tuple(
        SliceGroup(modules=(path,), parts=tuple(_slice(part) for part, _, _ in pairs))
        for path, pairs in modules.items()
        if pairs[0][0].rows is not None
    )


def _slice(part: Part) -> Slice:
    assert part.name is not None and part.rows is not None  # noqa: S101, PT018 - for the type checker
    return Slice(part=part.name, r=part.r, alpha=part.alpha, rows=part.rows)
