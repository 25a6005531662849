"""Which adapters run: a choice that belongs to the calling context and to one model.

The choice is a context variable, so threads and asyncio tasks never clash. A backward pass may run in another context
(another thread, after the block was left), and gradient checkpointing calls the forward again from there. So inside
`use` every tensor that autograd saves carries the scope it was saved under; when a node of the backward unpacks one,
forwards that this node starts see that scope again.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, ParamSpec, Protocol, Self, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lora_hub.errors import StateError

if TYPE_CHECKING:
    from lora_hub.patch.plan import Plan

P = ParamSpec("P")
T = TypeVar("T")

_Node = tuple[int, int, str]  # a node of one running backward: graph task, sequence number, name


class PatchedModel(Protocol):
    """The state of one model under adapters, as its modules and `use` see it."""

    @property
    def model(self) -> nn.Module:
        """The model."""

    def plan(self) -> Plan:
        """Return what runs in the calling context."""

    def check(self, choice: Choice) -> None:
        """Raise if the model cannot run with *choice*."""

    def warn_of_hidden(self, module: nn.Module) -> None:
        """Warn if a `state_dict` that leaves out the parameters of *module* loses training."""


@dataclass(slots=True)
class Choice:
    """The weight of each chosen adapter, by name, for each row of a batch. Keeps the plan that was last made of it.

    Attributes:
        sums: The distinct choices; an empty one is the bare base.
        rows: Which of them each row runs; one entry if all rows run the same.
        meant: The adapters that were chosen by their handles; other ones of their names are not meant.
        plan: The plan, and the state of the model that it was made for.
    """

    sums: tuple[Mapping[str, float], ...]
    rows: tuple[int, ...] = (0,)
    meant: Mapping[str, object] = field(default_factory=dict)
    plan: tuple[object, Plan] | None = None


@dataclass(frozen=True, slots=True)
class _Scope:
    """The choices of one context, by model, and the node of the backward in which they were made, if in one."""

    choices: Mapping[PatchedModel, Choice]
    during: _Node | None = None


@dataclass(frozen=True, slots=True)
class _Saved:
    """A tensor that autograd saved, the scope it was saved under, and its version, which hooks hide from autograd."""

    tensor: Tensor
    scope: _Scope
    version: int


@dataclass(frozen=True, slots=True)
class _Recomputation:
    """Forwards that *node* of a backward starts belong to the scope of the forward that saved its tensors."""

    node: _Node
    scope: _Scope


_EVERYTHING_DEFAULT = _Scope(MappingProxyType({}))
_scope: ContextVar[_Scope] = ContextVar("lora_hub_scope", default=_EVERYTHING_DEFAULT)
# Of each thread, not of its context: compiled backwards run in a copy of the context in which `backward` was called.
_thread = threading.local()
# What each block that is entered in this context has to give back when it is left.
_entered: ContextVar[tuple[tuple[_Scope, saved_tensors_hooks | None], ...]] = ContextVar("lora_hub_entered", default=())

_graph_task = torch._C._current_graph_task_id  # noqa: SLF001 - as torch.utils.checkpoint does; -1 outside of a backward
# The stubs of torch lack it.
_hooks_are_allowed: Callable[[], bool] = getattr(torch._C._autograd, "_saved_tensors_hooks_is_enabled")  # noqa: B009, SLF001


def chosen(patch: PatchedModel) -> Choice | None:
    """Return what this context chose for the model of *patch*, or None for the model's default set."""
    scope = _scope.get()
    if scope.during is not None or _graph_task() != -1:
        scope = _current_scope()
    return scope.choices.get(patch)


def _current_scope() -> _Scope:
    scope, node = _scope.get(), _running_node()
    if scope.during == node:
        return scope
    # In a backward, whatever context it runs in: what counts is the context of the forward.
    recomputation: _Recomputation | None = getattr(_thread, "recomputation", None)
    if node is not None and recomputation is not None and recomputation.node == node:
        return recomputation.scope
    return _EVERYTHING_DEFAULT


def _running_node() -> _Node | None:
    """Return the node that autograd executes in this thread, or None outside of a backward."""
    task = _graph_task()
    if task == -1:
        return None
    node = torch._C._current_autograd_node()  # noqa: SLF001
    return (task, node._sequence_nr(), node.name()) if node is not None else None  # noqa: SLF001


def _pack(tensor: Tensor) -> _Saved:
    # Not the scope of the `use` that installed this hook: hooks are kept per thread, and tasks share a thread.
    # Detached, since it may be the very output whose node keeps what is returned here: a cycle that nothing collects.
    return _Saved(tensor.detach(), _current_scope(), _version(tensor))


def _unpack(saved: _Saved) -> Tensor:
    if _version(saved.tensor) != saved.version:
        raise RuntimeError(
            f"a tensor of shape {list(saved.tensor.shape)} was changed in place, but the backward needs it as it was"
        )
    node = _running_node()
    if node is not None:
        _remember(_Recomputation(node, saved.scope))
    return saved.tensor


def _remember(recomputation: _Recomputation) -> None:
    """Let forwards of this node see the scope, until the backward ends: it keeps the model alive."""
    before: _Recomputation | None = getattr(_thread, "recomputation", None)
    _thread.recomputation = recomputation
    if before is None or before.node[0] != recomputation.node[0]:
        # It runs at the end of this backward, maybe in another thread.
        torch.autograd.Variable._execution_engine.queue_callback(  # noqa: SLF001
            functools.partial(_thread.__dict__.pop, "recomputation", None)
        )


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001


@dataclass(frozen=True, slots=True)
class Use:
    """A context in which exactly the chosen adapters of one model run. May be entered again, nested, and shared."""

    patch: PatchedModel
    choice: Choice

    def __enter__(self) -> Self:
        self.patch.check(self.choice)
        scope = _Scope(MappingProxyType({**_current_scope().choices, self.patch: self.choice}), _running_node())
        _entered.set((*_entered.get(), (_scope.get(), _start_recording())))
        _scope.set(scope)
        return self

    def __exit__(self, *_: object) -> None:
        if not _entered.get():
            raise StateError("a `use` block is left in another context than it was entered in", hint="use `bind`")
        *others, (before, hooks) = _entered.get()
        _entered.set(tuple(others))
        _scope.set(before)
        if hooks is not None:
            hooks.__exit__()

    def bind(self, function: Callable[P, T]) -> Callable[P, T]:
        """Return *function* such that it runs under this choice in whatever thread it is called."""

        @functools.wraps(function)
        def bound(*args: P.args, **kwargs: P.kwargs) -> T:
            with self:
                return function(*args, **kwargs)

        return bound


def _start_recording() -> saved_tensors_hooks | None:
    """Let autograd's saved tensors carry the scope, where hooks are allowed: not inside of torch.func transforms."""
    if not _hooks_are_allowed():
        return None
    hooks = saved_tensors_hooks(_pack, _unpack)
    hooks.__enter__()
    return hooks
