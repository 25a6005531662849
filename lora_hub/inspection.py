"""inspect: what adapters change, module by module, and how several of them get on with each other."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_hub import api
from lora_hub import reference as references
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import UsageError
from lora_hub.extras import needs_torch
from lora_hub.reference import AdapterRef
from lora_hub.registry.locate import RegistryLike

if TYPE_CHECKING:
    from lora_hub.inspecting.findings import Inspection

Source = str | os.PathLike[str] | AdapterRef | VerifiedAdapter


def inspect_adapters(
    *sources: Source,
    registry: RegistryLike = None,
    allow_other_base: bool = False,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> Inspection:
    """Return norms, spectra and ranks of the deltas of each adapter, and overlap and conflict of every two.

    From the factors alone, in float64: the base model is not needed, and no ``[out, in]`` matrix is formed.

    Args:
        sources: Directories or references.
        registry: A URL or a directory; by default ``LORA_HUB_REGISTRY``, else the Hub.
        allow_other_base: Compare adapters of siblings of one base too.
        progress: Wraps the modules as they are gone through.

    Raises:
        CompatibilityError: They are of different bases, or of shapes that differ.
        NotFoundError, MalformedError, UntrustedError: What `pull` raises for one of them.
    """
    with needs_torch("inspecting adapters"):
        from lora_hub.composing.inputs import Input, common_base
        from lora_hub.inspecting.analysis import analyse
    if not sources:
        raise UsageError("no adapter is named", hint="name one or more, as references or directories")
    adapters = [s if isinstance(s, VerifiedAdapter) else api.load(s, registry=registry) for s in sources]
    names = _distinct([_name(source) for source in sources])
    inputs = [Input(name=name, adapter=adapter) for name, adapter in zip(names, adapters, strict=True)]
    common_base(inputs, allow_other_base=allow_other_base)
    return analyse(inputs, progress)


def to_json(inspection: Inspection) -> bytes:
    """Return *inspection* as the JSON of ``lora-hub schema inspection``: same adapters, same bytes."""
    from lora_hub.inspecting.document import document

    return document(inspection)


def to_html(inspection: Inspection) -> bytes:
    """Return *inspection* as one page that loads nothing and runs no script: same adapters, same bytes."""
    from lora_hub.inspecting.page import page

    return page(inspection)


def _name(source: Source) -> str:
    """Return what *source* is called, in characters that a terminal and a page can show."""
    if isinstance(source, VerifiedAdapter):
        name = str(source.manifest.reference or Path(source.source).name)
    else:
        named = references.parse(source)
        name = (named.resolve().name or str(named)) if isinstance(named, Path) else str(named)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in name)


def _distinct(names: Sequence[str]) -> Iterator[str]:
    """Yield *names*, the second of a name as ``name #2``."""
    seen: Counter[str] = Counter()
    for name in names:
        seen[name] += 1
        yield name if seen[name] == 1 else f"{name} #{seen[name]}"
