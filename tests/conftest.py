"""What every test gets: a home of its own, no way out to the network, and the command line."""

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import LoopbackHub
from outcome import Outcome

from lora_hub import plugin_manager

# For transformers and PEFT, which would ask the Hub; what tests the Hub itself says where that is.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The store, and everything else of lora-hub, lies in a directory of this test."""
    directory = tmp_path / "home"
    monkeypatch.setenv("LORA_HUB_HOME", str(directory))
    monkeypatch.delenv("LORA_HUB_REGISTRY", raising=False)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return directory


@pytest.fixture
def become(monkeypatch, tmp_path):
    """Be somebody else from now on, who has a home of their own, and return that."""

    def become(name: str) -> Path:
        monkeypatch.setenv("LORA_HUB_HOME", str(tmp_path / name))
        return tmp_path / name

    return become


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that connects to anything but this machine fails."""
    connect = socket.socket.connect

    def connect_to_loopback(self, address):
        if self.family != socket.AF_UNIX and address[0] not in {"127.0.0.1", "::1"}:
            raise AssertionError(f"a test opened a socket: {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_to_loopback)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution with one plugin, by hand, where only this test sees it; its module is *source*."""
    monkeypatch.syspath_prepend(tmp_path / "installed")
    modules = []

    def install(name: str, source: str, *, module: str | None = None) -> None:
        module = module or f"plugin_{name}"
        modules.append(module)
        metadata = tmp_path / "installed" / f"dist_{name}-1.5.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: dist-{name}\nVersion: 1.5\n")
        (metadata / "entry_points.txt").write_text(f"[lora_hub]\n{name} = {module}\n")
        (tmp_path / "installed" / f"{module}.py").write_text(source)
        plugin_manager.plugins.cache_clear()

    yield install
    plugin_manager.plugins.cache_clear()
    for module in modules:
        sys.modules.pop(module, None)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[LoopbackHub]:
    """A Hub on this machine, which the client in this process takes for the only one; its token is logged in."""
    with LoopbackHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
        yield hub


@pytest.fixture
def cli(capsys):
    """Run the command line in this process."""

    def cli(*words: object) -> Outcome:
        from lora_hub.cli import run

        capsys.readouterr()
        code = run([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return cli
