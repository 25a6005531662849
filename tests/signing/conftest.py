"""A private Sigstore on this machine, for those who sign without a key."""

import io
import json
import sys
from collections.abc import Iterator

import pytest
from loopback_sigstore import LoopbackSigstore

from lora_hub.documents.signers import Identity
from lora_hub.signing.keyless import TOKEN, TRUST


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """No CI job, no user, no proxy, and no cache of sigstore."""
    for name in (TOKEN, TRUST, "GOOGLE_SERVICE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda: None)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def private(nobody, tmp_path, monkeypatch) -> Iterator[LoopbackSigstore]:
    """A private Sigstore that is trusted, and the identity of `ada@example.org`."""
    with LoopbackSigstore() as private:
        trust = tmp_path / "trust_config.json"
        trust.write_text(json.dumps(private.trust_config), encoding="utf-8")
        monkeypatch.setenv(TRUST, str(trust))
        monkeypatch.setenv(TOKEN, private.token())
        yield private


@pytest.fixture
def ada(private) -> Identity:
    """Who signs there."""
    return Identity(identity="ada@example.org", issuer=private.url)
