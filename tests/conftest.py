"""What every test gets: a home of its own, and no way out to the network."""

import os
import socket

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """The store, and everything else of lora-hub, lies in a directory of this test."""
    directory = tmp_path / "home"
    monkeypatch.setenv("LORA_HUB_HOME", str(directory))
    monkeypatch.delenv("LORA_HUB_REGISTRY", raising=False)
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    return directory


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """A test that connects to anything fails; gloo's loopback is not used here."""

    def refuse(*args):
        raise AssertionError(f"a test opened a socket: {args[1:]}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
