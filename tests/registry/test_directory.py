"""The registry in a plain directory, and how a URL names one."""

import os
from pathlib import Path

import pytest
from adapter_files import MANIFEST_NAME

from lora_hub.errors import LoraHubError, NotFoundError, RegistryError, UsageError
from lora_hub.reference import AdapterRef
from lora_hub.registry.directory import DirectoryRegistry
from lora_hub.registry.find import find
from lora_hub.registry.locate import open_registry

REFERENCE = AdapterRef.parse("org/task@1.0.0")


@pytest.fixture
def root(tmp_path) -> Path:
    return tmp_path / "registry"


def test_a_version_is_a_directory_that_peft_loads(directory_registry, push, root):
    """The files of a version lie in `org/task/1.0.0`, named as PEFT names them, and nothing else lies there."""
    push(directory_registry, "org/task@1.0.0")

    assert {path.name for path in (root / "org" / "task" / "1.0.0").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "lora-hub.json",
    }


@pytest.mark.parametrize(
    "stray",
    [
        "org/task/latest/file",
        "org/task/1.0/file",
        "org/task/v1.0.0/file",
        "org/task/.1.0.1.tmp/file",
        "org/task@1.0.0/2.0.0/file",
        "org/ta sk/1.0.0/file",
        ".git/task/1.0.0/file",
        ".staging/0123/file",
        "org/other/README.md",
        "org/README.md",
        "README.md",
    ],
)
def test_what_is_no_version_is_not_listed(directory_registry, push, root, stray):
    """Files and directories that no push made are not taken for adapters or versions."""
    push(directory_registry, "org/task@1.0.0")
    (root / stray).parent.mkdir(parents=True, exist_ok=True)
    (root / stray).touch()

    assert list(directory_registry.names()) == ["org/task"]
    assert [str(version) for version in directory_registry.listing(REFERENCE).versions] == ["1.0.0"]


def test_a_version_without_a_manifest_is_refused(directory_registry, push, pull, root):
    """A version that somebody copied without its manifest cannot be pulled; the error says how to publish."""
    push(directory_registry, "org/task@1.0.0")
    (root / "org" / "task" / "1.0.0" / MANIFEST_NAME).unlink()

    with pytest.raises(LoraHubError) as caught:
        pull(directory_registry, "org/task@1.0.0")
    assert caught.value.exit_code in {NotFoundError.exit_code, RegistryError.exit_code}


def test_a_registry_can_be_moved(directory_registry, push, pull, root, tmp_path):
    """A registry is a mirror of itself: copied elsewhere, it has the same versions with the same digests."""
    digest = push(directory_registry, "org/task@1.0.0").digest
    root.rename(tmp_path / "mirror")

    assert pull(DirectoryRegistry(tmp_path / "mirror"), "org/task").digest == digest


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_a_registry_that_is_not_there_is_not_empty(root, kind):
    """A mistyped registry is not found, and not made either: it must not look like an empty one."""
    directory_registry = DirectoryRegistry(root / "mistyped")
    if kind == "a file":
        root.mkdir(exist_ok=True)
        (root / "mistyped").write_bytes(b"")
    for ask in (
        lambda: list(directory_registry.names()),
        lambda: directory_registry.listing(AdapterRef("org", "task")),
    ):
        with pytest.raises(NotFoundError, match="no registry"):
            ask()

    assert not (root / "mistyped").is_dir()


def test_a_version_without_a_manifest_is_none(directory_registry, push, root):
    """A stray directory is no version: neither listed nor selected, and no obstacle to the others."""
    published = push(directory_registry, "org/task@1.0.0")
    (root / "org" / "task" / "2.0.0").mkdir()

    assert list(map(str, directory_registry.listing(published.reference).versions)) == ["1.0.0"]
    assert str(find(directory_registry, AdapterRef.parse("org/task")).reference) == "org/task@1.0.0"


def test_a_push_clears_what_killed_pushes_left(directory_registry, push, root):
    """What lies in staging for more than a day belongs to nobody."""
    (root / ".staging" / "old").mkdir(parents=True)
    os.utime(root / ".staging" / "old", (0, 0))
    (root / ".staging" / "young").mkdir()
    push(directory_registry, "org/task@1.0.0")

    assert {child.name for child in (root / ".staging").iterdir()} == {"young"}


def test_a_file_in_the_way_is_this_machines_fault(directory_registry, push, root):
    """Where a file stands in place of a directory, a push fails with exit code 11 and leaves the file alone."""
    (root / "org").write_bytes(b"in the way")

    with pytest.raises(LoraHubError) as caught:
        push(directory_registry, "org/task@1.0.0")
    assert caught.value.exit_code == 11
    assert (root / "org").read_bytes() == b"in the way"


@pytest.mark.parametrize("length", [120, 200, 240])
def test_a_long_version_can_be_pulled_if_it_can_be_pushed(directory_registry, push, pull, length):
    """A version that is too long for a file name is refused when it is pushed, not when it is pulled."""
    reference = f"org/task@1.0.0-{'a' * length}"
    try:
        digest = push(directory_registry, reference).digest
    except LoraHubError:
        return

    assert pull(directory_registry, reference).digest == digest


class TestOpenRegistry:
    """How a URL names a registry."""

    @pytest.mark.parametrize("form", ["{path}", "file://{path}", "file://localhost{path}"])
    def test_a_directory_has_several_spellings(self, form, directory_registry, push, root):
        """A path and a file URL name the same registry."""
        push(directory_registry, "org/task@1.0.0")
        opened = open_registry(form.format(path=root))

        assert list(opened.names()) == ["org/task"]
        assert opened.url == root.as_uri()

    def test_a_url_is_unquoted(self, tmp_path):
        """A path with blanks and signs survives the way through a URL."""
        url = open_registry(tmp_path / "a b#c%20d").url

        assert open_registry(url).url == url == (tmp_path / "a b#c%20d").as_uri()

    def test_a_relative_path_is_made_absolute(self, tmp_path, monkeypatch):
        """A relative path means the same wherever the process goes afterwards."""
        monkeypatch.chdir(tmp_path)

        assert open_registry("registry").url == (tmp_path / "registry").as_uri()

    def test_the_home_directory_is_expanded(self, tmp_path, monkeypatch):
        """A tilde is the home directory, also where no shell saw it."""
        monkeypatch.setenv("HOME", str(tmp_path))

        assert open_registry("~/registry").url == (tmp_path / "registry").as_uri()

    def test_the_environment_names_the_default(self, tmp_path, monkeypatch):
        """Without an argument, LORA_HUB_REGISTRY counts; with one, the argument."""
        monkeypatch.setenv("LORA_HUB_REGISTRY", str(tmp_path / "default"))

        assert open_registry(None).url == (tmp_path / "default").as_uri()
        assert open_registry(tmp_path / "other").url == (tmp_path / "other").as_uri()

    @pytest.mark.parametrize("value", [None, ""])
    def test_by_default_it_is_the_hub(self, monkeypatch, value):
        """When nothing names a registry, it is the Hub."""
        if value is not None:
            monkeypatch.setenv("LORA_HUB_REGISTRY", value)

        assert open_registry(None).url == "hf://"

    @pytest.mark.parametrize(
        "url",
        [
            "file://host/adapters",
            "://adapters",
            "http://[",
            "x://[::1",
            "hf:org/x",
            "file://",
            "file:adapters",
            "file:///tmp/a%00b",
            "file:///a?b",
            "file:///a#b",
            "~nobody-of-this-name/x",
        ],
    )
    def test_an_unknown_kind_is_a_usage_error(self, url):
        """A URL that this version cannot open is refused, malformed ones included."""
        with pytest.raises(UsageError):
            open_registry(url)
