"""Which version of a registry a reference means: of several, the newest that the policy trusts."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from lora_hub.documents.trust_policy import NOBODY, TrustPolicy
from lora_hub.errors import IntegrityError, MalformedError, NotFoundError, PolicyError
from lora_hub.reference import AdapterRef
from lora_hub.registry.published import Published, look_up
from lora_hub.registry.registry import Listing, Registry
from lora_hub.version import Version

_BROKEN = (NotFoundError, MalformedError, IntegrityError)  # what a place that holds no adapter raises


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a reference means in a registry, and what is newer but not pinned."""

    published: Published
    skipped: AdapterRef | None = None


def find(
    registry: Registry, reference: AdapterRef, policy: TrustPolicy = NOBODY, expected: str | None = None
) -> Choice:
    """Return the one version of *registry* that *reference* selects: of several, the newest that *policy* trusts.

    Raises:
        NotFoundError: No such adapter, or none of its versions is selected; the message lists what there is.
        PolicyError: It is pinned and not there any more.
    """
    expected = expected or reference.digest
    if reference.commit is not None:
        return Choice(published=_at(registry, reference, reference.commit, policy, expected))
    listing = registry.listing(reference)
    if not listing.versions and listing.head is None:
        raise NotFoundError(
            f"`{registry.url}` has no adapter `{reference.name}`",
            hint=f"run `lora-hub list {reference.org}/`; a private one needs `hf auth login` or HF_TOKEN"
            if registry.is_remote
            else "run `lora-hub list` to see what it has",
        )
    if expected is not None and reference.version is None:
        found = _find_digest(registry, reference, listing, expected)
        if found is not None:
            return Choice(published=found)
    hidden = _hidden(registry, reference, listing, policy) if expected is None else None
    if hidden is not None:
        exact = reference.at(hidden)
        error = NotFoundError(f"`{registry.url}` has no `{exact}`", hint="ask its publisher")
        raise _vanished(registry, exact, policy.expected(registry.url, exact, expected), error)
    chosen, skipped = _choose(registry, reference, listing, policy)
    if chosen is None:
        error = _none_selected(registry, reference, listing)
        raise _vanished(registry, reference, policy.expected(registry.url, reference, expected), error)
    exact, revision = chosen
    return Choice(published=_at(registry, exact, revision, policy, expected), skipped=skipped)


def _hidden(registry: Registry, reference: AdapterRef, listing: Listing, policy: TrustPolicy) -> Version | None:
    """Return the newest pinned version that *reference* selects, if it is gone: nobody is led back to an older one."""
    pinned = (pin.reference.version for pin in policy.pins_of(registry.url, reference.name))
    wanted = [version for version in pinned if version is not None and reference.selects(version)]
    there = [version for version in listing.versions if reference.selects(version)]
    return max(wanted) if wanted and all(max(wanted) > version for version in there) else None


def _at(registry: Registry, exact: AdapterRef, revision: str, policy: TrustPolicy, expected: str | None) -> Published:
    try:
        return look_up(registry, exact, revision)
    except NotFoundError as error:
        if exact.commit is None:
            raise
        raise _vanished(registry, exact, policy.expected(registry.url, exact, expected), error) from error


_Place = tuple[AdapterRef, str]  # an exact reference, and what the registry calls its place


def _choose(
    registry: Registry, reference: AdapterRef, listing: Listing, policy: TrustPolicy
) -> tuple[_Place | None, AdapterRef | None]:
    """Return where the newest selected version lies that is pinned, or the newest of all; and what was passed over."""
    places = [(reference.at(v), place) for v, place in listing.versions.items() if reference.selects(v)][::-1]
    if not listing.versions and listing.head is not None and reference.selector is None:
        # Never published by lora-hub: what is pinned of it, or else what is there now.
        pins = policy.pins_of(registry.url, reference.name)
        pinned = [(reference.at(pin.commit), pin.commit) for pin in pins if pin.commit]
        places = [(reference.at(listing.head), listing.head), *pinned[::-1]]
    if not places or reference.digest is not None:
        return None, None
    trusted = [place for place in places if policy.pin(registry.url, place[0])] if registry.is_remote else places
    chosen = (trusted or places)[0]
    return chosen, places[0][0] if chosen != places[0] else None


def _find_digest(registry: Registry, reference: AdapterRef, listing: Listing, digest: str) -> Published | None:
    """Return the newest of the versions that *reference* selects, or else the head, that has *digest*."""
    selected = [(reference.at(v), place) for v, place in listing.versions.items() if reference.selects(v)][::-1]
    if listing.head is not None and listing.head not in listing.versions.values():
        selected.append((reference.at(listing.head), listing.head))
    for exact, place in selected:
        with contextlib.suppress(*_BROKEN):  # it has another digest in any case
            published = look_up(registry, exact, place)
            if published.digest == digest:
                return published
    return None


def _none_selected(registry: Registry, reference: AdapterRef, listing: Listing) -> NotFoundError:
    has = ", ".join(map(str, listing.versions)) or f"no version; name its commit: `{reference.at(str(listing.head))}`"
    return NotFoundError(
        f"`{registry.url}` has no version of `{reference.name}` that `{reference}` selects",
        hint=f"it has {has}; a pre-release must be named exactly",
    )


def _vanished(
    registry: Registry, reference: AdapterRef, expected: str | None, error: NotFoundError
) -> NotFoundError | PolicyError:
    """Return what to raise where *reference* is not there: a pinned one was taken away or its history rewritten."""
    if expected is None or reference.digest is not None:
        return error
    listing = registry.listing(reference)
    if not listing.versions and listing.head is None:  # deleted, or only for those who are logged in
        return error
    found = "nothing that could be read"
    with contextlib.suppress(*_BROKEN):
        found = look_up(registry, reference.at(listing.head), listing.head).digest if listing.head else found
    return PolicyError(
        f"`{reference}` in `{registry.url}` was pinned as {expected} and is gone; its main branch has {found}",
        hint="its history was rewritten: ask its publisher what happened before you pin the new one",
    )
