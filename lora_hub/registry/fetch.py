"""Read the files of a snapshot: bounded, exact in size, and large ones so that the next run goes on from here."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from lora_hub.buffers import Buffer, Hasher, allocate
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import CONFIG_NAME, WEIGHTS_NAME, FileEntry
from lora_hub.documents.safetensors_header import header_end
from lora_hub.errors import IntegrityError, MachineError, MalformedError, NotFoundError
from lora_hub.files import machine_errors, partial_file
from lora_hub.registry.registry import RemoteFile, Snapshot

RESUMABLE = 8 * 1024 * 1024  # bytes; smaller files are simply read again
_STRIDE = 8 * 1024 * 1024  # bytes that are hashed at once while more of them come
_FIRST = 512 * 1024  # bytes of a weights file; only the headers of some thousands of tensors are longer

# ``progress(label, total)`` opens a progress bar; what it yields is called with the bytes that came.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]


def no_progress(_label: str, _total: int) -> AbstractContextManager[Callable[[int], object]]:
    """Show nothing."""
    return nullcontext(lambda _count: None)


@dataclass(frozen=True, slots=True)
class Content:
    """The bytes of a file, what they are found to be, and where they lie on disk as well, if they do."""

    buffer: Bytes
    found: FileEntry
    path: Path | None = None
    is_resumed: bool = False


def read_small(snapshot: Snapshot, name: str, *, limit: int, source: str) -> Bytes:
    """Return the bytes of the file *name*, which has at most *limit* bytes.

    Raises:
        NotFoundError: The snapshot has no such file.
        MalformedError: It is larger.
        IntegrityError: It has another size than the registry says.
    """
    file = _file(snapshot, name, source)
    if file.size > limit:
        raise MalformedError(
            f"`{name}` of `{source}` has {file.size} bytes, at most {limit} are read",
            hint="it is no file of an adapter",
        )
    return _read_exactly(snapshot, FileEntry(name=name, size=file.size, sha256=""), source, no_progress)


def read_header(snapshot: Snapshot, *, source: str) -> tuple[Bytes, RemoteFile]:
    """Return the beginning of the weights, up to the end of their header at least, and what is known of the file."""
    file = _file(snapshot, WEIGHTS_NAME, source)
    start = _read_range(snapshot, 0, min(_FIRST, file.size), source)
    end = header_end(start, size=file.size)
    return (start if end <= len(start) else start + _read_range(snapshot, len(start), end, source)), file


def read_weights(
    snapshot: Snapshot, entry: FileEntry, *, source: str, partials: Path | None, progress: Progress = no_progress
) -> Content:
    """Return the weights that *entry* describes: its size exactly, its digest still to be proven.

    Args:
        snapshot: Where they are read from.
        entry: What the manifest says of them.
        source: What to call the adapter in an error.
        partials: The directory in which a large download is kept until it is whole; None keeps nothing.
        progress: How to show it.
    """
    file = _file(snapshot, entry.name, source)
    if file.size != entry.size:  # before memory is taken for it
        raise _other_size(entry.name, source, file.size, entry.size)
    if partials is None or entry.size < RESUMABLE:
        content = _read_exactly(snapshot, entry, source, progress)
        return Content(content, FileEntry.of(entry.name, content))
    content = _allocate(entry, source)
    with machine_errors(), partial_file(partials, entry.sha256) as (part, path):
        have = part.readinto(content)
        if part.read(1):  # longer than it can be: not ours
            have = 0
            part.truncate(0)
        is_resumed = have > 0
        with Hasher(content, stride=_STRIDE) as hasher:

            def keep(chunk: Bytes, stop: int) -> None:
                hasher.follow(stop)
                part.write(chunk)

            _fill(content, have, snapshot, entry, source, progress, keep)
            part.flush()
            _begin_to_sync(part.fileno())
    found = FileEntry(name=entry.name, size=len(content), sha256=hasher.hexdigest())
    return Content(content, found, path, is_resumed)


def _begin_to_sync(descriptor: int) -> None:
    """Have the disk begin to write, while the bytes are still being proven; whoever makes them visible waits for it."""
    copy = os.dup(descriptor)

    def sync() -> None:
        with contextlib.suppress(OSError):  # whoever waits for it gets it as well
            os.fsync(copy)
        os.close(copy)

    threading.Thread(target=sync, daemon=True, name="lora-hub-sync").start()


def _file(snapshot: Snapshot, name: str, source: str) -> RemoteFile:
    if name not in snapshot.files:
        hint = f"it has {', '.join(sorted(snapshot.files)) or 'no file of an adapter'}"
        if name == WEIGHTS_NAME and CONFIG_NAME in snapshot.files:
            hint = "pickles are never read: ask its author to save it as safetensors"
        raise NotFoundError(f"`{source}` has no `{name}`", hint=hint)
    return snapshot.files[name]


def _read_range(snapshot: Snapshot, start: int, stop: int, source: str) -> bytearray:
    content = bytearray()
    for chunk in snapshot.read(WEIGHTS_NAME, start, stop):
        content += chunk
    if len(content) != stop - start:
        raise _other_size(WEIGHTS_NAME, source, len(content), stop - start)
    return content


def _read_exactly(snapshot: Snapshot, entry: FileEntry, source: str, progress: Progress) -> Buffer:
    content = _allocate(entry, source)
    _fill(content, 0, snapshot, entry, source, progress, lambda _chunk, _stop: None)
    return content


def _allocate(entry: FileEntry, source: str) -> Buffer:
    try:
        return allocate(entry.size)
    except MemoryError as error:
        raise MachineError(
            f"`{entry.name}` of `{source}` has {entry.size} bytes, more than the memory", hint="use a larger machine"
        ) from error


def _fill(
    content: Buffer,
    have: int,
    snapshot: Snapshot,
    entry: FileEntry,
    source: str,
    progress: Progress,
    keep: Callable[[Bytes, int], object],
) -> None:
    """Read what is missing after the first *have* bytes of *content*; `keep` gets each chunk, and where it ends."""
    view = memoryview(content)
    with progress(entry.name, entry.size) as advance:
        advance(have)
        for chunk in snapshot.read(entry.name, have, None) if have < entry.size else ():
            stop = have + len(chunk)
            if stop > entry.size:
                raise _other_size(entry.name, source, f"more than {entry.size}", entry.size)
            view[have:stop] = chunk
            keep(chunk, stop)
            advance(len(chunk))
            have = stop
    if have != entry.size:
        raise _other_size(entry.name, source, have, entry.size)


def _other_size(name: str, source: str, found: object, expected: int) -> IntegrityError:
    return IntegrityError(
        f"`{name}` of `{source}` has {found} bytes, expected {expected}",
        hint="the registry hands out something else than it says: try again, or ask who runs it",
    )
