"""Merged weights of one module: computed from the kept original, so that taking them back is exact.

Deltas are summed in float32 (float64 for a float64 base) and rounded once; `a.merge(); b.merge(); a.unmerge()` is
therefore W0 + delta of b rounded once, whatever happened before.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_hub.errors import StateError
from lora_hub.patch.bits import checksum
from lora_hub.patch.delta import Delta
from lora_hub.patch.factors import delta_weight
from lora_hub.patch.projections import features, is_transposed
from lora_hub.patch.record import Merged, Record, record_of

Factors = Mapping[str, tuple[Delta | None, float]]  # what each adapter adds to a module, and weight x scale, by name


def remerge(module: nn.Module, path: str, record: Record, factors: Factors) -> None:
    """Make the weights of *module* those with exactly the adapters in *factors* merged in.

    Whenever this is interrupted, *record* has the originals: calling it again with other factors makes it right.

    Raises:
        StateError: The sum is too large for the dtype of the weight; nothing was changed.
    """
    values = _merged_values(module, path, record, factors)
    originals = dict(record.merged.originals) if record.merged is not None else {}
    for name in values.keys() - originals.keys():
        originals[name] = _tensor(module, name).detach().clone()
    record.merged = Merged(originals, {})
    with torch.no_grad():
        for name in originals.keys() - values.keys():
            _tensor(module, name).copy_(originals[name])
        for name, value in values.items():
            _tensor(module, name).copy_(value)
    kept = {name: originals[name] for name in values}
    record.merged = Merged(kept, {name: checksum(_tensor(module, name)) for name in values}) if values else None


def _merged_values(module: nn.Module, path: str, record: Record, factors: Factors) -> dict[str, Tensor]:
    """Return the value of each tensor that the adapters in *factors* change."""
    values: dict[str, Tensor] = {}
    pairs = [
        (weights, factor)
        for delta, factor in factors.values()
        if delta is not None
        for weights in delta.weights(module)
    ]
    if pairs:
        weight = _original(module, "weight")
        accumulator = torch.promote_types(weight.dtype, torch.float32)
        in_features, out_features = features(module)
        with torch.no_grad():
            delta = delta_weight(pairs, (out_features, in_features), device=weight.device, dtype=accumulator)
        delta = delta.T if is_transposed(module) else delta
        values["weight"] = delta.add_(weight.to(accumulator)).to(weight.dtype)
    for name in factors:
        if name in record.replacements:
            state = record.replacements[name].tensors(module)
            values |= {key: value.to(_tensor(module, key).dtype) for key, value in state.items()}
    for name, value in values.items():
        # The other dtypes have float32's exponents: what was finite in the sum stays finite.
        if value.dtype is torch.float16 and not torch.isfinite(value).all():
            raise StateError(
                f"`{path}.{name}` plus the delta is too large for {value.dtype}", hint="use the adapter unmerged"
            )
    return values


def _original(module: nn.Module, name: str) -> Tensor:
    """Return the tensor *name* of *module* as it was before any merge."""
    record = record_of(module)
    kept = record.merged.originals if record is not None and record.merged is not None else {}
    return kept.get(name, _tensor(module, name)).detach()


def _tensor(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)  # type: ignore[no-any-return]


def check_unchanged(module: nn.Module, path: str, record: Record) -> None:
    """Raise `StateError` if a merged tensor of *module* is not what the merge made of it."""
    for name, expected in record.merged.checksums.items() if record.merged is not None else ():
        tensor = _tensor(module, name)
        if tensor.dtype != record.merged.originals[name].dtype or checksum(tensor) != expected:  # type: ignore[union-attr]
            raise StateError(
                f"`{path}.{name}` was changed while an adapter was merged into it",
                hint="`unmerge(force=True)` gives back the original weights and drops the change",
            )


def check_can_merge(model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    """Raise `StateError` if a weight of *modules* cannot be merged into: computed, tied, offloaded, quantised."""
    owners: dict[int, dict[int, str]] = {}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():  # noqa: SLF001
            owners.setdefault(id(parameter), {})[id(module)] = f"{path}.{name}"
    for path, module in modules.items():
        record, inside = record_of(module), {id(child) for child in module.modules()}
        if record is not None and not record.replacements and module._parameters.get("weight") is None:  # noqa: SLF001
            raise StateError(f"`{path}.weight` is computed, not a parameter", hint="use the adapter unmerged")
        for name, weight in module.named_parameters():
            _check_weight(f"{path}.{name}", weight)
            others = [full for owner, full in owners.get(id(weight), {}).items() if owner not in inside]
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
