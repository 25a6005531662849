"""All adapters of one model: who is there, who runs, who is merged, and what the base was before."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from lora_hub.errors import StateError, UnsavedAdapterWarning, UsageError
from lora_hub.patch.choice import Plan, chosen
from lora_hub.patch.layer import check_can_be_restored, restore_module, showing_parameters
from lora_hub.patch.merge import check_can_merge, remerge
from lora_hub.patch.record import Record, record_of

if TYPE_CHECKING:
    from torch import nn

    from lora_hub.patch.applied_adapter import AppliedAdapter

_PATCH = "_lora_hub_patch"


class ModelPatch:
    """The state of one patched model; it lies in the instance dict of the model that was passed to `apply_adapter`."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.handles: dict[str, AppliedAdapter] = {}
        self.merged: list[AppliedAdapter] = []
        self._requires_grad: dict[nn.Parameter, bool] | None = None
        self._default: Plan = ()
        self._version = 0  # of everything that a plan depends on

    # What runs

    def running(self) -> Plan:
        """Return what runs in the calling context. Called by every patched module at every call."""
        choice = chosen(self)
        if choice is None:
            return self._default
        if choice.plan is None or choice.plan[0] != self._version:
            choice.plan = (self._version, self._plan(choice.weights))
        return choice.plan[1]

    def check(self, weights: Mapping[str, float]) -> None:
        """Raise unless *weights* can run now: known names, merged adapters as they are, one owner per head."""
        for name in weights:
            if name not in self.handles:
                known = ", ".join(sorted(self.handles)) or "none"
                raise UsageError(f"no adapter `{name}` on this model", hint=f"its adapters: {known}")
        self._plan(weights)

    def _plan(self, weights: Mapping[str, float]) -> Plan:
        plan = []
        for name, weight in weights.items():
            handle = self.handles.get(name)
            if handle is None:
                raise StateError(
                    f"the adapter `{name}` was removed while it is in use", hint="leave the `use` block first"
                )
            if handle not in self.merged and weight:
                plan.append((name, weight * handle.scale))
        for handle in self.merged:
            if weights.get(handle.name) != 1:
                raise StateError(
                    f"`{handle.name}` is merged into the weights, so it cannot run with weight "
                    f"{weights.get(handle.name, 0)}",
                    hint=f"`unmerge()` it first, or choose it with weight 1: {{{handle.name!r}: 1, …}}",
                )
        self._check_heads([name for name, _ in plan] + [handle.name for handle in self.merged])
        return tuple(plan)

    def _check_heads(self, names: list[str]) -> None:
        """Where one adapter replaces a module, no other may add to it or replace it: that would be lost."""
        owner: dict[int, str] = {}
        for name in names:
            for module in self.handles[name].modules.values():
                if name in self.record(module).replacements:
                    owner |= {id(child): owner.get(id(child), name) for child in module.modules()}
        for name in names:
            for path, module in self.handles[name].modules.items():
                other = owner.get(id(module), name)
                if other != name:
                    raise StateError(
                        f"`{other}` and `{name}` both change `{path}`, which one of them replaces: not at once",
                        hint="apply one with `active=False`, and choose with `use`",
                    )

    def refresh(self) -> None:
        """Work out again what runs by default; raise if that cannot be."""
        weights = {h.name: 1.0 for h in self.handles.values() if h.active or h in self.merged}
        self._default = self._plan(weights)
        self._version += 1

    def set_active(self, handle: AppliedAdapter, *, active: bool) -> None:
        """Put *handle* into the default set or take it out."""
        before, handle._active = handle._active, active  # noqa: SLF001
        try:
            self.refresh()
        except StateError:
            handle._active = before  # noqa: SLF001
            raise

    # Who is there

    def record(self, module: nn.Module) -> Record:
        """Return the record of a *module* that carries adapters."""
        record = record_of(module)
        if record is None:
            raise StateError("a module lost its adapter: another library replaced its instance dict")
        return record

    def freeze_base(self) -> None:
        """Let the base have no gradients; `requires_grad` as it was comes back with the last trainable adapter."""
        if self._requires_grad is None:
            self._requires_grad = {p: p.requires_grad for p in self.model.parameters()}
        for parameter in self._requires_grad:
            parameter.requires_grad_(False)

    def remove(self, handle: AppliedAdapter) -> None:
        """Take *handle* off the model; the last one leaves no trace."""
        for path, module in handle.modules.items():
            check_can_be_restored(module, path)
        if handle in self.merged:
            self.unmerge(handle, force=False)
        self.detach(handle)

    def detach(self, handle: AppliedAdapter) -> None:
        """Undo whatever was done to attach *handle*, also if that was not finished."""
        for module in handle.modules.values():
            record = record_of(module)
            if record is None:
                continue
            for name in record.parameter_names.pop(handle.name, ()):
                del module._parameters[name]  # noqa: SLF001
            record.slots.pop(handle.name, None)
            record.replacements.pop(handle.name, None)
            restore_module(module)
        self.handles.pop(handle.name, None)
        handle._patch = None  # noqa: SLF001
        self._restore_model()
        self.refresh()

    def _restore_model(self) -> None:
        if self._requires_grad is not None and not any(h.trainable for h in self.handles.values()):
            for parameter, requires_grad in self._requires_grad.items():
                parameter.requires_grad_(requires_grad)
            self._requires_grad = None
        if not self.handles:
            del self.model.__dict__[_PATCH]
            if _saves_base_only(self.model):
                del self.model.__dict__["save_pretrained"]

    # Who is merged

    def merge(self, handle: AppliedAdapter) -> None:
        """Merge *handle* into the weights."""
        if handle in self.merged:
            raise StateError(f"`{handle.name}` is merged already")
        check_can_merge(self.model, handle.modules)
        self._check_heads([*(h.name for h in self.merged), handle.name])
        choice = chosen(self)
        if choice is not None and choice.weights.get(handle.name) != 1:
            raise StateError(
                f"this context runs without `{handle.name}`, so it cannot be merged", hint="leave the `use` block first"
            )
        self._remerge(handle, [*self.merged, handle], force=False)

    def unmerge(self, handle: AppliedAdapter, *, force: bool) -> None:
        """Take *handle* out of the weights."""
        if handle not in self.merged:
            raise StateError(f"`{handle.name}` is not merged")
        self._remerge(handle, [h for h in self.merged if h is not handle], force=force)

    def _remerge(self, changed: AppliedAdapter, merged: list[AppliedAdapter], *, force: bool) -> None:
        """Merge exactly *merged* in the modules of *changed*; if that fails half way, nothing is changed."""
        before, done = self.merged, []
        try:
            for path, module in changed.modules.items():
                done.append((path, module))
                remerge(module, path, self.record(module), self._factors(merged), force=force)
        except BaseException:
            done.pop()  # the one that failed changed nothing
            for path, module in done:
                remerge(module, path, self.record(module), self._factors(before), force=True)
            raise
        self.merged = merged
        self.refresh()

    def _factors(self, merged: list[AppliedAdapter]) -> dict[str, float]:
        # In the order in which the adapters came, not in that of the merges: the sum must not depend on history.
        return {name: h.scale for name, h in self.handles.items() if h in merged}


def patch_of(model: nn.Module) -> ModelPatch | None:
    """Return the state of *model*, looking through wrappers (compiled, DDP), or None if it has no adapters."""
    seen: nn.Module | None = model
    while seen is not None:
        patch = seen.__dict__.get(_PATCH)
        if patch is not None:
            return patch  # type: ignore[no-any-return]
        modules = seen.__dict__.get("_modules", {})
        seen = modules.get("_orig_mod") or modules.get("module")
    return None


def find_patch(model: nn.Module) -> ModelPatch:
    """Return the state of *model*; raise `UsageError` if it has no adapters."""
    patch = patch_of(model)
    if patch is None:
        raise UsageError(
            f"no adapters on this {type(model).__name__}", hint="pass the model that was given to `apply_adapter`"
        )
    return patch


def get_or_create_patch(model: nn.Module) -> ModelPatch:
    """Return the state of *model*, new and attached to it if there was none."""
    patch = patch_of(model)
    if patch is None:
        patch = model.__dict__[_PATCH] = ModelPatch(model)
        if "save_pretrained" not in model.__dict__ and hasattr(model, "save_pretrained"):
            model.__dict__["save_pretrained"] = functools.partial(_save_base_only, model)
    return patch


def _saves_base_only(model: nn.Module) -> bool:
    return getattr(model.__dict__.get("save_pretrained"), "func", None) is _save_base_only


def _save_base_only(model: nn.Module, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
    """Save the base, as `save_pretrained` does, and warn if training would be lost with it."""
    unsaved = [handle.name for handle in adapters(model).values() if handle.has_unsaved_changes()]
    if unsaved:
        warnings.warn(
            f"this saves the base model only; the trained adapter {', '.join(map(repr, unsaved))} is not in it: call "
            "`lora_hub.save_adapter(adapter, directory)`, and under `transformers.Trainer` derive from "
            "`lora_hub.AdapterTrainerMixin`, whose checkpoints hold the adapter",
            UnsavedAdapterWarning,
            stacklevel=2,
        )
    return type(model).save_pretrained(model, *args, **kwargs)  # type: ignore[attr-defined]


def adapters(model: nn.Module) -> Mapping[str, AppliedAdapter]:
    """Return the adapters on *model*, by name, in the order in which they came."""
    patch = patch_of(model)
    return MappingProxyType(dict(patch.handles) if patch else {})


@contextmanager
def adapters_in_state_dict(model: nn.Module) -> Iterator[None]:
    """While this is entered, ``model.state_dict()`` shows trainable adapters, and loading expects them.

    For frameworks that move or save parameters through `state_dict` (FSDP's RAM-efficient loading, DCP).
    """
    find_patch(model)
    with showing_parameters():
        yield
