"""The bundle ``model.sig``: one signature over one statement, in the Sigstore bundle format v0.3.

The format is that of OpenSSF Model Signing v1.0 (https://github.com/ossf/model-signing-spec): a DSSE envelope around an
in-toto statement, and what to verify it with: the hint of a public key, or the certificate of a keyless signer.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from lora_hub.documents.fields import Bytes, Fields, canonical_json, is_sha256, parse_json_object

SIGNATURE_NAME = "model.sig"
MAX_BUNDLE = 64 * 1024  # bytes
MAX_SIGNATURES = 9  # of one version: the first, and eight more
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"

_SIGNATURE_FILE = re.compile(r"model(?:\.[0-9a-f]{8})?\.sig", re.ASCII)
_SIGN_AGAIN = "it is no signature that could be checked: ask who signed it to sign it again"


def is_signature_name(name: str) -> bool:
    """Whether *name* is ``model.sig``, or ``model.<8 hex digits>.sig`` of a further signer."""
    return _SIGNATURE_FILE.fullmatch(name) is not None


def further_name(signer: str) -> str:
    """Return the name of the bundle of one more signer, whose fingerprint is *signer*."""
    return f"model.{signer[:8]}.sig"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A signature, read but not verified.

    Attributes:
        hint: The fingerprint of the key that is said to have signed; None if the signer is keyless.
        payload: The bytes of the statement. Nothing in them means anything before the signature is verified.
        signature: What is to be verified; empty if the signer is keyless: then sigstore reads the bundle itself.
    """

    hint: str | None
    payload: bytes
    signature: bytes

    @classmethod
    def parse(cls, content: Bytes) -> Self:
        """Return the bundle that *content* spells.

        Raises:
            DocumentError: It is none, has more than one signature, or anything that this reader does not know.
        """
        document = parse_json_object(bytes(content), what="the bundle", limit=MAX_BUNDLE, hint=_SIGN_AGAIN)
        fields = Fields(document, hint=_SIGN_AGAIN)
        fields.only("mediaType", "verificationMaterial", "dsseEnvelope")
        fields.text("mediaType", f"`{MEDIA_TYPE}`", MEDIA_TYPE.__eq__)
        material, envelope = fields.object("verificationMaterial"), fields.object("dsseEnvelope")
        envelope.only("payload", "payloadType", "signatures")
        envelope.text("payloadType", f"`{PAYLOAD_TYPE}`", PAYLOAD_TYPE.__eq__)
        signatures = envelope.objects("signatures")
        if len(signatures) != 1:
            envelope.fail("signatures", "one signature")
        signatures[0].only("sig", "keyid")
        signatures[0].present_text("keyid")  # DSSE: a hint that nothing may rely on
        payload, signature = _decoded(envelope, "payload"), _decoded(signatures[0], "sig")
        if "certificate" in material.values:
            material.only("certificate", "tlogEntries", "timestampVerificationData")
            return cls(hint=None, payload=payload, signature=b"")
        return cls(hint=_hint(material), payload=payload, signature=signature)

    def to_bytes(self) -> bytes:
        """Return the bytes of a bundle that a key signed."""
        document: dict[str, Any] = {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": self.hint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(self.signature).decode(), "keyid": ""}],
            },
        }
        return canonical_json(document)


def signature_names(names: Iterable[str]) -> list[str]:
    """Return those of *names* that are bundles: the first one first, and no more than a version may have."""
    found = sorted(filter(is_signature_name, names), key=lambda name: (name != SIGNATURE_NAME, name))
    return found[:MAX_SIGNATURES]


def _hint(material: Fields) -> str:
    material.only("publicKey", "tlogEntries", "timestampVerificationData")
    for name in ("tlogEntries", "timestampVerificationData"):
        if material.values.get(name):
            material.fail(name, "nothing beside a public key")
    key = material.object("publicKey")
    key.only("hint")
    return key.text("hint", "the SHA-256 of a public key, 64 lower-case hex digits", is_sha256)


def _decoded(fields: Fields, key: str) -> bytes:
    """Return what the base64 at *key* spells, in its one spelling: no bit of a bundle may go unread."""
    text = fields.text(key, "base64")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        content = b""
    if not content or base64.b64encode(content).decode() != text:
        fields.fail(key, "base64")
    return content
