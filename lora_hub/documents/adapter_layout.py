"""Which tensors an adapter holds and what each is for: PEFT's keys, checked until every tensor has one purpose."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora_hub.documents.adapter_config import AUTOMATIC_HEADS, AdapterConfig, scaling
from lora_hub.documents.fields import printable
from lora_hub.documents.manifest import Slice, SliceGroup
from lora_hub.documents.module_names import is_named, names_of
from lora_hub.documents.safetensors_header import TensorInfo
from lora_hub.errors import MalformedError

PREFIX = "base_model.model."
# Left in the keys by torch.compile and FSDP when the wrapped module was saved.
_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module)\.")
_LORA = re.compile(r"(?P<path>[A-Za-z0-9_.-]+)\.lora_(?P<side>[AB])(?:\.[A-Za-z0-9_-]+)?\.weight", re.ASCII)
_PARAMETER = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_SAVE_AGAIN = "save or download the adapter again"
_FOREIGN = {
    ".lora_embedding_": "LoRA on embeddings",
    ".lora_magnitude_vector": "DoRA",
    ".base_layer.": "a weight of the base model",
    ".token_adapter.": "trainable token indices",
    ".lora_diag": "KaSA",
    ".lora_velora_": "VeLoRA",
    ".lora_monteclora_": "MonteCLoRA",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraModule:
    """One adapted module: A is ``[r, in_features]``, B is ``[out_features, r]``, both stored in *dtype*."""

    path: str
    r: int
    alpha: float
    scaling: float
    in_features: int
    out_features: int
    dtype: str
    lora_A: str  # the tensor's key in the file
    lora_B: str
    slices: tuple[Slice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLayout:
    """All modules that an adapter changes, in the order of their paths.

    ``saved`` maps the full name of each replaced parameter, such as ``classifier.weight``, to its key in the file.
    """

    modules: tuple[LoraModule, ...]
    saved: Mapping[str, str]


def read_layout(
    config: AdapterConfig, tensors: Mapping[str, TensorInfo], groups: tuple[SliceGroup, ...] = ()
) -> AdapterLayout:
    """Return what each of *tensors* is for.

    Raises:
        MalformedError: A tensor has no purpose or two, lacks its counterpart, has a shape that contradicts the config,
            or a target of the config has no tensor.
    """
    pairs, saved = _sort_keys(config, tensors)
    slices = _slices_by_module(groups, pairs)
    modules = tuple(_read_module(config, tensors, path, pairs[path], slices.get(path, ())) for path in sorted(pairs))
    if not modules:
        raise MalformedError("the adapter has no LoRA tensors", hint=f"expected keys like `{PREFIX}….lora_A.weight`")
    _check_targets_are_served(config, pairs.keys(), saved)
    return AdapterLayout(modules=modules, saved=saved)


def plain_key(key: str) -> str:
    """Return *key* without what wrappers add: ``base_model.model.``, ``module.``, ``_orig_mod.``."""
    return _WRAPPERS.sub("", key.removeprefix(PREFIX).removeprefix("module."))


def _sort_keys(
    config: AdapterConfig, tensors: Mapping[str, TensorInfo]
) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Return the keys of A and B by module, and those of replaced parameters by name."""
    pairs: defaultdict[str, dict[str, str]] = defaultdict(dict)
    saved: dict[str, str] = {}
    heads = frozenset(config.modules_to_save)
    for key in tensors:
        name = plain_key(key)
        match = _LORA.fullmatch(name)
        foreign = next((meaning for part, meaning in _FOREIGN.items() if part in name), None)
        if foreign or not _PARAMETER.fullmatch(name) or (match is not None) == _is_inside(name, heads):
            raise _unexpected(key, foreign)
        slot, entry = (pairs[match["path"]], match["side"]) if match else (saved, name)
        if entry in slot:
            raise MalformedError(f"the tensors {printable(slot[entry])} and {printable(key)} are the same parameter")
        slot[entry] = key
    return dict(pairs), saved


def _is_inside(name: str, modules: frozenset[str]) -> bool:
    """Whether the parameter *name* belongs to a module that one of *modules* names."""
    return any(is_named(module, modules) for module in owners_of(name))


def owners_of(name: str) -> list[str]:
    """Return the paths of the modules that the parameter *name* is in, outermost first."""
    components = name.split(".")[:-1]
    return [".".join(components[:stop]) for stop in range(1, len(components) + 1)]


def _unexpected(key: str, meaning: str | None) -> MalformedError:
    what = f"is {meaning}, which lora-hub does not apply" if meaning else "must be either LoRA or in `modules_to_save`"
    return MalformedError(
        f"the tensor {printable(key)} {what}",
        hint="save the adapter again without it (PEFT: `save_embedding_layers=False`)",
    )


def _read_module(
    config: AdapterConfig, tensors: Mapping[str, TensorInfo], path: str, keys: dict[str, str], slices: tuple[Slice, ...]
) -> LoraModule:
    for side in "AB":
        if side not in keys:
            raise MalformedError(f"the tensor `{path}.lora_{side}.weight` is missing", hint=_SAVE_AGAIN)
    a, b = tensors[keys["A"]], tensors[keys["B"]]
    r, alpha = config.rank_of(path), config.alpha_of(path)
    _check_shapes(path, a.shape, b.shape, r)
    factor = scaling(r, alpha, use_rslora=config.use_rslora)
    _check_slices(path, slices, r=r, out_features=b.shape[0], factor=factor, use_rslora=config.use_rslora)
    return LoraModule(
        path=path,
        r=r,
        alpha=alpha,
        scaling=factor,
        in_features=a.shape[1],
        out_features=b.shape[0],
        dtype=a.dtype,
        lora_A=keys["A"],
        lora_B=keys["B"],
        slices=slices,
    )


def _check_shapes(path: str, a: tuple[int, ...], b: tuple[int, ...], r: int) -> None:
    if len(a) != 2 or len(b) != 2 or 0 in a + b:  # noqa: PLR2004
        raise MalformedError(
            f"`{path}` has A of shape {list(a)} and B of shape {list(b)}, expected two matrices",
            hint="an empty or flat tensor was saved before ZeRO-3 or FSDP gathered it: gather, then save",
        )
    if a[0] != b[1] or a[0] != r:
        raise MalformedError(
            f"`{path}` has A of shape {list(a)} and B of shape {list(b)}, "
            f"expected [{r}, in] and [out, {r}] after `r` and `rank_pattern` of the config",
            hint="the config and the tensors are not of one adapter: save or download it again",
        )


def _slices_by_module(groups: tuple[SliceGroup, ...], pairs: Mapping[str, object]) -> dict[str, tuple[Slice, ...]]:
    slices: dict[str, tuple[Slice, ...]] = {}
    for group in groups:
        for module in group.modules:
            if module in slices or module not in pairs:
                why = "twice" if module in slices else "but the adapter has no tensors for it"
                raise MalformedError(f"the manifest slices {printable(module)} {why}", hint=_SAVE_AGAIN)
            slices[module] = group.parts
    return slices


def _check_slices(
    path: str, slices: tuple[Slice, ...], *, r: int, out_features: int, factor: float, use_rslora: bool
) -> None:
    """The slices must be one reading of the very matrices that PEFT reads: same ranks, same rows, same scaling."""
    if not slices:
        return
    rows = sorted(run for part in slices for run in part.rows)
    is_right = (
        sum(part.r for part in slices) == r
        and rows[-1][1] <= out_features
        and all(one[1] <= two[0] for one, two in itertools.pairwise(rows))
        and all(
            math.isclose(scaling(part.r, part.alpha, use_rslora=use_rslora), factor, rel_tol=1e-12) for part in slices
        )
    )
    if not is_right:
        raise MalformedError(
            f"the manifest's slices of `{path}` contradict its tensors of rank {r} with {out_features} outputs",
            hint=_SAVE_AGAIN,
        )


def _check_targets_are_served(config: AdapterConfig, paths: Iterable[str], saved: Mapping[str, str]) -> None:
    """Whatever can be said without the base model: no tensor without a target, no target without a tensor."""
    targeted = config.targets(paths)
    if targeted is not None:
        for path in sorted(set(paths) - targeted):
            raise MalformedError(f"the tensors of `{path}` belong to no entry of `target_modules`", hint=_SAVE_AGAIN)
    if targeted is not None and not config.exclude_modules:
        served = {name for path in paths for name in names_of(path)}
        _check_served("target_modules", set(config.target_modules or ()) - served)
    heads = {name for parameter in saved for module in owners_of(parameter) for name in names_of(module)}
    _check_served("modules_to_save", set(config.modules_to_save) - heads - AUTOMATIC_HEADS)


def _check_served(key: str, missing: set[str]) -> None:
    for entry in sorted(missing):
        raise MalformedError(
            f"`{key}` names {printable(entry)}, but the adapter has no tensor for it", hint=_SAVE_AGAIN
        )
