"""A version that was signed without a key, from `sign` over a registry to the rule that names its signer."""

import dataclasses
import shlex

import pytest
from adapter_files import adapter_files

from lora_hub import api, vouch
from lora_hub import trust as trusts
from lora_hub.cli import run
from lora_hub.documents.bundle import SIGNATURE_NAME, Bundle
from lora_hub.documents.signers import Signer
from lora_hub.errors import IntegrityError, MissingExtraError, RegistryError, UntrustedError
from lora_hub.signing.keyless import TRUST
from lora_hub.signing.keys import PrivateKey

REF = "org/task@1.0.0"


@pytest.fixture
def signed(ada, tmp_path, monkeypatch):
    """The directory of an adapter that ada has signed as org/task@1.0.0."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    directory = adapter_files().write(tmp_path / "adapter")
    assert vouch.sign(directory, REF, keyless=True).signer == str(ada)
    return directory


@pytest.fixture
def published(signed, tmp_path):
    """The directory of the registry in which that is published."""
    api.push(signed, REF, registry=tmp_path / "registry")
    return tmp_path / "registry"


def test_a_rule_that_names_the_identity_accepts(published, ada):
    """Who is trusted by name and issuer needs no key; the handle says who signed, also from the store."""
    trusts.trust_identity(ada, scope="org/*")

    assert api.pull(REF, registry=published).adapter.signers == (Signer(ada),)
    assert api.pull(REF, registry=published, offline=True).adapter.signers == (Signer(ada),)
    assert vouch.verify(REF, registry=published).adapter.signers == (Signer(ada),)


@pytest.mark.parametrize("change", [{"identity": "eve@example.org"}, {"issuer": "https://accounts.example"}], ids=str)
def test_another_name_or_issuer_is_somebody_else(published, ada, change):
    """A name is worth what the issuer who gave it is worth: both must be those of the rule (5)."""
    trusts.trust_identity(dataclasses.replace(ada, **change), scope="org/*")

    with pytest.raises(UntrustedError) as caught:
        api.pull(REF, registry=published)
    assert str(ada) in caught.value.message


def test_the_line_of_the_refusal_trusts_the_signer(published, ada, capsys):
    """Where nobody is named, the refusal says who signed without a key, and the line that trusts them can be pasted."""
    assert run(["verify", REF, "--registry", str(published)]) == 5
    line = next(part for part in capsys.readouterr().err.split("`") if part.startswith("lora-hub trust add --identity"))

    assert run(shlex.split(line)[1:]) == 0
    assert run(["pull", REF, "--registry", str(published)]) == 0


def test_a_key_and_an_identity_make_two(signed, ada, tmp_path):
    """One who signs with a key and one who signs without meet a threshold of two together, and neither alone (5)."""
    key = PrivateKey.generate()
    (tmp_path / "bob.key").touch(mode=0o600)
    (tmp_path / "bob.key").write_bytes(key.to_openssh(None))
    trusts.trust_key(key.public, scope="org/*", name="bob")
    trusts.trust_identity(ada, scope="org/*", threshold=2)
    with pytest.raises(UntrustedError):
        vouch.verify(signed)
    vouch.sign(signed, key=tmp_path / "bob.key", add=True)

    assert set(vouch.verify(signed).adapter.signers) == {Signer(ada), Signer(key.public.fingerprint)}


def test_what_ada_signed_is_not_another_version(signed, ada, tmp_path):
    """Her signature beside another manifest is a signature of something else (6)."""
    trusts.trust_identity(ada, scope="org/*")
    other = adapter_files(seed=1).write(tmp_path / "other")
    vouch.sign(other, REF, keyless=True)
    (signed / SIGNATURE_NAME).write_bytes((other / SIGNATURE_NAME).read_bytes())

    with pytest.raises(IntegrityError, match=SIGNATURE_NAME):
        vouch.verify(signed)


def test_a_rule_that_names_identities_needs_the_extra(published, ada, monkeypatch):
    """Without sigstore, whoever trusts identities is told what to install (2), and not that nobody signed."""
    trusts.trust_identity(ada, scope="org/*")
    monkeypatch.setitem(__import__("sys").modules, "sigstore.models", None)

    with pytest.raises(MissingExtraError, match="sigstore"):
        api.pull(REF, registry=published)


def test_what_keyless_strangers_sign_is_not_looked_at(published, monkeypatch, tmp_path):
    """Where a rule names keys alone, a keyless bundle, even one that does not verify, counts for nothing (5)."""
    trusts.trust_key(PrivateKey.generate().public, scope="org/*", name="bob")
    monkeypatch.delenv(TRUST)  # so that no authority known here made it

    with pytest.raises(UntrustedError, match="somebody keyless"):
        api.pull(REF, registry=published)
    assert Bundle.parse((published / "org" / "task" / "1.0.0" / SIGNATURE_NAME).read_bytes()).hint is None


def test_offline_nobody_signs_without_a_key(ada, private, tmp_path, monkeypatch):
    """Where the network must not be used, no service is asked (4)."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    directory = adapter_files().write(tmp_path / "adapter")

    with pytest.raises(RegistryError, match="network"):
        vouch.sign(directory, REF, keyless=True)
    assert private.requests == []
