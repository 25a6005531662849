"""Pull: from a registry into the local store, trusted first, every byte checked on the way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import IntegrityError, NotFoundError, UsageError
from lora_hub.reference import AdapterRef, is_digest
from lora_hub.registry.find import Choice, find
from lora_hub.registry.published import Published
from lora_hub.registry.registry import Registry, check_may_connect
from lora_hub.registry.store import Store
from lora_hub.registry.terms import DEFAULT_TERMS, Terms
from lora_hub.registry.trust import authorize


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What `pull` brought: an exact version or commit, proven, in a directory of the local store that PEFT can load.

    ``skipped`` is the newest version that the reference would mean if it were pinned.
    """

    reference: AdapterRef
    digest: str
    path: Path
    adapter: VerifiedAdapter
    commit: str | None = None
    skipped: AdapterRef | None = None


def pull(
    reference: AdapterRef, registry: Registry, store: Store, terms: Terms = DEFAULT_TERMS, *, digest: str | None = None
) -> Pulled:
    """Bring the version that *reference* selects into *store*, prove it, and return it.

    An exact version, commit or digest that is trusted and in the store needs no registry.

    Args:
        reference: Which adapter, and which version of it.
        registry: Where it is published.
        store: Where it is kept.
        terms: Whom to trust, and so on.
        digest: What the digest of its manifest must be; naming it is trust enough.

    Raises:
        NotFoundError: No such adapter or version.
        UntrustedError: It comes from a registry that others may write into, and is not pinned.
        IntegrityError: Bytes do not match the manifest, or the manifest is that of another version.
        PolicyError: It is not what was pinned, or what the registry published under this version before.
    """
    expected = expected_digest(reference, digest)
    kept = find_in_store(reference, registry, store, terms, expected)
    if kept is not None:
        return kept
    check_may_connect(registry, offline=terms.offline, why=f"`{reference}` is not in the store, and")
    found = find(registry, reference, terms.policy, expected)
    check_remembered(found.published, registry, store, terms, expected)
    authorize(terms.policy, registry, found.published, digest=expected)
    return bring(found, registry, store, terms)


def check_remembered(
    published: Published, registry: Registry, store: Store, terms: Terms, expected: str | None
) -> None:
    """Raise `PolicyError` if *registry* had another content under this version when it was last pulled.

    Who names or pins the digest has said which content is meant.
    """
    if expected is None and terms.policy.pin(registry.url, published.reference) is None:
        store.check_unchanged(registry.url, published.reference, published.digest)


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
    """Return what needs no registry: a named or pinned digest, or a version that a directory was seen to have."""
    for exact, digest in _known(reference, registry, store, terms, expected):
        with contextlib.suppress(NotFoundError):
            adapter = store.read(digest)
            named = adapter.manifest.reference
            if named is not None and (named.name != exact.name or exact.version not in {None, named.version}):
                raise IntegrityError(
                    f"`{digest}` is {named}, not `{exact}`", hint="check the digest that was asked for"
                )
            pin = terms.policy.pin(registry.url, exact)
            shown = named if named is not None and exact.digest else exact
            return _pulled(shown, adapter, store, commit=exact.commit or (pin.commit if pin else None))
    return None


def _known(
    reference: AdapterRef, registry: Registry, store: Store, terms: Terms, expected: str | None
) -> Iterator[tuple[AdapterRef, str]]:
    """Yield exact references, and their digests, that are known without asking the registry; the best first."""
    if expected is not None:
        yield reference, expected
    elif reference.version is not None or reference.commit is not None:
        yield from _trusted(reference, registry, store, terms)
    elif terms.offline and registry.is_remote:
        pins = terms.policy.pins_of(registry.url, reference.name)
        versions = {pin.reference.version for pin in pins} - {None}
        for version in sorted((v for v in versions if v and reference.selects(v)), reverse=True):
            yield from _trusted(reference.at(version), registry, store, terms)
        if not versions and reference.selector is None:  # what lora-hub never published
            yield from ((reference.at(pin.commit), pin.digest) for pin in reversed(pins) if pin.commit)


def _trusted(exact: AdapterRef, registry: Registry, store: Store, terms: Terms) -> Iterator[tuple[AdapterRef, str]]:
    pin = terms.policy.pin(registry.url, exact)
    if pin is not None:
        yield exact, pin.digest
    elif not registry.is_remote:
        known = store.known_digest(registry.url, exact)
        if known is not None:
            yield exact, known


# Bringing it here


def bring(choice: Choice, registry: Registry, store: Store, terms: Terms) -> Pulled:
    """Bring what was found and is trusted into *store*."""
    published = choice.published
    try:
        adapter = store.read(published.digest)
    except NotFoundError:
        adapter = _fetch(published, store, terms)
    store.remember(registry.url, published.reference, published.digest)
    commit = published.snapshot.commit
    return _pulled(published.reference, adapter, store, commit=commit, skipped=choice.skipped)


def _fetch(published: Published, store: Store, terms: Terms) -> VerifiedAdapter:
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
    store.add(adapter, download.files, written=download.written)
    return adapter


def _pulled(
    reference: AdapterRef,
    adapter: VerifiedAdapter,
    store: Store,
    *,
    commit: str | None = None,
    skipped: AdapterRef | None = None,
) -> Pulled:
    path = store.path(adapter.digest)
    return Pulled(
        reference=reference, digest=adapter.digest, path=path, adapter=adapter, commit=commit, skipped=skipped
    )
