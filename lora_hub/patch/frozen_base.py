"""The base while adapters are trained: it has no gradients, and gets its `requires_grad` back afterwards."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


class FrozenBase:
    """Every parameter of a model, by the module that holds it: the parameter objects themselves may be replaced."""

    def __init__(self, model: nn.Module) -> None:
        self._requires_grad = [
            (module, name, parameter.requires_grad)
            for module in model.modules()
            for name, parameter in module._parameters.items()  # noqa: SLF001
            if parameter is not None
        ]

    def freeze(self) -> None:
        """Let no parameter require a gradient."""
        self._set(lambda _: False)

    def thaw(self) -> None:
        """Let each parameter require a gradient if it did before."""
        self._set(lambda before: before)

    def _set(self, rule: Callable[[bool], bool]) -> None:
        for module, name, before in self._requires_grad:
            parameter = module._parameters.get(name)  # noqa: SLF001
            if parameter is not None:
                parameter.requires_grad_(rule(before))
