"""Where a module stands in its model, read from its path: in which layer, and which projection it is there."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeVar

from lora_hub.documents.module_names import names_of
from lora_hub.inspecting.markup import elided

T = TypeVar("T")

_LABEL = 48  # characters
_ORDER = ("q", "k", "v", "o", "gate", "up", "down")  # in which a layer uses them; others come after


class Place(NamedTuple):
    """A layer, None outside of any, and the path with every number in it as ``*``."""

    layer: int | None
    kind: str

    @classmethod
    def of(cls, path: str) -> Place:
        """Return the place of the module at *path*: the first number in it is that of the layer."""
        components = path.split(".")
        numbers = [component for component in components if _is_number(component)]
        kind = ".".join("*" if _is_number(component) else component for component in components)
        return cls(int(numbers[0]) if numbers else None, kind)


def _is_number(component: str) -> bool:
    return component.isdecimal() and len(component) < 10  # noqa: PLR2004 - no model has a billion layers


def by_place(modules: Mapping[str, T]) -> dict[Place, list[T]]:
    """Return the values of *modules*, by their paths, at their places."""
    places: defaultdict[Place, list[T]] = defaultdict(list)
    for path, value in modules.items():
        places[Place.of(path)].append(value)
    return dict(places)


def by_kind(modules: Mapping[str, T]) -> dict[str, list[T]]:
    """Return the values of *modules*, by their paths, by what projection they are: by its label, in usual order."""
    kinds: defaultdict[str, list[T]] = defaultdict(list)
    for path, value in modules.items():
        kinds[Place.of(path).kind].append(value)
    return {label: kinds[kind] for kind, label in labels(kinds).items()}


def labels(kinds: Iterable[str]) -> dict[str, str]:
    """Return for each of *kinds* its shortest ending that no other has, in the order in which layers use them."""
    ends = {kind: names_of(kind)[::-1] for kind in kinds}  # the shortest first
    owners: defaultdict[str, int] = defaultdict(int)
    for names in ends.values():
        for name in names:
            owners[name] += 1
    # A whole path may be the ending of another one; it is its own label all the same.
    chosen = {kind: next((name for name in names if owners[name] == 1), kind) for kind, names in ends.items()}
    return _shortened(dict(sorted(chosen.items(), key=lambda item: (_position(item[1]), item[1], item[0]))))


def _shortened(labels: Mapping[str, str]) -> dict[str, str]:
    """Return *labels* at a length that can be read; those that are alike then are counted."""
    seen: Counter[str] = Counter()
    found = {}
    for kind, label in labels.items():
        short = elided(label, _LABEL)
        seen[short] += 1
        found[kind] = short if seen[short] == 1 else f"{short} ({seen[short]})"
    return found


def _position(label: str) -> int:
    name = label.rpartition(".")[2]
    return next((position for position, start in enumerate(_ORDER) if name.startswith(start)), len(_ORDER))
