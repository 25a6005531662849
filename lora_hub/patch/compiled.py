"""Adapters in compiled code: operators that read the choice when they run, so that a graph holds for every choice.

`torch.compile` can trace neither a context variable nor what depends on it. What it sees instead is one operator that
gets the module's input and output, and a number by which it finds the module.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.library import Library

from lora_hub.errors import StateError
from lora_hub.patch.record import RECORD, Record

if TYPE_CHECKING:
    from lora_hub.patch.plan import Plan

_modules: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
_numbers = itertools.count()
_library: Any = Library("lora_hub", "FRAGMENT")  # type: ignore[no-untyped-call]
# A captured CUDA graph would repeat whatever ran when it was captured.
_TAGS = (torch.Tag.cudagraph_unsafe, torch.Tag.needs_fixed_stride_order)


def number(module: nn.Module) -> Tensor:
    """Return a new number for *module*: a tensor, since a compiler takes a plain number for a constant of the code."""
    found = next(_numbers)
    _modules[found] = module
    return torch.scalar_tensor(found, dtype=torch.int64)


def add_compiled(module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    """Return *y* plus what the adapters that run add to it, in code that is being compiled."""
    record: Record = module.__dict__[RECORD]
    if not torch.is_grad_enabled():
        y = y if module.lora_hub_output_is_fresh else y.clone()
        torch.ops.lora_hub.add_.default(y, x, record.number)
        return y
    names = [name for names in record.parameter_names.values() for name in names]
    seed = torch.randint(1 << 62, (), device="cpu") if names and module.training else None
    return torch.ops.lora_hub.add.default(  # type: ignore[no-any-return]
        y, x, record.number, [getattr(module, name) for name in names], seed
    )[0]


def _found(number: Tensor) -> tuple[nn.Module, Record]:
    module = _modules[int(number)]
    return module, module.__dict__[RECORD]


def _named(record: Record, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    names = [name for names in record.parameter_names.values() for name in names]
    return dict(zip(names, parameters, strict=True))


def _add_in_place(y: Tensor, x: Tensor, number: Tensor) -> None:
    module, record = _found(number)
    record.patch.plan().add_in_place(module, record, y, x)


def _add(
    y: Tensor, x: Tensor, number: Tensor, parameters: Sequence[Tensor], seed: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return *y* plus the deltas, and a tensor by which the backward finds the plan that ran."""
    module, record = _found(number)
    plan = record.patch.plan()
    y = y.clone(memory_format=torch.contiguous_format)
    plan.step(module, record, x).add_to(y, x, _named(record, parameters), int(seed) if seed is not None else None)
    ran = torch.tensor(plan.number)
    ran.lora_hub_plan = plan  # type: ignore[attr-defined] # alive as long as autograd keeps the tensor
    return y, ran


def _plan_that_ran(record: Record, ran: Tensor) -> Plan:
    # Inside of `use`, hooks save a copy of the tensor; but then they know the choice.
    plan: Plan = getattr(ran, "lora_hub_plan", None) or record.patch.plan()
    if plan.number != int(ran):
        raise StateError(
            f"the adapters of the model changed between a compiled forward and its backward, at `{record.path}`",
            hint="run the backward first",
        )
    return plan


def _gradients(
    dy: Tensor, x: Tensor, number: Tensor, ran: Tensor, parameters: Sequence[Tensor], seed: Tensor | None
) -> list[Tensor]:
    """Return the gradient of *x* and those of all *parameters*: zeros for those that did not run."""
    module, record = _found(number)
    named = _named(record, parameters)
    step = _plan_that_ran(record, ran).step(module, record, x)
    dx, found = step.gradients(dy, x, x.dtype, named, int(seed) if seed is not None else None, wants_x=True)
    for name in named.keys() - found.keys():
        _keep_without_gradient(getattr(module, name))
    dx = torch.zeros_like(x, memory_format=torch.contiguous_format) if dx is None else dx.reshape(x.shape)
    of_parameters = [found[n].to(p.dtype).contiguous() if n in found else torch.zeros_like(p) for n, p in named.items()]
    return [dx.contiguous(), *of_parameters]


def _keep_without_gradient(parameter: Tensor) -> None:
    """Let *parameter*, which has no gradient, have none after this backward as well, unless it runs elsewhere.

    A compiled graph gives every parameter a gradient. One of zeros is not none: optimizers would decay the weight.
    """

    def drop(changed: Tensor) -> None:
        handle.remove()
        if changed.grad is not None and not changed.grad.any():
            changed.grad = None

    if parameter.grad is None and parameter.is_leaf and parameter.requires_grad:
        handle = parameter.register_post_accumulate_grad_hook(drop)  # type: ignore[no-untyped-call]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ANN401
    _, x, number, parameters, seed = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, number, output[1], seed, *parameters)


def _backward(ctx: Any, dy: Tensor, _: Any) -> tuple[Any, ...]:  # noqa: ANN401
    x, number, ran, seed, *parameters = ctx.saved_tensors
    dx, *found = torch.ops.lora_hub.gradients.default(dy, x, number, ran, parameters, seed)
    return dy, dx, None, found, None


def _fake_add(y: Tensor, _x: Tensor, number: Tensor, *_: Any) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    return torch.empty_like(y, memory_format=torch.contiguous_format), torch.empty_like(number)


def _fake_gradients(
    _dy: Tensor, x: Tensor, _number: Tensor, _ran: Tensor, parameters: Sequence[Tensor], _seed: Tensor | None
) -> list[Tensor]:
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, *parameters)]


def _define(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    _library.define(schema, tags=_TAGS)
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lora_hub::{name}", fake, lib=_library)


_define("add_(Tensor(a!) y, Tensor x, Tensor number) -> ()", _add_in_place, lambda *_: None)
_define(
    "add(Tensor y, Tensor x, Tensor number, Tensor[] parameters, Tensor? seed) -> (Tensor, Tensor)", _add, _fake_add
)
_define(
    "gradients(Tensor dy, Tensor x, Tensor number, Tensor ran, Tensor[] parameters, Tensor? seed) -> Tensor[]",
    _gradients,
    _fake_gradients,
)
torch.library.register_autograd("lora_hub::add", _backward, setup_context=_setup, lib=_library)
