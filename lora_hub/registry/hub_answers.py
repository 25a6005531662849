"""What the Hub answers, in words of our own; what is none of its answers raises `ValueError`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lora_hub.errors import RegistryError
from lora_hub.reference import is_commit

_HASH = re.compile(r"[0-9a-f]{64}", re.ASCII)


class BranchMovedError(RegistryError):
    """Somebody else committed first; nothing was changed."""


class NoAnswerError(RegistryError):
    """The Hub did not say whether it did what it was asked to; ``retry_after`` is when it wants to be asked again."""

    def __init__(self, message: str, *, hint: str, retry_after: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file in a commit: bytes, SHA-256 in hex and Xet hash, where the Hub keeps it by those."""

    size: int
    sha256: str | None
    xet_hash: str | None

    def __post_init__(self) -> None:
        if type(self.size) is not int or self.size < 0:
            raise ValueError("a size in bytes was expected")
        if not all(text is None or _HASH.fullmatch(text) for text in (self.sha256, self.xet_hash)):
            raise ValueError("a hash of 64 hex digits was expected")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refs:
    """The commits of branches and tags."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]

    def __post_init__(self) -> None:
        # They become parts of URLs, pins and lock files.
        if not all(is_commit(commit) for commit in (*self.branches.values(), *self.tags.values())):
            raise ValueError("a commit of 40 hex digits was expected")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One answer of a search."""

    name: str
    tags: tuple[str, ...]
    downloads: int | None
