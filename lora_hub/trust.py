"""The trust policy of this user: whom it trusts for what, and why."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_hub import reference as references
from lora_hub.adapter_directory import read_bundles
from lora_hub.documents.authorization import Decision
from lora_hub.documents.bundle import Bundle
from lora_hub.documents.fields import is_sha256, printable
from lora_hub.documents.signers import MAX_PEM, Identity, PublicKey
from lora_hub.documents.trust_changes import Change, Trusting, find_key, rule_of, without
from lora_hub.documents.trust_entries import Entry, Pin, Revocation, Rule
from lora_hub.documents.trust_policy import TrustPolicy
from lora_hub.errors import InvalidReferenceError, NotFoundError, PolicyError, UsageError
from lora_hub.files import read_file
from lora_hub.reference import AdapterRef, PathLike, ReferenceLike, as_reference, is_digest
from lora_hub.registry import pull as pulls
from lora_hub.registry.find import find
from lora_hub.registry.locate import RegistryLike, as_registry, online_registry
from lora_hub.registry.memory import default_memory
from lora_hub.registry.proof import carried_key
from lora_hub.registry.published import Published
from lora_hub.registry.registry import Registry
from lora_hub.registry.resolve import Choice, resolve
from lora_hub.registry.terms import current_terms
from lora_hub.registry.trust_file import TrustFile, default_trust


def trust() -> TrustFile:
    """Return the trust policy of this user."""
    return default_trust()


def read_public_key(path: PathLike) -> PublicKey:
    """Return the public key in the file *path*, PEM."""
    return PublicKey.parse(read_file(Path(path), limit=MAX_PEM).decode(errors="replace"))


def signer_key(
    source: str | os.PathLike[str] | AdapterRef, fingerprint: str, *, registry: RegistryLike = None
) -> PublicKey:
    """Return the public key *fingerprint* that signed *source*, a directory or a reference, as its signature has it.

    Raises:
        NotFoundError: No signature of this key brings the key along.
        IntegrityError: The key that is brought along did not sign.
    """
    named = references.parse(source)
    bundles = read_bundles(named) if isinstance(named, Path) else find(online_registry(registry), named).bundles()
    for content in bundles.values():
        key = carried_key(content) if Bundle.parse(content).hint == fingerprint else None
        if key is not None:
            return key
    raise NotFoundError(
        f"`{source}` does not bring the key {printable(fingerprint)} along",
        hint="get the public key from its publisher, and name its file",
    )


def trust_key(
    key: PublicKey,
    *,
    scope: str,
    name: str | None = None,
    threshold: int | None = None,
    min_version: str | None = None,
    only: bool = False,
) -> Rule:
    """Let *key* sign the adapters of *scope* (``org/task``, ``org/*`` or ``*``), and return the rule that says so.

    Args:
        key: The public key.
        scope: The rule of this scope is extended. If there is none, a new one is made, which begins as the wider one
            that applied until now: to trust one more never takes trust from another.
        name: What to call the key; by default its fingerprint's first digits, or what it is called already.
        threshold: How many signers of the rule must have signed.
        min_version: No version below it is accepted.
        only: Whether nobody else may sign for this scope any more.

    Raises:
        UsageError: *scope*, *name* or *threshold* is none, or another key has that name.
        PolicyError: The rule that must change was written by hand.
    """
    trusting = Trusting(who=key, scope=scope, name=name, threshold=threshold, min_version=min_version, only=only)
    return _trust(trusting)


def check_can_trust(key: PublicKey, *, scope: str, name: str) -> None:
    """Raise what `trust_key` would raise, and change nothing."""
    default_trust().check(Trusting(who=key, scope=scope, name=name).change)


def trust_identity(
    identity: Identity,
    *,
    scope: str,
    threshold: int | None = None,
    min_version: str | None = None,
    only: bool = False,
) -> Rule:
    """Let a keyless *identity* sign the adapters of *scope*, as `trust_key` does it; return the rule that says so."""
    if not identity.identity or not identity.issuer:
        raise UsageError("an identity has a name and an issuer", hint="give both --identity and --issuer")
    return _trust(Trusting(who=identity, scope=scope, threshold=threshold, min_version=min_version, only=only))


def _trust(trusting: Trusting) -> Rule:
    default_trust().change(trusting.change)
    rule = rule_of(default_trust().read(), trusting.scope)
    if rule is None:
        raise PolicyError(f"another process removed the rule for `{trusting.scope}` meanwhile", hint="run it again")
    return rule


def untrust(what: str, *, registry: RegistryLike = None) -> tuple[Entry, ...]:
    """Remove *what* from the policy, and return what was removed: a pin, the rule of a scope, a key or an identity.

    With a signer goes its place in every rule, and a rule that nobody is left to sign for, or that then says no more
    than the wider one.

    Raises:
        NotFoundError: There is no such thing.
        PolicyError: A rule would need more signers than are left, or the entry was written by hand.
    """
    with contextlib.suppress(InvalidReferenceError):
        reference = AdapterRef.parse(what)
        if reference.selector is not None:
            return (default_trust().remove(as_registry(registry).url, reference),)

    return default_trust().change(lambda policy: without(policy, what)).removed


def revoke(what: str, *, reason: str | None = None) -> Revocation:
    """Refuse a key (its name, fingerprint or file) or a version (its digest) from now on, whatever speaks for it.

    Raises:
        NotFoundError: The policy has no key of that name, and there is no such file.
    """

    def revocation(policy: TrustPolicy) -> Revocation:
        if is_digest(what):
            return Revocation(digest=what, reason=reason)
        if is_sha256(what):
            return Revocation(key=what, reason=reason)
        is_known = any(key.name == what for key in policy.keys)  # first: anybody may have put a file of that name here
        if not is_known and Path(what).is_file():
            return Revocation(key=read_public_key(what).fingerprint, reason=reason)
        return Revocation(key=find_key(policy, what).fingerprint, reason=reason)

    def decide(policy: TrustPolicy) -> Change:
        new = revocation(policy)
        return Change() if policy.revocation(key=new.key, digest=new.digest) else Change(added=(new,))

    default_trust().change(decide)
    policy = default_trust().read()
    wanted = revocation(policy)
    return policy.revocation(key=wanted.key, digest=wanted.digest) or wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why an adapter may be used or not: the rules that cover its name, and what was decided of what is published."""

    reference: AdapterRef
    rule: Rule | None
    project_rule: Rule | None
    choice: Choice

    @property
    def decision(self) -> Decision:
        """What was decided."""
        return self.choice.verdict.decision


def explain(reference: ReferenceLike, *, registry: RegistryLike = None) -> Explanation:
    """Say why *reference* may be used or not, by its small files; no weights move."""
    terms, named = current_terms(), as_reference(reference)
    choice = resolve(named, online_registry(registry), terms)
    return Explanation(
        reference=choice.published.reference,
        rule=terms.policy.rule(named.name),
        project_rule=terms.project.rule(named.name),
        choice=choice,
    )


def pin(wanted: Sequence[ReferenceLike], *, registry: RegistryLike = None, digest: str | None = None) -> list[Pin]:
    """Pin what the references *wanted* mean now, by commit and digest, so that they may be used: all, or none.

    Args:
        wanted: References; each is pinned as the exact version or commit that it means now.
        registry: A URL or a directory; by default ``LORA_HUB_REGISTRY``, else the Hub.
        digest: What was shown to the user; anything else is refused.

    Raises:
        PolicyError: One of them has another *digest*, or is pinned to another one already.
    """
    opened = online_registry(registry)
    pins = [_pin(as_reference(reference), opened, digest) for reference in wanted]
    default_trust().add(pins)
    return pins


def _pin(reference: AdapterRef, registry: Registry, digest: str | None) -> Pin:
    # The newest there is, whatever is pinned already.
    published = find(registry, reference)
    expected = pulls.expected_digest(reference, digest)
    if expected not in {None, published.digest}:
        raise PolicyError(
            f"`{published.reference}` in `{registry.url}` has the digest {published.digest}, not {expected}",
            hint=f"it changed since it was shown: look at it with `lora-hub info {published.reference}`",
        )
    if expected is None:
        for at in (published.reference, published.exact):
            default_memory().check_unchanged(registry.url, at, published.digest)
    published.check_identity()
    return pin_of(registry, published)


def pin_of(registry: Registry, published: Published) -> Pin:
    """Return the pin of what *registry* has now."""
    version = published.reference.version
    return Pin(
        registry=registry.url,
        name=published.reference.name,
        version=str(version) if version else None,
        commit=published.snapshot.commit,
        digest=published.digest,
    )
