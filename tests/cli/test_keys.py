"""`lora-hub key`: the keys with which one signs are made once, kept from others, and never shown."""

import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest
from adapter_files import adapter_files
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from lora_hub import trust as trusts
from lora_hub import vouch
from lora_hub.errors import LoraHubError

PASSPHRASE = "correct horse battery staple"
PEM_FORMS = {"PKCS#8": PrivateFormat.PKCS8, "SEC1": PrivateFormat.TraditionalOpenSSL, "OpenSSH": PrivateFormat.OpenSSH}


@pytest.fixture
def key(cli) -> str:
    """The fingerprint of the key of `org`, which was just made."""
    return cli("key", "generate", "org", "--json").data["org"]


@pytest.fixture
def umask():
    """Set the umask for the rest of the test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def secrets(path: Path) -> list[str]:
    """The lines of a private key that nobody may see."""
    return [line for line in path.read_text().splitlines() if not line.startswith("-----")]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def private_pem(key, form: str = "PKCS#8") -> bytes:
    return key.private_bytes(Encoding.PEM, PEM_FORMS[form], NoEncryption())


# key generate


def test_a_key_is_made_for_an_organisation(cli, home):
    """The command shows the fingerprint, and leaves a private and a public half."""
    done = cli("key", "generate", "org", "--json")
    public = home / "keys" / "org.pub"

    assert (done.code, done.data) == (0, {"org": hashlib.sha256(public.read_bytes()).hexdigest()})
    assert (home / "keys" / "org.key").read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
    assert {path.name for path in (home / "keys").iterdir() if not path.name.startswith(".")} == {"org.key", "org.pub"}


def test_a_key_is_shown_as_a_table(cli):
    """For people, it is a table of one line; what is to be known besides is on stderr."""
    done = cli("key", "generate", "org")
    header, line = done.out.splitlines()

    assert done.code == 0
    assert header.split() == ["KEY", "FINGERPRINT"]
    assert line.split() == ["org", vouch.public_key("org").fingerprint]
    assert done.err.startswith("note: the private key is not encrypted")


def test_a_key_is_trusted_for_its_own_scope(cli, key):
    """Whoever makes a key trusts it for the adapters of that organisation, and for no others."""
    listed = cli("trust", "list", "--json").data
    rules = [entry for entry in listed if entry["kind"] == "rule"]
    keys = [entry for entry in listed if entry["kind"] == "key"]

    assert [(rule["scope"], rule["keys"], rule["threshold"]) for rule in rules] == [("org/*", ["org"], 1)]
    assert [(one["name"], one["fingerprint"]) for one in keys] == [("org", key)]


@pytest.mark.parametrize(("curve", "size"), [("P-256", 256), ("P-384", 384), ("P-521", 521)])
def test_a_key_is_of_the_curve_that_is_named(cli, adapter, registry, curve, size):
    """Each of the three curves makes a key that signs what others verify."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    done = cli("key", "generate", "org", "--curve", curve)
    public = load_pem_public_key(cli("key", "export", "org").out.encode())

    assert done.code == 0
    assert public.curve.key_size == size
    assert cli("push", adapter, "org/task@1.0.0").code == 0
    assert cli("pull", "org/task").code == 0


@pytest.mark.parametrize("curve", ["P-224", "Ed25519", "p-256", ""])
def test_another_curve_is_refused(cli, home, curve):
    """What others could not verify is not made (2)."""
    assert cli("key", "generate", "org", "--curve", curve).code == 2
    assert not (home / "keys").exists()


def test_a_key_is_never_replaced(cli, home, key):
    """A second key for the same organisation is refused (2), and nothing changes by a byte."""
    before = {path.name: path.read_bytes() for path in (home / "keys").iterdir()}
    policy = (home / "trust.toml").read_bytes()
    done = cli("key", "generate", "org", "--json")

    assert done.code == 2
    assert "never replaced" in done.error["message"]
    assert {path.name: path.read_bytes() for path in (home / "keys").iterdir()} == before
    assert (home / "trust.toml").read_bytes() == policy


@pytest.mark.parametrize("org", ["", "*", "org/task", "../org", "org/../x", ".", "a b", "ä", "org\n", "x" * 97])
def test_what_is_no_organisation_gets_no_key(cli, home, org):
    """A name that could be a path, a pattern or nothing is refused (2), and nothing is written."""
    assert cli("key", "generate", org).code == 2
    assert not home.exists() or list(home.rglob("*.key")) == []


def test_of_many_who_make_a_key_one_does(home):
    """Of several that make the same key at the same moment exactly one does; the two halves belong together."""
    outcomes = []

    def make() -> None:
        try:
            outcomes.append(vouch.generate_key("org").fingerprint)
        except LoraHubError as error:
            outcomes.append(error.exit_code)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    made = [one for one in outcomes if isinstance(one, str)]

    assert sorted(one for one in outcomes if isinstance(one, int)) == [2] * 7
    assert made == [vouch.public_key("org").fingerprint]
    assert made == [private_fingerprint(home / "keys" / "org.key")]


def private_fingerprint(path: Path) -> str:
    from lora_hub.signing.key_ring import read_private_key

    return read_private_key(path).public.fingerprint


def test_a_public_half_that_a_crash_left_is_no_key(cli, home, key):
    """Where only a public half lies, there is no key yet: one is made, and the halves belong together."""
    trusts.untrust("org")
    (home / "keys" / "org.key").unlink()
    done = cli("key", "generate", "org", "--json")

    assert done.code == 0
    assert done.data["org"] == vouch.public_key("org").fingerprint == private_fingerprint(home / "keys" / "org.key")


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o022, 0o077])
def test_nobody_else_may_read_a_private_key(cli, home, umask, mask):
    """Whatever the umask is: the private half is for its owner alone, and nobody else may write anything."""
    umask(mask)
    cli("key", "generate", "org")

    assert mode(home / "keys" / "org.key") == 0o600
    assert mode(home / "keys" / "org.pub") & 0o022 == 0
    assert mode(home / "keys") == 0o700
    assert mode(home / "trust.toml") == 0o600


@pytest.mark.parametrize("mask", [0o000, 0o002, 0o077])
def test_what_lora_hub_makes_it_accepts_again(cli, tmp_path, home, registry, umask, mask):
    """Whatever the umask is: what the commands make themselves is never refused as that of somebody else."""
    umask(mask)
    directory = adapter_files().write(tmp_path / "made")
    commands = [
        ["key", "generate", "org"],
        ["sign", directory, "--as", "org/task@1.0.0"],
        ["push", directory, "org/task@1.0.0"],
        ["pull", "org/task"],
        ["pull", "org/task@1.0.0"],
        ["trust", "pin", "org/task"],
        ["trust", "revoke", f"sha256:{'0' * 64}"],
        ["lock", "org/task", "--lockfile", tmp_path / "x.lock"],
        ["pull", "--locked", "--lockfile", tmp_path / "x.lock"],
        ["yank", "org/task@1.0.0"],
        ["pull", "org/task@1.0.0"],
        ["verify", "org/task@1.0.0"],
        ["verify", directory],
        ["key", "show"],
        ["trust", "list"],
        ["cache", "list"],
        ["cache", "verify"],
        ["cache", "prune"],
    ]

    assert [(words, done) for words in commands if (done := cli(*words)).code != 0] == []


@pytest.mark.parametrize("table", ["key", "rule"])
def test_a_policy_that_cannot_be_extended_stops_before_a_key_is_made(cli, home, table):
    """What could not be trusted afterwards is not made (7), and the policy stays as it is."""
    home.mkdir()
    (home / "trust.toml").write_text(f"version = 1\n{table} = []\n")
    done = cli("key", "generate", "org")

    assert done.code == 7
    assert not (home / "keys" / "org.key").exists()
    assert (home / "trust.toml").read_text() == f"version = 1\n{table} = []\n"


def test_a_name_that_is_taken_in_the_policy_stops_before_a_key_is_made(cli, home, tmp_path):
    """Where another key is called like the organisation already, nothing is made (2) that could not be trusted."""
    (tmp_path / "their.pub").write_text(someones_public_key())
    assert cli("trust", "add", tmp_path / "their.pub", "--scope", "other/task", "--name", "org").code == 0
    done = cli("key", "generate", "org")

    assert done.code == 2
    assert not (home / "keys" / "org.key").exists()


def test_a_rule_that_was_written_by_hand_stops_before_a_key_is_made(cli, home, tmp_path):
    """So does a rule for the scope that only its author may change (7)."""
    (tmp_path / "their.pub").write_text(someones_public_key())
    cli("trust", "add", tmp_path / "their.pub", "--scope", "org/*", "--name", "them")
    path = home / "trust.toml"
    path.write_text(path.read_text().replace('scope = "org/*"', 'scope="org/*"'))
    done = cli("key", "generate", "org")

    assert done.code == 7
    assert not (home / "keys" / "org.key").exists()


def someones_public_key() -> str:
    from lora_hub.signing.keys import PrivateKey

    return PrivateKey.generate().public.pem


# Passphrases


@pytest.fixture
def encrypted(cli, monkeypatch, home) -> Path:
    """The file of a private key that was encrypted with `PASSPHRASE`; the environment does not say it any more."""
    monkeypatch.setenv("LORA_HUB_KEY_PASSPHRASE", PASSPHRASE)
    done = cli("key", "generate", "org")
    monkeypatch.delenv("LORA_HUB_KEY_PASSPHRASE")
    assert (done.code, done.err) == (0, "")
    return home / "keys" / "org.key"


def test_a_passphrase_encrypts_the_key(cli, encrypted, adapter, registry, monkeypatch):
    """Without the passphrase nothing is signed (2), and the hint says where to put it; with it, it is."""
    refused = cli("push", adapter, "org/task@1.0.0", "--json")
    monkeypatch.setenv("LORA_HUB_KEY_PASSPHRASE", PASSPHRASE)
    pushed = cli("push", adapter, "org/task@1.0.0", "--json")

    assert (refused.code, pushed.code) == (2, 0)
    assert "is encrypted" in refused.error["message"]
    assert "LORA_HUB_KEY_PASSPHRASE" in refused.error["hint"]
    assert len(pushed.data["signers"]) == 1


@pytest.mark.parametrize("words", [["push", "org/task@1.0.0"], ["sign", "--as", "org/task@1.0.0"]], ids=lambda w: w[0])
def test_a_wrong_passphrase_is_refused(cli, encrypted, adapter, registry, monkeypatch, words):
    """A wrong passphrase signs nothing (2), and neither it nor the key is shown."""
    monkeypatch.setenv("LORA_HUB_KEY_PASSPHRASE", "wr0ng")
    command, *rest = words
    done = cli(command, adapter, *rest)

    assert done.code == 2
    assert "cannot be decrypted" in done.err
    assert "wr0ng" not in done.out + done.err
    assert list(adapter.glob("*.sig")) == []


def test_an_encrypted_key_can_be_shown(cli, encrypted):
    """Fingerprint and public half need no passphrase."""
    assert cli("key", "show", "org").code == 0
    assert cli("key", "export", "org").code == 0


def test_an_encrypted_key_is_hard_to_guess(encrypted):
    """The file is encrypted as OpenSSH does it, with bcrypt in many rounds."""
    import base64

    content = base64.b64decode("".join(secrets(encrypted)))

    assert b"aes256-ctr" in content
    assert b"bcrypt" in content
    assert int.from_bytes(content.partition(b"bcrypt")[2][4 + 4 + 16 :][:4]) == 64


def test_without_a_terminal_nobody_is_asked(process, home):
    """With nothing on stdin the key is made at once, unencrypted, and that is told."""
    done = process("key", "generate", "org", "--json")

    assert done.code == 0, done.err
    assert "Passphrase" not in done.err
    assert "not encrypted" in done.err
    assert mode(home / "keys" / "org.key") == 0o600


def test_at_a_terminal_a_passphrase_is_asked_for(cli, monkeypatch, home, adapter, registry):
    """A person is asked when the key is made, twice, and whenever it signs."""
    asked = []

    def prompt(text: str, **options: object) -> str:
        asked.append((text, options.get("hide_input"), options.get("confirmation_prompt", False)))
        return PASSPHRASE

    monkeypatch.setattr("click.prompt", prompt)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    made = cli("key", "generate", "org")
    signed = cli("sign", adapter, "--as", "org/task@1.0.0")

    assert (made.code, signed.code) == (0, 0), made.err + signed.err
    assert [(hidden, twice) for _, hidden, twice in asked] == [(True, True), (True, False)]
    assert "org.key" in asked[1][0]


# key show, key export


def test_all_keys_are_shown(cli, key):
    """Without a name, all are shown, sorted; each is what `show NAME` says of it."""
    cli("key", "generate", "another")
    done, text = cli("key", "show", "--json"), cli("key", "show")

    assert (done.code, list(done.data)) == (0, ["another", "org"])
    assert done.data["org"] == key
    assert cli("key", "show", "org", "--json").data == {"org": key}
    assert [line.split()[0] for line in text.out.splitlines()] == ["KEY", "another", "org"]


@pytest.mark.parametrize("is_there", [False, True], ids=["no home", "a home"])
def test_no_keys_are_none(cli, home, is_there):
    """Who has no key has an empty list; nothing is made by looking."""
    if is_there:
        (home / "keys").mkdir(parents=True, mode=0o700)
    done = cli("key", "show", "--json")

    assert (done.code, done.data) == (0, {})
    assert home.exists() == is_there


@pytest.mark.parametrize("command", ["show", "export"])
def test_a_key_that_is_not_there_is_not_found(cli, key, command):
    """Another organisation has no key (3), and the hint makes one."""
    done = cli("key", command, "other")

    assert (done.code, done.out) == (3, "")
    assert "lora-hub key generate other" in done.err


@pytest.mark.parametrize("command", ["show", "export"])
@pytest.mark.parametrize("name", ["../org", "/etc/passwd", ".", "", "a/b"])
def test_a_name_is_no_path(cli, key, command, name):
    """What is no name of a key names no file either (2)."""
    done = cli("key", command, name)

    assert (done.code, done.out) == (2, "")


def test_the_public_half_is_exported_as_it_is(cli, key, home):
    """`export` prints the PEM and nothing else, so that it can be sent; its SHA-256 is the fingerprint."""
    done = cli("key", "export", "org")

    assert (done.code, done.err) == (0, "")
    assert done.out == (home / "keys" / "org.pub").read_text()
    assert hashlib.sha256(done.out.encode()).hexdigest() == key
    assert done.out.startswith("-----BEGIN PUBLIC KEY-----\n")


def test_what_is_exported_can_be_trusted_elsewhere(cli, key, tmp_path, monkeypatch):
    """The exported text, in a file, is what `trust add` takes."""
    (tmp_path / "org.pub").write_text(cli("key", "export", "org").out)
    monkeypatch.setenv("LORA_HUB_HOME", str(tmp_path / "reader"))
    done = cli("trust", "add", tmp_path / "org.pub", "--scope", "org/*", "--json")

    assert done.code == 0
    assert [one["fingerprint"] for one in cli("trust", "list", "--json").data if one["kind"] == "key"] == [key]


@pytest.mark.parametrize("words", [["show"], ["show", "org"], ["export", "org"]], ids=" ".join)
def test_a_private_key_is_never_printed(cli, key, home, words):
    """No command shows a line of the private half."""
    done = cli("key", *words)

    assert not any(line in done.out + done.err for line in secrets(home / "keys" / "org.key"))


def test_a_damaged_public_half_is_told(cli, key, home):
    """What is no public key any more is malformed (8)."""
    (home / "keys" / "org.pub").write_text("-----BEGIN PUBLIC KEY-----\nMFkw\n")

    assert cli("key", "show", "org").code == 8
    assert cli("key", "export", "org").code == 8


# Whose keys they are

SIGNING = [["push", "org/task@1.0.0"], ["sign", "--as", "org/task@1.0.0"]]


@pytest.mark.parametrize("words", SIGNING, ids=lambda words: words[0])
@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o666])
def test_a_private_key_that_others_may_read_is_refused(cli, key, home, adapter, registry, words, bits):
    """A key that somebody else may have read or written signs nothing (7), and the hint mends it."""
    (home / "keys" / "org.key").chmod(bits)
    command, *rest = words
    done = cli(command, adapter, *rest, "--json")

    assert done.code == 7
    assert "chmod" in done.error["hint"]
    assert list(adapter.glob("*.sig")) == []
    assert list(registry.rglob("*.sig")) == []


@pytest.mark.parametrize("bits", [0o770, 0o707, 0o777, 0o720])
@pytest.mark.parametrize(
    "words",
    [*SIGNING, ["key", "show"], ["key", "show", "org"], ["key", "export", "org"], ["key", "generate", "org"]],
    ids=" ".join,
)
def test_a_directory_of_keys_that_others_may_write_is_refused(cli, key, home, adapter, registry, words, bits):
    """Where others can put a key, none is used, shown or made (7)."""
    (home / "keys").chmod(bits)
    done = cli(words[0], adapter, *words[1:]) if words[0] in {"push", "sign"} else cli(*words)

    assert (done.code, done.out) == (7, "")
    assert "chmod go-w" in done.err


@pytest.mark.parametrize("name", ["org.key", "org.pub"])
def test_a_key_that_is_a_link_is_refused(cli, key, home, adapter, registry, name):
    """A link in place of a key may lead anywhere (7)."""
    path = home / "keys" / name
    path.rename(home / "elsewhere")
    path.symlink_to(home / "elsewhere")
    done = cli("key", "export", "org") if name == "org.pub" else cli("push", adapter, "org/task@1.0.0")

    assert (done.code, done.out) == (7, "")
    assert "symbolic link" in done.err


@pytest.mark.parametrize("name", ["org.key", "org.pub"])
def test_a_key_of_somebody_else_is_refused(cli, key, home, adapter, registry, monkeypatch, name):
    """A key that belongs to another user is none of ours (7)."""
    path = home / "keys" / name
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    done = cli("key", "export", "org") if name == "org.pub" else cli("push", adapter, "org/task@1.0.0")

    assert (done.code, done.out) == (7, "")
    assert "belongs to another user" in done.err


@pytest.mark.parametrize("name", ["org.key", "org.pub"])
def test_a_pipe_in_place_of_a_key_blocks_nobody(cli, key, home, adapter, registry, name):
    """A FIFO is no key, and is not waited for."""
    path = home / "keys" / name
    path.unlink()
    os.mkfifo(path, 0o600)
    done = cli("key", "export", "org") if name == "org.pub" else cli("push", adapter, "org/task@1.0.0")

    assert (done.code, done.out) == (8, "")


def test_a_link_to_ones_own_directory_is_fine(cli, key, home, adapter, registry, tmp_path):
    """Whoever keeps their keys elsewhere, and links there, signs as before."""
    (home / "keys").rename(tmp_path / "vault")
    (home / "keys").symlink_to(tmp_path / "vault")

    assert cli("push", adapter, "org/task@1.0.0", "--json").data["signers"] == [f"key {key}"]


# Keys from elsewhere


@pytest.mark.parametrize("form", PEM_FORMS)
@pytest.mark.parametrize("where", ["--key", "LORA_HUB_KEY", "the key itself"])
def test_a_key_of_another_tool_signs(cli, adapter, registry, tmp_path, monkeypatch, form, where):
    """A key that OpenSSL or OpenSSH made signs, named by option or environment, or in the environment itself."""
    private = ec.generate_private_key(ec.SECP256R1())
    path = tmp_path / "ci.pem"
    path.write_bytes(private_pem(private, form))
    path.chmod(0o600)
    if where != "--key":
        monkeypatch.setenv("LORA_HUB_KEY", path.read_text() if where == "the key itself" else str(path))
    done = cli("push", adapter, "org/task@1.0.0", "--json", *(["--key", path] if where == "--key" else []))

    assert done.code == 0, done.err
    assert done.data["signers"] == [f"key {private_fingerprint(path)}"]


def test_the_option_wins(cli, key, adapter, registry, tmp_path, monkeypatch):
    """A key that is named on the command line comes before the environment, and that before one's own."""
    files = {}
    for name in ("option", "environment"):
        files[name] = tmp_path / name
        files[name].write_bytes(private_pem(ec.generate_private_key(ec.SECP256R1())))
        files[name].chmod(0o600)
    signers = [cli("push", adapter, "org/a@1.0.0", "--json").data["signers"]]
    monkeypatch.setenv("LORA_HUB_KEY", str(files["environment"]))
    signers.append(cli("push", adapter, "org/b@1.0.0", "--json").data["signers"])
    signers.append(cli("push", adapter, "org/c@1.0.0", "--key", files["option"], "--json").data["signers"])
    expected = [key, private_fingerprint(files["environment"]), private_fingerprint(files["option"])]

    assert signers == [[f"key {fingerprint}"] for fingerprint in expected]


NO_KEYS = {
    "nothing": b"",
    "a word": b"secret-canary",
    "a public key": None,
    "RSA": private_pem(rsa.generate_private_key(65537, 2048)),
    "another curve": private_pem(ec.generate_private_key(ec.SECP256K1())),
    "cut off": private_pem(ec.generate_private_key(ec.SECP256R1()))[:100],
    "binary": b"\xff\x00" * 50,
    "too large": b"-----BEGIN PRIVATE KEY-----\n" + b"A" * 70_000,
}


@pytest.mark.parametrize("kind", NO_KEYS)
def test_what_is_no_private_key_is_refused(cli, adapter, registry, tmp_path, kind):
    """A file that holds no key of one of the curves signs nothing (8), and none of it is shown."""
    path = tmp_path / "ci.pem"
    content = NO_KEYS[kind]
    path.write_bytes(someones_public_key().encode() if content is None else content)
    path.chmod(0o600)
    done = cli("push", adapter, "org/task@1.0.0", "--key", path)

    assert (done.code, done.out) == (8, "")
    assert "canary" not in done.err
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["error", "hint"]
    assert list(registry.rglob("*.sig")) == []


@pytest.mark.parametrize(("where", "code"), [("--key", 3), ("LORA_HUB_KEY", 2)])
def test_a_key_that_is_missing_is_told(cli, key, adapter, registry, monkeypatch, where, code):
    """A named key that is not there is not replaced by another one in silence: not found (3), or a mistake (2)."""
    monkeypatch.setenv("LORA_HUB_KEY", "missing.pem" if where == "LORA_HUB_KEY" else "")
    done = cli("push", adapter, "org/task@1.0.0", *(["--key", "missing.pem"] if where == "--key" else []))

    assert (done.code, done.out) == (code, "")
    assert ("missing.pem" if where == "--key" else where) in done.err
    assert list(registry.rglob("*.json")) == []


def test_a_key_in_the_environment_is_not_shown(cli, adapter, registry, monkeypatch):
    """A key that is spelt in the environment is not repeated when it is wrong."""
    canary = "Q0FOQVJZ" * 8
    monkeypatch.setenv("LORA_HUB_KEY", f"-----BEGIN PRIVATE KEY-----\n{canary}\n-----END PRIVATE KEY-----\n")
    done = cli("push", adapter, "org/task@1.0.0")

    assert done.code == 8
    assert canary not in done.err
    assert "LORA_HUB_KEY" in done.err


# Help


@pytest.mark.parametrize("words", [["key"], ["key", "generate"], ["key", "show"], ["key", "export"]], ids=" ".join)
def test_help_says_what_a_command_does(cli, home, words):
    """Each command explains itself, and touches nothing."""
    done = cli(*words, "--help")

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: lora-hub key")
    assert not home.exists()


@pytest.mark.parametrize("words", [["key", "generate"], ["key", "export"], ["key", "show", "a", "b"], ["key", "forge"]])
def test_a_wrong_call_is_a_usage_error(cli, words):
    """A missing or surplus argument, or an unknown command, is exit code 2 with a hint."""
    done = cli(*words)

    assert (done.code, done.out) == (2, "")
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["error", "hint"]
