"""Private keys and passphrases stay where they are: in no output, no error, no log, no file but the key's own."""

import base64
import hashlib
import logging
import os
import pty
import select
import stat
import subprocess
import sys
import traceback
from pathlib import Path
from random import Random

import pytest
from adapter_files import adapter_files
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fuzz.mutations import mutations

from lora_hub import api, vouch
from lora_hub.cli import run
from lora_hub.errors import LoraHubError, MalformedError, NotFoundError, PolicyError, UsageError
from lora_hub.signing.key_ring import VARIABLE, default_key_ring, read_private_key
from lora_hub.signing.keys import CURVES, PASSPHRASE, PrivateKey

REFERENCE = "org/task@1.0.0"
CANARY = "canary-Xq7Pz-of-a-passphrase"
WRONG = "canary-Rt5Lw-of-a-wrong-one"
_EC = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
FORMS = {"pkcs8": PrivateFormat.PKCS8, "sec1": PrivateFormat.TraditionalOpenSSL, "openssh": PrivateFormat.OpenSSH}


def pem(key, form: str = "pkcs8", passphrase: str | None = None) -> bytes:
    """Return *key* as OpenSSL, or OpenSSH, writes it."""
    encryption = serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, FORMS[form], encryption)


KEY = ec.derive_private_key(int.from_bytes(hashlib.sha256(b"of all tests here").digest(), "big"), ec.SECP256R1())


def key_file(path: Path, content: bytes, *, mode: int = 0o600) -> Path:
    """Write *content* into the file *path* as its owner would keep a key."""
    path.touch(mode=0o600)
    path.write_bytes(content)
    path.chmod(mode)
    return path


def traces(key) -> list[str]:
    """Return texts that would give *key* away: its secret number in any base, and lines of its PEM in any form."""
    number = key.private_numbers().private_value
    content = number.to_bytes((number.bit_length() + 7) // 8, "big")
    lines = [line for form in FORMS for line in pem(key, form).decode().splitlines() if not line.startswith("-")]
    spelled = [f"{number:x}", f"{number:X}", str(number), repr(content)[2:-1], base64.b64encode(content).decode()]
    return [*spelled, *(line for line in lines if len(line) > 40), base64.b64encode(pem(key)).decode()[:60]]


def said_in(error: BaseException) -> str:
    """Return all that *error* and what it came from could show: as text, as `repr`, as a traceback."""
    told, link = traceback.format_exception(error), error
    while link is not None:
        told.append(f"{link!s} {link!r} {link.args!r} {vars(link)!r}")
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\n".join(told)


class Watch:
    """Remembers all that was said, and finds secrets in it."""

    def __init__(self, capsys, caplog, root: Path) -> None:
        self.capsys = capsys
        self.caplog = caplog
        self.root = root
        self.said: list[str] = []

    def run(self, *words: object) -> tuple[int, str]:
        """Run the command line in this process; return its exit code and what it printed."""
        code = run([str(word) for word in words])
        out, err = self.capsys.readouterr()
        self.said += [out, err]
        return code, out + err

    def refused(self, call) -> LoraHubError:
        """Call *call*, which is refused in our own words, and return the error."""
        with pytest.raises(LoraHubError) as caught:
            call()
        self.said.append(said_in(caught.value))
        return caught.value

    def check(self, *secrets: str, but: tuple[Path, ...] = ()) -> None:
        """Nothing that was said or logged, and no file but those in *but*, has one of *secrets* in it."""
        self.said += [*self.capsys.readouterr(), *(record.getMessage() for record in self.caplog.records)]
        for secret in secrets:
            assert not any(secret in text for text in self.said), "a secret was said"
        for path in self.root.rglob("*"):
            if path.is_file() and not any(path.is_relative_to(place) for place in but):
                content = path.read_bytes()
                assert not [secret for secret in secrets if secret.encode() in content], path


@pytest.fixture
def watch(capsys, caplog, tmp_path):
    """What is said and logged, at every level, and where files are written."""
    caplog.set_level(logging.DEBUG)
    return Watch(capsys, caplog, tmp_path)


@pytest.fixture(autouse=True)
def keyless(monkeypatch):
    """No key and no passphrase in the environment."""
    for name in (VARIABLE, PASSPHRASE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def adapter(tmp_path):
    """The directory of an adapter."""
    return adapter_files().write(tmp_path / "adapter")


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """The root of a registry, which the environment names."""
    monkeypatch.setenv("LORA_HUB_REGISTRY", str(tmp_path / "registry"))
    return tmp_path / "registry"


@pytest.fixture
def cheap(monkeypatch):
    """Few rounds of bcrypt, where what is measured is not how slow it is."""
    monkeypatch.setattr("lora_hub.signing.keys._ROUNDS", 1)


class TestNothingIsGivenAway:
    """Whatever goes right or wrong, secrets are in no output, error, log or file but the key's own."""

    def test_when_all_goes_well(self, watch, adapter, registry, home, monkeypatch, cheap):
        """Generating, showing, exporting, signing, pushing, pulling, verifying and yanking."""
        monkeypatch.setenv(PASSPHRASE, CANARY)
        for words in (
            ("key", "generate", "org"),
            ("key", "show", "--json"),
            ("key", "export", "org"),
            ("push", adapter, REFERENCE, "--json"),
            ("sign", adapter, "--as", REFERENCE),
            ("pull", REFERENCE, "--json"),
            ("verify", REFERENCE),
            ("verify", adapter),
            ("trust", "list", "--json"),
            ("trust", "explain", REFERENCE, "--json"),
            ("info", REFERENCE, "--json"),
            ("yank", REFERENCE, "--reason", "a test"),
        ):
            assert watch.run(*words)[0] == 0, words
        key = default_key_ring().private("org")

        watch.check(CANARY, *traces(key._key), but=(home / "keys",))
        watch.check(CANARY)  # not even there

    @pytest.mark.parametrize("passphrase", [None, "", WRONG])
    @pytest.mark.parametrize("form", ["pkcs8", "sec1", "openssh"])
    def test_when_the_passphrase_is_wrong(self, watch, adapter, registry, tmp_path, monkeypatch, form, passphrase):
        """A missing or wrong passphrase is refused (2), for `push`, `sign` and `yank`; nothing is written."""
        path = key_file(tmp_path / "own.pem", pem(KEY, form, CANARY))
        if passphrase is not None:
            monkeypatch.setenv(PASSPHRASE, passphrase)
        commands = [("push", adapter, REFERENCE), ("sign", adapter, "--as", REFERENCE), ("yank", REFERENCE)]
        codes = {watch.run(*words, "--key", path)[0] for words in commands}
        errors = [
            watch.refused(lambda: api.push(adapter, REFERENCE, key=path)),
            watch.refused(lambda: vouch.sign(adapter, REFERENCE, key=path)),
        ]
        watch.check(CANARY, WRONG, *traces(KEY), but=(path,))

        assert codes == {2}
        assert {type(error) for error in errors} == {UsageError}
        assert not registry.exists()
        assert {file.name for file in adapter.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}

    def test_when_there_is_a_key_already(self, watch, home, monkeypatch, cheap):
        """A second `key generate` is refused (2) and leaves the first key as it is, without a trace of the second."""
        monkeypatch.setenv(PASSPHRASE, CANARY)
        assert watch.run("key", "generate", "org")[0] == 0
        before = {path.name: path.read_bytes() for path in (home / "keys").iterdir()}
        monkeypatch.setenv(PASSPHRASE, WRONG)
        code, _ = watch.run("key", "generate", "org", "--json")
        watch.refused(lambda: vouch.generate_key("org", passphrase=WRONG))
        watch.check(CANARY, WRONG)

        assert code == 2
        assert {path.name: path.read_bytes() for path in (home / "keys").iterdir()} == before

    @pytest.mark.parametrize(
        "spoilt",
        [
            pytest.param(lambda text: text[: len(text) // 2], id="cut_off"),
            pytest.param(lambda text: text.replace("M", "N", 3), id="damaged"),
            pytest.param(lambda text: text.replace("\n", "\\n"), id="on_one_line"),
            pytest.param(lambda text: text.replace("PRIVATE KEY", "SECRET KEY"), id="of_another_kind"),
            pytest.param(
                lambda text: text.replace("-----\n", "-----\nProc-Type: 4,ENCRYPTED\n", 1), id="with_a_header"
            ),
            pytest.param(lambda text: f'"{text}"', id="in_quotes"),
            pytest.param(lambda text: f"'{text.strip()}'", id="in_single_quotes"),
            pytest.param(lambda text: "".join(text.splitlines()[1:-1]), id="without_its_first_line"),
            pytest.param(lambda text: base64.b64encode(text.encode()).decode(), id="in_base64"),
            pytest.param(lambda text: f"key={text}", id="with_a_name"),
        ],
    )
    @pytest.mark.parametrize("form", FORMS)
    def test_when_the_variable_holds_no_key(self, watch, adapter, registry, monkeypatch, form, spoilt):
        """What is in `LORA_HUB_KEY` is not printed if it is neither PEM nor a file: it may be a key all the same."""
        content = spoilt(pem(KEY, form).decode())
        monkeypatch.setenv(VARIABLE, content)
        error = watch.refused(lambda: api.push(adapter, REFERENCE))
        code, said = watch.run("push", adapter, REFERENCE)
        lines = [line for line in content.splitlines() if len(line) > 40]
        watch.check(*traces(KEY), *lines)

        assert code == error.exit_code in {2, 3, 8}
        assert VARIABLE in said

    @pytest.mark.parametrize("form", FORMS)
    def test_when_the_file_is_damaged(self, watch, adapter, registry, tmp_path, form):
        """Any damaged key file is refused in our own words, which name the file and nothing in it."""
        content, change, numbers = pem(KEY, form), mutations(), Random(form)
        path = tmp_path / "own.pem"
        for _ in range(500):
            key_file(path, change(content, (content,), numbers))
            try:
                watch.said.append(repr(read_private_key(path)))
            except LoraHubError as error:
                watch.said.append(said_in(error))

        watch.check(*traces(KEY), but=(path,))

    def test_in_a_repr(self, watch):
        """A private key shows its fingerprint, wherever it is printed."""
        key = PrivateKey.parse(pem(KEY), what="it")
        shown = f"{key} {key!r} {[key]} {{'key': {key!r}}}"
        watch.said.append(shown)
        watch.check(*traces(KEY))

        assert key.public.fingerprint in shown


class TestWhoMayRead:
    """Keys are their owner's own."""

    def test_modes(self, home, cheap):
        """The directory has mode 0700, the private key 0600, the public one 0644, whatever the umask."""
        before = os.umask(0)
        try:
            vouch.generate_key("org", passphrase=CANARY)
        finally:
            os.umask(before)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (home / "keys").iterdir()}

        assert stat.S_IMODE((home / "keys").stat().st_mode) == 0o700
        assert (modes["org.key"], modes["org.pub"]) == (0o600, 0o644)
        assert all(mode & 0o077 == 0 for name, mode in modes.items() if name != "org.pub")

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o602, 0o610, 0o777])
    @pytest.mark.parametrize("place", ["the_ring", "a_path", "the_variable"])
    def test_a_key_that_others_may_read(self, watch, adapter, registry, home, tmp_path, monkeypatch, place, mode):
        """A private key that others may read, write or run is refused (7), and nothing is published."""
        vouch.generate_key("org")
        path = home / "keys" / "org.key"
        if place != "the_ring":
            path = key_file(tmp_path / "own.pem", pem(KEY))
        path.chmod(mode)
        words = ("--key", path) if place == "a_path" else ()
        if place == "the_variable":
            monkeypatch.setenv(VARIABLE, str(path))
        code, said = watch.run("push", adapter, REFERENCE, *words)

        assert code == 7
        assert str(path) in said
        assert "chmod" in said
        assert not registry.exists()

    @pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
    def test_a_directory_that_others_may_write(self, watch, adapter, registry, home, mode):
        """If others may put keys into the directory, none of them is used (7), and none is made."""
        vouch.generate_key("org")
        (home / "keys").chmod(mode)

        assert watch.run("push", adapter, REFERENCE)[0] == 7
        assert watch.run("key", "generate", "other")[0] == 7
        assert watch.run("key", "show")[0] == 7

    def test_a_link(self, watch, adapter, registry, tmp_path):
        """A key behind a symbolic link is refused (7): whoever owns the link could put another one there."""
        (tmp_path / "link.pem").symlink_to(key_file(tmp_path / "own.pem", pem(KEY)))

        assert watch.run("push", adapter, REFERENCE, "--key", tmp_path / "link.pem")[0] == 7

    def test_the_error_is_one_of_policy(self, tmp_path):
        """In Python it is a `PolicyError` that says what to run."""
        path = key_file(tmp_path / "own.pem", pem(KEY), mode=0o644)

        with pytest.raises(PolicyError, match=f"chmod 600 {path}"):
            read_private_key(path)


OTHERS = {
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ed448": ed448.Ed448PrivateKey.generate,
    "x25519": x25519.X25519PrivateKey.generate,
    "rsa": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "dsa": lambda: dsa.generate_private_key(key_size=1024),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "brainpool": lambda: ec.generate_private_key(ec.BrainpoolP256R1()),
}


class TestWhatIsAKey:
    """Keys that OpenSSL and OpenSSH write, on three curves."""

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("curve", CURVES)
    @pytest.mark.parametrize("passphrase", [None, CANARY], ids=["open", "encrypted"])
    @pytest.mark.parametrize("place", ["as_a_path", "as_pem", "by_name"])
    def test_forms(self, adapter, registry, tmp_path, monkeypatch, form, curve, passphrase, place):
        """PKCS#8, SEC1 and OpenSSH, open or encrypted, in a file, in the variable, or named: each of them signs."""
        key = ec.generate_private_key(_EC[curve])
        content = pem(key, form, passphrase)
        path = key_file(tmp_path / "own.pem", content)
        if passphrase:
            monkeypatch.setenv(PASSPHRASE, passphrase)
        if place != "by_name":
            monkeypatch.setenv(VARIABLE, str(path) if place == "as_a_path" else f"\n{content.decode()}")
        pushed = api.push(adapter, REFERENCE, key=path if place == "by_name" else None)

        assert pushed.signers == (PrivateKey(key).public.fingerprint,)

    @pytest.mark.parametrize("curve", CURVES)
    def test_what_is_generated(self, home, monkeypatch, cheap, curve):
        """A generated key is in OpenSSH's format, encrypted with the passphrase and with nothing else."""
        public = vouch.generate_key("org", curve=curve, passphrase=CANARY)
        content = (home / "keys" / "org.key").read_bytes()
        monkeypatch.setenv(PASSPHRASE, CANARY)

        assert content.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----\n")
        assert b"aes256-ctr" in base64.b64decode(b"".join(content.splitlines()[1:-1]))
        assert default_key_ring().private("org").public == public
        with pytest.raises(UsageError, match="cannot be decrypted"):
            default_key_ring().private("org", lambda _: WRONG)

    def test_it_is_slow_to_guess(self, home):
        """It takes 64 rounds of bcrypt to try a passphrase."""
        vouch.generate_key("org", passphrase=CANARY)
        content = base64.b64decode(b"".join((home / "keys" / "org.key").read_bytes().splitlines()[1:-1]))
        start = content.index(b"bcrypt") + len(b"bcrypt") + 4  # string kdfname; string kdfoptions: salt, rounds
        salt = int.from_bytes(content[start : start + 4], "big")

        assert int.from_bytes(content[start + 4 + salt : start + 8 + salt], "big") == 64

    @pytest.mark.parametrize("kind", OTHERS)
    def test_other_kinds(self, watch, adapter, registry, tmp_path, kind):
        """Ed25519, RSA, other curves and so on are refused (8), as a private key and as a public one."""
        key = OTHERS[kind]()
        private = key_file(tmp_path / "own.pem", pem(key))
        public = tmp_path / "own.pub"
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
        signing, said = watch.run("push", adapter, REFERENCE, "--key", private)
        trusting, _ = watch.run("trust", "add", public, "--scope", "org/*")

        assert (signing, trusting) == (8, 8)
        assert "P-521" in said
        assert not registry.exists()

    @pytest.mark.parametrize("kind", ["ed25519", "rsa"])
    def test_other_kinds_of_openssh(self, tmp_path, kind):
        """The same in OpenSSH's format."""
        path = key_file(tmp_path / "own.key", pem(OTHERS[kind](), "openssh"))

        with pytest.raises(MalformedError, match="no private key of the curves"):
            read_private_key(path)

    def test_a_public_key_is_none(self, tmp_path):
        """The public half in the place of the private one is refused (8)."""
        path = key_file(tmp_path / "own.pub", PrivateKey(KEY).public.pem.encode())

        with pytest.raises(MalformedError, match="no private key"):
            read_private_key(path)

    def test_no_file(self, watch, adapter, registry, tmp_path):
        """A key that is not there is not found (3), and nothing is published unsigned instead."""
        code, said = watch.run("push", adapter, REFERENCE, "--key", tmp_path / "none.pem")

        assert code == 3
        assert "none.pem" in said
        assert not registry.exists()

    def test_no_file_in_the_variable(self, adapter, registry, tmp_path, monkeypatch):
        """The same for `LORA_HUB_KEY`: who sets it wants a signature."""
        monkeypatch.setenv(VARIABLE, str(tmp_path / "none.pem"))

        with pytest.raises((NotFoundError, UsageError), match=VARIABLE + "|none.pem"):
            api.push(adapter, REFERENCE)
        assert not registry.exists()

    @pytest.mark.parametrize(
        "passphrase", ["\N{SNOWMAN} and spaces ", "x" * 200, "\udcff"], ids=["unicode", "long", "bytes"]
    )
    def test_odd_passphrases(self, watch, home, monkeypatch, cheap, passphrase):
        """Any passphrase that can be typed encrypts the key and opens it again; what is no text may be refused (2)."""
        monkeypatch.setenv(PASSPHRASE, passphrase)
        code, _ = watch.run("key", "generate", "org")
        if code:
            watch.refused(lambda: vouch.generate_key("org", passphrase=passphrase))
        watch.check(passphrase if passphrase != "\udcff" else "\\udcff")

        assert code == 0 or (code == 2 and passphrase == "\udcff")
        assert (home / "keys" / "org.key").exists() == (code == 0)
        if code == 0:
            assert default_key_ring().private("org") is not None
            with pytest.raises(UsageError):
                default_key_ring().private("org", lambda _: passphrase[:-1])


# At a terminal

_PATIENCE = 60  # seconds without a word after which a process is killed, and so the test fails
_START = """
import os, sys
os.open(os.ttyname(0), os.O_RDWR)  # a new session takes the first terminal that it opens for its own
os.execv(sys.executable, [sys.executable, "-m", "lora_hub", *sys.argv[1:]])
"""


def at_terminal(*words: object, typed: tuple[tuple[str, str], ...] = (), **environment: str) -> tuple[int, str]:
    """Run the command line at a terminal, where somebody types an answer to each question that is asked.

    Return the exit code, and everything that is seen on the terminal.
    """
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _START, *map(str, words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | environment,
        start_new_session=True,
    )
    os.close(theirs)
    seen, position, answers = "", 0, list(typed)
    while select.select([ours], [], [], _PATIENCE)[0]:
        try:
            seen += os.read(ours, 4096).decode(errors="replace")
        except OSError:  # EIO: nobody has the other end open any more
            break
        if answers and answers[0][0] in seen[position:]:
            question, answer = answers.pop(0)
            position = seen.index(question, position) + len(question)
            os.write(ours, f"{answer}\n".encode())
    else:
        process.kill()  # it asked something else, and waits
    os.close(ours)
    return process.wait(), seen


class TestAtATerminal:
    """Who is there is asked; who is not there is not."""

    def test_a_new_key(self, home):
        """`key generate` asks twice, and encrypts the key with what was typed, which is not shown."""
        questions = (("Passphrase (empty for none)", CANARY), ("Repeat for confirmation", CANARY))
        code, seen = at_terminal("key", "generate", "org", typed=questions)

        assert code == 0, seen
        assert CANARY not in seen
        assert default_key_ring().private("org", lambda _: CANARY) is not None
        with pytest.raises(UsageError, match="is encrypted"):
            default_key_ring().private("org")

    def test_a_new_key_without_a_passphrase(self):
        """An empty answer makes an open key, and says so."""
        questions = (("Passphrase (empty for none)", ""), ("Repeat for confirmation", ""))
        code, seen = at_terminal("key", "generate", "org", typed=questions)

        assert code == 0, seen
        assert "not encrypted" in seen
        assert default_key_ring().private("org") is not None

    @pytest.mark.parametrize(("answer", "expected"), [(CANARY, 0), (WRONG, 2)])
    def test_an_encrypted_key(self, adapter, registry, tmp_path, answer, expected):
        """`push` asks once; the right answer signs, the wrong one is refused (2); neither is shown."""
        path = key_file(tmp_path / "own.pem", pem(KEY, passphrase=CANARY))
        code, seen = at_terminal("push", adapter, REFERENCE, "--key", path, typed=(("Passphrase of", answer),))

        assert code == expected, seen
        assert answer not in seen
        assert seen.count("Passphrase of") == 1
        assert registry.exists() == (expected == 0)

    def test_a_passphrase_in_the_environment(self, adapter, registry, tmp_path):
        """Nobody is asked for what the environment says."""
        path = key_file(tmp_path / "own.pem", pem(KEY, passphrase=CANARY))
        code, seen = at_terminal("push", adapter, REFERENCE, "--key", path, **{PASSPHRASE: CANARY})

        assert code == 0, seen
        assert "Passphrase" not in seen
        assert CANARY not in seen

    def test_an_open_key(self, adapter, registry, tmp_path):
        """Nobody is asked for the passphrase of a key that has none."""
        code, seen = at_terminal("push", adapter, REFERENCE, "--key", key_file(tmp_path / "own.pem", pem(KEY)))

        assert code == 0, seen
        assert "Passphrase" not in seen

    @pytest.mark.parametrize("stdin", ["devnull", "a_pipe", "closed"])
    def test_nobody_is_there(self, adapter, registry, tmp_path, stdin):
        """Without a terminal nobody is asked: the command ends, and says which variable has to be set."""
        path = key_file(tmp_path / "own.pem", pem(KEY, passphrase=CANARY))
        command = [sys.executable, "-m", "lora_hub", "push", str(adapter), REFERENCE, "--key", str(path)]
        if stdin == "closed":
            command = ["/bin/sh", "-c", 'exec "$@" <&-', "sh", *command]
        source = {"a_pipe": {"input": f"{CANARY}\n"}}.get(stdin, {"stdin": subprocess.DEVNULL})
        done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, check=False, **source)

        assert done.returncode == 2, done.stderr
        assert PASSPHRASE in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
