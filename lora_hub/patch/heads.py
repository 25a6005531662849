"""Modules that an adapter replaces as a whole (PEFT's ``modules_to_save``): classifiers and other heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lora_hub.errors import CompatibilityError, StateError
from lora_hub.patch.layer import bare_copy


class Head:
    """A copy of a module with weights of its own, run in place of the module while its adapter is active.

    The copy is not a submodule, so names and `state_dict` stay the base's. While it is trained, its parameters are also
    registered on the module under flat names, where optimizers find them.
    """

    def __init__(self, module: nn.Module, values: Mapping[str, Tensor] | None, path: str) -> None:
        if any(tensor.device.type == "meta" for tensor in (*module.parameters(), *module.buffers())):
            raise StateError(f"`{path}` is offloaded, so it cannot be replaced", hint="load the model on a device")
        self._copy = bare_copy(module).requires_grad_(False)
        # The tensors as they were read: the copy computes in the base's dtype, a save gives back what was read.
        self._stored = dict(values) if values is not None else None
        if values is not None:
            _load(self._copy, values, path)
        self._flat_names: dict[str, str] = {}

    def trainable_parameters(self, prefix: str) -> dict[str, nn.Parameter]:
        """Return the copy's parameters, to be trained as parameters of the module, by their flat names there."""
        self._stored = None
        self._flat_names = {n: f"{prefix}%{n.replace('.', '%2E')}" for n, _ in self._copy.named_parameters()}
        parameters = dict(self._copy.requires_grad_(True).named_parameters())
        return {flat: parameters[name] for name, flat in self._flat_names.items()}

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
        """Return what the copy computes, in the mode (train or eval), on the device and in the dtype of *module*."""
        self._follow(module)
        if self._copy.training != module.training:
            self._copy.train(module.training)
        # Not its `__call__`: the module's hooks run around this call already.
        return self._copy.forward(*args, **kwargs)

    def tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the state of the head, by the names that the module's own `state_dict` has."""
        if self._stored is not None:
            return self._stored
        self._follow(module)
        return dict(self._copy.state_dict())

    def _follow(self, module: nn.Module) -> None:
        """Go where *module* went: `.to()` and sharding may have moved, cast or replaced what it holds."""
        for name, flat in self._flat_names.items():
            owner, leaf = _owner(self._copy, name)
            owner._parameters[leaf] = module._parameters[flat]  # noqa: SLF001
        for name, mine in (*self._copy.named_parameters(), *self._copy.named_buffers()):
            if name not in self._flat_names:
                owner, leaf = _owner(module, name)
                self._place(name, mine, getattr(owner, leaf))

    def _place(self, name: str, mine: Tensor, like: Tensor) -> None:
        if mine.device != like.device or mine.dtype != like.dtype:
            with torch.inference_mode(False), torch.no_grad():
                stored = (self._stored or {}).get(name, mine)
                mine.data = stored.to(like.device, like.dtype)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


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
                hint="load the base as the adapter was trained on it: the same number of labels (`num_labels=`), or of "
                "tokens",
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(values[name])
