"""The linear modules of a live model: which they are, how wide they are, and which of them a target names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lora_hub.architecture import PARTS, Rows
from lora_hub.documents.adapter_layout import WRAPPERS
from lora_hub.documents.module_names import is_named
from lora_hub.errors import CompatibilityError, UsageError
from lora_hub.plugin_manager import plugins

Target = tuple[str | None, Rows | None]  # part and rows of a fused module; (None, None) is the whole module


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight of *module* is stored ``[in, out]``: transformers' Conv1D."""
    # It has its width under this name; looking there first is quick for all other modules.
    return "nf" in module.__dict__ and any(
        (c.__module__, c.__name__) == ("transformers.pytorch_utils", "Conv1D") for c in type(module).__mro__
    )


def is_linear(module: nn.Module) -> bool:
    """Whether LoRA can be attached to *module*: `nn.Linear`, its subclasses, and Conv1D.

    Not the output projection of `nn.MultiheadAttention`: its weight is read, it is never called.
    """
    is_called = not isinstance(module, NonDynamicallyQuantizableLinear)
    return is_called and (isinstance(module, nn.Linear) or is_transposed(module))


def features(module: nn.Module) -> tuple[int, int]:
    """Return ``(in_features, out_features)`` of a linear module."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return int(module.nx), int(module.nf)  # type: ignore[arg-type]


def modules_by_path(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules inside of *model* by path, where what torch.compile and FSDP insert does not count."""
    found: dict[str, nn.Module] = {}
    _collect(model, "", found)
    return found


def _collect(module: nn.Module, prefix: str, found: dict[str, nn.Module]) -> None:
    for name, child in module._modules.items():  # noqa: SLF001 - several times faster than `named_modules`
        if child is None:
            continue
        path = prefix.removesuffix(".") if name in WRAPPERS else f"{prefix}{name}"
        if path:
            found[path] = child
        if child._modules:  # noqa: SLF001
            _collect(child, f"{path}." if path else "", found)


def linear_modules(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the linear ones of *modules*, by path; one that stands at several paths by its first."""
    paths: dict[nn.Module, str] = {}
    for path, module in modules.items():
        if is_linear(module):
            paths.setdefault(module, path)
    return {path: module for module, path in paths.items()}


def model_type(model: nn.Module) -> str | None:
    """Return ``config.model_type`` of *model*, or None for a model without a config."""
    return getattr(getattr(model, "config", None), "model_type", None)


def config_of(model: nn.Module) -> Mapping[str, Any]:
    """Return the config of *model* as a mapping; empty for a model without one."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    return to_dict() if callable(to_dict) else {}


def locate(model: nn.Module, targets: Iterable[str]) -> dict[str, tuple[Target, ...]]:
    """Return what *targets* name in *model*: for each module its whole, or the parts of it that are meant.

    Args:
        model: Any model; ``q``, ``k``, ``v`` and ``o`` need a plugin that describes its model type.
        targets: Parts (``q``, ``k``, ``v``, ``o``), and names of linear modules as in PEFT's ``target_modules``.

    Raises:
        PluginError: A part is asked for, and no plugin describes the model, or two do.
        CompatibilityError: A target names nothing in this model.
    """
    wanted = tuple(dict.fromkeys(targets))
    if not wanted:
        raise UsageError("no targets", hint='name parts such as ("q", "v"), or modules')
    linear = linear_modules(modules_by_path(model))
    parts = [target for target in wanted if target in PARTS]
    found = _locate_parts(model, linear, parts) if parts else {}
    for name in (target for target in wanted if target not in PARTS):
        named = [path for path in linear if is_named(path, {name})]
        if not named:
            raise _names_nothing(model, name)
        found |= dict.fromkeys(named, ((None, None),))
    return {path: found[path] for path in linear if path in found}


def _locate_parts(model: nn.Module, linear: Mapping[str, nn.Module], parts: list[str]) -> dict[str, tuple[Target, ...]]:
    architecture, config = plugins().find(model_type(model)), config_of(model)
    found: dict[str, tuple[Target, ...]] = {}
    seen: set[str] = set()
    for path, module in linear.items():
        projection = architecture.projection(path)
        held = [part for part in projection.parts if part in parts] if projection else []
        if projection is None or not held:
            continue
        seen.update(held)
        if len(projection.parts) > 1:
            rows = [projection.rows(part, features(module)[1], config) for part in held]
            found[path] = tuple(zip(held, rows, strict=True))
        else:
            found[path] = ((None, None),)
    for part in parts:
        if part not in seen:
            raise _names_nothing(model, part)
    return found


def _names_nothing(model: nn.Module, target: str) -> CompatibilityError:
    names = sorted({path.rpartition(".")[2] for path in linear_modules(modules_by_path(model))})
    return CompatibilityError(
        f"the target `{target}` names nothing in this {type(model).__name__}",
        hint=f"its linear modules are called {', '.join(names) or 'nothing: it has none'}",
    )
