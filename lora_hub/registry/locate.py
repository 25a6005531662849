"""Which registry a URL names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lora_hub.errors import UsageError
from lora_hub.registry.directory import DirectoryRegistry
from lora_hub.registry.network import is_offline
from lora_hub.registry.registry import Registry, check_may_connect

VARIABLE = "LORA_HUB_REGISTRY"
DEFAULT = "hf://"
_HINT = (
    f"pass `hf://`, a directory or a URL such as `s3://bucket/prefix` (`--registry`, in Python `registry=`), "
    f"or set `{VARIABLE}`"
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:", re.ASCII)
_OF_THE_HUB = re.compile(r"\bhf://", re.IGNORECASE)  # fsspec's own way there knows nothing of pins, commits and limits


RegistryLike = str | os.PathLike[str] | Registry | None


def as_registry(registry: RegistryLike, *, private: bool = False) -> Registry:
    """Return *registry*, opened if it is only named."""
    is_named = registry is None or isinstance(registry, str | os.PathLike)
    return open_registry(registry, private=private) if is_named else registry  # type: ignore[arg-type, return-value]


def online_registry(registry: RegistryLike, *, private: bool = False) -> Registry:
    """Return *registry*, opened; raise `RegistryError` if it needs the network and the environment forbids that."""
    opened = as_registry(registry, private=private)
    check_may_connect(opened, offline=is_offline())
    return opened


def open_registry(url: str | os.PathLike[str] | None, *, private: bool = False) -> Registry:
    """Return the registry that *url* names, or that the environment names if it is None, or the Hub.

    Args:
        url: ``hf://``, a path, ``file:///…`` or what fsspec opens, such as ``s3://bucket/prefix``.
        private: Whether a repository that `publish` must make is to be private, which only the Hub has.

    Raises:
        UsageError: *url* names no registry.
    """
    named = os.fspath(url) if url is not None else os.environ.get(VARIABLE) or DEFAULT
    if not named.isprintable():
        raise UsageError(f"{named!a} names no registry", hint=_HINT)
    is_url = not isinstance(url, os.PathLike) and ("://" in named or _SCHEME.match(named))
    scheme = named.partition(":")[0].lower() if is_url else "file"
    if scheme == "hf":
        return _hub(named, private=private)
    if private:
        raise UsageError("only repositories on the Hub can be private", hint="leave out --private")
    if scheme == "file":
        return _directory(named, is_url=bool(is_url))
    return _object_store(named)


def _hub(url: str, *, private: bool) -> Registry:
    if url.lower() != DEFAULT:
        raise UsageError(f"{url!a} names no registry", hint="write `hf://`; HF_ENDPOINT says which Hub that is")
    from lora_hub.registry.hub import HubRegistry

    return HubRegistry(private=private)


def _object_store(url: str) -> Registry:
    if _OF_THE_HUB.search(url):
        raise UsageError(f"{url!a} names no registry", hint="write `hf://` alone for the Hub")
    try:
        urlsplit(url)
    except ValueError as error:
        raise UsageError(f"{url!a} names no registry: {error}", hint=_HINT) from error
    from lora_hub.registry.object_store import ObjectStoreRegistry

    return ObjectStoreRegistry(url)


def _directory(named: str, *, is_url: bool) -> Registry:
    try:
        path = _path_of(named) if is_url else Path(named)
        if not named:
            raise ValueError("it is empty")  # noqa: TRY301 - said below
        # Resolved, so that one directory is one registry however it is spelt.
        return DirectoryRegistry(path.expanduser().resolve())
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"`{named!a}` names no registry: {error}", hint=_HINT) from error


def _path_of(url: str) -> Path:
    parts = urlsplit(url)
    if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
        raise UsageError(f"`{url}` names no directory of this machine", hint="write `file:///srv/adapters`")
    if parts.query or parts.fragment:
        raise UsageError(f"`{url}` has a query or a fragment", hint="write `?` as %3F and `#` as %23")
    return Path(unquote(parts.path))
