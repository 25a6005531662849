"""What a family of models looks like, as data: where its attention projections are and how they lie in their module.

An architecture sees names, shapes and the config as a mapping, never a torch object: the same rule reads a live model
and the header of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PARTS = ("q", "k", "v", "o")

Rows = tuple[tuple[int, int], ...]  # half-open runs of output features, rising
Layout = Callable[[tuple[str, ...], int, Mapping[str, Any]], dict[str, Rows]]


def side_by_side(parts: tuple[str, ...], out_features: int, _config: Mapping[str, Any]) -> dict[str, Rows]:
    """Return the rows of *parts* that lie one after the other and are equally wide; one part fills the module."""
    if out_features % len(parts):
        raise ValueError(f"{out_features} output features do not divide into {len(parts)} equal parts")
    width = out_features // len(parts)
    return {part: ((i * width, (i + 1) * width),) for i, part in enumerate(parts)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Projection:
    """One kind of module that holds attention projections.

    Attributes:
        module: The last components of the module's path, such as ``attn.c_attn``.
        parts: Which of q, k, v, o it holds.
        layout: ``(parts, out_features, config) -> rows of each part`` along the output axis.
        fan_in_fan_out: Whether the weight is stored ``[in, out]`` (Conv1D) rather than ``[out, in]``.
    """

    module: str
    parts: tuple[str, ...]
    layout: Layout = side_by_side
    fan_in_fan_out: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.module, str) or not self.module:
            raise TypeError(f"module of a projection is {self.module!r}, expected the end of a path")
        if not isinstance(self.parts, tuple) or not self.parts or not set(self.parts) <= set(PARTS):
            raise TypeError(f"parts of the projection `{self.module}` are {self.parts!r}, expected a tuple of {PARTS}")

    def holds(self, path: str) -> bool:
        """Whether the module at *path* is of this kind."""
        return path == self.module or path.endswith(f".{self.module}")

    def rows(self, part: str, out_features: int, config: Mapping[str, Any]) -> Rows:
        """Return where *part* lies among the *out_features* outputs of the module."""
        return self.layout(self.parts, out_features, config)[part]


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A family of models that share their module names.

    Attributes:
        name: What the family is called.
        model_types: The ``config.model_type`` of its members.
        projections: Where q, k, v and o are.
    """

    name: str
    model_types: tuple[str, ...]
    projections: tuple[Projection, ...]

    def __post_init__(self) -> None:
        # `("mine")` and `(projection)` lack a comma: the first would claim the model types m, i, n and e.
        for field, kind in (("model_types", str), ("projections", Projection)):
            values = getattr(self, field)
            if not isinstance(values, tuple) or not all(isinstance(value, kind) for value in values):
                raise TypeError(
                    f"{field} of the architecture `{self.name}` is {values!r}, expected a tuple of {kind.__name__}"
                )

    def projection(self, path: str) -> Projection | None:
        """Return the projection that the module at *path* is, if it is one."""
        return next((projection for projection in self.projections if projection.holds(path)), None)
