"""The adapters of one model as one immutable value: who is there, who is active, who is merged, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from lora_hub.patch.delta import Delta
from lora_hub.patch.plan import Plan, make_plan
from lora_hub.patch.record import Keep

if TYPE_CHECKING:
    from lora_hub.patch.applied_adapter import AppliedAdapter


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
        running = sorted({*active, *merged}, key=lambda handle: handle.arrival)
        weights = {handle.name: 1.0 for handle in running}
        return cls(dict(handles), active, merged, make_plan(handles, merged, [weights]), keep)

    def without(self, handle: AppliedAdapter | None) -> State:
        """Return the state without *handle*."""
        handles = {name: other for name, other in self.handles.items() if other is not handle}
        return State.of(handles, without(self.active, handle), without(self.merged, handle), self.keep)

    def having(self, handle: AppliedAdapter, *, active: bool) -> State:
        """Return the state with *handle* as well, active or not."""
        actives = (*without(self.active, handle), *([handle] if active else []))
        return State.of({**self.handles, handle.name: handle}, actives, self.merged, self.keep)

    def merging(self, *merged: AppliedAdapter, keep: Keep) -> State:
        """Return the state in which exactly *merged* are merged."""
        return State.of(self.handles, self.active, merged, keep)

    def merged_into(self, module: nn.Module) -> dict[str, tuple[Delta | None, float]]:
        """Return what each merged adapter adds to *module*, and weight x scale, by name."""
        # In the order in which the adapters came, not in that of the merges: the sum must not depend on history.
        merged = sorted(self.merged, key=lambda handle: handle.arrival)
        return {handle.name: (handle.delta(module), handle.scale) for handle in merged}


def changing(before: State, after: State) -> dict[str, nn.Module]:
    """Return the modules whose weights differ between the two, or the way in which they are kept, by path."""
    stay = {*before.merged} & {*after.merged} if before.keep == after.keep else set()
    handles = [handle for handle in (*before.merged, *after.merged) if handle not in stay]
    return {path: module for handle in handles for path, module in handle.modules.items()}


def without(handles: tuple[AppliedAdapter, ...], handle: AppliedAdapter | None) -> tuple[AppliedAdapter, ...]:
    """Return *handles* without *handle*."""
    return tuple(other for other in handles if other is not handle)
