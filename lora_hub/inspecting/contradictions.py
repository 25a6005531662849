"""Charts of sign conflict and interference from layer to layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self
from xml.etree.ElementTree import Element

from lora_hub.inspecting.axes import Axis, Frame
from lora_hub.inspecting.layers import Place, by_place, labels
from lora_hub.inspecting.lines import COLOURS, Line, draw_lines, level
from lora_hub.inspecting.markup import figure_of, percent
from lora_hub.inspecting.relations import SharedModule, chance_of_conflict, share

MAX_TELLING = 4  # adapters, of whose entries some are not in conflict


class Layers(NamedTuple):
    """Modules that several adapters change, where they stand: by projection and layer."""

    numbers: list[int]
    labels: dict[str, str]  # of the projections
    places: dict[Place, list[SharedModule]]

    @classmethod
    def of(cls, shared: Sequence[SharedModule], limit: int) -> Self:
        """Return those of *shared* that are in a layer, the first *limit* of these."""
        places = by_place({module.path: module for module in shared})
        numbers = sorted({place.layer for place in places if place.layer is not None})
        kinds = labels({place.kind for place in places if place.layer is not None})
        return cls(numbers[:limit], dict(list(kinds.items())[:COLOURS]), places)

    def lines(
        self, measure: Callable[[Sequence[SharedModule]], float | None], spell: Callable[[float], str]
    ) -> list[Line]:
        """Return a line for each projection: *measure* of its modules in each layer, in words as *spell* has them."""
        lines = []
        for kind, label in self.labels.items():
            found = {n: measure(self.places[Place(n, kind)]) for n in self.numbers if Place(n, kind) in self.places}
            points = [(float(n), y, f"layer {n}, {label}: {spell(y)}") for n, y in found.items() if y is not None]
            lines.append(Line(label, points))
        return lines

    @property
    def axis(self) -> Axis:
        """The layers, from the first to the last."""
        return Axis.counting("layer", self.numbers[0], self.numbers[-1])


def conflict_by_layer(layers: Layers) -> tuple[str, Element]:
    """Return what is drawn, layer by layer, and its chart: how much the signs of the adapters contradict each other.

    Of many adapters some two disagree about nearly every entry; how much of them an election loses still tells.
    """
    counts = {len(module.adapters) for modules in layers.places.values() for module in modules}
    is_telling = max(counts) <= MAX_TELLING
    what = "Sign conflict by layer" if is_telling else "Mass that an election of signs loses, by layer"
    lines = layers.lines(_conflict if is_telling else _lost, percent)
    chance = chance_of_conflict(max(counts)) if is_telling and len(counts) == 1 else 0.0
    highest = max((y for line in lines for _, y, _ in line.points), default=0.0)
    axis = Axis.shares("entries in conflict" if is_telling else "mass lost", max(highest, chance))
    frame = Frame(x=layers.axis, y=axis)
    known = level(frame, chance, f"chance {percent(chance)}") if chance else ()
    return what, frame.draw(f"{what} and projection", *known, *draw_lines(frame, lines))


def interference_by_layer(layers: Layers) -> Element:
    """Return the energy of the sum over the sum of the energies, layer by layer."""
    lines = layers.lines(_interference, figure_of)
    highest = max((y for line in lines for _, y, _ in line.points), default=0.0)
    frame = Frame(x=layers.axis, y=Axis.from_zero("sum / parts", max(highest, 1.5)))
    says = "Interference by layer and projection: 1 where adapters are orthogonal, less where they cancel."
    return frame.draw(says, *level(frame, 1, "orthogonal"), *draw_lines(frame, lines))


def _conflict(modules: Sequence[SharedModule]) -> float | None:
    conflicts = [module.conflict for module in modules]
    return share(sum(one.conflicting for one in conflicts), sum(one.contested for one in conflicts))


def _lost(modules: Sequence[SharedModule]) -> float | None:
    conflicts = [module.conflict for module in modules]
    return share(sum(one.lost for one in conflicts), sum(one.mass for one in conflicts))


def _interference(modules: Sequence[SharedModule]) -> float | None:
    found = [module.interference for module in modules if module.interference is not None]
    return sum(found) / len(found) if found else None
