"""Candidates of a search, attached to the base once: a mixture is a choice of weights, and no step merges anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from lora_hub.composing.heads import Heads, common_heads
from lora_hub.composing.inputs import Input
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import UsageError
from lora_hub.patch.applied_adapter import AdapterInfo, AppliedAdapter
from lora_hub.patch.attach import Options, attach
from lora_hub.patch.choice import Use
from lora_hub.patch.factors import PartWeights
from lora_hub.patch.fit import check_fits
from lora_hub.patch.on_model import adapters as adapters_on
from lora_hub.patch.on_model import unwrap
from lora_hub.patch.projections import modules_by_path
from lora_hub.patch.use import use
from lora_hub.patch.weights import load_weights

Mixture = Callable[[Mapping[str, float]], Use]


@contextmanager
def attached(
    model: nn.Module, candidates: Mapping[str, VerifiedAdapter], *, allow_other_base: bool = False
) -> Iterator[Mixture]:
    """Attach *candidates* to *model*, yield what chooses a mixture of them, and leave the model as it was.

    Heads that all who have them agree on run in every mixture, as they would in the composed adapter.

    Raises:
        CompatibilityError: One does not fit the model, or two replace a module by different ones.
        UsageError: The model has an adapter of one of the names.
    """
    plain = unwrap(model)
    heads = heads_of(candidates)
    _check_names(plain, candidates)
    handles = []
    try:
        for name, adapter in candidates.items():
            check_fits(plain, modules_by_path(plain), adapter, allow_other_base=allow_other_base)
            info = AdapterInfo.of(adapter)
            handles.append(_attach(plain, name, info, load_weights(adapter).modules, {}))
        extra = {}
        if heads:
            name = _free_name(plain)
            handles.append(_attach(plain, name, AdapterInfo(targets=()), {}, heads))
            extra = {name: 1.0}
        yield lambda weights: use(plain, {**weights, **extra})
    finally:
        for handle in reversed(handles):
            handle.remove()


def _attach(
    model: nn.Module,
    name: str,
    info: AdapterInfo,
    modules: Mapping[str, tuple[PartWeights, ...]],
    heads: Mapping[str, Mapping[str, Tensor]],
) -> AppliedAdapter:
    options = Options(name=name, active=False)
    return attach(model, modules_by_path(model), info, modules, heads, options)


def _check_names(model: nn.Module, candidates: Mapping[str, VerifiedAdapter]) -> None:
    taken = sorted(adapters_on(model).keys() & candidates.keys())
    if taken:
        raise UsageError(
            f"the model has an adapter `{taken[0]}` already", hint="remove it, or name the candidate otherwise"
        )


def _free_name(model: nn.Module) -> str:
    name = "heads"
    while name in adapters_on(model):
        name += "-"
    return name


def heads_of(candidates: Mapping[str, VerifiedAdapter]) -> Heads:
    """Return the modules that *candidates* replace, by path, which all who replace one must agree on.

    Raises:
        CompatibilityError: Two replace one module by different ones, or one adapts what another replaces.
    """
    return common_heads([Input(name=name, adapter=adapter) for name, adapter in candidates.items()])
