"""Merged weights of one module: computed from the kept original, so that taking them back is exact.

Deltas are summed in float32 (float64 for a float64 base) and rounded once; `a.merge(); b.merge(); a.unmerge()` is
therefore W0 + delta_b rounded once, whatever happened before.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_hub.errors import StateError
from lora_hub.patch.bits import checksum
from lora_hub.patch.factors import delta_weight
from lora_hub.patch.projections import features, is_transposed
from lora_hub.patch.record import Merged, Record, record_of


def remerge(module: nn.Module, path: str, record: Record, factors: Mapping[str, float], *, force: bool = False) -> None:
    """Make the weights of *module* those with exactly the adapters in *factors* (name to weight x scale) merged in.

    Raises:
        StateError: A merged tensor was changed since; with *force* it is replaced all the same. Nothing was changed.
    """
    if record.merged is not None and not force:
        _check_unchanged(module, path, record.merged)
    values = _merged_values(module, record, factors)
    originals = dict(record.merged.originals) if record.merged is not None else {}
    with torch.no_grad():
        for name in originals.keys() - values.keys():
            _tensor(module, name).copy_(originals.pop(name))
        for name, value in values.items():
            tensor = _tensor(module, name)
            originals.setdefault(name, tensor.detach().clone())
            tensor.copy_(value)
    checksums = {name: checksum(_tensor(module, name)) for name in values}
    record.merged = Merged(originals, checksums) if values else None


def _merged_values(module: nn.Module, record: Record, factors: Mapping[str, float]) -> dict[str, Tensor]:
    """Return the value of each tensor that the adapters in *factors* change."""
    values: dict[str, Tensor] = {}
    pairs = [
        (*adapted.stored(module), part.runs(features(module)[1]), factor * part.scaling)
        for name, factor in factors.items()
        if name in record.slots
        for part, adapted in record.slots[name].parts
    ]
    if pairs:
        weight = original(module, "weight")
        accumulator = torch.promote_types(weight.dtype, torch.float32)
        in_features, out_features = features(module)
        delta = delta_weight(pairs, (out_features, in_features), device=weight.device, dtype=accumulator)
        delta = delta.T if is_transposed(module) else delta
        values["weight"] = delta.add_(weight.to(accumulator)).to(weight.dtype)
    for name in factors:
        if name in record.replacements:
            values |= record.replacements[name].tensors(module)
    return values


def original(module: nn.Module, name: str) -> Tensor:
    """Return the tensor *name* of *module* as it was before any merge."""
    record = record_of(module)
    kept = record.merged.originals if record is not None and record.merged is not None else {}
    return kept.get(name, _tensor(module, name)).detach()


def _tensor(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)  # type: ignore[no-any-return]


def _check_unchanged(module: nn.Module, path: str, merged: Merged) -> None:
    for name, expected in merged.checksums.items():
        tensor = _tensor(module, name)
        if tensor.dtype != merged.originals[name].dtype or checksum(tensor) != expected:
            raise StateError(
                f"`{path}.{name}` was changed while an adapter was merged into it",
                hint="`unmerge(force=True)` gives back the original weights and drops the change",
            )


def check_can_merge(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Raise `StateError` if a weight of *modules* cannot be merged into: tied, offloaded, quantised."""
    owners: dict[int, dict[int, str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():  # noqa: SLF001
            owners.setdefault(id(parameter), {})[id(module)] = f"{path}.{name}"
    for path, module in modules.items():
        inside = {id(child) for child in module.modules()}
        for name, weight in module.named_parameters():
            _check_weight(f"{path}.{name}", weight)
            others = [full for owner, full in owners[id(weight)].items() if owner not in inside]
            if others:
                raise StateError(
                    f"`{path}.{name}` is tied to `{others[0]}`, which the merge would change as well",
                    hint="use the adapter unmerged, or untie the weights first",
                )


def _check_weight(name: str, weight: Tensor) -> None:
    if weight.device.type == "meta":
        raise StateError(f"`{name}` is offloaded", hint="use the adapter unmerged")
    if not weight.is_floating_point() or weight.element_size() == 1:
        raise StateError(f"`{name}` is quantised ({weight.dtype})", hint="use the adapter unmerged")
