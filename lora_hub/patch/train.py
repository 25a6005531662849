"""A new adapter to train: B = 0 and A random, so that the model starts as its base."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from lora_hub.documents.manifest import BaseModel
from lora_hub.documents.module_names import is_named
from lora_hub.documents.verified_adapter import hub_name
from lora_hub.errors import CompatibilityError, UsageError
from lora_hub.patch.applied_adapter import AdapterInfo, AppliedAdapter
from lora_hub.patch.attach import attach
from lora_hub.patch.factors import Part, init_factors
from lora_hub.patch.projections import Target, features, locate, model_type
from lora_hub.patch.weights import Pair


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

    Only A ``[r, in]``, B ``[out, r]`` and the heads of *modules_to_save* get gradients. They are float32 (float64 on a
    float64 base), as parameters of the adapted modules, and hidden from ``state_dict``.

    Args:
        model: A model of transformers, or any module if *targets* names modules.
        name: What the adapter is called on this model.
        r: Rank.
        lora_alpha: The delta is scaled by ``lora_alpha / r``.
        targets: Parts (``q``, ``k``, ``v``, ``o``), also where they share a module, and names of linear modules.
        lora_dropout: Probability with which an input of A is zeroed in training.
        use_rslora: Scale by ``lora_alpha / sqrt(r)`` instead (arXiv 2312.03732).
        modules_to_save: Names of modules, such as ``classifier``, of which the adapter trains a copy of its own.
        task_type: PEFT's name of the task, written into its config.
        base_model: ``org/name`` of the base on the Hub; by default what the model says it was loaded from.
        replace: Whether an adapter of the same name gives way.

    Raises:
        UsageError: A number out of range, no targets, or a name in use.
        CompatibilityError: A target or a head names nothing in this model.
        PluginError: A part is asked for of a model type that no plugin describes.
    """
    targets, heads = _as_names(targets, "targets"), _as_names(modules_to_save, "modules_to_save")
    _check_numbers(r, lora_alpha, lora_dropout)
    info = AdapterInfo(
        targets=tuple(sorted(targets)),
        modules_to_save=tuple(sorted(heads)),
        use_rslora=use_rslora,
        lora_dropout=lora_dropout,
        task_type=task_type,
        base=_base_of(model, base_model),
    )
    modules = {
        path: tuple(
            _new_pair(model.get_submodule(path), target, r, lora_alpha, use_rslora=use_rslora) for target in parts
        )
        for path, parts in locate(model, targets).items()
    }
    handle = AppliedAdapter(name, info, trainable=True)
    return attach(model, handle, modules, dict.fromkeys(_find_heads(model, heads)), replace=replace)


def _new_pair(module: nn.Module, target: Target, r: int, alpha: float, *, use_rslora: bool) -> Pair:
    name, rows = target
    part = Part(r=r, alpha=alpha, use_rslora=use_rslora, name=name, rows=rows)
    in_features, out_features = features(module)
    width = sum(stop - start for start, stop in part.runs(out_features))
    is_double = getattr(module.weight, "dtype", None) is torch.float64
    return part, *init_factors(r, in_features, width, dtype=torch.float64 if is_double else torch.float32)


def _find_heads(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """Return the outermost modules that *names* name."""
    heads: list[str] = []
    for name in names:
        named = [path for path, _ in model.named_modules() if path and is_named(path, frozenset({name}))]
        if not named:
            children = ", ".join(child for child, _ in model.named_children())
            raise CompatibilityError(
                f"`modules_to_save` names `{name}`, which this {type(model).__name__} does not have",
                hint=f"its parts are called {children}",
            )
        heads += [path for path in named if not any(path.startswith(f"{other}.") for other in named)]
    return heads


def _as_names(names: Iterable[str], what: str) -> tuple[str, ...]:
    if isinstance(names, str):
        raise UsageError(f"{what} is the string {names!r}, expected several names", hint=f'write ("{names}",)')
    return tuple(dict.fromkeys(names))


def _check_numbers(r: int, lora_alpha: float, lora_dropout: float) -> None:
    if isinstance(r, bool) or not isinstance(r, int) or r < 1:
        raise UsageError(f"r is {r!r}, expected a positive integer")
    if not math.isfinite(lora_alpha):
        raise UsageError(f"lora_alpha is {lora_alpha}, expected a finite number")
    if not 0 <= lora_dropout < 1:
        raise UsageError(f"lora_dropout is {lora_dropout}, expected a probability below 1")


def _base_of(model: nn.Module, name: str | None) -> BaseModel:
    config = getattr(model, "config", None)
    return BaseModel(
        repo=name or hub_name(getattr(config, "_name_or_path", None)),
        revision=getattr(config, "_commit_hash", None),
        model_type=model_type(model),
    )
