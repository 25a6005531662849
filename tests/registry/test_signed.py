"""Signed versions in every registry: published with their signatures, and verified wherever they come from."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from adapter_files import MANIFEST_NAME, adapter_files
from hypothesis import given
from hypothesis import strategies as st
from publishers import environment, race
from tampering import Place

from lora_hub import api, vouch
from lora_hub import trust as trusts
from lora_hub.documents import manifest as manifests
from lora_hub.documents.bundle import SIGNATURE_NAME, Bundle, further_name
from lora_hub.documents.manifest import VERSION_FILES, Manifest
from lora_hub.documents.signers import PublicKey, Signer
from lora_hub.documents.statement import SignedFiles
from lora_hub.documents.trust_entries import Key, Revocation, Rule
from lora_hub.documents.trust_policy import NOBODY, TrustPolicy
from lora_hub.documents.verified_adapter import manifest_digest, verify
from lora_hub.errors import (
    IntegrityError,
    LoraHubError,
    MalformedError,
    PolicyError,
    RegistryError,
    UntrustedError,
    VersionConflictError,
)
from lora_hub.reference import AdapterRef
from lora_hub.registry.find import find
from lora_hub.registry.lock import read_lock
from lora_hub.registry.object_store import ObjectStoreRegistry
from lora_hub.registry.proof import Evidence, judge, prove
from lora_hub.registry.registry import Registry
from lora_hub.registry.signatures import signer_of
from lora_hub.registry.terms import Terms
from lora_hub.signing.keys import PrivateKey
from lora_hub.signing.sign import sign

REF = "org/task@1.0.0"
OVER_XET = "hub_over_xet"
OBJECT_STORES = ["memory_registry", "s3_registry"]

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def publish(key_of, tmp_path):
    """Publish as alice, or somebody else who has a key, and return that; *seed* chooses the numbers of the adapter."""

    def publish(registry: Registry, reference: str = REF, *, by: str = "alice", seed: int = 0) -> PublicKey:
        key = key_of(by)
        api.push(written(tmp_path, seed), reference, registry=registry)
        return key

    return publish


def written(tmp_path: Path, seed: int = 0, name: str = "adapter") -> Path:
    """Return the directory of an adapter that nobody has published yet; *seed* chooses its numbers."""
    return adapter_files(seed=seed).write(tmp_path / f"{name}-{seed}")


def trusting(*keys: PublicKey, scope: str = "org/*", threshold: int = 1) -> None:
    """Trust these keys from now on."""
    for key in keys:
        trusts.trust_key(key, scope=scope)
    trusts.trust_key(keys[0], scope=scope, threshold=threshold)


def signers(*keys: PublicKey) -> set[Signer]:
    return {Signer(key.fingerprint) for key in keys}


def refused(code: int, reference: str, registry: Registry) -> LoraHubError:
    """Return the error with which a pull is refused; it has this exit code, and says what to do."""
    with pytest.raises(LoraHubError) as caught:
        api.pull(reference, registry=registry)

    assert caught.value.exit_code == code, caught.value
    assert caught.value.hint
    return caught.value


# One's own


def test_a_push_with_a_key_publishes_its_signature(registry, place, key_of, tmp_path):
    """`model.sig` lies beside the three files, names the key, and is over the manifest that was published."""
    key = key_of("alice")
    pushed = api.push(written(tmp_path), REF, registry=registry)
    files = place.files(REF)
    signer, payload = prove(files[SIGNATURE_NAME], {key.fingerprint: key}, ())
    manifest = files[MANIFEST_NAME]

    assert files.keys() == {*VERSION_FILES, SIGNATURE_NAME}
    assert (signer, pushed.signers) == (Signer(key.fingerprint), (key.fingerprint,))
    SignedFiles.parse(payload).check(pushed.digest, lambda: Manifest.parse(manifest), source="test")


@pytest.mark.parametrize("reference", [REF, "org/task", "org/task@1"])
def test_what_one_signs_oneself_needs_no_word_of_trust(registry, key_of, tmp_path, reference):
    """One's own push and pull need nothing but the key, and make no pin."""
    key = key_of("alice")
    before = trusts.trust().path.read_bytes()
    pushed = api.push(written(tmp_path), REF, registry=registry)
    pulled = api.pull(reference, registry=registry)

    assert pulled.digest == pushed.digest
    assert set(pulled.adapter.signers) == signers(key)
    assert trusts.trust().path.read_bytes() == before
    assert key.fingerprint in pulled.reason


def test_others_trust_the_key(registry, publish, become):
    """Whoever has a rule for the key pulls what it signed, and is told who did."""
    key = publish(registry)
    become("reader")
    trusting(key)
    pulled = [api.pull(reference, registry=registry) for reference in ("org/task", REF, REF)]

    assert [set(one.adapter.signers) for one in pulled] == [signers(key)] * 3


def test_a_signature_is_kept_in_the_store(registry, place, publish, become):
    """What was verified lies beside the adapter, byte for byte; what was not is not kept."""
    key = publish(registry)
    place.change(REF, {"model.00000000.sig": strange_bundle(place.files(REF)[MANIFEST_NAME])})
    become("reader")
    trusting(key)
    pulled = api.pull(REF, registry=registry)

    assert api.store().bundles(pulled.digest) == {SIGNATURE_NAME: place.signatures(REF)[SIGNATURE_NAME]}


def strange_bundle(manifest: bytes) -> bytes:
    """A signature of nobody's key over a manifest."""
    key = PrivateKey.generate()
    return sign(SignedFiles.of(manifest, Manifest.parse(manifest), public_key=key.public.pem).to_bytes(), key)


def test_the_same_push_again_is_a_success(registry, place, key_of, tmp_path, monkeypatch):
    """Every signature is another one, but the content is the same: what lies there stays, and is adopted."""
    key = key_of("alice")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    first = api.push(written(tmp_path), REF, registry=registry)
    before = place.files(REF)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000600")
    second = api.push(written(tmp_path), REF, registry=registry)

    assert (first.is_new, second.is_new) == (True, False)
    assert first.digest == second.digest
    assert second.signers == (key.fingerprint,)
    assert place.files(REF) == before


def test_the_same_content_of_another_signer_is_a_success(registry, place, publish, key_of, tmp_path):
    """Who pushes what somebody else has signed adopts that signature, and is told whose it is."""
    alice = publish(registry)
    before = place.files(REF)
    key_of("bob")
    pushed = api.push(written(tmp_path), REF, registry=registry)

    assert (pushed.is_new, pushed.signers) == (False, (alice.fingerprint,))
    assert place.files(REF) == before


def test_what_was_published_unsigned_stays_so(registry, place, become, key_of, tmp_path):
    """A version never changes: who has a key only later signs the next one."""
    become("alice")
    api.push(written(tmp_path), REF, registry=registry)
    key_of("alice")
    pushed = api.push(written(tmp_path), REF, registry=registry)

    assert (pushed.is_new, pushed.signers) == (False, ())
    assert place.signatures(REF) == {}


def test_a_named_key_signs(registry, place, key_of, become, tmp_path):
    """`key=` names the file of another key than that of the org."""
    key = key_of("alice")
    become("bob")
    pushed = api.push(written(tmp_path), REF, registry=registry, key=tmp_path / "alice" / "keys" / "org.key")

    assert pushed.signers == (key.fingerprint,)
    assert prove(place.signatures(REF)[SIGNATURE_NAME], {key.fingerprint: key}, ())[1]


def test_nothing_is_written_into_the_pushed_directory(registry, key_of, tmp_path):
    """The directory of the user has no signature after a push, and no other file than before."""
    key_of("alice")
    directory = written(tmp_path)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    api.push(directory, REF, registry=registry)

    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


# Several signers


@pytest.fixture
def signed_by_two(key_of, tmp_path):
    """A directory in which alice and bob have signed `org/task@1.0.0`, and their keys."""
    directory = written(tmp_path, name="signed")
    alice = key_of("alice")
    vouch.sign(directory, REF)
    bob = key_of("bob")
    vouch.sign(directory, add=True)
    return directory, alice, bob


@pytest.mark.parametrize("by", ["bob", "carol"])
def test_two_signers(registry, place, signed_by_two, become, by):
    """Both signatures are published, whoever pushes, and a rule that needs two of them is satisfied."""
    directory, alice, bob = signed_by_two
    become(by)
    pushed = api.push(directory, REF, registry=registry)
    become("reader")
    trusting(alice, bob, threshold=2)
    pulled = api.pull("org/task", registry=registry)

    assert place.signatures(REF).keys() == {SIGNATURE_NAME, further_name(bob.fingerprint)}
    assert set(pushed.signers) == {alice.fingerprint, bob.fingerprint}
    assert pushed.left_out == ()
    assert set(pulled.adapter.signers) == signers(alice, bob)
    assert api.store().bundles(pulled.digest) == place.signatures(REF)


def test_a_third_signer_is_added_by_the_push(registry, place, signed_by_two, key_of):
    """Who pushes with a key of their own signs beside the others."""
    directory, alice, bob = signed_by_two
    carol = key_of("carol")
    pushed = api.push(directory, REF, registry=registry)
    trusting(alice, bob, carol, threshold=3)

    assert set(pushed.signers) == {alice.fingerprint, bob.fingerprint, carol.fingerprint}
    assert set(api.pull(REF, registry=registry).adapter.signers) == signers(alice, bob, carol)


def test_one_of_two_is_not_enough(registry, publish, key_of, become):
    """Where two must have signed, one alone is refused (5), and named."""
    alice, bob = publish(registry), key_of("bob")
    become("reader")
    trusting(alice, bob, threshold=2)
    error = refused(5, REF, registry)

    assert f"signed by key {alice.fingerprint} alone" in error.message
    assert "2 of its 2 signers" in error.message


def test_one_signer_twice_is_one(registry, place, publish, key_of, become):
    """Two signatures of one key are one signer, whatever their files are called (5)."""
    alice, bob = publish(registry), key_of("bob")
    place.change(REF, {further_name(bob.fingerprint): place.signatures(REF)[SIGNATURE_NAME]})
    become("reader")
    trusting(alice, bob, threshold=2)

    refused(5, REF, registry)


def test_signatures_of_another_version_are_left_out(registry, place, signed_by_two, become):
    """What was signed as 1.0.0 and is pushed as 1.1.0 has no signatures then, and that is told."""
    directory, _, bob = signed_by_two
    become("carol")
    pushed = api.push(directory, "org/task@1.1.0", registry=registry)

    assert set(pushed.left_out) == {SIGNATURE_NAME, further_name(bob.fingerprint)}
    assert place.signatures("org/task@1.1.0") == {}


# The next version


@pytest.mark.parametrize("over", [OVER_XET, "hub_over_lfs"])
@pytest.mark.parametrize(
    ("first", "second"),
    [("1.0.0", "1.1.0"), ("2.0.0", "1.0.0"), ("1.0.0", "2.0.0-rc.1")],
    ids=["main", "side branch", "pre-release"],
)
@pytest.mark.parametrize("by", [None, "carol"], ids=["unsigned", "signed by another"])
def test_a_version_inherits_no_signature(
    request, hub, over, signed_by_two, become, key_of, tmp_path, first, second, by
):
    """The signatures of the version before are gone from the branch; those of the old version verify by its tag."""
    registry = request.getfixturevalue(over)
    place, (directory, alice, bob) = Place(registry, hub), signed_by_two
    if first != "1.0.0":
        directory = signed_again(directory, tmp_path, f"org/task@{first}", become)
    api.push(directory, f"org/task@{first}", registry=registry)
    carol = key_of(by) if by else become("nobody") and None
    api.push(written(tmp_path, 7), f"org/task@{second}", registry=registry)
    become("reader")
    trusting(alice, bob, *([carol] if carol else []))

    assert place.signatures(f"org/task@{first}").keys() == {SIGNATURE_NAME, further_name(bob.fingerprint)}
    assert set(api.pull(f"org/task@{first}", registry=registry).adapter.signers) == signers(alice, bob)
    assert place.signatures(f"org/task@{second}").keys() == ({SIGNATURE_NAME} if carol else set())
    if carol:
        assert set(api.pull(f"org/task@{second}", registry=registry).adapter.signers) == signers(carol)
    else:
        refused(5, f"org/task@{second}", registry)


def signed_again(directory: Path, tmp_path: Path, reference: str, become) -> Path:
    """Return a copy of *directory* that alice and bob have signed as *reference*."""
    other = tmp_path / "again"
    shutil.copytree(directory, other, ignore=shutil.ignore_patterns("*.sig", MANIFEST_NAME))
    become("alice")
    vouch.sign(other, reference)
    become("bob")
    vouch.sign(other, add=True)
    return other


@pytest.mark.parametrize("over", [OVER_XET, "hub_over_lfs"])
def test_main_has_the_signature_of_the_version_that_it_is(request, hub, over, publish):
    """Whoever loads the newest from `main` finds the signature of just that version there."""
    registry = request.getfixturevalue(over)
    for seed, version in enumerate(("1.0.0", "1.1.0", "0.9.0")):
        publish(registry, f"org/task@{version}", seed=seed)
    repo = hub.repo("org/task")

    assert repo.files("main")[SIGNATURE_NAME] == repo.files("v1.1.0")[SIGNATURE_NAME]
    assert len({repo.files(tag)[SIGNATURE_NAME] for tag in repo.tags}) == 3


# What is not signed for this


@pytest.mark.parametrize("new", ["org/task@1.0.1", "org/task@0.9.0", "org/other@1.0.0"])
def test_a_version_that_was_signed_as_another_is_refused(registry, place, publish, become, new):
    """Files that were copied under another name or version are refused (6), however well they are signed."""
    key = publish(registry)
    place.copy(REF, new)
    become("reader")
    trusting(key)
    error = refused(6, new, registry)

    assert REF in error.message


def test_a_copy_under_the_highest_version_is_refused(registry, place, publish, become):
    """A floating reference does not fall for a copy either (6)."""
    key = publish(registry)
    place.copy(REF, "org/task@9.0.0")
    become("reader")
    trusting(key)

    refused(6, "org/task", registry)
    assert str(api.pull(REF, registry=registry).reference) == REF


@pytest.mark.parametrize("reference", [REF, "org/task"])
def test_what_is_unsigned_is_refused_where_a_rule_covers_it(registry, become, key_of, tmp_path, reference):
    """Where somebody must have signed, nobody is not enough (5), in a directory of this machine as well."""
    become("alice")
    api.push(written(tmp_path), REF, registry=registry)
    bob = key_of("bob")
    error = refused(5, reference, registry)

    assert "is unsigned" in error.message
    assert "trust pin" in error.hint
    assert bob.fingerprint not in error.message


def test_a_signature_of_a_stranger_is_refused(registry, publish, key_of):
    """Who signed is named, and is not enough (5) unless the rule names them."""
    alice = publish(registry)
    key_of("bob")
    error = refused(5, REF, registry)

    assert f"signed by key {alice.fingerprint}" in error.message
    assert f"trust add {alice.fingerprint} --from {REF}" in error.hint


def test_without_a_rule_a_directory_of_this_machine_is_trusted(directory_registry, publish, become):
    """In one's own directory, what no rule covers may be used, signed or not; then no signature is looked at."""
    publish(directory_registry)
    Place(directory_registry).change(REF, {SIGNATURE_NAME: b"{"})
    become("reader")

    assert api.pull(REF, registry=directory_registry).adapter.signers == ()


@pytest.mark.parametrize("reference", [REF, "org/task"])
def test_a_signature_that_is_stripped_is_missed(registry, place, publish, become, reference):
    """Without its signature a version is an unsigned one (5)."""
    key = publish(registry)
    place.change(REF, {SIGNATURE_NAME: None})
    become("reader")
    trusting(key)

    assert "is unsigned" in refused(5, reference, registry).message


def test_a_signature_of_another_version_is_refused(registry, place, publish, become):
    """A good signature over other files is none (6)."""
    key = publish(registry)
    publish(registry, "org/task@1.1.0", seed=1)
    place.change(REF, place.signatures("org/task@1.1.0"))
    become("reader")
    trusting(key)

    refused(6, REF, registry)


def test_a_signature_by_another_key_in_its_name_is_refused(registry, place, publish, become):
    """Whoever signs with a key of their own and names a trusted one has signed nothing (6)."""
    key = publish(registry)
    forged = json.loads(strange_bundle(place.files(REF)[MANIFEST_NAME]))
    forged["verificationMaterial"]["publicKey"]["hint"] = key.fingerprint
    place.change(REF, {SIGNATURE_NAME: json.dumps(forged).encode()})
    become("reader")
    trusting(key)

    assert "signature" in refused(6, REF, registry).message


@pytest.mark.parametrize("name", [*VERSION_FILES])
def test_a_file_that_was_changed_after_it_was_signed_is_refused(registry, place, publish, become, name):
    """Whatever file of a signed version has one other byte, the version is refused (6), and nothing is stored."""
    key = publish(registry)
    content = bytearray(place.files(REF)[name])
    content[-3] ^= 1
    place.change(REF, {name: bytes(content)})
    become("reader")
    trusting(key)

    refused(6, REF, registry)
    assert list(api.store().adapters()) == []


BUNDLE_KEY = PrivateKey.generate()
DRAFT = verify(adapter_files().files(), source="test").manifest.to_bytes()
MANIFEST = manifests.publish(DRAFT, reference=AdapterRef.parse(REF), created="2026-01-31T12:00:00Z")
SIGNED = SignedFiles.of(MANIFEST, Manifest.parse(MANIFEST), public_key=BUNDLE_KEY.public.pem)


def test_no_bit_of_a_signature_can_be_flipped():
    """With any one bit flipped a bundle is refused, or is one of a key that nobody has."""
    bundle = sign(SIGNED.to_bytes(), BUNDLE_KEY)
    keys = {BUNDLE_KEY.public.fingerprint: BUNDLE_KEY.public}
    accepted = []
    for position in range(len(bundle) * 8):
        flipped = bytearray(bundle)
        flipped[position // 8] ^= 1 << position % 8
        try:
            _, payload = prove(flipped, keys, ())
        except (IntegrityError, MalformedError):
            continue
        accepted += [position] if payload is not None else []

    assert prove(bundle, keys, ())[1] == SIGNED.to_bytes()
    assert accepted == []


# What is in the store already


@pytest.fixture
def hub_registry_place(hub, hub_over_xet) -> Place:
    """What lies on the Hub."""
    return Place(hub_over_xet, hub)


@pytest.fixture
def pulled(hub, hub_over_xet, publish, become) -> PublicKey:
    """The key that signed org/task@1.0.0, which is on the Hub and in the store of a reader; the log is empty."""
    key = publish(hub_over_xet)
    become("reader")
    trusting(key)
    api.pull("org/task", registry=hub_over_xet)
    hub.clear()
    return key


@pytest.mark.parametrize("reference", [REF, "org/task", "org/task@^1.0", "org/task@1"])
def test_offline_a_signed_version_is_there(hub, hub_over_xet, pulled, reference):
    """What was accepted is found without the network, by range as well, and its signature is verified again."""
    found = api.pull(reference, registry=hub_over_xet, offline=True)

    assert str(found.reference) == REF
    assert set(found.adapter.signers) == signers(pulled)
    assert hub.requests == []


def test_an_exact_signed_version_in_the_store_needs_no_request(hub, hub_over_xet, pulled):
    """Online as well, what is named exactly and can be verified here asks nobody."""
    assert set(api.pull(REF, registry=hub_over_xet).adapter.signers) == signers(pulled)
    assert hub.requests == []


@pytest.mark.parametrize("registry", [OVER_XET, "directory_registry"], indirect=True)
@pytest.mark.parametrize(
    ("withdraw", "told"),
    [
        (lambda key, digest: trusts.revoke(key.fingerprint), "revoked"),
        (lambda key, digest: trusts.revoke(digest, reason="it leaks"), "it leaks"),
        (lambda key, digest: give_window(key, "not_after = 2001-01-01T00:00:00Z"), "not valid now"),
        (lambda key, digest: give_window(key, "not_before = 2999-01-01T00:00:00Z"), "not valid now"),
    ],
    ids=["key revoked", "digest revoked", "too late", "too early"],
)
@pytest.mark.parametrize("offline", [False, True], ids=["online", "offline"])
def test_what_is_in_the_store_can_be_withdrawn(registry, publish, become, withdraw, told, offline):
    """A revocation, or the end of a key, takes effect on what is in the store already (7)."""
    key = publish(registry)
    become("reader")
    trusting(key)
    digest = api.pull(REF, registry=registry).digest
    withdraw(key, digest)
    with pytest.raises(PolicyError) as caught:
        api.pull(REF, registry=registry, offline=offline)

    assert told in caught.value.message
    assert api.store().has(digest)


def give_window(key: PublicKey, line: str) -> None:
    """Write by hand when the key is valid."""
    path = trusts.trust().path
    path.write_text(path.read_text().replace('pem = """', f'{line}\npem = """', 1))


def test_who_is_not_trusted_any_more_is_not_trusted_for_the_store_either(hub_over_xet, pulled):
    """A key that is taken out of the policy counts no more for what is in the store (5)."""
    trusts.untrust(pulled.fingerprint)

    refused(5, REF, hub_over_xet)


def test_more_signatures_in_the_registry_are_picked_up(hub, hub_over_xet, hub_registry_place, pulled, key_of, become):
    """What the store has too few signatures of is verified with those that the registry has got since."""
    place, manifest = hub_registry_place, hub_registry_place.files(REF)[MANIFEST_NAME]
    bob = PrivateKey.generate()
    trusting(pulled, bob.public, threshold=2)
    refused(5, REF, hub_over_xet)
    further = sign(SignedFiles.of(manifest, Manifest.parse(manifest)).to_bytes(), bob)
    place.change(REF, {further_name(bob.public.fingerprint): further})
    hub.clear()
    found = api.pull(REF, registry=hub_over_xet)

    assert hub.count("cdn") == 0  # no weights move for a signature
    assert set(found.adapter.signers) == signers(pulled, bob.public)
    assert api.store().bundles(found.digest) == place.signatures(REF)
    assert api.pull(REF, registry=hub_over_xet, offline=True).digest == found.digest


def test_a_signature_that_the_store_has_lost_is_fetched_again(hub_over_xet, hub_registry_place, pulled):
    """Whoever removes a signature from the store gets it back from the registry."""
    (stored,) = api.store().adapters()
    (stored.path / SIGNATURE_NAME).unlink()
    api.pull(REF, registry=hub_over_xet)

    assert api.store().bundles(stored.digest) == hub_registry_place.signatures(REF)


def test_a_signature_that_the_store_has_spoilt_is_refused(hub_over_xet, pulled):
    """A signature in the store that is none any more is no signature, also offline; the adapter can be pulled anew."""
    (stored,) = api.store().adapters()
    (stored.path / SIGNATURE_NAME).write_bytes(b"{")
    with pytest.raises(LoraHubError) as caught:
        api.pull(REF, registry=hub_over_xet, offline=True)
    api.store().remove(stored.digest)

    assert "cache remove" in caught.value.hint
    assert set(api.pull(REF, registry=hub_over_xet).adapter.signers) == signers(pulled)


def test_a_digest_needs_no_signature(hub, hub_over_xet, publish, become):
    """Who names the digest trusts that: the signature is neither asked for nor named."""
    publish(hub_over_xet)
    digest = find(hub_over_xet, AdapterRef.parse(REF)).digest
    become("reader")
    hub.clear()
    found = api.pull(f"org/task@{digest}", registry=hub_over_xet)

    assert found.adapter.signers == ()
    assert hub.count(path=SIGNATURE_NAME) == 0


# What it costs

PULLS = {  # requests to the Hub, and to its CDN, of a reader whose store is empty
    "exact": (REF, 7, 1),
    "floating": ("org/task", 7, 1),
}


@pytest.mark.parametrize("how", PULLS)
def test_the_first_pull_of_a_signed_version(hub, hub_over_xet, publish, become, how):
    """Refs, files, manifest, signature, yanks, config, and the weights by one redirect: seven requests."""
    key = publish(hub_over_xet)
    become("reader")
    trusting(key)
    reference, asked, fetched = PULLS[how]
    hub.clear()
    api.pull(reference, registry=hub_over_xet)

    assert (hub.count("hub"), hub.count("cdn")) == (asked, fetched)


def test_a_signature_costs_a_push_nothing(hub, hub_over_xet, become, key_of, tmp_path):
    """It goes with the same commit: a signed push makes as many requests as an unsigned one."""
    counts = []
    for seed, (name, be) in enumerate([("org/one", become), ("org/two", key_of)]):
        be(name.partition("/")[2])
        hub.clear()
        api.push(written(tmp_path, seed), f"{name}@1.0.0", registry=hub_over_xet)
        counts.append(len(hub.requests))

    assert counts[0] == counts[1]


# Lock files


def test_a_lock_entry_names_the_signers(registry, signed_by_two, become, tmp_path):
    """Whoever reads the lock file sees who vouched for what is locked."""
    directory, alice, bob = signed_by_two
    become("carol")
    api.push(directory, REF, registry=registry)
    become("reader")
    trusting(alice, bob)
    api.lock(["org/task"], lock=tmp_path / "x.lock", registry=registry)
    (entry,) = read_lock(tmp_path / "x.lock").entries

    assert set(entry.signer.split(", ")) == {f"key {alice.fingerprint}", f"key {bob.fingerprint}"}


def test_what_is_not_trusted_is_not_locked(registry, publish, key_of, tmp_path):
    """Nothing is locked that may not be used (5), and no lock file is written."""
    publish(registry)
    key_of("bob")
    with pytest.raises(UntrustedError):
        api.lock(["org/task"], lock=tmp_path / "x.lock", registry=registry)

    assert not (tmp_path / "x.lock").exists()


def test_a_locked_pull_needs_no_key(registry, publish, become, tmp_path):
    """The digest in the lock file is trust enough on another machine; by a rule, the signature is fetched then."""
    key = publish(registry)
    lock = tmp_path / "x.lock"
    api.lock([REF], lock=lock, registry=registry)
    become("reader")
    (locked,) = api.pull_locked(lock=lock)
    trusting(key)

    assert locked.adapter.signers == ()
    assert set(api.pull(REF, registry=registry).adapter.signers) == signers(key)


def test_what_is_revoked_is_not_installed_from_a_lock_file(registry, publish, become, tmp_path):
    """A revoked digest is refused (7), whoever locked it."""
    publish(registry)
    lock = tmp_path / "x.lock"
    api.lock([REF], lock=lock, registry=registry)
    (entry,) = read_lock(lock).entries
    become("reader")
    trusts.revoke(entry.digest)

    with pytest.raises(PolicyError, match="is revoked"):
        list(api.pull_locked(lock=lock))
    assert list(api.store().adapters()) == []


# Many publishers


@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.full)])
@pytest.mark.parametrize("kind", ["directory_registry", "s3_registry", OVER_XET])
def test_of_many_signing_publishers_one_wins(hub, request, key_of, become, tmp_path, kind, count):
    """Processes with keys of their own publish one version: one wins, the others get 10, and it verifies."""
    registry = request.getfixturevalue(kind)
    keys = [key_of(f"publisher-{number}") for number in range(count)]
    outcomes = race(
        (
            ["push", written(tmp_path, number), REF, "--json"],
            environment(hub, tmp_path / f"publisher-{number}", LORA_HUB_REGISTRY=registry.url),
        )
        for number in range(count)
    )
    winners = [number for number, outcome in enumerate(outcomes) if outcome.code == 0]
    become("reader")
    trusting(*keys)
    pulled = api.pull(REF, registry=registry)

    assert sorted(outcome.code for outcome in outcomes) == [0] + [10] * (count - 1), outcomes
    assert set(pulled.adapter.signers) == signers(keys[winners[0]])
    assert pulled.digest == json.loads(outcomes[winners[0]].out)["digest"]


@pytest.mark.parametrize("kind", ["directory_registry", "s3_registry", OVER_XET])
def test_signers_of_the_same_content_all_succeed(hub, request, key_of, become, tmp_path, kind):
    """Several publishers of one content with keys of their own all succeed, and what is there verifies."""
    registry = request.getfixturevalue(kind)
    keys = [key_of(f"publisher-{number}") for number in range(4)]
    outcomes = race(
        (
            ["push", written(tmp_path), REF, "--json"],
            environment(hub, tmp_path / f"publisher-{number}", LORA_HUB_REGISTRY=registry.url),
        )
        for number in range(4)
    )
    become("reader")
    trusting(*keys)
    found = set(api.pull(REF, registry=registry).adapter.signers)

    assert [outcome.code for outcome in outcomes] == [0] * 4, outcomes
    assert found
    assert found <= signers(*keys)


# Object stores


class Crash(BaseException):
    """What no code of ours catches, as if the process were gone."""


def die_before(registry: ObjectStoreRegistry, name: str, action=None) -> None:
    """Run *action*, or die, before this publisher writes the first file whose path ends with *name*."""
    write, is_due = registry._fs.pipe_file, True

    def pipe_file(path, *args, **kwargs):
        nonlocal is_due
        if is_due and path.endswith(name):
            is_due = False
            if action is None:
                raise Crash
            action()
        return write(path, *args, **kwargs)

    registry._fs.pipe_file = pipe_file


@pytest.fixture(params=OBJECT_STORES)
def object_store(request) -> ObjectStoreRegistry:
    """An empty registry in each kind of object store."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def died(object_store, key_of, tmp_path, monkeypatch):
    """Let alice die in the middle of her push, before she writes this file."""

    def died(name: str) -> PublicKey:
        key = key_of("alice")
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
        registry = ObjectStoreRegistry(object_store.url)
        die_before(registry, name)
        with pytest.raises(Crash):
            api.push(written(tmp_path), REF, registry=registry)
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000600")
        return key

    return died


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", SIGNATURE_NAME, MANIFEST_NAME])
def test_what_a_dead_publisher_left_is_completed_by_another_signer(object_store, died, key_of, become, tmp_path, name):
    """The next push of the same content, signed by another key, completes what was claimed, and it verifies."""
    died(f"/{name}")
    bob = key_of("bob")
    pushed = api.push(written(tmp_path), REF, registry=object_store)
    become("reader")
    trusting(bob)
    pulled = api.pull(REF, registry=object_store)

    assert pushed.digest == pulled.digest
    assert bob.fingerprint in pushed.signers
    assert signers(bob) <= set(pulled.adapter.signers)
    assert pulled.adapter.manifest.created == "2001-09-09T01:46:40Z"  # the time of the first try


def test_signatures_are_not_dropped_for_the_claim_of_a_dead_publisher(object_store, died, signed_by_two, become):
    """What two have signed is never published without their signatures, since it could not be signed any more."""
    directory, alice, bob = signed_by_two
    died(f"/{MANIFEST_NAME}")
    become("carol")
    with suppress(RegistryError, VersionConflictError):
        api.push(directory, REF, registry=object_store)
    is_there = bool(object_store.listing(AdapterRef.parse(REF)).versions)
    found = set(map(signer_of, Place(object_store).signatures(REF).values())) if is_there else set()

    assert not is_there or found >= {alice.fingerprint, bob.fingerprint}


def test_a_slower_publisher_does_not_replace_a_signature(object_store, key_of, become, tmp_path):
    """What is published keeps the signature with which it appeared, whoever was about to write another one."""
    alice, slow = key_of("alice"), ObjectStoreRegistry(object_store.url)

    def publish_first():
        become("alice")
        assert api.push(written(tmp_path), REF, registry=object_store).signers == (alice.fingerprint,)

    key_of("bob")
    die_before(slow, "/adapter_config.json", publish_first)
    api.push(written(tmp_path), REF, registry=slow)
    become("reader")
    trusting(alice)

    assert signers(alice) <= set(api.pull(REF, registry=object_store).adapter.signers)


# Two policies

POOL = [PrivateKey.generate() for _ in range(3)]
BUNDLES = {
    number: sign(SignedFiles.of(MANIFEST, Manifest.parse(MANIFEST)).to_bytes(), key) for number, key in enumerate(POOL)
}
KEYS = tuple(Key(name=str(number), public=key.public) for number, key in enumerate(POOL))


@st.composite
def policies(draw) -> TrustPolicy:
    """A policy that knows some keys, with rules for some scopes and some revocations."""
    rules = {}
    for scope in draw(st.lists(st.sampled_from(["org/task", "org/*", "*", "org/other"]), unique=True, max_size=2)):
        names = draw(st.lists(st.sampled_from(["0", "1", "2"]), unique=True, min_size=1))
        rules[scope] = Rule(scope=scope, keys=tuple(names), threshold=draw(st.integers(1, len(names))))
    revoked = draw(st.lists(st.sampled_from([*KEYS, None]), max_size=2))
    revocations = [
        Revocation(key=k.fingerprint) if k else Revocation(digest=manifest_digest(MANIFEST)) for k in revoked
    ]
    return TrustPolicy(keys=KEYS, rules=tuple(rules.values()), revoked=tuple(revocations))


@given(
    user=policies(),
    project=policies(),
    who=st.lists(st.sampled_from(range(3)), unique=True),
    named=st.sampled_from([None, manifest_digest(MANIFEST), f"sha256:{'0' * 64}"]),
)
def test_the_policy_of_a_project_never_widens(user, project, who, named):
    """With the policy of a project nothing is accepted that is not accepted without it."""

    def is_accepted(*policies: TrustPolicy) -> bool:
        evidence = Evidence(
            registry="hf://",
            is_remote=True,
            reference=AdapterRef.parse(REF),
            digest=manifest_digest(MANIFEST),
            manifest=lambda: Manifest.parse(MANIFEST),
            bundles=lambda: {f"model.0000000{number}.sig": BUNDLES[number] for number in who},
            source="test",
        )
        now = Terms(memory=None).now
        return judge(evidence, *policies, now, named=named).decision.refusal is None

    assert is_accepted(user, project) <= is_accepted(user, NOBODY)


def test_a_bundle_says_who_signed_before_it_is_verified():
    """The hint is the fingerprint of the key, so that nothing is verified with a key that nobody named."""
    bundle = Bundle.parse(BUNDLES[0])

    assert bundle.hint == POOL[0].public.fingerprint
    assert prove(BUNDLES[0], {}, ()) == (Signer(bundle.hint), None)
