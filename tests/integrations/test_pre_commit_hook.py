"""The hook for pre-commit: its manifest is one, and pre-commit itself runs it in a repository."""

import subprocess
import sys

import pytest
import yaml
from lora_hub_plugins.pre_commit_hook import split
from places_of_files import ROOT

MANIFEST = ROOT / ".pre-commit-hooks.yaml"


def run(words, folder, environment):
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def pre_commit(folder, environment, *words):
    return run([sys.executable, "-m", "pre_commit", *words], folder, environment)


def configure(folder, **changes):
    """Write the configuration of a user whose environment for the hook is made already."""
    (hook,) = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    # What pre-commit would do for `language: python` is to install this repository from PyPI's packages.
    config = {"repos": [{"repo": "local", "hooks": [hook | {"language": "system"} | changes]}]}
    (folder / ".pre-commit-config.yaml").write_text(yaml.safe_dump(config))


def add(folder, *paths):
    subprocess.run(["git", "add", "--", *paths], cwd=folder, check=True)


def test_pre_commit_accepts_the_manifest(tmp_path, environment):
    """The manifest is what pre-commit wants a repository of hooks to have."""
    done = pre_commit(tmp_path, environment, "validate-manifest", str(MANIFEST))

    assert done.returncode == 0, done.stdout + done.stderr


def test_a_bad_adapter_cannot_be_committed(checkout, environment):
    """Of two files of one adapter, pre-commit hands both over, and the adapter is checked once; it fails the commit."""
    configure(checkout)
    add(checkout, "adapters/bad")
    done = pre_commit(checkout, environment, "run")

    assert done.returncode == 1, done.stdout
    assert "exit code: 8" in done.stdout
    assert done.stdout.count("adapters/bad: ") == 1
    assert "adapters/good" not in done.stdout


def test_a_good_adapter_can_be_committed(checkout, environment):
    """A good adapter passes; the bad one, which is not in this commit, is not looked at."""
    configure(checkout)
    add(checkout, "adapters/good")
    done = pre_commit(checkout, environment, "run")

    assert done.returncode == 0, done.stdout
    assert "Passed" in done.stdout


def test_other_files_are_not_checked(checkout, environment):
    """A commit without files of an adapter runs nothing; a manifest of something else is none."""
    configure(checkout, always_run=False)
    (checkout / "README.md").write_text("text")
    add(checkout, "README.md")
    skipped = pre_commit(checkout, environment, "run")
    add(checkout, "other/lora-hub.json")
    passed = pre_commit(checkout, environment, "run")

    assert "Skipped" in skipped.stdout
    assert (passed.returncode, "Passed" in passed.stdout) == (0, True)


def test_arguments_reach_the_check(checkout, environment):
    """`args:` of a user's configuration are options of `lora-hub check`."""
    configure(checkout, args=["--fail-on", "note"])
    add(checkout, "adapters/good")
    done = pre_commit(checkout, environment, "run")

    assert done.returncode == 1, done.stdout


def test_names_of_directories_are_names(checkout, environment):
    """A directory that is called like an option, or holds spaces and quotes, is a directory."""
    names = ["--help", "a b", "it's", "$(touch pwned)", "org"]
    for name in names:
        (checkout / name).mkdir()
        (checkout / name / "task").mkdir()
        for file in (checkout / "adapters" / "good").iterdir():
            (checkout / name / "task" / file.name).write_bytes(file.read_bytes())
    configure(checkout, verbose=True)
    add(checkout, *names)
    done = pre_commit(checkout, environment, "run")

    assert done.returncode == 0, done.stdout
    assert all(f"{name}/task: " in done.stdout for name in names)
    assert not (checkout / "pwned").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ([], [])),
        (["--base", "org/base"], (["--base", "org/base"], [])),
        (["good/adapter_config.json", "good/adapter_model.safetensors"], ([], ["./good"])),
        (["--base", "org/base", "good/adapter_config.json"], (["--base", "org/base"], ["./good"])),
        (["adapter_config.json"], ([], ["."])),
        (["/gone/adapter_config.json"], ([], [])),
        (["other/lora-hub.json"], ([], [])),
        (["--base=adapter_config.json/x", "./good/lora-hub.json"], (["--base=adapter_config.json/x"], ["./good"])),
    ],
)
def test_words_are_options_and_directories(tmp_path, monkeypatch, words, expected):
    """The files at the end become directories, each once; what stands before them are options."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good").mkdir()
    (tmp_path / "other").mkdir()
    for path in ("adapter_config.json", "good/adapter_config.json", "other/lora-hub.json"):
        (tmp_path / path).write_text("{}")

    assert split(words) == expected
