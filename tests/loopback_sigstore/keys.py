"""The keys of the services: ECDSA on P-256, each with the name that a trust root knows it by."""

import base64
import hashlib
from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

# Long before the test, so that no clock is too early for a key or a certificate.
SINCE = datetime.now(UTC) - timedelta(days=1)


class Key:
    """A signing key."""

    def __init__(self) -> None:
        self.private = ec.generate_private_key(ec.SECP256R1())
        self.spki = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.id = hashlib.sha256(self.spki).digest()  # https://www.rfc-editor.org/rfc/rfc6962#section-3.2

    def sign(self, content: bytes) -> bytes:
        """Return the signature (DER) of *content*."""
        return self.private.sign(content, ec.ECDSA(SHA256()))

    def trusted_log(self, url: str) -> dict[str, object]:
        """Return what a trust root says of a log that signs with this key."""
        return {
            "baseUrl": url,
            "hashAlgorithm": "SHA2_256",
            "publicKey": {
                "rawBytes": b64(self.spki),
                "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                "validFor": {"start": SINCE.isoformat()},
            },
            "logId": {"keyId": b64(self.id)},
        }


def b64(content: bytes) -> str:
    """Return *content* in base64, as text."""
    return base64.b64encode(content).decode()
