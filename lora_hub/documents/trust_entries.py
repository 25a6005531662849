"""The tables of a trust policy: keys, rules, revocations and pins, each as a value and as TOML."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from lora_hub.documents.fields import Fields, is_sha256
from lora_hub.documents.signers import Identity, PublicKey
from lora_hub.errors import DocumentError, MalformedError
from lora_hub.reference import AdapterRef, is_commit, is_digest
from lora_hub.version import Version

MAX_THRESHOLD = 9  # as many signatures as a version may have

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A public key that rules call ``name``; it counts from ``not_before`` on, and up to ``not_after``."""

    name: str
    public: PublicKey
    not_before: dt.datetime | None = None
    not_after: dt.datetime | None = None

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the key."""
        return self.public.fingerprint

    @property
    def label(self) -> str:
        """What to call it in an error."""
        return f"the key `{self.name}`"

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """Return the key that one table ``[[key]]`` spells."""
        fields.only("name", "pem", "not_before", "not_after")
        pem = fields.text("pem")
        try:
            public = PublicKey.parse(pem)
        except MalformedError as error:  # which shows its first line only: it might be a private key
            raise DocumentError(error.message, context=fields.path("pem"), hint=fields.hint) from error
        return cls(
            name=fields.text("name", "a word of letters, digits and `.`, `_`, `-`", is_key_name),
            public=public,
            not_before=_moment(fields, "not_before"),
            not_after=_moment(fields, "not_after"),
        )

    def to_toml(self) -> str:
        """Return the key as a table of ``trust.toml``."""
        values = {"name": self.name, "not_before": self.not_before, "not_after": self.not_after}
        return f'{to_table("key", values)}pem = """\n{self.public.pem}"""\n'


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who may sign the adapters of a scope, and what else must hold for them.

    Attributes:
        scope: ``org/task``, ``org/*`` or ``*``. Of several that match, the narrowest applies, and it alone.
        keys: Names of keys, each of which may sign.
        identities: Keyless signers, each of which may sign.
        threshold: How many different ones of them must have signed.
        min_version: No version below it is accepted.
        max_r: No adapter of a larger rank is accepted.
        max_size: No adapter of more bytes is accepted.
    """

    scope: str
    keys: tuple[str, ...] = ()
    identities: tuple[Identity, ...] = ()
    threshold: int = 1
    min_version: Version | None = None
    max_r: int | None = None
    max_size: int | None = None

    def covers(self, name: str) -> bool:
        """Whether ``org/task`` is in the scope."""
        return self.scope in {name, f"{name.partition('/')[0]}/*", "*"}

    @property
    def label(self) -> str:
        """What to call it in an error."""
        return f"the rule for `{self.scope}`"

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """Return the rule that one table ``[[rule]]`` spells."""
        fields.only("scope", "keys", "identities", "threshold", "min_version", "max_r", "max_size")
        keys = fields.texts("keys") if fields.has("keys") else ()
        identities = tuple(map(_parse_identity, fields.objects("identities"))) if fields.has("identities") else ()
        signers = len({*keys, *identities})
        if signers == 0 or signers != len(keys) + len(identities):
            fields.fail("keys", "`keys` or `identities` that may sign, each once")
        return cls(
            scope=fields.text("scope", "`org/task`, `org/*` or `*`", is_scope),
            keys=keys,
            identities=identities,
            threshold=fields.integer("threshold", low=1, high=min(signers, MAX_THRESHOLD))
            if fields.has("threshold")
            else 1,
            min_version=Version.parse(fields.text("min_version", "a version", Version.is_version))
            if fields.has("min_version")
            else None,
            max_r=fields.integer("max_r", low=1, high=2**31) if fields.has("max_r") else None,
            max_size=fields.integer("max_size", low=1, high=2**62) if fields.has("max_size") else None,
        )

    def to_toml(self) -> str:
        """Return the rule as a table of ``trust.toml``."""
        identities = [f"{{ identity = {quoted(i.identity)}, issuer = {quoted(i.issuer)} }}" for i in self.identities]
        lists = [("keys", [quoted(name) for name in self.keys]), ("identities", identities)]
        lines = [f"{key} = [{', '.join(items)}]\n" for key, items in lists if items]
        limits = {
            "threshold": self.threshold if self.threshold > 1 else None,
            "min_version": self.min_version and str(self.min_version),
            "max_r": self.max_r,
            "max_size": self.max_size,
        }
        return f"{to_table('rule', {'scope': self.scope})}{''.join(lines)}{to_lines(limits)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """A key (by its fingerprint) or a version (by its digest) that is refused whatever else speaks for it."""

    key: str | None = None
    digest: str | None = None
    reason: str | None = None

    @property
    def label(self) -> str:
        """What to call it in an error."""
        return f"the revocation of `{self.key or self.digest}`"

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """Return what one table ``[[revoked]]`` spells."""
        fields.only("key", "digest", "reason")
        if fields.has("key") == fields.has("digest"):
            fields.fail("key", "a `key` or a `digest`")
        return cls(
            key=fields.text("key", "the fingerprint of a key, 64 lower-case hex digits", is_sha256)
            if fields.has("key")
            else None,
            digest=fields.text("digest", _DIGEST, is_digest) if fields.has("digest") else None,
            reason=fields.optional_text("reason"),
        )

    def to_toml(self) -> str:
        """Return the revocation as a table of ``trust.toml``."""
        return to_table("revoked", {"key": self.key, "digest": self.digest, "reason": self.reason})


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

    @property
    def label(self) -> str:
        """What to call it in an error."""
        return f"the pin of `{self.reference}`"

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """Return the pin that one table ``[[pin]]`` spells."""
        fields.only("registry", "name", "version", "commit", "digest")
        if not (fields.has("version") or fields.has("commit")):
            fields.fail("version", "a version or a commit")
        return cls(
            registry=fields.text("registry"),
            name=fields.text("name", "a name of the form `org/task`", AdapterRef.is_name),
            digest=fields.text("digest", _DIGEST, is_digest),
            version=fields.text("version", "a version", Version.is_version) if fields.has("version") else None,
            commit=fields.text("commit", "40 lower-case hex digits", is_commit) if fields.has("commit") else None,
        )

    def to_toml(self) -> str:
        """Return the pin as a table of ``trust.toml``."""
        keys = ("registry", "name", "version", "commit", "digest")
        return to_table("pin", {key: getattr(self, key) for key in keys})


Entry = Key | Rule | Revocation | Pin

_DIGEST = "`sha256:` and 64 lower-case hex digits"


def is_key_name(text: str) -> bool:
    """Whether *text* can name a key."""
    return _NAME.fullmatch(text) is not None


def is_scope(text: str) -> bool:
    """Whether *text* is ``org/task``, ``org/*`` or ``*``."""
    return text == "*" or AdapterRef.is_name(text) or (text.endswith("/*") and AdapterRef.is_name(f"{text[:-1]}x"))


def to_table(name: str, values: Mapping[str, Any]) -> str:
    """Return a TOML table of those of *values* that are not None."""
    return f"[[{name}]]\n{to_lines(values)}"


def to_lines(values: Mapping[str, Any]) -> str:
    """Return one TOML line for each of *values* that is not None."""
    return "".join(f"{key} = {_value(value)}\n" for key, value in values.items() if value is not None)


def quoted(text: str) -> str:
    """Return *text* as a string of TOML: one of JSON, but that DEL must be escaped as well."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: str | int | dt.datetime) -> str:
    if isinstance(value, dt.datetime):
        return value.isoformat().replace("+00:00", "Z")
    return quoted(value) if isinstance(value, str) else str(value)


def _parse_identity(fields: Fields) -> Identity:
    fields.only("identity", "issuer")
    return Identity(identity=fields.text("identity", "a text", bool), issuer=fields.text("issuer", "a text", bool))


def _moment(fields: Fields, key: str) -> dt.datetime | None:
    if key not in fields.values:
        return None
    expected = "a time with its offset, such as 2026-01-31T12:00:00Z"
    return fields.read(key, dt.datetime, expected, lambda moment: moment.tzinfo is not None)
