"""The one autograd node of adapters: it works over any base layer, and keeps no more than the module's input.

``q``, ``k`` and ``v`` of a layer share their input, so it is kept once. What is as small as the rank is computed again
in the backward; masks of dropout are drawn again from their seed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lora_hub.patch.factors import Parameters
from lora_hub.patch.step import Step


def add_with_gradients(y: Tensor, x: Tensor, step: Step, parameters: Parameters, seed: int | None) -> Tensor:
    """Return *y* plus the deltas of *step*, as part of autograd's graph; *y* itself is changed."""
    whole = y._base if y._is_view() else None  # noqa: SLF001
    if whole is None:
        return _apply(y, x, step, parameters, seed)
    # Autograd copies gradients to and fro for a change in a view. Conv1D's output is all of what it views.
    if whole.numel() == y.numel() and whole.is_contiguous() and y.is_contiguous():
        return _apply(whole, x, step, parameters, seed).view(y.shape)
    return _apply(y.clone(), x, step, parameters, seed)


def _apply(y: Tensor, x: Tensor, step: Step, parameters: Parameters, seed: int | None) -> Tensor:
    return _Add.apply(y, x, step, tuple(parameters), seed, *parameters.values())  # type: ignore[no-any-return, no-untyped-call]


class _Add(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        y: Tensor,
        x: Tensor,
        step: Step,
        names: tuple[str, ...],
        seed: int | None,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.mark_dirty(y)
        step.add_to(y, x, dict(zip(names, parameters, strict=True)), seed)
        ctx.save_for_backward(x if parameters else None, *parameters)
        ctx.step, ctx.names, ctx.seed, ctx.dtype = step, names, seed, x.dtype
        ctx.shape = x.shape
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, *saved = ctx.saved_tensors
        parameters = dict(zip(ctx.names, saved, strict=True))
        wants_x = ctx.needs_input_grad[1]
        dx, found = ctx.step.gradients(dy, x, ctx.dtype, parameters, ctx.seed, wants_x=wants_x)
        of_parameters = [found[name].to(parameter.dtype) for name, parameter in parameters.items()]
        return dy, None if dx is None else dx.view(ctx.shape), None, None, None, *of_parameters
