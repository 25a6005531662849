"""Optional dependencies: what to install where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lora_hub.errors import MissingExtraError

_TORCH = frozenset({"torch", "transformers", "safetensors"})


@contextmanager
def needs_torch(what: str) -> Iterator[None]:
    """Turn the absence of a package of the extra `torch` into an error that names *what* needs it."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TORCH:
            raise
        raise MissingExtraError(
            f"{what} needs the package `{package}`", hint="pip install 'lora-hub[torch]'"
        ) from error
