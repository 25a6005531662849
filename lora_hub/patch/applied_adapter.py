"""The handle on an adapter that is attached to a model."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from torch import nn

from lora_hub.documents.base_model import BaseModel
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import StateError
from lora_hub.patch.bits import digest
from lora_hub.patch.delta import Delta
from lora_hub.patch.deltas import Deltas
from lora_hub.patch.realised import Realised
from lora_hub.patch.record import Keep
from lora_hub.patch.weights import AdapterWeights

if TYPE_CHECKING:
    from lora_hub.patch.model_patch import ModelPatch


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterInfo:
    """What is known about an adapter besides its tensors; `save_adapter` writes it down again.

    Attributes:
        targets: What the adapter's author called the targets.
        source: Where it came from, for messages.
        digest: ``sha256:…`` of the manifest it was loaded from; None for an adapter that was made here.
    """

    targets: tuple[str, ...]
    use_rslora: bool = False
    lora_dropout: float = 0.0
    task_type: str | None = None
    base: BaseModel = BaseModel()  # noqa: RUF009 - frozen, so it may be shared
    license: str | None = None
    source: str = "this process"
    digest: str | None = None

    @classmethod
    def of(cls, adapter: VerifiedAdapter) -> Self:
        """Return what *adapter* says about itself."""
        return cls(
            targets=adapter.manifest.lora.targets,
            use_rslora=adapter.config.use_rslora,
            lora_dropout=adapter.config.lora_dropout,
            task_type=adapter.config.task_type,
            base=adapter.manifest.base,
            license=adapter.manifest.license,
            source=adapter.source,
            digest=adapter.digest,
        )


@dataclass(slots=True, eq=False, kw_only=True, weakref_slot=True)
class AppliedAdapter:
    """One adapter on one model.

    Attributes:
        name: Its name on this model.
        info: Where it came from and how it was made.
        modules: The adapted and the replaced modules, by path.
        heads: The paths of the replaced ones.
        trainable: Whether A, B and heads are parameters that an optimizer sees.
        scale: Multiplies its delta; the factor is weight x scale x alpha/r.
        other_base_allowed: Whether it was applied although it was made for another base.
        patch: The state of the model that it is on.
        arrival: Grows with every adapter that is applied in this process.
        deltas: What it adds to its modules, in memory or on disk.
    """

    name: str
    info: AdapterInfo
    modules: Mapping[str, nn.Module]
    heads: frozenset[str]
    trainable: bool
    scale: float
    other_base_allowed: bool
    patch: ModelPatch
    arrival: int = field(default_factory=itertools.count().__next__)
    deltas: Deltas = field(default_factory=lambda: Deltas({}))
    _saved_digest: str | None = None
    _is_trained: bool = False

    def __setattr__(self, name: str, value: object) -> None:
        if name not in {"active", "deltas", "_saved_digest", "_is_trained"} and hasattr(self, name):
            raise AttributeError(f"`{name}` of an applied adapter is fixed: apply it again with `replace=True`")
        object.__setattr__(self, name, value)

    @property
    def is_attached(self) -> bool:
        """Whether the adapter is on its model still."""
        return self.patch.state.handles.get(self.name) is self

    @property
    def active(self) -> bool:
        """Whether the adapter belongs to the model's default set, which runs outside of `use`.

        The default set is read when a module runs. So between a forward outside of `use` and its backward it must not
        be changed, if the forward is checkpointed.
        """
        return self in self.patch.state.active

    @active.setter
    def active(self, value: bool) -> None:
        self._attached_patch().set_active(self, active=value)

    @property
    def merged(self) -> bool:
        """Whether the delta is in the weights of the base at the moment."""
        return self in self.patch.state.merged

    def merge(self, *, keep: Keep = "originals", only: bool = False) -> None:
        """Add the delta to the weights of the base, at no further cost per call; `unmerge` gives back the same bits.

        ``W0 + factor * B A`` is summed in float32 over all merged adapters and rounded once, in place: the parameters
        stay the same objects at the same addresses. `realised` says how much of the delta the rounding leaves.

        Args:
            keep: What makes the way back exact. ``"originals"`` keeps a copy of each merged weight (100% of them).
                ``"corrections"`` keeps the numbers that subtracting the delta does not give back: of a bfloat16 weight
                2.6% for a delta of 1%, 6% for 3%, 15% for 10%; at any time one weight has a copy as well. It takes
                longer, and what is changed while merged cannot be brought back, also not by ``force=True``. Heads
                keep their originals in either way. All that is merged on one model shares one way.
            only: Take out what else is merged, in the same pass over the weights.

        Raises:
            StateError: Already merged; weights that are tied, offloaded or quantised; a merged weight was changed.
        """
        self._attached_patch().merge(self, keep=keep, only=only)

    def unmerge(self, *, force: bool = False) -> None:
        """Take the delta out of the weights again: the original bits, or those of what stays merged.

        Raises:
            StateError: Not merged, or a merged weight was changed since; with *force* the original comes back anyway,
                unless it was merged with ``keep="corrections"``.
        """
        self._attached_patch().unmerge(self, force=force)

    def realised(self) -> Mapping[str, Realised]:
        """Return, for each adapted module by path, how much of all that is merged its weight holds: gain and error.

        Raises:
            StateError: Not merged, or a merged weight was changed since.
        """
        return self._attached_patch().realised(self)

    def kept_bytes(self) -> int:
        """Return how many bytes the modules of this adapter keep at the moment so that `unmerge` is exact.

        What an adapter shares with others that are merged into the same modules counts for each of them.
        """
        kept = self._attached_patch().kept_bytes(self)
        # Training must not change what is known to be merged, so A and B are copied.
        copied = self.weights().modules if self.trainable and self.merged else {}
        return kept + sum(A.nbytes + B.nbytes for parts in copied.values() for _, A, B in parts)

    def remove(self) -> None:
        """Take the adapter off the model: same objects, same classes, same bits, same `requires_grad` as before."""
        self._attached_patch().remove(self)

    def delta(self, module: nn.Module) -> Delta | None:
        """Return what the adapter adds to *module*, or None if it adds nothing there."""
        return self.deltas.here().get(module)

    @property
    def can_leave(self) -> bool:
        """Whether its A and B may leave memory, since nothing but a choice to come needs them."""
        return self.deltas.come_back is not None and not (self.active or self.merged)

    def weights(self) -> AdapterWeights:
        """Return A and B of each module, and the tensors of each head, as they are now."""
        patch = self._attached_patch()
        records = {path: (module, patch.record(module)) for path, module in self.modules.items()}
        deltas = self.deltas.here()
        return AdapterWeights(
            modules={p: deltas[m].weights(m) for p, (m, _) in records.items() if p not in self.heads},
            heads={p: r.replacements[self.name].tensors(m) for p, (m, r) in records.items() if p in self.heads},
        )

    def parameter_count(self) -> int:
        """Return how many numbers the adapter holds."""
        return sum(tensor.numel() for _, tensor in self.weights().tensors())

    def has_unsaved_changes(self) -> bool:
        """Whether the adapter was trained since it was made, loaded or last saved."""
        if not self.trainable or self._saved_digest == self.state_digest():
            return False
        # Cast, but never trained: all that was made here is still B = 0.
        return bool(self.heads) or any(bool(t.any()) for n, t in self.weights().tensors() if n.endswith("lora_B"))

    def was_trained_here(self) -> bool:
        """Whether its values come from training on the base at hand: made here, or changed since it was loaded."""
        return self.info.digest is None or self._is_trained or self.has_unsaved_changes()

    def mark_saved(self) -> None:
        """Remember the present values as saved."""
        present = self.state_digest()
        self._is_trained = self._is_trained or self._saved_digest not in {None, present}
        self._saved_digest = present

    def state_digest(self) -> str:
        """Return a digest of all values of the adapter."""
        return digest(self.weights().tensors())

    def _attached_patch(self) -> ModelPatch:
        if not self.is_attached:
            raise StateError(f"the adapter `{self.name}` was removed", hint="apply it again with `apply_adapter`")
        return self.patch

    def __repr__(self) -> str:
        states = {"removed": not self.is_attached, "merged": self.merged, "active": self.active, "inactive": True}
        state = next(word for word, holds in states.items() if holds)
        return f"<AppliedAdapter {self.name!r} from {self.info.source}: {len(self.modules)} modules, {state}>"
