"""Push: from a directory into a registry, as an immutable version."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
from dataclasses import dataclass
from pathlib import Path

from lora_hub.adapter_directory import read_files
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import CARD_NAME, MANIFEST_NAME, MAX_CARD, Manifest, differs, publish
from lora_hub.documents.trust_policy import Pin
from lora_hub.documents.verified_adapter import manifest_digest, verify
from lora_hub.errors import (
    IntegrityError,
    MalformedError,
    NotFoundError,
    RegistryError,
    UsageError,
    VersionConflictError,
)
from lora_hub.files import read_file
from lora_hub.reference import AdapterRef, exact_version
from lora_hub.registry.find import find
from lora_hub.registry.journal import Journal
from lora_hub.registry.published import Published
from lora_hub.registry.registry import Registry
from lora_hub.registry.store import Store
from lora_hub.registry.trust import TrustFile

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What `push` did.

    ``is_new`` is False if the registry had the same content under this version already. ``replaced`` are pins of this
    user that said something else of this version, as of that on another Hub.
    """

    reference: AdapterRef
    digest: str
    registry: str
    is_new: bool
    commit: str | None = None
    replaced: tuple[Pin, ...] = ()


def push(directory: Path, reference: AdapterRef, registry: Registry, store: Store, trust: TrustFile) -> Pushed:
    """Publish the adapter in *directory* as the exact version *reference*; nothing is written into *directory*.

    What was published in a registry that others may write into is pinned: whoever published it trusts it.

    Raises:
        UsageError: *reference* names no exact version.
        IntegrityError, MalformedError: The directory holds no adapter that could ever be applied.
        VersionConflictError: The version exists with other content.
    """
    exact_version(reference)
    files, manifest = _prepare(directory, reference)
    if not registry.is_remote:
        return _publish(reference, registry, files, manifest)
    trust.check_can_be_extended()
    journal = Journal(store.pushes)
    try:
        pushed = _publish(reference, registry, files, journal.open(registry.url, reference, manifest))
    except VersionConflictError:
        journal.close(registry.url, reference)
        raise
    replaced = trust.add([_pin(pushed)], replace=True)
    journal.close(registry.url, reference)
    return dataclasses.replace(pushed, replaced=tuple(replaced))


def _pin(pushed: Pushed) -> Pin:
    name, version = pushed.reference.name, str(pushed.reference.version)
    return Pin(registry=pushed.registry, name=name, version=version, commit=pushed.commit, digest=pushed.digest)


def _prepare(directory: Path, reference: AdapterRef) -> tuple[dict[str, Bytes], bytes]:
    """Return the files in *directory*, proven, and the manifest bytes under which they are to be published."""
    files = read_files(directory)
    derived = verify(files, source=str(directory)).manifest.to_bytes()
    manifest = publish(bytes(files.get(MANIFEST_NAME, derived)), reference=reference, created=_now())
    Manifest.parse(manifest)  # what nobody could read again is not published for good
    with contextlib.suppress(NotFoundError):
        files[CARD_NAME] = read_file(directory / CARD_NAME, limit=MAX_CARD)
    return files, manifest


def _publish(reference: AdapterRef, registry: Registry, files: dict[str, Bytes], manifest: bytes) -> Pushed:
    publication = registry.publish(reference, {**files, MANIFEST_NAME: manifest})
    digest, commit = manifest_digest(manifest), publication.commit
    if not publication.is_new:
        published = _adopt(registry, reference, manifest)
        digest, commit = published.digest, published.snapshot.commit
    return Pushed(reference=reference, digest=digest, registry=registry.url, is_new=publication.is_new, commit=commit)


def _adopt(registry: Registry, reference: AdapterRef, mine: bytes) -> Published:
    """Return what is published, which must be the same content: all but the time of its first push."""
    try:
        published = find(registry, reference).published
        is_other = differs(published.manifest, mine)
        if not registry.is_remote:
            published.read().verify(source=published.source)
    except (NotFoundError, MalformedError, IntegrityError) as error:
        raise RegistryError(
            f"`{reference}` in `{registry.url}` is not whole: {error.message}", hint="ask who runs the registry"
        ) from error
    if is_other:
        raise VersionConflictError(
            f"`{reference}` is published in `{registry.url}` with other content ({published.digest})",
            hint="a published version never changes: publish the next one",
        )
    return published


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
