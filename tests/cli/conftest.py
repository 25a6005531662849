"""The command line under test: in this process where output is enough, in one of its own where the process matters."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest
from adapter_files import adapter_files

from lora_hub.cli import run


@dataclass(frozen=True)
class Outcome:
    """What a command did: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """The JSON on stdout."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The JSON object on stderr that describes the error."""
        return json.loads(self.err)["error"]


@pytest.fixture
def cli(capsys):
    """Run the command line in this process."""

    def cli(*words: object) -> Outcome:
        capsys.readouterr()
        code = run([str(word) for word in words])
        return Outcome(code, *capsys.readouterr())

    return cli


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
