"""The base model that an adapter was trained on, as its manifest describes it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from lora_hub.documents.checkpoint_index import MAX_SHARDS, is_shard_name
from lora_hub.documents.fields import Fields, is_sha256
from lora_hub.documents.fingerprint import Fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One file of the base's weights, and its SHA-256 in hex."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """The base model that the adapter was trained on, as far as it is known.

    Attributes:
        repo: Its name on the Hub.
        revision: The commit of that repository.
        model_type: The family of models, such as ``llama``.
        fingerprint: Some of its weights.
        shards: The files that its weights came from, where their digests were known.
    """

    repo: str | None = None
    revision: str | None = None
    model_type: str | None = None
    fingerprint: Fingerprint | None = None
    shards: tuple[ShardEntry, ...] = ()

    def __str__(self) -> str:
        return " at ".join(filter(None, [self.repo or "an unnamed base", self.revision]))

    def to_json(self) -> dict[str, Any]:
        """Return the value of ``base`` in a manifest."""
        document = {
            "repo": self.repo,
            "revision": self.revision,
            "model_type": self.model_type,
            "fingerprint": None if self.fingerprint is None else self.fingerprint.to_json(),
            "shards": [dataclasses.asdict(shard) for shard in self.shards] or None,
        }
        return {key: value for key, value in document.items() if value is not None}

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """Return the base that *fields*, the value of ``base`` in a manifest, describe.

        Raises:
            DocumentError: A value is malformed.
        """
        has = fields.values.keys()
        return cls(
            repo=fields.present_text("repo"),
            revision=fields.present_text("revision"),
            model_type=fields.present_text("model_type"),
            fingerprint=Fingerprint.parse(fields.object("fingerprint")) if "fingerprint" in has else None,
            shards=_parse_shards(fields) if "shards" in has else (),
        )


def _parse_shards(fields: Fields) -> tuple[ShardEntry, ...]:
    entries = tuple(
        ShardEntry(
            name=entry.text("name", "the plain name of a safetensors file", is_shard_name),
            sha256=entry.text("sha256", "64 lower-case hex digits", is_sha256),
        )
        for entry in fields.objects("shards")
    )
    if not 1 <= len({entry.name for entry in entries}) == len(entries) <= MAX_SHARDS:
        fields.fail("shards", f"1 to {MAX_SHARDS} files, each once")
    return entries
