"""Large files that are read, or written, from beginning to end, and hashed at the same time in other threads."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lora_hub.checkpoint.base_files import opened

PIECE = 4 * 1024 * 1024  # bytes that are read, hashed and written at once
_IN_FLIGHT = 3  # pieces that may wait to be hashed and written


class Piece:
    """Memory for some bytes of the file, and who still works on what it holds."""

    def __init__(self) -> None:
        self._memory = bytearray(0)
        self.pending: list[Future[None]] = []

    def sized(self, size: int) -> memoryview:
        """Return *size* bytes of memory, once nobody needs any more what was in it."""
        for future in self.pending:
            future.result()
        self.pending.clear()
        if len(self._memory) < size:
            self._memory = bytearray(size)
        return memoryview(self._memory)[:size]


class HashedFile:
    """The file under writing. `piece` gives memory to fill, `write` takes it over: both in turn."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._sha256 = hashlib.sha256()
        self._pieces = [Piece() for _ in range(_IN_FLIGHT)]
        self._threads = [
            ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"lora-hub-{w}") for w in ("hash", "write")
        ]
        self.size = 0

    def piece(self, size: int) -> memoryview:
        """Return memory for the next *size* bytes."""
        return self._pieces[0].sized(size)

    def write(self, content: memoryview, also: Iterable[Future[None]] = ()) -> None:
        """Write *content*, which is what `piece` gave last, filled now; it must not be changed any more.

        Its memory is used again only after those who *also* work on it have done so.
        """
        piece = self._pieces.pop(0)
        hashing, writing = self._threads
        piece.pending = [
            *also,
            hashing.submit(self._sha256.update, content),
            writing.submit(_write_through, self._descriptor, content, self.size),
        ]
        self._pieces.append(piece)
        self.size += len(content)

    def write_bytes(self, content: bytes) -> None:
        """Write *content*."""
        view = self.piece(len(content))
        view[:] = content
        self.write(view)

    def hexdigest(self) -> str:
        """Return the SHA-256 of all that was written."""
        self._wait()
        return self._sha256.hexdigest()

    def _wait(self) -> None:
        for piece in self._pieces:
            piece.sized(0)

    def close(self) -> None:
        """Let the threads end."""
        for thread in self._threads:
            thread.shutdown(cancel_futures=True)


class HashedSource:
    """A file under reading. What is read in order is hashed: its digest is that of the very bytes that were used."""

    def __init__(self, descriptor: int, *, is_hashed: bool = True) -> None:
        self._descriptor = descriptor
        self._sha256 = hashlib.sha256()
        self._pieces = [Piece() for _ in range(_IN_FLIGHT)]
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lora-hub-base")
        self._position = 0 if is_hashed else -1

    def read_into(self, content: memoryview, start: int) -> list[Future[None]]:
        """Fill *content* from *start* on, and return who still hashes it; raise `EOFError` if there is less."""
        read_into(self._descriptor, content, start)
        if start != self._position:  # out of order
            return []
        self._position += len(content)
        return [self._thread.submit(self._sha256.update, content)]

    def read(self, size: int, start: int) -> memoryview:
        """Return *size* bytes from *start* on, not to be changed; some calls later their memory is used again."""
        piece = self._pieces.pop(0)
        content = piece.sized(size)
        piece.pending = self.read_into(content, start)
        self._pieces.append(piece)
        return content

    def hexdigest(self) -> str | None:
        """Return the SHA-256 of the file, or None if not all of it was read, and in order."""
        self.close()
        return self._sha256.hexdigest() if self._position == os.fstat(self._descriptor).st_size else None

    def close(self) -> None:
        """Let the thread end, once all that was read is hashed."""
        self._thread.shutdown()


@contextlib.contextmanager
def hashed_file(path: Path) -> Iterator[HashedFile]:
    """Open a new file at *path*, which no link may lead away from; its content is durable at the end."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    file = HashedFile(descriptor)
    try:
        yield file
        file.hexdigest()
        os.fsync(descriptor)
    finally:
        file.close()
        os.close(descriptor)


def _write_through(descriptor: int, content: memoryview, start: int) -> None:
    """Write *content* at *start*, and have the disk begin with it: else `fsync` would wait for the whole file."""
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, content[done:], start + done)
    os.posix_fadvise(descriptor, start, len(content), os.POSIX_FADV_DONTNEED)


def read_into(descriptor: int, content: memoryview, start: int) -> None:
    """Fill *content* with the bytes from *start* on; raise `EOFError` if there are fewer."""
    done = 0
    while done < len(content):
        count = os.preadv(descriptor, [content[done:]], start + done)
        if not count:
            raise EOFError
        done += count


def hash_file(path: Path, *, on_bytes: Callable[[int], object] = lambda _count: None) -> tuple[int, str]:
    """Return size in bytes and SHA-256 of the regular file at *path*."""
    sha256, position, memory = hashlib.sha256(), 0, memoryview(bytearray(PIECE))
    with opened(path) as descriptor:
        while count := os.preadv(descriptor, [memory], position):
            sha256.update(memory[:count])
            position += count
            on_bytes(count)
    return position, sha256.hexdigest()
