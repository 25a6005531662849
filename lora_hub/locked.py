"""One process at a time changes a file; who only reads it needs no lock, since every change is one rename."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lora_hub.errors import MachineError
from lora_hub.files import machine_errors, make_private_directory

_PATIENCE = 30  # seconds to wait for another process


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes from changing *path* meanwhile; its directory is made if need be, for this user alone."""
    from filelock import FileLock, Timeout

    with machine_errors():
        make_private_directory(path.parent)
        lock = FileLock(path.with_name(f".{path.name}.lock"), mode=0o600)
        try:
            lock.acquire(timeout=_PATIENCE)
        except Timeout as error:
            raise MachineError(
                f"another process holds `{lock.lock_file}`", hint="wait for it to end, and run it again"
            ) from error
    try:
        yield
    finally:
        lock.release()
