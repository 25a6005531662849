"""Where the modules of an adapter lie in a base: by name, with the one prefix that explains the most of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lora_hub.architecture import Architecture
from lora_hub.checking.base import Base, Shape, kind_of
from lora_hub.checkpoint.names import Prefix
from lora_hub.documents.module_names import names_of
from lora_hub.errors import PluginError
from lora_hub.plugin_manager import plugins

_WEIGHT = ".weight"
# How a quantised weight is called that has no name of its own: GPTQ and AWQ, compressed-tensors, TorchAO.
_WEIGHTS = (_WEIGHT, ".qweight", ".weight_packed", ".weight_qdata")
_LOOKED_AT = 64  # kinds of modules for which a prefix is sought
# The model types whose weights lie [in, out], as Conv1D of transformers has them.
_TRANSPOSED = frozenset({"gpt2", "imagegpt", "openai-gpt", "decision_transformer"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a module lies in the base: its tensor, its shape if that is known, and whether its own header says so."""

    path: str
    tensor: str | None
    shape: Shape | None = None
    is_read: bool = False


@dataclass(frozen=True, kw_only=True)
class Fit:
    """The modules of an adapter in a base: their names there, and which of their kind the base has."""

    base: Base
    prefix: Prefix
    places: Mapping[str, Place]

    @classmethod
    def of(cls, base: Base, paths: Iterable[str]) -> Fit:
        """Return where the modules at *paths* lie in *base*."""
        named = tuple(paths)
        prefix = _best_prefix(base, named)
        return cls(base=base, prefix=prefix, places={path: _place(base, path, prefix(path)) for path in named})

    @property
    def missing(self) -> list[str]:
        """The paths that the base has no weight for."""
        return sorted(path for path, place in self.places.items() if place.tensor is None)

    def inverse(self, path: str) -> str:
        """Return what the adapter would call the module at *path* of the base."""
        return self.prefix.removed + path.removeprefix(self.prefix.added)

    def layers(self, adapted: Iterable[str]) -> dict[str, tuple[list[str], list[str]]]:
        """Return for each kind of module among *adapted* the paths there, and those that the base has of that kind."""
        found: defaultdict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for path in adapted:
            if self.places[path].tensor is not None:
                found[kind_of(path)][0].append(path)
        for path in self._modules_of_the_base():
            if kind_of(path) in found:
                found[kind_of(path)][1].append(path)
        return dict(found)

    def _modules_of_the_base(self) -> list[str]:
        ends = tuple(_WEIGHTS)
        return [
            self.inverse(name.rpartition(".")[0])
            for name in sorted(self.base.names)
            if name.endswith(ends) and name.startswith(self.prefix.added)
        ]

    def linear_modules(self) -> list[str]:
        """Return the paths, in the adapter's words, of whatever in the base may be a linear module: a matrix."""
        return [path for path in self._modules_of_the_base() if self._may_be_matrix(path)]

    def _may_be_matrix(self, path: str) -> bool:
        shape, _ = self.base.shape(self.prefix(path) + _WEIGHT)
        return shape is None or len(shape) == 2  # noqa: PLR2004

    def expected(self, path: str, out_features: int, in_features: int) -> list[Shape]:
        """Return the shapes that the weight of the module at *path* may have in the base."""
        is_transposed = self._is_transposed(path)
        shapes: list[Shape] = [] if is_transposed else [(out_features, in_features)]
        return shapes if is_transposed is False else [*shapes, (in_features, out_features)]

    def _is_transposed(self, path: str) -> bool | None:
        """Return how the weight lies, or None where nobody says."""
        model_type = self.base.model_type
        try:
            architecture: Architecture | None = plugins().find(model_type)
        except PluginError:
            architecture = None
        projection = architecture.projection(path) if architecture else None
        if projection is not None:
            return projection.fan_in_fan_out
        if architecture is None or any(known.fan_in_fan_out for known in architecture.projections):
            return None
        return model_type in _TRANSPOSED


def _place(base: Base, path: str, name: str) -> Place:
    for end in _WEIGHTS:
        if base.has(name + end):
            shape, is_read = base.shape(name + end)
            return Place(path=path, tensor=name + end, shape=shape, is_read=is_read)
    return Place(path=path, tensor=None)


def _best_prefix(base: Base, paths: tuple[str, ...]) -> Prefix:
    """Return the prefix under which the base has the most of *paths*; none, if it has as many."""
    kinds = {kind_of(path): path for path in reversed(paths)}
    samples = list(kinds.values())[:_LOOKED_AT]
    if all(base.has(path + _WEIGHT) for path in samples):
        return Prefix()
    candidates = {Prefix(): None}
    known = {name.removesuffix(_WEIGHT) for name in (*base.names, *base.tensors) if name.endswith(_WEIGHT)}
    for path in samples:
        candidates |= {Prefix(added=n.removesuffix(path)): None for n in known if n.endswith(f".{path}")}
        candidates |= {Prefix(removed=path.removesuffix(rest)): None for rest in names_of(path)[1:] if rest in known}
    return max(candidates, key=lambda prefix: sum(base.has(prefix(path) + _WEIGHT) for path in samples))
