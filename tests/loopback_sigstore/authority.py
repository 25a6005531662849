"""The certificate authority (Fulcio) and its certificate log: they write into a short-lived certificate who signs."""

import struct
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from loopback_sigstore.keys import SINCE, Key

# https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")  # plain text
ISSUER_V2 = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")  # the same as a DER UTF8String
TIMESTAMPS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")  # https://www.rfc-editor.org/rfc/rfc6962#section-3.3
NAME = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "loopback")])
LIFE = timedelta(minutes=10)


def said_of(claims: dict[str, Any]) -> list[x509.ExtensionType]:
    """Return what a certificate says of the person or workflow whose token has these *claims*."""
    email, issuer = claims.get("email"), claims["iss"]
    name = x509.RFC822Name(email) if email else x509.UniformResourceIdentifier(claims["sub"])
    return [
        x509.SubjectAlternativeName([name]),
        x509.UnrecognizedExtension(ISSUER, issuer.encode()),
        x509.UnrecognizedExtension(ISSUER_V2, asn1.encode_der(issuer)),
    ]


class Authority:
    """A root certificate that issues the certificates of signers, and logs each."""

    def __init__(self) -> None:
        self.log = Key()
        self._key = Key()
        public = self._key.private.public_key()
        root = _certificate(NAME, public, SINCE, SINCE + timedelta(days=2), is_ca=True)
        root = root.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        self.root = root.sign(self._key.private, SHA256())

    def issue(self, key: ec.EllipticCurvePublicKey, said: Iterable[x509.ExtensionType]) -> x509.Certificate:
        """Return the certificate of *key* that says what is *said*, with the timestamp of the certificate log."""
        now = datetime.now(UTC)
        leaf = _certificate(x509.Name([]), key, now, now + LIFE, is_ca=False)
        leaf = leaf.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.private.public_key())
        leaf = leaf.add_extension(issuer, critical=False)
        for extension in said:
            leaf = leaf.add_extension(extension, critical=isinstance(extension, x509.SubjectAlternativeName))
        logged = leaf.sign(self._key.private, SHA256()).tbs_certificate_bytes
        timestamps = asn1.encode_der(_vector(_vector(self._timestamp(logged))))
        leaf = leaf.add_extension(x509.UnrecognizedExtension(TIMESTAMPS, timestamps), critical=False)
        return leaf.sign(self._key.private, SHA256())

    def _timestamp(self, certificate: bytes) -> bytes:
        """Return the signed timestamp of a *certificate* (DER, to be signed) that still lacks it."""
        now = int(datetime.now(UTC).timestamp() * 1000)  # milliseconds
        entry = self._key.id + len(certificate).to_bytes(3) + certificate
        no_extensions = _vector(b"")
        # https://www.rfc-editor.org/rfc/rfc6962#section-3.2: version 1, of a certificate, before it has it
        signature = self.log.sign(struct.pack("!BBQH", 0, 0, now, 1) + entry + no_extensions)
        sha256_ecdsa = bytes([4, 3])
        return bytes([0]) + self.log.id + struct.pack("!Q", now) + no_extensions + sha256_ecdsa + _vector(signature)


def _certificate(
    subject: x509.Name, key: ec.EllipticCurvePublicKey, since: datetime, until: datetime, *, is_ca: bool
) -> x509.CertificateBuilder:
    usage = dict.fromkeys(
        ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only"], False
    )
    usage |= {"decipher_only": False, "crl_sign": False, "digital_signature": not is_ca, "key_cert_sign": is_ca}
    return (
        x509.CertificateBuilder(NAME, subject, key, x509.random_serial_number(), since, until)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
    )


def _vector(content: bytes) -> bytes:
    return struct.pack("!H", len(content)) + content
