"""What the Hub answers, in words of our own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lora_hub.errors import RegistryError


class BranchMovedError(RegistryError):
    """Somebody else committed first; nothing was changed."""


class NoAnswerError(RegistryError):
    """The Hub did not say whether it did what it was asked to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFile:
    """A file in a commit: bytes, SHA-256 in hex and Xet hash, where the Hub keeps it by those."""

    size: int
    sha256: str | None
    xet_hash: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refs:
    """The commits of branches and tags."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One answer of a search."""

    name: str
    tags: tuple[str, ...]
    downloads: int | None
