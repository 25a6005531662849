"""The local store: adapters by the digest of their manifest.

::

    <home>/store/adapters/<64 hex>/        plain PEFT directories, manifest and verified signatures included
    <home>/store/partial/                  large downloads that are not whole yet, by the SHA-256 they will have
    <home>/store/pushes/                   the manifests of pushes under way
    <home>/store/staging/                  what is being written or removed; `prune` clears it

Everything appears and disappears by one rename, so any number of processes may use a store without a lock. It belongs
to one user: where others may write, it is refused, and so is what is no plain file.
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
from lora_hub.adapter_directory import read_bundles, read_manifest, read_with_files
from lora_hub.documents.bundle import further_name
from lora_hub.documents.fields import Bytes, printable, sha256
from lora_hub.documents.manifest import MANIFEST_NAME, Manifest
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import (
    IntegrityError,
    InvalidReferenceError,
    LoraHubError,
    MalformedError,
    NotFoundError,
    UsageError,
)
from lora_hub.files import (
    check_own_directory,
    machine_errors,
    make_private_directory,
    publish_directory,
    remove_directory,
    remove_leftovers,
    remove_old,
    write_files,
)
from lora_hub.reference import AdapterRef, is_digest

_STALE = 3600  # seconds after which what is half-written belongs to nobody
_ABANDONED = 7 * 24 * 3600  # seconds after which nobody goes on with a download


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
        """The directory of the journal of pushes under way, in a store that is there."""
        self._make()
        return self.root / "pushes"

    @property
    def partials(self) -> Path:
        """The directory of large downloads that are not whole yet, in a store that is there."""
        self._make()
        return self.root / "partial"

    def _make(self) -> None:
        with machine_errors():
            make_private_directory(self.root)

    def add(
        self,
        adapter: VerifiedAdapter,
        files: Mapping[str, Bytes],
        *,
        written: Mapping[str, Path] = MappingProxyType({}),
    ) -> Path:
        """Keep *files*, what *adapter* was proven from and its signatures, and return the directory they lie in.

        Those that were *written* under `partials` are moved.
        """
        target = self.path(adapter.digest)
        self._make()
        with machine_errors():
            publish_directory(target, files, staging=self._staging, written=written, is_private=True)
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
            check_own_directory(self.root)
            check_own_directory(path, may_be_link=False)
            adapter, files = read_with_files(path, is_own=True)
        except (NotFoundError, MalformedError, IntegrityError) as error:
            raise self.damaged(digest, error.message) from error
        if adapter.digest != digest or MANIFEST_NAME not in files:
            raise self.damaged(digest, f"the digest of its manifest is {adapter.digest}")
        # When it was last used, for `prune`; a store that may only be read is still a store.
        with contextlib.suppress(OSError):
            os.utime(path)
        return adapter

    def bundles(self, digest: str) -> dict[str, Bytes]:
        """Return the signatures that are kept beside the adapter with *digest*, by file name."""
        return read_bundles(self.path(digest), is_own=True)

    def add_bundles(self, digest: str, bundles: Mapping[str, Bytes]) -> None:
        """Keep signatures, verified ones, beside the adapter with *digest*, which is here."""
        kept = self.bundles(digest) if bundles else {}
        new = {
            further_name(sha256(content)) if name in kept else name: content
            for name, content in bundles.items()
            if content not in kept.values()
        }
        if new:
            with machine_errors():
                write_files(self.path(digest), new, mode=0o600)

    def damaged(self, digest: str, what: str) -> IntegrityError:
        """Return what to raise where the adapter with *digest* is not what was stored."""
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

    # Housekeeping

    def remove(self, digest: str) -> None:
        """Remove the adapter with *digest*; that it was seen stays known."""
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
            # What was half-written begins with a dot, as no journal entry and no file of an adapter does.
            halves = [half for place in ("adapters", "pushes") for half in (self.root / place).rglob(".*")]
            swept = remove_leftovers(self._staging, older_than=_STALE) + remove_old(halves, older_than=_STALE)
            given_up = [self.root / "partial", self.root / "pushes"]
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
            remove_leftovers(self.root / "partial", older_than=_ABANDONED)


def _is_meant(stored: StoredAdapter, reference: AdapterRef) -> bool:
    exact = stored.manifest.reference
    if exact is None or exact.version is None or exact.name != reference.name:
        return False
    is_selected = reference.selector is None or reference.selects(exact.version)
    return is_selected and reference.digest in {None, stored.digest}
