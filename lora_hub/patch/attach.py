"""Attach LoRA adapters to a model: first everything is checked and made, then all of it is put in place."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import CompatibilityError, IntegrityError, StateError, UsageError
from lora_hub.patch.applied_adapter import AdapterInfo, AppliedAdapter
from lora_hub.patch.delta import Delta
from lora_hub.patch.deltas import Deltas
from lora_hub.patch.factors import PartWeights
from lora_hub.patch.fingerprint import check_is_the_base
from lora_hub.patch.fit import check_fits
from lora_hub.patch.layer import check_belongs, check_forward_is_reachable, patch_module
from lora_hub.patch.model_patch import PATCH, ModelPatch
from lora_hub.patch.on_model import unwrap
from lora_hub.patch.pieces import Piece, adapting, pieces_of, replacing
from lora_hub.patch.projections import modules_by_path
from lora_hub.patch.weights import load_weights

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How an adapter is put on a model; see `lora_hub.apply_adapter`."""

    name: str
    scale: float = 1.0
    active: bool = True
    replace: bool = False
    trainable: bool = False
    allow_other_base: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!a} is no name for an adapter",
                hint="pass a `name=` of letters, digits, `_`, `-` and `.`",
            )
        if isinstance(self.scale, bool) or not isinstance(self.scale, int | float) or not math.isfinite(self.scale):
            raise UsageError(f"scale is {self.scale!r}, expected a finite number", hint="the default is 1.0")


@torch.inference_mode(False)
def apply(
    model: nn.Module, adapter: VerifiedAdapter, options: Options, read_again: Callable[[], VerifiedAdapter] | None
) -> AppliedAdapter:
    """Return a handle on *adapter*, now attached to *model*; the errors are those of `lora_hub.apply_adapter`.

    If it can be *read_again*, it may leave memory while nothing needs it.
    """
    model = unwrap(model)
    weights = load_weights(adapter)
    everything = modules_by_path(model)
    check_fits(model, everything, adapter, allow_other_base=options.allow_other_base)
    if not options.allow_other_base:
        check_is_the_base(model, everything, adapter)
    handle = attach(model, everything, AdapterInfo.of(adapter), weights.modules, weights.heads, options)
    if read_again is not None and not handle.trainable:
        handle.deltas.come_back = functools.partial(_come_back, handle, read_again)
    return handle


def _come_back(handle: AppliedAdapter, read_again: Callable[[], VerifiedAdapter]) -> dict[nn.Module, Delta]:
    """Return the deltas of *handle*, read again; they must be those that were applied."""
    adapter = read_again()
    if adapter.digest != handle.info.digest:
        raise IntegrityError(
            f"`{adapter.source}` has the digest {adapter.digest} now, `{handle.name}` was applied from "
            f"{handle.info.digest}",
            hint="apply it again with `replace=True`, or put back the files",
        )
    return _by_module([adapting(handle, path, parts) for path, parts in load_weights(adapter).modules.items()])


def _by_module(pieces: list[Piece]) -> dict[nn.Module, Delta]:
    return {piece.module: piece.delta for piece in pieces if piece.delta is not None}


# What is made under the caller's `inference_mode` could never be trained, nor saved for a backward.
@torch.inference_mode(False)
def attach(
    model: nn.Module,
    everything: Mapping[str, nn.Module],
    info: AdapterInfo,
    modules: Mapping[str, tuple[PartWeights, ...]],
    heads: Mapping[str, Mapping[str, Tensor] | None],
    options: Options,
) -> AppliedAdapter:
    """Return the handle on a new adapter of *model*; if anything is wrong, the model is as it was.

    Args:
        model: Any model, unwrapped.
        everything: Its modules by path.
        info: What is known about the adapter.
        modules: A and B by path of a linear module.
        heads: The values of replaced modules, by path; None starts from the base's own values.
        options: How it is put there.
    """
    patch: ModelPatch = model.__dict__.get(PATCH) or ModelPatch(model)
    predecessor = _predecessor(patch, options)
    handle = AppliedAdapter(
        name=options.name,
        info=info,
        modules={path: everything[path] for path in (*modules, *heads)},
        heads=frozenset(heads),
        trainable=options.trainable,
        scale=options.scale,
        other_base_allowed=options.allow_other_base,
        patch=patch,
    )
    _check_modules(handle, everything)
    patch.check_can_join(handle, predecessor, active=options.active)
    pieces = [adapting(handle, path, parts) for path, parts in modules.items()]
    handle.deltas = Deltas(_by_module(pieces))
    pieces += [replacing(handle, path, values) for path, values in heads.items()]
    _exchange(patch, predecessor, handle, pieces, active=options.active)
    if handle.trainable:
        handle.mark_saved()
    return handle


def _predecessor(patch: ModelPatch, options: Options) -> AppliedAdapter | None:
    predecessor = patch.state.handles.get(options.name)
    if predecessor is not None and not options.replace:
        raise UsageError(
            f"the model has an adapter `{options.name}` already", hint="pass another `name=`, or `replace=True`"
        )
    return predecessor


def _check_modules(handle: AppliedAdapter, everything: Mapping[str, nn.Module]) -> None:
    for path, module in everything.items():
        check_belongs(module, path, handle.patch)
    for path, module in handle.modules.items():
        check_forward_is_reachable(module, path)
        if isinstance(everything.get(path.rpartition(".")[0]), nn.TransformerEncoderLayer):
            raise CompatibilityError(
                f"`{path}` is in a `TransformerEncoderLayer`, which in evaluation reads the weights and never calls it",
                hint="an adapter there would run in training only; name other targets",
            )
        if handle.trainable and any(p.device.type == "meta" for p in module.parameters()):
            raise StateError(
                f"`{path}` is offloaded, so an adapter on it cannot be trained", hint="load it on a device"
            )


def _exchange(
    patch: ModelPatch, old: AppliedAdapter | None, new: AppliedAdapter, pieces: list[Piece], *, active: bool
) -> None:
    """Take *old* off and put *new* in its place; if that fails, everything is as it was."""
    before = patch.state
    old_pieces = pieces_of(old) if old is not None else []
    if old is not None and old.merged:
        patch.unmerge(old, force=False)
    try:
        if old is not None:
            patch.detach(old)
        if new.trainable:
            patch.freeze_base()
        _put_on_modules(new, pieces)
        patch.join(new, active=active)
    except BaseException:
        patch.detach(new)
        if old is not None:
            patch.detach(old)
            _put_on_modules(old, old_pieces)
            patch.put_back(old, before)
        raise
    finally:
        patch.settle()


def _put_on_modules(handle: AppliedAdapter, pieces: list[Piece]) -> None:
    for piece in pieces:
        record = patch_module(piece.module, piece.path, handle.patch)
        record.adapters[handle.name] = None
        record.parameter_names[handle.name] = tuple(piece.parameters)
        for name, parameter in piece.parameters.items():
            piece.module.register_parameter(name, parameter)
        if piece.replacement is not None:
            record.replacements[handle.name] = piece.replacement
