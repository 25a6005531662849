"""Merged weights of one module: computed from the original, so that taking them back is exact.

Deltas are summed in float32 (float64 for a float64 base) on top of the original and rounded once;
`a.merge(); b.merge(); a.unmerge()` is therefore W0 + delta of b rounded once, whatever happened before.

While a module is written its originals are in its record, whichever way they are kept afterwards. So an interruption
anywhere leaves everything that is needed to write the module again.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_hub.errors import StateError
from lora_hub.patch.bits import checksum
from lora_hub.patch.correction import correction_of, restored
from lora_hub.patch.delta import Delta
from lora_hub.patch.factors import PartWeights
from lora_hub.patch.low_rank import LowRank, Parts, Scratch, add_low_rank, low_rank
from lora_hub.patch.projections import is_transposed
from lora_hub.patch.realised import Realised, realised
from lora_hub.patch.record import Content, Keep, Merged, Record

_WEIGHT = "weight"


def content_of(module: nn.Module, record: Record, adapters: Mapping[str, tuple[Delta | None, float]]) -> Content:
    """Return what *adapters* (what each adds, and weight x scale, by name) are to *module*, as they are now."""
    parts: list[tuple[PartWeights, float]] = []
    head: dict[str, Tensor] = {}
    for name, (delta, factor) in adapters.items():
        if delta is not None:
            parts += [(_as_now(weights), factor) for weights in delta.weights(module)]
        elif name in record.replacements:
            head |= record.replacements[name].tensors(module)
    return Content(tuple(parts), head)


def _as_now(weights: PartWeights) -> PartWeights:
    """Return *weights* such that training does not change them: what is merged is known as long as it is."""
    part, lora_A, lora_B = weights
    if not (lora_A.requires_grad or lora_B.requires_grad):
        return weights
    return PartWeights(part, lora_A.detach().clone(), lora_B.detach().clone())


def remerge(module: nn.Module, path: str, record: Record, content: Content, keep: Keep, scratch: Scratch) -> None:
    """Make the weights of *module* those with exactly *content* merged in, and keep in *record* the way back.

    Whenever this is interrupted, *record* has the originals: calling it again with other content makes it right.
    To be called under `plain_arithmetic`.

    Raises:
        StateError: The sum is too large for the dtype of the weight, or there is no way back from what is merged.
    """
    before = record.merged
    originals = dict(_originals(module, path, before, scratch)) if before is not None else {}
    names = [*content.head, *([_WEIGHT] if content.parts else [])]
    tensors = {name: _tensor(module, name) for name in {*names, *originals}}
    originals |= {name: tensors[name].clone() for name in names if name not in originals}
    record.merged = Merged(Content(), originals, {})
    for name, tensor in tensors.items():
        if name not in names:
            tensor.copy_(originals[name])
    for name, value in content.head.items():
        tensors[name].copy_(value)
    correction = None
    if content.parts:
        weight, delta = tensors[_WEIGHT], _delta(module, content.parts)
        original = originals[_WEIGHT].to(weight.device, weight.dtype)
        add_low_rank(weight, original if before is not None else weight, delta, scratch)
        if keep == "corrections":
            correction = correction_of(original, weight, delta, scratch)
    for name in names:
        _check_finite(f"{path}.{name}", tensors[name])
    kept = {name: originals[name] for name in names if name != _WEIGHT or correction is None}
    checksums = {name: checksum(tensors[name]) for name in names}
    record.merged = Merged(content, kept, checksums, correction) if names else None


def _delta(module: nn.Module, parts: Parts, dtype: torch.dtype | None = None) -> LowRank:
    return low_rank(parts, _tensor(module, _WEIGHT), transposed=is_transposed(module), dtype=dtype)


def _originals(module: nn.Module, path: str, merged: Merged, scratch: Scratch) -> Mapping[str, Tensor]:
    """Return each tensor of *module* that *merged* changed as it was before any merge. Changes nothing."""
    if merged.correction is None:
        return merged.originals
    delta = _delta(module, merged.content.parts)
    original = restored(_tensor(module, _WEIGHT), delta, merged.correction, scratch)
    if original is None:
        raise StateError(
            f"`{path}.{_WEIGHT}` cannot be computed back: it, or what was merged into it, was changed since, or it is "
            'on another device; no copy of the original was kept (`keep="corrections"`)',
            hint="the weights are as they were, merged; load the base model again to have it without the adapter",
        )
    return {**merged.originals, _WEIGHT: original}


def _tensor(module: nn.Module, name: str) -> Tensor:
    owner, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner) if owner else module, leaf)
    return tensor.detach()


def _check_finite(name: str, value: Tensor) -> None:
    # The other dtypes have float32's exponents: what was finite in the sum stays finite.
    if value.dtype is torch.float16 and not torch.isfinite(value).all():
        raise StateError(f"`{name}` plus the delta is too large for {value.dtype}", hint="use the adapter unmerged")


def check_unchanged(module: nn.Module, path: str, record: Record) -> None:
    """Raise `StateError` if a merged tensor of *module* is not what the merge made of it."""
    merged = record.merged
    for name, expected in merged.checksums.items() if merged is not None else ():
        if checksum(_tensor(module, name)) != expected:
            is_kept = merged is not None and name in merged.originals
            raise StateError(
                f"`{path}.{name}` was changed while an adapter was merged into it",
                hint="`unmerge(force=True)` gives back the original weights and drops the change"
                if is_kept
                else "undo the change, or load the base model again: no copy of the original was kept",
            )


def realised_delta(module: nn.Module, path: str, record: Record) -> Realised:
    """Return how much of the deltas that are merged into *module* its weight holds."""
    check_unchanged(module, path, record)
    merged, weight = record.merged, _tensor(module, _WEIGHT)
    assert merged is not None  # noqa: S101 - for the type checker: the caller knows who is merged
    original = _originals(module, path, merged, Scratch())[_WEIGHT].to(weight.device)
    return realised(weight, original, _delta(module, merged.content.parts, torch.float64))
