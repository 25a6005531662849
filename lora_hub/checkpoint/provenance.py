"""``lora_hub.merge.json``: what a merged checkpoint was made of, every digest, and what was realised of each delta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_hub.checkpoint.companions import PROVENANCE_NAME
from lora_hub.checkpoint.deltas import Sums
from lora_hub.checkpoint.journal import MAX_SIZE, realised
from lora_hub.checkpoint.plan import MergePlan
from lora_hub.checkpoint.shard import WrittenShard
from lora_hub.documents.fields import Fields, canonical_json, is_sha256, parse_json_object

SCHEMA = "lora-hub/merge/v1"
MAX_PROVENANCE = 256 * 1024 * 1024  # bytes
_DIGITS = 6  # significant ones of gain and error
_LOW_GAIN, _HIGH_ERROR = 0.95, 0.3
_HINT = "empty the output directory, and run it without --resume"


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedModule:
    """How much of the delta of one module is in the weights; see `lora_hub.checkpoint.deltas.Sums`."""

    gain: float
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """A checkpoint that was written.

    Attributes:
        output: Where it lies.
        recipe: ``sha256:…`` of what decided about its weights.
        files: SHA-256 in hex of each file, by name.
        size: Bytes of its weights.
        gain: ``<D', D> / <D, D>`` over all modules: 1.0 if all of the deltas is there, on average.
        error: ``|D' - D| / |D|`` over all modules.
        modules: The same for each module, by path.
        notes: What the user should know.
        reused: Shards that were there already, from a run that was cut off.
    """

    output: Path
    recipe: str
    files: Mapping[str, str]
    size: int
    gain: float
    error: float
    modules: Mapping[str, MergedModule]
    notes: tuple[str, ...] = ()
    reused: tuple[str, ...] = ()


def provenance(
    plan: MergePlan, shards: Mapping[str, WrittenShard], files: Mapping[str, str], *, tool: str
) -> dict[str, Any]:
    """Return the document about the merge *plan*, whose *shards* and other *files*, by SHA-256, were written."""
    sums = realised(shards)
    total = sum(sums.values(), Sums())
    base = plan.checkpoint.files
    return {
        "schema": SCHEMA,
        "tool": {"name": "lora-hub", "version": tool},
        "recipe": plan.digest(),
        "base": {
            "repo": base.repo,
            "commit": base.commit,
            "model_type": plan.checkpoint.model_type,
            "shards": {name: shard.base_sha256 for name, shard in shards.items()},
        },
        "adapters": [source.description for source in plan.sources],
        "dtype": plan.dtype,
        "size": plan.size,
        "files": dict(files),
        "realised": _shown(total),
        "modules": {path: _shown(one) for path, one in sums.items()},
    }


def _shown(sums: Sums) -> dict[str, float]:
    return {"gain": _rounded(sums.gain), "error": _rounded(sums.error)}


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def low_gain(document: Mapping[str, Any]) -> list[str]:
    """Return a note if much of the deltas was lost to rounding."""
    gain, error = document["realised"]["gain"], document["realised"]["error"]
    if gain >= _LOW_GAIN and error <= _HIGH_ERROR:
        return []
    modules = document["modules"]
    worst = max(modules, key=lambda path: (modules[path]["error"], path))
    lost = f"the weights' dtype rounds much of the deltas away: gain {gain:.2f}, error {error:.2f}, worst in {worst} "
    worst_gain, worst_error = modules[worst]["gain"], modules[worst]["error"]
    return [f"{lost}({worst_gain:.2f}, {worst_error:.2f}); --dtype float32, or an adapter unmerged, keeps them"]


def to_bytes(document: Mapping[str, Any]) -> bytes:
    """Return the bytes of the file; same merge, same bytes."""
    return canonical_json(document)


def parse(content: bytes) -> dict[str, Any]:
    """Return the document that *content* spells, as far as `merged` reads it.

    Raises:
        DocumentError: It is none.
    """
    document = parse_json_object(content, what=f"`{PROVENANCE_NAME}`", limit=MAX_PROVENANCE, hint=_HINT)
    fields = Fields(document, hint=_HINT)
    fields.check_schema(SCHEMA)
    fields.text("recipe")
    fields.integer("size", low=0, high=MAX_SIZE)
    for digests in (fields.object("files"), fields.object("base").object("shards")):
        for name in digests.values:
            digests.text(name, "a SHA-256", is_sha256)
    for one in (fields.object("realised"), *map(fields.object("modules").object, fields.object("modules").values)):
        one.only("gain", "error")
        one.number("gain")
        one.number("error")
    return document


def merged(
    output: Path, document: Mapping[str, Any], *, notes: tuple[str, ...] = (), reused: tuple[str, ...] = ()
) -> Merged:
    """Return what was written into *output*, as the *document* there says."""
    return Merged(
        output=output,
        recipe=document["recipe"],
        files=document["files"],
        size=document["size"],
        gain=document["realised"]["gain"],
        error=document["realised"]["error"],
        modules={path: MergedModule(**one) for path, one in document["modules"].items()},
        notes=(*notes, *low_gain(document)),
        reused=reused,
    )
