"""Push and pull: between a directory, a registry and the local store, every byte checked on the way."""

from __future__ import annotations

import datetime as dt
import os
from dataclasses import dataclass
from pathlib import Path

from lora_hub.adapter_directory import read_files
from lora_hub.documents.manifest import MANIFEST_NAME, differs, publish
from lora_hub.documents.verified_adapter import VerifiedAdapter, manifest_digest, verify
from lora_hub.errors import (
    IntegrityError,
    MalformedError,
    NotFoundError,
    RegistryError,
    UsageError,
    VersionConflictError,
)
from lora_hub.reference import AdapterRef
from lora_hub.registry.registry import PublishedVersion, Registry, resolve
from lora_hub.registry.store import Store

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What `push` did: ``is_new`` is False if the registry had the same content under this version already."""

    reference: AdapterRef
    digest: str
    registry: str
    is_new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """What `pull` brought: an exact version, proven, in a directory of the local store that PEFT can load."""

    reference: AdapterRef
    digest: str
    path: Path
    adapter: VerifiedAdapter


def push(directory: Path, reference: AdapterRef, registry: Registry) -> Pushed:
    """Publish the adapter in *directory* as the exact version *reference*; nothing is written into *directory*.

    Raises:
        UsageError: *reference* names no exact version.
        IntegrityError, MalformedError: The directory holds no adapter that could ever be applied.
        VersionConflictError: The version exists with other content.
    """
    if reference.version is None:
        raise UsageError(f"`{reference}` names no exact version to publish", hint=f"write `{reference.name}@1.0.0`")
    files = read_files(directory)
    derived = verify(files, source=str(directory)).manifest.to_bytes()
    draft = bytes(files.get(MANIFEST_NAME, derived))
    content = publish(draft, reference=reference, created=_now())
    verify({**files, MANIFEST_NAME: content}, source=str(directory))
    is_new = registry.publish(reference, {**files, MANIFEST_NAME: content})
    digest = manifest_digest(content) if is_new else _adopt(registry, reference, content)
    return Pushed(reference=reference, digest=digest, registry=registry.url, is_new=is_new)


def _adopt(registry: Registry, reference: AdapterRef, mine: bytes) -> str:
    """Return the digest of what is published, which must be the same content: all but the time of its first push."""
    try:
        published = registry.manifest(reference)
        is_other = differs(published, mine)
    except (NotFoundError, MalformedError) as error:
        raise RegistryError(
            f"`{reference}` in `{registry.url}` is not whole: {error.message}", hint="ask who runs the registry"
        ) from error
    if is_other:
        raise VersionConflictError(
            f"`{reference}` is published in `{registry.url}` with other content ({manifest_digest(published)})",
            hint="a published version never changes: publish the next one",
        )
    verify(registry.files(reference), source=str(reference))
    return manifest_digest(published)


def _now() -> str:
    """Return the time of publication, which a build may fix: https://reproducible-builds.org/specs/source-date-epoch."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    try:
        moment = dt.datetime.now(dt.UTC) if fixed is None else _EPOCH + dt.timedelta(seconds=_natural(fixed))
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"SOURCE_DATE_EPOCH is {fixed!a}, expected seconds since 1970", hint="unset it, or mend it"
        ) from error
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _natural(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)


def pull(reference: AdapterRef, registry: Registry, store: Store) -> Pulled:
    """Bring the version that *reference* selects into *store*, prove it, and return it.

    An exact version or digest that the store has needs no registry.

    Raises:
        NotFoundError: No such adapter or version.
        IntegrityError: Bytes do not match the manifest, or the manifest is that of another version.
        PolicyError: The registry published something else under this version before.
    """
    kept = _find_in_store(reference, registry, store)
    if kept is not None:
        return kept
    published = resolve(registry, reference)
    digest = manifest_digest(published.manifest)
    if reference.digest is None:
        # Who names the digest has said which content is meant; everybody else gets what it was when first seen.
        store.check_unchanged(registry.url, published.reference, digest)
    try:
        adapter = store.read(digest)
    except NotFoundError:
        adapter = _fetch(published, digest, registry, store)
    store.remember(registry.url, published.reference, digest)
    return _pulled(published.reference, adapter, store)


def _find_in_store(reference: AdapterRef, registry: Registry, store: Store) -> Pulled | None:
    """Return what needs no registry: a digest, or a version that this registry was seen to publish under one."""
    digest = reference.digest
    if digest is None and reference.version is not None:
        digest = store.known_digest(registry.url, reference)
    if digest is None:
        return None
    try:
        adapter = store.read(digest)
    except NotFoundError:
        return None
    exact = adapter.manifest.reference
    if exact is None or exact.name != reference.name:
        raise IntegrityError(
            f"`{digest}` is {exact or 'an adapter without a name'}, not `{reference.name}`",
            hint="check the digest that was asked for",
        )
    return _pulled(exact, adapter, store)


def _fetch(published: PublishedVersion, digest: str, registry: Registry, store: Store) -> VerifiedAdapter:
    reference = published.reference
    # The manifest that was resolved is the one that counts, also if the registry would hand out another one now.
    files = {**registry.files(reference), MANIFEST_NAME: published.manifest}
    adapter = verify(files, source=str(reference))
    if adapter.manifest.reference != reference:
        raise IntegrityError(
            f"`{registry.url}` hands out {adapter.manifest.reference or 'a draft'} as `{reference}` ({digest})",
            hint="the registry was tampered with or copied wrongly: ask who runs it",
        )
    store.add(adapter, files)
    return adapter


def _pulled(reference: AdapterRef, adapter: VerifiedAdapter, store: Store) -> Pulled:
    return Pulled(reference=reference, digest=adapter.digest, path=store.path(adapter.digest), adapter=adapter)
