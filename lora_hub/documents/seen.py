"""The memory ``seen.json``: which versions this user accepted from which registry, so that none can change or hide."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from lora_hub.documents.fields import Fields, canonical_json, parse_json_object
from lora_hub.errors import DocumentError
from lora_hub.reference import AdapterRef, is_commit, is_digest
from lora_hub.version import Version

SCHEMA = "lora-hub/seen/v1"
MAX_MEMORY = 64 * 1024 * 1024  # bytes
_MEND = "mend it by hand, or delete it to trust anew what the registries have now"

_Place = tuple[str, str, str]  # a registry's URL, `org/task`, and a version or commit


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What a version was when it was seen: the digest of its manifest, and whether it was yanked."""

    digest: str
    is_yanked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """All that was seen."""

    sights: Mapping[_Place, Sight] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Return the memory that *content* spells; raise `DocumentError` if it spells none."""
        fields = Fields(parse_json_object(content, what="the memory", limit=MAX_MEMORY, hint=_MEND), hint=_MEND)
        fields.check_schema(SCHEMA)
        fields.only("schema", "seen")
        sights = [_parse_sight(entry) for entry in fields.objects("seen")]
        if len({place for place, _ in sights}) != len(sights):
            raise DocumentError("one version stands there twice", context="seen", hint=_MEND)
        return cls(sights=dict(sights))

    def to_bytes(self) -> bytes:
        """Return the bytes of the memory; same memory, same bytes."""
        seen: list[dict[str, Any]] = [
            {"registry": registry, "name": name, "at": at, "digest": sight.digest, "yanked": sight.is_yanked}
            for (registry, name, at), sight in sorted(self.sights.items())
        ]
        return canonical_json({"schema": SCHEMA, "seen": seen})

    def sight(self, registry: str, reference: AdapterRef) -> Sight | None:
        """Return what was seen of the exact *reference*, a version or a commit."""
        return self.sights.get((registry, reference.name, str(reference.selector)))

    def versions(self, registry: str, reference: AdapterRef) -> dict[Version, Sight]:
        """Return what was seen of the versions of the adapter, rising."""
        found = {
            Version.parse(at): sight
            for (url, name, at), sight in self.sights.items()
            if (url, name) == (registry, reference.name) and Version.is_version(at)
        }
        return dict(sorted(found.items()))

    def with_sight(self, registry: str, reference: AdapterRef, sight: Sight) -> Seen:
        """Return a memory that has *sight* of the exact *reference* as well."""
        return Seen(sights={**self.sights, (registry, reference.name, str(reference.selector)): sight})


def _parse_sight(fields: Fields) -> tuple[_Place, Sight]:
    fields.only("registry", "name", "at", "digest", "yanked")
    place = (
        fields.text("registry"),
        fields.text("name", "a name of the form `org/task`", AdapterRef.is_name),
        fields.text("at", "a version or a commit", lambda at: Version.is_version(at) or is_commit(at)),
    )
    digest = fields.text("digest", "`sha256:` and 64 lower-case hex digits", is_digest)
    return place, Sight(digest=digest, is_yanked=fields.read("yanked", bool, "true or false"))
