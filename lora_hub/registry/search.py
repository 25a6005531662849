"""Search where nothing indexes the adapters: by the manifest of the newest version of each."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

from lora_hub.errors import IntegrityError, MalformedError, NotFoundError
from lora_hub.reference import AdapterRef
from lora_hub.registry.published import look_up
from lora_hub.registry.registry import Found, Registry


def search_manifests(registry: Registry, text: str, *, base: str | None, limit: int) -> Iterator[Found]:
    """Yield at most *limit* adapters of *registry* whose name holds *text* and that were trained on *base*."""
    found = (_describe(registry, name) for name in registry.names("") if text.lower() in name.lower())
    wanted = (entry for entry in found if base is None or entry.base == base)
    return itertools.islice(wanted, limit)


def _describe(registry: Registry, name: str) -> Found:
    reference = AdapterRef.parse(name)
    # What cannot be read is still there; it only has no base that is known.
    with contextlib.suppress(NotFoundError, MalformedError, IntegrityError):
        version, revision = list(registry.listing(reference).versions.items())[-1]
        return Found(name=name, base=look_up(registry, reference.at(version), revision).document.base.repo)
    return Found(name=name)
