"""All adapters of one model: who is there, who runs, and who is merged."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lora_hub.errors import StateError, UnsavedAdapterWarning, UsageError
from lora_hub.patch.choice import Choice, chosen
from lora_hub.patch.delta import Delta
from lora_hub.patch.frozen_base import FrozenBase
from lora_hub.patch.layer import check_can_be_restored, restore_module
from lora_hub.patch.merge import check_can_merge, check_unchanged, remerge
from lora_hub.patch.plan import Plan, make_plan
from lora_hub.patch.record import Record, record_of
from lora_hub.patch.table import Table

if TYPE_CHECKING:
    from lora_hub.patch.applied_adapter import AppliedAdapter

PATCH = "_lora_hub_patch"  # in the instance dict of the model
_PLANS = 64  # that are kept for choices that come again
_TABLES = 2  # that are kept for routes that come again
_SPARE = 2  # how many choices a table may have, for each that a route needs


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Who is there, who is active, who is merged, and what runs by default, which follows from the three."""

    handles: Mapping[str, AppliedAdapter]
    active: tuple[AppliedAdapter, ...]
    merged: tuple[AppliedAdapter, ...]
    default: Plan

    @classmethod
    def of(
        cls,
        handles: Mapping[str, AppliedAdapter],
        active: tuple[AppliedAdapter, ...],
        merged: tuple[AppliedAdapter, ...],
    ) -> State:
        """Return the state with these adapters; raise `StateError` if they cannot be together."""
        running = sorted({*active, *merged}, key=lambda handle: handle.arrival)
        weights = {handle.name: 1.0 for handle in running}
        return cls(dict(handles), active, merged, make_plan(handles, merged, [weights]))

    def without(self, handle: AppliedAdapter | None) -> State:
        """Return the state without *handle*."""
        handles = {name: other for name, other in self.handles.items() if other is not handle}
        return State.of(handles, _without(self.active, handle), _without(self.merged, handle))

    def having(self, handle: AppliedAdapter, *, active: bool) -> State:
        """Return the state with *handle* as well, active or not."""
        actives = (*_without(self.active, handle), *([handle] if active else []))
        return State.of({**self.handles, handle.name: handle}, actives, self.merged)

    def merging(self, *merged: AppliedAdapter) -> State:
        """Return the state in which exactly *merged* are merged."""
        return State.of(self.handles, self.active, merged)


def _without(handles: tuple[AppliedAdapter, ...], handle: AppliedAdapter | None) -> tuple[AppliedAdapter, ...]:
    return tuple(other for other in handles if other is not handle)


class ModelPatch:
    """The state of one model, and what changes it; installed while at least one adapter is there."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state = State.of({}, (), ())
        self._plans: dict[tuple[tuple[str, float], ...], Plan] = {}
        self._tables: tuple[Table, ...] = ()
        self._frozen: FrozenBase | None = None

    # What runs

    def plan(self) -> Plan:
        """Return what runs in the calling context. Called by every patched module at every call."""
        choice = chosen(self)
        return self.state.default if choice is None else self._plan_of(choice)

    def _plan_of(self, choice: Choice) -> Plan:
        made, state = choice.plan, self.state
        if made is not None and made[0] is state:
            return made[1]
        plan = made[1] if made is not None and made[1].holds(state.handles, state.merged) else self._new_plan(choice)
        choice.plan = (state, plan)
        return plan

    def check(self, choice: Choice) -> None:
        """Raise unless *choice* can run now."""
        for name in (name for weights in choice.sums for name in weights):
            if name not in self.state.handles:
                known = ", ".join(sorted(self.state.handles)) or "none"
                raise UsageError(f"no adapter `{name}` on this model", hint=f"its adapters: {known}")
        self._plan_of(choice)

    def _new_plan(self, choice: Choice) -> Plan:
        """Return the plan of *choice*: if all rows run the same, the one that was last made for these weights."""
        state = self.state
        others = {name for name, handle in choice.meant.items() if state.handles.get(name) is not handle}
        if others:
            handles = {name: handle for name, handle in state.handles.items() if name not in others}
            return make_plan(handles, state.merged, choice.sums, choice.rows)  # raises
        if len(choice.rows) > 1:
            plan = make_plan(state.handles, state.merged, choice.sums, choice.rows)
            if not any(handle.trainable for handle in plan.handles):
                plan.use_table(self._table_of(plan))
            return plan
        key = tuple(choice.sums[0].items())
        plan = self._plans.get(key)
        if plan is None or not plan.holds(state.handles, state.merged):
            self._plans[key] = plan = make_plan(state.handles, state.merged, choice.sums)
            for oldest in list(self._plans)[:-_PLANS]:
                self._plans.pop(oldest, None)
        return plan

    def _table_of(self, plan: Plan) -> Table:
        """Return a table that has the choices of *plan* and not many others; routes to come will find it."""
        tables = [table for table in self._tables if table.holds(self.state.handles)]
        wanted = dict.fromkeys(plan.sums)
        for table in tables:
            if wanted.keys() <= table.number_of.keys() and len(table.sums) <= _SPARE * len(wanted):
                return table
        also = tables[0].sums if tables and len(wanted.keys() | tables[0].number_of) <= _SPARE * len(wanted) else ()
        table = Table((*wanted, *also))
        self._tables = (table, *tables)[:_TABLES]
        return table

    def set_active(self, handle: AppliedAdapter, *, active: bool) -> None:
        """Put *handle* into the default set, or take it out."""
        if handle in self.state.merged and not active:
            raise StateError(f"`{handle.name}` is merged, so it cannot be off", hint="`unmerge()` it first")
        self.state = self.state.having(handle, active=active)

    # Who is there

    def check_can_join(self, handle: AppliedAdapter, predecessor: AppliedAdapter | None, *, active: bool) -> None:
        """Raise if *handle* could not take its place, or *predecessor* could not leave it."""
        if predecessor is not None:
            self._check_can_leave(predecessor)
        self.state.without(predecessor).having(handle, active=active)

    def join(self, handle: AppliedAdapter, *, active: bool) -> None:
        """Take in *handle*, whose modules are patched."""
        self.model.__dict__[PATCH] = self
        self.state = self.state.having(handle, active=active)

    def freeze_base(self) -> None:
        """Let the base have no gradients until the last trainable adapter is removed."""
        if self._frozen is None:
            self._frozen = FrozenBase(self.model)
            self._frozen.freeze()

    def remove(self, handle: AppliedAdapter) -> None:
        """Take *handle* off the model; the last one leaves no trace. If this is interrupted, it can be called again."""
        self._check_can_leave(handle)
        if handle in self.state.merged:
            self.unmerge(handle, force=False)
        self.detach(handle)
        self.settle()

    def _check_can_leave(self, handle: AppliedAdapter) -> None:
        for path, module in handle.modules.items():
            check_can_be_restored(module, path)
            record = record_of(module)
            if handle in self.state.merged and record is not None:
                check_unchanged(module, path, record)

    def detach(self, handle: AppliedAdapter) -> None:
        """Undo whatever was done to attach *handle*, also if that was not finished: first it stops running."""
        if handle in self.state.handles.values():
            self.state = self.state.having(handle, active=False)
        for module in handle.modules.values():
            record = record_of(module)
            if record is not None and record.patch is self:
                for name in record.forget(handle.name):
                    module._parameters.pop(name, None)  # noqa: SLF001
                restore_module(module)
        self.state = self.state.without(handle)

    def settle(self) -> None:
        """Leave no trace of what nobody needs any more: a frozen base, and this state itself."""
        if self._frozen is not None and not any(handle.trainable for handle in self.state.handles.values()):
            self._frozen.thaw()
            self._frozen = None
        if not self.state.handles:
            self.model.__dict__.pop(PATCH, None)

    def put_back(self, handle: AppliedAdapter, before: State) -> None:
        """Return to the state *before*, in which *handle* was, after its pieces were put back on its modules."""
        unmerged = State.of(before.handles, before.active, _without(before.merged, handle))
        self.model.__dict__[PATCH] = self
        self.state = unmerged
        if handle in before.merged:
            self._set_merged(handle, before, force=True)

    def record(self, module: nn.Module) -> Record:
        """Return the record of a *module* that carries adapters."""
        record = record_of(module)
        if record is None:
            raise StateError("a module lost its adapter: another library replaced it", hint="load the model again")
        return record

    def warn_of_hidden(self, module: nn.Module) -> None:
        """Warn, once for each adapter, if a `state_dict` leaves out what was trained and not saved."""
        for handle in self.state.handles.values():
            if next(iter(handle.modules.values())) is module and handle.has_unsaved_changes():
                warnings.warn(
                    f"this `state_dict` is the base model's; the trained adapter `{handle.name}` is not in it: save it "
                    "by `lora_hub.save_adapter(adapter, directory)`, and under `transformers.Trainer` derive from "
                    "`lora_hub.AdapterTrainerMixin`, whose checkpoints hold the adapter",
                    UnsavedAdapterWarning,
                    stacklevel=2,
                )

    # Who is merged

    def merge(self, handle: AppliedAdapter) -> None:
        """Merge *handle* into the weights."""
        if handle in self.state.merged:
            raise StateError(f"`{handle.name}` is merged already", hint="`unmerge()` takes it out again")
        choice = chosen(self)
        if choice is not None and any(weights.get(handle.name) != 1 for weights in choice.sums):
            raise StateError(
                f"this context runs without `{handle.name}`, so it cannot be merged", hint="leave the `use` block first"
            )
        check_can_merge(self.model, handle.modules)
        self._set_merged(handle, self.state.merging(*self.state.merged, handle), force=False)

    def unmerge(self, handle: AppliedAdapter, *, force: bool) -> None:
        """Take *handle* out of the weights."""
        if handle not in self.state.merged:
            raise StateError(f"`{handle.name}` is not merged", hint="`merge()` puts it into the weights")
        self._set_merged(handle, self.state.merging(*_without(self.state.merged, handle)), force=force)

    def _set_merged(self, changed: AppliedAdapter, state: State, *, force: bool) -> None:
        """Take on *state* in the weights of the modules of *changed*; if that fails half way, nothing is changed."""
        before = self.state
        records = [(module, path, self.record(module)) for path, module in changed.modules.items()]
        if not force:
            for module, path, record in records:
                check_unchanged(module, path, record)
        try:
            for module, path, record in records:
                remerge(module, path, record, _factors(state, module))
            self.state = state
        except BaseException:
            self.state = before
            for module, path, record in records:
                remerge(module, path, record, _factors(before, module))
            raise


def _factors(state: State, module: nn.Module) -> dict[str, tuple[Delta | None, float]]:
    # In the order in which the adapters came, not in that of the merges: the sum must not depend on history.
    merged = sorted(state.merged, key=lambda handle: handle.arrival)
    return {handle.name: (handle.delta(module), handle.scale) for handle in merged}
