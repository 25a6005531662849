"""Whether a composed adapter is what its lineage says: the same inputs by the same recipe, once more."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora_hub import reference as references
from lora_hub.adapter_directory import read_adapter, read_with_files
from lora_hub.ancestry import places_of
from lora_hub.documents.lineage import BIT, Lineage, LineageInput
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.documents.verified_adapter import verify as verify_files
from lora_hub.errors import IntegrityError, LoraHubError, MalformedError, NotFoundError, UsageError
from lora_hub.extras import needs_torch
from lora_hub.reference import AdapterRef, PathLike
from lora_hub.registry import pull as pulls
from lora_hub.registry.locate import RegistryLike, as_registry
from lora_hub.registry.store import default_store
from lora_hub.registry.terms import current_terms
from lora_hub.vouch import Verified, verify

if TYPE_CHECKING:
    from lora_hub.composing.compare import Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """A verified adapter, how it compares with what its recipe gives, and why each input was taken, by its id.

    ``yanked`` has those inputs that their publishers took back since, and why.
    """

    verified: Verified
    comparison: Comparison
    reasons: Mapping[str, str]
    yanked: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Found:
    """An input, why it may be used, and why its publisher asks not to, if that is so."""

    adapter: VerifiedAdapter
    reason: str
    yanked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sources:
    """Where inputs are looked for: in a registry, in directories by their id, beside the adapter."""

    registry: RegistryLike
    directories: Mapping[str, Path]
    beside: Path | None


def recompute(
    source: PathLike | AdapterRef,
    *,
    registry: RegistryLike = None,
    key: PathLike | None = None,
    inputs: Mapping[str, PathLike] | None = None,
) -> Recomputed:
    """Verify the adapter that *source* names, compose it anew from the inputs in its lineage, and compare.

    The inputs are asked for by name and version, must be trusted as ever, and have the digests that the lineage says.
    A directory that is an unsigned draft is taken for what its lineage says: that is what is looked into.

    Args:
        source: A directory or a reference.
        registry: A URL or a directory, where *source* and the inputs are published.
        key: The file of a public key that must have signed *source*; by default the trust policy decides.
        inputs: Directories of inputs, by their id in the lineage; without, those that came from a directory are looked
            for in the local store and, called after their id, beside *source*.

    Raises:
        UsageError: It was not composed, or *inputs* names what did not go in.
        NotFoundError: An input is not to be had with the digest that the lineage says.
        UntrustedError, PolicyError: The trust policy refuses *source* or an input.
        IntegrityError: It is not what its lineage says.
    """
    verified = _verified(source, registry, key)
    lineage = _lineage_of(verified.adapter, str(source), set(inputs or {}))
    named = references.parse(source)
    sources = _Sources(
        registry=registry,
        directories={name: Path(place) for name, place in (inputs or {}).items()},
        beside=named.absolute().parent if isinstance(named, Path) else None,
    )
    found = {one.id: _input(one, sources) for one in lineage.inputs}
    expected = _compose({name: one.adapter for name, one in found.items()}, lineage)
    from lora_hub.composing.compare import Agreement, compare

    comparison = compare(verified.adapter, expected)
    if lineage.reproducible == BIT and comparison.agreement is not Agreement.BIT_EQUAL:
        raise IntegrityError(
            f"`{source}` should be bit-equal to what its recipe gives, says its lineage, and is {comparison.agreement}",
            hint="do not use it",
        )
    return Recomputed(
        verified=verified,
        comparison=comparison,
        reasons={name: one.reason for name, one in found.items()},
        yanked={name: one.yanked for name, one in found.items() if one.yanked is not None},
    )


def _verified(source: PathLike | AdapterRef, registry: RegistryLike, key: PathLike | None) -> Verified:
    named = references.parse(source)
    if isinstance(named, Path) and key is None:
        adapter = read_adapter(named)
        if adapter.manifest.reference is None:
            return Verified(adapter=adapter, reason="nobody signed it: it is a draft")
    return verify(source, registry=registry, key=key)


def _lineage_of(adapter: VerifiedAdapter, source: str, given: set[str]) -> Lineage:
    lineage = adapter.manifest.lineage
    if lineage is None or lineage.kind != "compose":
        what = "has no lineage" if lineage is None else f"is of the kind `{lineage.kind}`"
        raise UsageError(f"`{source}` {what}", hint="only what `lora-hub compose` made can be composed anew")
    ids = {one.id for one in lineage.inputs}
    if not given <= ids:
        raise UsageError(
            f"no input of `{source}` is called `{min(given - ids)}`", hint=f"it has {', '.join(sorted(ids))}"
        )
    return lineage


def _input(one: LineageInput, sources: _Sources) -> _Found:
    found = _looked_up(one, sources)
    if found.adapter.digest != one.digest:
        raise NotFoundError(
            f"the input `{one.id}` is to be had as {found.adapter.digest}, the lineage says {one.digest}",
            hint=_hint(one),
        )
    return found


def _looked_up(one: LineageInput, sources: _Sources) -> _Found:
    directory = sources.directories.get(one.id)
    if directory is not None:
        return _Found(read_adapter(directory), "its directory was named")
    if one.reference is not None:
        try:
            pulled = pulls.pull(one.reference, as_registry(sources.registry), default_store(), current_terms())
        except LoraHubError as error:
            raise error.within(f"input `{one.id}`") from error
        return _Found(pulled.adapter, pulled.reason, pulled.yanked)
    for place, is_own in places_of(one, default_store(), sources.beside):
        with contextlib.suppress(NotFoundError, MalformedError, IntegrityError):
            adapter, _ = read_with_files(place, is_own=is_own)
            if adapter.digest == one.digest:
                return _Found(adapter, "it has the digest that the lineage says")
    raise NotFoundError(
        f"the input `{one.id}`, {one.digest}, came from a directory and is not on this machine", hint=_hint(one)
    )


def _hint(one: LineageInput) -> str:
    return f"name a directory that has it: `--input {one.id}=DIR`"


def _compose(adapters: Mapping[str, VerifiedAdapter], lineage: Lineage) -> VerifiedAdapter:
    with needs_torch("composing"):
        from lora_hub.composing.compose import compose
        from lora_hub.composing.inputs import Input
    recipe = lineage.to_recipe()
    inputs = [Input(name=one.id, adapter=adapters[one.id]) for one in recipe.inputs]
    return verify_files(compose(inputs, recipe, allow_other_base=True).files, source="what the recipe gives")
