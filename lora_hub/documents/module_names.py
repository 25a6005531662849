r"""How PEFT's config names modules, decided without ever running a regular expression from a file.

PEFT: a list entry matches a module whose path is the entry or ends with ``.entry``; a key of ``rank_pattern`` or
``alpha_pattern`` matches a path ``m`` when ``re.match(r"(.*\.)?(key)$", m)`` does (peft/tuners/tuners_utils.py,
``get_pattern_key``). Nearly all keys in the wild are plain names; one that needs a real regular expression is refused.
"""

from __future__ import annotations

import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Self

from lora_hub.documents.fields import printable
from lora_hub.errors import MalformedError

_ANY = ""  # an unescaped dot: any one character
_PLAIN = re.compile(r"\^?(?:[A-Za-z0-9_.-]|\\[.\-_]){1,512}\$?", re.ASCII)


def is_named(path: str, entries: AbstractSet[str]) -> bool:
    """Whether one of *entries* names the module at *path*: its whole path, or the last components of it."""
    if path in entries or path.rpartition(".")[2] in entries:  # as nearly all that are written do
        return True
    return bool(entries) and not entries.isdisjoint(names_of(path))


def names_of(path: str) -> list[str]:
    """Return every entry that would name the module at *path*: the path itself, and each of its endings."""
    names = [path]
    while "." in path:
        path = path.partition(".")[2]
        names.append(path)
    return names


def owners_of(path: str) -> list[str]:
    """Return the paths of the modules that the module or parameter at *path* is in, outermost first."""
    owners = []
    while "." in path:
        path = path.rpartition(".")[0]
        owners.append(path)
    return owners[::-1]


@dataclass(frozen=True, slots=True)
class ModulePattern:
    """A key of ``rank_pattern`` or ``alpha_pattern`` that is a name: literal characters, dots, optional anchors."""

    key: str
    characters: tuple[str, ...]
    is_anchored: bool

    @classmethod
    def parse(cls, key: str, *, where: str) -> Self:
        """Return the pattern that *key* spells; raise `MalformedError` if it needs a regular expression."""
        if not _PLAIN.fullmatch(key):
            raise MalformedError(
                f"`{where}` has the key {printable(key)}, which is a regular expression or longer than any path; "
                "lora-hub never runs one from a file",
                hint="write one key for each module name it stands for",
            )
        body = key.removeprefix("^").removesuffix("$")
        written = re.findall(r"\\?.", body)
        characters = tuple(_ANY if character == "." else character[-1] for character in written)
        return cls(key, characters, key.startswith("^"))

    def matches(self, path: str) -> bool:
        """Whether the pattern matches the module at *path*, in time linear in its length."""
        start = len(path) - len(self.characters)
        is_at_boundary = start == 0 or (start > 0 and path[start - 1] == "." and not self.is_anchored)
        return is_at_boundary and all(c in (_ANY, path[start + i]) for i, c in enumerate(self.characters))

    @classmethod
    def exactly(cls, path: str) -> Self:
        """Return the pattern that matches the module at *path* and no other."""
        return cls.parse("^" + path.replace(".", r"\."), where=path)
