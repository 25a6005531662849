"""All adapters of one model: who is there, who runs, and who is merged."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from lora_hub.errors import StateError, UnsavedAdapterWarning, UsageError
from lora_hub.patch.choice import Plan, chosen
from lora_hub.patch.frozen_base import FrozenBase
from lora_hub.patch.layer import check_can_be_restored, restore_module
from lora_hub.patch.merge import check_can_merge, check_unchanged, remerge
from lora_hub.patch.plan import check_heads, make_plan
from lora_hub.patch.record import Record, record_of

if TYPE_CHECKING:
    from lora_hub.patch.applied_adapter import AppliedAdapter

PATCH = "_lora_hub_patch"  # in the instance dict of the model


class ModelPatch:
    """The state of one model; installed while at least one adapter is there."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.handles: dict[str, AppliedAdapter] = {}
        self.active: list[AppliedAdapter] = []
        self.merged: list[AppliedAdapter] = []
        self._frozen: FrozenBase | None = None
        self._default: Plan = ()
        self._version = 0  # of everything that a plan depends on

    # What runs

    def running(self) -> Plan:
        """Return what runs in the calling context. Called by every patched module at every call."""
        choice = chosen(self)
        if choice is None:
            return self._default
        if choice.plan is None or choice.plan[0] != self._version:
            choice.plan = (self._version, make_plan(self.handles, self.merged, choice.weights))
        return choice.plan[1]

    def check(self, weights: Mapping[str, float]) -> None:
        """Raise unless *weights* can run now."""
        for name in weights:
            if name not in self.handles:
                known = ", ".join(sorted(self.handles)) or "none"
                raise UsageError(f"no adapter `{name}` on this model", hint=f"its adapters: {known}")
        make_plan(self.handles, self.merged, weights)

    def set_active(self, handle: AppliedAdapter, *, active: bool) -> None:
        """Put *handle* into the default set, or take it out."""
        if handle in self.merged and not active:
            raise StateError(f"`{handle.name}` is merged, so it cannot be off", hint="`unmerge()` it first")
        actives = [h for h in self.active if h is not handle] + [handle] * active
        self._become(self.handles, actives, self.merged)

    def _become(
        self, handles: Mapping[str, AppliedAdapter], active: list[AppliedAdapter], merged: list[AppliedAdapter]
    ) -> None:
        """Take on another state, or raise and keep the present one."""
        default = self.default_plan(handles, active, merged)
        self.handles, self.active, self.merged, self._default = dict(handles), active, merged, default
        self._version += 1

    @staticmethod
    def default_plan(
        handles: Mapping[str, AppliedAdapter], active: list[AppliedAdapter], merged: list[AppliedAdapter]
    ) -> Plan:
        """Return what runs outside of `use`: the active ones in the order in which they came."""
        weights = {h.name: 1.0 for h in handles.values() if h in active or h in merged}
        return make_plan(handles, merged, weights)

    # Who is there

    def check_can_join(self, handle: AppliedAdapter, predecessor: AppliedAdapter | None, *, active: bool) -> None:
        """Raise if *handle* could not take its place, or *predecessor* could not leave it."""
        if predecessor is not None:
            self._check_can_leave(predecessor)
        handles = {n: h for n, h in self.handles.items() if h is not predecessor} | {handle.name: handle}
        merged = [h for h in self.merged if h is not predecessor]
        self.default_plan(handles, self.active + [handle] * active, merged)

    def join(self, handle: AppliedAdapter, *, active: bool) -> None:
        """Take in *handle*, whose modules are patched."""
        self.model.__dict__[PATCH] = self
        self._become(self.handles | {handle.name: handle}, self.active + [handle] * active, self.merged)

    def freeze_base(self) -> None:
        """Let the base have no gradients until the last trainable adapter is removed."""
        self._frozen = self._frozen or FrozenBase(self.model)

    def remove(self, handle: AppliedAdapter) -> None:
        """Take *handle* off the model; the last one leaves no trace."""
        self._check_can_leave(handle)
        if handle in self.merged:
            self.unmerge(handle, force=False)
        self.detach(handle)

    def _check_can_leave(self, handle: AppliedAdapter) -> None:
        for path, module in handle.modules.items():
            check_can_be_restored(module, path)
            if handle in self.merged:
                check_unchanged(module, path, self.record(module))

    def detach(self, handle: AppliedAdapter) -> None:
        """Undo whatever was done to attach *handle*, also if that was not finished."""
        for module in handle.modules.values():
            record = record_of(module)
            if record is not None and record.patch is self:
                for name in record.forget(handle.name):
                    del module._parameters[name]  # noqa: SLF001
                restore_module(module)
        others = {name: other for name, other in self.handles.items() if other is not handle}
        self._become(others, [h for h in self.active if h is not handle], self.merged)
        if self._frozen is not None and not any(other.trainable for other in others.values()):
            self._frozen.thaw()
            self._frozen = None
        if not others:
            self.model.__dict__.pop(PATCH, None)

    def record(self, module: nn.Module) -> Record:
        """Return the record of a *module* that carries adapters."""
        record = record_of(module)
        if record is None:
            raise StateError("a module lost its adapter: another library replaced it", hint="load the model again")
        return record

    def warn_of_hidden(self, module: nn.Module) -> None:
        """Warn, once for each adapter, if a `state_dict` leaves out what was trained and not saved."""
        for handle in self.handles.values():
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
        if handle in self.merged:
            raise StateError(f"`{handle.name}` is merged already", hint="`unmerge()` takes it out again")
        choice = chosen(self)
        if choice is not None and choice.weights.get(handle.name) != 1:
            raise StateError(
                f"this context runs without `{handle.name}`, so it cannot be merged", hint="leave the `use` block first"
            )
        check_can_merge(self.model, handle.modules)
        self._remerge(handle, [*self.merged, handle], force=False)

    def unmerge(self, handle: AppliedAdapter, *, force: bool) -> None:
        """Take *handle* out of the weights."""
        if handle not in self.merged:
            raise StateError(f"`{handle.name}` is not merged", hint="`merge()` puts it into the weights")
        self._remerge(handle, [h for h in self.merged if h is not handle], force=force)

    def _remerge(self, changed: AppliedAdapter, merged: list[AppliedAdapter], *, force: bool) -> None:
        """Merge exactly *merged* in the modules of *changed*; if that fails half way, nothing is changed."""
        check_heads(merged)
        self.default_plan(self.handles, self.active, merged)
        records = [(module, path, self.record(module)) for path, module in changed.modules.items()]
        if not force:
            for module, path, record in records:
                check_unchanged(module, path, record)
        try:
            for module, path, record in records:
                remerge(module, path, record, self._factors(merged))
        except BaseException:
            for module, path, record in records:
                remerge(module, path, record, self._factors(self.merged))
            raise
        self._become(self.handles, self.active, merged)

    def _factors(self, merged: list[AppliedAdapter]) -> dict[str, float]:
        # In the order in which the adapters came, not in that of the merges: the sum must not depend on history.
        return {name: h.scale for name, h in self.handles.items() if h in merged}
