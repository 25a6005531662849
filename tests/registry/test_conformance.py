"""What every registry promises: immutable versions, published whole or not at all."""

import json
import threading
from pathlib import Path

import pytest
from adapter_files import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, adapter_files

from lora_hub.documents.manifest import Manifest
from lora_hub.errors import (
    DocumentError,
    IntegrityError,
    LoraHubError,
    MalformedError,
    NotFoundError,
    UsageError,
    VersionConflictError,
)
from lora_hub.reference import AdapterRef
from lora_hub.registry.find import find
from lora_hub.version import Version

NAME = AdapterRef.parse("org/task")
VERSIONS = ["0.9.0", "1.0.0", "1.2.0", "1.10.0", "2.0.0-rc.1"]


@pytest.fixture
def filled(registry, push):
    """A registry with several versions of one adapter, each with content of its own."""
    for seed, version in enumerate(VERSIONS):
        push(registry, f"org/task@{version}", seed=seed)
    return registry


def manifest_of(registry, *version: int) -> bytes:
    return find(registry, NAME.at(Version(*version))).manifest


def test_an_empty_registry_has_nothing(registry):
    """Nothing is listed, and no version of anything is there."""
    assert list(registry.names("org/")) == []
    assert list(registry.listing(NAME).versions) == []
    with pytest.raises(NotFoundError):
        find(registry, NAME)


def test_what_is_published_is_listed(registry, push):
    """Names come sorted, those of other organisations do not; versions rise."""
    for reference in ("org/task@1.10.0", "org/task@1.2.0", "org/task@1.2.0-rc.1", "org/a@0.1.0", "other/b@0.1.0"):
        push(registry, reference)

    assert list(registry.names("org/")) == ["org/a", "org/task"]
    assert [str(version) for version in registry.listing(NAME).versions] == ["1.2.0-rc.1", "1.2.0", "1.10.0"]


def test_what_is_published_comes_back(registry, push):
    """The files are the ones that were pushed, with a manifest that says what they are."""
    adapter = adapter_files()
    push(registry, "org/task@1.0.0", adapter)
    files = find(registry, NAME.at(Version(1, 0, 0))).read().files
    manifest = Manifest.parse(files[MANIFEST_NAME])

    assert {name: files[name] for name in (CONFIG_NAME, WEIGHTS_NAME)} == adapter.files()
    assert str(manifest.reference) == "org/task@1.0.0"
    assert files[MANIFEST_NAME] == manifest_of(registry, 1, 0, 0)
    assert manifest.created.endswith("Z")


@pytest.mark.parametrize(
    ("reference", "version"),
    [
        ("org/task", "1.10.0"),
        ("org/task@1", "1.10.0"),
        ("org/task@^1.2", "1.10.0"),
        ("org/task@1.2", "1.2.0"),
        ("org/task@^0.9", "0.9.0"),
        ("org/task@0", "0.9.0"),
        ("org/task@1.0.0", "1.0.0"),
        ("org/task@2.0.0-rc.1", "2.0.0-rc.1"),
    ],
)
def test_a_reference_selects_the_newest_release(filled, reference, version):
    """Without a version, and in a range, the newest release is meant; a pre-release only by its exact name."""
    assert str(find(filled, AdapterRef.parse(reference)).reference) == f"org/task@{version}"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_digest_selects_its_version(filled, push, version):
    """A digest selects the version that it is the digest of, pre-releases included."""
    digest = push(filled, f"org/task@{version}", seed=VERSIONS.index(version)).digest

    assert str(find(filled, AdapterRef.parse(f"org/task@{digest}")).reference) == f"org/task@{version}"


@pytest.mark.parametrize("selector", ["@3", "@^1.11", "@1.2.1", "@2", "@2.0.0", f"@sha256:{'0' * 64}"])
def test_a_version_that_is_not_there_is_not_found(filled, selector):
    """What selects nothing is not found, and the error lists what there is."""
    with pytest.raises(NotFoundError) as caught:
        find(filled, AdapterRef.parse(f"org/task{selector}"))

    assert caught.value.exit_code == 3
    assert "1.10.0" in caught.value.hint


def test_an_adapter_that_is_not_there_is_not_found(filled):
    """An unknown name is not found, and the hint is to list."""
    with pytest.raises(NotFoundError, match="no adapter `org/other`") as caught:
        find(filled, AdapterRef.parse("org/other@1.0.0"))

    assert "lora-hub list" in caught.value.hint


def test_pre_releases_alone_are_no_release(registry, push):
    """An adapter that has pre-releases only must be named exactly."""
    push(registry, "org/task@1.0.0-rc.1")

    with pytest.raises(NotFoundError, match="selects") as caught:
        find(registry, NAME)
    assert "pre-release" in caught.value.hint


def test_an_exact_version_that_is_not_there_has_no_manifest(registry):
    """The manifest of an unpublished version is not found."""
    with pytest.raises(NotFoundError):
        manifest_of(registry, 1, 0, 0)


def test_other_content_is_refused(registry, push):
    """A second push of a version with other bytes is refused with exit code 10, and changes nothing."""
    first = push(registry, "org/task@1.0.0", seed=1)
    with pytest.raises(VersionConflictError) as caught:
        push(registry, "org/task@1.0.0", seed=2)

    assert caught.value.exit_code == 10
    assert first.digest in caught.value.message
    assert push(registry, "org/task@1.0.0", seed=1).digest == first.digest


def test_another_config_is_other_content(registry, push):
    """The same tensors with another alpha are another adapter."""
    push(registry, "org/task@1.0.0", adapter_files(lora_alpha=4))

    with pytest.raises(VersionConflictError):
        push(registry, "org/task@1.0.0", adapter_files(lora_alpha=8))


def test_the_same_content_again_is_a_success(registry, push):
    """A second push of the same content adopts what is published."""
    first, second = (push(registry, "org/task@1.0.0") for _ in range(2))

    assert (first.is_new, second.is_new) == (True, False)
    assert first.digest == second.digest


def test_the_same_content_later_is_a_success(registry, push, monkeypatch):
    """The time of the push is no content: minutes later, the first push counts, its time included."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    first = push(registry, "org/task@1.0.0")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000600")
    second = push(registry, "org/task@1.0.0")
    manifest = Manifest.parse(manifest_of(registry, 1, 0, 0))

    assert (second.is_new, second.digest) == (False, first.digest)
    assert manifest.created == "2001-09-09T01:46:40Z"


def test_what_was_published_can_be_published_elsewhere(registry, push, pull):
    """A pulled directory can be pushed under another name or version; the manifest says the new one."""
    push(registry, "org/task@1.0.0")
    path = pull(registry, "org/task@1.0.0").path
    files = {file.name: file.read_bytes() for file in path.iterdir()}
    copy = adapter_files()
    copy.manifest = files[MANIFEST_NAME]
    push(registry, "me/copy@0.1.0", copy)

    assert str(pull(registry, "me/copy").adapter.manifest.reference) == "me/copy@0.1.0"


def test_a_fixed_time_makes_the_same_bytes(registry, push, monkeypatch):
    """With SOURCE_DATE_EPOCH the manifest is a function of the content and the name."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    push(registry, "org/task@1.0.0")
    push(registry, "org/task@1.0.1")
    manifests = [manifest_of(registry, 1, 0, patch) for patch in (0, 1)]

    assert manifests[0].replace(b"1.0.0", b"1.0.1") == manifests[1]


@pytest.mark.parametrize("value", ["", "-1", "soon", "1e9", "1000000000.5", "²", "9" * 12, "9" * 30])
def test_a_time_that_is_none_is_refused(registry, push, monkeypatch, value):
    """SOURCE_DATE_EPOCH must be seconds since 1970 that a calendar has; otherwise nothing is published."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", value)
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        push(registry, "org/task@1.0.0")

    assert list(registry.listing(NAME).versions) == []


@pytest.mark.parametrize("reference", ["org/task", "org/task@1", "org/task@^1.0", f"org/task@sha256:{'0' * 64}"])
def test_only_an_exact_version_is_published(registry, push, reference):
    """A push needs an exact version, and the hint shows one."""
    with pytest.raises(UsageError, match="exact version") as caught:
        push(registry, reference)

    assert "org/task@1.0.0" in caught.value.hint


def test_a_malformed_adapter_is_not_published(registry, push):
    """What could never be applied is refused before it is published."""
    adapter = adapter_files()
    adapter.tensors.popitem()
    with pytest.raises(MalformedError):
        push(registry, "org/task@1.0.0", adapter)

    assert list(registry.names("org/")) == []


def test_files_that_do_not_match_their_manifest_are_not_published(registry, push):
    """A directory whose manifest describes other bytes is refused."""
    push(registry, "org/task@1.0.0", seed=1)
    adapter = adapter_files(seed=2)
    adapter.manifest = manifest_of(registry, 1, 0, 0)

    with pytest.raises(IntegrityError):
        push(registry, "org/task@2.0.0", adapter)


def test_a_manifest_that_no_one_can_write_is_refused(registry, push):
    """Text in a draft manifest that is no Unicode makes the draft malformed; it is not a bug of ours."""
    adapter = adapter_files()
    push(registry, "org/task@1.0.0", adapter)
    document = json.loads(manifest_of(registry, 1, 0, 0)) | {"license": "\ud800"}
    adapter.manifest = json.dumps(document).encode()

    with pytest.raises(DocumentError):
        push(registry, "org/task@2.0.0", adapter)


def test_nothing_is_written_into_the_pushed_directory(registry, push_directory, tmp_path):
    """The directory of the user is the same before and after every push, down to names, bytes and times."""
    directory = adapter_files().write(tmp_path / "adapter")
    before = snapshot(directory)
    for reference in ("org/task@1.0.0", "org/task@1.0.0", "org/task@1.0.1"):
        push_directory(directory, reference, registry)

    assert snapshot(directory) == before


def snapshot(directory: Path):
    return {
        str(path.relative_to(directory)): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in [directory, *directory.iterdir()]
    }


@pytest.mark.parametrize("attempt", range(3))
def test_of_two_publishers_one_wins(registry, push, attempt):
    """Of several publishers of one version with different content, exactly one wins and the others get exit code 10."""
    outcomes = race(8, lambda number: push(registry, "org/task@1.0.0", seed=number))
    winners = [outcome for outcome in outcomes if not isinstance(outcome, LoraHubError)]

    assert len(winners) == 1
    assert winners[0].is_new
    assert {outcome.exit_code for outcome in outcomes if outcome not in winners} == {10}
    assert push(registry, "org/task@1.0.0", seed=outcomes.index(winners[0])).digest == winners[0].digest


def test_publishers_of_the_same_content_all_succeed(registry, push_directory, tmp_path):
    """Several publishers of one version with the same content succeed, and all have the same version then."""
    directory = adapter_files().write(tmp_path / "adapter")
    outcomes = race(8, lambda _: push_directory(directory, "org/task@1.0.0", registry))

    assert any(outcome.is_new for outcome in outcomes)
    assert len({outcome.digest for outcome in outcomes}) == 1


def race(count: int, action):
    """Return what each of *count* threads got that ran *action* at the same moment: a result, or an error of ours."""
    barrier, outcomes = threading.Barrier(count), [None] * count

    def run(number: int) -> None:
        barrier.wait()
        try:
            outcomes[number] = action(number)
        except LoraHubError as error:
            outcomes[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes
