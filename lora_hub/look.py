"""What registries have, and what adapters are, without moving weights."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from lora_hub import reference as references
from lora_hub.adapter_directory import read_adapter
from lora_hub.ancestry import Parent, parents_of
from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.manifest import Manifest
from lora_hub.documents.signers import Signer
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import PolicyError
from lora_hub.reference import AdapterRef
from lora_hub.registry.locate import RegistryLike, as_registry, online_registry
from lora_hub.registry.pull import find_in_store
from lora_hub.registry.registry import Found, check_may_connect
from lora_hub.registry.resolve import resolve
from lora_hub.registry.store import default_store
from lora_hub.registry.terms import current_terms
from lora_hub.version import Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What an adapter is by its small files: no weights were read unless it is a directory.

    ``is_trusted`` is None for a directory, which is trusted by being named; ``reason`` says why it is or not, and
    ``signers`` whose signatures were verified. ``modules`` is None where no tensor was looked at.
    ``parents`` are the adapters that it was composed of, with their own as far as they are on this machine.
    """

    source: str
    digest: str
    manifest: Manifest
    config: AdapterConfig
    reference: AdapterRef | None = None
    commit: str | None = None
    is_trusted: bool | None = None
    reason: str = ""
    signers: tuple[Signer, ...] = ()
    yanked: str | None = None
    modules: int | None = None
    parents: tuple[Parent, ...] = ()


def info(source: str | os.PathLike[str] | AdapterRef, *, registry: RegistryLike = None) -> Description:
    """Return what the adapter *source*, a directory or a reference, is. On the Hub: at most four small requests."""
    named = references.parse(source)
    if isinstance(named, Path):
        return _with_parents(_describe(read_adapter(named)), named.absolute().parent)
    return _with_parents(_published(named, registry))


def _with_parents(description: Description, beside: Path | None = None) -> Description:
    lineage = description.manifest.lineage
    if lineage is None:
        return description
    return dataclasses.replace(description, parents=parents_of(lineage, default_store(), beside=beside))


def _published(named: AdapterRef, registry: RegistryLike) -> Description:
    opened, terms = as_registry(registry), current_terms()
    kept = None
    with contextlib.suppress(PolicyError):  # it is described all the same
        kept = find_in_store(named, opened, default_store(), terms, named.digest)
    if kept is not None:
        return dataclasses.replace(
            _describe(kept.adapter),
            source=opened.url,
            reference=kept.reference,
            commit=kept.commit,
            is_trusted=True,
            reason=kept.reason,
            yanked=kept.yanked,
        )
    check_may_connect(opened, offline=terms.offline, why=f"`{named}` is not in the store, and")
    choice = resolve(named, opened, terms)
    published, decision = choice.published, choice.verdict.decision
    return Description(
        source=opened.url,
        digest=published.digest,
        manifest=published.document,
        config=published.read_config(),
        reference=published.reference,
        commit=published.snapshot.commit,
        is_trusted=decision.refusal is None,
        reason=decision.reason,
        signers=decision.signers,
        yanked=choice.yanked,
    )


def _describe(adapter: VerifiedAdapter) -> Description:
    return Description(
        source=adapter.source,
        digest=adapter.digest,
        manifest=adapter.manifest,
        config=adapter.config,
        reference=adapter.manifest.reference,
        modules=len(adapter.layout.modules),
        signers=adapter.signers,
    )


def list_adapters(prefix: str = "", *, registry: RegistryLike = None) -> dict[str, list[Version]]:
    """Return the versions, newest first, of every adapter of the registry whose ``org/task`` begins with *prefix*.

    On the Hub, *prefix* must name an organisation: ``org/``.
    """
    opened = online_registry(registry)
    listed = {prefix: opened.listing(AdapterRef.parse(prefix))} if AdapterRef.is_name(prefix) else {}
    if not any(listing.versions for listing in listed.values()):
        listed = {name: opened.listing(AdapterRef.parse(name)) for name in opened.names(prefix)}
    return {name: list(listing.versions)[::-1] for name, listing in listed.items()}


def search(text: str = "", *, base: str | None = None, limit: int = 20, registry: RegistryLike = None) -> list[Found]:
    """Return at most *limit* adapters whose name holds *text* and that were trained on the base model *base*."""
    return list(online_registry(registry).search(text, base=base, limit=limit))
