"""All adapters of one model: who is there, who runs, and who is merged."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, get_args

from torch import nn

from lora_hub.errors import StateError, UnsavedAdapterWarning, UsageError
from lora_hub.patch.choice import Choice, chosen
from lora_hub.patch.frozen_base import FrozenBase
from lora_hub.patch.layer import check_can_be_restored, restore_module
from lora_hub.patch.low_rank import Scratch, plain_arithmetic
from lora_hub.patch.merge import check_unchanged, content_of, realised_delta, remerge
from lora_hub.patch.mergeable import check_can_merge
from lora_hub.patch.plan import Plan
from lora_hub.patch.plans import Plans
from lora_hub.patch.realised import Realised
from lora_hub.patch.record import Content, Keep, Record, record_of
from lora_hub.patch.residency import residency
from lora_hub.patch.state import State, changing, without

if TYPE_CHECKING:
    from lora_hub.patch.applied_adapter import AppliedAdapter

PATCH = "_lora_hub_patch"  # in the instance dict of the model


class ModelPatch:
    """The state of one model, and what changes it; installed while at least one adapter is there."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.state = State.of({}, (), ())
        self._plans = Plans()
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
        plan = (
            made[1]
            if made is not None and made[1].holds(state.handles, state.merged)
            else self._plans.make(state, choice)
        )
        choice.plan = (state, plan)
        return plan

    def check(self, choice: Choice) -> None:
        """Raise unless *choice* can run now."""
        for name in (name for weights in choice.sums for name in weights):
            if name not in self.state.handles:
                known = ", ".join(sorted(self.state.handles)) or "none"
                raise UsageError(f"no adapter `{name}` on this model", hint=f"its adapters: {known}")
        plan = self._plan_of(choice)
        if residency.is_limited:
            residency.bring(plan.handles)

    def set_active(self, handle: AppliedAdapter, *, active: bool) -> None:
        """Put *handle* into the default set, or take it out."""
        if handle in self.state.merged and not active:
            raise StateError(f"`{handle.name}` is merged, so it cannot be off", hint="`unmerge()` it first")
        handle.deltas.here()
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
        residency.bring([handle])

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
        self.forget(handle)
        residency.leave(handle)

    def forget(self, handle: AppliedAdapter) -> None:
        """Keep nothing that was made of *handle* for choices to come."""
        self._plans.forget(handle)

    def settle(self) -> None:
        """Leave no trace of what nobody needs any more: a frozen base, and this state itself."""
        if self._frozen is not None and not any(handle.trainable for handle in self.state.handles.values()):
            self._frozen.thaw()
            self._frozen = None
        if not self.state.handles:
            self.model.__dict__.pop(PATCH, None)

    def put_back(self, handle: AppliedAdapter, before: State) -> None:
        """Return to the state *before*, in which *handle* was, after its pieces were put back on its modules."""
        unmerged = before.merging(*without(before.merged, handle), keep=before.keep)
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
        if choice is not None and any(weights.get(handle.name) != 1 for weights in choice.sums):
            raise StateError(
                f"this context runs without `{handle.name}`, so it cannot be merged", hint="leave the `use` block first"
            )
        check_can_merge(self.model, handle.modules)
        others = () if only else merged
        self._set_merged(self.state.merging(*others, handle, keep=keep), force=False)

    def unmerge(self, handle: AppliedAdapter, *, force: bool) -> None:
        """Take *handle* out of the weights."""
        self._check_merged(handle)
        state = self.state.merging(*without(self.state.merged, handle), keep=self.state.keep)
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
        records = [(module, path, self.record(module)) for path, module in changing(before, state).items()]
        merged = [record.merged for _, _, record in records]
        if not force:
            for module, path, record in records:
                check_unchanged(module, path, record)
        scratch = Scratch()
        with plain_arithmetic():
            try:
                for module, path, record in records:
                    content = content_of(module, record, state.merged_into(module))
                    remerge(module, path, record, content, state.keep, scratch)
                self.state = state
            except BaseException:
                self.state = before
                for (module, path, record), old in zip(records, merged, strict=True):
                    if record.merged is not old:
                        content = old.content if old is not None else Content()
                        remerge(module, path, record, content, before.keep, scratch)
                raise
