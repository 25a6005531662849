"""Where a finding is: the path of a file of the adapter, as a log or a browser finds it."""

from __future__ import annotations

from lora_hub.errors import InvalidReferenceError
from lora_hub.reference import AdapterRef

# Characters of a path that stand in a URI as they are: https://datatracker.ietf.org/doc/html/rfc3986#section-3.3
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~/@")


def is_version(source: str) -> bool:
    """Whether *source* is ``org/task@…``; without an ``@`` it is a directory: a report names what was resolved."""
    try:
        return AdapterRef.parse(source).selector is not None
    except InvalidReferenceError:
        return False


def path(source: str, file: str) -> str:
    """Return the path of *file* in the directory *source*; a relative one without the ``./`` that a user may write."""
    joined = f"{source.rstrip('/')}/{file}"
    while joined.startswith("./"):
        joined = joined[2:].lstrip("/")
    return joined


def uri(source: str, file: str) -> str:
    """Return where *file* of the adapter *source* lies, as a URI.

    Of a directory it is relative to where the check ran if *source* is, which should be the root of the repository;
    else ``file:``. A version in a registry has one of our own scheme, which no other tool looks up.
    """
    quoted = _quoted(path(source, file))
    if is_version(source):
        return f"lora-hub:{quoted}"
    return f"file://{quoted}" if quoted.startswith("/") else quoted


def _quoted(path: str) -> str:
    """Return *path* as it stands in a URI; names on disk need not be UTF-8, and stand there as their bytes."""
    try:
        content = path.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        content = path.encode(errors="surrogatepass")
    return "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in content)
