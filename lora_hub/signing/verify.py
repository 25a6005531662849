"""Verify a signature: that a key, which somebody trusts, signed the payload of a bundle."""

from __future__ import annotations

from lora_hub.documents.bundle import Bundle
from lora_hub.documents.signers import PublicKey
from lora_hub.errors import IntegrityError
from lora_hub.signing.sign import pre_authentication


def verify_signature(key: PublicKey, bundle: Bundle) -> None:
    """Return if *key* signed the payload of *bundle*.

    Raises:
        IntegrityError: It did not: whatever goes wrong while that is found out is a refusal.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from securesystemslib.signer import Signature, SSlibKey  # type: ignore[attr-defined]

    try:
        public = SSlibKey.from_crypto(load_pem_public_key(key.pem.encode()), keyid=key.fingerprint)
        signature = Signature(key.fingerprint, bundle.signature.hex())
        public.verify_signature(signature, pre_authentication(bundle.payload))
    except Exception as error:
        raise IntegrityError(
            f"the signature is not one of the key {key.fingerprint} over this statement",
            hint="it was changed after it was signed, or never was: do not use it, and ask its publisher",
        ) from error
