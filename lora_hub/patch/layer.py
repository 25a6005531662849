"""The module under adapters: one generated subclass per base class, put on and taken off.

The subclass calls the base class's own `forward` and adds to what it returns, so any base layer works. Names,
submodules and `state_dict` stay those of the base; trainable parameters are hidden from `state_dict` unless asked.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lora_hub.errors import CompatibilityError, StateError
from lora_hub.patch.choice import PatchedModel
from lora_hub.patch.compiled import add_compiled, number
from lora_hub.patch.plan import Plan
from lora_hub.patch.record import RECORD, Record, record_of
from lora_hub.patch.replaced import run_replaced

# Their outputs are new tensors that their own backward does not need, so that a delta may be added in place.
_FRESH_OUTPUT = {("torch.nn.modules.linear", "Linear.forward"), ("transformers.pytorch_utils", "Conv1D.forward")}
_shown: ContextVar[frozenset[PatchedModel]] = ContextVar("lora_hub_shown", default=frozenset())


@contextmanager
def showing_parameters(patch: PatchedModel) -> Iterator[None]:
    """While this is entered, `state_dict` shows the trainable adapters of one model, and loading expects them."""
    token = _shown.set(_shown.get() | {patch})
    try:
        yield
    finally:
        _shown.reset(token)


class AdaptedModule(nn.Module):
    """What a generated subclass puts before its base class: `super()` is always the base class itself."""

    lora_hub_base_class: type[nn.Module]
    lora_hub_output_is_fresh: bool
    lora_hub_is_linear: bool  # its forward is that of `nn.Linear`

    def forward(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Return what the base class computes plus the deltas of the adapters that run, or what replaces it."""
        record: Record = self.__dict__[RECORD]
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            if record.replacements:
                return _uncompiled(self, args, kwargs)
            return add_compiled(self, super().forward(*args, **kwargs), _first(args, kwargs))
        plan = record.patch.plan()
        if plan.is_bare:
            return super().forward(*args, **kwargs)
        if record.replacements and any(plan.replacing(record)):
            base = functools.partial(self._adapted, plan, record) if plan.adds_to(self) else super().forward
            return run_replaced(self, record, plan, base, args, kwargs)
        parameters = self._parameters
        if self.lora_hub_is_linear and len(args) == 1 and "weight" in parameters and "bias" in parameters:
            x = args[0]
            if torch.is_grad_enabled():
                return plan.linear(self, record, x)
            # What `nn.Linear.forward` does, without looking both up through `__getattr__`, which is slow.
            y = linear(x, parameters["weight"], parameters["bias"])  # type: ignore[arg-type]
        else:
            x, y = _first(args, kwargs), super().forward(*args, **kwargs)
        return plan.add(self, record, y, x)

    def _adapted(self, plan: Plan, record: Record, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        return plan.add(self, record, super().forward(*args, **kwargs), _first(args, kwargs))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        record = record_of(self)
        if record is not None:
            record.number = number(self)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:  # noqa: FBT001
        super()._save_to_state_dict(destination, prefix, keep_vars)
        record, hidden = record_of(self), _hidden(self)
        for name in hidden:
            destination.pop(prefix + name, None)
        if record is not None and hidden:
            record.patch.warn_of_hidden(self)

    def _load_from_state_dict(self, *args: Any) -> None:  # noqa: ANN401
        super()._load_from_state_dict(*args)
        _, prefix, _, _, missing, *_ = args
        hidden = {prefix + name for name in _hidden(self)}
        missing[:] = [name for name in missing if name not in hidden]

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:  # noqa: ANN401
        return _rebuild, (self.lora_hub_base_class,), self.__getstate__()  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        record = record_of(self)
        return " + ".join([super().__repr__(), *(sorted(record.adapters) if record else ())])


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))  # type: ignore[no-any-return]


def _uncompiled(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Run a module that adapters replace: what takes its place can be anything, so no graph holds for all of them."""
    # Not as a decorator: that would import the compiler, a second's work, for everybody.
    return torch.compiler.disable(AdaptedModule.forward)(module, *args, **kwargs)  # type: ignore[no-untyped-call]


_patched_classes: WeakValueDictionary[type[nn.Module], type[nn.Module]] = WeakValueDictionary()


def patched_class(base: type[nn.Module]) -> type[nn.Module]:
    """Return the subclass of *base* that runs adapters: one per base class, as long as a module is of it."""
    made = _patched_classes.get(base)
    if made is None:
        forward = (getattr(base.forward, "__module__", ""), getattr(base.forward, "__qualname__", ""))
        namespace = {
            "__module__": __name__,
            "__doc__": f"{base.__name__} with adapters.",
            "lora_hub_base_class": base,
            "lora_hub_output_is_fresh": forward in _FRESH_OUTPUT,
            "lora_hub_is_linear": base.forward is nn.Linear.forward,
        }
        made = _patched_classes.setdefault(base, type(f"Lora{base.__name__}", (AdaptedModule, base), namespace))
    return made


def _hidden(module: nn.Module) -> list[str]:
    record = record_of(module)
    if record is None or record.patch in _shown.get():
        return []
    return [name for names in record.parameter_names.values() for name in names]


def _rebuild(base: type[nn.Module]) -> nn.Module:
    """Make the empty instance that copy and pickle fill with the instance dict."""
    module_class = patched_class(base)
    return module_class.__new__(module_class)


def check_belongs(module: nn.Module, path: str, patch: PatchedModel) -> None:
    """Raise `StateError` if *module* carries adapters of another model than that of *patch*."""
    record = record_of(module)
    if record is not None and record.patch is not patch:
        raise StateError(
            f"`{path}` carries adapters of a model that contains this one, or of a part of it",
            hint="remove them first, or call with the model that they were applied to",
        )


def check_forward_is_reachable(module: nn.Module, path: str) -> None:
    """Raise `CompatibilityError` if a call of *module* would not reach our `forward`.

    An instance attribute `forward` hides the class's. It is harmless if it is the class's own, bound, or if accelerate
    put it around that; any other would bypass the adapter silently.
    """
    called = module.__dict__.get("_old_forward", module.__dict__.get("forward"))
    if called is not None and not (isinstance(called, types.MethodType) and called.__func__ is type(module).forward):
        raise CompatibilityError(
            f"`{path}` has a `forward` of its own in place of its class's, so an adapter on it would never run",
            hint="apply the adapter before the library that replaced `forward` (tensor parallelism, a profiler) does",
        )


def patch_module(module: nn.Module, path: str, patch: PatchedModel) -> Record:
    """Return the record of *module*, whose class is swapped for the patched one if it is not yet."""
    record = record_of(module)
    if record is None:
        record = module.__dict__[RECORD] = Record(patch, path, number(module))
        object.__setattr__(module, "__class__", patched_class(type(module)))  # as `nn.Module` does in the end
        _rebind_forward(module)
    return record


def _rebind_forward(module: nn.Module) -> None:
    """Let bound methods in the instance dict (accelerate keeps one) be those of the class the module has now."""
    for name in ("_old_forward", "forward"):
        bound = module.__dict__.get(name)
        if isinstance(bound, types.MethodType) and bound.__self__ is module:
            module.__dict__[name] = types.MethodType(type(module).forward, module)


def check_can_be_restored(module: nn.Module, path: str) -> None:
    """Raise `StateError` if another library swapped the class of *module* after us."""
    if record_of(module) is not None and "lora_hub_base_class" not in type(module).__dict__:
        raise StateError(
            f"another library changed the class of `{path}` to `{type(module).__name__}` after the adapter was applied",
            hint="undo that first (`fully_shard` cannot be undone: load the model again)",
        )


def restore_module(module: nn.Module) -> None:
    """Give *module* back its own class and instance dict, if no adapter is left on it."""
    record = record_of(module)
    if record is None or not record.is_empty:
        return
    module.__class__ = type(module).__dict__["lora_hub_base_class"]
    del module.__dict__[RECORD]
    _rebind_forward(module)


def base_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the `state_dict` of *module* without what adapters put there, and without a warning about that."""
    records = {path: record for path, child in module.named_modules() if (record := record_of(child)) is not None}
    ours = {
        ".".join(filter(None, [path, name]))
        for path, record in records.items()
        for names in record.parameter_names.values()
        for name in names
    }
    with ExitStack() as stack:
        for record in records.values():
            stack.enter_context(showing_parameters(record.patch))
        return {name: tensor for name, tensor in module.state_dict().items() if name not in ours}


def bare_copy(module: nn.Module) -> nn.Module:
    """Return a copy of *module* as it is without adapters: own classes, original weights, no hooks of accelerate."""
    records = {id(child): record for child in module.modules() if (record := record_of(child)) is not None}
    # A record leads to the whole model; in the copy there is nothing in its place.
    twin = copy.deepcopy(module, {id(record): None for record in records.values()})
    for child, copied in zip(list(module.modules()), list(twin.modules()), strict=True):
        for name in ("_hf_hook", "_old_forward", "forward"):  # accelerate's
            copied.__dict__.pop(name, None)
        record = records.get(id(child))
        if record is None:
            continue
        copied.__class__ = type(child).__dict__["lora_hub_base_class"]
        del copied.__dict__[RECORD]
        for name in (name for names in record.parameter_names.values() for name in names):
            del copied._parameters[name]  # noqa: SLF001
        if record.merged is not None:
            copied.load_state_dict(record.merged.originals, strict=False)
    return twin
