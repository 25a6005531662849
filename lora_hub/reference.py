"""References to adapters: ``org/task[@version]``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from lora_hub.errors import InvalidReferenceError, UsageError
from lora_hub.version import Version, VersionRange

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_-]|\.(?!\.)){0,94}[A-Za-z0-9_-]|[A-Za-z0-9]"
_REFERENCE = re.compile(rf"(?P<org>{_NAME})/(?P<task>{_NAME})(?:@(?P<at>.+))?", re.ASCII)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}", re.ASCII)
_HINT = "write `org/task`, `org/task@1.2.0`, `org/task@^1.2` or `org/task@sha256:…`"

Selector = Version | VersionRange | str | None
PathLike = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter's name and, after ``@``, what selects one version of it.

    Attributes:
        org: Who publishes it.
        task: What it does.
        selector: A `Version`, a `VersionRange`, a digest ``sha256:<64 hex>``, a commit of 40 hex digits, or None for
            the newest release.
    """

    org: str
    task: str
    selector: Selector = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the reference that *text* spells, or raise `InvalidReferenceError`."""
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise InvalidReferenceError(f"`{text}` is not a reference to an adapter", hint=_HINT)
        at = match["at"]
        return cls(match["org"], match["task"], None if at is None else _parse_selector(at))

    @property
    def name(self) -> str:
        """``org/task``, without what follows the ``@``."""
        return f"{self.org}/{self.task}"

    @property
    def digest(self) -> str | None:
        """The manifest digest ``sha256:…`` that this reference names, if it names one."""
        is_digest = isinstance(self.selector, str) and self.selector.startswith("sha256:")
        return self.selector if is_digest else None  # type: ignore[return-value]

    @property
    def commit(self) -> str | None:
        """The commit of 40 hex digits that this reference names, if it names one."""
        is_commit = isinstance(self.selector, str) and self.digest is None
        return self.selector if is_commit else None  # type: ignore[return-value]

    @property
    def version(self) -> Version | None:
        """The exact version that this reference names, if it names one."""
        return self.selector if isinstance(self.selector, Version) else None

    def selects(self, version: Version) -> bool:
        """Whether *version* is one that this reference may mean; of several, the newest.

        A digest may be any version's; a commit selects no version.
        """
        match self.selector:
            case None:
                return not version.is_prerelease
            case Version() as exact:
                return version == exact
            case VersionRange() as wanted:
                return version in wanted
        return self.digest is not None

    @classmethod
    def is_name(cls, text: str) -> bool:
        """Whether *text* is ``org/task`` and nothing more."""
        match = _REFERENCE.fullmatch(text)
        return match is not None and match["at"] is None

    def at(self, selector: Version | str) -> AdapterRef:
        """Return the reference to exactly this version, commit or digest of the adapter."""
        return replace(self, selector=selector)

    def __str__(self) -> str:
        return self.name if self.selector is None else f"{self.name}@{self.selector}"


def _parse_selector(text: str) -> Selector:
    if is_digest(text) or is_commit(text):
        return text
    if text.startswith("sha256:"):
        raise InvalidReferenceError(f"`{text}` is no digest", hint="write `sha256:` and 64 lower-case hex digits")
    # A prefix such as `1.2` is a range; only three numbers make a version.
    if text.count(".") >= 2 and not text.startswith("^"):  # noqa: PLR2004
        return Version.parse(text)
    return VersionRange.parse(text)


def exact_version(reference: AdapterRef) -> Version:
    """Return the version that *reference* names; only an exact one can be published."""
    if reference.version is None:
        raise UsageError(f"`{reference}` names no exact version to publish", hint=f"write `{reference.name}@1.0.0`")
    return reference.version


def is_digest(text: str) -> bool:
    """Whether *text* is the digest of a manifest: ``sha256:`` and 64 lower-case hex digits."""
    return _DIGEST.fullmatch(text) is not None


def is_commit(text: str) -> bool:
    """Whether *text* is a commit of git: 40 lower-case hex digits."""
    return _COMMIT.fullmatch(text) is not None


def parse(source: str | os.PathLike[str] | AdapterRef) -> AdapterRef | Path:
    """Return the directory (a path, or a string that starts with ``.`` or ``/``) or the reference *source* names."""
    if isinstance(source, AdapterRef):
        return source
    if not isinstance(source, str) or source.startswith((".", "/")):
        return Path(source)
    try:
        return AdapterRef.parse(source)
    except InvalidReferenceError as error:
        hint = f"{error.hint}; a directory begins with `.` or `/`, as in `./{source}`"
        raise InvalidReferenceError(error.message, hint=hint) from error


ReferenceLike = str | AdapterRef


def as_reference(reference: ReferenceLike) -> AdapterRef:
    """Return *reference*, parsed if it is a text."""
    return reference if isinstance(reference, AdapterRef) else AdapterRef.parse(reference)
