"""Strict reading of JSON from outside, and JSON bytes that depend on nothing but their content."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from mmap import mmap
from typing import Any, NoReturn, TypeVar

from lora_hub.errors import DocumentError, UnsupportedSchemaError

T = TypeVar("T")
Bytes = bytes | bytearray | mmap  # what was read from outside, or is to be written

MAX_NUMBER = 1e30  # of an alpha, say: far from any that is meant, and from what float64 cannot hold
_SAVE_AGAIN = "write it again with `save_adapter`"
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
MAX_DIGITS = 1000
_MANY_ZEROS = MAX_DIGITS * b"0"
_DIGITS_AS_ZEROS = bytes.maketrans(b"123456789", b"000000000")
MAX_DEPTH = 16  # nested objects and arrays; the deepest document we write has 6


def sha256(content: Bytes) -> str:
    """Return the SHA-256 of *content* as 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def is_sha256(text: str) -> bool:
    """Whether *text* is 64 lower-case hex digits."""
    return _SHA256.fullmatch(text) is not None


def is_time(text: str) -> bool:
    """Whether *text* is a UTC time of the form ``2026-01-31T12:00:00Z``."""
    try:
        return bool(_TIME.fullmatch(text)) and dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ") is not None  # noqa: DTZ007
    except ValueError:
        return False


def canonical_json(document: Mapping[str, Any]) -> bytes:
    """Return *document* as UTF-8 JSON: sorted keys, indent 2, one final newline. Same content, same bytes."""
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def parse_json_object(content: bytes, *, what: str, limit: int, hint: str = _SAVE_AGAIN) -> dict[str, Any]:
    """Return the JSON object that *content* holds.

    Args:
        content: UTF-8 JSON, at most *limit* bytes.
        what: What to call the document in an error.
        limit: Bytes.
        hint: What to do if it is none.

    Raises:
        DocumentError: Too large, not UTF-8, not JSON, a duplicate key, NaN, nested deeper than `MAX_DEPTH`, no object.
    """
    if len(content) > limit:
        raise DocumentError(f"{what} has {len(content)} bytes, at most {limit} are read", hint=hint)
    try:
        document = json.loads(
            content.decode(),
            object_pairs_hook=_unique_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_integer if _MANY_ZEROS in content.translate(_DIGITS_AS_ZEROS) else int,
        )
        # An escaped half of a surrogate pair is JSON, but no text: nothing could write it down again.
        if b"\\" in content:
            json.dumps(document, ensure_ascii=False).encode()
    except (RecursionError, ValueError) as error:
        raise DocumentError(f"{what} is not valid JSON: {error}", hint=hint) from error
    if not isinstance(document, dict):
        raise DocumentError(f"{what} must be a JSON object, found {_kind(document)}", hint=hint)
    check_depth(document, what, hint)
    return document


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {printable(twice)} stands twice in one object")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{printable(text)} is too large for a number")
    return value


def _integer(text: str) -> int:
    # Python's own limit can be switched off by anybody in this process; without one the time is quadratic.
    if len(text) > MAX_DIGITS:
        raise ValueError(f"{printable(text)} has {len(text)} digits")
    return int(text)


def check_depth(document: Mapping[str, Any], what: str, hint: str) -> None:
    """Raise `DocumentError` if *document* is nested deeper than `MAX_DEPTH`."""
    level: list[Any] = [document]  # the objects and arrays of one depth
    for _ in range(MAX_DEPTH - 1):
        level = [
            value
            for item in level
            for value in (item.values() if isinstance(item, dict) else item)
            if isinstance(value, (dict, list))
        ]
    if any(level):
        raise DocumentError(f"{what} is nested deeper than {MAX_DEPTH} levels", hint=hint)


def printable(value: object, *, limit: int = 120) -> str:
    """Return *value* from an untrusted document so that a terminal can show it: escaped, in backticks, shortened."""
    text = json.dumps(value, ensure_ascii=True, default=str).replace("\x7f", "\\u007f")[: limit + 1]
    return f"`{text[:limit]}…`" if len(text) > limit else f"`{text}`"


def _kind(value: object) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


@dataclass(frozen=True, slots=True)
class Fields:
    """One object under reading.

    *context* is where it stands, such as ``files[1]``; *hint* says what to do if something in it is wrong.
    """

    values: Mapping[str, Any]
    context: str = ""
    hint: str | None = None

    def path(self, key: str) -> str:
        """Return where *key* stands in the document."""
        return f"{self.context}.{key}" if self.context else key

    def fail(self, key: str, expected: str) -> NoReturn:
        """Raise a `DocumentError` that says what was expected at *key* and what was found."""
        found = printable(self.values[key]) if key in self.values else "nothing"
        raise DocumentError(f"expected {expected}, found {found}", context=self.path(key), hint=self.hint)

    def only(self, *known: str) -> None:
        """Raise a `DocumentError` if there is a key that is none of *known*."""
        for key in self.values:
            if key not in known:
                expected = ", ".join(f"`{name}`" for name in known)
                raise DocumentError(
                    f"unknown key, expected {expected}: what is not understood cannot be enforced",
                    context=self.path(key if key.isprintable() else printable(key)),
                    hint=self.hint,
                )

    def has(self, key: str) -> bool:
        """Whether *key* is there and not null."""
        return self.values.get(key) is not None

    def read(self, key: str, kind: type[T], expected: str, check: Callable[[T], object] | None = None) -> T:
        """Return the value at *key*, which must be of type *kind* and pass *check*."""
        value = self.values.get(key)
        is_right = isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)
        if not is_right or (check is not None and not check(value)):  # type: ignore[arg-type]
            self.fail(key, expected)
        return value  # type: ignore[return-value]

    def text(self, key: str, expected: str = "a string", check: Callable[[str], object] | None = None) -> str:
        """Return the string at *key*."""
        return self.read(key, str, expected, check)

    def optional_text(self, key: str) -> str | None:
        """Return the string at *key*, or None if the key is missing or null."""
        return self.text(key) if self.has(key) else None

    def present_text(self, key: str) -> str | None:
        """Return the string at *key*, or None if the key is missing; null is an error."""
        return self.text(key) if key in self.values else None

    def integer(self, key: str, *, low: int, high: int) -> int:
        """Return the integer at *key*, between *low* and *high*, both included."""
        return self.read(key, int, f"an integer from {low} to {high}", lambda value: low <= value <= high)

    def number(self, key: str, *, low: float = -MAX_NUMBER, high: float = MAX_NUMBER) -> float:
        """Return the number at *key*, from *low* to *high*; an integer stays one, so that it prints as it was."""
        expected = f"a number from {low} to {high}"
        return self.read(key, int | float, expected, lambda value: low <= value <= high)  # type: ignore[arg-type]

    def objects(self, key: str) -> list[Fields]:
        """Return the objects of the array at *key*."""
        items = self.read(key, list, "an array of objects", lambda value: all(isinstance(i, dict) for i in value))
        return [Fields(item, f"{self.path(key)}[{position}]", self.hint) for position, item in enumerate(items)]

    def object(self, key: str) -> Fields:
        """Return the object at *key*."""
        return Fields(self.read(key, dict, "an object"), self.path(key), self.hint)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return the strings of the array at *key*."""
        return tuple(self.read(key, list, "an array of strings", lambda value: all(isinstance(i, str) for i in value)))

    def check_schema(self, expected: str) -> None:
        """Raise unless ``schema`` is *expected*, such as ``lora-hub/manifest/v1``; say so if it is only newer."""
        schema = self.text("schema")
        if schema == expected:
            return
        family, _, major = schema.rpartition("/v")
        if family == expected.rpartition("/v")[0] and re.fullmatch(r"[1-9][0-9]{0,3}", major, re.ASCII):
            raise UnsupportedSchemaError(
                f"the document has schema version {major}, this lora-hub reads version {expected.rpartition('/v')[2]}",
                context="schema",
                hint="pip install --upgrade lora-hub",
            )
        self.fail("schema", f"`{expected}`")
