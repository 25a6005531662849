"""Optional dependencies: what to install where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from lora_hub.errors import MissingExtraError


def needs_torch(what: str) -> AbstractContextManager[None]:
    """Turn the absence of a package of the extra `torch` into an error that names *what* needs it."""
    return _needs("torch", {"torch", "transformers", "safetensors", "numpy"}, what)


def needs_sigstore(what: str) -> AbstractContextManager[None]:
    """Turn the absence of the package of the extra `sigstore` into an error that names *what* needs it."""
    return _needs("sigstore", {"sigstore"}, what)


def needs_nevergrad(what: str) -> AbstractContextManager[None]:
    """Turn the absence of a package of the extra `search` into an error that names *what* needs it."""
    return _needs("search", {"nevergrad"}, what)


@contextmanager
def _needs(extra: str, packages: set[str], what: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in packages:
            raise
        raise MissingExtraError(
            f"{what} needs the package `{package}`", hint=f"pip install 'lora-hub[{extra}]'"
        ) from error
