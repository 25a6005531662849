"""A push to the Hub, or a pull from it, that is killed leaves all or nothing, and the next run completes it.

The kills are real. They happen at counted events, so that they hit every machine alike: when the Hub has received, or
has just worked on, the n-th request of the process; when so many bytes of a download have been sent; at the n-th step
on the file system, see `killed_cli.py`. Which of them are tried is drawn with a fixed seed.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from adapter_files import (
    CONFIG_NAME,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    AdapterFiles,
    Tensor,
    adapter_files,
    lora_key,
    pack,
    peft_config,
)
from loopback_hub import LoopbackHub
from loopback_hub.server import PRIVATE
from publishers import NO_XET, environment, run_cli

from lora_hub.documents.manifest import Manifest, publish
from lora_hub.documents.verified_adapter import manifest_digest, verify
from lora_hub.reference import AdapterRef
from lora_hub.registry.hub import HubRegistry
from lora_hub.registry.memory import Memory
from lora_hub.registry.pull import pull
from lora_hub.registry.push import push
from lora_hub.registry.store import Store
from lora_hub.registry.terms import Terms
from lora_hub.registry.trust_file import TrustFile

KILLED_CLI = Path(__file__).with_name("killed_cli.py")
SEED = 1604
FEW, ENOUGH = 10, 50  # kills of each kind of run, in the quick suite and in full
NAME = "org/task"
REFERENCE = AdapterRef.parse("org/task@1.0.0")
MIB = 1024 * 1024
DAY = 24 * 3600
NO_REQUEST = re.compile("telemetry|/api/agent-harnesses")  # sent or not, as the client likes
COUNTS = [pytest.param(FEW, id="a_few"), pytest.param(ENOUGH, id="enough", marks=pytest.mark.full)]
MODES = [pytest.param({}, id="xet"), pytest.param(NO_XET, id="lfs")]


class Moment(NamedTuple):
    """When a process dies: before or after a request is worked on, after so many bytes, or at a step."""

    kind: str
    number: int


class Killer:
    """Counts the requests to a Hub, and kills a process at one of them."""

    def __init__(self, hub: LoopbackHub) -> None:
        self.count = 0
        self.moment: Moment | None = None
        self.victim: subprocess.Popen | None = None
        self._is_armed = threading.Event()
        self._lock = threading.Lock()
        for origin in (hub._hub, hub._cdn):
            origin.work = self._counted(origin.work)

    def _counted(self, work):
        def counted(method: str, target: str, headers: dict[str, str], body: bytes):
            if target.startswith(f"{PRIVATE}/") or NO_REQUEST.search(target):
                return work(method, target, headers, body)
            with self._lock:
                self.count += 1
                number = self.count
            self._kill_at(Moment("before", number))
            answer = work(method, target, headers, body)
            self._kill_at(Moment("after", number))
            return answer

        return counted

    def _kill_at(self, moment: Moment) -> None:
        if moment == self.moment:
            self._is_armed.wait()
            self.victim.kill()
            self.victim.wait()

    def run(self, command: list[str], env: dict[str, str], moment: Moment | None = None) -> subprocess.CompletedProcess:
        """Run *command*, which dies at *moment*, if it comes so far."""
        self.count, self.moment = 0, moment
        self._is_armed.clear()
        pipe = subprocess.PIPE
        with subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True) as self.victim:
            self._is_armed.set()
            out, err = self.victim.communicate(timeout=120)
        self.moment = None
        return subprocess.CompletedProcess(command, self.victim.returncode, out, err)


class Machine:
    """A machine with a home of its own, on which the command line is killed."""

    def __init__(self, root: Path, hub: LoopbackHub, killer: Killer, mode: dict[str, str]) -> None:
        self.root = root
        self.hub = hub
        self.killer = killer
        self.mode = mode
        self.home = root / "home"

    @property
    def store(self) -> Store:
        """The store of this machine."""
        return Store(self.home / "store")

    @property
    def trust(self) -> TrustFile:
        """The trust policy of this machine."""
        return TrustFile(self.home / "trust.toml")

    def run(self, *words: object, at: Moment | None = None, **changes: str) -> subprocess.CompletedProcess:
        """Run the command line until *at*; without it, the last line on stderr is the number of steps."""
        env = environment(self.hub, self.home, **self.mode, **changes)
        step = at.number if at is not None and at.kind == "step" else 0
        cut = None
        if at is not None and at.kind == "bytes":
            cut = self.hub.fault("^/(files|xorbs)/", host="cdn", cut=at.number)
            self._kill_after(cut)
        command = [sys.executable, KILLED_CLI, step, -1, self.root, *words]
        done = self.killer.run([*map(str, command)], env, at)
        if cut is not None:
            cut.times = cut.hits
            del self.hub.log.append
        return done

    def _kill_after(self, cut) -> None:
        """Let the process die at the first request after the one whose answer was cut."""
        append = self.hub.log.append

        def appended(request) -> None:
            append(request)
            if cut.hits and self.killer.victim.poll() is None:
                self.killer.victim.kill()
                self.killer.victim.wait()

        self.hub.log.append = appended

    def stored(self) -> list[str]:
        """Return the digests in the store, after proving that each adapter there is whole."""
        checked = dict(self.store.verify())
        assert set(checked.values()) <= {None}
        assert [stored.digest for stored in self.store.adapters()] == sorted(checked)
        return sorted(checked)

    def grow_old(self) -> None:
        """Let everything that lies in the home have lain there for a month."""
        for path in [*self.home.rglob("*")]:
            os.utime(path, (time.time() - 30 * DAY,) * 2)

    def leftovers(self) -> list[Path]:
        """Return what no finished run would leave: half-written files and directories."""
        found = [*(self.home / "store").rglob("*"), *self.home.glob(".*")]
        return [
            path
            for path in found
            if path.parent.name in {"staging", "partial"} or (path.name.startswith(".") and path.suffix != ".lock")
        ]


@pytest.fixture
def killer(hub) -> Killer:
    """What counts the requests and kills."""
    return Killer(hub)


def moments(requests: int, steps: int, size: int, count: int) -> list[Moment]:
    """Draw *count* of all moments, of each kind as many as there are in proportion."""
    kinds = [
        [Moment(kind, number) for number in range(1, requests + 1) for kind in ("before", "after")],
        [Moment("step", number) for number in range(1, steps + 1)],
        [Moment("bytes", size * part // 16 + 1) for part in range(16)] if size else [],
    ]
    draw, kinds = random.Random(SEED), [kind for kind in kinds if kind]
    for kind in kinds:
        draw.shuffle(kind)
    drawn = [kind[turn] for turn in range(max(map(len, kinds))) for kind in kinds if turn < len(kind)]
    return drawn[:count]


def total_steps(done: subprocess.CompletedProcess) -> int:
    """Return how many steps a run took that was not killed."""
    assert done.returncode == 0, done.stderr
    return int(done.stderr.split()[-1])


def big_adapter(mebibytes: int) -> AdapterFiles:
    """Return a valid adapter of so many MiB, made in no time: two tensors of one repeated block."""
    block = pack([random.Random(SEED).gauss(0, 1) for _ in range(1024)], "F32")
    width, content = mebibytes * 2048, block * (mebibytes * 128)
    path = "model.layers.0.self_attn.q_proj"
    tensors = {
        lora_key(path, "A"): Tensor(dtype="F32", shape=(64, width), content=content),
        lora_key(path, "B"): Tensor(dtype="F32", shape=(width, 64), content=content),
    }
    return AdapterFiles(config=peft_config(r=64, target_modules=["q_proj"]), tensors=tensors)


def publish_past_the_protocol(hub: LoopbackHub, adapter: AdapterFiles, version: str = "1.0.0") -> str:
    """Put a version into a new repository, and return its digest."""
    files = adapter.files()
    draft = verify(files, source="a test").manifest.to_bytes()
    reference = AdapterRef.parse(f"{NAME}@{version}")
    files[MANIFEST_NAME] = publish(draft, reference=reference, created="2026-01-01T00:00:00Z")
    hub.create(NAME, files, tags=[f"v{version}"])
    return manifest_digest(files[MANIFEST_NAME])


# Push


def published(hub: LoopbackHub, root: Path) -> str | None:
    """Return the digest of the version, if it is visible, after proving that it is whole: that it can be pulled."""
    if NAME not in hub.repos or not hub.repo(NAME).tags:
        return None
    repo = hub.repo(NAME)
    assert set(repo.tags) == {"v1.0.0"}
    digest = manifest_digest(repo.files("v1.0.0")[MANIFEST_NAME])
    terms = Terms(memory=Memory(root / "seen.json"))
    assert pull(REFERENCE, HubRegistry(), Store(root), terms, digest=digest).digest == digest
    return digest


def committed(hub: LoopbackHub) -> list[str]:
    """Return the digests of the commits that publish the version."""
    found = hub.repo(NAME).commits if NAME in hub.repos else []
    return [manifest_digest(c.files[MANIFEST_NAME]) for c in found if c.title == "Publish 1.0.0"]


def journalled(store: Store) -> list[str]:
    """Return the digests of the manifests that are surely under way."""
    entries = store.pushes.glob("*.json") if store.pushes.is_dir() else []
    return [manifest_digest(entry.read_bytes()) for entry in entries if not entry.name.startswith(".")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", COUNTS)
def test_a_killed_push_publishes_all_or_nothing(hub, killer, tmp_path, mode, count):
    """Killed at any moment of a push, there is no version or a whole one; minutes later the push completes the same."""
    whole = Machine(tmp_path / "whole", hub, killer, mode)
    steps = total_steps(whole.run("push", adapter_files().write(whole.root / "adapter"), REFERENCE))

    for seed, moment in enumerate(moments(killer.count, steps, 0, count // 2 if count == FEW else count), start=1):
        hub.repos.clear()
        machine = Machine(tmp_path / f"{moment.kind}-{moment.number}", hub, killer, mode)
        check_killed_push(machine, adapter_files(seed=seed), moment)  # what the Hub has never seen, so that it is sent
        shutil.rmtree(machine.root)


def check_killed_push(machine: Machine, adapter: AdapterFiles, moment: Moment) -> None:
    """Kill a push at *moment*, look at what there is, and push again, minutes later."""
    directory = adapter.write(machine.root / "adapter")
    killed = machine.run("push", directory, REFERENCE, at=moment, SOURCE_DATE_EPOCH="1000000000")
    begun = {*committed(machine.hub), *journalled(machine.store)}
    visible = published(machine.hub, machine.root / "seen")

    assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    assert len(begun) <= 1, moment
    assert visible is None or {visible} == begun, moment

    done = machine.run("push", directory, REFERENCE, "--json", SOURCE_DATE_EPOCH="1000000600")
    assert done.returncode == 0, (moment, done.stderr)
    digest = json.loads(done.stdout)["digest"]
    assert published(machine.hub, machine.root / "proof") == digest, moment
    assert begun <= {digest}, moment
    assert committed(machine.hub) == [digest], moment
    assert journalled(machine.store) == [], moment
    (pin,) = tomllib.loads(machine.trust.path.read_text())["pin"]
    assert (pin["version"], pin["digest"]) == ("1.0.0", digest), moment
    assert pin["commit"] == machine.hub.repo(NAME).tags["v1.0.0"], moment
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == adapter.files(), moment


@pytest.mark.parametrize("path", ["/commit/", "/tag/"])
@pytest.mark.parametrize("kind", ["before", "after"])
def test_a_push_that_was_killed_is_completed_by_the_next_version(hub, killer, tmp_path, path, kind):
    """Killed around its commit or its tag, a version is whole or not there once another machine publishes the next."""
    Machine(tmp_path / "whole", hub, killer, {}).run("push", adapter_files().write(tmp_path / "whole"), REFERENCE)
    asked = [request for request in hub.requests if not NO_REQUEST.search(request.path)]
    (number,) = [n for n, request in enumerate(asked, 1) if path in request.path]
    hub.repos.clear()
    adapter = adapter_files(seed=1).write(tmp_path / "adapter")
    Machine(tmp_path / "killed", hub, killer, {}).run("push", adapter, REFERENCE, at=Moment(kind, number))
    begun = committed(hub)
    other = Machine(tmp_path / "other", hub, killer, {})
    push(adapter, AdapterRef.parse(f"{NAME}@1.1.0"), HubRegistry(), other.store, other.trust)

    assert set(hub.repo(NAME).tags) == ({"v1.0.0", "v1.1.0"} if begun else {"v1.1.0"})
    terms = Terms(memory=Memory(other.store.root / "seen.json"))
    assert [pull(REFERENCE, HubRegistry(), other.store, terms, digest=digest).digest for digest in begun] == begun
    assert committed(hub) == begun


def test_a_killed_push_hangs_on_no_lock(hub, killer, tmp_path):
    """A push that is killed while the Hub hangs does not keep another process on this machine from pushing."""
    adapter = adapter_files().write(tmp_path / "adapter")
    machine = Machine(tmp_path, hub, killer, {})
    hanging = hub.fault("/commit/", hang=True)
    env = environment(hub, machine.home)
    with subprocess.Popen([sys.executable, "-m", "lora_hub", "push", adapter, str(REFERENCE)], env=env) as hung:
        while not hanging.hits:
            assert hung.poll() is None
            time.sleep(0.005)
        done = run_cli(["push", adapter, REFERENCE], env)
        hung.kill()

    assert (done.code, hung.returncode) == (0, -signal.SIGKILL)
    assert len(committed(hub)) == 1


def test_what_a_killed_push_left_half_written_is_swept(hub, killer, tmp_path):
    """Half-written files of a push that was killed long ago go with `cache prune`."""
    adapter = adapter_files().write(tmp_path / "adapter")
    machine = Machine(tmp_path / "machine", hub, killer, {})
    killed = (machine.run("push", adapter, REFERENCE, at=Moment("step", number)) for number in range(1, 40))
    left = next((machine.leftovers() for done in killed if done.returncode and machine.leftovers()), [])
    machine.grow_old()
    done = machine.run("cache", "prune")

    assert left
    assert done.returncode == 0, done.stderr
    assert machine.leftovers() == []


# Pull


@pytest.fixture(scope="module")
def large() -> AdapterFiles:
    """An adapter that is large enough to be kept while it comes."""
    return big_adapter(9)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", COUNTS)
def test_a_killed_pull_stores_all_or_nothing(hub, killer, tmp_path, large, mode, count):
    """Killed at any moment of a pull, the store has nothing or a whole adapter; the next pull brings the same."""
    digest = publish_past_the_protocol(hub, large)
    words = ["pull", REFERENCE, "--digest", digest]
    whole = Machine(tmp_path / "whole", hub, killer, mode)
    steps = total_steps(whole.run(*words))
    size = len(large.files()[WEIGHTS_NAME])

    for moment in moments(killer.count, steps, size, count // 2 if count == FEW else count):
        machine = Machine(tmp_path / f"{moment.kind}-{moment.number}", hub, killer, mode)
        killed = machine.run(*words, at=moment)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
        assert machine.stored() in ([], [digest]), moment

        done = machine.run(*words, "--json")
        assert done.returncode == 0, (moment, done.stderr)
        assert json.loads(done.stdout)[0]["digest"] == digest, moment
        assert machine.stored() == [digest], moment
        machine.grow_old()
        machine.store.sweep()
        machine.store.prune(unused_for=365 * DAY)
        assert machine.leftovers() == [], moment
        shutil.rmtree(machine.root)


@pytest.mark.parametrize(
    ("mode", "mebibytes", "hanging"),
    [
        pytest.param(NO_XET, 9, None, id="http"),
        pytest.param({}, 40, "^/xorbs/.*/1$", id="xet"),
    ],
)
def test_the_next_pull_goes_on_where_the_killed_one_was(hub, killer, tmp_path, mode, mebibytes, hanging):
    """After a kill in the middle of a download, the next run asks for the rest only, and gets no more than that."""
    adapter = big_adapter(mebibytes)
    digest, size = publish_past_the_protocol(hub, adapter), len(adapter.files()[WEIGHTS_NAME])
    machine = Machine(tmp_path, hub, killer, mode)
    words = ["pull", REFERENCE, "--digest", digest]
    if hanging is None:
        machine.run(*words, at=Moment("bytes", 5 * MIB))
    else:
        kill_when_a_part_is_there(machine, words, hub.fault(hanging, host="cdn", hang=True, times=None))
    (part,) = machine.store.partials.iterdir()
    have = part.stat().st_size
    hub.clear()
    done = machine.run(*words)
    asked = [request.headers.get("range") for request in hub.requests if request.answer_size and request.host == "cdn"]
    served = sum(request.answer_size for request in hub.requests if request.host == "cdn")

    assert 4 * MIB <= have < size
    assert done.returncode == 0, done.stderr
    assert machine.stored() == [digest]
    assert any(text.startswith(f"bytes={have}-") for text in asked if text)
    assert served <= (size - have) * 1.01 + 128 * 1024
    assert list(machine.store.partials.iterdir()) == []


def kill_when_a_part_is_there(machine: Machine, words: list, hanging) -> None:
    """Kill a pull when the Hub hangs and everything that came before lies on the disk."""
    env = environment(machine.hub, machine.home, **machine.mode)
    command = [sys.executable, "-m", "lora_hub", *map(str, words)]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as victim:
        while not (hanging.hits and any(part.stat().st_size > 30 * MIB for part in parts_of(machine.store))):
            assert victim.poll() is None
            time.sleep(0.005)
        victim.kill()
    hanging.times = hanging.hits


def parts_of(store: Store) -> Iterator[Path]:
    """Yield the downloads that are not whole yet."""
    return store.partials.iterdir() if store.partials.is_dir() else iter(())


def test_a_part_that_was_damaged_is_not_believed(hub, killer, tmp_path, large):
    """What lies on the disk is proven with the rest: a damaged part costs one more download, in the same pull."""
    digest = publish_past_the_protocol(hub, large)
    machine = Machine(tmp_path, hub, killer, NO_XET)
    words = ["pull", REFERENCE, "--digest", digest]
    machine.run(*words, at=Moment("bytes", 5 * MIB))
    (part,) = machine.store.partials.iterdir()
    content = bytearray(part.read_bytes())
    content[MIB] ^= 1
    part.write_bytes(content)
    damaged = machine.run(*words)

    assert damaged.returncode == 0, damaged.stderr
    assert machine.stored() == [digest]
    assert list(machine.store.partials.iterdir()) == []


@pytest.mark.parametrize("sweep", [["cache", "prune"], ["pull", "org/other@1.0.0"]])
def test_what_a_killed_pull_left_long_ago_is_swept(hub, killer, tmp_path, large, sweep):
    """Parts and staging of a pull that was killed long ago go with `cache prune`, and with the next pull."""
    digest = publish_past_the_protocol(hub, large)
    machine = Machine(tmp_path / "machine", hub, killer, NO_XET)
    other = adapter_files(seed=3).write(tmp_path / "adapter")
    push(other, AdapterRef.parse("org/other@1.0.0"), HubRegistry(), Store(machine.home / "store"), machine.trust)
    machine.run("pull", REFERENCE, "--digest", digest, at=Moment("bytes", 5 * MIB))
    (machine.store.root / "staging" / "0123").mkdir(parents=True)
    left = machine.leftovers()
    machine.grow_old()
    done = machine.run(*sweep)

    assert len(left) == 2
    assert done.returncode == 0, done.stderr
    assert machine.leftovers() == []


def test_what_a_killed_pull_left_just_now_stays(hub, killer, tmp_path, large):
    """A part is kept for the next run, and what another process may still be writing is left alone."""
    digest = publish_past_the_protocol(hub, large)
    machine = Machine(tmp_path / "machine", hub, killer, NO_XET)
    machine.run("pull", REFERENCE, "--digest", digest, at=Moment("bytes", 5 * MIB))
    (machine.store.root / "staging" / "0123").mkdir(parents=True)
    left = machine.leftovers()
    machine.store.sweep()

    assert len(left) == 2
    assert machine.leftovers() == left


def test_a_pull_that_is_killed_hinders_no_other(hub, killer, tmp_path, large):
    """While one process hangs in a download, another one on this machine brings the same adapter whole."""
    digest = publish_past_the_protocol(hub, large)
    machine = Machine(tmp_path / "machine", hub, killer, NO_XET)
    hanging = hub.fault("^/files/", host="cdn", hang=True)
    env = environment(hub, machine.home, **NO_XET)
    words = ["pull", str(REFERENCE), "--digest", digest]
    with subprocess.Popen([sys.executable, "-m", "lora_hub", *words], env=env) as hung:
        while not hanging.hits:
            assert hung.poll() is None
            time.sleep(0.005)
        done = run_cli(words, env)
        hung.kill()

    assert (done.code, hung.returncode) == (0, -signal.SIGKILL)
    assert machine.stored() == [digest]
    assert Manifest.parse((machine.store.path(digest) / MANIFEST_NAME).read_bytes()).reference == REFERENCE
    assert (machine.store.path(digest) / CONFIG_NAME).read_bytes() == large.files()[CONFIG_NAME]
