"""What a registry is: a place that keeps immutable versions of adapters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from lora_hub.documents.fields import Bytes
from lora_hub.errors import MalformedError, NotFoundError, RegistryError
from lora_hub.reference import AdapterRef
from lora_hub.version import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """What a registry says of a file before it is read: its size in bytes, and its SHA-256 in hex if it has that."""

    size: int
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The files of one version or commit as they lie in a registry. Nothing of it is proven.

    Attributes:
        commit: The commit, in a registry that has commits.
        files: Those of an adapter's files that are there, its signatures among them, by name.
        read: ``read(name, start, stop)`` yields the bytes of a file from *start* up to *stop*, which is excluded; None
            is its end.
    """

    commit: str | None
    files: Mapping[str, RemoteFile]
    read: Callable[[str, int, int | None], Iterator[Bytes]] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a registry has of one adapter.

    Attributes:
        versions: What this registry calls the place of each published version: a commit, a folder. Rising.
        head: The newest commit of the main branch, in a registry that has commits; it need not be a version.
    """

    versions: Mapping[Version, str] = field(default_factory=dict)
    head: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What `publish` did: ``is_new`` is False if the version was there already."""

    is_new: bool
    commit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One adapter that a search found: its name, its base model, and how often it was downloaded, where one knows."""

    name: str
    base: str | None = None
    downloads: int | None = None


# ``sign(manifest bytes)`` returns the bundles to publish beside that manifest, by file name.
Sign = Callable[[bytes], Mapping[str, Bytes]]


def unsigned(_manifest: bytes) -> Mapping[str, Bytes]:
    """Sign nothing."""
    return {}


def readable(names: Iterable[str], read: Callable[[str], Bytes]) -> list[Bytes]:
    """Return what *read* returns of each of *names*, without those that cannot be read: they prove nothing."""
    found = []
    for name in names:
        with contextlib.suppress(MalformedError, NotFoundError):
            found.append(read(name))
    return found


class Registry(Protocol):
    """A place that keeps immutable versions of adapters."""

    @property
    def url(self) -> str:
        """What names this registry everywhere, also in error messages, lock files and on other machines."""

    @property
    def is_remote(self) -> bool:
        """Whether somebody else may write into it, so that what it hands out needs a pin or a signature."""

    def names(self, prefix: str) -> Iterator[str]:
        """Yield ``org/task`` of every adapter whose name begins with *prefix*, sorted."""

    def search(self, text: str, *, base: str | None, limit: int) -> Iterator[Found]:
        """Yield at most *limit* adapters whose name holds *text* and that were trained on *base*, if that is given."""

    def listing(self, reference: AdapterRef) -> Listing:
        """Return what there is of the adapter; an empty listing if there is nothing."""

    def snapshot(self, reference: AdapterRef, revision: str) -> Snapshot:
        """Return the files at *revision*, which `listing` named, or which is a commit.

        Raises:
            NotFoundError: There is no such revision.
        """

    def publish(self, reference: AdapterRef, files: Mapping[str, Bytes], sign: Sign = unsigned) -> Publication:
        """Make *files* an exact version, whole or not at all; change nothing if the version exists.

        *sign* is called once it is sure which manifest is published: another publisher's of the same content, perhaps.
        """

    def yanks(self, reference: AdapterRef, listing: Listing) -> list[Bytes]:
        """Return the bundles that are said to yank the exact version *reference*, unproven; *listing* is fresh."""

    def publish_yank(self, reference: AdapterRef, name: str, bundle: Bytes) -> None:
        """Put a bundle, which is called *name*, among those that yank versions of the adapter."""


def check_may_connect(registry: Registry, *, offline: bool, why: str = "") -> None:
    """Raise `RegistryError` if *registry* needs the network and that must not be used; *why* begins the sentence."""
    if offline and registry.is_remote:
        raise RegistryError(
            f"{why} the network is not to be used".lstrip(), hint="run it without --offline and HF_HUB_OFFLINE"
        )
