"""A registry in a plain directory: the embedded one, a mirror, an air gap, and the double of every test.

``<root>/org/task/1.2.0/`` holds the files of one version, as PEFT loads them. A version appears by one rename, so it is
whole or not there, and a second rename onto it fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from lora_hub.adapter_directory import read_files
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import MANIFEST_NAME, MAX_MANIFEST
from lora_hub.errors import NotFoundError, RegistryError
from lora_hub.files import machine_errors, publish_directory, read_file, remove_leftovers
from lora_hub.reference import AdapterRef
from lora_hub.version import Version

_STAGING = ".staging"  # no org starts with a dot
_STALE = 24 * 3600  # seconds after which a directory in staging belongs to nobody


class DirectoryRegistry:
    """Versions of adapters under one directory of this machine."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def url(self) -> str:
        """``file:///…``."""
        return self._root.as_uri()

    def names(self) -> Iterator[str]:
        """Yield ``org/task`` of every adapter, sorted."""
        self._check_exists()
        for org in _children(self._root):
            for task in _children(org):
                name = f"{org.name}/{task.name}"
                if AdapterRef.is_name(name) and self.versions(AdapterRef.parse(name)):
                    yield name

    def versions(self, reference: AdapterRef) -> list[Version]:
        """Return the published versions of the adapter, rising."""
        self._check_exists()
        children = _children(self._root / reference.org / reference.task)
        whole = (child.name for child in children if (child / MANIFEST_NAME).is_file())
        return sorted(Version.parse(name) for name in whole if Version.is_version(name))

    def manifest(self, reference: AdapterRef) -> bytes:
        """Return the manifest bytes of an exact version."""
        path = self._path(reference) / MANIFEST_NAME
        try:
            return bytes(read_file(path, limit=MAX_MANIFEST))
        except NotFoundError as error:
            raise NotFoundError(
                f"`{self.url}` has no version `{reference}`", hint="run `lora-hub list` to see what it has"
            ) from error

    def files(self, reference: AdapterRef) -> Mapping[str, Bytes]:
        """Return all files of an exact version, unproven."""
        try:
            return read_files(self._path(reference))
        except NotFoundError as error:
            raise RegistryError(
                f"`{reference}` in `{self.url}` is not whole: {error.message}", hint="ask who runs the registry"
            ) from error

    def publish(self, reference: AdapterRef, files: Mapping[str, Bytes]) -> bool:
        """Make *files* an exact version; return False, changing nothing, if it exists."""
        staging = self._root / _STAGING
        with machine_errors():
            remove_leftovers(staging, older_than=_STALE)
            return publish_directory(self._path(reference), files, staging=staging)

    def _check_exists(self) -> None:
        with machine_errors():
            if not self._root.is_dir():
                raise NotFoundError(
                    f"there is no registry `{self._root}`", hint="check the path; `lora-hub push` makes a new one"
                )

    def _path(self, reference: AdapterRef) -> Path:
        return self._root / reference.org / reference.task / str(reference.version)


def _children(directory: Path) -> list[Path]:
    with machine_errors():
        if not directory.is_dir():
            return []
        return sorted(child for child in directory.iterdir() if child.is_dir() and not child.name.startswith("."))
