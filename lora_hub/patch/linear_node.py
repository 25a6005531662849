"""The autograd node of a frozen linear layer and the one adapter that is trained on it: both in one, for its speed.

What `add_with_gradients` adds to any base layer is a node of its own, so that autograd has two gradients of the input
to sum. Here the second is added onto the first, and ``s = x A^T`` is kept: it is as small as the rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from lora_hub.patch.stack import add_one, gradients_of_one


def adapted_linear(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    """Return ``x W^T + b + alpha x A^T B^T``, as part of autograd's graph; W and b are frozen, A and B of one dtype."""
    return _AdaptedLinear.apply(x, weight, bias, A, B, alpha)  # type: ignore[no-any-return, no-untyped-call]


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        A: Tensor,
        B: Tensor,
        alpha: float,
    ) -> Tensor:
        y = linear(x, weight, bias)
        ctx.save_for_backward(x, weight, A, B, add_one(y, x, A, B, alpha))
        ctx.alpha = alpha
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        x, weight, A, B, s = ctx.saved_tensors
        # Autograd does not know what s depends on: to be differentiated once more, it is computed again.
        kept = None if torch.is_grad_enabled() else s
        onto = torch.mm(dy.reshape(-1, dy.shape[-1]), weight).view(x.shape) if ctx.needs_input_grad[0] else None
        dx, dA, dB = gradients_of_one(dy, x, A, B, ctx.alpha, s=kept, onto=onto)
        return dx, None, None, dA, dB, None
