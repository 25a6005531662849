"""What stands out in an inspection, in sentences."""

from __future__ import annotations

from collections.abc import Iterator

from lora_hub.inspecting.findings import AdapterDeltas, Inspection
from lora_hub.inspecting.markup import elided, figure_of, percent
from lora_hub.inspecting.relations import Pair, chance_of_conflict

ALIKE = 0.4  # of a subspace, and well above chance: no accident
FAR_ABOVE_CHANCE = 5  # times
_WEAK, _STRONG = 0.9, 1.1  # interference outside of this is told


def remarks(inspection: Inspection) -> list[str]:
    """Return a sentence for each thing that whoever composes these adapters should know."""
    return [
        *(sentence for adapter in inspection.adapters for sentence in _of_adapter(adapter)),
        *(sentence for pair in inspection.pairs for sentence in _of_pair(inspection, pair)),
        *_of_all(inspection),
    ]


def _of_adapter(adapter: AdapterDeltas) -> Iterator[str]:
    zero = sum(not module.singular_values for module in adapter.modules)
    if zero:
        yield f"{adapter.name}: {zero} of {len(adapter.modules)} modules change nothing."
    if adapter.wasted:
        stored = sum(module.r for module in adapter.modules)
        dead = f", {adapter.dead} of them zero in the file" if adapter.dead else ""
        yield (
            f"{adapter.name}: {adapter.wasted:,} of {stored:,} stored ranks are wasted{dead}; a lower rank would hold "
            "the same."
        )
    if adapter.heads:
        names = ", ".join(elided(head, 60) for head in adapter.heads[:4]) + (", …" if len(adapter.heads) > 4 else "")  # noqa: PLR2004
        yield f"{adapter.name}: replaces {names}; what is replaced has no delta, and is not compared."


def _of_pair(inspection: Inspection, pair: Pair) -> Iterator[str]:
    one, other = (inspection.adapters[position].name for position in (pair.one, pair.other))
    if pair.scale is not None:
        yield f"{other} is a copy of {one}, times {figure_of(pair.scale)} (cosine {pair.cosine:.4f})."
        return
    if not pair.modules:
        yield f"{one} and {other} adapt no module in common."
    for side, overlap in (("write to the same outputs", pair.outputs), ("read the same inputs", pair.inputs)):
        if overlap.shared > max(ALIKE, FAR_ABOVE_CHANCE * overlap.chance):
            yield (
                f"{one} and {other} {side}: their subspaces share {percent(overlap.shared)} "
                f"(chance: {percent(overlap.chance)})."
            )


def _of_all(inspection: Inspection) -> Iterator[str]:
    found = inspection.interference
    if found is not None and not _WEAK <= found <= _STRONG:
        what = "cancel each other" if found < 1 else "reinforce each other"
        yield f"Added up, the adapters {what}: the sum has {percent(found)} of the energy of its parts."
    conflict = inspection.conflict
    if conflict is not None and conflict.contested:
        looked = "all" if conflict.rows == conflict.of else f"{conflict.rows:,} of {conflict.of:,.0f}"
        counts = {len(module.adapters) for module in inspection.shared}
        chance = f" (chance: {percent(chance_of_conflict(counts.pop()))})" if len(counts) == 1 else ""
        yield (
            f"Signs contradict each other in {percent(conflict.rate)} of the entries that several adapters "
            f"change{chance}; an election of signs loses {percent(conflict.lost_share)} of their mass "
            f"({looked} rows looked at)."
        )
