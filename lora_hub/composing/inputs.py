"""What goes into a composition: adapters with their weights, and the proof that their deltas belong to one base."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lora_hub.composing.factors import Factors
from lora_hub.documents.adapter_config import scaling
from lora_hub.documents.adapter_layout import LoraModule
from lora_hub.documents.base_model import BaseModel
from lora_hub.documents.common_fingerprint import contradiction, united
from lora_hub.documents.fields import printable
from lora_hub.documents.fingerprint import Fingerprint
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import CompatibilityError, MalformedError
from lora_hub.tensors import tensor_of

LARGEST = 1e60  # of a number in A or B: the squares of weighted products still are numbers in float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One adapter of a composition, and what it is called there."""

    name: str
    adapter: VerifiedAdapter

    @property
    def modules(self) -> Mapping[str, LoraModule]:
        """What it adapts, by path."""
        return {module.path: module for module in self.adapter.layout.modules}

    def factors(self, module: LoraModule) -> Factors:
        """Return the delta of *module* in float64, alpha and r (or its root) in B.

        Raises:
            MalformedError: It holds numbers that nobody trained, whose products could overflow.
        """
        lora_A, lora_B = self.stored(module)
        factor = scaling(module.r, module.alpha, use_rslora=self.adapter.config.use_rslora)
        # A copy in any case: the view may lie at any address, and the last bits of a product can depend on that.
        factors = Factors(lora_B.double() * factor, lora_A.to(torch.float64, copy=True))
        extremes = [abs(extreme.item()) for side in factors for extreme in side.aminmax()]
        if max(extremes) > LARGEST:
            raise MalformedError(
                f"`{module.path}` of `{self.name}` holds numbers beyond {LARGEST:g}", hint="the training diverged"
            )
        return factors

    def stored(self, module: LoraModule) -> tuple[Tensor, Tensor]:
        """Return A ``[r, in]`` and B ``[out, r]`` of *module* as they lie in the file."""
        return tensor_of(self.adapter, module.lora_A), tensor_of(self.adapter, module.lora_B)

    def head(self, path: str) -> dict[str, Tensor]:
        """Return the tensors of the replaced module at *path*, by the names of its parameters."""
        return {name: tensor_of(self.adapter, key) for name, key in self.adapter.layout.heads[path].items()}


def modules_of(inputs: Sequence[Input]) -> Iterator[tuple[str, dict[int, LoraModule]]]:
    """Yield every adapted module, in the order of the paths: which of *inputs* adapt it, by their position, and how."""
    every = [one.modules for one in inputs]
    for path in sorted({path for modules in every for path in modules}):
        yield path, {position: modules[path] for position, modules in enumerate(every) if path in modules}


def common_base(inputs: Sequence[Input], *, allow_other_base: bool = False) -> BaseModel:
    """Return the base model of all *inputs*, as far as it is known.

    Raises:
        CompatibilityError: Two are of different bases, or adapt one module in different shapes.
    """
    _check_shapes(inputs)
    base = BaseModel()
    known_by: dict[str, str] = {}
    for one in inputs:
        own = one.adapter.manifest.base
        for what in ("repo", "revision", "model_type"):
            known, found = getattr(base, what), getattr(own, what)
            if found is not None:
                known_by.setdefault(what, one.name)
            if None in {known, found} or known == found or (allow_other_base and what != "model_type"):
                continue
            raise CompatibilityError(
                f"`{one.name}` was made for the base {what} {printable(found)}, `{known_by[what]}` for "
                f"{printable(known)}",
                hint="deltas of different bases do not add up; `--allow-other-base` takes siblings of one base",
            )
        base = _merged(base, own)
    shards = {own.shards for one in inputs if (own := one.adapter.manifest.base).shards}
    return replace(
        base,
        fingerprint=_common_fingerprint(inputs, allow_other_base=allow_other_base),
        shards=shards.pop() if len(shards) == 1 else (),
    )


def _merged(one: BaseModel, other: BaseModel) -> BaseModel:
    return BaseModel(
        repo=one.repo or other.repo,
        revision=one.revision or other.revision,
        model_type=one.model_type or other.model_type,
    )


def _common_fingerprint(inputs: Sequence[Input], *, allow_other_base: bool) -> Fingerprint | None:
    """Return what the fingerprints of *inputs* say together; of siblings, None, since they are of no one base."""
    known = [(one.name, found) for one in inputs if (found := one.adapter.manifest.base.fingerprint) is not None]
    for (name, found), (other, second) in itertools.combinations(known, 2):
        difference = contradiction(found, second)
        if difference is not None and allow_other_base:
            return None
        if difference is not None:
            raise CompatibilityError(
                f"`{name}` and `{other}` were trained on bases with different weights: {difference}",
                hint="deltas of different bases do not add up; `--allow-other-base` takes siblings of one base",
            )
    return united([found for _, found in known])


def _check_shapes(inputs: Sequence[Input]) -> None:
    for path, modules in modules_of(inputs):
        shapes = {(module.out_features, module.in_features): position for position, module in modules.items()}
        if len(shapes) > 1:
            (one, first), (other, second), *_ = shapes.items()
            raise CompatibilityError(
                f"`{path}` is {list(one)} in `{inputs[first].name}`, {list(other)} in `{inputs[second].name}`",
                hint="they were made for different base models",
            )


def common_dtype(inputs: Sequence[Input]) -> torch.dtype:
    """Return the narrowest dtype that holds every number of all *inputs*: that of the composition, unless named."""
    found: torch.dtype | None = None
    for one in inputs:
        for module in one.adapter.layout.modules:
            for tensor in one.stored(module):
                found = tensor.dtype if found is None else torch.promote_types(found, tensor.dtype)
    return found or torch.float32
