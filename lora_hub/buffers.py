"""Memory that large files are read into, and the hash of what it holds while it is still being filled."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

from lora_hub.documents.fields import Bytes

Buffer = bytearray | mmap.mmap  # what can be written into

LARGE = 4 * 1024 * 1024  # bytes from which on it pays to ask for pages and threads of one's own


def allocate(size: int) -> Buffer:
    """Return *size* bytes of memory that is private to this process and writable; raise `MemoryError` if there is none.

    Large ones are not zeroed before they are written, as a `bytearray` is, and come in large pages where Linux has any.
    """
    if size < LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return bytearray(size)
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise
        raise MemoryError(size) from error
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


class Hasher:
    """Computes the SHA-256 of a buffer in a thread of its own, while the buffer is still filled from its beginning."""

    def __init__(self, buffer: Bytes, *, stride: int) -> None:
        """Hash *stride* bytes at once; each hand-over costs a turn of the interpreter's lock."""
        self._sha256 = hashlib.sha256()
        self._view = memoryview(buffer)
        self._stride = stride
        self._done = 0
        self._turns: list[Future[None]] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="lora-hub-sha256")

    def follow(self, stop: int) -> None:
        """Hash what lies before *stop* and will not change any more, if that is enough for a turn."""
        if stop - self._done >= self._stride:
            self._hand_over(stop)

    def hexdigest(self) -> str:
        """Return the digest, once all is hashed: after the end of the block."""
        return self._sha256.hexdigest()

    def _hand_over(self, stop: int) -> None:
        piece = self._view[self._done : stop]
        self._done = stop
        try:
            self._turns.append(self._thread.submit(self._sha256.update, piece))
        except RuntimeError:  # no more threads, as when the interpreter ends
            self._wait()
            self._sha256.update(piece)

    def _wait(self) -> None:
        for turn in self._turns:
            turn.result()
        self._turns.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._done:
            self._hand_over(len(self._view))
        elif kind is None:  # a small one: no thread was needed
            self._sha256.update(self._view)
        self._wait()
        self._thread.shutdown()
