"""``[tool.lora-hub.check]`` of a ``pyproject.toml``: what a project has settled for all of its checks."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_hub.checking.finding import Severity
from lora_hub.documents.fields import printable
from lora_hub.errors import NotFoundError, UsageError
from lora_hub.files import read_file

FILE_NAME = "pyproject.toml"
MAX_FILE = 4 * 1024 * 1024  # bytes
SEVERITIES = {str(severity): severity for severity in Severity}
_KEYS = ("base", "fail-on", "ignore", "per-path", "require-base", "sample", "select")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a project has settled; what is left out is None or empty.

    Attributes:
        select: Codes, or beginnings of them: only these rules.
        ignore: Not these.
        fail_on: What a finding must be for the check to fail.
        base: What to check against.
        requires_base: Whether that which cannot be decided about the base is an error.
        samples: Whether a base on the Hub may be asked for weights, too.
        per_path: Rules that are ignored for the sources that a shell pattern matches.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    fail_on: Severity | None = None
    base: str | None = None
    requires_base: bool = False
    samples: bool = False
    per_path: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def ignored_at(self, source: str) -> tuple[str, ...]:
        """Return which rules are ignored for *source* alone."""
        name = source.removeprefix("./").rstrip("/")
        return tuple(
            code
            for pattern, codes in self.per_path.items()
            if fnmatch.fnmatchcase(name, pattern.removeprefix("./").rstrip("/"))
            for code in codes
        )


def read_settings(directory: Path) -> Settings:
    """Return what ``pyproject.toml`` in *directory* says; nothing, if there is none.

    Raises:
        UsageError: It is no TOML, or has a key or a value that means nothing here.
    """
    try:
        content = bytes(read_file(directory / FILE_NAME, limit=MAX_FILE))
    except NotFoundError:
        return Settings()
    try:
        document = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"`{FILE_NAME}` is no TOML: {error}", hint="mend it") from error
    table = _table(_table(document.get("tool", {})).get("lora-hub", {})).get("check", {})
    return _parse(_table(table, what="tool.lora-hub.check"))


def _parse(table: Mapping[str, Any]) -> Settings:
    for key in table:
        if key not in _KEYS:
            raise _wrong(key, table[key], f"one of the keys {', '.join(_KEYS)}")
    fail_on, base, requires_base = table.get("fail-on"), table.get("base"), _switch(table, "require-base")
    if fail_on is not None and fail_on not in list(SEVERITIES):
        raise _wrong("fail-on", fail_on, " or ".join(SEVERITIES))
    if base is not None and not isinstance(base, str):
        raise _wrong("base", base, "a repository or a directory")
    per_path = _table(table.get("per-path", {}), what="tool.lora-hub.check.per-path")
    return Settings(
        select=_codes(table, "select"),
        ignore=_codes(table, "ignore"),
        fail_on=None if fail_on is None else SEVERITIES[fail_on],
        base=base,
        requires_base=requires_base,
        samples=_switch(table, "sample"),
        per_path={pattern: _codes(per_path, pattern) for pattern in per_path},
    )


def _switch(table: Mapping[str, Any], key: str) -> bool:
    if not isinstance(table.get(key, False), bool):
        raise _wrong(key, table[key], "true or false")
    return bool(table.get(key, False))


def _codes(table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    codes = table.get(key, [])
    if not isinstance(codes, list) or not all(isinstance(code, str) for code in codes):
        raise _wrong(key, codes, 'a list of codes, such as ["LH113"]')
    return tuple(codes)


def _table(value: object, *, what: str = "") -> Mapping[str, Any]:
    if not isinstance(value, dict):
        if what:
            raise UsageError(f"`{what}` in `{FILE_NAME}` is {printable(value)}, expected a table", hint="mend it")
        return {}
    return value


def _wrong(key: str, found: object, expected: str) -> UsageError:
    return UsageError(
        f"`{key}` of `tool.lora-hub.check` in `{FILE_NAME}` is {printable(found)}, expected {expected}",
        hint="see docs/check.md",
    )
