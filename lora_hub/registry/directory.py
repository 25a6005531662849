"""A registry in a plain directory: the embedded one, a mirror, an air gap, and the double of every test.

``<root>/org/task/1.2.0/`` holds the files of one version, as PEFT loads them. A version appears by one rename, so it is
whole or not there, and a second rename onto it fails.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_hub.documents.bundle import MAX_BUNDLE, MAX_SIGNATURES, signature_names
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import MANIFEST_NAME, MAX_FILE, VERSION_FILES
from lora_hub.documents.statement import YANKED, is_yank_name
from lora_hub.errors import NotFoundError
from lora_hub.files import machine_errors, publish_directory, read_file, remove_leftovers, write_files
from lora_hub.reference import AdapterRef, exact_version
from lora_hub.registry.registry import Found, Listing, Publication, RemoteFile, Sign, Snapshot, readable, unsigned
from lora_hub.registry.search import search_manifests
from lora_hub.version import Version

_STAGING = ".staging"  # no org starts with a dot
_STALE = 24 * 3600  # seconds after which a directory in staging belongs to nobody


class DirectoryRegistry:
    """Versions of adapters under one directory of this machine."""

    is_remote = False

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def url(self) -> str:
        """``file:///…``."""
        return self._root.as_uri()

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield ``org/task`` of every adapter whose name begins with *prefix*, sorted."""
        self._check_exists()
        for org in _children(self._root):
            for task in _children(org):
                name = f"{org.name}/{task.name}"
                is_meant = name.startswith(prefix) and AdapterRef.is_name(name)
                if is_meant and self.listing(AdapterRef.parse(name)).versions:
                    yield name

    def search(self, text: str, *, base: str | None, limit: int) -> Iterator[Found]:
        """Yield the adapters whose name holds *text* and whose newest version was trained on *base*."""
        return search_manifests(self, text, base=base, limit=limit)

    def listing(self, reference: AdapterRef) -> Listing:
        """Return the published versions of the adapter."""
        self._check_exists()
        children = _children(self._root / reference.org / reference.task)
        whole = [child.name for child in children if (child / MANIFEST_NAME).is_file()]
        versions = sorted(Version.parse(name) for name in whole if Version.is_version(name))
        return Listing(versions={version: str(version) for version in versions})

    def snapshot(self, reference: AdapterRef, revision: str) -> Snapshot:
        """Return the files of a version."""
        directory = self._root / reference.org / reference.task / revision
        if not Version.is_version(revision) or not directory.is_dir():
            raise NotFoundError(
                f"`{self.url}` has no version `{revision}` of `{reference.name}`",
                hint=f"run `lora-hub list {reference.name}` to see what it has",
            )
        with machine_errors():
            signatures = signature_names(path.name for path in directory.glob("model*.sig"))
            sizes = {name: _size(directory / name) for name in (*VERSION_FILES, *signatures)}
        files = {name: RemoteFile(size=size) for name, size in sizes.items() if size is not None}

        def read(name: str, start: int, stop: int | None) -> Iterator[Bytes]:
            content = read_file(directory / name, limit=MAX_FILE)
            yield content if (start, stop) == (0, None) else content[start:stop]

        return Snapshot(commit=None, files=files, read=read)

    def publish(self, reference: AdapterRef, files: Mapping[str, Bytes], sign: Sign = unsigned) -> Publication:
        """Make *files* an exact version; change nothing if it exists."""
        staging = self._root / _STAGING
        target = self._root / reference.org / reference.task / str(reference.version)
        with machine_errors():
            remove_leftovers(staging, older_than=_STALE)
            kept = {**{name: files[name] for name in VERSION_FILES}, **sign(bytes(files[MANIFEST_NAME]))}
            return Publication(is_new=publish_directory(target, kept, staging=staging))

    def yanks(self, reference: AdapterRef, listing: Listing) -> list[Bytes]:  # noqa: ARG002 - one look is enough
        """Return the bundles that are said to yank the exact version *reference*."""
        directory, version = self._root / reference.org / reference.task / YANKED, exact_version(reference)
        with machine_errors():
            names = sorted(path.name for path in directory.glob("*.sig") if is_yank_name(path.name, version))
        return readable(names[:MAX_SIGNATURES], lambda name: read_file(directory / name, limit=MAX_BUNDLE))

    def publish_yank(self, reference: AdapterRef, name: str, bundle: Bytes) -> None:
        """Put a bundle among those that yank versions of the adapter."""
        with machine_errors():
            write_files(self._root / reference.org / reference.task / YANKED, {name: bundle})

    def _check_exists(self) -> None:
        with machine_errors():
            if not self._root.is_dir():
                raise NotFoundError(
                    f"there is no registry `{self._root}`", hint="check the path; `lora-hub push` makes a new one"
                )


def _size(path: Path) -> int | None:
    """Return the size of a file in bytes, or None if there is none, or a link that leads nowhere."""
    try:
        return path.stat().st_size
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ELOOP}:
            return None
        raise


def _children(directory: Path) -> list[Path]:
    with machine_errors():
        if not directory.is_dir():
            return []
        return sorted(child for child in directory.iterdir() if child.is_dir() and not child.name.startswith("."))
