"""Which registry a URL names."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from lora_hub.errors import UsageError
from lora_hub.registry.directory import DirectoryRegistry
from lora_hub.registry.registry import Registry

VARIABLE = "LORA_HUB_REGISTRY"
_HINT = f"pass a directory (`--registry DIRECTORY`, in Python `registry=`), or set `{VARIABLE}` to one"
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.ASCII)


def open_registry(url: str | os.PathLike[str] | None) -> Registry:
    """Return the registry that *url* names, or that the environment names if it is None.

    Raises:
        UsageError: No registry is named, or one of a kind that this version does not know.
    """
    named = os.fspath(url) if url is not None else os.environ.get(VARIABLE)
    if not named:
        raise UsageError("no registry is named", hint=_HINT)
    try:
        is_url = not isinstance(url, os.PathLike) and ("://" in named or _SCHEME.match(named))
        path = _path_of(named) if is_url else Path(named)
        # Resolved, so that one directory is one registry however it is spelt.
        return DirectoryRegistry(path.expanduser().resolve())
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"`{named!a}` names no registry: {error}", hint=_HINT) from error


def _path_of(url: str) -> Path:
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise UsageError(f"registries of the kind `{parts.scheme}:` are not supported by this version", hint=_HINT)
    if parts.netloc not in {"", "localhost"} or not parts.path.startswith("/"):
        raise UsageError(f"`{url}` names no directory of this machine", hint="write `file:///srv/adapters`")
    if parts.query or parts.fragment:
        raise UsageError(f"`{url}` has a query or a fragment", hint="write `?` as %3F and `#` as %23")
    return Path(unquote(parts.path))
