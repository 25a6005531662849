"""Which tensors an adapter holds and what each is for: PEFT's keys, checked until every tensor has one purpose."""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from types import MappingProxyType

from lora_hub.documents.adapter_config import AUTOMATIC_HEADS, AdapterConfig, scaling
from lora_hub.documents.fields import printable
from lora_hub.documents.manifest import Slice, SliceGroup
from lora_hub.documents.module_names import names_of, owners_of
from lora_hub.documents.safetensors_header import TensorInfo
from lora_hub.errors import MalformedError

PREFIX = "base_model.model."
# Components that torch.compile and FSDP insert into paths, and so into the keys of what is saved.
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module"})
_WRAPPER = re.compile("|".join(WRAPPERS))
_PARAMETER = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+){0,31}", re.ASCII)  # no component is empty
_LORA = re.compile(r"(?P<path>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")  # of what is a parameter
MAX_SCALING = 1e6  # of alpha/r; 64 is a large one
_MAX_COMPARISONS = 8_000_000  # of tensors with patterns and heads: seconds
_MAX_RUNS = 262_144  # of rows, in all modules that are sliced; a base of 80 layers with 232 heads has 55,680
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
_FOREIGN_PART = re.compile("|".join(map(re.escape, _FOREIGN)))

Keys = dict[str, str]  # of tensors in the file, by what they are for


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraModule:
    """One adapted module: A is ``[r, in_features]``, B is ``[out_features, r]``."""

    path: str
    r: int
    alpha: float
    in_features: int
    out_features: int
    lora_A: str  # the tensor's key in the file
    lora_B: str
    slices: tuple[Slice, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLayout:
    """All modules that an adapter changes, in the order of their paths.

    ``heads`` has the replaced modules by path: the key in the file of each of their parameters, such as ``weight``.
    """

    modules: tuple[LoraModule, ...]
    heads: Mapping[str, Keys]


def read_layout(
    config: AdapterConfig, tensors: Mapping[str, TensorInfo], groups: tuple[SliceGroup, ...] = ()
) -> AdapterLayout:
    """Return what each of *tensors* is for.

    Raises:
        MalformedError: A tensor has no purpose or two, lacks its counterpart, has a shape that contradicts the config,
            or a target of the config has no tensor.
    """
    _check_effort(config, len(tensors))
    pairs, heads = _sort_keys(config, tensors)
    slices = slices_by_module(groups, pairs)
    modules = tuple(read_module(config, tensors, path, pairs[path], slices.get(path, ())) for path in sorted(pairs))
    if not modules:
        raise MalformedError("the adapter has no LoRA tensors", hint=f"expected keys like `{PREFIX}….lora_A.weight`")
    _check_targets_are_served(config, pairs)
    _check_heads_are_served(config, heads)
    return AdapterLayout(modules=modules, heads=MappingProxyType(heads))


def plain_path(path: str) -> str:
    """Return *path* without the components that torch.compile and FSDP insert."""
    if not _WRAPPER.search(path):
        return path
    return ".".join(component for component in path.split(".") if component not in WRAPPERS)


def _plain_key(key: str, *, has_module: bool) -> str:
    """Return *key* without PEFT's prefix and without what wrappers put before it or inside.

    A leading ``module.`` is DDP's, unless the model itself *has_module* of that name.
    """
    name = plain_path(key).removeprefix("module." + PREFIX).removeprefix(PREFIX)
    return name if has_module else name.removeprefix("module.")


def _check_effort(config: AdapterConfig, tensors: int) -> None:
    """What takes time by its product is bounded before it is begun."""
    entries = len(config.rank_pattern) + len(config.alpha_pattern) + len(config.modules_to_save)
    if entries * tensors > _MAX_COMPARISONS:
        raise MalformedError(
            f"the config has {entries} patterns and heads for {tensors} tensors, more than are compared",
            hint="write fewer patterns: those that only repeat `r` and `lora_alpha` can go",
        )


def _sort_keys(config: AdapterConfig, tensors: Mapping[str, TensorInfo]) -> tuple[dict[str, Keys], dict[str, Keys]]:
    """Return the keys of A and B by module, and those of replaced modules' parameters by module."""
    pairs: defaultdict[str, Keys] = defaultdict(dict)
    heads: defaultdict[str, Keys] = defaultdict(dict)
    has_module = names_a_module(config)
    for key in tensors:
        path, purpose, is_head = purpose_of(config, key, has_module=has_module)
        keys = (heads if is_head else pairs)[path]
        if purpose in keys:
            raise same_parameter(keys[purpose], key)
        keys[purpose] = key
    return dict(pairs), dict(heads)


def names_a_module(config: AdapterConfig) -> bool:
    """Whether the model has a child ``module``, so that a leading ``module.`` of a key is not DDP's."""
    return any(entry.startswith(("module.", r"module\.")) for entry in config.target_entries)


def purpose_of(config: AdapterConfig, key: str, *, has_module: bool) -> tuple[str, str, bool]:
    """Return what the tensor at *key* is for: a module's path, ``A`` or ``B``; or a head's path, a parameter, True.

    Raises:
        MalformedError: It is neither LoRA nor of a head, or could be both.
    """
    name = _plain_key(key, has_module=has_module)
    if _FOREIGN_PART.search(name) or not _PARAMETER.fullmatch(name):
        raise _unexpected(key, name)
    lora = _LORA.fullmatch(name)
    head = next(filter(config.replaces, owners_of(name)), None) if config.modules_to_save else None
    if (lora is None) == (head is None):
        raise _unexpected(key, name)
    return (lora["path"], lora["side"], False) if lora else (head or "", name.removeprefix(f"{head}."), True)


def same_parameter(one: str, other: str) -> MalformedError:
    """Return the error about two tensors that are the same parameter."""
    return MalformedError(
        f"the tensors {printable(one)} and {printable(other)} are the same parameter", hint=_SAVE_AGAIN
    )


def _unexpected(key: str, name: str) -> MalformedError:
    meaning = next((meaning for part, meaning in _FOREIGN.items() if part in name), None)
    what = f"is {meaning}, which lora-hub does not apply" if meaning else "must be either LoRA or in `modules_to_save`"
    return MalformedError(
        f"the tensor {printable(key)} {what}",
        hint="save the adapter again without it (PEFT saves embeddings unless `save_embedding_layers=False`)",
    )


def read_module(
    config: AdapterConfig, tensors: Mapping[str, TensorInfo], path: str, keys: dict[str, str], slices: tuple[Slice, ...]
) -> LoraModule:
    """Return the module at *path*, whose A and B are the tensors *keys*; raise `MalformedError` if they are no pair."""
    for side in "AB":
        if side not in keys:
            raise MalformedError(f"the tensor `{path}.lora_{side}.weight` is missing", hint=_SAVE_AGAIN)
    a, b = tensors[keys["A"]], tensors[keys["B"]]
    r, alpha = config.rank_of(path), config.alpha_of(path)
    _check_shapes(path, a.shape, b.shape, r)
    factor = scaling(r, alpha, use_rslora=config.use_rslora)
    if abs(factor) > MAX_SCALING:
        raise MalformedError(
            f"`{path}` is scaled by {factor:g}, at most {MAX_SCALING:g} is applied", hint="mend `lora_alpha`, or `r`"
        )
    _check_slices(path, slices, r=r, out_features=b.shape[0], factor=factor, use_rslora=config.use_rslora)
    return LoraModule(
        path=path,
        r=r,
        alpha=alpha,
        in_features=a.shape[1],
        out_features=b.shape[0],
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


def slices_by_module(groups: tuple[SliceGroup, ...], pairs: Mapping[str, object]) -> dict[str, tuple[Slice, ...]]:
    """Return the slices of each module; raise `MalformedError` if one has them twice, or is none of *pairs*."""
    slices: dict[str, tuple[Slice, ...]] = {}
    runs = sum(len(group.modules) * sum(len(part.rows) for part in group.parts) for group in groups)
    if runs > _MAX_RUNS:
        raise MalformedError(f"the manifest has {runs} runs of rows, at most {_MAX_RUNS} are read", hint=_SAVE_AGAIN)
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
        len({part.part for part in slices}) == len(slices)
        and sum(part.r for part in slices) == r
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


def _check_targets_are_served(config: AdapterConfig, paths: Iterable[str]) -> None:
    """Whatever can be said without the base model: no tensor without a target, no target without a tensor."""
    for path in sorted(untargeted(config, paths)):
        raise MalformedError(f"the tensors of `{path}` belong to no entry of `target_modules`", hint=_SAVE_AGAIN)
    _check_served("target_modules", unserved_targets(config, paths))


def untargeted(config: AdapterConfig, paths: Iterable[str]) -> AbstractSet[str]:
    """Return those of *paths* that the config does not target, as far as that can be said without the base."""
    targeted = config.targets(paths)
    return frozenset() if targeted is None else set(paths) - targeted


def unserved_targets(config: AdapterConfig, paths: Iterable[str]) -> AbstractSet[str]:
    """Return the entries of `target_modules` that name none of *paths*, as far as that can be said without the base."""
    if config.targets(()) is None or config.exclude_modules or config.modules_to_save:
        return frozenset()
    missing = set(config.target_modules or ())
    for path in paths:
        if not missing:
            break
        missing.difference_update(names_of(path))
    return missing


def _check_heads_are_served(config: AdapterConfig, heads: Iterable[str]) -> None:
    _check_served("modules_to_save", unserved_heads(config, heads))


def unserved_heads(config: AdapterConfig, heads: Iterable[str]) -> AbstractSet[str]:
    """Return the entries of `modules_to_save` that name none of *heads*."""
    served = {entry for entry in config.modules_to_save if any(path.endswith(entry) for path in heads)}
    return set(config.modules_to_save) - served - AUTOMATIC_HEADS


def _check_served(key: str, missing: AbstractSet[str]) -> None:
    for entry in sorted(missing):
        raise MalformedError(
            f"`{key}` names {printable(entry)}, but the adapter has no tensor for it", hint=_SAVE_AGAIN
        )
