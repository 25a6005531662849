"""Versions and ranges of versions: Semantic Versioning 2.0, https://semver.org."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Self

from lora_hub.errors import InvalidReferenceError

_NUMBER = r"(?:0|[1-9]\d{0,8})"
_IDENTIFIER = r"(?:0|[1-9]\d{0,8}|\d*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION = re.compile(rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_IDENTIFIER}(?:\.{_IDENTIFIER})*))?", re.ASCII)
_RANGE = re.compile(rf"(\^)?({_NUMBER})(?:\.({_NUMBER}))?(?:\.({_NUMBER}))?", re.ASCII)
MAX_LENGTH = 64  # characters; a version is the name of a directory
_HINT = "write a version as `1.2.0` or `1.2.0-rc.1`, a range as `^1.2` or `1`"


@functools.total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """One version, ordered by SemVer §11. Build metadata is refused: it would not be part of the order."""

    major: int
    minor: int
    patch: int
    prerelease: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the version that *text* spells, or raise `InvalidReferenceError`."""
        match = _VERSION.fullmatch(text) if len(text) <= MAX_LENGTH else None
        if match is None:
            raise InvalidReferenceError(f"`{text}` is not a version", hint=_HINT)
        major, minor, patch, prerelease = match.groups()
        return cls(int(major), int(minor), int(patch), tuple(prerelease.split(".")) if prerelease else ())

    @classmethod
    def is_version(cls, text: str) -> bool:
        """Whether *text* spells a version."""
        return len(text) <= MAX_LENGTH and _VERSION.fullmatch(text) is not None

    @property
    def is_prerelease(self) -> bool:
        """Whether this is a pre-release such as ``1.0.0-rc.1``."""
        return bool(self.prerelease)

    @property
    def _precedence(self) -> tuple[object, ...]:
        identifiers = tuple((0, int(i), "") if i.isdigit() else (1, 0, i) for i in self.prerelease)
        return (self.major, self.minor, self.patch, not self.is_prerelease, identifiers)

    def __lt__(self, other: Version) -> bool:
        return self._precedence < other._precedence

    def __str__(self) -> str:
        core = f"{self.major}.{self.minor}.{self.patch}"
        return f"{core}-{'.'.join(self.prerelease)}" if self.prerelease else core


@dataclass(frozen=True, slots=True)
class VersionRange:
    """``^1.2`` (same leftmost non-zero number, as in cargo and npm) or ``1``, ``1.2`` (a prefix). Releases only."""

    text: str
    low: Version
    high: Version  # exclusive

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the range that *text* spells, or raise `InvalidReferenceError`."""
        match = _RANGE.fullmatch(text)
        if match is None:
            raise InvalidReferenceError(f"`{text}` is neither a version nor a range", hint=_HINT)
        caret, *written = match.groups()
        numbers = [int(number) for number in written if number is not None]
        low = _padded(numbers)
        return cls(text, low, _successor(numbers, _fixed(numbers) if caret else len(numbers)))

    def __contains__(self, version: Version) -> bool:
        return not version.is_prerelease and self.low <= version < self.high

    def __str__(self) -> str:
        return self.text


def _fixed(numbers: list[int]) -> int:
    """How many leading numbers a caret holds fixed: up to the first that is not zero."""
    return next((position + 1 for position, number in enumerate(numbers) if number), len(numbers))


def _successor(numbers: list[int], fixed: int) -> Version:
    return _padded([*numbers[: fixed - 1], numbers[fixed - 1] + 1])


def _padded(numbers: list[int]) -> Version:
    major, minor, patch = (*numbers, 0, 0)[:3]
    return Version(major, minor, patch)
