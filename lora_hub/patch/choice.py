"""Which adapters run: a choice that belongs to the calling context and to one model.

The choice is a context variable, so threads and asyncio tasks never clash. A backward pass may run in another context
(another thread, after the block was left), and gradient checkpointing calls the forward again from there. So inside
`use` every tensor that autograd saves carries the choice it was saved under; when a node of the backward unpacks one,
forwards that this node starts see that choice again.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ParamSpec, Protocol, Self, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

P = ParamSpec("P")
T = TypeVar("T")

Plan = tuple[tuple[str, float], ...]  # name and weight x scale of each adapter that runs on top of the weights
_Node = tuple[int, int, str]  # a node of one running backward: graph task, sequence number, name


class Chooses(Protocol):
    """The state of one model, for which a choice can be made."""

    def check(self, weights: Mapping[str, float]) -> None:
        """Raise if the model cannot run with *weights*."""


@dataclass(slots=True)
class Choice:
    """The weight of each chosen adapter, by name; empty is the bare base. Keeps the plan that was last made of it."""

    weights: Mapping[str, float]
    plan: tuple[int, Plan] | None = None  # and the version of the model's state that it was made for


@dataclass(frozen=True, slots=True, weakref_slot=True)
class _Scope:
    """The choices of one context, by model, and the node of the backward in which they were made, if in one."""

    choices: Mapping[Chooses, Choice]
    during: _Node | None = None


@dataclass(frozen=True, slots=True)
class _Recomputation:
    """Forwards that *node* of a backward starts belong to the scope of the forward that saved its tensors."""

    node: _Node
    scope: weakref.ref[_Scope]


_EVERYTHING_DEFAULT = _Scope(MappingProxyType({}))
_scope: ContextVar[_Scope] = ContextVar("lora_hub_choice", default=_EVERYTHING_DEFAULT)
_recomputation: ContextVar[_Recomputation | None] = ContextVar("lora_hub_recomputation", default=None)


_hooks_are_allowed: Callable[[], bool] = getattr(torch._C._autograd, "_saved_tensors_hooks_is_enabled")  # noqa: B009, SLF001 - the stubs lack it


def chosen(patch: Chooses) -> Choice | None:
    """Return what this context chose for the model of *patch*, or None for the model's default set."""
    return _current_scope().choices.get(patch)


def _current_scope() -> _Scope:
    scope, node = _scope.get(), _running_node()
    if scope.during == node:
        return scope
    # In a backward, whatever context it runs in: what counts is the context of the forward.
    recomputation = _recomputation.get()
    if node is not None and recomputation is not None and recomputation.node == node:
        return recomputation.scope() or _EVERYTHING_DEFAULT
    return _EVERYTHING_DEFAULT


def _running_node() -> _Node | None:
    """Return the node that autograd executes in this thread, or None outside of a backward."""
    task = torch._C._current_graph_task_id()  # noqa: SLF001 - as torch.utils.checkpoint does
    if task == -1:
        return None
    node = torch._C._current_autograd_node()  # noqa: SLF001
    return (task, node._sequence_nr(), node.name()) if node is not None else None  # noqa: SLF001


def _pack(tensor: Tensor) -> tuple[_Scope, Tensor]:
    # Not the scope of the `use` that installed this hook: hooks are kept per thread, and tasks share a thread.
    return _current_scope(), tensor


def _unpack(packed: tuple[_Scope, Tensor]) -> Tensor:
    scope, tensor = packed
    node = _running_node()
    if node is not None:
        _recomputation.set(_Recomputation(node, weakref.ref(scope)))
    return tensor


@dataclass(slots=True)
class Use:
    """A context in which exactly the chosen adapters of one model run. Can be entered again and nested."""

    patch: Chooses
    choice: Choice
    _entered: list[tuple[Token[_Scope], saved_tensors_hooks | None]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.patch.check(self.choice.weights)
        outer = _current_scope()
        scope = _Scope(MappingProxyType({**outer.choices, self.patch: self.choice}), _running_node())
        self._entered.append((_scope.set(scope), _start_recording()))
        return self

    def __exit__(self, *_: object) -> None:
        token, hooks = self._entered.pop()
        if hooks is not None:
            hooks.__exit__()
        _scope.reset(token)

    def bind(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return *function* such that it runs under this choice in whatever thread it is called."""

        @functools.wraps(function)
        def bound(*args: P.args, **kwargs: P.kwargs) -> T:
            with Use(self.patch, self.choice):
                return function(*args, **kwargs)

        return bound


def _start_recording() -> saved_tensors_hooks | None:
    """Let autograd's saved tensors carry the choice, where autograd records and allows hooks."""
    # torch.func transforms forbid hooks; they cannot be checkpointed either.
    if not torch.is_grad_enabled() or not _hooks_are_allowed():
        return None
    hooks = saved_tensors_hooks(_pack, _unpack)
    hooks.__enter__()
    return hooks
