"""`lora-hub sign`, `verify` and `yank`: who vouches for an adapter, whether that is good, and who takes it back."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from adapter_files import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, adapter_files

from lora_hub import api, vouch
from lora_hub import trust as trusts
from lora_hub.adapter_directory import read_adapter
from lora_hub.documents.bundle import MAX_SIGNATURES, SIGNATURE_NAME, Bundle, further_name
from lora_hub.documents.manifest import Manifest
from lora_hub.documents.statement import MAX_REASON, SignedFiles
from lora_hub.documents.verified_adapter import manifest_digest
from lora_hub.signing.keys import PrivateKey
from lora_hub.signing.sign import sign as sign_statement

REF = "org/task@1.0.0"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """The directory in which all commands run."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def key(cli, become) -> str:
    """The fingerprint of the key of alice, who one is from now on."""
    become("alice")
    return cli("key", "generate", "org", "--json").data["org"]


@pytest.fixture
def signed(cli, key, adapter) -> Path:
    """The directory of an adapter that alice has signed as org/task@1.0.0."""
    assert cli("sign", adapter, "--as", REF).code == 0
    return adapter


@pytest.fixture
def public(become, tmp_path):
    """Return the file of somebody's public key, which is made if need be; one stays who one is."""

    def public(name: str) -> Path:
        before = os.environ["LORA_HUB_HOME"]
        home = become(name)
        if not (home / "keys").exists():
            vouch.generate_key("org")
        os.environ["LORA_HUB_HOME"] = before
        return home / "keys" / "org.pub"

    return public


def fingerprint_of(path: Path) -> str:
    return trusts.read_public_key(path).fingerprint


def snapshot(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def private(path: Path) -> PrivateKey:
    return PrivateKey.parse(path.read_bytes(), what="the key")


def foreign_signature(directory: Path, key: PrivateKey) -> bytes:
    """A signature over what lies in *directory*, as another tool makes it: without the key."""
    manifest = (directory / MANIFEST_NAME).read_bytes()
    return sign_statement(SignedFiles.of(manifest, Manifest.parse(manifest)).to_bytes(), key)


# sign


def test_a_directory_is_signed(cli, key, adapter):
    """`model.sig` appears, and a manifest with name, version and time; nothing else is changed."""
    before = snapshot(adapter)
    done = cli("sign", adapter, "--as", REF, "--json")
    after = snapshot(adapter)
    manifest = Manifest.parse(after[MANIFEST_NAME])

    assert (done.code, done.err) == (0, "")
    assert done.data == {"reference": REF, "signer": f"key {key}", "path": str(adapter / SIGNATURE_NAME)}
    assert str(manifest.reference) == REF
    assert {name: content for name, content in after.items() if name in before} == before
    assert after.keys() - before.keys() == {MANIFEST_NAME, SIGNATURE_NAME}
    assert Bundle.parse(after[SIGNATURE_NAME]).hint == key


def test_what_was_signed_is_told_in_a_line(cli, key, adapter):
    """For people, it is one line: what, by whom, and where the signature lies."""
    done = cli("sign", adapter, "--as", REF)

    assert done.out == f"{REF}  key {key}  {adapter / SIGNATURE_NAME}\n"


def test_a_push_publishes_what_was_signed(cli, signed, registry, become):
    """What was signed is published byte for byte, also by somebody without a key."""
    become("nobody")
    done = cli("push", signed, REF, "--json")
    published = snapshot(registry / "org" / "task" / "1.0.0")

    assert done.code == 0
    assert done.data["digest"] == manifest_digest(published[MANIFEST_NAME])
    assert published == {name: content for name, content in snapshot(signed).items() if name in published}
    assert SIGNATURE_NAME in published


def test_a_manifest_that_has_its_name_is_signed_as_that(cli, key, adapter, registry):
    """Where name and version stand in the manifest already, they need not be given; the manifest stays as it is."""
    cli("push", adapter, REF)
    published = registry / "org" / "task" / "1.0.0"
    (adapter / MANIFEST_NAME).write_bytes((published / MANIFEST_NAME).read_bytes())
    before = (adapter / MANIFEST_NAME).read_bytes()
    done = cli("sign", adapter, "--json")

    assert (done.code, done.data["reference"]) == (0, REF)
    assert (adapter / MANIFEST_NAME).read_bytes() == before


def test_a_fixed_time_makes_the_same_manifest(cli, key, adapter, monkeypatch):
    """With SOURCE_DATE_EPOCH, what is signed is the same in every build."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    cli("sign", adapter, "--as", REF)

    assert Manifest.parse((adapter / MANIFEST_NAME).read_bytes()).created == "2001-09-09T01:46:40Z"


def test_another_key_is_named(cli, adapter, public, become):
    """`--key` names the file of a private key."""
    become("nobody")
    path = public("alice").with_suffix(".key")
    done = cli("sign", adapter, "--as", REF, "--key", path, "--json")

    assert (done.code, done.data["signer"]) == (0, f"key {private(path).public.fingerprint}")


def test_the_signature_of_another_is_added(cli, signed, public, become):
    """`--add` signs beside those who signed already, in a file that is called after the key."""
    first = (signed / SIGNATURE_NAME).read_bytes()
    bob = fingerprint_of(public("bob"))
    become("bob")
    done = cli("sign", signed, "--add", "--json")

    assert (done.code, done.data["path"]) == (0, str(signed / further_name(bob)))
    assert (signed / SIGNATURE_NAME).read_bytes() == first
    assert Bundle.parse((signed / further_name(bob)).read_bytes()).hint == bob


USAGE = {
    "a draft without a name": ([], "no name and version", "--as"),
    "a name without a version": (["--as", "org/task"], "exact version", "org/task@1.0.0"),
    "a range": (["--as", "org/task@^1"], "exact version", "org/task@1.0.0"),
    "no reference": (["--as", "task"], "not a reference", "org/task"),
    "two ways to sign": (["--as", REF, "--sigstore", "--key", "x"], "--sigstore", "leave out"),
    "no key of this organisation": (["--as", "other/task@1.0.0"], "no key to sign for `other`", "key generate other"),
}


@pytest.mark.parametrize("case", USAGE)
def test_what_cannot_be_signed_is_refused(cli, key, adapter, case):
    """A wrong call is exit code 2, says what to do, and leaves the directory as it is."""
    words, told, hint = USAGE[case]
    before = snapshot(adapter)
    done = cli("sign", adapter, *words, "--json")

    assert done.code == 2
    assert told in done.error["message"]
    assert hint in done.error["hint"]
    assert snapshot(adapter) == before


def test_what_is_signed_already_needs_a_word(cli, signed):
    """A second signature is only added with `--add` (2), and one of the same key never."""
    before = snapshot(signed)
    again, added = cli("sign", signed, "--json"), cli("sign", signed, "--add", "--json")

    assert (again.code, added.code) == (2, 2)
    assert "--add" in again.error["hint"]
    assert "signed it already" in added.error["message"]
    assert snapshot(signed) == before


@pytest.mark.parametrize("words", [[], ["--add"]], ids=["sign", "add"])
def test_what_is_signed_as_one_version_is_not_signed_as_another(cli, signed, words):
    """Its signatures would be worth nothing then (2)."""
    before = snapshot(signed)
    done = cli("sign", signed, "--as", "org/task@1.1.0", *words, "--json")

    assert done.code == 2
    assert REF in done.error["message"]
    assert snapshot(signed) == before


def test_there_are_no_more_signatures_than_are_read(cli, signed, public):
    """The ninth signature is the last one (2): what nobody would read is not written."""
    for number in range(MAX_SIGNATURES - 1):
        (signed / f"model.0000000{number}.sig").write_bytes(foreign_signature(signed, PrivateKey.generate()))
    before = snapshot(signed)
    done = cli("sign", signed, "--add", "--json", "--key", public("bob").with_suffix(".key"))

    assert done.code == 2
    assert str(MAX_SIGNATURES) in done.error["hint"]
    assert snapshot(signed) == before


def test_what_is_no_adapter_is_not_signed(cli, key, tmp_path):
    """What could never be applied is not vouched for: missing (3), malformed (8), changed since it was saved (6)."""
    broken = adapter_files()
    broken.tensors.popitem()
    changed = adapter_files()
    published = adapter_files(seed=1).write(tmp_path / "other")
    cli("sign", published, "--as", REF)
    changed.manifest = (published / MANIFEST_NAME).read_bytes()
    directories = [tmp_path / "missing", broken.write(tmp_path / "broken"), changed.write(tmp_path / "changed")]
    done = [cli("sign", directory, "--as", REF) for directory in directories]

    assert [one.code for one in done] == [3, 8, 6]
    assert not any(list(directory.glob("*.sig")) for directory in directories if directory.exists())


def test_what_lies_in_the_place_of_a_signature_is_told(cli, key, tmp_path):
    """A directory that is called like a signature is none (8), and nothing is half-written."""
    directory = adapter_files().write(tmp_path / "adapter")
    (directory / SIGNATURE_NAME).mkdir()
    done = cli("sign", directory, "--as", REF)

    assert done.code == 8
    assert not (directory / MANIFEST_NAME).exists()


# verify


def test_what_one_signed_oneself_verifies(cli, signed, key):
    """A directory is verified as if it came from a stranger: the rule of one's own key accepts it."""
    done, text = cli("verify", signed, "--json"), cli("verify", signed)
    digest = manifest_digest((signed / MANIFEST_NAME).read_bytes())

    assert (done.code, done.err) == (0, "")
    assert done.data["reference"] == REF
    assert done.data["digest"] == digest
    assert done.data["signers"] == [f"key {key}"]
    assert "org/*" in done.data["trusted"]
    assert text.out.startswith(f"{REF}  {digest}  ")
    assert key in text.out


def test_a_reference_verifies(cli, signed, key, registry):
    """So does what is published; it is in the store then."""
    cli("push", signed, REF)
    done = cli("verify", "org/task", "--json")

    assert (done.code, done.data["reference"], done.data["signers"]) == (0, REF, [f"key {key}"])
    assert api.store().has(done.data["digest"])


def test_the_key_that_must_have_signed_is_named(cli, signed, public, become):
    """`--key` verifies with just this public key, whatever the policy says."""
    alice, bob = public("alice"), public("bob")
    become("nobody")
    done, refused = cli("verify", signed, "--key", alice, "--json"), cli("verify", signed, "--key", bob, "--json")

    assert (done.code, done.data["signers"]) == (0, [f"key {fingerprint_of(alice)}"])
    assert refused.code == 5
    assert fingerprint_of(alice) in refused.error["message"]


def test_a_published_version_is_verified_with_a_key(cli, signed, registry, public, become):
    """The same for a reference, which no rule covers."""
    cli("push", signed, REF)
    become("nobody")

    assert cli("verify", REF, "--key", public("alice")).code == 0
    assert cli("verify", REF, "--key", public("bob")).code == 5


@pytest.mark.parametrize("what", ["key", "digest"])
def test_what_is_revoked_does_not_verify_with_a_key(cli, signed, public, what):
    """A key that is named does not bring back what the policy revokes (7)."""
    digest = manifest_digest((signed / MANIFEST_NAME).read_bytes())
    cli("trust", "revoke", digest if what == "digest" else public("alice"))

    assert cli("verify", signed, "--key", public("alice")).code == 7


@pytest.mark.parametrize("has_manifest", [False, True], ids=["as PEFT saves it", "as lora-hub saves it"])
def test_a_draft_is_not_verified(cli, key, adapter, has_manifest):
    """Nobody has vouched for what has no name yet (5), and the hint says how somebody can."""
    if has_manifest:
        (adapter / MANIFEST_NAME).write_bytes(read_adapter(adapter).manifest.to_bytes())
    done = cli("verify", adapter, "--json")

    assert done.code == 5
    assert "lora-hub sign" in done.error["hint"]


def test_what_is_unsigned_is_not_verified(cli, signed):
    """A directory of this machine is no better than a stranger: without a signature it is refused (5)."""
    (signed / SIGNATURE_NAME).unlink()
    done = cli("verify", signed, "--json")

    assert done.code == 5
    assert "is unsigned" in done.error["message"]


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME])
def test_a_changed_file_does_not_verify(cli, signed, name):
    """One other byte in one of the three files, and it is not what was signed (6)."""
    content = (signed / name).read_bytes()
    changed = (
        content[:-1] + bytes([content[-1] ^ 1]) if name == WEIGHTS_NAME else content.replace(b"org/base", b"org/bose")
    )
    (signed / name).write_bytes(changed)

    assert changed != content
    assert cli("verify", signed).code == 6


def flipped(bundle: bytes) -> bytes:
    """The bundle with another signature of the same length."""
    document = json.loads(bundle)
    signature = document["dsseEnvelope"]["signatures"][0]
    signature["sig"] = signature["sig"][:20] + ("A" if signature["sig"][20] != "A" else "B") + signature["sig"][21:]
    return json.dumps(document).encode()


SIGNATURES = {
    "flipped": (flipped, 6),
    "empty": (lambda _: b"", 8),
    "no JSON": (lambda _: b"\xff", 8),
    "too large": (lambda bundle: bundle.ljust(65 * 1024), 8),
}


@pytest.mark.parametrize("case", SIGNATURES)
def test_a_broken_signature_does_not_verify(cli, signed, case):
    """A signature that is none is refused, and the error says of which file of what."""
    change, code = SIGNATURES[case]
    (signed / SIGNATURE_NAME).write_bytes(change((signed / SIGNATURE_NAME).read_bytes()))
    done = cli("verify", signed, "--json")

    assert done.code == code
    assert SIGNATURE_NAME in done.error["message"]
    assert str(signed) in done.error["message"]


def test_what_another_tool_signed_verifies(cli, signed, public, become):
    """A signature that does not bring its key along is as good as any."""
    (signed / SIGNATURE_NAME).write_bytes(foreign_signature(signed, private(public("bob").with_suffix(".key"))))
    cli("trust", "add", public("bob"), "--scope", "org/task", "--name", "bob")

    assert cli("verify", signed).code == 0


def test_a_stranger_is_named(cli, signed, public, become):
    """Who signed is told with the whole fingerprint, and how to trust them; the line can be pasted (5)."""
    alice = fingerprint_of(public("alice"))
    become("reader")
    refused = cli("verify", signed, "--json")
    line = re.search(r"`lora-hub (trust add [^`]*)`", refused.error["hint"])[1]
    added = cli(*shlex.split(line))

    assert (refused.code, added.code) == (5, 0)
    assert f"signed by key {alice}" in refused.error["message"]
    assert cli("verify", signed).code == 0


def test_two_must_have_signed(cli, signed, public, become):
    """Where the rule needs two, one is not enough (5), and both are."""
    alice, bob = public("alice"), public("bob")
    become("reader")
    cli("trust", "add", alice, "--scope", "org/task", "--name", "alice")
    cli("trust", "add", bob, "--scope", "org/task", "--name", "bob", "--threshold", "2")
    alone = cli("verify", signed, "--json")
    become("bob")
    cli("sign", signed, "--add")
    become("reader")
    both = cli("verify", signed, "--json")

    assert (alone.code, both.code) == (5, 0)
    assert "2 of its 2 signers" in alone.error["message"]
    assert set(both.data["signers"]) == {f"key {fingerprint_of(path)}" for path in (alice, bob)}


@pytest.mark.parametrize("what", ["key", "digest"])
def test_what_is_revoked_does_not_verify(cli, signed, public, what):
    """A revoked key or digest is refused (7)."""
    digest = manifest_digest((signed / MANIFEST_NAME).read_bytes())
    cli("trust", "revoke", digest if what == "digest" else "org", "--reason", "it leaks")
    done = cli("verify", signed, "--json")

    assert done.code == 7
    assert "revoked" in done.error["message"]


def test_what_is_missing_is_not_found(cli, key, registry, tmp_path):
    """Neither a directory nor a reference that is not there verifies (3)."""
    assert cli("verify", tmp_path / "missing").code == 3
    assert cli("verify", "org/missing").code == 3
    assert cli("verify", REF, "--key", tmp_path / "missing.pub").code == 3


def test_a_private_key_is_no_public_one(cli, signed, public):
    """Whoever names the private half is refused (8), and does not see it printed."""
    path = public("alice").with_suffix(".key")
    done = cli("verify", signed, "--key", path)

    assert (done.code, done.out) == (8, "")
    assert not any(line in done.err for line in path.read_text().splitlines()[1:-1])


def test_verifying_writes_nothing_into_the_directory(cli, signed):
    """To look at something does not change it."""
    before = snapshot(signed)
    cli("verify", signed)

    assert snapshot(signed) == before


def test_the_policy_of_the_project_is_asked_as_well(cli, signed, public, place):
    """A project that trusts others only is obeyed here too."""
    (place / "lora-hub.trust.toml").write_text("version = 1\n" + rule_for(public("bob")))

    assert cli("verify", signed).code == 5


def rule_for(path: Path, scope: str = "*") -> str:
    from lora_hub.documents.trust_entries import Key, Rule

    key = Key(name="only", public=trusts.read_public_key(path))
    return key.to_toml() + Rule(scope=scope, keys=("only",)).to_toml()


# yank


@pytest.fixture
def published(cli, signed, registry, tmp_path) -> str:
    """The digest of org/task@1.1.0, which alice has published after 1.0.0."""
    cli("push", signed, REF)
    return cli("push", adapter_files(seed=1).write(tmp_path / "next"), "org/task@1.1.0", "--json").data["digest"]


def test_a_version_is_yanked(cli, published):
    """The command says which version was yanked; whoever floats gets the one before, and a note why."""
    done = cli("yank", "org/task@1.1.0", "--reason", "it forgets", "--json")
    pulled = cli("pull", "org/task", "--json")

    assert (done.code, done.err) == (0, "")
    assert done.data == {"reference": "org/task@1.1.0", "digest": published, "reason": "it forgets"}
    assert [(one["reference"], one["yanked"]) for one in pulled.data] == [(REF, None)]
    assert pulled.err.startswith("note: org/task@1.1.0 is newer, but was passed over:")
    assert "it forgets" in pulled.err
    assert len(pulled.err.splitlines()) == 1


def test_a_yank_is_told_in_a_line(cli, published):
    """For people, it is one line."""
    assert cli("yank", "org/task@1.1.0").out == f"org/task@1.1.0  {published}  yanked\n"


def test_who_names_a_yanked_version_is_warned(cli, published):
    """The exact version comes, with a note on stderr and the reason in JSON."""
    cli("yank", "org/task@1.1.0", "--reason", "it forgets")
    done = cli("pull", "org/task@1.1.0", "--json")

    assert (done.code, done.data[0]["digest"]) == (0, published)
    assert "it forgets" in done.data[0]["yanked"]
    assert done.err.startswith("note: org/task@1.1.0 was yanked by its publisher")
    assert "it forgets" in done.err


def test_what_is_yanked_is_told_everywhere(cli, published):
    """`info` and `trust explain` say it, and `lock` says what it passed over."""
    cli("yank", "org/task@1.1.0", "--reason", "it forgets")
    info, explained = cli("info", "org/task@1.1.0", "--json"), cli("trust", "explain", "org/task@1.1.0", "--json")
    locked = cli("lock", "org/task")

    assert "it forgets" in info.data["yanked"]
    assert "it forgets" in explained.data["yanked"]
    assert "org/task@1.1.0 is newer, but was passed over" in locked.err


def test_verifying_a_yanked_version_warns(cli, published):
    """It is what was signed, and its publisher asks not to use it: both are told."""
    cli("yank", "org/task@1.1.0", "--reason", "it forgets")
    done = cli("verify", "org/task@1.1.0")

    assert done.code == 0
    assert "it forgets" in done.err


@pytest.mark.parametrize("reference", ["org/task", "org/task@1", f"org/task@sha256:{'0' * 64}"])
def test_only_an_exact_version_is_yanked(cli, published, registry, reference):
    """What floats is not yanked (2), and nothing is published."""
    done = cli("yank", reference)

    assert done.code == 2
    assert not (registry / "org" / "task" / "yanked").exists()


def test_what_is_not_there_is_not_yanked(cli, published):
    """A version that was never published is not found (3)."""
    assert cli("yank", "org/task@9.0.0").code == 3


def test_who_has_no_key_yanks_nothing(cli, published, become, registry):
    """Without a key there is nobody whose word it would be (2)."""
    become("nobody")
    done = cli("yank", "org/task@1.1.0", "--json")

    assert done.code == 2
    assert "key generate org" in done.error["hint"]
    assert not (registry / "org" / "task" / "yanked").exists()


def test_a_key_can_be_named(cli, published, public, become, registry):
    """`--key` names the private key that yanks."""
    become("nobody")
    done = cli("yank", "org/task@1.1.0", "--key", public("alice").with_suffix(".key"))
    become("alice")

    assert done.code == 0
    assert cli("pull", "org/task", "--json").data[0]["reference"] == REF


@pytest.mark.parametrize("reason", ["x" * (MAX_REASON + 1), "not \udcff text"], ids=["too long", "no text"])
def test_a_reason_that_nobody_could_read_is_refused(cli, published, registry, reason):
    """A reason must be a text of some length (2); nothing is published."""
    done = cli("yank", "org/task@1.1.0", "--reason", reason)

    assert (done.code, done.out) == (2, "")
    assert not (registry / "org" / "task" / "yanked").exists()


def test_a_reason_cannot_move_the_cursor(cli, published):
    """Whatever a publisher writes as a reason is shown without control characters."""
    cli("yank", "org/task@1.1.0", "--reason", "x\x1b[2J\ny")
    done = [cli("pull", "org/task"), cli("pull", "org/task@1.1.0"), cli("trust", "explain", "org/task@1.1.0")]

    for one in done:
        assert one.code == 0
        assert all(line.isprintable() for line in (one.out + one.err).splitlines())


# Help


@pytest.mark.parametrize("command", ["sign", "verify", "yank"])
def test_help_says_what_a_command_does(cli, command):
    """Each command explains itself."""
    done = cli(command, "--help")

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"Usage: lora-hub {command}")


@pytest.mark.parametrize("words", [["sign"], ["verify"], ["yank"], ["sign", ".", "x"], ["verify", ".", "--sigstore"]])
def test_a_wrong_call_is_a_usage_error(cli, words):
    """A missing or surplus argument, or an unknown option, is exit code 2 with a hint."""
    done = cli(*words)

    assert (done.code, done.out) == (2, "")
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["error", "hint"]
