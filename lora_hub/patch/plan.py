"""What runs: the adapters of each row, from who is there and what was chosen; and what cannot run together."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional

from lora_hub.errors import StateError
from lora_hub.patch.factors import computing_dtype, training_dtype
from lora_hub.patch.linear_node import adapted_linear
from lora_hub.patch.node import add_with_gradients
from lora_hub.patch.record import Record
from lora_hub.patch.rows import check_rows
from lora_hub.patch.stack import add
from lora_hub.patch.step import Step, make_step
from lora_hub.patch.table import Order, Table, Terms, sums_on

if TYPE_CHECKING:
    from lora_hub.patch.applied_adapter import AppliedAdapter

_numbers = itertools.count()
_ONE = Order((0,), 1)
_is_grad_enabled = torch.is_grad_enabled
_tracing_state = torch._C._get_tracing_state  # noqa: SLF001
_is_any_autocast_enabled = torch._C._is_any_autocast_enabled  # noqa: SLF001
_is_transforming = torch._C._are_functorch_transforms_active  # noqa: SLF001 - torch.func, whose rules are not ours


class Plan:
    """What each row of a batch runs, and what every module made of that: immutable but for what it keeps."""

    __slots__ = ("_steps", "handles", "is_bare", "merged", "number", "order", "rows", "sums", "table")

    def __init__(
        self,
        sums: tuple[Terms, ...],
        rows: tuple[int, ...],  # which of the sums each row runs; one entry if all run the same
        handles: tuple[AppliedAdapter, ...],
        merged: tuple[AppliedAdapter, ...],
    ) -> None:
        self.sums = sums
        self.rows = rows
        self.number = next(_numbers)  # that no other plan has
        self.is_bare = not any(sums)  # nothing runs on top of the weights
        self.handles = handles  # that were chosen, also with weight 0
        self.merged = merged  # at the time; more or less would need another plan
        self.table: Table | None = None  # computes what it can: inference with frozen adapters, each row its own
        self.order = _ONE
        self._steps: dict[Record, Step] = {}

    def __getstate__(self) -> tuple[Any, ...]:
        return self.sums, self.rows, self.handles, self.merged

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def holds(self, handles: Mapping[str, AppliedAdapter], merged: tuple[AppliedAdapter, ...]) -> bool:
        """Whether the plan is right still when these *handles* are there and *merged* is merged."""
        return self.merged == merged and all(handles.get(handle.name) is handle for handle in self.handles)

    def use_table(self, table: Table) -> None:
        """Let *table* compute what it can."""
        self.order = table.order(self.rows, self.sums)
        self.table = table

    def add(self, module: nn.Module, record: Record, y: Tensor, x: Tensor) -> Tensor:
        """Return *y* plus what the adapters compute in *module* from its input *x*; *y* is changed in place."""
        if not module.lora_hub_output_is_fresh:
            y = y.clone()
        step = self._steps.get(record)
        kept = step.kept if step is not None and step.dtype is x.dtype and step.device == x.device else None
        if kept is None or _is_grad_enabled() or _is_transforming() or _is_any_autocast_enabled():
            return self._add(module, record, y, x)
        add(y, x, kept)  # what nearly every call of a decoder takes
        return y

    def linear(self, module: nn.Module, record: Record, x: Tensor) -> Tensor:
        """Return what a plain linear *module* computes from *x*, plus what the adapters do, where gradients may be."""
        parameters: Mapping[str, Any] = module._parameters  # noqa: SLF001 - `__getattr__` is slow
        weight, bias = parameters["weight"], parameters["bias"]
        if _is_plain(x, weight, bias) and not _is_watched():
            step = self.step(module, record, x)
            if step.only is not None and not (step.has_dropout and module.training):
                name_A, name_B, alpha = step.only
                A, B = parameters[name_A], parameters[name_B]
                if step.is_simple(x, A, B):
                    return adapted_linear(x, weight, bias, A, B, alpha)
        return self.add(module, record, functional.linear(x, weight, bias), x)

    def add_in_place(self, module: nn.Module, record: Record, y: Tensor, x: Tensor) -> None:
        """Add to *y* what the adapters compute in *module* from its input *x*, without gradients."""
        with torch.no_grad():
            self._add(module, record, y, x)

    def _add(self, module: nn.Module, record: Record, y: Tensor, x: Tensor) -> Tensor:
        is_traced = _is_transforming() or bool(_tracing_state()) or torch.compiler.is_exporting()
        if (
            self.table is not None
            and not (is_traced or _is_grad_enabled())
            and self.table.add(module, record, y, x, self.order)
        ):
            return y
        step = self.step(module, record, x)
        parameters = {name: getattr(module, name) for name in step.parameter_names}
        if is_traced or forward_ad._current_level >= 0:  # noqa: SLF001
            return step.added_to(y, x, parameters, training=module.training)
        if not (_is_grad_enabled() and (parameters or x.requires_grad or y.requires_grad)):
            step.add_to(y, x, parameters, _seed(module, step))
            return y
        return add_with_gradients(y, x, step, parameters, _seed(module, step))

    def adds_to(self, module: nn.Module) -> bool:
        """Whether an adapter that runs for some row adds to *module*."""
        return any(handle.delta(module) is not None for terms in self.sums for handle, _ in terms)

    def step(self, module: nn.Module, record: Record, x: Tensor) -> Step:
        """Return what *module* computes for inputs such as *x*."""
        dtype = computing_dtype(x)
        step = self._steps.get(record)
        if (
            step is None
            or step.dtype is not dtype
            or step.device != x.device
            or (step.parameter_names and step.wide is not training_dtype(x, _parameters(module, step.parameter_names)))
        ):
            self._steps[record] = step = self._make_step(module, x, dtype)
        if step.rows > 1:
            check_rows(x, step.rows, record)
        return step

    def _make_step(self, module: nn.Module, x: Tensor, dtype: torch.dtype) -> Step:
        sums = sums_on(module, self.sums)
        names = [name for terms in sums for delta, _ in terms for name in delta.parameter_names]
        return make_step(sums, self.rows, x.device, dtype, training_dtype(x, _parameters(module, names)))

    def replacing(self, record: Record) -> tuple[str | None, ...]:
        """Return, for each of the sums, whose copy is run in place of the module; None is the module itself."""
        return tuple(
            next((handle.name for handle, _ in terms if handle.name in record.replacements), None)
            for terms in self.sums
        )


def _is_plain(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether these are tensors of torch's own kind, and the layer is frozen."""
    return (
        type(x) is Tensor
        and type(weight) is nn.Parameter
        and not weight.requires_grad
        and (bias is None or (type(bias) is nn.Parameter and not bias.requires_grad))
    )


def _is_watched() -> bool:
    """Whether something looks at the operations themselves: a tracer, a transform, forward AD, autocast."""
    return (
        _is_transforming()
        or bool(_tracing_state())
        or torch.compiler.is_exporting()
        or forward_ad._current_level >= 0  # noqa: SLF001
        or _is_any_autocast_enabled()
    )


def _parameters(module: nn.Module, names: Iterable[str]) -> list[Tensor]:
    return [getattr(module, name) for name in names]


def _seed(module: nn.Module, step: Step) -> int | None:
    """Return a new seed of dropout, from torch's own random numbers, if there is anything to drop."""
    return int(torch.randint(1 << 62, (), device="cpu")) if step.has_dropout and module.training else None


def make_plan(
    handles: Mapping[str, AppliedAdapter],
    merged: tuple[AppliedAdapter, ...],
    sums: Sequence[Mapping[str, float]],
    rows: tuple[int, ...] = (0,),
) -> Plan:
    """Return the plan in which each of the *rows* runs one of the *sums*, each the weights of adapters by name.

    Raises:
        StateError: A chosen adapter was removed, a merged one would have to be off or weaker, or heads collide.
    """
    terms = [_terms(handles, merged, weights) for weights in sums]
    chosen = tuple({handles[name]: None for weights in sums for name in weights})
    number_of = {some: number for number, some in enumerate(dict.fromkeys(terms))}  # several weights may mean the same
    means = tuple(number_of[terms[row]] for row in rows)
    return Plan(tuple(number_of), means if len(number_of) > 1 else (0,), chosen, merged)


def _terms(
    handles: Mapping[str, AppliedAdapter], merged: Collection[AppliedAdapter], weights: Mapping[str, float]
) -> Terms:
    terms = []
    for name, weight in weights.items():
        handle = handles.get(name)
        if handle is None:
            raise StateError(f"the adapter `{name}` was removed while it is in use", hint="leave the `use` block first")
        # A factor of 0 is off, for a head as well.
        if handle not in merged and weight * handle.scale:
            terms.append((handle, weight * handle.scale))
    for handle in merged:
        if weights.get(handle.name) != 1:
            raise StateError(
                f"`{handle.name}` is merged into the weights, so it cannot run with weight "
                f"{weights.get(handle.name, 0)}",
                hint=f"`unmerge()` it first, or choose it with weight 1: {{{handle.name!r}: 1, …}}",
            )
    check_heads([*(handle for handle, _ in terms), *merged])
    return tuple(sorted(terms, key=lambda term: term[0].arrival))


def check_heads(handles: Iterable[AppliedAdapter]) -> None:
    """Raise `StateError` if one of *handles* changes what another replaces: its change would be lost."""
    handles = tuple(handles)
    owner: dict[int, str] = {}
    for handle in handles:
        for path in handle.heads:
            owner |= {id(child): owner.get(id(child), handle.name) for child in handle.modules[path].modules()}
    for handle in handles if owner else ():
        for path, module in handle.modules.items():
            other = owner.get(id(module), handle.name)
            if other != handle.name:
                raise StateError(
                    f"`{other}` and `{handle.name}` both change `{path}`, which one of them replaces: not at once",
                    hint="apply one with `active=False`, and choose with `use`",
                )
