"""All adapters of one model: who is there, who runs, and who is merged."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from torch import nn

from lora_hub.errors import StateError, UnsavedAdapterWarning, UsageError
from lora_hub.patch.choice import Choice, Plan, chosen
from lora_hub.patch.frozen_base import FrozenBase
from lora_hub.patch.layer import check_can_be_restored, restore_module
from lora_hub.patch.low_rank import Scratch, plain_arithmetic
from lora_hub.patch.merge import check_unchanged, content_of, realised_delta, remerge
from lora_hub.patch.mergeable import check_can_merge
from lora_hub.patch.plan import make_plan
from lora_hub.patch.realised import Realised
from lora_hub.patch.record import Content, Keep, Record, record_of

if TYPE_CHECKING:
    from lora_hub.patch.applied_adapter import AppliedAdapter

PATCH = "_lora_hub_patch"  # in the instance dict of the model


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """Who is there, who is active, who is merged and how, and what runs by default, which follows from the three."""

    handles: Mapping[str, AppliedAdapter]
    active: tuple[AppliedAdapter, ...]
    merged: tuple[AppliedAdapter, ...]
    default: Plan
    keep: Keep = "originals"  # of all that are merged

    @classmethod
    def of(
        cls,
        handles: Mapping[str, AppliedAdapter],
        active: tuple[AppliedAdapter, ...],
        merged: tuple[AppliedAdapter, ...],
        keep: Keep = "originals",
    ) -> State:
        """Return the state with these adapters; raise `StateError` if they cannot be together."""
        weights = {h.name: 1.0 for h in handles.values() if h in active or h in merged}
        return cls(dict(handles), active, merged, make_plan(handles, merged, weights), keep)

    def without(self, handle: AppliedAdapter | None) -> State:
        """Return the state without *handle*."""
        handles = {name: other for name, other in self.handles.items() if other is not handle}
        return State.of(handles, _without(self.active, handle), _without(self.merged, handle), self.keep)

    def having(self, handle: AppliedAdapter, *, active: bool) -> State:
        """Return the state with *handle* as well, active or not."""
        actives = (*_without(self.active, handle), *([handle] if active else []))
        return State.of({**self.handles, handle.name: handle}, actives, self.merged, self.keep)

    def merging(self, *merged: AppliedAdapter, keep: Keep) -> State:
        """Return the state in which exactly *merged* are merged."""
        return State.of(self.handles, self.active, merged, keep)


def _without(handles: tuple[AppliedAdapter, ...], handle: AppliedAdapter | None) -> tuple[AppliedAdapter, ...]:
    return tuple(other for other in handles if other is not handle)


class ModelPatch:
    """The state of one model, and what changes it; installed while at least one adapter is there."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state = State({}, (), (), ())
        self._frozen: FrozenBase | None = None

    # What runs

    def running(self) -> Plan:
        """Return what runs in the calling context. Called by every patched module at every call."""
        choice, state = chosen(self), self.state
        if choice is None:
            return state.default
        if choice.plan is None or choice.plan[0] is not state:
            choice.plan = (state, self._plan(choice))
        return choice.plan[1]

    def check(self, choice: Choice) -> None:
        """Raise unless *choice* can run now."""
        for name in choice.weights:
            if name not in self.state.handles:
                known = ", ".join(sorted(self.state.handles)) or "none"
                raise UsageError(f"no adapter `{name}` on this model", hint=f"its adapters: {known}")
        self._plan(choice)

    def _plan(self, choice: Choice) -> Plan:
        handles = self.state.handles
        if choice.handle is not None:
            handles = {name: handle for name, handle in handles.items() if handle is choice.handle}
        return make_plan(handles, self.state.merged, choice.weights)

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
        unmerged = before.merging(*_without(before.merged, handle), keep=before.keep)
        self.model.__dict__[PATCH] = self
        self.state = unmerged
        if handle in before.merged:
            self._set_merged(before, force=True)

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

    def merge(self, handle: AppliedAdapter, *, keep: Keep, only: bool) -> None:
        """Merge *handle* into the weights; with *only*, take out what else is merged in the same pass."""
        merged = self.state.merged
        if keep not in get_args(Keep):
            raise UsageError(f"no way `{keep}` to keep what a merge changes", hint='"originals" or "corrections"')
        if handle in merged and not only:
            raise StateError(f"`{handle.name}` is merged already", hint="`unmerge()` takes it out again")
        if merged and not only and keep != self.state.keep:
            raise StateError(
                f'`{merged[0].name}` is merged with keep="{self.state.keep}", and all that are merged share one way',
                hint=f'merge `{handle.name}` with keep="{self.state.keep}", or `unmerge()` the others first',
            )
        choice = chosen(self)
        if choice is not None and choice.weights.get(handle.name) != 1:
            raise StateError(
                f"this context runs without `{handle.name}`, so it cannot be merged", hint="leave the `use` block first"
            )
        check_can_merge(self.model, handle.modules)
        others = () if only else merged
        self._set_merged(self.state.merging(*others, handle, keep=keep), force=False)

    def unmerge(self, handle: AppliedAdapter, *, force: bool) -> None:
        """Take *handle* out of the weights."""
        self._check_merged(handle)
        state = self.state.merging(*_without(self.state.merged, handle), keep=self.state.keep)
        self._set_merged(state, force=force)

    def realised(self, handle: AppliedAdapter) -> dict[str, Realised]:
        """Return how much of what is merged the weights of the modules of *handle* hold, by path."""
        self._check_merged(handle)
        adapted = {path: module for path, module in handle.modules.items() if path not in handle.heads}
        with plain_arithmetic():
            return {path: realised_delta(module, path, self.record(module)) for path, module in adapted.items()}

    def kept_bytes(self, handle: AppliedAdapter) -> int:
        """Return the size of what is kept so that the modules of *handle* can be unmerged, in bytes."""
        merged = [self.record(module).merged for module in handle.modules.values()]
        return sum(kept.nbytes for kept in merged if kept is not None)

    def _check_merged(self, handle: AppliedAdapter) -> None:
        if handle not in self.state.merged:
            raise StateError(f"`{handle.name}` is not merged", hint="`merge()` puts it into the weights")

    def _set_merged(self, state: State, *, force: bool) -> None:
        """Take on *state* in the weights; if that fails half way, nothing is changed."""
        before = self.state
        records = [(module, path, self.record(module)) for path, module in _changing(before, state).items()]
        merged = [record.merged for _, _, record in records]
        if not force:
            for module, path, record in records:
                check_unchanged(module, path, record)
        factors, scratch = _factors(state), Scratch()
        with plain_arithmetic():
            try:
                for module, path, record in records:
                    remerge(module, path, record, content_of(module, record, factors), state.keep, scratch)
                self.state = state
            except BaseException:
                self.state = before
                for (module, path, record), old in zip(records, merged, strict=True):
                    if record.merged is not old:
                        content = old.content if old is not None else Content()
                        remerge(module, path, record, content, before.keep, scratch)
                raise


def _changing(before: State, after: State) -> dict[str, nn.Module]:
    """Return the modules whose weights differ between the two, or the way in which they are kept."""
    stay = {*before.merged} & {*after.merged} if before.keep == after.keep else set()
    handles = [handle for handle in (*before.merged, *after.merged) if handle not in stay]
    return {path: module for handle in handles for path, module in handle.modules.items()}


def _factors(state: State) -> dict[str, float]:
    # In the order in which the adapters came, not in that of the merges: the sum must not depend on history.
    return {name: handle.scale for name, handle in state.handles.items() if handle in state.merged}
