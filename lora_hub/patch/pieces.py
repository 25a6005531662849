"""What is to be put on each module of an adapter: made before the first module is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lora_hub.patch.applied_adapter import AppliedAdapter
from lora_hub.patch.delta import AdaptedPart, Delta
from lora_hub.patch.factors import Factors, FrozenFactors, PartWeights, TrainableFactors
from lora_hub.patch.heads import Head
from lora_hub.patch.projections import features
from lora_hub.patch.record import Replaces


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one adapter puts on one module; the parameters are those that training changes."""

    module: nn.Module
    path: str
    delta: Delta | None = None
    replacement: Replaces | None = None
    parameters: Mapping[str, nn.Parameter] = field(default_factory=dict)


def adapting(handle: AppliedAdapter, path: str, parts: tuple[PartWeights, ...]) -> Piece:
    """Return what adds to the module at *path*: plain tensors, or parameters on the device of its weight."""
    module = handle.modules[path]
    in_features, out_features = features(module)
    parameters: dict[str, nn.Parameter] = {}
    adapted = []
    for part, lora_A, lora_B in parts:
        factors: Factors = FrozenFactors(lora_A, lora_B)
        if handle.trainable:
            # `%` is in no adapter's name, so no two names of parameters are alike; torch forbids dots in them.
            ending = "%".join(filter(None, [_escaped(handle.name), part.name]))
            factors = TrainableFactors(f"lora_A__{ending}", f"lora_B__{ending}")
            parameters[factors.name_A] = _as_parameter(lora_A, module)
            parameters[factors.name_B] = _as_parameter(lora_B, module)
        adapted.append(AdaptedPart(part, factors, part.blocks(out_features), part.scaling))
    dropout = handle.info.lora_dropout if handle.trainable else 0.0
    delta = Delta(tuple(adapted), in_features, out_features, dropout)
    return Piece(module=module, path=path, delta=delta, parameters=parameters)


def replacing(handle: AppliedAdapter, path: str, values: Mapping[str, Tensor] | None) -> Piece:
    """Return what is run in place of the module at *path*, with *values* or the module's own."""
    module = handle.modules[path]
    head = Head(module, values, path)
    parameters = head.trainable_parameters(f"head__{_escaped(handle.name)}") if handle.trainable else {}
    return Piece(module=module, path=path, replacement=head, parameters=parameters)


def pieces_of(handle: AppliedAdapter) -> list[Piece]:
    """Return what *handle* has on its modules, to put it back there."""
    records = [(path, module, handle.patch.record(module)) for path, module in handle.modules.items()]
    return [
        Piece(
            module=module,
            path=path,
            delta=handle.delta(module),
            replacement=record.replacements.get(handle.name),
            parameters={name: getattr(module, name) for name in record.parameter_names.get(handle.name, ())},
        )
        for path, module, record in records
    ]


def _as_parameter(tensor: Tensor, module: nn.Module) -> nn.Parameter:
    """Return a parameter of our own (*tensor* may be a view of a file's bytes), in float32 at least."""
    device = next(module.parameters()).device
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    return nn.Parameter(tensor.to(device, dtype, copy=True))


def _escaped(name: str) -> str:
    return name.replace(".", "%2E")
