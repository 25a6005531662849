"""The signatures of a version that is about to be published: those that lie there, and one more."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from lora_hub.documents.bundle import MAX_SIGNATURES, SIGNATURE_NAME, Bundle, further_name
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import Manifest
from lora_hub.documents.signers import PublicKey
from lora_hub.documents.statement import SignedFiles
from lora_hub.documents.verified_adapter import manifest_digest
from lora_hub.errors import IntegrityError, MalformedError, UsageError
from lora_hub.registry.proof import carried_key, prove
from lora_hub.signing.keys import PrivateKey


def add_signature(bundles: dict[str, Bytes], manifest: bytes, key: PrivateKey) -> dict[str, Bytes]:
    """Return *bundles*, by file name, with that of *key* over *manifest* among them."""
    from lora_hub.signing.sign import sign

    fingerprint = key.public.fingerprint
    if fingerprint in map(signer_of, bundles.values()):
        return bundles
    if len(bundles) >= MAX_SIGNATURES:
        raise UsageError(f"there are {len(bundles)} signatures", hint=f"no version has more than {MAX_SIGNATURES}")
    statement = SignedFiles.of(manifest, Manifest.parse(manifest), public_key=key.public.pem).to_bytes()
    name = further_name(fingerprint) if SIGNATURE_NAME in bundles else SIGNATURE_NAME
    return {**bundles, name: sign(statement, key)}


def signer_of(bundle: Bytes) -> str:
    """Return the fingerprint that *bundle* names, unverified, or an empty text if its signer is keyless."""
    return Bundle.parse(bundle).hint or ""


def signatures_over(
    manifest: bytes, bundles: Mapping[str, Bytes], known: Mapping[str, PublicKey], *, source: str
) -> dict[str, Bytes]:
    """Return those of *bundles* that sign *manifest*; a broken one would burn the version for all who trust its key.

    Raises:
        IntegrityError: A signature is not the one of its key, as far as that is *known* or brought along.
        DocumentError: One is no bundle.
    """
    digest, parsed = manifest_digest(manifest), Manifest.parse(manifest)
    over = {}
    for name, content in bundles.items():
        try:
            bundle = Bundle.parse(content)
            carried = carried_key(content)
            if bundle.hint in known and carried is None:
                prove(content, known, ())
        except (MalformedError, IntegrityError) as error:
            raise error.within(f"`{name}` of `{source}`") from error
        with contextlib.suppress(IntegrityError):  # then it is of another version
            SignedFiles.parse(bundle.payload).check(digest, lambda: parsed, source=source)
            over[name] = content
    return over
