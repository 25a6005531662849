"""Files that a crash cannot tear: read once and bounded, written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import BufferedRandom, FileIO
from pathlib import Path
from types import MappingProxyType

from lora_hub.buffers import Hasher, allocate
from lora_hub.documents.fields import Bytes, sha256
from lora_hub.errors import IntegrityError, MachineError, MalformedError, NotFoundError, PolicyError

_PIECE = 4 * 1024 * 1024  # bytes that are read and hashed at once
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def machine_error(error: OSError) -> MachineError:
    """Return *error* of the operating system in our own words."""
    where = f" at `{error.filename}`" if error.filename else ""
    if error.errno in _FULL:
        return MachineError(f"no space left{where} ({error.strerror})", hint="free some space and run it again")
    return MachineError(f"{error.strerror or error}{where}", hint="check the path and its permissions")


@contextlib.contextmanager
def machine_errors() -> Iterator[None]:
    """Turn errors of the operating system into `MachineError`, with a hint and exit code 11."""
    try:
        yield
    except OSError as error:
        raise machine_error(error) from error


def read_file(path: Path, *, limit: int, size: int | None = None, is_own: bool = False) -> bytearray:
    """Return the bytes of the regular file at *path*, read exactly once.

    Args:
        path: The file.
        limit: Bytes; a larger file is refused before memory is taken for it.
        size: Bytes that it must have, if that is known.
        is_own: Whether it is a file that lora-hub keeps for this user, so that nobody else may have put it there.

    Raises:
        NotFoundError: There is no such file.
        PolicyError: It is this user's own, but a link, or others may write it.
        MalformedError: Not a regular file (a FIFO would block, a device would never end), or more than *limit* bytes.
        IntegrityError: Another size than *size*.
        MachineError: The file cannot be read, or is larger than the memory.
    """
    with _opened(path, limit, size, is_own=is_own) as (file, length):
        content = bytearray(length)
        read = _fill(file, memoryview(content), lambda _stop: None)
        return content[:read] if read < length else content


def read_hashed(path: Path, *, limit: int, size: int | None = None, is_own: bool = False) -> tuple[Bytes, str]:
    """Return what `read_file` returns, and its SHA-256 in hex, which is computed while the file is read."""
    with _opened(path, limit, size, is_own=is_own) as (file, length):
        content = allocate(length)
        with Hasher(content, stride=_PIECE) as hasher:
            read = _fill(file, memoryview(content), hasher.follow)
        if read == length:
            return content, hasher.hexdigest()
        cut = bytearray(content[:read])  # it was cut off since it was opened
        return cut, sha256(cut)


def _fill(file: FileIO, view: memoryview, follow: Callable[[int], object]) -> int:
    """Read *file* into *view*, telling after each piece how far; return how much there was."""
    stop = 0
    while read := file.readinto(view[stop : stop + _PIECE]):
        stop += read
        follow(stop)
    return stop


@contextlib.contextmanager
def _opened(path: Path, limit: int, size: int | None, *, is_own: bool) -> Iterator[tuple[FileIO, int]]:
    """Open a file that may be read, and say how long it is."""
    opener = _open_without_following if is_own else _open_without_blocking
    try:
        with open(path, "rb", buffering=0, opener=opener) as file:
            status = os.fstat(file.fileno())
            if is_own:
                _check_owner(path, status)
            _check_file(path, status, limit, size)
            yield file, status.st_size
    except MemoryError as error:
        raise MachineError(
            f"`{path}` is larger than the memory", hint="check the file, or use a larger machine"
        ) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFoundError(f"there is no file `{path}`", hint="check the path") from error
    except IsADirectoryError as error:
        raise MalformedError(f"`{path}` is not a regular file, but a directory", hint="check the path") from error
    except OSError as error:
        if is_own and error.errno == errno.ELOOP:
            raise PolicyError(f"`{path}` is a symbolic link", hint="put the file itself there") from error
        raise machine_error(error) from error


def _check_file(path: Path, status: os.stat_result, limit: int, size: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise MalformedError(f"`{path}` is not a regular file", hint="name a plain file, or a directory of plain files")
    if size is not None and status.st_size != size:
        raise IntegrityError(
            f"`{path}` has {status.st_size} bytes, the manifest says {size}",
            hint="the file was changed or damaged: get it again, or save it again",
        )
    if status.st_size > limit:
        raise MalformedError(
            f"`{path}` has {status.st_size} bytes, at most {limit} are read", hint="no file of this kind is that large"
        )


def check_own_directory(path: Path, *, may_be_link: bool = True) -> None:
    """Raise `PolicyError` if others may write into the directory *path*, or put it or a link to it there."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        link, status = path.lstat(), path.stat()
        if stat.S_ISLNK(link.st_mode) and not may_be_link:
            raise PolicyError(f"`{path}` is a symbolic link", hint="put the directory itself there")
        if link.st_uid != status.st_uid:
            _check_owner(path, link)
        _check_owner(path, status)


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Nobody else may say what this user trusts, has seen, or keeps."""
    if status.st_uid not in {os.geteuid(), 0}:
        raise PolicyError(
            f"`{path}` belongs to another user", hint=f"run `chown $USER {path}`, if you trust what it is"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PolicyError(
            f"`{path}` may be written by others", hint=f"run `chmod go-w {path}`, if you trust what it is"
        )


def _open_without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))


def _open_without_following(path: str, flags: int) -> int:
    return _open_without_blocking(path, flags | getattr(os, "O_NOFOLLOW", 0))


def write_files(directory: Path, files: Mapping[str, Bytes], *, mode: int = 0o666) -> None:
    """Write *files* into *directory*, which is made if need be: each file is the old one or the new one, never a part.

    All are written beside their places first, so that a full disk changes nothing; then they are moved there in the
    order in which they are given. *mode* is their permissions, less the umask.
    """
    make_directory(directory)
    staged = {name: directory / f".{name}.{uuid.uuid4().hex}" for name in files}
    try:
        for name, content in files.items():
            _write_and_sync(staged[name], content, mode)
        for name, temporary in staged.items():
            temporary.replace(directory / name)
            sync_directory(directory)
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def publish_directory(
    target: Path,
    files: Mapping[str, Bytes],
    *,
    staging: Path,
    written: Mapping[str, Path] = MappingProxyType({}),
    is_private: bool = False,
) -> bool:
    """Make *target* a directory that holds *files*; return False, changing nothing, if it exists already.

    Those of *files* that were *written* on the same file system already are moved, if they are still there. If it
    *is_private*, nobody else may read or write it, whatever the umask is.

    The directory is written under *staging* (on the same file system) and renamed, so it appears whole or not at all.
    Of several processes exactly one wins: renaming onto a directory that is not empty fails.
    """
    directory_mode, mode = (0o700, 0o600) if is_private else (0o777, 0o666)
    make_directory(staging, mode=directory_mode)
    temporary = staging / uuid.uuid4().hex
    try:
        temporary.mkdir(mode=directory_mode)
        for name, content in files.items():
            if name not in written or not _move_and_sync(written[name], temporary / name):
                _write_and_sync(temporary / name, content, mode)
        sync_directory(temporary)
        make_directory(target.parent, mode=directory_mode)
        return _rename_unless_exists(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename_unless_exists(source: Path, target: Path) -> bool:
    try:
        source.rename(target)
    except OSError:
        if target.is_dir():
            return False
        raise
    sync_directory(target.parent)
    return True


def remove_directory(path: Path, *, staging: Path) -> None:
    """Remove the directory *path*, if it is still there: renamed away first, so that nobody ever sees a half of it."""
    make_directory(staging)
    doomed = staging / uuid.uuid4().hex
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        path.rename(doomed)
        shutil.rmtree(doomed)


def _write_and_sync(path: Path, content: Bytes, mode: int = 0o666) -> None:
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _move_and_sync(source: Path, path: Path) -> bool:
    try:
        source.rename(path)
    except FileNotFoundError:  # another process was faster
        return False
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return True


@contextlib.contextmanager
def partial_file(directory: Path, name: str) -> Iterator[tuple[BufferedRandom, Path]]:
    """Open the half-written file *name* in *directory* at its beginning, or an empty one; it stays for the next run.

    One process at a time has it: another one that wants the same gets an empty file of its own, which does not stay
    unless it is moved away.
    """
    make_directory(directory, mode=0o700)
    path = directory / name
    while True:
        with open(path, "a+b", opener=_open_private) as file:
            if not _lock(file):
                break
            # Whoever had it before may have moved it away between our opening and our locking it.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                file.seek(0)
                yield file, path
                return
    own = directory / f"{name}.{uuid.uuid4().hex}"
    try:
        with open(own, "x+b", opener=_open_private) as file:
            yield file, own
    except BaseException:
        own.unlink(missing_ok=True)
        raise


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _lock(file: BufferedRandom) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def make_directory(path: Path, *, mode: int = 0o777) -> None:
    """Make the directory *path* and its parents, as durable as what will be written into them.

    *mode* is the permissions of what is made, less the umask.
    """
    if not path.is_dir():
        make_directory(path.parent, mode=mode)
        path.mkdir(exist_ok=True, mode=mode)
        sync_directory(path.parent)


def make_private_directory(path: Path) -> None:
    """Make the directory *path* one of this user alone; raise `PolicyError` if others may write into it already."""
    make_directory(path, mode=0o700)
    check_own_directory(path)


def create_file(path: Path, content: Bytes, *, mode: int) -> bool:
    """Write the file *path*, whole; return False, changing nothing, if there is one already."""
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        _write_and_sync(temporary, content, mode)
        path.hardlink_to(temporary)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)
    return True


def sync_directory(path: Path) -> None:
    """Make the names in the directory *path* durable, where the platform can."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(staging: Path, *, older_than: float) -> int:
    """Remove what killed processes left under *staging* over *older_than* seconds ago; return how many there were."""
    children = list(staging.iterdir()) if staging.is_dir() else []
    return remove_old(children, older_than=older_than)


def remove_old(paths: Iterable[Path], *, older_than: float) -> int:
    """Remove those of *paths* that were last changed over *older_than* seconds ago; return how many there were."""
    now = time.time()
    old = [path for path in paths if _age(path, now) > older_than]
    for path in old:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return len(old)


def _age(path: Path, now: float) -> float:
    try:
        return now - path.stat().st_mtime
    except FileNotFoundError:  # another process was faster
        return 0
