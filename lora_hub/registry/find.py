"""Which version of a registry a reference means: of several, the newest that the policy trusts."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from lora_hub.documents.trust_policy import NOBODY, TrustPolicy
from lora_hub.errors import NotFoundError, PolicyError
from lora_hub.reference import AdapterRef
from lora_hub.registry.published import Published, look_up
from lora_hub.registry.registry import Listing, Registry


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
    pin = policy.pin(registry.url, reference)
    if reference.commit is not None:
        try:
            return Choice(published=look_up(registry, reference, reference.commit))
        except NotFoundError as error:
            raise _vanished(registry, reference, pin.digest if pin else expected, error) from error
    listing = registry.listing(reference)
    if not listing.versions and listing.head is None:
        raise NotFoundError(
            f"`{registry.url}` has no adapter `{reference.name}`", hint="run `lora-hub list` to see what it has"
        )
    if reference.digest is not None:
        return Choice(published=_find_digest(registry, reference, listing))
    chosen, skipped = _choose(registry, reference, listing, policy)
    if chosen is None:
        raise _vanished(registry, reference, pin.digest if pin else None, _none_selected(registry, reference, listing))
    exact, revision = chosen
    return Choice(published=look_up(registry, exact, revision), skipped=skipped)


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
    if not places:
        return None, None
    trusted = [place for place in places if policy.pin(registry.url, place[0])] if registry.is_remote else places
    chosen = (trusted or places)[0]
    return chosen, places[0][0] if chosen != places[0] else None


def _find_digest(registry: Registry, reference: AdapterRef, listing: Listing) -> Published:
    places = [(reference.at(version), place) for version, place in listing.versions.items()][::-1]
    if listing.head is not None and listing.head not in listing.versions.values():
        places.append((reference.at(listing.head), listing.head))
    for exact, place in places:
        with contextlib.suppress(NotFoundError):  # a head that holds no adapter
            published = look_up(registry, exact, place)
            if published.digest == reference.digest:
                return published
    raise _none_selected(registry, reference, listing)


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
    if expected is None:
        return error
    found = "nothing that could be read"
    with contextlib.suppress(NotFoundError):
        head = registry.listing(reference).head
        found = look_up(registry, reference.at(head), head).digest if head else found
    return PolicyError(
        f"`{reference}` in `{registry.url}` was pinned as {expected} and is gone; its main branch has {found}",
        hint="its history was rewritten: ask its publisher what happened before you pin the new one",
    )
