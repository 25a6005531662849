"""Attach LoRA adapters to a model: first everything is checked, then everything is done, or nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.adapter_layout import owners_of
from lora_hub.documents.module_names import is_named
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import CompatibilityError, StateError, UsageError
from lora_hub.patch.applied_adapter import AdapterInfo, AppliedAdapter
from lora_hub.patch.factors import Factors, FrozenFactors, TrainableFactors
from lora_hub.patch.heads import Replacement
from lora_hub.patch.layer import check_forward_is_reachable, patch_module
from lora_hub.patch.model_patch import ModelPatch, get_or_create_patch, patch_of
from lora_hub.patch.projections import features, is_linear, linear_modules, model_type
from lora_hub.patch.record import Record, Slot
from lora_hub.patch.weights import Pair, load_weights

_OTHER_BASE = "load the base model that the adapter was trained on (`lora-hub info` names it, if it is known)"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)


def apply(
    model: nn.Module,
    adapter: VerifiedAdapter,
    *,
    name: str,
    scale: float = 1.0,
    active: bool = True,
    replace: bool = False,
    trainable: bool = False,
    allow_other_base: bool = False,
) -> AppliedAdapter:
    """Return a handle on *adapter*, now attached to *model*.

    Computes ``W x + scale * (lora_alpha / r) B A x`` in every module that the adapter has tensors for.

    Raises:
        CompatibilityError: A module is missing, has another shape or another model type; the model is as it was.
        MalformedError: The tensors contradict the manifest's slices.
        UsageError: The name is in use (and not *replace*), or is no name.
    """
    weights = load_weights(adapter)
    _check_base(model, adapter, allow_other_base=allow_other_base)
    _find_linear_modules(model, weights.modules)
    _check_coverage(model, adapter.config, weights.modules)
    info = AdapterInfo(
        targets=adapter.manifest.lora.targets,
        modules_to_save=adapter.config.modules_to_save,
        use_rslora=adapter.config.use_rslora,
        lora_dropout=adapter.config.lora_dropout,
        task_type=adapter.config.task_type,
        base=adapter.manifest.base,
        license=adapter.manifest.license,
        source=adapter.source,
        digest=adapter.digest,
    )
    handle = AppliedAdapter(
        name, info, trainable=trainable, other_base_allowed=allow_other_base, _scale=scale, _active=active
    )
    heads = _heads(adapter.config.modules_to_save, weights.saved)
    return attach(model, handle, weights.modules, heads, replace=replace)


def attach(
    model: nn.Module,
    handle: AppliedAdapter,
    modules: Mapping[str, tuple[Pair, ...]],
    heads: Mapping[str, Mapping[str, Tensor] | None],
    *,
    replace: bool = False,
) -> AppliedAdapter:
    """Return *handle*, now on *model*; if anything is wrong, the model is as it was.

    Args:
        model: Any model.
        handle: A new handle.
        modules: Pairs of A and B by path of a linear module.
        heads: The values of replaced modules, by path; None starts from the base's own values.
        replace: Whether an adapter of the same name gives way.
    """
    predecessor = _predecessor(model, handle, replace=replace)
    found = _find_linear_modules(model, modules)
    replacements = {path: (_find(model, path), values) for path, values in heads.items()}
    for path, module in found.items() | {(path, module) for path, (module, _) in replacements.items()}:
        check_forward_is_reachable(module, path)
    made = {path: (module, Replacement(module, values, path)) for path, (module, values) in replacements.items()}
    if predecessor is not None:
        predecessor.remove()
    patch = get_or_create_patch(model)
    try:
        _commit(patch, handle, {path: (found[path], pairs) for path, pairs in modules.items()}, made)
    except BaseException:
        patch.detach(handle)
        raise
    if handle.trainable:
        handle.mark_saved()
    return handle


def _commit(
    patch: ModelPatch,
    handle: AppliedAdapter,
    modules: Mapping[str, tuple[nn.Module, tuple[Pair, ...]]],
    heads: Mapping[str, tuple[nn.Module, Replacement]],
) -> None:
    handle._patch = patch  # noqa: SLF001 - the handle and the patch are two halves of one thing
    if handle.trainable:
        patch.freeze_base()
    for path, (module, pairs) in modules.items():
        if handle.trainable and _device_of(module).type == "meta":
            raise StateError(
                f"`{path}` is offloaded, so an adapter on it cannot be trained", hint="load it on a device"
            )
        handle._modules[path] = module  # noqa: SLF001
        record = patch_module(module, path, patch)
        parts = tuple((part, _place(module, record, handle, (part, a, b))) for part, a, b in pairs)
        record.slots[handle.name] = Slot(parts, dropout=handle.info.lora_dropout if handle.trainable else 0.0)
    for path, (module, replacement) in heads.items():
        handle._modules[path] = module  # noqa: SLF001
        record = patch_module(module, path, patch)
        record.replacements[handle.name] = replacement
        if handle.trainable:
            names = replacement.register(module, f"modules_to_save__{_escaped(handle.name)}")
            record.parameter_names[handle.name] = record.parameter_names.get(handle.name, ()) + names
    patch.handles[handle.name] = handle
    patch.refresh()


def _place(module: nn.Module, record: Record, handle: AppliedAdapter, pair: Pair) -> Factors:
    """Keep A and B as plain tensors, or register them as parameters of *module*, on the device of its weight."""
    part, lora_A, lora_B = pair
    if not handle.trainable:
        return FrozenFactors(lora_A, lora_B)
    ending = "__".join(filter(None, [part.name, _escaped(handle.name)]))
    names = (f"lora_A__{ending}", f"lora_B__{ending}")
    for name, tensor in zip(names, (lora_A, lora_B), strict=True):
        # A copy of our own: what was read may be a view of the file's bytes.
        module.register_parameter(name, nn.Parameter(tensor.to(_device_of(module)).clone()))
    record.parameter_names[handle.name] = record.parameter_names.get(handle.name, ()) + names
    return TrainableFactors(*names)


def _device_of(module: nn.Module) -> torch.device:
    return next(iter(module._parameters.values())).device  # type: ignore[union-attr]  # noqa: SLF001


def _escaped(name: str) -> str:
    """Parameter names take no dot; `%` is in no adapter's name."""
    return name.replace(".", "%2E")


def _predecessor(model: nn.Module, handle: AppliedAdapter, *, replace: bool) -> AppliedAdapter | None:
    if not _NAME.fullmatch(handle.name):
        raise UsageError(f"`{handle.name!a}` is no name for an adapter", hint="use letters, digits, `_`, `-` and `.`")
    if not math.isfinite(handle.scale):
        raise UsageError(f"scale is {handle.scale}, expected a finite number")
    patch = patch_of(model)
    predecessor = patch.handles.get(handle.name) if patch else None
    if predecessor is not None and not replace:
        raise UsageError(
            f"the model has an adapter `{handle.name}` already", hint="pass another `name=`, or `replace=True`"
        )
    return predecessor


def _find_linear_modules(model: nn.Module, modules: Mapping[str, tuple[Pair, ...]]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    paths: dict[int, str] = {}
    for path, pairs in modules.items():
        module = found[path] = _find(model, path)
        if paths.setdefault(id(module), path) != path:
            raise CompatibilityError(
                f"`{path}` and `{paths[id(module)]}` are one module in this model, the adapter has tensors for both",
                hint=_OTHER_BASE,
            )
        if not is_linear(module):
            raise CompatibilityError(
                f"`{path}` is a {type(module).__name__} in this model, LoRA attaches to linear modules",
                hint=_OTHER_BASE,
            )
        _check_features(path, module, pairs)
    return found


def _check_features(path: str, module: nn.Module, pairs: tuple[Pair, ...]) -> None:
    in_features, out_features = features(module)
    for part, lora_A, lora_B in pairs:
        runs = part.runs(out_features)
        rows = sum(stop - start for start, stop in runs)
        if lora_A.shape[1] != in_features or lora_B.shape[0] != rows or runs[-1][1] > out_features:
            raise CompatibilityError(
                f"`{path}` has {in_features} inputs and {out_features} outputs in this model, the adapter was made for "
                f"{lora_A.shape[1]} and {lora_B.shape[0] if part.rows is None else runs[-1][1]}",
                hint=_OTHER_BASE,
            )


def _find(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError:
        raise CompatibilityError(
            f"the adapter adapts `{path}`, which this {type(model).__name__} does not have",
            hint=_where_else(model, path),
        ) from None


def _where_else(model: nn.Module, path: str) -> str:
    """An adapter of a backbone on a model with a head, or the reverse: the paths differ by a prefix only."""
    for name, child in model.named_modules():
        if name and _has(child, path):
            return f"the adapter was made for the part `{name}`: apply it to `model.{name}`"
    for start in range(1, path.count(".") + 1):
        if _has(model, ".".join(path.split(".")[start:])):
            return f"the adapter was made for a model that holds this one as `{'.'.join(path.split('.')[:start])}`"
    return _OTHER_BASE


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _heads(names: tuple[str, ...], saved: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the tensors of each replaced module, by the module's path and their names in it."""
    heads: dict[str, dict[str, Tensor]] = {}
    for parameter, tensor in saved.items():
        path = next(owner for owner in owners_of(parameter) if is_named(owner, frozenset(names)))
        heads.setdefault(path, {})[parameter.removeprefix(f"{path}.")] = tensor
    return heads


def _check_base(model: nn.Module, adapter: VerifiedAdapter, *, allow_other_base: bool) -> None:
    made_for, found = adapter.manifest.base.model_type, model_type(model)
    if made_for is not None and found is not None and made_for != found and not allow_other_base:
        raise CompatibilityError(
            f"the adapter was made for a base of type `{made_for}`, this model is a `{found}`",
            hint="load the adapter's own base; `allow_other_base=True` applies it all the same, if the shapes fit",
        )


def _check_coverage(model: nn.Module, config: AdapterConfig, modules: Mapping[str, object]) -> None:
    """Every module that the config targets must have its tensors: a part of an adapter is another adapter."""
    targeted = config.targets(linear_modules(model)) or frozenset()
    missing = sorted(targeted - modules.keys())
    if missing:
        raise CompatibilityError(
            f"`{missing[0]}` is targeted by the adapter's config, but the adapter has no tensors for it "
            f"({len(missing)} modules of {len(targeted)})",
            hint="this model has more layers than the adapter's base: load the right base",
        )
