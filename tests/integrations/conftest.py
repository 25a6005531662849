"""Fixtures of the integrations: a checkout with adapters, and how a process finds this lora-hub."""

import os
import subprocess
import sys

import pytest
from adapter_files import adapter_files, to_json
from places_of_files import ROOT


@pytest.fixture
def environment(tmp_path):
    """The environment of a process that has the Python of this one as `python`, and this lora-hub."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "python").symlink_to(sys.executable)
    # A link to the Python of a virtual environment is no longer in it: so its packages are named.
    packages = [str(ROOT), str(ROOT / "plugins"), *filter(None, sys.path)]
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("GITHUB_", "INPUT_", "PYTEST_"))}
    return kept | {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(packages),
        "PYTHONWARNINGS": "default",
        "HOME": str(tmp_path),
    }


@pytest.fixture
def checkout(tmp_path):
    """A git repository with a good adapter in `adapters/good` and, in `adapters/bad`, one whose B has another rank."""
    folder = tmp_path / "checkout"
    adapter_files().write(folder / "adapters" / "good")
    bad = adapter_files()
    bad.config["r"] = 3
    bad.write(folder / "adapters" / "bad")
    (folder / "other").mkdir()
    (folder / "other" / "lora-hub.json").write_bytes(to_json({"not": "of an adapter"}))
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    return folder
