"""Files that change while they are read: what reaches a model is what was signed, byte for byte, or nothing does."""

import contextlib
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from adapter_files import (
    CONFIG_NAME,
    HIDDEN,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    WIDTHS,
    adapter_files,
    large_adapter,
    lora_key,
    module_paths,
)
from fuzz import specimens, swapper
from fuzz.specimens import OTHER, OWN, POLICY, REFERENCE, public_key, signed_version
from torch import nn

import lora_hub
from lora_hub import api, vouch
from lora_hub.documents.bundle import SIGNATURE_NAME, Bundle
from lora_hub.documents.signers import Signer
from lora_hub.errors import LoraHubError
from lora_hub.files import write_files
from lora_hub.patch.pieces import pieces_of

GOOD = specimens.version()
EVIL = signed_version(adapter_files(seed=666), key=OTHER)  # finite, of the same shapes, as the same version


def forged() -> bytes:
    """Return the bundle of the evil version, which says that the trusted key signed it."""
    bundle = Bundle.parse(EVIL.bundle)
    hint = public_key(OWN).fingerprint
    return Bundle(hint=hint, payload=bundle.payload, signature=bundle.signature).to_bytes()


VERSIONS = {
    "good": GOOD.files,
    "other weights": GOOD.files | {WEIGHTS_NAME: EVIL.weights},
    "unsigned": EVIL.unsigned,
    "signed by a stranger": EVIL.files,
    "signed by nobody in the name of the key": EVIL.files | {SIGNATURE_NAME: forged()},
    "with the good signature": EVIL.files | {SIGNATURE_NAME: GOOD.bundle},
    "with the evil signature": GOOD.files | {SIGNATURE_NAME: EVIL.bundle},
}
EVIL_VERSIONS = [name for name in VERSIONS if name != "good"]
HOW = ["rename", "write"]
COUNTS = [pytest.param(20, id="a_few_cycles"), pytest.param(200, id="many_cycles", marks=pytest.mark.full)]


def tiny_model() -> nn.Module:
    """Return a model with the modules that the adapters are for."""
    layers = [
        nn.ModuleDict({"self_attn": nn.ModuleDict({name: nn.Linear(HIDDEN, width) for name, width in WIDTHS.items()})})
        for _ in range(2)
    ]
    return nn.ModuleDict({"model": nn.ModuleDict({"layers": nn.ModuleList(layers)})})


def attached(handle) -> dict[str, nn.Parameter]:
    """Return A and B of every module, as the model has them, by their names in the file."""
    tensors = {}
    for path, piece in zip(handle.modules, pieces_of(handle), strict=True):
        lora_A, lora_B = piece.delta.parts[0].factors.stored(piece.module)
        tensors |= {lora_key(path, "A"): lora_A, lora_key(path, "B"): lora_B}
    return tensors


def check_is_good(adapter) -> None:
    """Nothing but the signed bytes came, and the trusted key stands for them."""
    assert adapter.digest == GOOD.digest
    assert hashlib.sha256(adapter.buffer).hexdigest() == hashlib.sha256(GOOD.weights).hexdigest()
    assert adapter.signers == (Signer(public_key(OWN).fingerprint),)


def new_home(tmp_path, monkeypatch, name: str) -> Path:
    """Make a home in which only the policy is, and have the environment name it."""
    home = tmp_path / name
    home.mkdir(mode=0o700)
    (home / "trust.toml").write_text("version = 1\n\n" + "\n".join(entry.to_toml() for entry in POLICY.entries))
    monkeypatch.setenv("LORA_HUB_HOME", str(home))
    return home


@pytest.fixture
def version(tmp_path, monkeypatch):
    """The directory of the good version in a registry, which the environment names; the policy trusts its signer."""
    monkeypatch.setenv("LORA_HUB_REGISTRY", str(tmp_path / "registry"))
    new_home(tmp_path, monkeypatch, "first")
    directory = tmp_path / "registry" / "org" / "task" / "1.2.0"
    write_files(directory, GOOD.files)
    return directory


@contextlib.contextmanager
def swapped(directory: Path, how: str):
    """Have another process swap the files in *directory*; in the end the good ones are there."""
    sources = directory.parents[3] / "sources"
    for name, files in VERSIONS.items():
        write_files(sources / name, files)
    turns = [name for evil in EVIL_VERSIONS for name in ("good", evil)]
    command = [sys.executable, swapper.__file__, how, directory, *(sources / name for name in turns)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield
        process.stdin.close()
    assert process.returncode == 0


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("how", HOW)
class TestAgainstAnotherProcess:
    """Another process swaps good and evil files as fast as it can."""

    def test_pull(self, version, tmp_path, monkeypatch, how, count):
        """Whatever lies in the registry, a pull brings the signed version, or is refused in our own words."""
        with swapped(version, how):
            for cycle in range(count):
                home = new_home(tmp_path, monkeypatch, f"home-{cycle}")
                with contextlib.suppress(LoraHubError):
                    check_is_good(api.pull(REFERENCE).adapter)
                shutil.rmtree(home)
        new_home(tmp_path, monkeypatch, "last")

        check_is_good(api.pull(REFERENCE).adapter)

    def test_apply_from_the_registry(self, version, tmp_path, monkeypatch, how, count):
        """Whatever lies in the registry, the model gets the signed weights, or stays as it is."""
        model = tiny_model()
        with swapped(version, how):
            for cycle in range(count):
                home = new_home(tmp_path, monkeypatch, f"home-{cycle}")
                apply_or_refuse(model)
                shutil.rmtree(home)

    def test_apply_from_the_store(self, version, how, count):
        """Whatever lies in the store, the model gets the signed weights, or stays as it is."""
        model, stored = tiny_model(), api.pull(REFERENCE).path
        with swapped(stored, how):
            for _ in range(count):
                apply_or_refuse(model)

        assert apply_or_refuse(model)

    def test_verify(self, version, how, count):
        """Whatever lies in a directory, only the signed version is verified."""
        with swapped(version, how):
            for _ in range(count):
                with contextlib.suppress(LoraHubError):
                    check_is_good(vouch.verify(version).adapter)

        check_is_good(vouch.verify(version).adapter)


def apply_or_refuse(model) -> bool:
    """Apply the version to *model*, check what is there then, and take it off again; return whether it was accepted."""
    try:
        handle = lora_hub.apply_adapter(model, REFERENCE)
    except LoraHubError:
        assert lora_hub.adapters(model) == {}
        return False
    wanted = adapter_files().tensors
    found = {name: tensor.numpy().tobytes() for name, tensor in attached(handle).items()}
    assert found == {name: tensor.content for name, tensor in wanted.items()}
    handle.remove()
    return True


class Moments:
    """Swaps the files of a directory whenever one of them is opened, as a row of yes and no says."""

    def __init__(self, directory: Path, how: str, evil: dict[str, bytes]) -> None:
        self.directory = directory
        self.how = how
        self.evil = evil
        self.is_evil = iter(())
        self.count = 0
        self._open = os.open

    def open(self, path, flags, *rest, **options) -> int:
        """Open *path* like `os.open`, with a swap just before it, or just after it and before the first read."""
        is_there = isinstance(path, str | Path) and Path(path).parent == self.directory and not flags & os.O_WRONLY
        if not is_there or Path(path).name.startswith("."):
            return self._open(path, flags, *rest, **options)
        self.count += 1
        files = self.evil if next(self.is_evil, False) else VERSIONS["good"]
        if self.how == "rename":
            self.put(files)
            return self._open(path, flags, *rest, **options)
        descriptor = self._open(path, flags, *rest, **options)
        self.put(files)
        return descriptor

    def put(self, files: dict[str, bytes]) -> None:
        """Have *files* in the directory."""
        names = sorted(VERSIONS["good"])
        swapper.put(self.how, self.directory, files, names)


@pytest.mark.parametrize("evil", EVIL_VERSIONS)
@pytest.mark.parametrize("how", HOW)
class TestAtEveryMoment:
    """Good or evil at each moment at which a file is opened: every row of them, so that no order is left out."""

    def test_pull(self, version, tmp_path, monkeypatch, how, evil):
        """No order of swaps brings anything but the signed version; without a swap it comes."""

        def pull(number: int):
            new_home(tmp_path, monkeypatch, f"home-{number}")
            return api.pull(REFERENCE).adapter

        assert accepted_of(Moments(version, how, VERSIONS[evil]), monkeypatch, pull) >= 1

    def test_verify(self, version, monkeypatch, how, evil):
        """No order of swaps verifies anything but the signed version; without a swap it does."""
        moments = Moments(version, how, VERSIONS[evil])

        assert accepted_of(moments, monkeypatch, lambda _: vouch.verify(version).adapter) >= 1

    def test_load_from_the_store(self, version, monkeypatch, how, evil):
        """No order of swaps loads anything but the signed version; without a swap it comes."""
        stored = api.pull(REFERENCE).path
        moments = Moments(stored, how, VERSIONS[evil])

        assert accepted_of(moments, monkeypatch, lambda _: api.load(REFERENCE)) >= 1


def accepted_of(moments: Moments, monkeypatch, load) -> int:
    """Call ``load(number)`` with every row of swaps, check what it returns, and return how many were accepted."""
    monkeypatch.setattr("os.open", moments.open)
    check_is_good(load(0))
    count, accepted = moments.count, 0
    assert count >= 3  # else this proves nothing: manifest, weights and signature at least
    for number, row in enumerate(itertools.product((False, True), repeat=min(count, 6)), start=1):
        moments.is_evil = iter(row)
        try:
            check_is_good(load(number))
            accepted += 1
        except LoraHubError:
            assert any(row), "refused, although nobody changed anything"
        moments.put(VERSIONS["good"])
    return accepted


# The bytes that were hashed are those that the model has


class Hashed:
    """Stands in for `hashlib.sha256`, and keeps what was hashed."""

    all: ClassVar[list["Hashed"]] = []
    real = staticmethod(hashlib.sha256)

    def __init__(self, content=b"", **options) -> None:
        self._hash = self.real(**options)
        self.content = bytearray()
        self.all.append(self)
        self.update(content)

    def update(self, content) -> None:
        """Hash *content*, and keep it."""
        self.content += content
        self._hash.update(content)

    def __getattr__(self, name):
        return getattr(self._hash, name)


class Watched:
    """What is hashed, and how often weights are opened to be read."""

    def __init__(self, monkeypatch) -> None:
        self.openings = 0
        self._open = os.open
        self.clear()
        monkeypatch.setattr("hashlib.sha256", Hashed)
        monkeypatch.setattr("os.open", self.open)

    def open(self, path, flags, *rest, **options) -> int:
        """Open *path* like `os.open`."""
        is_read = isinstance(path, str | Path) and Path(path).name == WEIGHTS_NAME and not flags & os.O_WRONLY
        self.openings += is_read
        return self._open(path, flags, *rest, **options)

    def clear(self) -> None:
        """Forget what was before."""
        Hashed.all.clear()
        self.openings = 0

    def check(self, buffer) -> None:
        """The bytes in *buffer* were read once, and are what was hashed, from the first to the last."""
        assert self.openings == 1
        assert [hashed for hashed in Hashed.all if hashed.content == buffer]


@pytest.fixture
def watched(monkeypatch) -> Watched:
    """What is hashed and opened from now on."""
    return Watched(monkeypatch)


@pytest.mark.parametrize("source", ["directory", "registry", "store", "verified"])
def test_the_model_has_what_was_hashed(version, watched, source):
    """A and B on the model are views of the buffer whose SHA-256 was compared; its file was opened once."""
    if source == "store":
        api.pull(REFERENCE)
        watched.clear()
    adapter = {
        "directory": lambda: api.load(version),
        "registry": lambda: api.load(REFERENCE),
        "store": lambda: api.load(REFERENCE),
        "verified": lambda: vouch.verify(version).adapter,
    }[source]()
    handle = lora_hub.apply_adapter(tiny_model(), adapter)
    watched.check(adapter.buffer)
    start = torch.frombuffer(adapter.buffer, dtype=torch.uint8).data_ptr()

    for tensor in attached(handle).values():
        assert start <= tensor.data_ptr() <= start + len(adapter.buffer) - tensor.nbytes


@pytest.mark.parametrize("is_stored", [False, True], ids=["first_time", "from_the_store"])
def test_what_comes_in_pieces_is_what_was_hashed(version, watched, is_stored):
    """The same holds for weights that are hashed piece by piece while they come."""
    large = signed_version(large_adapter())
    write_files(version, large.files)
    if is_stored:
        api.pull(REFERENCE)
    watched.clear()
    adapter = api.load(REFERENCE)
    watched.check(adapter.buffer)

    assert bytes(adapter.buffer) == large.weights


def test_the_tests_have_good_and_evil():
    """The evil version is one that would load: it has other numbers, and everything else is right."""
    assert EVIL.config == GOOD.config
    assert len(EVIL.weights) == len(GOOD.weights)
    assert EVIL.weights != GOOD.weights
    assert set(GOOD.files) == {CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME, SIGNATURE_NAME}
    assert len(module_paths()) * 2 == len(adapter_files().tensors)
