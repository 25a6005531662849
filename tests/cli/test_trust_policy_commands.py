"""`lora-hub trust`: who may sign what is said in commands, by hand or by a project, and nobody else can say it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from adapter_files import WEIGHTS_NAME, adapter_files

from lora_hub import api, vouch
from lora_hub import trust as trusts
from lora_hub.documents.bundle import SIGNATURE_NAME
from lora_hub.documents.manifest import MANIFEST_NAME, Manifest
from lora_hub.documents.signers import Identity, PublicKey
from lora_hub.documents.statement import SignedFiles
from lora_hub.documents.trust_entries import Key, Pin, Revocation, Rule
from lora_hub.documents.verified_adapter import manifest_digest
from lora_hub.errors import LoraHubError
from lora_hub.signing.keys import PrivateKey
from lora_hub.signing.sign import sign as sign_statement
from lora_hub.version import Version

REF = "org/task@1.0.0"
PROJECT = "lora-hub.trust.toml"
NOTHING = f"sha256:{'0' * 64}"
IDENTITY = ["--identity", "ci@org.example", "--issuer", "https://accounts.example"]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """The directory in which all commands run."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def public(become, monkeypatch):
    """Return the file of the public key of somebody, whose private key signs for `org`; one stays who one is."""

    def public(name: str) -> Path:
        before = os.environ["LORA_HUB_HOME"]
        home = become(name)
        if not (home / "keys").exists():
            vouch.generate_key("org")
        monkeypatch.setenv("LORA_HUB_HOME", before)
        return home / "keys" / "org.pub"

    return public


@pytest.fixture
def publish(cli, public, become, tmp_path):
    """Publish as alice in the registry that the environment names, and be the reader; return the digest."""

    def publish(reference: str = REF, *, by: str = "alice", seed: int = 0) -> str:
        public(by)
        become(by)
        done = cli("push", adapter_files(seed=seed).write(tmp_path / f"adapter-{seed}"), reference, "--json")
        become("reader")
        assert done.code == 0, done.err
        return done.data["digest"]

    return publish


@pytest.fixture
def reader(become) -> Path:
    """The home of the reader, who one is from now on, and who has nothing yet."""
    return become("reader")


def fingerprint_of(path: Path) -> str:
    return trusts.read_public_key(path).fingerprint


def entries(cli, kind: str) -> list[dict]:
    """The entries of this kind that the policy has."""
    return [entry for entry in cli("trust", "list", "--json").data if entry["kind"] == kind]


def lines_in(text: str) -> list[list[str]]:
    """The commands that a text shows between backticks, as a shell would split them."""
    return [shlex.split(line) for line in re.findall(r"`lora-hub ([^`]*)`", text)]


# trust add


def test_a_key_is_trusted_for_a_scope(cli, reader, public):
    """The command prints the rule, and the policy has it, with the key as a text of its own."""
    done = cli("trust", "add", public("alice"), "--scope", "org/*", "--name", "alice", "--json")
    fingerprint = fingerprint_of(public("alice"))

    assert (done.code, done.err) == (0, "")
    assert [(one["kind"], one["scope"], one["keys"], one["threshold"]) for one in done.data] == [
        ("rule", "org/*", ["alice"], 1)
    ]
    assert entries(cli, "rule") == done.data
    assert [(one["name"], one["fingerprint"], one["pem"]) for one in entries(cli, "key")] == [
        ("alice", fingerprint, public("alice").read_text())
    ]


def test_a_rule_is_shown_as_a_table(cli, reader, public):
    """For people, it is a table of one line."""
    done = cli("trust", "add", public("alice"), "--scope", "org/*", "--name", "alice")

    assert [line.split() for line in done.out.splitlines()] == [
        ["KIND", "WHAT", "SAYS"],
        ["rule", "org/*", "1", "of", "alice"],
    ]


def test_a_key_without_a_name_is_called_by_its_fingerprint(cli, reader, public):
    """Its first sixteen digits name it, unless `--name` does."""
    cli("trust", "add", public("alice"), "--scope", "org/*")

    assert [one["name"] for one in entries(cli, "key")] == [fingerprint_of(public("alice"))[:16]]


def test_the_same_again_changes_nothing(cli, reader, public):
    """A key that is trusted for the scope already is added as a success, and not a byte is written."""
    words = ["trust", "add", public("alice"), "--scope", "org/*"]
    cli(*words)
    before = (reader / "trust.toml").read_bytes()

    assert cli(*words, "--json").code == 0
    assert (reader / "trust.toml").read_bytes() == before


def test_a_second_key_extends_the_rule(cli, reader, public):
    """Another key for the same scope is named beside the first one; a key keeps its name in other rules."""
    cli("trust", "add", public("alice"), "--scope", "org/*", "--name", "alice")
    cli("trust", "add", public("bob"), "--scope", "org/*", "--name", "bob")
    cli("trust", "add", public("alice"), "--scope", "other/task", "--name", "somebody")

    assert [(one["scope"], one["keys"]) for one in entries(cli, "rule")] == [
        ("org/*", ["alice", "bob"]),
        ("other/task", ["alice"]),
    ]


@pytest.mark.parametrize("is_only", [False, True], ids=["beside the others", "alone"])
def test_a_narrower_rule_begins_with_the_wider_one(cli, reader, public, is_only):
    """To trust one more for one adapter takes trust from nobody, unless that is what is asked for."""
    cli("trust", "add", public("alice"), "--scope", "org/*", "--name", "alice", "--min-version", "1.2.0")
    only = ["--only"] if is_only else []
    cli("trust", "add", public("bob"), "--scope", "org/task", "--name", "bob", *only)
    narrower = next(one for one in entries(cli, "rule") if one["scope"] == "org/task")

    assert narrower["keys"] == (["bob"] if is_only else ["alice", "bob"])
    assert narrower["min_version"] == "1.2.0"


def test_whoever_signs_alone_takes_the_place_of_the_others(cli, reader, public):
    """With --only, those whom the rule of this scope had are gone from it, and so is its threshold."""
    cli("trust", "add", public("alice"), "--scope", "org/*", "--name", "alice")
    cli("trust", "add", public("bob"), "--scope", "org/*", "--name", "bob", "--threshold", "2")
    cli("trust", "add", public("bob"), "--scope", "org/*", "--only")

    assert [(one["keys"], one["threshold"]) for one in entries(cli, "rule")] == [(["bob"], 1)]


def test_a_rule_keeps_its_limits(cli, reader, public):
    """What was said of a rule before stays, unless it is said anew."""
    cli("trust", "add", public("alice"), "--scope", "org/*", "--name", "alice", "--min-version", "1.2.0")
    cli("trust", "add", public("bob"), "--scope", "org/*", "--name", "bob", "--threshold", "2")
    kept = entries(cli, "rule")
    cli("trust", "add", public("bob"), "--scope", "org/*", "--threshold", "1", "--min-version", "2.0.0")

    assert [(one["threshold"], one["min_version"]) for one in kept] == [(2, "1.2.0")]
    assert [(one["threshold"], one["min_version"]) for one in entries(cli, "rule")] == [(1, "2.0.0")]


def test_a_keyless_signer_is_trusted(cli, reader):
    """An identity and its issuer appear in the policy as they were given, and are shown."""
    done = cli("trust", "add", *IDENTITY, "--scope", "org/task", "--json")
    expected = [{"identity": "ci@org.example", "issuer": "https://accounts.example"}]

    assert done.code == 0
    assert [one["identities"] for one in done.data] == [expected]
    assert trusts.trust().read().rules[0].identities == (Identity(**expected[0]),)
    assert "1 of ci@org.example (https://accounts.example)" in cli("trust", "list").out


def test_keys_and_identities_sign_under_one_rule(cli, reader, public):
    """Both may be named for one scope, and both count for its threshold."""
    cli("trust", "add", public("alice"), "--scope", "org/task", "--name", "alice")
    cli("trust", "add", *IDENTITY, "--scope", "org/task", "--threshold", "2")

    (rule,) = entries(cli, "rule")
    assert (rule["keys"], len(rule["identities"]), rule["threshold"]) == (["alice"], 1, 2)


@pytest.mark.parametrize("identity", ['a "quoted" one', "back\\slash", "tab\tand\nline", "ünïcode", "x" * 500])
def test_an_identity_is_kept_letter_for_letter(cli, reader, identity):
    """Whatever an identity is made of, the policy has just that, and no output moves the cursor."""
    done = cli("trust", "add", "--identity", identity, "--issuer", "https://accounts.example", "--scope", "org/task")

    assert done.code == 0
    assert trusts.trust().read().rules[0].identities[0].identity == identity
    assert all(line.isprintable() for line in done.out.splitlines())


WRONG = {
    "nobody": (["--scope", "org/*"], 2),
    "a key and an identity": (["KEY", *IDENTITY, "--scope", "org/*"], 2),
    "an identity without its issuer": (["--identity", "x", "--scope", "org/*"], 2),
    "an issuer without an identity": (["--issuer", "x", "--scope", "org/*"], 2),
    "a key and an issuer": (["KEY", "--issuer", "x", "--scope", "org/*"], 2),
    "an identity that is no text": (["--identity", "\udcff", "--issuer", "x", "--scope", "org/*"], 2),
    "an empty identity": (["--identity", "", "--issuer", "x", "--scope", "org/*"], 2),
    "no scope": (["KEY"], 2),
    "a scope that is a pattern": (["KEY", "--scope", "org/t*"], 2),
    "a scope with a version": (["KEY", "--scope", REF], 2),
    "an empty scope": (["KEY", "--scope", ""], 2),
    "a threshold of zero": (["KEY", "--scope", "org/*", "--threshold", "0"], 2),
    "a threshold above the signers": (["KEY", "--scope", "org/*", "--threshold", "2"], 2),
    "a version that is none": (["KEY", "--scope", "org/*", "--min-version", "1.2"], 2),
    "a name that is none": (["KEY", "--scope", "org/*", "--name", "../x"], 2),
    "a file that is missing": (["missing.pub", "--scope", "org/*"], 3),
    "a private key": (["PRIVATE", "--scope", "org/*"], 8),
    "a fingerprint alone": (["f" * 64, "--scope", "org/*"], 3),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_trusts_nobody(cli, reader, public, case):
    """What is not clear is refused with its exit code and a hint, and no policy is written."""
    words, code = WRONG[case]
    files = {"KEY": public("alice"), "PRIVATE": public("alice").with_suffix(".key")}
    done = cli("trust", "add", *(files.get(word, word) for word in words))

    assert (done.code, done.out) == (code, "")
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["error", "hint"]
    assert not (reader / "trust.toml").exists()


def test_a_private_key_is_not_printed(cli, reader, public):
    """Whoever names the private half instead of the public one does not see it."""
    path = public("alice").with_suffix(".key")
    done = cli("trust", "add", path, "--scope", "org/*")

    assert done.code == 8
    assert not any(line in done.err for line in path.read_text().splitlines()[1:-1])


def test_a_name_that_is_taken_is_refused(cli, reader, public):
    """Two keys of one name could not be told apart (2)."""
    cli("trust", "add", public("alice"), "--scope", "org/*", "--name", "somebody")
    before = (reader / "trust.toml").read_bytes()
    done = cli("trust", "add", public("bob"), "--scope", "org/*", "--name", "somebody", "--json")

    assert done.code == 2
    assert "--name" in done.error["hint"]
    assert (reader / "trust.toml").read_bytes() == before


# trust add --from


def test_a_key_is_taken_from_what_it_signed(cli, registry, publish, public):
    """With `--from`, a fingerprint is enough: the key is that of the signature, which is verified with it."""
    publish()
    fingerprint = fingerprint_of(public("alice"))
    done = cli("trust", "add", fingerprint, "--from", REF, "--scope", "org/task", "--json")

    assert done.code == 0
    assert [one["pem"] for one in entries(cli, "key")] == [public("alice").read_text()]
    assert cli("pull", REF).code == 0


def test_a_key_that_did_not_sign_is_not_found(cli, registry, publish, public, reader):
    """Another fingerprint than that of a signer is not found (3), and nobody is trusted."""
    publish()
    done = cli("trust", "add", fingerprint_of(public("bob")), "--from", REF, "--scope", "org/task", "--json")

    assert done.code == 3
    assert not (reader / "trust.toml").exists()


def test_a_key_that_is_only_said_to_have_signed_is_refused(cli, registry, publish, public, reader):
    """A statement that brings somebody's key along, but that they did not sign, is no reason to trust them."""
    publish()
    path = registry / "org" / "task" / "1.0.0"
    key = trusts.read_public_key(public("bob"))
    (path / SIGNATURE_NAME).write_bytes(forged(path, key))
    done = cli("trust", "add", key.fingerprint, "--from", REF, "--scope", "org/task", "--json")

    assert done.code in {3, 6}
    assert not (reader / "trust.toml").exists()


def statement(path: Path, key: PublicKey | None) -> bytes:
    manifest = (path / MANIFEST_NAME).read_bytes()
    return SignedFiles.of(manifest, Manifest.parse(manifest), public_key=key and key.pem).to_bytes()


def forged(path: Path, key: PublicKey) -> bytes:
    """A signature of a stranger over what lies at *path*, which names *key* and brings it along."""
    stranger = PrivateKey.generate()
    bundle = sign_statement(statement(path, key), stranger)
    return bundle.replace(stranger.public.fingerprint.encode(), key.fingerprint.encode())


# What a refusal shows can be pasted


@pytest.fixture(params=["directory", "Hub"])
def anywhere(request, tmp_path, monkeypatch):
    """A registry that the environment names: a directory, whose path a shell would split, or the Hub."""
    if request.param == "Hub":
        request.getfixturevalue("hub")
        return
    (tmp_path / "my registry").mkdir()
    monkeypatch.setenv("LORA_HUB_REGISTRY", str(tmp_path / "my registry"))


@pytest.mark.parametrize("reference", [REF, "org/task", "org/task@^1.0"])
@pytest.mark.parametrize("way", ["trust add", "trust pin"])
def test_the_line_that_is_shown_makes_the_pull_work(cli, anywhere, publish, public, reader, way, reference):
    """A version of a stranger is refused (5); each line of the hint, pasted as it is, makes the same pull work."""
    cli("trust", "add", public("bob"), "--scope", "org/*")
    digest = publish()
    refused = cli("pull", reference)
    line = next(words for words in lines_in(refused.err) if " ".join(words).startswith(way))
    pasted = cli(*line)
    pulled = cli("pull", reference, "--json")

    assert (refused.code, pasted.code, pulled.code) == (5, 0, 0), refused.err + pasted.err + pulled.err
    assert pulled.data[0]["digest"] == digest


def test_a_refusal_names_signer_and_fingerprint(cli, anywhere, publish, public, reader):
    """The error says what, where, by whom and which digest, so that it can be compared."""
    cli("trust", "add", public("bob"), "--scope", "org/*")
    digest = publish()
    done = cli("pull", "org/task", "--json")

    assert done.code == 5
    for told in (REF, f"key {fingerprint_of(public('alice'))}", digest, "org/base", "the rule for `org/*`"):
        assert told in done.error["message"]
    assert "if you trust" in done.error["hint"]


def test_the_line_that_is_shown_without_a_rule(cli, hub, publish, public, reader):
    """The same on the Hub for somebody who has no policy at all."""
    publish()
    refused = cli("pull", "org/task")
    added = cli(*lines_in(refused.err)[0])

    assert (refused.code, added.code) == (5, 0), added.err
    assert [one["scope"] for one in entries(cli, "rule")] == ["org/task"]
    assert [one["fingerprint"] for one in entries(cli, "key")] == [fingerprint_of(public("alice"))]
    assert cli("pull", "org/task").code == 0


def test_the_line_for_what_is_unsigned(cli, anywhere, tmp_path, public, reader, become):
    """What nobody signed, where somebody should have, can be pinned by the line that is shown."""
    become("somebody")
    cli("push", adapter_files().write(tmp_path / "adapter"), REF)
    become("reader")
    cli("trust", "add", public("bob"), "--scope", "org/*")
    refused = cli("pull", REF)
    (line,) = lines_in(refused.err)

    assert (refused.code, line[:2]) == (5, ["trust", "pin"])
    assert (cli(*line).code, cli("pull", REF).code) == (0, 0)


@pytest.mark.parametrize("name", ["adapter", "my adapter", "it's $HOME"])
def test_the_line_for_a_directory(cli, tmp_path, public, become, name):
    """What `verify` refuses in a directory is trusted by the line that it shows, whatever the path is."""
    directory = adapter_files().write(tmp_path / name)
    public("alice")
    become("alice")
    cli("sign", directory, "--as", REF)
    become("reader")
    refused = cli("verify", directory)
    added = cli(*lines_in(refused.err)[0])

    assert (refused.code, added.code, cli("verify", directory).code) == (5, 0, 0), added.err


def test_no_line_is_shown_that_cannot_work(cli, registry, publish, public, reader):
    """A signature that does not bring its key along offers none: every line that is shown can be pasted."""
    publish()
    path = registry / "org" / "task" / "1.0.0"
    private = PrivateKey.parse(public("alice").with_suffix(".key").read_bytes(), what="the key")
    (path / SIGNATURE_NAME).write_bytes(sign_statement(statement(path, None), private))
    cli("trust", "add", public("bob"), "--scope", "org/*")
    refused = cli("pull", REF)
    pasted = [cli(*line) for line in lines_in(refused.err)]

    assert refused.code == 5
    assert fingerprint_of(public("alice")) in refused.err
    assert [one.code for one in pasted] == [0] * len(pasted), [one.err for one in pasted]


# trust remove


@pytest.fixture
def policy(cli, reader, public) -> Path:
    """The policy of a reader who trusts alice for all of `org`, and alice and bob for one adapter."""
    cli("trust", "add", public("alice"), "--scope", "org/*", "--name", "alice")
    cli("trust", "add", public("alice"), "--scope", "org/task")
    cli("trust", "add", public("bob"), "--scope", "org/task", "--name", "bob")
    return reader / "trust.toml"


def test_a_rule_is_removed_by_its_scope(cli, policy):
    """The rule is gone, and what was removed is printed; the keys stay."""
    done = cli("trust", "remove", "org/*", "--json")

    assert done.code == 0
    assert [(one["kind"], one["scope"]) for one in done.data] == [("rule", "org/*")]
    assert [one["scope"] for one in entries(cli, "rule")] == ["org/task"]
    assert [one["name"] for one in entries(cli, "key")] == ["alice", "bob"]


@pytest.mark.parametrize("by", ["name", "fingerprint"])
def test_a_key_is_removed_from_every_rule(cli, policy, public, by):
    """With a key goes its place in each rule, and a rule that has nobody else."""
    done = cli("trust", "remove", "alice" if by == "name" else fingerprint_of(public("alice")), "--json")

    assert done.code == 0
    assert ("key", "alice") in [(one["kind"], one.get("name")) for one in done.data]
    assert [(one["scope"], one["keys"]) for one in entries(cli, "rule")] == [("org/task", ["bob"])]
    assert [one["name"] for one in entries(cli, "key")] == ["bob"]


def test_a_rule_with_an_identity_survives_its_key(cli, reader, public):
    """Where a keyless signer is left, the rule stays."""
    cli("trust", "add", public("alice"), "--scope", "org/task", "--name", "alice")
    cli("trust", "add", *IDENTITY, "--scope", "org/task")
    cli("trust", "remove", "alice")

    (rule,) = entries(cli, "rule")
    assert (rule["keys"], len(rule["identities"])) == ([], 1)


def test_a_key_that_a_threshold_needs_is_not_removed(cli, policy, public):
    """If a rule would need more signers than are left, nothing is removed (7), and the hint says what to do."""
    cli("trust", "add", public("bob"), "--scope", "org/task", "--threshold", "2")
    before = policy.read_bytes()
    done = cli("trust", "remove", "bob", "--json")

    assert done.code == 7
    assert "org/task" in done.error["hint"]
    assert policy.read_bytes() == before


def test_a_pin_is_removed_by_its_reference(cli, registry, publish):
    """So is the pin of an exact version, in the registry that is meant."""
    publish()
    cli("trust", "pin", REF)
    done = cli("trust", "remove", REF, "--json")

    assert done.code == 0
    assert [one["kind"] for one in done.data] == ["pin"]
    assert entries(cli, "pin") == []


@pytest.mark.parametrize("what", ["nobody", "f" * 64, "org/other", "other/*", "*", REF])
def test_what_is_not_there_is_not_removed(cli, policy, what):
    """A key, a scope or a pin that the policy does not have is not found (3)."""
    before = policy.read_bytes()
    done = cli("trust", "remove", what, "--json")

    assert done.code == 3
    assert "trust list" in done.error["hint"]
    assert policy.read_bytes() == before


# trust revoke


@pytest.mark.parametrize("how", ["name", "fingerprint", "file"])
def test_a_key_is_revoked(cli, registry, publish, public, reader, how):
    """From then on nothing counts that it signed (7), also what is in the store; the reason is told."""
    publish()
    cli("trust", "add", public("alice"), "--scope", "org/*", "--name", "alice")
    pulled = cli("pull", REF)
    what = {"name": "alice", "fingerprint": fingerprint_of(public("alice")), "file": public("alice")}[how]
    done = cli("trust", "revoke", what, "--reason", "the laptop was stolen", "--json")
    refused = cli("pull", REF, "--json")

    assert (pulled.code, done.code, refused.code) == (0, 0, 7)
    assert [(one["kind"], one["key"], one["reason"]) for one in done.data] == [
        ("revoked", fingerprint_of(public("alice")), "the laptop was stolen")
    ]
    assert "is revoked" in refused.error["message"]


@pytest.mark.parametrize("words", [[], ["--digest", "DIGEST"]], ids=["signed", "named"])
def test_a_digest_is_revoked(cli, registry, publish, public, reader, words):
    """A version is refused by its digest (7), whoever signed it and however it is named."""
    digest = publish()
    cli("trust", "add", public("alice"), "--scope", "org/*")
    done = cli("trust", "revoke", digest, "--reason", "it leaks")
    refused = cli("pull", REF, *(word.replace("DIGEST", digest) for word in words), "--json")

    assert (done.code, refused.code) == (0, 7)
    assert "it leaks" in refused.error["message"]


def test_a_key_that_nobody_trusts_yet_can_be_revoked(cli, reader, public):
    """A fingerprint is revoked before it is ever trusted, and stays so when it is."""
    fingerprint = fingerprint_of(public("alice"))

    assert cli("trust", "revoke", fingerprint).code == 0
    assert cli("trust", "add", public("alice"), "--scope", "org/*").code == 0
    assert [one["key"] for one in entries(cli, "revoked")] == [fingerprint]


def test_a_revocation_again_changes_nothing(cli, policy):
    """What is revoked stays so, with the first reason."""
    cli("trust", "revoke", "alice", "--reason", "first")
    before = policy.read_bytes()
    done = cli("trust", "revoke", "alice", "--reason", "second", "--json")

    assert (done.code, [one["reason"] for one in done.data]) == (0, ["first"])
    assert policy.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["nobody"], 3),
        (["sha256:3c"], 3),
        (["F" * 64], 3),
        ([], 2),
        ([NOTHING, "--reason", "\udcff"], 2),
    ],
    ids=["an unknown name", "a short digest", "upper case", "nothing", "a reason that is no text"],
)
def test_what_cannot_be_revoked_is_told(cli, policy, words, code):
    """A name that is unknown, and what is neither fingerprint nor digest, revokes nothing."""
    before = policy.read_bytes()
    done = cli("trust", "revoke", *words)

    assert (done.code, done.out) == (code, "")
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["error", "hint"]
    assert policy.read_bytes() == before


def test_a_revocation_is_removed_by_hand_only(cli, policy, public):
    """Neither the name nor the fingerprint of a key takes its revocation back."""
    cli("trust", "revoke", "alice")
    cli("trust", "remove", "alice")

    assert [one["key"] for one in entries(cli, "revoked")] == [fingerprint_of(public("alice"))]


# trust list


def test_all_entries_are_listed(cli, registry, publish, policy, public):
    """Keys with their windows, rules, revocations and pins: each is a line, and an object in JSON."""
    publish()
    cli("trust", "pin", REF)
    cli("trust", "revoke", NOTHING, "--reason", "it leaks")
    policy.write_text(policy.read_text().replace('pem = """', 'not_after = 2999-01-31T00:00:00Z\npem = """', 1))
    listed, text = cli("trust", "list", "--json").data, cli("trust", "list").out

    assert [one["kind"] for one in listed] == ["key", "key", "rule", "rule", "revoked", "pin"]
    assert listed[0]["not_after"] == "2999-01-31 00:00:00+00:00"
    for told in (
        f"{fingerprint_of(public('alice'))} until 2999-01-31",
        "1 of alice, bob",
        "it leaks",
        NOTHING,
        f"pin      {REF}",
    ):
        assert told in text


def test_an_empty_policy_lists_nothing(cli, reader):
    """Who trusts nobody has an empty list; nothing is written."""
    done = cli("trust", "list", "--json")

    assert (done.code, done.data) == (0, [])
    assert not reader.exists()


# trust explain


def test_what_may_be_used_is_explained(cli, registry, publish, public, reader):
    """Which rule applies, who signed, and that it may be used; no weights are read."""
    digest = publish()
    cli("trust", "add", public("alice"), "--scope", "org/*", "--name", "alice")
    (registry / "org" / "task" / "1.0.0" / WEIGHTS_NAME).write_bytes(b"")
    done, text = cli("trust", "explain", "org/task", "--json"), cli("trust", "explain", "org/task")

    assert (done.code, done.data["allowed"], done.data["rule"], done.data["project"]) == (0, True, "org/*", None)
    assert (done.data["reference"], done.data["digest"]) == (REF, digest)
    assert done.data["signers"] == [f"key {fingerprint_of(public('alice'))}"]
    assert (done.data["yanked"], done.data["skipped"], done.data["hint"]) == (None, None, None)
    assert "may be used" in text.out
    assert "org/*" in text.out
    assert api.store().root.exists() is False


def test_what_may_not_be_used_is_explained(cli, registry, publish, public, reader):
    """Why it is refused, and what to do, is data: to explain it is a success."""
    publish()
    cli("trust", "add", public("bob"), "--scope", "org/task", "--name", "bob")
    done, text = cli("trust", "explain", REF, "--json"), cli("trust", "explain", REF)

    assert (done.code, done.data["allowed"], done.data["rule"]) == (0, False, "org/task")
    assert done.data["decision"].startswith("refused: ")
    assert "trust add" in done.data["hint"]
    assert (text.code, "refused" in text.out) == (0, True)


def test_what_was_passed_over_is_explained(cli, registry, publish, public, reader):
    """Of a floating reference it is said which newer version was passed over, and why."""
    publish()
    publish("org/task@1.1.0", by="bob", seed=1)
    cli("trust", "add", public("alice"), "--scope", "org/*")
    done = cli("trust", "explain", "org/task", "--json")

    assert (done.data["reference"], done.data["allowed"]) == (REF, True)
    assert done.data["skipped"].startswith("org/task@1.1.0: ")


def test_the_rule_of_the_project_is_explained(cli, registry, publish, public, reader, project):
    """Which rule of the project applies is told beside that of the user."""
    publish()
    cli("trust", "add", public("alice"), "--scope", "org/*")
    write(project, Rule(scope="*", keys=("bob",)), bob=public("bob"))
    done = cli("trust", "explain", REF, "--json")

    assert (done.data["rule"], done.data["project"], done.data["allowed"]) == ("org/*", "*", False)


@pytest.mark.parametrize(("reference", "code"), [("org/missing", 3), ("org/task@9.0.0", 3), ("task", 2)])
def test_what_is_not_there_cannot_be_explained(cli, registry, publish, reader, reference, code):
    """An adapter that is not there is not found (3)."""
    publish()

    assert cli("trust", "explain", reference).code == code


# The policy of a project


def write(project: Path, *extra: Rule | Revocation | Pin, **keys: Path) -> None:
    """Write the policy of the project: *keys* by name, and the entries."""
    known = [Key(name=name, public=trusts.read_public_key(path)) for name, path in keys.items()]
    (project / PROJECT).write_text("version = 1\n\n" + "\n".join(entry.to_toml() for entry in (*known, *extra)))


@pytest.fixture
def digest(cli, registry, publish, public, reader) -> str:
    """The digest of org/task@1.0.0, which alice has published, whom the reader trusts."""
    published = publish()
    cli("trust", "add", public("alice"), "--scope", "org/*")
    return published


def pin_of(registry: Path, digest: str) -> Pin:
    return Pin(registry=registry.as_uri(), name="org/task", version="1.0.0", digest=digest)


# What a project may say, from the files of two keys, the registry and the digest; and what becomes of a pull.
PROJECTS = {
    "nothing": (lambda **_: [], 0),
    "the same": (lambda **_: [Rule(scope="org/*", keys=("alice",))], 0),
    "the same for all": (lambda **_: [Rule(scope="*", keys=("alice", "bob"))], 0),
    "another key": (lambda **_: [Rule(scope="org/*", keys=("bob",))], 5),
    "another key for this adapter": (
        lambda **_: [Rule(scope="*", keys=("alice",)), Rule(scope="org/task", keys=("bob",))],
        5,
    ),
    "two keys": (lambda **_: [Rule(scope="org/*", keys=("alice", "bob"), threshold=2)], 5),
    "another adapter only": (lambda **_: [Rule(scope="org/other", keys=("alice",))], 7),
    "a later version": (lambda **_: [Rule(scope="*", keys=("alice",), min_version=Version(1, 0, 1))], 7),
    "a smaller rank": (lambda **_: [Rule(scope="*", keys=("alice",), max_r=1)], 7),
    "a smaller size": (lambda **_: [Rule(scope="*", keys=("alice",), max_size=100)], 7),
    "the digest is revoked": (lambda digest, **_: [Revocation(digest=digest, reason="it leaks")], 7),
    "the key is revoked": (lambda alice, **_: [Revocation(key=alice)], 7),
    "the key is revoked beside a rule": (
        lambda alice, **_: [Revocation(key=alice), Rule(scope="*", keys=("alice",))],
        7,
    ),
    "the key of somebody else is revoked": (lambda bob, **_: [Revocation(key=bob)], 0),
    "another digest is pinned": (lambda registry, **_: [pin_of(registry, NOTHING)], 7),
    "the digest is pinned": (lambda registry, digest, **_: [pin_of(registry, digest)], 0),
    "the digest is pinned beside other rules": (
        lambda registry, digest, **_: [pin_of(registry, digest), Rule(scope="org/other", keys=("bob",))],
        0,
    ),
}


@pytest.mark.parametrize("case", PROJECTS)
@pytest.mark.parametrize("is_stored", [False, True], ids=["new", "in the store"])
def test_a_project_can_only_refuse(cli, registry, digest, public, project, case, is_stored):
    """What the user accepts is refused where the project forbids it, also what is in the store already."""
    entries_of, code = PROJECTS[case]
    if is_stored:
        cli("pull", REF)
    alice, bob = public("alice"), public("bob")
    said = entries_of(
        registry=registry, digest=digest, alice=fingerprint_of(alice), bob=fingerprint_of(bob)
    )  # fmt: skip
    write(project, *said, alice=alice, bob=bob)
    done = cli("pull", REF, "--json")

    assert done.code == code, done.err
    assert api.store().has(digest) == (code == 0 or is_stored)


@pytest.mark.parametrize("command", ["pull", "lock", "verify"])
def test_every_command_asks_the_project(cli, digest, public, project, command):
    """Where a project trusts somebody else only, nothing is pulled, locked or verified (5)."""
    write(project, Rule(scope="*", keys=("bob",)), bob=public("bob"))
    done = cli(command, REF)

    assert (done.code, done.out) == (5, "")
    assert not (project / "lora-hub.lock").exists()


def test_python_asks_the_project(digest, public, project):
    """So does a load in Python."""
    write(project, Rule(scope="*", keys=("bob",)), bob=public("bob"))
    with pytest.raises(LoraHubError) as caught:
        api.load(REF)

    assert caught.value.exit_code == 5


def test_a_project_elsewhere_is_not_asked(cli, digest, public, project, monkeypatch, tmp_path):
    """Only the working directory is looked at: neither what is above nor what is below."""
    write(project, Rule(scope="*", keys=("bob",)), bob=public("bob"))
    (project / "below").mkdir()
    monkeypatch.chdir(project / "below")
    below = cli("pull", REF).code
    monkeypatch.chdir(tmp_path)

    assert (below, cli("pull", REF).code) == (0, 0)


# What a project may say that would trust more than its user does.
WIDER = {
    "trusts the signer": lambda **_: [Rule(scope="*", keys=("alice",))],
    "trusts the signer for just this": lambda **_: [Rule(scope="org/task", keys=("alice",))],
    "pins it": lambda registry, digest: [pin_of(registry, digest)],
    "asks for fewer signers": lambda **_: [Rule(scope="org/*", keys=("alice", "bob"), threshold=1)],
}


@pytest.mark.parametrize("case", WIDER)
@pytest.mark.parametrize("trusts_bob", [False, True], ids=["no rule", "another rule"])
def test_a_project_never_trusts_for_its_user(cli, hub, publish, public, reader, project, case, trusts_bob):
    """Whoever clones a project that trusts somebody trusts nobody by it: what was refused is refused (5)."""
    digest = publish()
    if trusts_bob:
        cli("trust", "add", public("bob"), "--scope", "org/*")
    before = cli("pull", REF, "--json")
    said = WIDER[case](registry=Path("/"), digest=digest)
    said = [
        Pin(registry="hf://", name="org/task", version="1.0.0", digest=digest) if isinstance(s, Pin) else s
        for s in said
    ]
    write(project, *said, alice=public("alice"), bob=public("bob"))
    after = cli("pull", REF, "--json")

    assert (before.code, after.code) == (5, 5)
    assert after.error == before.error


BROKEN = {
    "no TOML": "version =",
    "a newer one": "version = 2\n",
    "an unknown key": "version = 1\ntrust_everybody = true\n",
    "a rule of an unknown key": 'version = 1\n[[rule]]\nscope = "*"\nkeys = ["x"]\n',
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_policy_of_a_project_is_refused(cli, digest, project, case):
    """What is not understood cannot be enforced (8)."""
    (project / PROJECT).write_text(BROKEN[case])
    done = cli("pull", REF)

    assert (done.code, done.out) == (8, "")


def test_a_pipe_for_a_policy_of_a_project_blocks_nobody(cli, digest, project):
    """A FIFO is no policy, and is not waited for (8)."""
    os.mkfifo(project / PROJECT)

    assert cli("pull", REF).code == 8


def test_the_policy_of_a_project_is_never_written(cli, digest, public, project):
    """Commands change the policy of the user alone, and `trust list` shows that alone."""
    write(project, Rule(scope="*", keys=("alice",)), alice=public("alice"))
    before = (project / PROJECT).read_bytes()
    cli("trust", "add", public("bob"), "--scope", "org/x", "--name", "bob")
    cli("trust", "revoke", NOTHING)
    cli("trust", "remove", "bob")

    assert (project / PROJECT).read_bytes() == before
    assert [one["scope"] for one in entries(cli, "rule")] == ["org/*"]


# What its user wrote


COMMENTED = """# Whom we trust.
version = 1   # of the format

# Alice, met in Lisbon.
{alice}
# She signs everything.
{rule}
# The end.
"""


@pytest.fixture
def commented(reader, public) -> Path:
    """A policy with remarks, whose entries are spelt as lora-hub does it."""
    alice = Key(name="alice", public=trusts.read_public_key(public("alice"))).to_toml()
    reader.mkdir(mode=0o700)
    path = reader / "trust.toml"
    path.write_text(COMMENTED.format(alice=alice, rule=Rule(scope="org/*", keys=("alice",)).to_toml()))
    path.chmod(0o600)
    return path


def remarks(path: Path) -> list[str]:
    return [line.partition("#")[2].strip() for line in path.read_text().splitlines() if "#" in line]


@pytest.mark.parametrize(
    "words",
    [
        ["add", "BOB", "--scope", "org/*", "--name", "bob"],
        ["add", "BOB", "--scope", "org/other"],
        ["add", *IDENTITY, "--scope", "org/*"],
        ["revoke", "alice", "--reason", "x"],
        ["revoke", NOTHING],
        ["remove", "org/*"],
        ["remove", "alice"],
    ],
    ids=" ".join,
)
def test_remarks_stay(cli, commented, public, words):
    """Whatever is added, removed or revoked: the remarks of the user stay, in their order."""
    before = remarks(commented)
    done = cli("trust", *(str(public("bob")) if word == "BOB" else word for word in words))

    assert done.code == 0, done.err
    assert remarks(commented) == before


def test_what_is_added_and_removed_leaves_nothing(cli, commented, public):
    """After an addition was taken back, every line is as it was."""
    before = commented.read_text().split("\n")
    cli("trust", "add", public("bob"), "--scope", "org/other", "--name", "bob")
    cli("trust", "remove", "bob")

    assert [line for line in commented.read_text().split("\n") if line] == [line for line in before if line]


HANDWRITTEN = {
    "other spaces": lambda text: text.replace('scope = "org/*"', 'scope="org/*"'),
    "other quotes": lambda text: text.replace('scope = "org/*"', "scope = 'org/*'"),
    "another order": lambda text: text.replace(
        'scope = "org/*"\nkeys = ["alice"]\n', 'keys = ["alice"]\nscope = "org/*"\n'
    ),
    "a remark within": lambda text: text.replace('scope = "org/*"', 'scope = "org/*"  # ours'),
    "several lines": lambda text: text.replace('keys = ["alice"]', 'keys = [\n  "alice",\n]'),
    "a limit that was said anyhow": lambda text: text.replace(
        'keys = ["alice"]\n', 'keys = ["alice"]\nthreshold = 1\n'
    ),
}


@pytest.mark.parametrize("spelling", HANDWRITTEN)
@pytest.mark.parametrize(
    "words",
    [["add", "BOB", "--scope", "org/*"], ["remove", "org/*"], ["remove", "alice"]],
    ids=["extend", "remove rule", "remove key"],
)
def test_what_was_written_by_hand_is_left_to_its_author(cli, commented, public, spelling, words):
    """An entry that its user spelt otherwise is not rewritten (7): the file stays as it is, to the byte."""
    commented.write_text(HANDWRITTEN[spelling](commented.read_text()))
    before = commented.read_bytes()
    done = cli("trust", *(str(public("bob")) if word == "BOB" else word for word in words), "--json")

    assert done.code == 7, done.out
    assert "by hand" in done.error["message"] + done.error["hint"]
    assert commented.read_bytes() == before


def test_a_key_that_ends_with_its_users_calendar_can_be_removed(cli, commented, public):
    """Who wrote the last second of all years, in their own zone, is told what to do, not shown a bug of ours."""
    text = commented.read_text()
    commented.write_text(text.replace('pem = """', 'not_after = 9999-12-31T23:59:59-01:00\npem = """'))

    assert cli("trust", "list").code == 0
    assert cli("trust", "remove", "alice").code in {0, 7}


def test_what_was_written_by_hand_is_read(cli, commented, registry, publish, public):
    """However it is spelt, it says who is trusted."""
    publish()
    for spelling in HANDWRITTEN.values():
        commented.write_text(spelling(commented.read_text()))

    assert cli("pull", REF).code == 0


# Whose files they are


def others_may_write(path: Path, bits: int) -> None:
    path.chmod(path.stat().st_mode & 0o777 | bits)


def make_foreign(path: Path, monkeypatch) -> None:
    """Let *path* belong to another user, who is not root either."""
    if os.geteuid() == 0:
        os.chown(path, 12345, -1, follow_symlinks=False)
    else:
        owner = path.stat().st_uid
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)


def make_link(path: Path) -> None:
    path.rename(path.with_name(f"real-{path.name}"))
    path.symlink_to(path.with_name(f"real-{path.name}"))


@pytest.fixture
def pulled(cli, digest, reader) -> dict[str, Path]:
    """What lora-hub keeps for a reader who has pulled org/task@1.0.0, by what it is."""
    assert cli("pull", REF).code == 0
    adapter = api.store().path(digest)
    return {
        "home": reader,
        "policy": reader / "trust.toml",
        "memory": reader / "seen.json",
        "store": reader / "store",
        "adapter": adapter,
        "weights": adapter / WEIGHTS_NAME,
        "manifest": adapter / MANIFEST_NAME,
        "signature": adapter / SIGNATURE_NAME,
    }


KEPT = ["home", "policy", "memory", "store", "adapter", "weights", "manifest", "signature"]


@pytest.mark.parametrize("what", KEPT)
@pytest.mark.parametrize("bits", [0o020, 0o002], ids=["group", "world"])
def test_what_others_may_write_is_refused(cli, pulled, what, bits):
    """Nobody else may say whom one trusts, what one has seen, or what is in the store (7); the hint mends it."""
    others_may_write(pulled[what], bits)
    done = cli("pull", REF, "--json")
    (mended,) = [line for line in [re.search(r"`(chmod go-w [^`]*)`", done.error["hint"])] if line]
    path = Path(shlex.split(mended[1])[-1])
    path.chmod(path.stat().st_mode & ~0o022)

    assert done.code == 7
    assert path == pulled[what]
    assert cli("pull", REF).code == 0


@pytest.mark.parametrize("what", KEPT)
def test_what_belongs_to_another_user_is_refused(cli, pulled, what, monkeypatch):
    """Nor is it believed if it belongs to somebody else (7)."""
    make_foreign(pulled[what], monkeypatch)
    done = cli("pull", REF, "--json")

    assert done.code == 7
    assert "belongs to another user" in done.error["message"]


@pytest.mark.parametrize("what", ["policy", "memory", "adapter", "weights", "manifest", "signature"])
def test_a_link_in_its_place_is_refused(cli, pulled, what):
    """A file, or an adapter in the store, that is but a link may be anything (7)."""
    make_link(pulled[what])
    done = cli("pull", REF, "--json")

    assert done.code == 7
    assert "symbolic link" in done.error["message"]


@pytest.mark.parametrize("what", ["home", "store"])
def test_a_link_to_ones_own_directory_is_fine(cli, pulled, what):
    """Whoever keeps home or store on another disk, and links there, goes on as before."""
    make_link(pulled[what])

    assert cli("pull", REF).code == 0


@pytest.mark.parametrize("what", ["policy", "memory", "weights", "manifest", "signature"])
def test_a_pipe_in_its_place_blocks_nobody(cli, pulled, what):
    """A FIFO is no file of ours, and is not waited for."""
    pulled[what].unlink()
    os.mkfifo(pulled[what], 0o600)
    done = cli("pull", REF)

    assert done.code in {6, 7, 8}
    assert done.out == ""


@pytest.mark.parametrize("command", ["add", "remove", "revoke", "list", "explain", "pin"])
@pytest.mark.parametrize("bits", [0o020, 0o002], ids=["group", "world"])
def test_no_command_believes_a_policy_of_others(cli, pulled, public, command, bits):
    """Every command refuses a policy that others may write (7), and leaves it as it is."""
    others_may_write(pulled["policy"], bits)
    before = pulled["policy"].read_bytes()
    words = {
        "add": [public("bob"), "--scope", "org/x"],
        "remove": ["org/*"],
        "revoke": [NOTHING],
        "list": [],
        "explain": [REF],
        "pin": [REF],
    }
    done = cli("trust", command, *words[command])

    assert (done.code, done.out) == (7, "")
    assert pulled["policy"].read_bytes() == before


def test_what_others_may_read_is_fine(cli, pulled):
    """None of it is a secret but the keys."""
    for path in pulled.values():
        path.chmod(path.stat().st_mode & 0o777 | 0o044 | (0o011 if path.is_dir() else 0))

    assert cli("pull", REF).code == 0


def test_a_store_that_was_emptied_is_filled_again(cli, pulled, digest):
    """The store may be deleted at any time."""
    shutil.rmtree(pulled["store"])

    assert cli("pull", REF).code == 0
    assert manifest_digest((pulled["manifest"]).read_bytes()) == digest


# Processes and help


def test_from_the_shell(process, hub, publish, public, reader):
    """In processes of their own: refused, trusted by the line that was shown, pulled, revoked, refused; no question."""
    publish()
    refused = process("pull", "org/task")
    added = process(*lines_in(refused.err)[0])
    pulled = process("pull", "org/task", "--json")
    revoked = process("trust", "revoke", fingerprint_of(public("alice")))
    again = process("pull", "org/task@1.0.0")

    assert [one.code for one in (refused, added, pulled, revoked, again)] == [5, 0, 0, 0, 7], added.err + pulled.err


@pytest.mark.parametrize("command", [[], ["add"], ["pin"], ["list"], ["remove"], ["revoke"], ["explain"]], ids=" ".join)
def test_help_says_what_a_command_does(cli, reader, command):
    """Each command explains itself, and touches nothing."""
    done = cli("trust", *command, "--help")

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: lora-hub trust")
    assert not reader.exists()
