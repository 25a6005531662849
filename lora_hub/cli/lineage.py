"""How the lineage of an adapter is shown: as a tree, and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from lora_hub.cli.output import shown

if TYPE_CHECKING:
    from lora_hub.ancestry import Parent
    from lora_hub.documents.lineage import Lineage, LineageInput

_FIRST = {"rule", "space"}
_MAX_VALUE = 60  # characters of a value of the recipe


def lineage_to_json(lineage: Lineage, parents: Sequence[Parent]) -> dict[str, Any]:
    """Return *lineage*, and in each input its own where that is known."""
    document = lineage.to_json()
    for entry, parent in zip(document["inputs"], parents, strict=True):
        entry["reference"] = str(parent.input.reference) if parent.input.reference else None
        entry["lineage"] = None if parent.lineage is None else lineage_to_json(parent.lineage, parent.parents)
    return document


def lineage_lines(lineage: Lineage, parents: Sequence[Parent]) -> Iterator[str]:
    """Yield the lines of the tree: how it was made, and below that each adapter that went in."""
    yield _made(lineage)
    for position, parent in enumerate(parents):
        is_last = position == len(parents) - 1
        yield ("└─ " if is_last else "├─ ") + _input(parent.input)
        if parent.lineage is not None:
            for line in lineage_lines(parent.lineage, parent.parents):
                yield ("   " if is_last else "│  ") + line


def _made(lineage: Lineage) -> str:
    base = [f"of {' '.join(filter(None, (lineage.base.repo, lineage.base.revision)))}"] if lineage.base.repo else []
    parts = [lineage.kind, *base, *_recipe(lineage), *_measured(lineage), f"by {lineage.tool}"]
    return shown(", ".join(parts))


def _recipe(lineage: Lineage) -> Iterator[str]:
    """Yield what the recipe says, whatever that is: it may be one of a later version."""
    for table in ("method", "output"):
        values = lineage.recipe.get(table)
        if isinstance(values, dict):
            for key, value in sorted(values.items(), key=lambda item: item[0] not in _FIRST):
                text = str(value) if isinstance(value, str | int | float) else "…"
                yield f"{key} {text[:_MAX_VALUE]}"
    layers = lineage.recipe.get("layers")
    if isinstance(layers, list) and layers:
        yield f"other weights in some layers ({len(layers)})"


def _measured(lineage: Lineage) -> Iterator[str]:
    for key, value in lineage.measured.items():
        yield f"{key.replace('_', ' ')} {value if isinstance(value, str) else format(value, '.6g')}"


def _input(one: LineageInput) -> str:
    name = str(one.reference) if one.version or one.commit else one.name or one.id
    unsigned = "from a directory" if one.name is None else "unsigned"
    signers = f"signed by {', '.join(one.signers)}" if one.signers else unsigned
    return shown(f"{one.weight:g}  {name}  {one.digest}  {signers}")
