"""The trust policy ``trust.toml``: whose adapters may reach a model. Pure: it reads no file and no clock.

In this version it holds pins::

    version = 1

    [[pin]]
    registry = "hf://"
    name = "org/task"
    version = "1.2.0"          # or no version: then the commit alone
    commit = "<40 hex digits>" # where the registry has commits
    digest = "sha256:…"
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from lora_hub.documents.fields import Fields
from lora_hub.errors import DocumentError, UnsupportedSchemaError
from lora_hub.reference import AdapterRef, is_commit, is_digest
from lora_hub.version import Version

VERSION = 1
MAX_POLICY = 4 * 1024 * 1024  # bytes
_KEYS = ("registry", "name", "version", "commit", "digest")
_MEND = "mend the file by hand, or restore a copy of it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """What one version (or, without a version, one commit) of an adapter in one registry must be."""

    registry: str
    name: str
    digest: str
    version: str | None = None
    commit: str | None = None

    @property
    def places(self) -> set[tuple[str, str, str]]:
        """What is pinned: a version, a commit, or both."""
        return {(self.registry, self.name, at) for at in (self.version, self.commit) if at is not None}

    def contradicts(self, other: Pin) -> bool:
        """Whether both pin the same version, or the same commit, to different digests."""
        return self.digest != other.digest and not self.places.isdisjoint(other.places)

    @property
    def reference(self) -> AdapterRef:
        """``org/task@1.2.0``, or ``org/task@<commit>``."""
        return AdapterRef.parse(f"{self.name}@{self.version or self.commit}")

    def to_toml(self) -> str:
        """Return the pin as a table of ``trust.toml``."""
        lines = [f"{key} = {_quoted(getattr(self, key))}\n" for key in _KEYS if getattr(self, key) is not None]
        return f"[[pin]]\n{''.join(lines)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """All that this user trusts. An empty policy trusts nobody."""

    pins: tuple[Pin, ...] = ()

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Return the policy that *content*, TOML, spells.

        Raises:
            DocumentError: Not TOML, an unknown key (what is not understood cannot be enforced), contradicting pins.
        """
        if len(content) > MAX_POLICY:
            raise DocumentError(f"the trust policy has {len(content)} bytes, at most {MAX_POLICY} are read", hint=_MEND)
        try:
            fields = Fields(tomllib.loads(content.decode()), hint=_MEND)
        except (ValueError, RecursionError) as error:
            raise DocumentError(f"the trust policy is not valid TOML: {error}", hint=_MEND) from error
        if not fields.values:
            return cls()
        if fields.integer("version", low=1, high=2**31) != VERSION:
            raise UnsupportedSchemaError(
                "the trust policy was written by a newer lora-hub",
                context="version",
                hint="pip install --upgrade lora-hub",
            )
        _refuse_unknown(fields, ("version", "pin"))
        return cls(pins=_without_contradictions(map(_parse_pin, fields.objects("pin") if fields.has("pin") else ())))

    def pin(self, registry: str, reference: AdapterRef) -> Pin | None:
        """Return the pin of the exact *reference*, a version or a commit, in the registry with this URL."""
        at = str(reference.selector)
        matching = (p for p in self.pins_of(registry, reference.name) if at in {p.version, p.commit})
        return next(matching, None)

    def expected(self, registry: str, reference: AdapterRef, named: str | None) -> str | None:
        """Return the digest that the exact *reference* must have: the one that the caller *named*, else its pin's."""
        pin = self.pin(registry, reference)
        return named if named is not None or pin is None else pin.digest

    def pins_of(self, registry: str, name: str) -> list[Pin]:
        """Return the pins of the adapter *name* in the registry with this URL, in the order of the file."""
        return [pin for pin in self.pins if (pin.registry, pin.name) == (registry, name)]


NOBODY = TrustPolicy()


def _quoted(text: str) -> str:
    """Return *text* as a string of TOML: one of JSON, but that DEL must be escaped as well."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _refuse_unknown(fields: Fields, known: Iterable[str]) -> None:
    for key in fields.values:
        if key not in known:
            raise DocumentError(
                "unknown key: what is not understood cannot be enforced",
                context=fields.path(key),
                hint="remove it, or upgrade lora-hub if a newer one wrote it",
            )


def _parse_pin(fields: Fields) -> Pin:
    _refuse_unknown(fields, _KEYS)
    if not (fields.has("version") or fields.has("commit")):
        fields.fail("version", "a version or a commit")
    return Pin(
        registry=fields.text("registry"),
        name=fields.text("name", "a name of the form `org/task`", AdapterRef.is_name),
        digest=fields.text("digest", "`sha256:` and 64 lower-case hex digits", is_digest),
        version=fields.text("version", "a version", Version.is_version) if fields.has("version") else None,
        commit=fields.text("commit", "40 lower-case hex digits", is_commit) if fields.has("commit") else None,
    )


def _without_contradictions(pins: Iterable[Pin]) -> tuple[Pin, ...]:
    by_place: dict[tuple[str, str, str], Pin] = {}
    kept: dict[Pin, None] = {}
    for pin in pins:
        for place in pin.places:
            other = by_place.setdefault(place, pin)
            if pin.contradicts(other):
                raise DocumentError(
                    f"`{pin.reference}` is pinned twice, as {other.digest} and as {pin.digest}",
                    context="pin",
                    hint=_MEND,
                )
        kept[pin] = None
    return tuple(kept)
