"""Shell patterns for paths of modules, matched without regular expressions.

``*`` is any text, ``?`` any character, ``[abc0-9]`` one of these, ``[!abc]`` none of these; all else is itself, upper
and lower case apart: the rules of Python's `fnmatch.fnmatchcase`. That module makes a regular expression of a pattern,
and one with many stars from a stranger's file could keep it busy for ever; here the time is bounded by the length of
the pattern times that of the path.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

Match = Callable[[str], bool]  # whether one character is meant
_STAR = None


def matches(pattern: str, text: str) -> bool:
    """Whether *pattern* is for the whole of *text*."""
    parts = _parts(pattern)
    position = part = 0
    star, resume = -1, 0  # the last star that was met, and where in the text what follows it was tried last
    while position < len(text):
        match = parts[part] if part < len(parts) else _nothing
        if match is _STAR:
            star, resume = part, position
            part += 1
        elif match(text[position]):
            part, position = part + 1, position + 1
        elif star >= 0:  # only the last star need take more: what stands before it was matched as early as can be
            resume += 1
            part, position = star + 1, resume
        else:
            return False
    return all(rest is _STAR for rest in parts[part:])


@functools.lru_cache(maxsize=256)
def _parts(pattern: str) -> tuple[Match | None, ...]:
    parts: list[Match | None] = []
    position = 0
    while position < len(pattern):
        character = pattern[position]
        end = _end_of_set(pattern, position) if character == "[" else -1
        if character == "*":
            parts.append(_STAR)
        elif character == "?":
            parts.append(_anything)
        elif end > 0:
            parts.append(_one_of(pattern[position + 1 : end]))
            position = end
        else:
            parts.append(character.__eq__)
        position += 1
    return tuple(parts)


def _end_of_set(pattern: str, start: int) -> int:
    """Return where the set that begins at *start* ends, or -1: a first ``]`` is one of its characters."""
    first = start + 1 + pattern.startswith("!", start + 1)
    return pattern.find("]", first + 1)


def _one_of(text: str) -> Match:
    """Return what matches one of the characters and ranges in *text*, or none of them after a ``!``."""
    is_negated = text.startswith("!")
    ranges: list[tuple[str, str]] = []
    position = int(is_negated)
    while position < len(text):
        is_range = text.startswith("-", position + 1) and position + 2 < len(text)
        ranges.append((text[position], text[position + 2] if is_range else text[position]))
        position += 3 if is_range else 1
    return lambda character: any(low <= character <= high for low, high in ranges) is not is_negated


def _anything(_character: str) -> bool:
    return True


def _nothing(_character: str) -> bool:
    return False
