"""The named vectors: what `verify` refuses, a check reports as an error; what it accepts has none."""

import dataclasses
from pathlib import Path

import pytest
from vectors import make_hostile
from vectors.scene import lay_out

import lora_hub
from lora_hub.adapter_directory import read_adapter
from lora_hub.errors import LoraHubError, NotFoundError

HOSTILE = sorted(path.parent for path in (make_hostile.ROOT / make_hostile.HOSTILE).glob("*/*/expected.json"))
ACCEPTED = sorted((make_hostile.ROOT / make_hostile.ACCEPTED).iterdir())


def version_of(folder: Path, root: Path) -> Path:
    """Return the directory of the newest version in the vector *folder*, laid out under *root*."""
    scene = lay_out(folder, root)
    return max(path for path in (scene.registry / "org" / "task").iterdir() if path.name[0].isdigit())


def is_refused(directory: Path) -> bool:
    try:
        read_adapter(directory)
    except LoraHubError:
        return True
    return False


@pytest.mark.parametrize("folder", HOSTILE, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_check_finds_an_error_in_what_verify_refuses(folder, tmp_path):
    """A malformed adapter gives a report with an error, never an exception, and only then."""
    directory = version_of(folder, tmp_path)
    report = lora_hub.check(directory)

    assert (report.worst is lora_hub.Severity.ERROR) is is_refused(directory)
    assert all(finding.message.isprintable() and finding.hint for finding in report.findings)


@pytest.mark.parametrize("folder", ACCEPTED, ids=lambda path: path.name)
def test_a_check_finds_no_error_in_what_is_accepted(folder):
    """Sound versions in every form have no error, and the digest that they have."""
    report = lora_hub.check(folder)

    assert report.exit_code() == 0
    assert report.digest == read_adapter(folder).digest


def test_a_directory_that_is_not_there_is_no_report(tmp_path):
    """What is not about an adapter is raised."""
    with pytest.raises(NotFoundError):
        lora_hub.check(tmp_path / "nothing")


def test_exceptions_of_a_manifest_excuse_nothing_that_verify_refuses(tmp_path):
    """Whoever wrote a broken adapter cannot except it from the check."""
    from adapter_files import MANIFEST_NAME, adapter_files, lora_key, module_paths

    from lora_hub.documents.verified_adapter import verify

    files = adapter_files()
    manifest = verify(files.files(), source="x").manifest
    files.manifest = dataclasses.replace(manifest, exceptions=("LH001", "LH015", "LH102", "LH111")).to_bytes()
    directory = files.write(tmp_path / "adapter")
    del files.tensors[lora_key(module_paths()[0], "B")]
    files.write(directory)

    assert (directory / MANIFEST_NAME).exists()
    assert {"LH015", "LH102"} <= {finding.rule.code for finding in lora_hub.check(directory).findings}
