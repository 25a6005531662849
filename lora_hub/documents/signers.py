"""Who can sign: a public key, known by its fingerprint, or a keyless identity."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Self

from lora_hub.documents.fields import printable, sha256
from lora_hub.errors import MalformedError

MAX_PEM = 1024  # characters

_BEGIN, _END = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"
# SubjectPublicKeyInfo (RFC 5480) of an uncompressed point: what comes before it, and how long the whole is.
_CURVES = {
    (bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004"), 91): "P-256",
    (bytes.fromhex("3076301006072a8648ce3d020106052b8104002203620004"), 120): "P-384",
    (bytes.fromhex("30819b301006072a8648ce3d020106052b810400230381860004"), 158): "P-521",
}


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key that a signature is verified with: ECDSA on P-256, P-384 or P-521, as Model Signing has it.

    ``pem`` is its SubjectPublicKeyInfo as PEM in the one spelling that everybody's tools write, so that its SHA-256 is
    the fingerprint by which bundles name the key.
    """

    pem: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key that *text*, PEM, spells; raise `MalformedError` if it is no such key."""
        lines = [line.strip() for line in text.strip()[:MAX_PEM].splitlines()]
        try:
            if lines[:1] != [_BEGIN] or lines[-1:] != [_END]:
                raise ValueError("no public key")  # noqa: TRY301 - said below
            der = base64.b64decode("".join(lines[1:-1]), validate=True)
        except (binascii.Error, ValueError) as error:
            raise _no_key(text) from error
        if not any(der.startswith(prefix) and len(der) == length for prefix, length in _CURVES):
            raise _no_key(text)
        encoded = base64.b64encode(der).decode()
        body = "\n".join(encoded[start : start + 64] for start in range(0, len(encoded), 64))
        return cls(f"{_BEGIN}\n{body}\n{_END}\n")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the PEM, in hex: what `openssl pkey -pubin -pubout | sha256sum` prints."""
        return sha256(self.pem.encode())


def _no_key(text: str) -> MalformedError:
    found = printable(text.strip().partition("\n")[0], limit=40)
    return MalformedError(
        f"expected a public key of the curve P-256, P-384 or P-521 as PEM, found {found}",
        hint="`lora-hub key export` prints one; from a private key, `openssl pkey -pubout` does",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a keyless signer is: an e-mail address or a URI, and the OpenID issuer that says so."""

    identity: str
    issuer: str

    def __str__(self) -> str:
        return f"{self.identity} ({self.issuer})"


@dataclass(frozen=True, slots=True)
class Signer:
    """Who signed: a key, by its fingerprint, or a keyless identity; None if that was not looked at."""

    who: str | Identity | None

    def __str__(self) -> str:
        if self.who is None:
            return "somebody keyless"
        return f"key {self.who}" if isinstance(self.who, str) else printable(str(self.who)).strip('`"')
