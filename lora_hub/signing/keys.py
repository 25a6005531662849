"""Private keys: made, read, and kept encrypted.

ECDSA on P-256, P-384 or P-521, the family that OpenSSF Model Signing has. They are written in OpenSSH's format, which
is slow to guess (bcrypt); PKCS#8 and SEC1, as OpenSSL writes them, are read as well.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from lora_hub.documents.fields import Bytes
from lora_hub.documents.signers import PublicKey
from lora_hub.errors import MalformedError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

PASSPHRASE = "LORA_HUB_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable
MAX_KEY = 64 * 1024  # bytes
CURVES = ("P-256", "P-384", "P-521")
_ROUNDS = 64  # of bcrypt: about half a second for each guess
_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"

# ``passphrase(what)`` returns the passphrase of the key that is called so, or None if nobody knows it.
Passphrase = Callable[[str], str | None]


def passphrase_from_environment(_what: str) -> str | None:
    """Return what `LORA_HUB_KEY_PASSPHRASE` says."""
    return os.environ.get(PASSPHRASE)


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """A key that signs. It never shows itself: not in its `repr`, not in an error."""

    _key: EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.fingerprint})"

    @classmethod
    def generate(cls, curve: str = "P-256") -> Self:
        """Return a new key on *curve*, one of `CURVES`."""
        from cryptography.hazmat.primitives.asymmetric import ec

        if curve not in CURVES:
            raise UsageError(f"there is no curve {curve!a}", hint=f"name one of {', '.join(CURVES)}")
        known = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
        return cls(ec.generate_private_key(known[curve]))

    @classmethod
    def parse(cls, content: Bytes, *, what: str, passphrase: Passphrase = passphrase_from_environment) -> Self:
        """Return the key that *content*, a file in OpenSSH's format, PKCS#8 or SEC1, holds.

        Args:
            content: PEM.
            what: What to call the key in an error.
            passphrase: Asked only if the key is encrypted.

        Raises:
            MalformedError: It is no private key of one of the curves.
            UsageError: It is encrypted, and the passphrase is missing or wrong.
        """
        from cryptography.hazmat.primitives.asymmetric import ec

        key = _load(bytes(content), what, passphrase)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise _no_key(what)
        PublicKey.parse(_public_pem(key))  # of a curve that others can verify
        return cls(key)

    @property
    def public(self) -> PublicKey:
        """The public key."""
        return PublicKey.parse(_public_pem(self._key))

    def to_openssh(self, passphrase: str | None) -> bytes:
        """Return the key in OpenSSH's format, encrypted if a passphrase is given."""
        from cryptography.hazmat.primitives import serialization as form

        encryption: form.KeySerializationEncryption = form.NoEncryption()
        if passphrase:
            builder = form.PrivateFormat.OpenSSH.encryption_builder().kdf_rounds(_ROUNDS)
            encryption = builder.build(to_bytes(passphrase))
        return self._key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, encryption)

    def sign(self, message: bytes) -> bytes:
        """Return the signature of *message*: ECDSA with the SHA-2 of the curve's size, DER."""
        from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]

        return bytes.fromhex(CryptoSigner(self._key).sign(message).signature)


def to_bytes(passphrase: str) -> bytes:
    """Return the bytes of *passphrase*; raise `UsageError` if it is no text."""
    try:
        return passphrase.encode()
    except UnicodeEncodeError:
        raise UsageError("the passphrase is no text", hint="use another one") from None  # the cause shows it


def _load(content: bytes, what: str, passphrase: Passphrase) -> object:
    from cryptography.hazmat.primitives import serialization

    is_openssh = content.lstrip().startswith(_OPENSSH)
    load = serialization.load_ssh_private_key if is_openssh else serialization.load_pem_private_key
    try:
        return load(content, None)
    except TypeError:
        pass  # it is encrypted
    except Exception:  # noqa: BLE001 - whatever is wrong with it
        raise _no_key(what) from None  # the cause may show a part of the key
    secret = passphrase(what)
    if not secret:
        raise UsageError(f"{what} is encrypted", hint=f"set `{PASSPHRASE}`, or run it in a terminal")
    try:
        return load(content, to_bytes(secret))
    except UsageError:
        raise
    except Exception:  # noqa: BLE001 - whatever is wrong with it
        raise UsageError(
            f"{what} cannot be decrypted", hint=f"the passphrase is wrong (`{PASSPHRASE}`), or the file is damaged"
        ) from None


def _public_pem(key: EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def _no_key(what: str) -> MalformedError:
    return MalformedError(
        f"{what} is no private key of the curves {', '.join(CURVES)}",
        hint="make one with `lora-hub key generate ORG`",
    )
