"""The instance itself: one origin that gives out identity tokens, certificates and log entries, and its trust root."""

import base64
import json
import time
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import jwt
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_csr
from loopback_hub import Fault, Request
from loopback_hub.answers import Answer
from loopback_hub.faults import Faults
from loopback_hub.log import RequestLog
from loopback_hub.server import Origin

from loopback_sigstore import authority
from loopback_sigstore.keys import SINCE, b64
from loopback_sigstore.log import TransparencyLog


class LoopbackSigstore:
    """A Sigstore of one person, whose tokens name *email*; everything is in memory and ends with the ``with`` block."""

    def __init__(self, *, email: str = "ada@example.org") -> None:
        self.email = email
        self.authority = authority.Authority()
        self.log = TransparencyLog()
        self.said_of = authority.said_of  # what a certificate says of the claims of a token
        self._secret = "shared by the issuer of tokens and the authority"
        self._requests = RequestLog()
        self._faults = Faults()
        self._origin = Origin("sigstore", self._answer, self._requests, self._faults)
        self.url = self._origin.url

    def __enter__(self) -> Self:
        self._origin.up()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._origin.close()

    def stop(self) -> None:
        """Refuse connections from now on."""
        self._origin.down()

    def fault(self, path: str, **what: Any) -> Fault:
        """Let the next request whose path matches the regular expression *path* fail as `Fault` says."""
        return self._faults.add(Fault(path=path, **what))

    @property
    def requests(self) -> list[Request]:
        """What was asked, in order of arrival."""
        return list(self._requests)

    def token(self, **claims: Any) -> str:
        """Return an identity token for the next ten minutes; *claims* change or (None) remove what it says."""
        now = int(time.time())
        said = {"iss": self.url, "aud": "sigstore", "sub": "ada", "email": self.email, "iat": now, "exp": now + 600}
        kept = {name: value for name, value in (said | claims).items() if value is not None}
        return jwt.encode(kept, self._secret, algorithm="HS256")

    @property
    def trust_config(self) -> dict[str, Any]:
        """The document that tells a client whom to trust, and where to sign."""
        root = b64(self.authority.root.public_bytes(Encoding.DER))
        since = {"start": SINCE.isoformat()}
        ca = {
            "subject": {"organization": "loopback", "commonName": "loopback"},
            "uri": self.url,
            "certChain": {"certificates": [{"rawBytes": root}]},
            "validFor": since,
        }
        service = {"url": self.url, "majorApiVersion": 1, "validFor": since, "operator": "loopback"}
        return {
            "mediaType": "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json",
            "trustedRoot": {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [self.log.key.trusted_log(self.url)],
                "certificateAuthorities": [ca],
                "ctlogs": [self.authority.log.trusted_log(self.url)],
            },
            "signingConfig": {
                "mediaType": "application/vnd.dev.sigstore.signingconfig.v0.2+json",
                "caUrls": [service],
                "oidcUrls": [service],
                "rekorTlogUrls": [service],
                "rekorTlogConfig": {"selector": "ANY"},
            },
        }

    def _answer(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        url = urlsplit(target)
        match method, url.path:
            case "GET", "/token":  # as a CI service hands it to its jobs
                return Answer.json({"value": self.token(aud=parse_qs(url.query)["audience"][0])})
            case "POST", "/api/v2/signingCert":
                return self._certify(headers["authorization"].removeprefix("Bearer "), json.loads(body))
            case "POST", "/api/v1/log/entries":
                return Answer.json(self.log.add(json.loads(body)), status=201)
        return Answer(status=404)

    def _certify(self, token: str, request: dict[str, str]) -> Answer:
        try:
            claims = jwt.decode(token, self._secret, algorithms=["HS256"], audience="sigstore")
        except jwt.InvalidTokenError as error:
            return Answer.json({"code": 16, "message": str(error)}, status=401)
        csr = load_pem_x509_csr(base64.b64decode(request["certificateSigningRequest"]))
        leaf = self.authority.issue(csr.public_key(), self.said_of(claims))
        chain = [certificate.public_bytes(Encoding.PEM).decode() for certificate in (leaf, self.authority.root)]
        return Answer.json({"signedCertificateEmbeddedSct": {"chain": {"certificates": chain}}})
