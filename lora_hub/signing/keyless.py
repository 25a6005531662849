"""Keyless signing: who signed is an identity of OpenID, proven by a certificate and a log of Sigstore, not a key.

Everything about certificates, logs and time is done by the package `sigstore`, which this module alone imports. Whether
an identity is trusted is none of its business: the trust policy says so.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lora_hub.documents.bundle import PAYLOAD_TYPE, Bundle
from lora_hub.documents.fields import printable
from lora_hub.documents.signers import Identity
from lora_hub.errors import DocumentError, IntegrityError, MachineError, RegistryError, UsageError
from lora_hub.extras import needs_sigstore

if TYPE_CHECKING:
    from cryptography.x509 import Certificate
    from sigstore.dsse import Statement
    from sigstore.models import ClientTrustConfig
    from sigstore.oidc import IdentityToken
    from sigstore.verify import Verifier

TRUST = "LORA_HUB_SIGSTORE_TRUST"  # the file that names the services and keys of a private instance
TOKEN = "SIGSTORE_ID_TOKEN"  # noqa: S105 - the name of a variable, as sigstore's own tools have it

# https://github.com/sigstore/fulcio/blob/main/docs/oid-info.md
_ISSUER = "1.3.6.1.4.1.57264.1.1"  # plain text
_ISSUER_V2 = "1.3.6.1.4.1.57264.1.8"  # the same as a DER UTF8String
_SIGN_AGAIN = "ask who signed it to sign it again"
_NOT_VERIFIED = (
    f"do not use it; if it was signed just now, `sigstore plumbing update-trust-root` may help, for a private Sigstore "
    f"see {TRUST}"
)
_TRY_AGAIN = "check the network and the identity token, and run it again"
_GIVE_TOKEN = f"give the CI job the permission `id-token: write`, or set {TOKEN} to an OpenID token for `sigstore`"


def verified_identity(content: bytes) -> tuple[Identity, bytes]:
    """Return who signed the bundle *content*, and the bytes of the statement that was signed.

    Certificate chain, certificate log, time, transparency log and signature are verified without the network. The keys
    are those of the public instance that sigstore brings along or has fetched since, or ``LORA_HUB_SIGSTORE_TRUST``.

    Raises:
        DocumentError: It is no bundle with a certificate.
        IntegrityError: It does not verify, or its certificate does not name one signer and one issuer.
        MissingExtraError: The extra `sigstore` is not installed.
        UsageError: ``LORA_HUB_SIGSTORE_TRUST`` names no trust configuration.
        MachineError: The keys of the public Sigstore cannot be read on this machine.
    """
    with needs_sigstore("a keyless signature"):
        from sigstore.models import Bundle as SigstoreBundle

    Bundle.parse(content)  # strictly: sigstore takes the last of two equal keys, and any size
    try:
        bundle = SigstoreBundle.from_json(content)
    except Exception as error:
        raise DocumentError(f"the bundle is none of sigstore's: {_said(error)}", hint=_SIGN_AGAIN) from error
    verifier = _verifier()
    try:
        kind, payload = verifier.verify_dsse(bundle, _Anybody())
        if kind != PAYLOAD_TYPE:
            raise ValueError(f"the payload is of type {kind}")  # noqa: TRY301 - said below
        return _signer(bundle.signing_certificate), payload
    except Exception as error:  # sigstore raises many kinds, also some that are not its own; each is a refusal
        raise IntegrityError(f"the keyless signature does not verify: {_said(error)}", hint=_NOT_VERIFIED) from error


def sign_keyless(statement: bytes) -> bytes:
    """Return the bundle of *statement*, an in-toto statement, signed by the identity of this environment.

    The identity is that of ``SIGSTORE_ID_TOKEN``, else of the CI job, else whom the browser logs in. Sigstore publishes
    it, for good, in a public log.

    Raises:
        UsageError: There is no identity, its token is not valid, or *statement* is no in-toto statement.
        RegistryError: A service of Sigstore, or the network, refused.
        IntegrityError: What the services answered does not verify.
        MissingExtraError: The extra `sigstore` is not installed.
    """
    with needs_sigstore("keyless signing"):
        from sigstore.sign import SigningContext

    checked = _statement(statement)
    given = _given_token()
    private = _private_trust()
    with _refused_as("Sigstore gave no signature", hint=_TRY_AGAIN):
        trust = private or _public_trust(offline=False)
        token = given or _asked_token(trust)
        with SigningContext.from_trust_config(trust).signer(token) as signer:
            content = signer.sign_dsse(checked).to_json().encode()
    verified_identity(content)  # what a lying service answered must not be published as a signature
    return content


class _Anybody:
    """The policy of sigstore that accepts every signer whose certificate is proven."""

    def verify(self, cert: Certificate) -> None:
        """Accept."""


def _signer(certificate: Certificate) -> Identity:
    """Return whom *certificate* names; raise ValueError unless that is one signer and one issuer."""
    from cryptography.hazmat.asn1 import decode_der
    from cryptography.x509 import RFC822Name, SubjectAlternativeName, UniformResourceIdentifier

    names = list(certificate.extensions.get_extension_for_class(SubjectAlternativeName).value)
    if len(names) != 1 or not isinstance(names[0], RFC822Name | UniformResourceIdentifier):
        raise ValueError(f"the certificate names {len(names)} signers, expected one e-mail address or URI")
    values = {
        extension.oid.dotted_string: extension.value.public_bytes()
        for extension in certificate.extensions
        if extension.oid.dotted_string in {_ISSUER, _ISSUER_V2}
    }
    issuers = {decode_der(str, value) if oid == _ISSUER_V2 else value.decode() for oid, value in values.items()}
    if len(issuers) != 1:
        raise ValueError(f"the certificate names {len(issuers)} issuers, expected one")
    identity = Identity(identity=names[0].value, issuer=issuers.pop())
    if not str(identity).isprintable():
        raise ValueError("the certificate's signer or issuer has unprintable characters")
    return identity


def _verifier() -> Verifier:
    from sigstore.verify import Verifier

    private = _private_trust()
    if private is not None:
        return Verifier(trusted_root=private.trusted_root)
    try:
        return Verifier(trusted_root=_public_trust(offline=True).trusted_root)
    except Exception as error:
        raise MachineError(
            f"the keys of the public Sigstore cannot be read: {_said(error)}",
            hint="check the cache of sigstore, such as ~/.cache/sigstore-python, or remove it",
        ) from error


def _public_trust(*, offline: bool) -> ClientTrustConfig:
    """Return the keys and services of the public Sigstore: with *offline* those that this machine knows."""
    from sigstore.models import ClientTrustConfig

    with _offline_is_meant():
        return ClientTrustConfig.production(offline=offline)


def _private_trust() -> ClientTrustConfig | None:
    """Return the keys and services of the instance that the environment names, or None."""
    from sigstore.models import ClientTrustConfig
    from sigstore.verify import Verifier

    path = os.environ.get(TRUST)
    if not path:
        return None
    try:
        trust = ClientTrustConfig.from_json(Path(path).read_text(encoding="utf-8"))
        Verifier(trusted_root=trust.trusted_root)  # reads its certificates
    except Exception as error:
        raise UsageError(
            f"{TRUST} names {printable(path)}, which is no trust configuration of Sigstore: {_said(error)}",
            hint="let it name the ClientTrustConfig (JSON) of your instance, or unset it",
        ) from error
    return trust


@contextmanager
def _offline_is_meant() -> Iterator[None]:
    """Drop the one warning of sigstore that it works offline; whatever else it logs goes where the user sends it."""

    def is_news(record: logging.LogRecord) -> bool:
        return "offline mode" not in record.getMessage()

    logger = logging.getLogger("sigstore._internal.tuf")
    logger.addFilter(is_news)
    try:
        yield
    finally:
        logger.removeFilter(is_news)


def _statement(content: bytes) -> Statement:
    from sigstore.dsse import Statement

    try:
        return Statement(content)
    except Exception as error:
        raise UsageError(
            f"this is no in-toto statement: {_said(error)}", hint="sign what `lora_hub.documents.statement` writes"
        ) from error


def _given_token() -> IdentityToken | None:
    """Return the identity token of the environment or of the CI job; None if there is a user to ask."""
    from sigstore.oidc import IdentityToken, detect_credential

    with _refused_as("this CI job got no identity token", hint=_GIVE_TOKEN):
        text = os.environ.get(TOKEN) or detect_credential()
    if not text:
        if sys.stdin is not None and sys.stdin.isatty():
            return None
        raise UsageError("keyless signing needs an identity, and nobody is here to log in", hint=_GIVE_TOKEN)
    try:
        return IdentityToken(text)
    except Exception as error:
        raise UsageError(
            f"the identity token is not valid: {_said(error)}",
            hint=f"get a fresh one whose audience is `sigstore`, and set {TOKEN} to it; it lasts some minutes",
        ) from error


def _asked_token(trust: ClientTrustConfig) -> IdentityToken:
    """Return the token of whom the browser logs in."""
    from sigstore.oidc import Issuer

    return Issuer(trust.signing_config.get_oidc_url()).identity_token()


@contextmanager
def _refused_as(what: str, *, hint: str) -> Iterator[None]:
    """Turn whatever sigstore raises, its own errors and those of others, into a `RegistryError` that says *what*."""
    try:
        yield
    except Exception as error:
        raise RegistryError(f"{what}: {_said(error)}", hint=hint) from error


def _said(error: BaseException) -> str:
    """Return what *error* and its causes say, innermost last, so that a terminal can show it."""
    text = f"{type(error).__name__} {printable(str(error))}" if str(error) else type(error).__name__
    return f"{text}, from {_said(error.__cause__)}" if error.__cause__ else text
