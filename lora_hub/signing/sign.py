"""Sign a statement: the bundle that others verify."""

from __future__ import annotations

from lora_hub.documents.bundle import PAYLOAD_TYPE, Bundle
from lora_hub.signing.keys import PrivateKey


def sign(statement: bytes, key: PrivateKey) -> bytes:
    """Return the bytes of a bundle with the signature of *key* over *statement*."""
    signature = key.sign(pre_authentication(statement))
    return Bundle(hint=key.public.fingerprint, payload=statement, signature=signature).to_bytes()


def pre_authentication(payload: bytes) -> bytes:
    """Return what is signed for *payload*: DSSE's encoding (https://github.com/secure-systems-lab/dsse)."""
    from securesystemslib.dsse import Envelope

    return Envelope(payload, PAYLOAD_TYPE, {}).pae()
