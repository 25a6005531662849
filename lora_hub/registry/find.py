"""Which versions of a registry a reference selects, whoever is trusted: `resolve` says which of them may be used."""

from __future__ import annotations

import contextlib

from lora_hub.documents.trust_entries import Pin
from lora_hub.errors import IntegrityError, MalformedError, NotFoundError, PolicyError
from lora_hub.reference import AdapterRef
from lora_hub.registry.published import Published, look_up
from lora_hub.registry.registry import Listing, Registry

_BROKEN = (NotFoundError, MalformedError, IntegrityError)  # what a place that holds no adapter raises

Place = tuple[AdapterRef, str]  # an exact reference, and what the registry calls its place


def find(registry: Registry, reference: AdapterRef, expected: str | None = None) -> Published:
    """Return the newest version of *registry* that *reference* selects, or the one that has the digest *expected*.

    Raises:
        NotFoundError: No such adapter, or none of its versions is selected; the message lists what there is.
    """
    if reference.commit is not None:
        return look_up(registry, reference, reference.commit)
    listing = list_adapter(registry, reference)
    found = find_digest(registry, reference, listing, expected or reference.digest)
    if found is not None:
        return found
    places = selected(reference, listing)
    if not places:
        raise none_selected(registry, reference, listing)
    return look_up(registry, *places[0])


def list_adapter(registry: Registry, reference: AdapterRef) -> Listing:
    """Return what *registry* has of the adapter; raise `NotFoundError` if it has nothing."""
    listing = registry.listing(reference)
    if not listing.versions and listing.head is None:
        raise NotFoundError(
            f"`{registry.url}` has no adapter `{reference.name}`",
            hint=f"run `lora-hub list {reference.org}/`; a private one needs `hf auth login` or HF_TOKEN"
            if registry.is_remote
            else "run `lora-hub list` to see what it has",
        )
    return listing


def selected(reference: AdapterRef, listing: Listing, pins: list[Pin] | None = None) -> list[Place]:
    """Return where what *reference* selects lies, the newest first.

    Of an adapter that lora-hub never published, that is what there is now, and then what is pinned of it.
    """
    if reference.digest is not None:
        return []
    if listing.versions or listing.head is None or reference.selector is not None:
        return [(reference.at(v), place) for v, place in listing.versions.items() if reference.selects(v)][::-1]
    pinned = [(reference.at(pin.commit), pin.commit) for pin in pins or () if pin.commit]
    return [(reference.at(listing.head), listing.head), *pinned[::-1]]


def find_digest(registry: Registry, reference: AdapterRef, listing: Listing, digest: str | None) -> Published | None:
    """Return the newest of the versions that *reference* selects, or else the head, that has *digest*."""
    if digest is None or reference.version is not None:
        return None
    places = [(reference.at(v), place) for v, place in listing.versions.items() if reference.selects(v)][::-1]
    if listing.head is not None and listing.head not in listing.versions.values():
        places.append((reference.at(listing.head), listing.head))
    for exact, place in places:
        with contextlib.suppress(*_BROKEN):  # it has another digest in any case
            published = look_up(registry, exact, place)
            if published.digest == digest:
                return published
    return None


def none_selected(registry: Registry, reference: AdapterRef, listing: Listing) -> NotFoundError:
    """Return what to raise where *reference* selects nothing."""
    has = ", ".join(map(str, listing.versions)) or f"no version; name its commit: `{reference.at(str(listing.head))}`"
    return NotFoundError(
        f"`{registry.url}` has no version of `{reference.name}` that `{reference}` selects",
        hint=f"it has {has}; a pre-release must be named exactly",
    )


def vanished(
    registry: Registry, reference: AdapterRef, expected: str | None, error: NotFoundError
) -> NotFoundError | PolicyError:
    """Return what to raise where *reference* is not there: what was *expected* was taken away or rewritten."""
    if expected is None or reference.digest is not None:
        return error
    listing = registry.listing(reference)
    if not listing.versions and listing.head is None:  # deleted, or only for those who are logged in
        return error
    found = "nothing that could be read"
    with contextlib.suppress(*_BROKEN):
        found = look_up(registry, reference.at(listing.head), listing.head).digest if listing.head else found
    return PolicyError(
        f"`{reference}` in `{registry.url}` was {expected} and is gone; there is now {found}",
        hint="its history was rewritten: ask its publisher what happened, or name a version exactly",
    )
