"""Pull: from a registry into the local store, trusted first, every byte checked on the way."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_hub.documents.authorization import By
from lora_hub.documents.fields import Bytes
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import IntegrityError, MalformedError, NotFoundError, UntrustedError, UsageError
from lora_hub.reference import AdapterRef, is_digest
from lora_hub.registry.proof import Evidence, Verdict, judge
from lora_hub.registry.published import Published
from lora_hub.registry.registry import Registry, check_may_connect
from lora_hub.registry.resolve import LAST_SEEN, Choice, resolve_trusted
from lora_hub.registry.store import Store
from lora_hub.registry.terms import Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What `pull` brought: an exact version or commit, proven, in a directory of the local store that PEFT can load.

    ``reason`` says why it may be used. ``skipped`` is the newest version that was passed over for it, and
    ``skipped_because`` says why. ``yanked`` is why its publisher asks not to use it any more, if that is so.
    """

    reference: AdapterRef
    digest: str
    path: Path
    adapter: VerifiedAdapter
    commit: str | None = None
    reason: str = ""
    skipped: AdapterRef | None = None
    skipped_because: str = ""
    yanked: str | None = None


def pull(reference: AdapterRef, registry: Registry, store: Store, terms: Terms, *, digest: str | None = None) -> Pulled:
    """Bring the version that *reference* selects into *store*, prove it, and return it.

    An exact version, commit or digest that may be used and is in the store needs no registry.

    Args:
        reference: Which adapter, and which version of it.
        registry: Where it is published.
        store: Where it is kept.
        terms: Whom to trust, and so on.
        digest: What the digest of its manifest must be; naming it is trust enough.

    Raises:
        NotFoundError: No such adapter or version.
        UntrustedError: Neither a rule of the policy nor a digest speaks for it.
        IntegrityError: Bytes do not match the manifest, or the manifest is that of another version.
        PolicyError: It is not what was pinned, or what the registry published under this version before.
    """
    expected = expected_digest(reference, digest)
    kept = find_in_store(reference, registry, store, terms, expected)
    if kept is not None:
        return kept
    check_may_connect(registry, offline=terms.offline, why=f"`{reference}` is not in the store, and")
    return bring(resolve_trusted(reference, registry, terms, expected), registry, store, terms)


def expected_digest(reference: AdapterRef, digest: str | None) -> str | None:
    """Return the digest that the caller named, in the reference or beside it."""
    if digest is not None and not is_digest(digest):
        raise UsageError(f"{digest!a} is no digest", hint="write `sha256:` and 64 lower-case hex digits")
    if digest is not None and reference.digest not in {None, digest}:
        raise UsageError(f"`{reference}` and the digest {digest} contradict each other", hint="name one of them")
    return digest or reference.digest


# What the store has already


def find_in_store(
    reference: AdapterRef, registry: Registry, store: Store, terms: Terms, expected: str | None
) -> Pulled | None:
    """Return what needs no registry: a digest that is named or pinned, or a version that was accepted before.

    Policy and signatures decide anew whether it may be used; if not, the registry may have more signatures.
    """
    known = list(_known(reference, registry, terms, expected))
    for exact, digest in known:
        # Offline there is nobody else to ask: then it is refused for what is missing, not for being far away.
        is_last_word = terms.offline and registry.is_remote
        with contextlib.suppress(NotFoundError, *([] if is_last_word else [UntrustedError])):
            adapter = store.read(digest)
            named = adapter.manifest.reference
            if named is not None and not _is_meant(named, exact):
                raise IntegrityError(
                    f"`{digest}` is {named}, not `{exact}`", hint="check the digest that was asked for"
                )
            verdict = _judge_stored(adapter, exact, registry, store, terms, expected)
            verdict.decision.require()
            pin = terms.policy.pin(registry.url, exact)
            return Pulled(
                reference=named if named is not None and exact.commit is None else exact,
                digest=digest,
                path=store.path(digest),
                adapter=dataclasses.replace(adapter, signers=verdict.decision.signers),
                commit=exact.commit or (pin.commit if pin else None),
                reason=verdict.decision.reason,
                skipped=known[0][0] if (exact, digest) != known[0] else None,
                skipped_because="it is not in the store, and the network is not to be used",
                yanked=_seen_yanked(named or exact, registry, terms),
            )
    return None


def _is_meant(named: AdapterRef, wanted: AdapterRef) -> bool:
    """Whether *wanted* can mean the version *named*; a digest and a commit say themselves what they mean."""
    is_selected = wanted.digest is not None or wanted.commit is not None or wanted.selector is None
    return named.name == wanted.name and (is_selected or (named.version is not None and wanted.selects(named.version)))


def _seen_yanked(exact: AdapterRef, registry: Registry, terms: Terms) -> str | None:
    sight = terms.memory.read().sight(registry.url, exact)
    return LAST_SEEN if sight is not None and sight.is_yanked else None


def _known(
    reference: AdapterRef, registry: Registry, terms: Terms, expected: str | None
) -> Iterator[tuple[AdapterRef, str]]:
    """Yield exact references, and their digests, that are known without asking the registry; the best first."""
    if expected is not None:
        yield reference, expected
    elif reference.version is not None or reference.commit is not None:
        yield from _accepted(reference, registry, terms)
    elif terms.offline and registry.is_remote:
        pins = terms.policy.pins_of(registry.url, reference.name)
        seen = terms.memory.read().versions(registry.url, reference)
        versions = {version for version, sight in seen.items() if not sight.is_yanked}
        versions |= {version for pin in pins if (version := pin.reference.version) is not None}
        for version in sorted(filter(reference.selects, versions), reverse=True):
            yield from _accepted(reference.at(version), registry, terms)
        if not versions and reference.selector is None:  # what lora-hub never published
            yield from ((reference.at(pin.commit), pin.digest) for pin in reversed(pins) if pin.commit)


def _accepted(exact: AdapterRef, registry: Registry, terms: Terms) -> Iterator[tuple[AdapterRef, str]]:
    pin = terms.policy.pin(registry.url, exact)
    if pin is not None:
        yield exact, pin.digest
    elif not registry.is_remote or terms.policy.rule(exact.name) is not None:
        seen = terms.memory.digest(registry.url, exact)
        if seen is not None:
            yield exact, seen


def _judge_stored(
    adapter: VerifiedAdapter, exact: AdapterRef, registry: Registry, store: Store, terms: Terms, named: str | None
) -> Verdict:
    evidence = Evidence(
        registry=registry.url,
        is_remote=terms.is_foreign(registry),
        reference=exact,
        digest=adapter.digest,
        manifest=lambda: adapter.manifest,
        bundles=lambda: store.bundles(adapter.digest),
        source=f"{exact} in the store",
    )
    try:
        return judge(evidence, terms.policy, terms.project, terms.now, named=named)
    except (MalformedError, IntegrityError) as error:
        raise store.damaged(adapter.digest, error.message) from error


# Bringing it here


def bring(choice: Choice, registry: Registry, store: Store, terms: Terms) -> Pulled:
    """Bring what was found and may be used into *store*."""
    published, verdict = choice.published, choice.verdict
    try:
        adapter = store.read(published.digest)
        store.add_bundles(adapter.digest, verdict.bundles)
    except NotFoundError:
        adapter = _fetch(published, verdict.bundles, store, terms)
    # What only this caller vouched for is no version that others are to be kept from going below.
    if verdict.decision.by is not By.DIGEST and not terms.is_strict:
        # A pin is about this place; what an unsigned manifest says that it is proves nothing.
        at = published.reference if verdict.decision.by is By.PIN else published.exact
        terms.memory.remember(registry.url, at, published.digest)
    return Pulled(
        reference=published.reference,
        digest=adapter.digest,
        path=store.path(adapter.digest),
        adapter=dataclasses.replace(adapter, signers=verdict.decision.signers),
        commit=published.snapshot.commit,
        reason=verdict.decision.reason,
        skipped=choice.skipped,
        skipped_because=choice.skipped_because,
        yanked=choice.yanked,
    )


def _fetch(published: Published, bundles: Mapping[str, Bytes], store: Store, terms: Terms) -> VerifiedAdapter:
    store.sweep()
    download = published.read(partials=store.partials, progress=terms.progress)
    try:
        adapter = download.verify(source=published.source)
    except IntegrityError:
        if not download.is_resumed:
            raise
        # What an earlier run left may have been bad: it is gone now, and everything is read anew.
        download = published.read(partials=store.partials, progress=terms.progress)
        adapter = download.verify(source=published.source)
    store.add(adapter, {**download.files, **bundles}, written=download.written)
    return adapter
