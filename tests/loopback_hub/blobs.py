"""The contents of files, each stored once, whatever the protocol that brought it."""

import hashlib
import threading
from dataclasses import dataclass

LARGE_SUFFIXES = (".safetensors", ".bin")
LARGE_SIZE = 10 * 1024 * 1024  # bytes; a bigger file is large whatever its name


@dataclass(eq=False, kw_only=True)
class Blob:
    """The content of a file: regular (in git) or large (an LFS pointer in git, the bytes on the CDN).

    Everything but *content* describes the bytes that were uploaded; tampering changes *content* alone.
    """

    content: bytes
    large: bool
    size: int
    sha256: str
    git_oid: str
    pointer_size: int
    xet_hash: str

    @property
    def etag(self) -> str:
        """The name of the blob in the cache of a client."""
        return self.sha256 if self.large else self.git_oid

    def flip(self, offset: int) -> None:
        """Change one bit of the byte at *offset*, and nothing that describes it."""
        self.content = flipped(self.content, offset)


def flipped(content: bytes, offset: int) -> bytes:
    """Return *content* with the lowest bit of the byte at *offset* changed."""
    changed = bytearray(content)
    changed[offset] ^= 1
    return bytes(changed)


def git_sha1(content: bytes) -> str:
    """Return the id that git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str, size: int) -> bool:
    """Would the Hub keep this file outside git? An empty file stays in git, as object stores refuse it."""
    return size > LARGE_SIZE or (size > 0 and path.endswith(LARGE_SUFFIXES))


def _blob(content: bytes, *, large: bool, xet_hash: str | None) -> Blob:
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (sha256.encode(), len(content))
    return Blob(
        content=content,
        large=large,
        size=len(content),
        sha256=sha256,
        git_oid=git_sha1(pointer if large else content),
        pointer_size=len(pointer),
        # hf-xet takes any 64 hex digits as the name of a file: what came without a Xet hash goes by its sha256.
        xet_hash=xet_hash or sha256,
    )


class Blobs:
    """All blobs of a hub; the large ones are found by sha256 and by Xet hash."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regular: dict[str, Blob] = {}
        self._large: dict[str, Blob] = {}
        self._by_xet_hash: dict[str, Blob] = {}

    def add(self, content: bytes, *, large: bool, xet_hash: str | None = None) -> Blob:
        """Return the blob with this content, new or known."""
        new = _blob(content, large=large, xet_hash=xet_hash)
        with self._lock:
            blob = (self._large if large else self._regular).setdefault(new.sha256, new)
            if large:
                self._by_xet_hash[new.xet_hash] = self._by_xet_hash[blob.xet_hash] = blob
        return blob

    def add_file(self, path: str, content: bytes) -> Blob:
        """Return the blob of a file that was not uploaded by a client."""
        return self.add(content, large=is_large(path, len(content)))

    def large(self, sha256: str) -> Blob | None:
        """Return the large blob with this sha256."""
        return self._large.get(sha256)

    def by_xet_hash(self, xet_hash: str) -> Blob | None:
        """Return the large blob with this Xet hash."""
        return self._by_xet_hash.get(xet_hash)
