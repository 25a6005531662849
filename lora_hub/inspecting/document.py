"""An inspection as JSON, after ``registry_schema/v1/inspection.schema.json``."""

from __future__ import annotations

from typing import Any

from lora_hub.documents.fields import canonical_json
from lora_hub.inspecting.findings import SHARES, AdapterDeltas, Inspection, ModuleDelta
from lora_hub.inspecting.relations import Overlap, Pair, SharedModule, SignConflict

SCHEMA = "lora-hub/inspection/v1"
DIGITS = 9  # more would differ between two libraries of linear algebra


def document(inspection: Inspection) -> bytes:
    """Return the bytes of *inspection*; same inspection, same bytes."""
    return canonical_json(
        {
            "schema": SCHEMA,
            "adapters": [_adapter(adapter) for adapter in inspection.adapters],
            "pairs": [_pair(pair) for pair in inspection.pairs],
            "modules": [_shared(module) for module in inspection.shared],
            "interference": _ratio(inspection.interference),
            "conflict": None if inspection.conflict is None else _conflict(inspection.conflict),
        }
    )


def _size(value: float) -> float:
    """Return a length, which may be of any magnitude."""
    return float(f"{value:.{DIGITS}g}")


def _ratio(value: float | None) -> float | None:
    """Return a cosine or a share, of which what is far below one is noise."""
    return None if value is None else round(value, DIGITS) + 0.0  # no negative zero


def _adapter(adapter: AdapterDeltas) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "digest": adapter.digest,
        "r": adapter.r,
        "alpha": adapter.alpha,
        "dtype": adapter.dtype,
        "parameters": adapter.parameters,
        "heads": list(adapter.heads),
        "norm": _size(adapter.norm),
        "effective_rank": _size(adapter.effective_rank),
        "dead": adapter.dead,
        "wasted": adapter.wasted,
        "retained": [_ratio(kept) for kept in adapter.retained()],
        "rank_for": {f"{energy:g}": adapter.rank_for(energy) for energy in SHARES},
        "modules": [_module(module) for module in adapter.modules],
    }


def _module(module: ModuleDelta) -> dict[str, Any]:
    return {
        "path": module.path,
        "shape": [module.out_features, module.in_features],
        "r": module.r,
        "dead": module.dead,
        "norm": _size(module.norm),
        "spectral_norm": _size(module.spectral_norm),
        "numerical_rank": module.numerical_rank,
        "stable_rank": _size(module.stable_rank),
        "effective_rank": _size(module.effective_rank),
        "singular_values": [_size(value) for value in module.singular_values],
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "one": pair.one,
        "other": pair.other,
        "modules": pair.modules,
        "cosine": _ratio(pair.cosine),
        "scale": None if pair.scale is None else _size(pair.scale),
        "outputs": _overlap(pair.outputs),
        "inputs": _overlap(pair.inputs),
    }


def _overlap(overlap: Overlap) -> dict[str, Any]:
    return {
        "shared": _ratio(overlap.shared),
        "chance": _ratio(overlap.chance),
        "one_in_other": _ratio(overlap.one_in_other),
        "other_in_one": _ratio(overlap.other_in_one),
    }


def _shared(module: SharedModule) -> dict[str, Any]:
    return {
        "path": module.path,
        "adapters": list(module.adapters),
        "interference": _ratio(module.interference),
        "conflict": _conflict(module.conflict),
        "pairs": [_pair_in_module(pair) for pair in module.pairs],
    }


def _pair_in_module(pair: Pair) -> dict[str, Any]:
    return {
        "one": pair.one,
        "other": pair.other,
        "cosine": _ratio(pair.cosine),
        "outputs": _overlap(pair.outputs) | {"cosines": [_ratio(cosine) for cosine in pair.outputs.cosines]},
        "inputs": _overlap(pair.inputs) | {"cosines": [_ratio(cosine) for cosine in pair.inputs.cosines]},
    }


def _conflict(conflict: SignConflict) -> dict[str, Any]:
    return {
        "rows": conflict.rows,
        "of": round(conflict.of),
        "rate": _ratio(conflict.rate),
        "lost": _ratio(conflict.lost_share),
    }
