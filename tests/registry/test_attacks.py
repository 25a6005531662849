"""Attacks from the side: by which signatures are there, by the project, by a draft, by what one tries out."""

import os
import shutil
import subprocess
import sys

import pytest
from adapter_files import MANIFEST_NAME, adapter_files, large_adapter
from tampering import Place

from lora_hub import api, vouch
from lora_hub import trust as trusts
from lora_hub.adapter_directory import read_adapter
from lora_hub.documents.bundle import SIGNATURE_NAME, Bundle
from lora_hub.documents.manifest import Manifest
from lora_hub.documents.signers import Identity
from lora_hub.documents.statement import SignedFiles, Yank, yank_name
from lora_hub.documents.trust_policy import TrustPolicy
from lora_hub.errors import DocumentError, IntegrityError, PolicyError, UntrustedError
from lora_hub.reference import AdapterRef
from lora_hub.registry.memory import default_memory
from lora_hub.registry.trust_file import PROJECT_FILE
from lora_hub.signing.key_ring import default_key_ring, read_private_key
from lora_hub.signing.keys import PrivateKey
from lora_hub.signing.sign import sign
from lora_hub.version import Version

OLD, NEW = "org/task@1.0.0", "org/task@2.0.0"


@pytest.fixture
def keys(tmp_path):
    """Three private keys in files: alice's, bob's and mallory's; alice and bob are trusted for `org/*`."""
    keys = {name: PrivateKey.generate() for name in ("alice", "bob", "mallory")}
    for name, key in keys.items():
        path = tmp_path / f"{name}.key"
        path.write_bytes(key.to_openssh(None))
        path.chmod(0o600)
        path.with_suffix(".pub").write_text(key.public.pem)
    for name in ("alice", "bob"):
        trusts.trust_key(keys[name].public, scope="org/*", name=name)
    return keys


@pytest.fixture
def publish(keys, directory_registry, tmp_path):
    """Publish a version, signed by several."""

    def publish(reference: str, *signers: str, seed: int = 0) -> str:
        directory = adapter_files(seed=seed).write(tmp_path / reference.replace("/", "-"))
        for name in signers:
            vouch.sign(directory, reference, key=tmp_path / f"{name}.key", add=True)
        return api.push(directory, reference, registry=directory_registry).digest

    return publish


@pytest.fixture
def accepted(publish, directory_registry) -> str:
    """1.0.0 is signed by alice; 2.0.0, by alice and bob, was accepted. Its digest."""
    publish(OLD, "alice")
    digest = publish(NEW, "alice", "bob", seed=1)
    assert str(api.pull("org/task", registry=directory_registry).reference) == NEW
    return digest


def bundle_of(place: Place, reference: str, fingerprint: str) -> str:
    """Return the name of the file with the signature of a key."""
    (name,) = (n for n, c in place.signatures(reference).items() if Bundle.parse(c).hint == fingerprint)
    return name


def test_who_takes_a_signature_away_leads_nobody_back(accepted, keys, directory_registry):
    """Left with the signature of a revoked key alone, the newest version is no reason to use an older one (7)."""
    trusts.revoke("bob")
    place = Place(directory_registry)
    place.change(NEW, {bundle_of(place, NEW, keys["alice"].public.fingerprint): None})

    with pytest.raises(PolicyError, match=r"2\.0\.0"):
        api.pull("org/task", registry=directory_registry)


@pytest.mark.parametrize("what", ["digest", "key"])
def test_a_project_leads_nobody_back(accepted, keys, directory_registry, tmp_path, monkeypatch, what):
    """What a project revokes is refused, and nothing older takes its place (7)."""
    revoked = {"digest": accepted, "key": keys["bob"].public.fingerprint}[what]
    (tmp_path / "project").mkdir()
    policy = f'version = 1\n[[revoked]]\n{what} = "{revoked}"\n'
    (tmp_path / "project" / PROJECT_FILE).write_text(policy)
    monkeypatch.chdir(tmp_path / "project")
    place = Place(directory_registry)
    place.change(NEW, {bundle_of(place, NEW, keys["alice"].public.fingerprint): None})

    with pytest.raises(PolicyError):
        api.pull("org/task", registry=directory_registry)


def test_a_digest_is_no_signature_of_a_key(accepted, directory_registry, tmp_path):
    """Who verifies with a key is told that nobody looked at a signature, not that all is well (5)."""
    with pytest.raises(UntrustedError):
        vouch.verify(f"org/task@{accepted}", registry=directory_registry, key=tmp_path / "mallory.pub")


def test_a_signed_draft_is_no_version(hub, hub_registry, keys):
    """What has no name could be served under any: its signature counts for nothing (6)."""
    adapter = adapter_files()
    draft = read_draft(adapter)
    statement = SignedFiles.of(draft, Manifest.parse(draft), public_key=keys["alice"].public.pem)
    signed = {**adapter.files(), MANIFEST_NAME: draft, SIGNATURE_NAME: sign(statement.to_bytes(), keys["alice"])}
    hub.create("org/other", signed)

    with pytest.raises(IntegrityError, match="draft"):
        api.pull("org/other", registry=hub_registry)


def read_draft(adapter) -> bytes:
    from lora_hub.documents.verified_adapter import verify

    return verify(adapter.files(), source="here").manifest.to_bytes()


def test_what_is_tried_with_a_key_is_not_remembered(accepted, keys, directory_registry, tmp_path):
    """A yank by a key that is trusted for nothing but `verify --key` has no effect on anything else."""
    place = Place(directory_registry)
    exact = AdapterRef.parse(NEW)
    manifest = place.files(NEW)[MANIFEST_NAME]
    statement = SignedFiles.of(manifest, Manifest.parse(manifest)).to_bytes()
    yank = Yank(reference=exact, digest=accepted, created="2026-11-24T12:00:00Z").to_bytes()
    fingerprint = keys["mallory"].public.fingerprint
    place.change(NEW, {f"model.{fingerprint[:8]}.sig": sign(statement, keys["mallory"])})
    place.put_yank("org/task", yank_name(Version.parse("2.0.0"), fingerprint), sign(yank, keys["mallory"]))
    vouch.verify(NEW, registry=directory_registry, key=tmp_path / "mallory.pub")

    assert not default_memory().read().sight(directory_registry.url, exact).is_yanked
    assert str(api.pull("org/task", registry=directory_registry).reference) == NEW


def test_a_pre_release_at_the_head_is_not_the_newest(hub, hub_registry, keys, tmp_path):
    """Whoever hides all tags does not make a pre-release, which nobody named, what a name means."""
    adapter = adapter_files().write(tmp_path / "rc")
    vouch.sign(adapter, "org/task@2.0.0-rc.1", key=tmp_path / "alice.key")
    hub.create("org/task", {path.name: path.read_bytes() for path in adapter.iterdir()})

    with pytest.raises(PolicyError, match=r"2\.0\.0-rc\.1"):
        api.pull("org/task", registry=hub_registry)


def test_a_file_of_that_name_is_not_what_is_revoked(keys, tmp_path, monkeypatch):
    """A name of the policy is that key, whatever lies in the working directory."""
    shutil.copy(tmp_path / "mallory.pub", tmp_path / "alice")
    monkeypatch.chdir(tmp_path)

    assert trusts.revoke("alice").key == keys["alice"].public.fingerprint


def test_an_identity_can_be_removed(keys):
    """A keyless signer goes from every rule, and leaves the others."""
    who = Identity(identity="https://ci.example/org/repo@refs/heads/main", issuer="https://issuer.example")
    trusts.trust_identity(who, scope="org/*")
    trusts.untrust(who.identity)
    (rule,) = trusts.trust().read().rules

    assert (rule.identities, rule.keys) == ((), ("alice", "bob"))


def test_only_halves_of_keys_are_swept(home):
    """What else lies among the keys, hidden or not, is not touched; what a killed process left is removed."""
    vouch.generate_key("org")
    (home / "keys" / ".git").mkdir()
    (home / "keys" / ".git" / "HEAD").write_text("ref")
    half = home / "keys" / f".org.key.{'0' * 32}"
    half.write_bytes(b"half")
    for path in (home / "keys" / ".git", half):
        os.utime(path, (0, 0))
    default_key_ring().private("org")

    assert (home / "keys" / ".git" / "HEAD").is_file()
    assert not half.exists()


def test_an_adapter_can_be_read_while_the_interpreter_ends(tmp_path):
    """Where no thread can be started any more, the same is done without."""
    directory = large_adapter().write(tmp_path / "adapter")
    code = "import atexit, sys\nfrom lora_hub import api\natexit.register(lambda: print(api.load(sys.argv[1]).digest))"
    done = subprocess.run([sys.executable, "-c", code, str(directory)], capture_output=True, text=True, check=True)

    assert (done.stdout.strip(), done.stderr) == (read_adapter(directory).digest, "")


@pytest.mark.parametrize(
    "text",
    ["x" + ".a" * 200_000 + " = 1", 'x = { k = """\na""", a' + ".a" * 100_000 + ', z = "" }'],
    ids=["plain", "in a string that is none"],
)
def test_a_policy_is_not_read_for_ever(text):
    """A key of very many parts, which the parser would take minutes and gigabytes over, is refused at once."""
    with pytest.raises(DocumentError, match="dots"):
        TrustPolicy.parse(f"version = 1\n{text}\n".encode())


@pytest.mark.parametrize("signer", ["alice", "bob", "mallory"])
def test_a_broken_signature_is_not_published(keys, directory_registry, tmp_path, signer):
    """A signature that does not verify would burn the version for all who trust its key: nothing is published (6).

    That is found of one's own key, of those that the policy has, and of those that the signature brings along.
    """
    directory = adapter_files().write(tmp_path / "adapter")
    vouch.sign(directory, OLD, key=tmp_path / f"{signer}.key")
    bundle = Bundle.parse((directory / SIGNATURE_NAME).read_bytes())
    broken = Bundle(hint=bundle.hint, payload=bundle.payload, signature=bundle.signature[:-1] + b"\0")
    (directory / SIGNATURE_NAME).write_bytes(broken.to_bytes())

    with pytest.raises(IntegrityError, match=SIGNATURE_NAME):
        api.push(directory, OLD, registry=directory_registry, key=tmp_path / "alice.key")
    assert not (tmp_path / "registry" / "org").exists()


def test_nobody_signs_with_a_revoked_key(keys, directory_registry, tmp_path):
    """What nobody who knows better would accept is not published (7)."""
    trusts.revoke("alice")
    directory = adapter_files().write(tmp_path / "adapter")

    with pytest.raises(PolicyError, match="revokes"):
        api.push(directory, OLD, registry=directory_registry, key=tmp_path / "alice.key")


def test_a_signature_of_a_dead_push_does_not_burn_the_version(memory_registry, keys, tmp_path, monkeypatch):
    """What is left of a push whose claim was removed, as the error says, is no signature of what comes after it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    old = adapter_files(seed=1).write(tmp_path / "old")
    vouch.sign(old, OLD, key=tmp_path / "alice.key")
    memory_registry._fs.pipe_file(f"org/task/1.0.0/{SIGNATURE_NAME}", (old / SIGNATURE_NAME).read_bytes())
    new = adapter_files(seed=2).write(tmp_path / "new")
    api.push(new, OLD, registry=memory_registry, key=tmp_path / "alice.key")

    assert api.pull(OLD, registry=memory_registry).adapter.signers


def test_two_signatures_of_one_name_are_both_kept(publish, keys, directory_registry, tmp_path):
    """The same version from two registries, each signed by another, keeps both signatures in the store."""
    publish(OLD, "alice")
    directory = tmp_path / "registry" / "org" / "task" / "1.0.0"
    mirror = tmp_path / "mirror" / "org" / "task" / "1.0.0"
    shutil.copytree(directory, mirror)
    (mirror / SIGNATURE_NAME).unlink()
    vouch.sign(mirror, key=tmp_path / "bob.key")
    for registry in (directory_registry, tmp_path / "mirror"):
        pulled = api.pull(OLD, registry=registry)
    hints = {Bundle.parse(content).hint for content in api.store().bundles(pulled.digest).values()}

    assert hints == {keys[name].public.fingerprint for name in ("alice", "bob")}
    assert read_private_key(tmp_path / "bob.key").public == keys["bob"].public


def test_what_a_project_asks_for_is_looked_at(publish, keys, directory_registry, tmp_path, monkeypatch):
    """In a directory of this machine, where only the project has a rule, who meets it is accepted, and nobody else."""
    publish(OLD, "alice")
    publish(NEW, "bob", seed=1)
    for name in ("alice", "bob"):
        trusts.untrust(name)
    pem = (tmp_path / "alice.pub").read_text()
    rule = f'version = 1\n[[key]]\nname = "a"\npem = """{pem}"""\n[[rule]]\nscope = "org/*"\nkeys = ["a"]\n'
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / PROJECT_FILE).write_text(rule)
    monkeypatch.chdir(tmp_path / "project")

    assert str(api.pull(OLD, registry=directory_registry).reference) == OLD
    with pytest.raises(UntrustedError):
        api.pull(NEW, registry=directory_registry)


@pytest.mark.parametrize("manifest", [b"{", b"{}", b"\xff", b""], ids=["cut", "nothing", "no text", "empty"])
def test_junk_that_nobody_signed_stops_nobody(publish, directory_registry, manifest):
    """A newer version that nobody signed and nobody can read is passed over like any other that nobody signed."""
    publish(OLD, "alice")
    place = Place(directory_registry)
    place.change("org/task@9.0.0", {**place.files(OLD), MANIFEST_NAME: manifest, SIGNATURE_NAME: b""})
    place.change("org/task@9.0.0", {SIGNATURE_NAME: None})
    pulled = api.pull("org/task", registry=directory_registry)

    assert (str(pulled.reference), str(pulled.skipped)) == (OLD, "org/task@9.0.0")
