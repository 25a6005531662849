"""What runs, worked out from who is there, who is merged and what was chosen; and what cannot run together."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from lora_hub.errors import StateError
from lora_hub.patch.choice import Plan

if TYPE_CHECKING:
    from lora_hub.patch.applied_adapter import AppliedAdapter


def make_plan(
    handles: Mapping[str, AppliedAdapter], merged: Collection[AppliedAdapter], weights: Mapping[str, float]
) -> Plan:
    """Return what runs on top of the weights when the adapters in *weights* are chosen.

    Raises:
        StateError: A chosen adapter was removed, a merged one would have to be off or weaker, or heads collide.
    """
    plan = []
    for name, weight in weights.items():
        handle = handles.get(name)
        if handle is None:
            raise StateError(f"the adapter `{name}` was removed while it is in use", hint="leave the `use` block first")
        # A factor of 0 is off, for a head as well.
        if handle not in merged and weight * handle.scale:
            plan.append((name, weight * handle.scale))
    for handle in merged:
        if weights.get(handle.name) != 1:
            raise StateError(
                f"`{handle.name}` is merged into the weights, so it cannot run with weight "
                f"{weights.get(handle.name, 0)}",
                hint=f"`unmerge()` it first, or choose it with weight 1: {{{handle.name!r}: 1, …}}",
            )
    check_heads([*(handles[name] for name, _ in plan), *merged])
    return tuple(plan)


def check_heads(handles: Iterable[AppliedAdapter]) -> None:
    """Raise `StateError` if one of *handles* changes what another replaces: its change would be lost."""
    handles = tuple(handles)
    owner: dict[int, str] = {}
    for handle in handles:
        for path in handle.heads:
            owner |= {id(child): owner.get(id(child), handle.name) for child in handle.modules[path].modules()}
    for handle in handles:
        for path, module in handle.modules.items():
            other = owner.get(id(module), handle.name)
            if other != handle.name:
                raise StateError(
                    f"`{other}` and `{handle.name}` both change `{path}`, which one of them replaces: not at once",
                    hint="apply one with `active=False`, and choose with `use`",
                )
