"""The trust policy ``trust.toml``: whose adapters may reach a model. Pure: it reads no file and no clock.

::

    version = 1

    [[key]]                                # a public key, and what rules call it
    name = "alice"
    not_after = 2027-01-31T00:00:00Z       # optional, as is not_before
    pem = \"\"\"
    -----BEGIN PUBLIC KEY-----
    …
    -----END PUBLIC KEY-----
    \"\"\"

    [[rule]]                               # who may sign what; of several that match, the narrowest alone applies
    scope = "org/*"                        # org/task, org/* or *
    keys = ["alice", "bob"]
    identities = [{ identity = "ci@org.example", issuer = "https://accounts.example" }]
    threshold = 2                          # so many of them must have signed; 1 unless it is given
    min_version = "1.4.0"                  # optional, as are max_r and max_size (bytes)

    [[revoked]]                            # refused whatever speaks for it
    key = "<fingerprint>"                  # or digest = "sha256:…"
    reason = "the laptop was stolen"

    [[pin]]                                # this digest, whoever signed it, or nobody
    registry = "hf://"
    name = "org/task"
    version = "1.2.0"                      # or no version: then the commit alone
    commit = "<40 hex digits>"             # where the registry has commits
    digest = "sha256:…"
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self, TypeVar

from lora_hub.documents.fields import Fields
from lora_hub.documents.signers import PublicKey
from lora_hub.documents.toml import parse_toml
from lora_hub.documents.trust_entries import Entry, Key, Pin, Revocation, Rule
from lora_hub.errors import DocumentError, UnsupportedSchemaError
from lora_hub.reference import AdapterRef

VERSION = 1
MAX_POLICY = 4 * 1024 * 1024  # bytes
_MEND = "mend the file by hand, or restore a copy of it"

E = TypeVar("E", Key, Rule, Revocation, Pin)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustPolicy:
    """All that this user trusts. An empty policy trusts nobody."""

    keys: tuple[Key, ...] = ()
    rules: tuple[Rule, ...] = ()
    revoked: tuple[Revocation, ...] = ()
    pins: tuple[Pin, ...] = ()

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Return the policy that *content*, TOML, spells.

        Raises:
            DocumentError: Not TOML, an unknown key (what is not understood cannot be enforced), or entries that
                contradict each other.
        """
        document = parse_toml(content, what="the trust policy", limit=MAX_POLICY, hint=_MEND)
        fields = Fields(document, hint=_MEND)
        if not fields.values:
            return cls()
        if fields.integer("version", low=1, high=2**31) != VERSION:
            raise UnsupportedSchemaError(
                "the trust policy was written by a newer lora-hub",
                context="version",
                hint="pip install --upgrade lora-hub",
            )
        fields.only("version", "key", "rule", "revoked", "pin")
        keys = _entries(fields, "key", Key.parse)
        _check_once("key", [*(key.name for key in keys), *(key.fingerprint for key in keys)])
        rules = _entries(fields, "rule", Rule.parse)
        _check_once("rule", [rule.scope for rule in rules])
        _check_known(rules, {key.name for key in keys})
        pins = _without_contradictions(_entries(fields, "pin", Pin.parse))
        return cls(keys=keys, rules=rules, revoked=_entries(fields, "revoked", Revocation.parse), pins=pins)

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All its tables."""
        return (*self.keys, *self.rules, *self.revoked, *self.pins)

    # Rules

    def rule(self, name: str) -> Rule | None:
        """Return the one rule that applies to ``org/task``: the narrowest that covers it."""
        covering = [rule for rule in self.rules if rule.covers(name)]
        return min(covering, key=lambda rule: (rule.scope == "*", rule.scope != name), default=None)

    def keys_of(self, rule: Rule) -> tuple[Key, ...]:
        """Return the keys that *rule* names."""
        return tuple(key for key in self.keys if key.name in rule.keys)

    def public_keys(self, rule: Rule | None = None) -> dict[str, PublicKey]:
        """Return the keys that *rule* names, or all, by their fingerprints."""
        return {key.fingerprint: key.public for key in (self.keys if rule is None else self.keys_of(rule))}

    def revocation(self, *, key: str | None = None, digest: str | None = None) -> Revocation | None:
        """Return what revokes the *key* with this fingerprint, or this *digest*."""
        matching = (r for r in self.revoked if (r.key, r.digest) == (key, digest))
        return next(matching, None)

    # Pins

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


def _entries(fields: Fields, key: str, parse: Callable[[Fields], E]) -> tuple[E, ...]:
    return tuple(map(parse, fields.objects(key))) if fields.has(key) else ()


def _check_once(table: str, names: Iterable[str]) -> None:
    """Of two that are alike, none could be said to be meant: one key under two names would even count twice."""
    for name, count in Counter(names).items():
        if count > 1:
            raise DocumentError(f"`{name}` stands there twice", context=table, hint=_MEND)


def _check_known(rules: Iterable[Rule], names: set[str]) -> None:
    for rule in rules:
        for name in rule.keys:
            if name not in names:
                raise DocumentError(
                    f"the rule for `{rule.scope}` names an unknown key {name!a}", context="rule", hint=_MEND
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
