"""Keyless signing, with the real client: a bundle of the public Sigstore, and an instance on this machine."""

import base64
import io
import json
import logging
import socket
import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import sigstore.oidc
from cryptography import x509
from cryptography.hazmat import asn1
from loopback_sigstore import said_of
from loopback_sigstore.authority import ISSUER, ISSUER_V2, Authority
from loopback_sigstore.keys import Key
from sigstore.errors import TUFError
from sigstore.models import ClientTrustConfig

from lora_hub.documents.manifest import VERSION_FILES
from lora_hub.documents.signers import Identity
from lora_hub.documents.statement import SignedFiles
from lora_hub.errors import (
    DocumentError,
    IntegrityError,
    LoraHubError,
    MachineError,
    MissingExtraError,
    RegistryError,
    UsageError,
)
from lora_hub.signing.keyless import TOKEN, TRUST, sign_keyless, verified_identity

PUBLIC = Path(__file__).parents[1] / "vectors" / "v1" / "keyless" / "model-signing-1.1.0" / "model.sig"
BUNDLE = PUBLIC.read_bytes()
STEFAN = Identity(identity="stefanb@us.ibm.com", issuer="https://sigstore.verify.ibm.com/oauth2")
FILES = SignedFiles(name="org/task@1.0.0", digests=dict.fromkeys(sorted(VERSION_FILES), "a" * 64))
STATEMENT = FILES.to_bytes()
DETECT = sigstore.oidc.detect_credential

MATERIAL = ("verificationMaterial",)
ENTRY = (*MATERIAL, "tlogEntries", 0)
ENVELOPE = ("dsseEnvelope",)

pytestmark = pytest.mark.usefixtures("nobody")


class Terminal(io.StringIO):
    """A standard input with somebody in front of it."""

    def isatty(self) -> bool:
        """Say so."""
        return True


def changed(content: bytes, path: tuple, change) -> bytes:
    """Return the bundle with ``change(value)`` in place of the value at *path*, or without it if that is None."""
    document = json.loads(content)
    place = document
    for key in path[:-1]:
        place = place[key]
    value = change(place.pop(path[-1]))
    if isinstance(place, list):
        place.insert(path[-1], value)
    elif value is not None:
        place[path[-1]] = value
    return json.dumps(document).encode()


def flipped(content: bytes, bit: int) -> bytes:
    """Return *content* with one bit changed."""
    byte = content[bit // 8] ^ 1 << bit % 8
    return content[: bit // 8] + bytes([byte]) + content[bit // 8 + 1 :]


def middle_flipped(text: str) -> str:
    """Return base64 of what *text* spells, with one bit in the middle changed."""
    content = base64.b64decode(text)
    return base64.b64encode(flipped(content, len(content) * 4)).decode()


def without(_value) -> None:
    """Change a value into none."""


class TestOfThePublicSigstore:
    """What somebody signed with another tool, and published."""

    def test_the_signer_and_the_statement_come_back(self):
        """Who signed is read from the certificate, what was signed from the envelope."""
        signer, payload = verified_identity(BUNDLE)

        statement = json.loads(payload)
        assert signer == STEFAN
        assert statement["_type"] == "https://in-toto.io/Statement/v1"
        assert statement["predicateType"] == "https://model_signing/signature/v1.0"

    def test_nothing_is_asked_of_the_network(self, monkeypatch):
        """Verifying opens no socket and looks up no name."""

        def refuse(*_args, **_kwargs):
            raise AssertionError("a socket was opened")

        for name in ("socket", "create_connection", "getaddrinfo"):
            monkeypatch.setattr(socket, name, refuse)

        assert verified_identity(BUNDLE)[0] == STEFAN

    def test_nothing_is_printed(self):
        """What sigstore would say about being offline does not reach the terminal."""
        code = (
            f"from lora_hub.signing.keyless import *; print(verified_identity(open({str(PUBLIC)!r}, 'rb').read())[0])"
        )
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True)

        assert (done.stdout, done.stderr) == (f"{STEFAN}\n", "")

    def test_logging_is_left_as_it_was(self, caplog):
        """Only that one warning is dropped, and only during the call."""
        logger = logging.getLogger("sigstore._internal.tuf")
        verified_identity(BUNDLE)

        assert caplog.records == []
        assert logger.filters == []

    @pytest.mark.parametrize("step", [293, pytest.param(37, marks=pytest.mark.full)])
    def test_a_flipped_bit_never_changes_what_is_said(self, step):
        """One bit changed anywhere: refused, or the same signer and the same statement."""
        said = verified_identity(BUNDLE)

        def is_harmless(content: bytes) -> bool:
            try:
                return verified_identity(content) == said
            except (DocumentError, IntegrityError):
                return True

        assert [bit for bit in range(0, len(BUNDLE) * 8, step) if not is_harmless(flipped(BUNDLE, bit))] == []

    @pytest.mark.parametrize(
        ("path", "change"),
        [
            ((*MATERIAL, "certificate", "rawBytes"), middle_flipped),
            ((*ENTRY, "inclusionPromise", "signedEntryTimestamp"), middle_flipped),
            ((*ENTRY, "inclusionProof", "rootHash"), middle_flipped),
            ((*ENTRY, "inclusionProof", "hashes", 3), middle_flipped),
            ((*ENTRY, "inclusionProof", "logIndex"), lambda index: str(int(index) - 1)),
            ((*ENTRY, "inclusionProof", "checkpoint", "envelope"), lambda note: note.replace("\n4762", "\n4761")),
            ((*ENTRY, "canonicalizedBody"), middle_flipped),
            ((*ENTRY, "integratedTime"), lambda time: str(int(time) + 1)),
            ((*ENTRY, "logIndex"), lambda index: str(int(index) + 1)),
            ((*ENTRY, "kindVersion", "kind"), lambda _kind: "hashedrekord"),
            ((*ENVELOPE, "payload"), middle_flipped),
            ((*ENVELOPE, "signatures", 0, "sig"), middle_flipped),
        ],
        ids=lambda value: str(value[-1]) if isinstance(value, tuple) else "",
    )
    def test_every_part_is_verified(self, path, change):
        """One value changed: the signature does not verify."""
        with pytest.raises((IntegrityError, DocumentError)):
            verified_identity(changed(BUNDLE, path, change))

    @pytest.mark.parametrize(
        "content",
        [
            pytest.param(b"", id="empty"),
            pytest.param(b"{}", id="object"),
            pytest.param(b"no JSON", id="text"),
            pytest.param(BUNDLE[:-2], id="cut"),
            pytest.param(BUNDLE[: len(BUNDLE) // 2], id="half"),
            pytest.param(BUNDLE + b" " * 65536, id="too-large"),
            pytest.param(
                changed(BUNDLE, ("mediaType",), lambda _type: "application/vnd.dev.sigstore.bundle+json;version=0.2"),
                id="media-type",
            ),
            pytest.param(changed(BUNDLE, (*MATERIAL, "certificate"), without), id="no-certificate"),
            pytest.param(
                changed(BUNDLE, (*MATERIAL, "certificate"), lambda _certificate: {"rawBytes": "bm8gREVS"}), id="no-der"
            ),
            pytest.param(changed(BUNDLE, (*MATERIAL, "tlogEntries"), without), id="no-log"),
            pytest.param(changed(BUNDLE, (*MATERIAL, "tlogEntries"), lambda _entries: []), id="no-entry"),
            pytest.param(changed(BUNDLE, (*MATERIAL, "tlogEntries"), lambda entries: entries * 2), id="two-entries"),
            pytest.param(changed(BUNDLE, (*ENTRY, "inclusionProof"), without), id="no-proof"),
            pytest.param(changed(BUNDLE, (*ENVELOPE, "payloadType"), lambda _type: "text/plain"), id="payload-type"),
            pytest.param(
                changed(BUNDLE, (*ENVELOPE, "signatures"), lambda signatures: signatures * 2), id="two-signatures"
            ),
            pytest.param(changed(BUNDLE, ENVELOPE, without), id="no-envelope"),
        ],
    )
    def test_what_is_no_bundle_is_malformed(self, content):
        """A document that lacks a part, or has a wrong one, is refused before anything is verified."""
        with pytest.raises(DocumentError) as caught:
            verified_identity(content)

        assert caught.value.hint

    def test_without_any_proven_time_it_is_refused(self):
        """Neither the promise of the log nor a timestamp: the certificate may have ended before."""
        no_promise = changed(BUNDLE, (*ENTRY, "inclusionPromise"), without)
        no_time = changed(no_promise, (*MATERIAL, "timestampVerificationData"), without)

        with pytest.raises(DocumentError):
            verified_identity(no_time)

    def test_a_private_instance_does_not_trust_it(self, request):
        """Where an instance is named, its keys are the only ones."""
        bundle = changed(BUNDLE, (*MATERIAL, "timestampVerificationData"), without)
        before = verified_identity(bundle)[0]
        request.getfixturevalue("private")

        assert before == STEFAN
        with pytest.raises(IntegrityError, match="certificate chain"):
            verified_identity(bundle)

    def test_without_the_extra_it_says_what_to_install(self, monkeypatch):
        """The package `sigstore` is optional."""
        for name in [name for name in sys.modules if name.partition(".")[0] == "sigstore"]:
            monkeypatch.setitem(sys.modules, name, None)

        for call in (verified_identity, sign_keyless):
            with pytest.raises(MissingExtraError, match=r"pip install 'lora-hub\[sigstore\]'"):
                call(BUNDLE)

    @pytest.mark.parametrize("text", [None, "no JSON", "{}", json.dumps({"mediaType": "text/plain"})])
    def test_a_variable_that_names_no_trust_configuration_is_told(self, tmp_path, monkeypatch, text):
        """A mistake in the environment never falls back to the public instance."""
        path = tmp_path / "trust_config.json"
        if text is not None:
            path.write_text(text, encoding="utf-8")
        monkeypatch.setenv(TRUST, str(path))

        with pytest.raises(UsageError, match=TRUST):
            verified_identity(BUNDLE)

    def test_keys_that_cannot_be_read_are_this_machines_fault(self, tmp_path, monkeypatch):
        """The public keys lie in the cache of sigstore; without them nothing is said about the signature."""
        (tmp_path / "file").write_text("no directory", encoding="utf-8")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

        with pytest.raises(MachineError, match="cache"):
            verified_identity(BUNDLE)


class TestSigning:
    """One statement of ours, signed and verified end to end."""

    def test_what_is_signed_verifies(self, private, ada):
        """The bundle says who signed and what."""
        signer, payload = verified_identity(sign_keyless(STATEMENT))

        assert signer == ada
        assert payload == STATEMENT
        assert SignedFiles.parse(payload) == FILES

    def test_a_workflow_signs_as_its_uri(self, private, monkeypatch):
        """A token without an e-mail address is that of a machine."""
        workflow = "https://ci.example.org/org/repo/release.yml@refs/tags/v1"
        monkeypatch.setenv(TOKEN, private.token(sub=workflow, email=None))

        assert verified_identity(sign_keyless(STATEMENT))[0] == Identity(identity=workflow, issuer=private.url)

    def test_one_request_to_each_service(self, private):
        """A certificate, then an entry; the token is shown to the authority alone."""
        sign_keyless(STATEMENT)

        assert [(r.path, "authorization" in r.headers) for r in private.requests] == [
            ("/api/v2/signingCert", True),
            ("/api/v1/log/entries", False),
        ]

    @pytest.mark.usefixtures("private")
    def test_a_signature_holds_for_its_statement_only(self):
        """In the bundle of another statement, neither envelope nor payload nor log entry verifies."""
        one, other = (sign_keyless(content) for content in (STATEMENT, b" " + STATEMENT))

        for path in (ENVELOPE, (*ENVELOPE, "payload"), (*MATERIAL, "tlogEntries"), (*ENTRY, "canonicalizedBody")):
            with pytest.raises(IntegrityError):
                verified_identity(changed(one, path, lambda _own, path=path: reduce(getitem, path, json.loads(other))))

    @pytest.mark.usefixtures("private")
    def test_the_public_sigstore_does_not_trust_it(self, monkeypatch):
        """Anybody can run an instance; only a named one counts."""
        content = sign_keyless(STATEMENT)
        monkeypatch.delenv(TRUST)

        with pytest.raises(IntegrityError, match="certificate chain"):
            verified_identity(content)

    def test_without_a_private_instance_the_public_one_signs(self, private, ada, monkeypatch):
        """Its services are asked for over the network; verifying what came back is offline, as ever."""
        monkeypatch.delenv(TRUST)
        config, asked = ClientTrustConfig.from_json(json.dumps(private.trust_config)), []
        monkeypatch.setattr(ClientTrustConfig, "production", lambda *, offline: asked.append(offline) or config)

        assert verified_identity(sign_keyless(STATEMENT))[0] == ada
        assert asked == [False, True, True]

    def test_what_is_no_statement_is_never_published(self, private):
        """Bytes that are no in-toto statement are refused before anybody is asked."""
        with pytest.raises(UsageError, match="in-toto"):
            sign_keyless(b"{}")

        assert private.requests == []


class TestWhoSigns:
    """Where the identity comes from."""

    @pytest.mark.parametrize(
        "claims",
        [{"exp": 1}, {"aud": "another"}, {"sub": None}, {"iss": None}],
        ids=["expired", "audience", "sub", "iss"],
    )
    def test_a_token_of_no_use_is_told(self, private, monkeypatch, claims):
        """It is refused before it is shown to anybody, and never printed."""
        token = private.token(**claims)
        monkeypatch.setenv(TOKEN, token)

        with pytest.raises(UsageError, match="not valid") as caught:
            sign_keyless(STATEMENT)
        assert token not in str(caught.value)
        assert private.requests == []

    def test_text_that_is_no_token_is_told(self, private, monkeypatch):
        """So is what was pasted wrongly."""
        monkeypatch.setenv(TOKEN, "no token")

        with pytest.raises(UsageError, match="not valid"):
            sign_keyless(STATEMENT)

    def test_a_forged_token_gets_no_certificate(self, private, monkeypatch):
        """The authority knows the signature of its issuer."""
        of_eve, of_ada = private.token(email="eve@example.org"), private.token()
        monkeypatch.setenv(TOKEN, f"{of_ada.rpartition('.')[0]}.{of_eve.rpartition('.')[2]}")

        with pytest.raises(RegistryError, match="401"):
            sign_keyless(STATEMENT)

    def test_a_job_of_github_signs_without_a_variable(self, private, ada, monkeypatch):
        """CI services hand a token to a job that may have one."""
        monkeypatch.delenv(TOKEN)
        monkeypatch.setattr("sigstore.oidc.detect_credential", DETECT)
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", "job")
        monkeypatch.setenv("ACTIONS_ID_TOKEN_REQUEST_URL", f"{private.url}/token")

        assert verified_identity(sign_keyless(STATEMENT))[0] == ada

    def test_a_job_that_may_not_have_one_is_told(self, private, monkeypatch):
        """The permission is missing most often."""
        monkeypatch.delenv(TOKEN)
        monkeypatch.setattr("sigstore.oidc.detect_credential", DETECT)
        monkeypatch.setenv("GITHUB_ACTIONS", "true")
        monkeypatch.delenv("ACTIONS_ID_TOKEN_REQUEST_TOKEN", raising=False)

        with pytest.raises(RegistryError, match="id-token: write"):
            sign_keyless(STATEMENT)

    def test_a_user_logs_in(self, private, ada, monkeypatch):
        """At a terminal, the browser asks the issuer that the trust configuration names."""

        class Browser:
            def __init__(self, url: str) -> None:
                assert url == private.url

            def identity_token(self) -> sigstore.oidc.IdentityToken:
                return sigstore.oidc.IdentityToken(private.token())

        monkeypatch.delenv(TOKEN)
        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("sigstore.oidc.Issuer", Browser)

        assert verified_identity(sign_keyless(STATEMENT))[0] == ada

    @pytest.mark.parametrize("stdin", [io.StringIO(), None], ids=["pipe", "closed"])
    def test_without_anybody_it_says_how(self, private, monkeypatch, stdin):
        """No token, no job and no terminal: no browser is opened."""
        monkeypatch.setenv(TOKEN, "")
        monkeypatch.setattr(sys, "stdin", stdin)

        with pytest.raises(UsageError, match=TOKEN):
            sign_keyless(STATEMENT)
        assert private.requests == []


class TestLies:
    """What a service may answer, and what is never taken for a signature."""

    @pytest.mark.parametrize(
        "names",
        [
            None,
            [x509.RFC822Name("ada@example.org"), x509.RFC822Name("eve@example.org")],
            [x509.RFC822Name("ada@example.org"), x509.DNSName("example.org")],
            [x509.DNSName("example.org")],
            [x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7"), asn1.encode_der("ada"))],
        ],
        ids=["none", "two", "one-and-a-host", "host", "other"],
    )
    def test_a_certificate_names_one_signer(self, private, names):
        """One e-mail address or URI: of several, a policy would not know which counts."""

        def said(claims):
            return [*([] if names is None else [x509.SubjectAlternativeName(names)]), *said_of(claims)[1:]]

        private.said_of = said

        with pytest.raises(IntegrityError):
            sign_keyless(STATEMENT)

    @pytest.mark.parametrize(
        "issuers",
        [
            {},
            {ISSUER: b"https://one.example", ISSUER_V2: asn1.encode_der("https://other.example")},
            {ISSUER_V2: b"https://one.example"},
            {ISSUER: b"\xff"},
        ],
        ids=["none", "two", "no-der", "no-text"],
    )
    def test_a_certificate_names_one_issuer(self, private, issuers):
        """An address means nothing without who vouches for it."""
        extensions = [x509.UnrecognizedExtension(oid, value) for oid, value in issuers.items()]
        private.said_of = lambda claims: [said_of(claims)[0], *extensions]

        with pytest.raises(IntegrityError):
            sign_keyless(STATEMENT)

    @pytest.mark.parametrize("kept", [1, 2], ids=["old", "new"])
    def test_either_form_of_the_issuer_will_do(self, private, ada, kept):
        """Authorities write the issuer in an old form and a new one; the old one may go."""
        private.said_of = lambda claims: [said_of(claims)[0], said_of(claims)[kept]]

        assert verified_identity(sign_keyless(STATEMENT))[0] == ada

    @pytest.mark.parametrize("seconds", [3600, -3600], ids=["before", "after"])
    def test_the_certificate_must_be_valid_when_it_signs(self, private, seconds):
        """The log says when; a certificate lasts ten minutes."""
        private.log.slow = seconds

        with pytest.raises(IntegrityError):
            sign_keyless(STATEMENT)

    def test_another_log_is_not_trusted(self, private):
        """Promise and checkpoint are of a key that the trust root does not name."""
        private.log.key = Key()

        with pytest.raises(IntegrityError, match="log entry"):
            sign_keyless(STATEMENT)

    def test_another_authority_is_not_trusted(self, private):
        """Its certificates are logged, but not of a root that is trusted."""
        log, private.authority = private.authority.log, Authority()
        private.authority.log = log

        with pytest.raises(IntegrityError, match="certificate chain"):
            sign_keyless(STATEMENT)

    def test_a_certificate_that_is_not_logged_is_not_trusted(self, private):
        """Nor one of another certificate log; the client does not even use it."""
        private.authority.log = Key()

        with pytest.raises(RegistryError, match="SCT"):
            sign_keyless(STATEMENT)

    @pytest.mark.parametrize(
        "entry", [{"logIndex": 3}, {"integratedTime": 1}, {"body": base64.b64encode(b"{}").decode()}], ids=str
    )
    def test_an_entry_that_is_not_as_logged_is_no_signature(self, private, monkeypatch, entry):
        """What the log promised is what must stand in the bundle."""
        add = private.log.add
        monkeypatch.setattr(private.log, "add", lambda proposed: {"uuid": next(iter(add(proposed).values())) | entry})

        with pytest.raises((IntegrityError, RegistryError)):
            sign_keyless(STATEMENT)


class TestBadNetwork:
    """Services that are not there, or not well."""

    SERVICES = pytest.mark.parametrize("path", ["/signingCert", "/log/entries"])

    @SERVICES
    @pytest.mark.parametrize(
        "what",
        [{"status": 500}, {"status": 429}, {"status": 200, "body": b"no JSON"}, {"status": 200}, {"drop_answer": True}],
        ids=["broken", "busy", "no-json", "other-json", "silent"],
    )
    def test_a_service_that_fails_is_told(self, private, path, what):
        """Whatever the client raises, it is our error, and names what happened."""
        private.fault(path, **what)

        with pytest.raises(RegistryError, match="Sigstore gave no signature") as caught:
            sign_keyless(STATEMENT)
        assert caught.value.__cause__ is not None
        assert caught.value.hint

    def test_a_service_that_is_down_is_told(self, private):
        """Nobody listens."""
        private.stop()

        with pytest.raises(RegistryError, match="Connection"):
            sign_keyless(STATEMENT)

    def test_a_public_trust_root_that_cannot_be_fetched_is_told(self, private, monkeypatch):
        """Signing needs the present keys and services of the public instance."""

        def fail(*, offline: bool):
            raise TUFError("Failed to refresh TUF metadata")

        monkeypatch.delenv(TRUST)
        monkeypatch.setattr(ClientTrustConfig, "production", fail)

        with pytest.raises(RegistryError, match="TUF"):
            sign_keyless(STATEMENT)

    def test_its_words_cannot_reach_a_terminal_raw(self, private):
        """What a server says is shown escaped."""
        private.fault("/log/entries", status=400, body={"code": 400, "message": "\x1b[31mred"})

        with pytest.raises(LoraHubError) as caught:
            sign_keyless(STATEMENT)
        assert "\x1b" not in str(caught.value)
        assert "red" in str(caught.value)
