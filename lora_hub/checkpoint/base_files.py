"""The files of a base model, wherever they lie: what a merge asks of them, and a directory on this machine."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

from lora_hub.errors import IntegrityError, MalformedError, NotFoundError
from lora_hub.files import machine_errors


class BaseFiles(Protocol):
    """The files of a base model. Nothing but small ranges moves until `fetched` is called."""

    @property
    def name(self) -> str:
        """What to call the base in messages."""

    @property
    def repo(self) -> str | None:
        """The repository on the Hub, if it comes from there."""

    @property
    def commit(self) -> str | None:
        """The commit of that repository."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each file, by name."""

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes of the file *name* from *start* to *stop*."""

    def fetched(self, name: str) -> Path:
        """Return where the whole file *name* lies on this machine, brought there if need be."""

    def sha256(self, name: str) -> str | None:
        """Return the SHA-256 in hex that the file *name* must have, where that is known."""

    def stamp(self, name: str) -> str:
        """Return a text that is another one if the file *name* was changed."""


class LocalBase:
    """A base model in a directory, such as `save_pretrained` wrote or the Hub's cache has."""

    repo: str | None = None
    commit: str | None = None

    def __init__(self, directory: Path) -> None:
        """Raises `NotFoundError` if there is no such directory."""
        with machine_errors():
            if not directory.is_dir():
                raise NotFoundError(f"there is no directory `{directory}`", hint="check the path of the model")
            # Links to files are followed, since the Hub's cache is made of them.
            self._status = {path.name: path.stat() for path in sorted(directory.iterdir()) if path.is_file()}
        self.name = str(directory)
        self.directory = directory

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each regular file."""
        return {name: status.st_size for name, status in self._status.items()}

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes of the file *name* from *start* to *stop*."""
        with opened(self.fetched(name)) as descriptor:
            return os.pread(descriptor, stop - start, start)

    def fetched(self, name: str) -> Path:
        """Return where the file lies; raise `IntegrityError` if it is not the one that was there at the beginning."""
        path = self.directory / name
        with machine_errors():
            is_same = path.is_file() and _stamp(path.stat()) == self.stamp(name)
        if not is_same:
            raise IntegrityError(
                f"`{path}` was changed since its directory was first read", hint="wait for it, and run it again"
            )
        return path

    def sha256(self, name: str) -> str | None:  # noqa: ARG002 - nobody said it
        """Return None: a directory does not say."""
        return None

    def stamp(self, name: str) -> str:
        """Return size and time of the last change."""
        return _stamp(self._status[name])


def _stamp(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open the regular file at *path* to be read; at the end it must be as long and as old as at the beginning.

    Raises:
        NotFoundError: There is no such file.
        MalformedError: It is no regular file.
        IntegrityError: It was changed meanwhile, so that what was read may be of two files.
    """
    with machine_errors():
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no file `{path}`", hint="download the base model again") from error
        try:
            before = os.fstat(descriptor)
            if not stat.S_ISREG(before.st_mode):
                raise MalformedError(f"`{path}` is not a regular file", hint="name a directory of plain files")
            yield descriptor
            if _stamp(os.fstat(descriptor)) != _stamp(before):
                raise IntegrityError(f"`{path}` was changed while it was read", hint="wait for it, and run it again")
        finally:
            os.close(descriptor)
