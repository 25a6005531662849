"""Modules that an adapter replaces as a whole (PEFT's ``modules_to_save``): classifiers and other heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_hub.errors import CompatibilityError, StateError
from lora_hub.patch.layer import bare_copy


class Replacement:
    """A copy of a module with weights of its own, run in place of the module while its adapter is active.

    The copy is not a submodule, so names and `state_dict` stay the base's. While it is trained, its parameters are also
    registered on the module under flat names, where optimizers find them.
    """

    def __init__(self, module: nn.Module, values: Mapping[str, Tensor] | None, path: str) -> None:
        if any(parameter.device.type == "meta" for parameter in module.parameters()):
            raise StateError(f"`{path}` is offloaded, so it cannot be replaced", hint="load the model on a device")
        self._copy = bare_copy(module).requires_grad_(False)
        # The tensors as they were read: the copy computes in the base's dtype, a save gives back what was read.
        self._stored = dict(values) if values is not None else None
        if values is not None:
            _load(self._copy, values, path)
        self._parameter_names: dict[str, str] = {}

    def register(self, module: nn.Module, prefix: str) -> tuple[str, ...]:
        """Make the copy's parameters trainable, as parameters of *module*; return their flat names."""
        self._stored = None
        for name, parameter in self._copy.named_parameters():
            flat = f"{prefix}__{name.replace('.', '__')}"
            parameter.requires_grad_(True)
            module.register_parameter(flat, parameter)
            self._parameter_names[name] = flat
        return tuple(self._parameter_names.values())

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return what the copy computes, in the mode (train or eval) and on the device of the call."""
        self._follow(module)
        tensor = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        first = next(self._copy.parameters(), None)
        if tensor is not None and first is not None and first.device != tensor.device and not self._parameter_names:
            self._copy.to(tensor.device)
        if self._copy.training != module.training:
            self._copy.train(module.training)
        return self._copy(*args, **kwargs)

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the state of the replacement, by the names that the module's own `state_dict` has."""
        if self._stored is not None:
            return self._stored
        self._follow(module)
        return dict(self._copy.state_dict())

    def load(self, module: nn.Module, values: Mapping[str, Tensor], path: str) -> None:
        """Replace the values of the replacement, in place."""
        self._follow(module)
        _load(self._copy, values, path)

    def _follow(self, module: nn.Module) -> None:
        """Take the parameters that *module* has now: `.to()` and sharding may have replaced the objects."""
        for name, flat in self._parameter_names.items():
            owner, _, leaf = name.rpartition(".")
            self._copy.get_submodule(owner)._parameters[leaf] = module._parameters[flat]  # noqa: SLF001


def _load(module: nn.Module, values: Mapping[str, Tensor], path: str) -> None:
    """Copy *values* into *module*; every tensor must have its place, and every place its tensor."""
    own = module.state_dict()
    for name in sorted(own.keys() ^ values.keys()):
        found = "no tensor for it" if name in own else "a tensor that the module has no place for"
        raise CompatibilityError(
            f"`{path}.{name}`: the adapter has {found}", hint="the head of this model is another one than the adapter's"
        )
    for name, value in values.items():
        if own[name].shape != value.shape:
            raise CompatibilityError(
                f"`{path}.{name}` has shape {list(own[name].shape)} in this model, {list(value.shape)} in the adapter",
                hint="load the base model with the number of labels that the adapter was trained with (`num_labels=`)",
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(values[name])
