"""The adapters that an adapter was made of, and those that these were made of, as far as this machine knows them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_hub.adapter_directory import read_manifest
from lora_hub.documents.lineage import Lineage, LineageInput
from lora_hub.documents.verified_adapter import manifest_digest
from lora_hub.errors import LoraHubError
from lora_hub.registry.store import Store

MAX_DEPTH = 16  # generations


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """One adapter that went in, and its own lineage if it has one that is known here.

    ``parents`` is empty where that is unknown, where the same adapter was drawn before, and beyond `MAX_DEPTH`.
    """

    input: LineageInput
    lineage: Lineage | None = None
    parents: tuple[Parent, ...] = ()


def parents_of(lineage: Lineage, store: Store, *, beside: Path | None = None) -> tuple[Parent, ...]:
    """Return the adapters in *lineage*, each with its own: from *store*, or from a directory called so in *beside*.

    A manifest counts only if it has the digest that the lineage names, and each adapter is looked into once: so
    whatever stands in the documents, there are at most as many nodes as known adapters have inputs.
    """
    return _parents(lineage, store, beside, set(), MAX_DEPTH)


def _parents(
    lineage: Lineage, store: Store, beside: Path | None, seen: set[str], generations: int
) -> tuple[Parent, ...]:
    parents = []
    for one in lineage.inputs:
        known = None
        if one.digest not in seen and generations > 1:
            seen.add(one.digest)
            known = _lineage_of(one, store, beside)
        above = () if known is None else _parents(known, store, beside, seen, generations - 1)
        parents.append(Parent(input=one, lineage=known, parents=above))
    return tuple(parents)


def _lineage_of(one: LineageInput, store: Store, beside: Path | None) -> Lineage | None:
    for place, is_own in places_of(one, store, beside):
        with contextlib.suppress(LoraHubError):
            content, manifest = read_manifest(place, is_own=is_own)
            if manifest_digest(content) == one.digest:
                return manifest.lineage
    return None


def places_of(one: LineageInput, store: Store, beside: Path | None) -> Iterator[tuple[Path, bool]]:
    """Yield the directories in which *one* may lie on this machine, and whether that is a place of ours."""
    yield store.path(one.digest), True
    if beside is not None and one.name is None:
        yield beside / one.id, False
