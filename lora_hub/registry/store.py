"""The local store: adapters by the digest of their manifest, and what each registry called them.

::

    <home>/store/adapters/<64 hex>/        plain PEFT directories, manifest included
    <home>/store/versions/<registry>/org/task/1.2.0    the digest that this registry published under this version
    <home>/store/partial/                  large downloads that are not whole yet, by the SHA-256 they will have
    <home>/store/pushes/                   the manifests of pushes under way
    <home>/store/staging/                  what is being written or removed; `prune` clears it

Everything appears and disappears by one rename, so any number of processes may use a store without a lock.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lora_hub import places
from lora_hub.adapter_directory import read_files, read_manifest
from lora_hub.documents.fields import Bytes, printable, sha256
from lora_hub.documents.manifest import MANIFEST_NAME, Manifest
from lora_hub.documents.verified_adapter import VerifiedAdapter, manifest_digest, verify
from lora_hub.errors import (
    IntegrityError,
    InvalidReferenceError,
    LoraHubError,
    MalformedError,
    NotFoundError,
    PolicyError,
    UsageError,
)
from lora_hub.files import (
    machine_errors,
    publish_directory,
    read_file,
    remove_directory,
    remove_leftovers,
    remove_old,
    write_files,
)
from lora_hub.reference import AdapterRef, is_digest
from lora_hub.version import Version

_STALE = 3600  # seconds after which what is half-written belongs to nobody
_ABANDONED = 7 * 24 * 3600  # seconds after which nobody goes on with a download
_DIGEST_LINE = 80  # bytes; `sha256:` and 64 hex digits


def default_store() -> Store:
    """Return the store of this user."""
    return Store(places.store_directory())


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAdapter:
    """One adapter in the store: where it lies, what it is, and when it was last used (seconds since 1970)."""

    digest: str
    path: Path
    manifest: Manifest
    last_used: float


class Store:
    """A content-addressed directory of adapters."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    # Adapters by digest

    def path(self, digest: str) -> Path:
        """Return where the adapter with *digest* lies, or would lie; no other text can name a path here."""
        if not is_digest(digest):
            raise InvalidReferenceError(f"{printable(digest)} is no digest", hint="write `sha256:` and 64 hex digits")
        return self.root / "adapters" / digest.removeprefix("sha256:")

    def has(self, digest: str) -> bool:
        """Whether the adapter with *digest* is here."""
        return self.path(digest).is_dir()

    @property
    def pushes(self) -> Path:
        """The directory of the journal of pushes under way."""
        return self.root / "pushes"

    @property
    def partials(self) -> Path:
        """The directory of large downloads that are not whole yet."""
        return self.root / "partial"

    def add(
        self,
        adapter: VerifiedAdapter,
        files: Mapping[str, Bytes],
        *,
        written: Mapping[str, Path] = MappingProxyType({}),
    ) -> Path:
        """Keep *files*, the bytes that *adapter* was proven from, and return the directory they lie in.

        Those that were *written* under `partials` are moved.
        """
        target = self.path(adapter.digest)
        with machine_errors():
            publish_directory(target, files, staging=self._staging, written=written)
        return target

    def read(self, digest: str) -> VerifiedAdapter:
        """Return the adapter with *digest*, all bytes checked again.

        Raises:
            NotFoundError: It is not here.
            IntegrityError: Its files are not what they were when they were stored.
        """
        path = self.path(digest)
        if not path.is_dir():
            raise NotFoundError(f"the store has no adapter `{digest}`", hint="run `lora-hub pull`")
        try:
            files = read_files(path)
            # The digest first: what does not have it is damaged, whatever else is wrong with it.
            found = manifest_digest(bytes(files.get(MANIFEST_NAME, b"")))
            adapter = verify(files, source=str(path)) if found == digest else None
        except (NotFoundError, MalformedError, IntegrityError) as error:
            raise self._damaged(digest, error.message) from error
        if adapter is None:
            raise self._damaged(digest, f"the digest of its manifest is {found}")
        # When it was last used, for `prune`; a store that may only be read is still a store.
        with contextlib.suppress(OSError):
            os.utime(path)
        return adapter

    def _damaged(self, digest: str, what: str) -> IntegrityError:
        return IntegrityError(
            f"the stored adapter {digest} is damaged: {what}",
            hint=f"run `lora-hub cache remove {digest}` and pull again",
        )

    def adapters(self) -> Iterator[StoredAdapter]:
        """Yield what is here, by digest; what cannot be read any more is left to `verify` and `remove`."""
        for digest in self._digests():
            with contextlib.suppress(NotFoundError, MalformedError):
                yield self.describe(digest)

    def describe(self, digest: str) -> StoredAdapter:
        """Return what lies under *digest*, by its manifest alone; raise `NotFoundError` if nothing does."""
        path = self.path(digest)
        try:
            last_used = path.stat().st_mtime
        except FileNotFoundError as error:
            hint = "run `lora-hub cache list` to see what it has"
            raise NotFoundError(f"the store has no `{digest}`", hint=hint) from error
        _, manifest = read_manifest(path)
        return StoredAdapter(digest=digest, path=path, manifest=manifest, last_used=last_used)

    def find(self, reference: AdapterRef) -> StoredAdapter:
        """Return the one stored adapter that *reference* (a digest or an exact version) names.

        Raises:
            NotFoundError: There is none.
            UsageError: There are several.
        """
        found = [stored for stored in self.adapters() if _is_meant(stored, reference)]
        if len(found) == 1:
            return found[0]
        if not found:
            raise NotFoundError(f"the store has no `{reference}`", hint="run `lora-hub cache list` to see what it has")
        names = ", ".join(f"{stored.manifest.reference} ({stored.digest})" for stored in found)
        raise UsageError(f"`{reference}` could be any of {names}", hint="name one by its version or its digest")

    # What registries call them

    def known_digest(self, registry_url: str, reference: AdapterRef) -> str | None:
        """Return the digest that the registry published under this exact version when it was last seen, if it was."""
        path = self._version_file(registry_url, reference)
        try:
            noted = read_file(path, limit=_DIGEST_LINE).decode(errors="replace").strip()
        except NotFoundError:
            return None
        if not is_digest(noted):
            # Nothing may be trusted anew just because a file was damaged.
            raise IntegrityError(f"`{path}` holds no digest", hint="delete it to trust what the registry has now")
        return noted

    def known_versions(self, registry_url: str, reference: AdapterRef) -> dict[Version, str]:
        """Return the digests of the versions that the registry was seen to publish, rising."""
        directory = self._notes(registry_url, reference)
        with machine_errors():
            names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
        versions = sorted(Version.parse(name) for name in names if Version.is_version(name))
        digests = {version: self.known_digest(registry_url, reference.at(version)) for version in versions}
        return {version: digest for version, digest in digests.items() if digest is not None}

    def check_unchanged(self, registry_url: str, reference: AdapterRef, digest: str) -> None:
        """Raise `PolicyError` if the registry published another digest under this exact version before."""
        known = self.known_digest(registry_url, reference)
        if known is not None and known != digest:
            raise PolicyError(
                f"`{reference}` in `{registry_url}` was {known} and is now {digest}: a published version never changes",
                hint=f"ask its publisher; if the new one is right, use it by digest: `{reference.name}@{digest}`",
            )

    def remember(self, registry_url: str, reference: AdapterRef, digest: str) -> None:
        """Keep that the registry published *digest* under this exact version, unless it is known already."""
        if self.known_digest(registry_url, reference) is None:
            path = self._version_file(registry_url, reference)
            with machine_errors():
                write_files(path.parent, {path.name: f"{digest}\n".encode()})

    # Housekeeping

    def remove(self, digest: str) -> None:
        """Remove the adapter with *digest*; what the registries called it stays known."""
        with machine_errors():
            remove_directory(self.path(digest), staging=self._staging)

    def verify(self) -> Iterator[tuple[str, LoraHubError | None]]:
        """Yield every digest here, with the error that reading it raises, if one does."""
        for digest in self._digests():
            yield digest, self._problem(digest)

    def prune(self, *, unused_for: float) -> tuple[list[str], int]:
        """Remove adapters unused for *unused_for* seconds, and leftovers of killed processes; return both."""
        limit = time.time() - unused_for
        with machine_errors():
            old = [digest for digest in self._digests() if self._last_used(digest) < limit]
            for digest in old:
                self.remove(digest)
            # What was half-written begins with a dot, as no version and no journal entry does.
            halves = [half for place in ("versions", "pushes") for half in (self.root / place).rglob(".*")]
            swept = remove_leftovers(self._staging, older_than=_STALE) + remove_old(halves, older_than=_STALE)
            given_up = [self.partials, self.pushes]
            return old, swept + sum(remove_leftovers(place, older_than=unused_for) for place in given_up)

    def _last_used(self, digest: str) -> float:
        try:
            return self.path(digest).stat().st_mtime
        except FileNotFoundError:  # another process removed it
            return math.inf

    def _digests(self) -> list[str]:
        with machine_errors():
            return sorted(filter(is_digest, (f"sha256:{path.name}" for path in (self.root / "adapters").glob("*"))))

    def _problem(self, digest: str) -> LoraHubError | None:
        try:
            self.read(digest)
        except LoraHubError as error:
            return error
        return None

    @property
    def _staging(self) -> Path:
        return self.root / "staging"

    def sweep(self) -> None:
        """Remove what killed processes left behind long ago, at the cost of two listings."""
        with machine_errors():
            remove_leftovers(self._staging, older_than=_STALE)
            remove_leftovers(self.partials, older_than=_ABANDONED)

    def _version_file(self, registry_url: str, reference: AdapterRef) -> Path:
        return self._notes(registry_url, reference) / str(reference.selector)

    def _notes(self, registry_url: str, reference: AdapterRef) -> Path:
        return self.root / "versions" / sha256(registry_url.encode())[:32] / reference.org / reference.task


def _is_meant(stored: StoredAdapter, reference: AdapterRef) -> bool:
    exact = stored.manifest.reference
    if exact is None or exact.version is None or exact.name != reference.name:
        return False
    is_selected = reference.selector is None or reference.selects(exact.version)
    return is_selected and reference.digest in {None, stored.digest}
