"""Strict reading of TOML from outside: bounded before anything is parsed."""

from __future__ import annotations

import tomllib
from typing import Any

from lora_hub.documents.fields import check_depth
from lora_hub.errors import DocumentError

_MAX_DOTS = 100  # in one line; tomllib takes time and memory by the square of a dotted key's parts


def parse_toml(content: bytes, *, what: str, limit: int, hint: str) -> dict[str, Any]:
    """Return the table that *content* spells.

    Args:
        content: UTF-8 TOML, at most *limit* bytes.
        what: What to call the document in an error.
        limit: Bytes.
        hint: What to do if it is none.

    Raises:
        DocumentError: Too large, not UTF-8, not TOML, or nested too deep.
    """
    if len(content) > limit:
        raise DocumentError(f"{what} has {len(content)} bytes, at most {limit} are read", hint=hint)
    try:
        document = tomllib.loads(_with_short_keys(content.decode()))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{what} is not valid TOML: {error}", hint=hint) from error
    check_depth(document, what, hint)
    return document


def _with_short_keys(text: str) -> str:
    """Return *text*; raise ValueError if a key may have so many parts that the parser would take for ever over it.

    A key never goes on in another line. What is quoted and what is a remark is not told apart: only the parser can.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if line.count(".") > _MAX_DOTS:
            raise ValueError(f"line {number} has more than {_MAX_DOTS} dots")
    return text
