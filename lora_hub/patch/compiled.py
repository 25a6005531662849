"""Adapters in compiled code: operators that read the choice when they run, so that a graph holds for every choice.

`torch.compile` can trace neither a context variable nor what depends on it. What it sees instead is one operator that
gets the module's input and output, and a number by which it finds the module.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.library import Library

from lora_hub.patch.record import RECORD, Record
from lora_hub.patch.step import Step

_modules: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()
_numbers = itertools.count()
_library: Any = Library("lora_hub", "FRAGMENT")  # type: ignore[no-untyped-call]
# A captured CUDA graph would repeat whatever ran when it was captured.
_TAGS = (torch.Tag.cudagraph_unsafe, torch.Tag.needs_fixed_stride_order)


def number(module: nn.Module) -> Tensor:
    """Return a new number for *module*: a tensor, since a compiler takes a plain number for a constant of the code."""
    found = next(_numbers)
    _modules[found] = module
    return torch.tensor(found)


def add_compiled(module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    """Return *y* plus what the adapters that run add to it, in code that is being compiled."""
    record: Record = module.__dict__[RECORD]
    if not torch.is_grad_enabled():
        torch.ops.lora_hub.add_.default(y, x, record.number)
        return y
    names = [name for names in record.parameter_names.values() for name in names]
    seed = torch.randint(1 << 62, (), device="cpu") if names and module.training else None
    return torch.ops.lora_hub.add.default(  # type: ignore[no-any-return]
        y, x, record.number, [getattr(module, name) for name in names], seed
    )


def _step(number: Tensor, x: Tensor) -> tuple[nn.Module, Step]:
    module = _modules[int(number)]
    record: Record = module.__dict__[RECORD]
    return module, record.patch.plan().step(module, record, x)


def _named(module: nn.Module, parameters: Sequence[Tensor]) -> dict[str, Tensor]:
    record: Record = module.__dict__[RECORD]
    names = [name for names in record.parameter_names.values() for name in names]
    return dict(zip(names, parameters, strict=True))


def _add_in_place(y: Tensor, x: Tensor, number: Tensor) -> None:
    module = _modules[int(number)]
    record: Record = module.__dict__[RECORD]
    record.patch.plan().add(module, record, y, x)


def _add(y: Tensor, x: Tensor, number: Tensor, parameters: Sequence[Tensor], seed: Tensor | None) -> Tensor:
    module, step = _step(number, x)
    y = y.clone(memory_format=torch.contiguous_format)
    step.add_to(y, x, _named(module, parameters), int(seed) if seed is not None else None)
    return y


def _gradients(
    dy: Tensor, x: Tensor, number: Tensor, parameters: Sequence[Tensor], seed: Tensor | None
) -> list[Tensor]:
    """Return the gradient of *x* and those of all *parameters*: zeros for those that did not run."""
    module, step = _step(number, x)
    named = _named(module, parameters)
    seeded = int(seed) if seed is not None else None
    dx, found = step.gradients(dy, x, x.dtype, named, seeded, wants_x=True)
    dx = torch.zeros_like(x, memory_format=torch.contiguous_format) if dx is None else dx.view(x.shape)
    of_parameters = [found[n].to(p.dtype).contiguous() if n in found else torch.zeros_like(p) for n, p in named.items()]
    return [dx, *of_parameters]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ANN401, ARG001
    _, x, number, parameters, seed = inputs
    ctx.save_for_backward(x, number, seed, *parameters)


def _backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:  # noqa: ANN401
    x, number, seed, *parameters = ctx.saved_tensors
    dx, *found = torch.ops.lora_hub.gradients.default(dy, x, number, parameters, seed)
    return dy, dx, None, found, None


def _fake_add(y: Tensor, *_: Any) -> Tensor:  # noqa: ANN401
    return torch.empty_like(y, memory_format=torch.contiguous_format)


def _fake_gradients(_dy: Tensor, x: Tensor, _number: Tensor, parameters: Sequence[Tensor], _seed: Any) -> list[Tensor]:  # noqa: ANN401
    return [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in (x, *parameters)]


def _define(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema.partition("(")[0]
    _library.define(schema, tags=_TAGS)
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lora_hub::{name}", fake, lib=_library)


_define("add_(Tensor(a!) y, Tensor x, Tensor number) -> ()", _add_in_place, lambda *_: None)
_define("add(Tensor y, Tensor x, Tensor number, Tensor[] parameters, Tensor? seed) -> Tensor", _add, _fake_add)
_define(
    "gradients(Tensor dy, Tensor x, Tensor number, Tensor[] parameters, Tensor? seed) -> Tensor[]",
    _gradients,
    _fake_gradients,
)
torch.library.register_autograd("lora_hub::add", _backward, setup_context=_setup, lib=_library)
