"""Does an adapter fit a live model: its type, its modules, their shapes, and nothing of the adapter missing."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.fields import printable
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import CompatibilityError
from lora_hub.patch.projections import features, is_linear, linear_modules, model_type

_OTHER_BASE = "load the base model that the adapter was trained on (`lora-hub info` names it, if it is known)"


def check_fits(
    model: nn.Module, modules: Mapping[str, nn.Module], adapter: VerifiedAdapter, *, allow_other_base: bool
) -> None:
    """Raise `CompatibilityError` unless every tensor of *adapter* has its one place in *model*, and none is missing.

    *modules* are those of the model, by path.
    """
    made_for, found = adapter.manifest.base.model_type, model_type(model)
    if made_for is not None and found is not None and made_for != found and not allow_other_base:
        raise CompatibilityError(
            f"the adapter was made for a base of type {printable(made_for)}, this model is a {printable(found)}",
            hint="load the adapter's own base; `allow_other_base=True` applies it all the same, if the shapes fit",
        )
    _check_modules(model, modules, adapter)
    _check_nothing_is_missing(modules, adapter.config, adapter)


def _check_modules(model: nn.Module, modules: Mapping[str, nn.Module], adapter: VerifiedAdapter) -> None:
    seen: dict[int, str] = {}
    for path in (*(module.path for module in adapter.layout.modules), *adapter.layout.heads):
        if path not in modules:
            raise CompatibilityError(
                f"the adapter adapts `{path}`, which this {type(model).__name__} does not have",
                hint=_where_else(modules, path),
            )
        other = seen.setdefault(id(modules[path]), path)
        if other != path:
            raise CompatibilityError(
                f"`{path}` and `{other}` are one module in this model, the adapter has tensors for both",
                hint=_OTHER_BASE,
            )
    for adapted in adapter.layout.modules:
        module = modules[adapted.path]
        if not is_linear(module):
            raise CompatibilityError(
                f"`{adapted.path}` is a {type(module).__name__} in this model, LoRA attaches to linear modules",
                hint=_OTHER_BASE,
            )
        expected = (adapted.in_features, adapted.out_features)
        if features(module) != expected:
            raise CompatibilityError(
                f"`{adapted.path}` has (inputs, outputs) {features(module)} in this model, in the adapter {expected}",
                hint=_OTHER_BASE,
            )


def _where_else(modules: Mapping[str, nn.Module], path: str) -> str:
    """An adapter of a backbone on a model with a head, or the reverse: the paths differ by a prefix only."""
    longer = next((other for other in modules if other.endswith(f".{path}")), None)
    if longer is not None:
        part = longer.removesuffix(f".{path}")
        return f'the adapter was made for the part `{part}`: apply it to `model.get_submodule("{part}")`'
    components = path.split(".")
    for start in range(1, len(components)):
        if ".".join(components[start:]) in modules:
            return f"the adapter was made for a model that holds this one as `{'.'.join(components[:start])}`"
    return _OTHER_BASE


def _check_nothing_is_missing(
    modules: Mapping[str, nn.Module], config: AdapterConfig, adapter: VerifiedAdapter
) -> None:
    """What the config targets in this model must have its tensors: a part of an adapter is another adapter."""
    targeted = config.targets(linear_modules(modules)) or frozenset()
    missing = sorted(targeted - {module.path for module in adapter.layout.modules})
    heads = [path for path in modules if config.replaces(path)]
    outermost = [path for path in heads if not any(path.startswith(f"{other}.") for other in heads)]
    missing += sorted(set(outermost) - adapter.layout.heads.keys())
    if missing:
        raise CompatibilityError(
            f"`{missing[0]}` is targeted by the adapter's config, but the adapter has no tensors for it "
            f"({len(missing)} of {len(targeted) + len(outermost)} modules)",
            hint="this model has more layers or other modules than the adapter's base, or the adapter is not whole",
        )
