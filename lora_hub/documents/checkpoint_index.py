"""The index of a checkpoint in several files: which tensor lies in which shard.

``model.safetensors.index.json`` of transformers: ``{"metadata": {"total_size": …}, "weight_map": {tensor: shard}}``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from lora_hub.documents.fields import Fields, canonical_json, parse_json_object, printable
from lora_hub.documents.safetensors_header import CHECKPOINT
from lora_hub.errors import DocumentError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_INDEX = 64 * 1024 * 1024  # bytes
MAX_SHARDS = 4096
_SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,200}\.safetensors", re.ASCII)
_HINT = f"download `{INDEX_NAME}` again, or save the checkpoint again"


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointIndex:
    """Which shard each tensor lies in, and what else the index says of the checkpoint."""

    weight_map: Mapping[str, str]
    metadata: Mapping[str, Any]

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Return the index that *content* spells.

        Raises:
            DocumentError: No such JSON, or a shard is not the plain name of a safetensors file beside the index.
        """
        document = parse_json_object(content, what=f"`{INDEX_NAME}`", limit=MAX_INDEX, hint=_HINT)
        fields = Fields(document, hint=_HINT)
        weight_map = fields.object("weight_map").values
        for tensor, shard in weight_map.items():
            # It becomes the name of a file that is read, and of one that is written.
            if not isinstance(shard, str) or not is_shard_name(shard):
                raise DocumentError(
                    f"{printable(shard)} is no plain name of a safetensors file",
                    context=f"weight_map[{printable(tensor)}]",
                    hint=_HINT,
                )
        _check_limits(weight_map)
        metadata = fields.object("metadata").values if fields.has("metadata") else {}
        return cls(weight_map=weight_map, metadata=metadata)

    @property
    def shards(self) -> tuple[str, ...]:
        """The names of the shards, in order."""
        return tuple(sorted(set(self.weight_map.values())))

    def changed(self, weight_map: Mapping[str, str], *, total_size: int) -> CheckpointIndex:
        """Return the index of other tensors, which take *total_size* bytes."""
        return dataclasses.replace(
            self, weight_map=dict(weight_map), metadata={**self.metadata, "total_size": total_size}
        )

    def to_bytes(self) -> bytes:
        """Return the bytes of the file; same index, same bytes."""
        return canonical_json({"metadata": dict(self.metadata), "weight_map": dict(self.weight_map)})


def is_shard_name(name: str) -> bool:
    """Whether *name* is the plain name of a safetensors file."""
    return _SHARD.fullmatch(name) is not None


def _check_limits(weight_map: Mapping[str, str]) -> None:
    if not weight_map:
        raise DocumentError("it names no tensor", context="weight_map", hint=_HINT)
    for what, count, limit in (
        ("tensors", len(weight_map), 4 * CHECKPOINT.max_tensors),
        ("shards", len(set(weight_map.values())), MAX_SHARDS),
    ):
        if count > limit:
            raise DocumentError(f"it has {count} {what}, at most {limit} are read", context="weight_map", hint=_HINT)
