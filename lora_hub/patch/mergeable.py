"""Which weights can be merged into: plain parameters, in memory, of this module alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor, nn

from lora_hub.errors import StateError
from lora_hub.patch.record import record_of


def check_can_merge(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Raise `StateError` if a weight of *modules* cannot be merged into: computed, tied, offloaded, quantised."""
    everywhere = _uses(model)
    for path, module in modules.items():
        record = record_of(module)
        is_added_to = record is not None and record.adapters.keys() - record.replacements.keys()
        if is_added_to and module._parameters.get("weight") is None:  # noqa: SLF001
            raise StateError(f"`{path}.weight` is computed, not a parameter", hint="use the adapter unmerged")
        for name, weight in module.named_parameters():
            _check_weight(f"{path}.{name}", weight)
            uses = everywhere[_address(weight)]
            if uses > 1 and uses > _uses(module)[_address(weight)]:
                raise StateError(
                    f"`{path}.{name}` is tied to `{_other_name(model, module, weight)}`, which the merge would change "
                    "as well",
                    hint="use the adapter unmerged, or untie the weights first",
                )


def _check_weight(name: str, weight: Tensor) -> None:
    if weight.device.type == "meta":
        raise StateError(f"`{name}` is offloaded", hint="use the adapter unmerged")
    if not weight.is_floating_point() or weight.element_size() == 1:
        raise StateError(f"`{name}` is quantised ({weight.dtype})", hint="use the adapter unmerged")


def _uses(model: nn.Module) -> Counter[int]:
    """Return in how many places of *model* each parameter stands, by address; a shared module counts once."""
    modules = {model: None}
    waiting = [model]
    while waiting:  # `modules()` recurses, which takes longer than all the rest here
        inner = [module for module in waiting.pop()._modules.values() if module is not None and module not in modules]  # noqa: SLF001
        modules |= dict.fromkeys(inner)
        waiting += inner
    return Counter(_address(p) for module in modules for p in module._parameters.values() if p is not None)  # noqa: SLF001


def _address(weight: Tensor) -> int:
    # Two parameters may be views of one memory. Not every kind of tensor has an address; 0 is that of an empty one.
    return (weight.data_ptr() if type(weight) is nn.Parameter else 0) or id(weight)


def _other_name(model: nn.Module, module: nn.Module, weight: Tensor) -> str:
    inside = set(module.modules())
    return next(
        f"{path}.{name}"
        for path, other in model.named_modules()
        if other not in inside
        for name, parameter in other._parameters.items()  # noqa: SLF001
        if parameter is not None and _address(parameter) == _address(weight)
    )
