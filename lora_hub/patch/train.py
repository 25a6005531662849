"""A new adapter to train: B = 0 and A random, so that the model starts as its base."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Real

import torch
from torch import nn

from lora_hub.documents.manifest import MAX_RANK
from lora_hub.documents.module_names import is_named
from lora_hub.errors import CompatibilityError, UsageError
from lora_hub.patch.applied_adapter import AdapterInfo, AppliedAdapter
from lora_hub.patch.attach import Options, attach
from lora_hub.patch.base import base_of
from lora_hub.patch.factors import Part, PartWeights, init_factors
from lora_hub.patch.on_model import unwrap
from lora_hub.patch.projections import Target, features, locate, modules_by_path
from lora_hub.patch.save import check_can_be_saved


def add_adapter(
    model: nn.Module,
    name: str = "default",
    *,
    r: int = 8,
    lora_alpha: float = 16,
    targets: Iterable[str] = ("q", "v"),
    lora_dropout: float = 0.0,
    use_rslora: bool = False,
    modules_to_save: Iterable[str] = (),
    task_type: str | None = None,
    base_model: str | None = None,
    replace: bool = False,
) -> AppliedAdapter:
    """Return a handle on a new, trainable adapter of *model*; the base is frozen until it is removed.

    Only A ``[r, in]``, B ``[out, r]`` and the heads of *modules_to_save* get gradients. A and B are float32 (float64 on
    a float64 base), as parameters of the adapted modules, and hidden from ``state_dict``.

    Args:
        model: A model of transformers, or any module if *targets* names modules.
        name: What the adapter is called on this model.
        r: Rank.
        lora_alpha: The delta is scaled by ``lora_alpha / r``.
        targets: Parts (``q``, ``k``, ``v``, ``o``), also where they share a module, and names of linear modules.
        lora_dropout: Probability with which an input of A is zeroed in training.
        use_rslora: Scale by ``lora_alpha / sqrt(r)`` instead (arXiv 2312.03732).
        modules_to_save: Names of modules, such as ``classifier``, of which the adapter trains a copy of its own;
            targets inside of them are left out, as in PEFT.
        task_type: PEFT's name of the task, written into its config.
        base_model: ``org/name`` of the base on the Hub; by default what the model says it was loaded from.
        replace: Whether an adapter of the same name gives way.

    Raises:
        UsageError: A number out of range, no targets, or a name in use.
        CompatibilityError: A target or a head names nothing in this model.
        PluginError: A part is asked for of a model type that no plugin describes.
    """
    model = unwrap(model)
    targets = _as_names(targets, "targets")
    heads = _find_heads(model, _as_names(modules_to_save, "modules_to_save"))
    _check_rank(r)
    info = AdapterInfo(
        targets=tuple(sorted(targets)),
        use_rslora=use_rslora,
        lora_dropout=_probability(lora_dropout),
        task_type=task_type,
        base=base_of(model, base_model),
    )
    alpha = _number(lora_alpha, "lora_alpha")
    everything = modules_by_path(model)
    modules = {
        path: tuple(_new_part(everything[path], target, r, alpha, use_rslora=use_rslora) for target in parts)
        for path, parts in _outside(heads, locate(model, targets)).items()
    }
    check_can_be_saved(model, info, modules, heads)
    return attach(
        model, everything, info, modules, dict.fromkeys(heads), Options(name=name, trainable=True, replace=replace)
    )


def _outside(heads: list[str], located: dict[str, tuple[Target, ...]]) -> dict[str, tuple[Target, ...]]:
    """Return what lies outside of the *heads*: LoRA on what is replaced would be dead."""
    outside = {
        path: parts
        for path, parts in located.items()
        if not any(path == head or path.startswith(f"{head}.") for head in heads)
    }
    if not outside:
        raise UsageError("all targets are inside of `modules_to_save`", hint="name other targets")
    return outside


@torch.inference_mode(False)
def _new_part(module: nn.Module, target: Target, r: int, alpha: float, *, use_rslora: bool) -> PartWeights:
    name, rows = target
    part = Part(r=r, alpha=alpha, use_rslora=use_rslora, name=name, rows=rows)
    in_features, out_features = features(module)
    dtype = torch.float64 if getattr(module.weight, "dtype", None) is torch.float64 else torch.float32
    lora_A, lora_B = init_factors(r, in_features, part.width(out_features), dtype=dtype)
    return PartWeights(part, lora_A, lora_B)


def _find_heads(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Return the paths of the modules that *names* name, without those inside of others."""
    paths = modules_by_path(model)
    named = {name: [path for path in paths if is_named(path, {name})] for name in names}
    for name, found in named.items():
        if not found:
            raise CompatibilityError(
                f"`modules_to_save` names `{name}`, which this {type(model).__name__} does not have",
                hint=f"its parts are called {', '.join(child for child, _ in model.named_children())}",
            )
    every = sorted({path for found in named.values() for path in found})
    heads = [path for path in every if not any(path.startswith(f"{other}.") for other in every)]
    _check_peft_means_the_same(heads, paths)
    return heads


def _check_peft_means_the_same(heads: list[str], paths: Iterable[str]) -> None:
    """PEFT takes every module whose path ends with an entry of `modules_to_save`, at whatever boundary, for a head."""
    for path in paths:
        taken = next((head for head in heads if path.endswith(head)), None)
        if taken is not None and path not in heads:
            raise CompatibilityError(
                f"PEFT could not load the adapter: it takes `{path}` for the head `{taken}`, since it ends alike",
                hint=f"name both: modules_to_save=({taken!r}, {path!r})",
            )


def _as_names(names: Iterable[str], what: str) -> tuple[str, ...]:
    if isinstance(names, str):
        raise UsageError(f"{what} is the string {names!r}, expected several names", hint=f'write ("{names}",)')
    return tuple(dict.fromkeys(names))


def _check_rank(r: object) -> None:
    if isinstance(r, bool) or not isinstance(r, int) or not 1 <= r <= MAX_RANK:
        raise UsageError(f"r is {r!r}, expected an integer from 1 to {MAX_RANK}", hint="8 is a good start")


def _probability(value: object) -> float:
    probability = _number(value, "lora_dropout")
    if not 0 <= probability < 1:
        raise UsageError(f"lora_dropout is {probability}, expected a probability below 1", hint="0.05 is common")
    return probability


def _number(value: object, what: str) -> float:
    """Return *value* as a plain number, so that it prints the same everywhere; an integer stays one."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UsageError(f"{what} is {value!r}, expected a finite number", hint="write it as 16 or 0.05")
    return int(value) if isinstance(value, int) else float(value)
