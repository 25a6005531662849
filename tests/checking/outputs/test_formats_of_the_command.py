"""`lora-hub check` prints every format, and writes files of others beside it."""

import json

import pytest
from adapter_files import adapter_files
from test_formats import CHECKS

from lora_hub.checking.outputs import FORMATS
from lora_hub.cli import run


@pytest.fixture
def adapters(tmp_path, monkeypatch):
    """The working directory, with a good adapter and a bad one."""
    monkeypatch.chdir(tmp_path)
    adapter_files().write(tmp_path / "good")
    bad = adapter_files()
    bad.config["r"] = 3
    bad.write(tmp_path / "bad")
    return tmp_path


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_printed(adapters, capsys, name):
    """Whatever the format, it is valid, and the exit code is the same."""
    code = run(["check", "./good", "./bad", "--format", name])
    printed = capsys.readouterr()
    CHECKS[name](printed.out)

    assert code == 8
    assert printed.err == ""


def test_files_are_written_beside_what_is_printed(adapters, capsys):
    """One check prints one format and writes any others, each whole."""
    outputs = [word for name in (*FORMATS, "text") for word in ("--output", f"{name}=reports/check.{name}")]
    code = run(["check", "./bad", "--format", "github", *outputs])
    printed = capsys.readouterr().out

    assert code == 8
    assert (adapters / "reports" / "check.github").read_text() == printed
    for name in FORMATS:
        CHECKS[name]((adapters / "reports" / f"check.{name}").read_text())
    assert (adapters / "reports" / "check.text").read_text().startswith("bad: 4 errors")


@pytest.mark.parametrize("output", ["sarif", "sarif=", "=x", "xml=x", "json:x", "json=good"])
def test_an_output_that_is_none_is_refused_at_once(adapters, capsys, output):
    """A format without a file, an unknown one, or a directory is a usage error; nothing is checked or written."""
    code = run(["check", "./bad", "--output", output])
    printed = capsys.readouterr()

    assert (code, printed.out) == (2, "")
    assert "write --output sarif=check.sarif" in printed.err


def test_the_threshold_reaches_junit(adapters, capsys):
    """With `--fail-on note`, notes are failures in JUnit, as they are in the exit code."""
    code = run(["check", "./good", "--format", "junit", "--fail-on", "note"])

    assert code == 8
    assert "<failure" in capsys.readouterr().out


def test_a_name_on_disk_that_is_not_unicode_is_checked(adapters, capsys):
    """A directory whose name is not UTF-8 is checked, and its name is spelled in every format."""
    (adapters / "good").rename(adapters / "caf\udce9")
    code = run(["check", "./caf\udce9", "--format", "sarif", "--output", "json=check.json"])
    sarif = json.loads(capsys.readouterr().out)
    uris = [r["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for r in sarif["runs"][0]["results"]]

    assert code == 0
    assert all(uri.startswith("caf%E9/") for uri in uris)
    assert json.loads((adapters / "check.json").read_text())["reports"][0]["source"] == "caf\\udce9"


@pytest.mark.parametrize("code", ["LH901", "LH902", "LH903", "LH904"])
def test_the_rules_of_a_replay_are_explained(capsys, code):
    """What only a replay finds has a page as all other rules have."""
    assert run(["check", "--explain", code]) == 0
    assert capsys.readouterr().out.startswith(f"# {code} golden-")
