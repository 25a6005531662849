"""What is to be checked: directories, patterns of them, references, what a lock file locks, a whole registry."""

from __future__ import annotations

import contextlib
import glob
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lora_hub import reference as references
from lora_hub.checking.reading import is_about_the_adapter, read_directory, refused, subject_of
from lora_hub.checking.subject import Subject
from lora_hub.errors import LoraHubError, NotFoundError, PolicyError
from lora_hub.reference import AdapterRef, PathLike
from lora_hub.registry.locate import RegistryLike, as_registry, online_registry
from lora_hub.registry.lock import read_lock
from lora_hub.registry.pull import find_in_store
from lora_hub.registry.registry import check_may_connect
from lora_hub.registry.resolve import resolve, resolve_at
from lora_hub.registry.store import default_store
from lora_hub.registry.terms import current_terms

_WILD = "*?["


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One adapter that is to be checked.

    Attributes:
        place: Its directory, or its reference.
        registry: Where the reference is; None for the one that the environment names.
        digest: What its manifest must have, as a lock file says.
        commit: Where it lies, as a lock file says.
    """

    place: Path | AdapterRef
    registry: RegistryLike = None
    digest: str | None = None
    commit: str | None = None

    def __str__(self) -> str:
        return str(self.place)


def read_source(source: Source) -> Subject:
    """Return the adapter as far as it can be read; raise only what is not about the adapter."""
    if isinstance(source.place, Path):
        return read_directory(source.place)
    try:
        return _read_reference(source, source.place)
    except LoraHubError as error:
        if not is_about_the_adapter(error):
            raise
        return refused(str(source), error)


def _read_reference(source: Source, reference: AdapterRef) -> Subject:
    """Return the adapter that *reference* means, from the store if it is there, else from the registry."""
    registry, terms = as_registry(source.registry), current_terms()
    if registry.is_remote:
        with contextlib.suppress(PolicyError):  # it is checked all the same
            kept = find_in_store(reference, registry, default_store(), terms, source.digest or reference.digest)
            if kept is not None:
                return read_directory(kept.path).called(str(kept.reference))
    check_may_connect(registry, offline=terms.offline, why=f"`{reference}` is not in the store, and")
    if source.commit is not None and source.digest is not None:
        choice = resolve_at(reference, source.commit, registry, terms, source.digest)
    else:
        choice = resolve(reference, registry, terms, source.digest)
    published = choice.published
    if source.digest not in {None, published.digest}:
        raise PolicyError(
            f"`{reference}` in `{registry.url}` has the digest {published.digest}, the lock file says {source.digest}",
            hint="it was rewritten: ask its publisher what happened",
        )
    try:
        download = published.read()
    except NotFoundError as error:  # a file of a version that is there
        return refused(str(published.exact), error)
    return subject_of(str(published.exact), download.files, hashed=download.hashed)


def find_sources(
    words: Iterable[str],
    *,
    lock: PathLike | None = None,
    prefix: str | None = None,
    registry: RegistryLike = None,
) -> list[Source]:
    """Return what is to be checked: directories, patterns of directories and references, each of them once.

    Args:
        words: As users type them. A pattern (``./adapters/*``) means the directories that hold a file of an adapter.
        lock: A lock file: all that it locks, at the digests that it says.
        prefix: The newest version of each adapter of the registry whose name begins so; ``""`` is all of them.
        registry: Where references are.

    Raises:
        NotFoundError: A pattern or a prefix matches nothing.
    """
    found = [source for word in words for source in _named(word, registry)]
    if lock is not None:
        found += _locked(Path(lock), registry)
    if prefix is not None:
        found += _published(prefix, registry)
    return list({str(source): source for source in found}.values())


def place_of(word: PathLike | AdapterRef) -> Path | AdapterRef:
    """Return the directory or the reference that *word* names; no reference ends with a slash."""
    return Path(word) if isinstance(word, str) and word.endswith("/") else references.parse(word)


def _named(word: str, registry: RegistryLike) -> list[Source]:
    if not any(sign in word for sign in _WILD) or Path(word).is_dir():
        return [Source(place=place_of(word), registry=registry)]
    found = [Path(path) for path in sorted(glob.glob(word, recursive=True))]  # noqa: PTH207 - `..` and absolute ones too
    directories = [path for path in found if path.is_dir() and any(path.glob("adapter_*"))]
    if not directories:
        raise NotFoundError(f"`{word}` matches no directory with an adapter", hint="check the pattern")
    return [Source(place=path) for path in directories]


def _locked(path: Path, registry: RegistryLike) -> list[Source]:
    return [
        Source(
            place=entry.exact,
            registry=entry.registry if registry is None else registry,
            digest=entry.digest,
            commit=entry.commit,
        )
        for entry in read_lock(path).entries
    ]


def _published(prefix: str, registry: RegistryLike) -> list[Source]:
    opened = online_registry(registry)
    names = list(opened.names(prefix))
    found = []
    for name in names:
        reference = AdapterRef.parse(name)
        listing = opened.listing(reference)
        if listing.versions:
            found.append(Source(place=reference.at(max(listing.versions)), registry=registry))
        elif listing.head is not None:
            found.append(Source(place=reference.at(listing.head), registry=registry))
    if not found:
        raise NotFoundError(
            f"`{opened.url}` has no adapter whose name begins with `{prefix}`", hint="run `lora-hub list` to see them"
        )
    return found
