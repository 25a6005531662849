"""Push: from a directory into a registry, as an immutable version."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_hub.adapter_directory import read_bundles, read_with_files
from lora_hub.documents.authorization import counted
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import CARD_NAME, MANIFEST_NAME, MAX_CARD, Manifest, differs, publish
from lora_hub.documents.signers import PublicKey, Signer
from lora_hub.documents.trust_entries import Pin
from lora_hub.documents.verified_adapter import VerifiedAdapter, manifest_digest
from lora_hub.errors import (
    IntegrityError,
    MalformedError,
    NotFoundError,
    PolicyError,
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
from lora_hub.registry.signatures import add_signature, signatures_over, signer_of
from lora_hub.registry.store import Store
from lora_hub.registry.trust_file import TrustFile
from lora_hub.signing.keys import PrivateKey

# ``approve(adapter, its files)`` raises if an adapter that is whole must not be published all the same.
Approve = Callable[[VerifiedAdapter, Mapping[str, Bytes]], None]

_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def approve_all(_adapter: VerifiedAdapter, _files: Mapping[str, Bytes]) -> None:
    """Approve of whatever is whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pushed:
    """What `push` did.

    ``is_new`` is False if the registry had the same content under this version already. ``signers`` are fingerprints of
    the keys whose signatures lie beside it. ``replaced`` are pins of this user that said something else of this
    version, as of that on another Hub. ``left_out`` are signatures in the directory that are not of this version.
    """

    reference: AdapterRef
    digest: str
    registry: str
    is_new: bool
    signers: tuple[str, ...] = ()
    commit: str | None = None
    replaced: tuple[Pin, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """What is to be published: the files, the manifest, and the signatures in the directory that are over it."""

    files: dict[str, Bytes]
    manifest: bytes
    bundles: dict[str, Bytes]
    left_out: tuple[str, ...]

    def sign(self, manifest: bytes, key: PrivateKey | None) -> dict[str, Bytes]:
        """Return the bundles to publish beside *manifest*: those that are over it, and the one of *key*."""
        if self.bundles and manifest != self.manifest:
            raise RegistryError(
                "the same content is being published with another time of creation, which is not what was signed here",
                hint="let whoever began it finish; or remove the signatures in the directory, and sign it anew",
            )
        return dict(self.bundles) if key is None else add_signature(self.bundles, manifest, key)


def push(
    directory: Path,
    reference: AdapterRef,
    registry: Registry,
    store: Store,
    trust: TrustFile,
    key: PrivateKey | None = None,
    *,
    approve: Approve = approve_all,
    exceptions: Iterable[str] = (),
) -> Pushed:
    """Publish the adapter in *directory* as the exact version *reference*; nothing is written into *directory*.

    What is about to be published is shown to *approve* before it is signed; *exceptions*, codes of checks that it may
    break, are written into its manifest.

    It is signed with *key*, if there is one, beside the signatures that lie in *directory* already. What was published
    where others may write, and is not trusted by a rule, is pinned: whoever published it trusts it.

    Raises:
        UsageError: *reference* names no exact version.
        IntegrityError, MalformedError: The directory holds no adapter that could ever be applied.
        VersionConflictError: The version exists with other content.
    """
    exact_version(reference)
    policy = trust.read()
    if key is not None and policy.revocation(key=key.public.fingerprint) is not None:
        raise PolicyError(f"your policy revokes the key {key.public.fingerprint}", hint="sign with another one")
    known = policy.public_keys() | ({key.public.fingerprint: key.public} if key else {})
    prepared = _prepare(directory, reference, known, approve, exceptions)
    if not registry.is_remote:
        return _publish(reference, registry, prepared, prepared.manifest, key)
    trust.check_can_be_extended()
    journal = Journal(store.pushes)
    manifest = prepared.manifest
    if not prepared.bundles:  # signatures are over these bytes alone, not over those of an earlier try
        manifest = journal.open(registry.url, reference, manifest)
    try:
        pushed = _publish(reference, registry, prepared, manifest, key)
    except VersionConflictError:
        journal.close(registry.url, reference)
        raise
    replaced = [] if _is_trusted(trust, pushed) else trust.add([_pin(pushed)], replace=True)
    journal.close(registry.url, reference)
    return dataclasses.replace(pushed, replaced=tuple(replaced))


def _is_trusted(trust: TrustFile, pushed: Pushed) -> bool:
    """Whether a rule trusts who signed it, so that it needs no pin."""
    policy = trust.read()
    rule = policy.rule(pushed.reference.name)
    if rule is None or policy.pin(pushed.registry, pushed.reference) is not None:
        return False
    counting, _ = counted(policy, rule, map(Signer, pushed.signers), dt.datetime.now(dt.UTC))
    return len(counting) >= rule.threshold


def _pin(pushed: Pushed) -> Pin:
    name, version = pushed.reference.name, str(pushed.reference.version)
    return Pin(registry=pushed.registry, name=name, version=version, commit=pushed.commit, digest=pushed.digest)


def _prepare(
    directory: Path,
    reference: AdapterRef,
    known: Mapping[str, PublicKey],
    approve: Approve,
    exceptions: Iterable[str],
) -> _Prepared:
    """Return the files in *directory*, proven and approved, and the manifest bytes under which they are published."""
    adapter, files = read_with_files(directory)
    approve(adapter, files)
    draft = bytes(files.get(MANIFEST_NAME, adapter.manifest.to_bytes()))
    is_final = adapter.manifest.reference == reference and set(exceptions) <= set(adapter.manifest.exceptions)
    bundles = read_bundles(directory)
    signed = signatures_over(draft, bundles, known, source=str(directory)) if is_final else {}
    manifest = draft if signed else publish(draft, reference=reference, created=now(), exceptions=exceptions)
    Manifest.parse(manifest)  # what nobody could read again is not published for good
    with contextlib.suppress(NotFoundError):
        files[CARD_NAME] = read_file(directory / CARD_NAME, limit=MAX_CARD)
    left_out = tuple(name for name in bundles if name not in signed)
    return _Prepared(files=files, manifest=manifest, bundles=signed, left_out=left_out)


def _publish(
    reference: AdapterRef, registry: Registry, prepared: _Prepared, manifest: bytes, key: PrivateKey | None
) -> Pushed:
    signed: dict[str, Bytes] = {}

    def sign(published: bytes) -> dict[str, Bytes]:
        signed.update(prepared.sign(published, key))
        return signed

    publication = registry.publish(reference, {**prepared.files, MANIFEST_NAME: manifest}, sign)
    digest, commit, bundles = manifest_digest(manifest), publication.commit, signed
    if not publication.is_new:
        published = _adopt(registry, reference, manifest)
        digest, commit, bundles = published.digest, published.snapshot.commit, published.bundles()
    return Pushed(
        reference=reference,
        digest=digest,
        registry=registry.url,
        is_new=publication.is_new,
        signers=tuple(filter(None, map(signer_of, bundles.values()))),
        commit=commit,
        left_out=prepared.left_out,
    )


def _adopt(registry: Registry, reference: AdapterRef, mine: bytes) -> Published:
    """Return what is published, which must be the same content: all but the time of its first push."""
    try:
        published = find(registry, reference)
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


def now() -> str:
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
