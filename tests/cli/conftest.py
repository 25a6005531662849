"""The command line in a process of its own, where the process matters; and what there is to name on it."""

import os
import subprocess
import sys

import pytest
from adapter_files import adapter_files
from outcome import Outcome


@pytest.fixture
def process(tmp_path):
    """Run the command line in a process of its own."""

    def process(*words: object, **environment: str) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "lora_hub", *map(str, words)],
            env=os.environ | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return process


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """The root of an empty registry, which the environment names."""
    (tmp_path / "registry").mkdir()
    monkeypatch.setenv("LORA_HUB_REGISTRY", str(tmp_path / "registry"))
    return tmp_path / "registry"


@pytest.fixture
def adapter(tmp_path):
    """The directory of a valid adapter."""
    return adapter_files().write(tmp_path / "adapter")


@pytest.fixture
def published(cli, registry, adapter) -> str:
    """The digest of org/task@1.0.0, which is in the registry."""
    return cli("push", adapter, "org/task@1.0.0", "--json").data["digest"]
