"""Where the modules of an adapter lie in a checkpoint: the same path, or one that differs by one prefix for all.

A backbone that was saved alone lacks the prefix of the model with a head (``bert.``, ``model.``), and the reverse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

from lora_hub.documents.fields import printable
from lora_hub.documents.module_names import names_of
from lora_hub.errors import CompatibilityError

_WEIGHT = ".weight"


class Names(Protocol):
    """From paths of the adapter to paths of the checkpoint."""

    def __call__(self, path: str, /) -> str:
        """Return the checkpoint's path of the module, or of the parameter, at *path*."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The paths of the checkpoint are those of the adapter with *removed* taken away and *added* put in front."""

    added: str = ""
    removed: str = ""

    def __call__(self, path: str) -> str:
        """Return the checkpoint's path of the module at *path*."""
        return self.added + path.removeprefix(self.removed)


def find_names(
    paths: Iterable[str], tensors: Collection[str], *, is_optional: Callable[[str], bool], who: str
) -> Prefix | None:
    """Return how *paths* of the adapter *who* are called among *tensors*, or None where no prefix explains it.

    Args:
        paths: Of the modules that LoRA adapts; each one's weight must be there.
        tensors: The names in the checkpoint.
        is_optional: Whether the module may be missing there, as the tied output of a decoder is.
        who: The adapter, for messages.

    Raises:
        CompatibilityError: Two prefixes would do.
    """
    needed = [path for path in paths if not is_optional(path)]
    if not needed or all(path + _WEIGHT in tensors for path in needed):
        return Prefix()
    strange = next(path for path in needed if path + _WEIGHT not in tensors)
    found = [
        prefix
        for prefix in (*_longer(strange, tensors), *_shorter(strange, tensors))
        if all(prefix(path) + _WEIGHT in tensors for path in needed)
    ]
    if len(found) > 1:
        places = " and ".join(f"`{prefix(strange)}{_WEIGHT}`" for prefix in found[:2])
        raise CompatibilityError(
            f"`{strange}` of `{who}` may be {places} in the base",
            hint="merge into the part of the model that the adapter was trained on",
        )
    return found[0] if found else None


def _longer(path: str, tensors: Iterable[str]) -> list[Prefix]:
    ending = f".{path}{_WEIGHT}"
    return [Prefix(added=name.removesuffix(ending) + ".") for name in tensors if name.endswith(ending)]


def _shorter(path: str, tensors: Collection[str]) -> list[Prefix]:
    return [Prefix(removed=path.removesuffix(rest)) for rest in names_of(path)[1:] if rest + _WEIGHT in tensors]


def not_found(path: str, tensors: Iterable[str], *, who: str) -> CompatibilityError:
    """Return the error about a module at *path* of the adapter *who* that the checkpoint does not have."""
    leaf = path.rpartition(".")[2]
    like = next((name for name in tensors if name.endswith(f"{leaf}{_WEIGHT}")), None)
    near = f"; the base has {printable(like)}" if like else ""
    return CompatibilityError(
        f"`{who}` adapts `{path}`, but the base has no tensor `{path}{_WEIGHT}`, with or without a prefix{near}",
        hint="name the base that the adapter was trained on (`lora-hub info` names it, if it is known)",
    )
