"""Inspect adapters: module by module from the factors, then altogether from what was found there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from lora_hub.composing.exactness import reproducible
from lora_hub.composing.inputs import Input, modules_of
from lora_hub.documents.adapter_layout import LoraModule
from lora_hub.inspecting.conflict import sign_conflict
from lora_hub.inspecting.findings import AdapterDeltas, Inspection, ModuleDelta
from lora_hub.inspecting.measures import dead_ranks, pairs, spectra
from lora_hub.inspecting.relations import COPY, Overlap, Pair, SharedModule, SignConflict, share

Progress = Callable[[Sequence[Any]], Iterable[Any]]
Deltas = dict[int, ModuleDelta]  # of one module, by the position of the adapter


@reproducible()
def analyse(inputs: Sequence[Input], progress: Progress = iter) -> Inspection:
    """Return what *inputs*, adapters of one base, change, and how any two of them relate.

    Raises:
        MalformedError: The numbers of a module are too large to calculate with.
    """
    modules: list[Deltas] = []
    shared: list[SharedModule] = []
    for path, adapted in progress(list(modules_of(inputs))):
        deltas, together = _module(inputs, path, adapted)
        modules.append(deltas)
        if together is not None:
            shared.append(together)
    adapters = tuple(
        _adapter(one, [deltas[position] for deltas in modules if position in deltas])
        for position, one in enumerate(inputs)
    )
    if len(adapters) == 1:
        return Inspection(adapters=adapters)
    return Inspection(
        adapters=adapters,
        pairs=tuple(_altogether(adapters, shared, *both) for both in combinations(range(len(adapters)), 2)),
        shared=tuple(shared),
        interference=_whole_interference(adapters, shared),
        conflict=_whole_conflict(shared),
    )


def _module(
    inputs: Sequence[Input], path: str, adapted: Mapping[int, LoraModule]
) -> tuple[Deltas, SharedModule | None]:
    positions = list(adapted)
    factors = [inputs[position].factors(module) for position, module in adapted.items()]
    found = spectra(factors, path)
    deltas = {
        position: ModuleDelta(
            path=path,
            out_features=module.out_features,
            in_features=module.in_features,
            r=module.r,
            dead=dead_ranks(delta),
            singular_values=tuple(svd.S.tolist()),
        )
        for (position, module), delta, svd in zip(adapted.items(), factors, found, strict=True)
    }
    if len(positions) == 1:
        return deltas, None
    both = pairs(found, positions, factors[0].shape)
    together = SharedModule(
        path=path,
        adapters=tuple(positions),
        interference=_interference(deltas, both),
        conflict=sign_conflict(factors, path),
        pairs=both,
    )
    return deltas, together


def _interference(deltas: Deltas, both: Iterable[Pair]) -> float | None:
    apart = sum(delta.norm**2 for delta in deltas.values())
    cross = sum(2 * pair.cosine * deltas[pair.one].norm * deltas[pair.other].norm for pair in both)
    return max(0.0, 1 + cross / apart) if apart else None


def _adapter(one: Input, modules: Iterable[ModuleDelta]) -> AdapterDeltas:
    lora = one.adapter.manifest.lora
    return AdapterDeltas(
        name=one.name,
        digest=one.adapter.digest,
        r=lora.r,
        alpha=lora.alpha,
        dtype=lora.dtype,
        parameters=lora.parameters,
        heads=tuple(sorted(one.adapter.layout.heads)),
        modules=tuple(modules),
    )


def _altogether(adapters: Sequence[AdapterDeltas], shared: Iterable[SharedModule], one: int, other: int) -> Pair:
    """Return two adapters over all modules: what one of them alone adapts counts as zero in the other."""
    norms = [{module.path: module.norm for module in adapters[position].modules} for position in (one, other)]
    sizes, common, products = (adapters[one].norm, adapters[other].norm), [], 0.0
    for module in shared:
        for pair in module.pairs:
            if (pair.one, pair.other) == (one, other):
                size, size_other = norms[0][module.path], norms[1][module.path]
                products += pair.cosine * share(size, sizes[0]) * share(size_other, sizes[1])
                common.append((pair, share(size, sizes[0]) ** 2, share(size_other, sizes[1]) ** 2))
    cosine = max(-1.0, min(1.0, products))
    return Pair(
        one=one,
        other=other,
        modules=len(common),
        cosine=cosine,
        outputs=_mean([(pair.outputs, energy, energy_other) for pair, energy, energy_other in common]),
        inputs=_mean([(pair.inputs, energy, energy_other) for pair, energy, energy_other in common]),
        scale=cosine * sizes[1] / sizes[0] if abs(cosine) >= COPY else None,
    )


def _mean(overlaps: Sequence[tuple[Overlap, float, float]]) -> Overlap:
    """Return the mean over modules in which neither delta is zero; shares of energy count by the energy there."""
    whole = [overlap for overlap, *_ in overlaps if overlap.cosines]
    return Overlap(
        shared=share(sum(overlap.shared for overlap in whole), len(whole)),
        chance=share(sum(overlap.chance for overlap in whole), len(whole)),
        one_in_other=sum(overlap.one_in_other * energy for overlap, energy, _ in overlaps),
        other_in_one=sum(overlap.other_in_one * energy for overlap, _, energy in overlaps),
    )


def _whole_interference(adapters: Sequence[AdapterDeltas], shared: Iterable[SharedModule]) -> float | None:
    """Return that of all modules; one that a single adapter changes interferes with nothing."""
    apart = sum(adapter.norm**2 for adapter in adapters)
    norms = [{module.path: module.norm for module in adapter.modules} for adapter in adapters]
    cross = sum(
        2 * pair.cosine * norms[pair.one][module.path] * norms[pair.other][module.path]
        for module in shared
        for pair in module.pairs
    )
    return max(0.0, 1 + cross / apart) if apart else None


def _whole_conflict(shared: Sequence[SharedModule]) -> SignConflict | None:
    """Return the sum over modules, each as if all of its rows had been looked at."""
    if not shared:
        return None
    scaled = [_as_if_exact(module.conflict) for module in shared]
    return SignConflict(
        rows=sum(module.conflict.rows for module in shared),
        **{
            name: sum(getattr(one, name) for one in scaled)
            for name in ("of", "contested", "conflicting", "mass", "lost")
        },
    )


def _as_if_exact(conflict: SignConflict) -> SignConflict:
    factor = conflict.of / conflict.rows
    return replace(
        conflict,
        contested=conflict.contested * factor,
        conflicting=conflict.conflicting * factor,
        mass=conflict.mass * factor,
        lost=conflict.lost * factor,
    )
