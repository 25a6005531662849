"""What a signature says: an in-toto statement (https://in-toto.io/Statement/v1), of one of two predicate types.

- That these bytes are one version of an adapter: the predicate of OpenSSF Model Signing v1.0 over three files.
- That a version is yanked: its publisher asks that nobody starts to use it. A type of our own, so that neither can ever
  pass as the other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from lora_hub.documents.bundle import MAX_BUNDLE, is_signature_name
from lora_hub.documents.fields import Fields, canonical_json, is_sha256, is_time, parse_json_object, printable, sha256
from lora_hub.documents.manifest import CARD_NAME, MANIFEST_NAME, VERSION_FILES, Manifest
from lora_hub.errors import DocumentError, IntegrityError, UsageError
from lora_hub.reference import AdapterRef, exact_version
from lora_hub.version import Version

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SIGNATURE_TYPE = "https://model_signing/signature/v1.0"
YANK_TYPE = "urn:lora-hub:yank:v1"
MAX_REASON = 1000  # characters
YANKED = "yanked"  # the folder beside the versions that holds the statements

# What a signer may leave unsigned beside the adapter; nothing of it is ever loaded.
_UNSIGNED = (".git", ".gitattributes", ".github", ".gitignore", CARD_NAME)
_SIGN_AGAIN = "ask who signed it to sign it again, with `lora-hub sign` or the package `model-signing`"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedFiles:
    """That three files are one version of an adapter.

    Attributes:
        name: What the signer called it; display only, since other tools write what they like.
        digests: SHA-256 in hex of each of the three files, by name.
        public_key: The signer's key as PEM, if it is there; worth what its fingerprint is worth to the reader.
    """

    name: str
    digests: Mapping[str, str]
    public_key: str | None = None

    @classmethod
    def of(cls, manifest_bytes: bytes, manifest: Manifest, *, public_key: str | None = None) -> Self:
        """Return what is to be signed of the version with this manifest."""
        digests = {entry.name: entry.sha256 for entry in manifest.files} | {MANIFEST_NAME: sha256(manifest_bytes)}
        name = str(manifest.reference or "draft")
        return cls(name=name, digests=dict(sorted(digests.items())), public_key=public_key)

    def to_bytes(self) -> bytes:
        """Return the bytes of the statement; same files and key, same bytes."""
        resources = [{"name": n, "algorithm": "sha256", "digest": digest} for n, digest in self.digests.items()]
        serialization = {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": [*_UNSIGNED, "model.sig"],
        }
        predicate: dict[str, Any] = {"resources": resources, "serialization": serialization}
        if self.public_key is not None:
            predicate["signer"] = {"public_key": self.public_key}
        return _statement(SIGNATURE_TYPE, self.name, _root(self.digests), predicate)

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Return what *payload*, whose signature is verified, says.

        Raises:
            DocumentError: It speaks of other files than the three of a version, or hashes them in another way.
            IntegrityError: Its digests contradict each other.
        """
        name, digest, predicate = _parse_statement(payload, SIGNATURE_TYPE)
        _check_serialization(predicate.object("serialization"))
        digests = _digests(predicate)
        if digest != _root(digests):
            raise IntegrityError(
                f"the statement's own digest is {digest}, its files have {_root(digests)}", hint=_SIGN_AGAIN
            )
        key = predicate.object("signer").present_text("public_key") if predicate.has("signer") else None
        return cls(name=name, digests=digests, public_key=key)

    def check(self, digest: str, manifest: Callable[[], Manifest], *, source: str) -> None:
        """Raise `IntegrityError` unless the manifest with *digest*, and the files that it lists, are those signed.

        *manifest* returns it parsed, which happens only once it is known to be the one that was signed.
        """
        found = digest.removeprefix("sha256:")
        if found != self.digests[MANIFEST_NAME]:
            raise IntegrityError(
                f"`{MANIFEST_NAME}` of `{source}` has sha256 {found}, {self.digests[MANIFEST_NAME]} was signed",
                hint="it was changed after it was signed: do not use it, and ask its publisher",
            )
        for entry in manifest().files:
            if entry.sha256 != self.digests[entry.name]:
                raise IntegrityError(
                    f"the manifest of `{source}` says that `{entry.name}` has sha256 {entry.sha256}, "
                    f"{self.digests[entry.name]} was signed",
                    hint=_SIGN_AGAIN,
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Yank:
    """That an exact version, whose manifest has ``digest``, is yanked: why, and since when (RFC 3339, UTC)."""

    reference: AdapterRef
    digest: str
    created: str
    reason: str = ""

    def to_bytes(self) -> bytes:
        """Return the bytes of the statement."""
        predicate = {"created": self.created, "reason": self.reason}
        return _statement(YANK_TYPE, str(self.reference), self.digest.removeprefix("sha256:"), predicate)

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Return what *payload* says; raise `DocumentError` if it is no such statement."""
        name, digest, predicate = _parse_statement(payload, YANK_TYPE)
        try:
            reference = AdapterRef.parse(name)
            exact_version(reference)
        except UsageError as error:
            message = f"expected `org/task@1.2.0`, found {printable(name)}"
            raise DocumentError(message, context="subject[0].name", hint=_SIGN_AGAIN) from error
        return cls(
            reference=reference,
            digest=f"sha256:{digest}",
            created=predicate.text("created", "a UTC time of the form `2026-01-31T12:00:00Z`", is_time),
            reason=predicate.text(
                "reason", f"a text of at most {MAX_REASON} characters", lambda text: len(text) <= MAX_REASON
            ),
        )


def yank_name(version: Version, signer: str) -> str:
    """Return the name of the bundle in which the key *signer* yanks *version*."""
    return f"{version}.{signer[:8]}.sig"


def is_yank_name(name: str, version: Version) -> bool:
    """Whether *name* is that of a bundle that yanks *version*."""
    return name.startswith(f"{version}.") and is_signature_name(f"model{name[len(str(version)) :]}")


def _statement(kind: str, name: str, digest: str, predicate: Mapping[str, Any]) -> bytes:
    subject = [{"name": name, "digest": {"sha256": digest}}]
    document = {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": kind, "predicate": predicate}
    return canonical_json(document)


def _parse_statement(payload: bytes, kind: str) -> tuple[str, str, Fields]:
    document = parse_json_object(payload, what="the signed statement", limit=MAX_BUNDLE, hint=_SIGN_AGAIN)
    fields = Fields(document, hint=_SIGN_AGAIN)
    fields.only("_type", "subject", "predicateType", "predicate")
    fields.text("_type", f"`{STATEMENT_TYPE}`", STATEMENT_TYPE.__eq__)
    fields.text("predicateType", f"`{kind}`", kind.__eq__)
    subjects = fields.objects("subject")
    if len(subjects) != 1:
        fields.fail("subject", "one subject")
    subject, digest = subjects[0], subjects[0].object("digest")
    return (
        subject.text("name"),
        digest.text("sha256", "64 lower-case hex digits", is_sha256),
        fields.object("predicate"),
    )


def _digests(predicate: Fields) -> dict[str, str]:
    """Return the digests of exactly the three files of a version; unknown fields beside them mean nothing to us."""
    digests: dict[str, str] = {}
    for resource in predicate.objects("resources"):
        resource.text("algorithm", "`sha256`", "sha256".__eq__)
        name = resource.text("name", f"one of {', '.join(VERSION_FILES)}, once", lambda n: n in VERSION_FILES)
        if name in digests:
            resource.fail("name", "each file once")
        digests[name] = resource.text("digest", "64 lower-case hex digits", is_sha256)
    missing = [name for name in VERSION_FILES if name not in digests]
    if missing:
        raise DocumentError(
            f"`{missing[0]}` is not among the signed files", context="predicate.resources", hint=_SIGN_AGAIN
        )
    return digests


def _check_serialization(fields: Fields) -> None:
    """How the files were hashed must be how we hash them: the signer does not decide what is skipped."""
    fields.text("method", "`files`", "files".__eq__)
    fields.text("hash_type", "`sha256`", "sha256".__eq__)
    if "allow_symlinks" in fields.values:
        fields.read("allow_symlinks", bool, "false", lambda value: value is False)
    for path in fields.texts("ignore_paths") if "ignore_paths" in fields.values else ():
        if path not in _UNSIGNED and not is_signature_name(path):
            fields.fail("ignore_paths", f"nothing but {', '.join(_UNSIGNED)} and signatures")


def _root(digests: Mapping[str, str]) -> str:
    """Return the digest of the digests, in the order in which they stand."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests.values()))).hexdigest()
