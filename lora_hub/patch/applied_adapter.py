"""The handle on an adapter that is attached to a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lora_hub.documents.manifest import BaseModel
from lora_hub.errors import StateError
from lora_hub.patch.bits import digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from lora_hub.patch.model_patch import ModelPatch


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """What is known about an adapter besides its tensors; `save_adapter` writes it down again.

    Attributes:
        targets: What the adapter's author called the targets.
        digest: ``sha256:…`` of the manifest it was loaded from; None for an adapter that was made here.
    """

    targets: tuple[str, ...]
    modules_to_save: tuple[str, ...] = ()
    use_rslora: bool = False
    lora_dropout: float = 0.0
    task_type: str | None = None
    base: BaseModel = BaseModel()  # noqa: RUF009 - frozen, so it may be shared
    license: str | None = None
    source: str = "this process"
    digest: str | None = None


@dataclass(slots=True, eq=False)
class AppliedAdapter:
    """One adapter on one model.

    Attributes:
        name: Its name on this model.
        scale: Multiplies its delta; the factor is weight x scale x alpha/r.
        active: Whether it belongs to the model's default set, which runs outside of `use`.
        info: Where it came from and how it was made.
        trainable: Whether A and B are parameters that an optimizer sees.
        other_base_allowed: Whether it was applied although it was made for another base.
    """

    name: str
    info: AdapterInfo
    trainable: bool
    other_base_allowed: bool = False
    _scale: float = 1.0
    _active: bool = True
    _patch: ModelPatch | None = None
    _modules: dict[str, nn.Module] = field(default_factory=dict)
    _saved_digest: str | None = None

    @property
    def scale(self) -> float:
        """Multiplies the delta."""
        return self._scale

    @property
    def active(self) -> bool:
        """Whether the adapter runs outside of `use`."""
        return self._active

    @active.setter
    def active(self, value: bool) -> None:
        self.patch.set_active(self, active=value)

    @property
    def merged(self) -> bool:
        """Whether the delta is in the weights of the base at the moment."""
        return self._patch is not None and self in self._patch.merged

    @property
    def patch(self) -> ModelPatch:
        """The state of the model that this adapter is on."""
        if self._patch is None:
            raise StateError(f"the adapter `{self.name}` was removed", hint="apply it again with `apply_adapter`")
        return self._patch

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The adapted modules, by path."""
        return dict(self._modules)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the adapter as it is stored: A, B and those of replaced heads."""
        for path, module in self._modules.items():
            record = self.patch.record(module)
            slot, replacement = record.slots.get(self.name), record.replacements.get(self.name)
            for part, factors in slot.parts if slot else ():
                for side, tensor in zip("AB", factors.stored(module), strict=True):
                    yield f"{path}.{part.name or ''}.lora_{side}", tensor.detach()
            for name, tensor in replacement.tensors(module).items() if replacement else ():
                yield f"{path}.{name}", tensor.detach()

    def parameter_count(self) -> int:
        """Return how many numbers the adapter holds."""
        return sum(tensor.numel() for _, tensor in self.tensors())

    def merge(self) -> None:
        """Add the delta to the weights of the base, at no further cost per call; `unmerge` gives back the same bits.

        ``W0 + factor * B A`` is summed in float32 over all merged adapters and rounded once.

        Raises:
            StateError: Already merged, weights that are tied, offloaded or quantised, or a merged weight was changed.
        """
        self.patch.merge(self)

    def unmerge(self, *, force: bool = False) -> None:
        """Take the delta out of the weights again: the original bits, or those of what stays merged.

        Raises:
            StateError: Not merged, or a merged weight was changed since; with *force* the original comes back anyway.
        """
        self.patch.unmerge(self, force=force)

    def remove(self) -> None:
        """Take the adapter off the model: same objects, same classes, same bits, same `requires_grad` as before."""
        self.patch.remove(self)

    def has_unsaved_changes(self) -> bool:
        """Whether the adapter was trained since it was made, loaded or last saved."""
        return self.trainable and self._saved_digest != self.state_digest()

    def mark_saved(self) -> None:
        """Remember the present values as saved."""
        self._saved_digest = self.state_digest()

    def state_digest(self) -> str:
        """Return a digest of all values of the adapter."""
        return digest(self.tensors())

    def __repr__(self) -> str:
        state = (
            "removed" if self._patch is None else "merged" if self.merged else "active" if self.active else "inactive"
        )
        return f"<AppliedAdapter {self.name!r} from {self.info.source}: {len(self._modules)} modules, {state}>"
