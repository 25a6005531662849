"""A process that is killed, or one of many, leaves keys, trust policy and memory as they were or as they become.

The kills are real: see `killed_cli.py`. They happen at a step on the file system, not after a time, so that they hit
every machine alike. The umask is 0, so that nothing is private by accident.
"""

import os
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
from adapter_files import adapter_files
from test_crash import KILLED_CLI, steps_to_try

from lora_hub.cli import run
from lora_hub.documents.seen import Seen
from lora_hub.documents.trust_policy import TrustPolicy
from lora_hub.signing.keys import PrivateKey

# Which steps are the last ones: in the quick suite two of each command, where its files are written.
SOME = pytest.param(lambda total: steps_to_try(total, 5)[2:4], id="two_steps")
ALL = pytest.param(lambda total: steps_to_try(total, total), id="every_step", marks=pytest.mark.full)


@dataclass(frozen=True)
class Place:
    """A directory to work in: a home, a registry with versions that its own key signed, public keys of others."""

    root: Path

    @property
    def home(self) -> Path:
        """Everything that this user keeps."""
        return self.root / "home"

    @property
    def environment(self) -> dict[str, str]:
        """What the command line sees."""
        return os.environ | {
            "LORA_HUB_HOME": str(self.home),
            "LORA_HUB_REGISTRY": str(self.root / "registry"),
            "SOURCE_DATE_EPOCH": "1700000000",
        }

    def start(self, *words: object, kill_at: int | None = None) -> subprocess.Popen:
        """Run the command line in a process, which dies at step *kill_at*; 0 counts the steps."""
        script = ["-m", "lora_hub"] if kill_at is None else [KILLED_CLI, kill_at, -1, self.home]
        return subprocess.Popen(
            [sys.executable, *map(str, (*script, *words))],
            env=self.environment,
            cwd=self.root,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            umask=0,
        )

    def run(self, *words: object, kill_at: int | None = None) -> tuple[int, str, str]:
        """Run the command line to its end; return its exit code, stdout and stderr."""
        process = self.start(*words, kill_at=kill_at)
        out, err = process.communicate()
        return process.returncode, out, err

    def copy(self, root: Path) -> Self:
        """Return the same place elsewhere; its registry, whose path is in policy and memory, stays where it is."""
        shutil.copytree(self.home, root / "home")
        for name in ("registry", "adapter", "other.pub"):
            (root / name).symlink_to((self.root / name).resolve())
        return Place(root)

    @property
    def seen(self) -> dict:
        """What this user saw, and what it was."""
        content = self.bytes_of("seen.json")
        return dict(Seen.parse(content).sights) if content is not None else {}

    def bytes_of(self, name: str) -> bytes | None:
        """Return what the file *name* in the home holds, if it is there."""
        path = self.home / name
        return path.read_bytes() if path.exists() else None


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Place:
    """A user who has a key for org, trusts another one, pinned a version, pulled a version, and published three."""
    root = tmp_path_factory.mktemp("prepared")
    place = Place(root)
    adapter_files().write(root / "adapter")
    (root / "other.pub").write_text(PrivateKey.generate().public.pem)
    for words in (
        ("key", "generate", "org"),
        *(("push", "adapter", f"org/task@1.{minor}.0") for minor in range(3)),
        ("trust", "add", "other.pub", "--scope", "known/*", "--name", "known"),
        ("trust", "pin", "org/task@1.0.0"),
        ("pull", "org/task@1.0.0"),
        ("yank", "org/task@1.2.0"),
    ):
        code, _, err = place.run(*words)
        assert code == 0, err
    return place


COMMANDS = {
    "key generate": ("key", "generate", "other"),
    "trust add, a key": ("trust", "add", "other.pub", "--scope", "other/*"),
    "trust add, a scope": ("trust", "add", "other.pub", "--scope", "org/*", "--threshold", "2"),
    "trust pin": ("trust", "pin", "org/task@1.1.0"),
    "trust revoke": ("trust", "revoke", "known", "--reason", "the laptop was stolen"),
    "trust remove, a key": ("trust", "remove", "known"),
    "trust remove, a pin": ("trust", "remove", "org/task@1.0.0"),
    "pull, what is seen": ("pull", "org/task@1.1.0"),
    "pull, what is yanked": ("pull", "org/task"),
}
# What a second run of a command ends with, if the first one came as far as to make the change.
IS_DONE = {"key generate": 2, "trust remove, a key": 3, "trust remove, a pin": 3}


@pytest.fixture
def cli(monkeypatch, capsys):
    """Run the command line in this process, in a place; return exit code, stdout and stderr."""
    before = os.umask(0)

    def cli(place: Place, *words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(place.root)
            for name, value in place.environment.items():
                patch.setenv(name, value)
            return run(list(words)), *capsys.readouterr()

    yield cli
    os.umask(before)


@pytest.mark.parametrize("steps", [SOME, ALL])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_leaves_the_old_state_or_the_new_one(prepared, tmp_path, cli, command, steps):
    """Killed at any step, policy and memory are what they were or what they become, and the command can be repeated."""
    words = COMMANDS[command]
    whole = prepared.copy(tmp_path / "whole")
    code, _, err = whole.run(*words, kill_at=0)
    total = int(err.split()[-1])
    assert (code, total > 10) == (0, True), err

    for step in steps(total):
        place = prepared.copy(tmp_path / f"killed-{step}")
        assert place.run(*words, kill_at=step)[0] == -signal.SIGKILL
        check_old_or_new(place, prepared, whole, command)
        check_keys(place)
        check_readable(place, cli)

        code, _, err = cli(place, *words)
        assert code in {0, IS_DONE.get(command, 0)}, err
        assert "Traceback" not in err
        check_new(place, whole, command)
        check_keys(place)
        shutil.rmtree(place.root)


def check_old_or_new(place: Place, old: Place, new: Place, command: str) -> None:
    """The policy is the old file or the new one, byte for byte; the memory has all that was there, and nothing else."""
    assert old.seen.items() <= place.seen.items() <= new.seen.items() | old.seen.items()
    if command == "key generate":  # every key is another one
        assert names_in(place) in (names_in(old), names_in(new))
    else:
        assert place.bytes_of("trust.toml") in {old.bytes_of("trust.toml"), new.bytes_of("trust.toml")}


def check_new(place: Place, new: Place, command: str) -> None:
    """Policy and memory are the new files, or mean the same; what was there before is there still."""
    assert place.seen == new.seen
    if command == "key generate":
        assert {"org.key", "org.pub", "other.key", "other.pub"} <= {
            path.name for path in (place.home / "keys").iterdir()
        }
        assert names_in(place) <= names_in(new)
    else:
        assert policy_of(place) == policy_of(new)


def policy_of(place: Place) -> TrustPolicy:
    """Return what this user trusts."""
    return TrustPolicy.parse(place.bytes_of("trust.toml"))


def names_in(place: Place) -> set[str]:
    """Return the names of keys and the scopes of rules in the policy."""
    policy = policy_of(place)
    return {key.name for key in policy.keys} | {rule.scope for rule in policy.rules}


def check_keys(place: Place) -> None:
    """Under its final name a key is whole and matches its public half; nobody else can read one under any name."""
    keys = place.home / "keys"
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    for path in keys.iterdir():
        content, mode = path.read_bytes(), stat.S_IMODE(path.stat().st_mode)
        assert path.suffix == ".pub" or path.name.endswith((".pub", ".lock")) or ".pub." in path.name or mode == 0o600
        if b"PRIVATE KEY" in content:
            assert mode == 0o600
    for path in keys.glob("[!.]*.key"):
        key = PrivateKey.parse(path.read_bytes(), what=path.name)
        assert key.public.pem == path.with_suffix(".pub").read_text()


def check_readable(place: Place, cli) -> None:
    """The command line reads all of it, and none of it may be written by others."""
    for words in (("trust", "list"), ("key", "show"), ("cache", "verify")):
        code, _, err = cli(place, *words, "--json")
        assert code == 0, err
    for path in (place.home, *place.home.rglob("*")):
        assert not path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH), path


def finish(*processes: subprocess.Popen) -> list[str]:
    """Wait for *processes*, all of which end well, and return what they printed."""
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), said
    return [out for out, _ in said]


class TestEightProcessesAtOnce:
    """Nothing that one of several processes writes is lost because another one writes as well."""

    def test_add_keys(self, prepared, tmp_path):
        """Eight processes that each trust another key leave eight keys and eight rules more."""
        place = prepared.copy(tmp_path / "place")
        for number in range(8):
            (place.root / f"{number}.pub").write_text(PrivateKey.generate().public.pem)
        finish(
            *(place.start("trust", "add", f"{n}.pub", "--scope", f"org{n}/*", "--name", f"key{n}") for n in range(8))
        )
        added = {name for n in range(8) for name in (f"org{n}/*", f"key{n}")}

        assert names_in(place) == names_in(prepared) | added

    def test_add_keys_to_one_scope(self, prepared, tmp_path):
        """Eight processes that extend one rule leave one rule with all of their keys."""
        place = prepared.copy(tmp_path / "place")
        for number in range(8):
            (place.root / f"{number}.pub").write_text(PrivateKey.generate().public.pem)
        finish(*(place.start("trust", "add", f"{n}.pub", "--scope", "org/*", "--name", f"key{n}") for n in range(8)))

        assert set(policy_of(place).rule("org/task").keys) == {"org", *(f"key{number}" for number in range(8))}

    def test_generate_keys(self, tmp_path):
        """Eight processes that make keys in a home that is not there yet leave eight keys, all of them trusted."""
        place = Place(tmp_path)
        finish(*(place.start("key", "generate", f"org{number}") for number in range(8)))
        check_keys(place)

        assert names_in(place) == {name for n in range(8) for name in (f"org{n}", f"org{n}/*")}
        assert len(list((place.home / "keys").glob("*.key"))) == 8

    def test_generate_one_key(self, tmp_path):
        """Of eight processes that make the same key, one makes it, and the others say that they cannot."""
        place = Place(tmp_path)
        processes = [place.start("key", "generate", "org") for _ in range(8)]
        said = [process.communicate() for process in processes]
        check_keys(place)

        assert sorted(process.returncode for process in processes) == [0] + [2] * 7
        assert not any("Traceback" in err for _, err in said)
        (winner,) = (out for out, _ in said if out)
        assert PrivateKey.parse((place.home / "keys" / "org.key").read_bytes(), what="it").public.fingerprint in winner

    def test_pin_and_revoke(self, prepared, tmp_path):
        """Pins and revocations that are made at once are all there."""
        place = prepared.copy(tmp_path / "place")
        pins = [place.start("trust", "pin", f"org/task@1.{minor}.0") for minor in range(3)]
        digests = [f"sha256:{digit * 64}" for digit in "01234"]
        finish(*pins, *(place.start("trust", "revoke", digest) for digest in digests))
        policy = policy_of(place)

        assert {pin.version for pin in policy.pins} == {"1.0.0", "1.1.0", "1.2.0"}
        assert [revoked.digest for revoked in sorted(policy.revoked, key=str)] == digests

    def test_pull_different_versions(self, prepared, tmp_path):
        """Eight processes that pull different versions leave eight memories, and eight adapters."""
        place = Place(tmp_path)
        adapter_files().write(place.root / "adapter")
        for number in range(8):
            assert place.run("push", "adapter", f"org/task@2.{number}.0")[0] == 0
        finish(*(place.start("pull", f"org/task@2.{number}.0") for number in range(8)))

        assert sorted(at for _, _, at in place.seen) == [f"2.{number}.0" for number in range(8)]
        assert len({sight.digest for sight in place.seen.values()}) == 8
        assert len(list((place.home / "store" / "adapters").iterdir())) == 8
