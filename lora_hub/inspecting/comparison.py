"""The sections of the page about what several adapters have in common, and where they contradict each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from xml.etree.ElementTree import Element

from lora_hub.inspecting.blocks import MAX_COMPARED, MAX_LAYERS, figure, left_out
from lora_hub.inspecting.cells import MAX_NARROW_MATRIX, matrix, scale
from lora_hub.inspecting.contradictions import Layers, conflict_by_layer, interference_by_layer
from lora_hub.inspecting.findings import AdapterDeltas, Inspection
from lora_hub.inspecting.layers import Place
from lora_hub.inspecting.lines import key_of
from lora_hub.inspecting.markup import percent, tag
from lora_hub.inspecting.relations import Overlap, Pair


def between(inspection: Inspection) -> Iterator[Element]:
    """Yield the matrices of what every two adapters have in common."""
    if not inspection.pairs:
        return
    shown = inspection.adapters[:MAX_COMPARED]
    pairs = {(pair.one, pair.other): pair for pair in inspection.pairs}
    yield tag("h2", "How they get on with each other")
    drawings = [
        figure("Cosine of the deltas", matrix("Cosine", shown, _of(pairs, lambda p, _: p.cosine), is_share=False)),
        _how_to_read(),
        *(_overlaps(shown, pairs, side) for side in ("outputs", "inputs")),
        *(_energies(shown, pairs, side) for side in ("outputs", "inputs")),
    ]
    yield tag("div", *drawings, class_="pair three" if len(shown) <= MAX_NARROW_MATRIX else "pair")
    yield from left_out(len(inspection.adapters), MAX_COMPARED, "adapter")


def _of(pairs: Mapping[tuple[int, int], Pair], measure: Callable[[Pair, bool], float]) -> Callable[[int, int], float]:
    """Return *measure* of the pair in a row and a column; it is told whether the row is the first of the two."""

    def value(row: int, column: int) -> float:
        if row == column:
            return 1.0
        return measure(pairs[min(row, column), max(row, column)], row < column)

    return value


def _how_to_read() -> Element:
    return tag(
        "figure",
        tag("h3", "How to read these"),
        scale("1"),
        scale("\u22121", ramp="w"),
        tag(
            "figcaption",
            "Cosine: 0 where two adapters do not disturb each other when they are added up, 1 where one is the other "
            "times a number, negative where they undo each other. Overlap: the mean squared cosine of the principal "
            "angles between what they write, or read, over the modules that both change. Energy inside: how much of "
            "the delta in the row lies in the subspace of the one in the column.",
        ),
    )


def _side(pair: Pair, side: str) -> Overlap:
    return pair.outputs if side == "outputs" else pair.inputs


def _overlaps(shown: Sequence[AdapterDeltas], pairs: Mapping[tuple[int, int], Pair], side: str) -> Element:
    chances = [_side(pair, side).chance for pair in pairs.values()]
    drawing = matrix(f"Overlap of {side}", shown, _of(pairs, lambda p, _: _side(p, side).shared), is_share=True)
    what = "written" if side == "outputs" else "read"
    caption = f"By chance: {percent(max(chances))} at most."
    return figure(f"Overlap of the subspaces that are {what}", drawing, tag("figcaption", caption))


def _energies(shown: Sequence[AdapterDeltas], pairs: Mapping[tuple[int, int], Pair], side: str) -> Element:
    def inside(pair: Pair, row_is_first: bool) -> float:  # noqa: FBT001 - the one question there is
        overlap = _side(pair, side)
        return overlap.one_in_other if row_is_first else overlap.other_in_one

    drawing = matrix(f"Energy inside, {side}", shown, _of(pairs, inside), is_share=True)
    return figure(f"Energy inside the {side} of the other", drawing)


def by_layer(inspection: Inspection) -> Iterator[Element]:
    """Yield conflict and interference from layer to layer, where there are layers."""
    shared = inspection.shared
    layers = Layers.of(shared, MAX_LAYERS)
    if not layers.numbers:
        return
    is_exact = all(module.conflict.rows == module.conflict.of for module in shared)
    rows = "all rows" if is_exact else "a sample of the rows, the same in every run,"
    yield tag("h2", "Where they contradict each other")
    yield tag(
        "p",
        f"Conflict: the share of the entries of D that some adapters raise and others lower, in {rows} of each module. "
        "Interference: the energy of the sum of the adapters over the sum of their energies.",
        class_="soft",
    )
    key = list(layers.labels.values())
    yield tag(
        "div",
        figure(*conflict_by_layer(layers), key_of(key)),
        figure("Interference by layer", interference_by_layer(layers), key_of(key)),
        class_="pair",
    )
    yield from left_out(len({Place.of(module.path).layer for module in shared} - {None}), MAX_LAYERS, "layer")
