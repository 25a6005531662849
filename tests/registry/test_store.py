"""The local store: what is in it was proven, and is proven again each time."""

import dataclasses
import json
import os
import shutil
import time

import pytest
from adapter_files import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, adapter_files

from lora_hub import api
from lora_hub.errors import (
    IntegrityError,
    LoraHubError,
    MalformedError,
    NotFoundError,
    PolicyError,
    RegistryError,
    UsageError,
)
from lora_hub.reference import AdapterRef
from lora_hub.registry.directory import DirectoryRegistry
from lora_hub.registry.locate import open_registry
from lora_hub.registry.store import Store, default_store

FILES = [CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME]


def version_directory(tmp_path, version="1.0.0"):
    return tmp_path / "registry" / "org" / "task" / version


def flip(path, position=100) -> None:
    """Change one bit of the file at *path*."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def broken(store: Store) -> list[str]:
    return [digest for digest, error in store.verify() if error is not None]


@pytest.fixture
def published(directory_registry, push):
    """A registry with org/task@1.0.0."""
    push(directory_registry, "org/task@1.0.0")
    return directory_registry


def test_a_pulled_version_is_a_directory_for_peft(published, pull):
    """What is pulled lies in the store as plain files, under the digest of its manifest."""
    pulled = pull(published, "org/task")

    assert {path.name for path in pulled.path.iterdir()} == set(FILES)
    assert (pulled.path / WEIGHTS_NAME).read_bytes() == adapter_files().files()[WEIGHTS_NAME]
    assert pulled.path.name == pulled.digest.removeprefix("sha256:")
    assert str(pulled.reference) == "org/task@1.0.0"


@pytest.mark.parametrize("by_digest", [False, True], ids=["version", "digest"])
def test_what_is_cached_needs_no_registry(published, pull, tmp_path, by_digest):
    """An exact version or digest that was pulled before is found with the registry gone."""
    digest = pull(published, "org/task").digest
    shutil.rmtree(tmp_path / "registry")
    reference = f"org/task@{digest}" if by_digest else "org/task@1.0.0"

    assert pull(published, reference).digest == digest


@pytest.mark.parametrize("reference", ["org/task", "org/task@1", "org/task@1.0.1"])
def test_what_is_not_exact_needs_the_registry(published, pull, tmp_path, reference):
    """The newest version can only be known from the registry; the store does not guess."""
    pull(published, "org/task")
    shutil.rmtree(tmp_path / "registry")

    with pytest.raises(NotFoundError):
        pull(published, reference)


def test_another_registry_has_versions_of_its_own(published, push, pull, tmp_path):
    """The same version in two registries may be two adapters; a cached one is never handed out for the other."""
    other = DirectoryRegistry(tmp_path / "other")
    push(other, "org/task@1.0.0", seed=7)

    assert pull(published, "org/task@1.0.0").digest != pull(other, "org/task@1.0.0").digest


def test_a_digest_from_the_store_says_nothing_of_a_registry(published, push, pull, tmp_path):
    """What the store has by digest is no statement about another registry, whose own version is handed out and kept."""
    digest = pull(published, "org/task").digest
    other = DirectoryRegistry(tmp_path / "other")
    own = push(other, "org/task@1.0.0", seed=7).digest
    pull(other, f"org/task@{digest}")

    assert pull(other, "org/task@1.0.0").digest == own
    assert pull(other, "org/task").digest == own


def test_a_rewritten_version_stays_refused_after_its_digest_was_used(published, push, pull, tmp_path):
    """Using the new content by its digest does not make it the accepted version."""
    pull(published, "org/task")
    shutil.rmtree(version_directory(tmp_path))
    new = push(published, "org/task@1.0.0", seed=5).digest
    pull(published, f"org/task@{new}")

    with pytest.raises(PolicyError):
        pull(published, "org/task")


def test_one_directory_is_one_registry_however_it_is_spelt(published, push, pull, tmp_path, memory):
    """The memory of what was published does not depend on links or dots in the path of the registry."""
    pulled = pull(published, "org/task")
    (tmp_path / "link").symlink_to(tmp_path / "registry")
    spellings = [tmp_path / "link", tmp_path / "registry" / ".." / "registry"]

    assert {memory.digest(open_registry(s).url, pulled.reference) for s in spellings} == {pulled.digest}


@pytest.mark.parametrize("reference", ["org/task@1.0.0", "org/task", "org/task@^1"])
@pytest.mark.parametrize("is_pruned", [False, True], ids=["cached", "pruned"])
def test_a_rewritten_version_is_refused(published, push, pull, store, tmp_path, reference, is_pruned):
    """A version that the registry changed after it was seen is refused with exit code 7, naming both digests.

    What is cached by its exact name goes on working, as it was.
    """
    old = pull(published, "org/task").digest
    shutil.rmtree(version_directory(tmp_path))
    new = push(published, "org/task@1.0.0", seed=5).digest
    if is_pruned:
        store.remove(old)
    elif reference == "org/task@1.0.0":
        assert pull(published, reference).digest == old
        return

    with pytest.raises(PolicyError) as caught:
        pull(published, reference)
    assert caught.value.exit_code == 7
    assert old in caught.value.message
    assert new in caught.value.message
    assert not store.has(new)


def test_a_rewritten_version_can_be_named_by_its_digest(published, push, pull, store, tmp_path):
    """The hint of the refusal works: the new content is had by its digest, which nobody can rewrite."""
    pull(published, "org/task")
    shutil.rmtree(version_directory(tmp_path))
    new = push(published, "org/task@1.0.0", seed=5).digest

    assert pull(published, f"org/task@{new}").digest == new


def test_a_copy_after_the_store_is_emptied_is_the_same(published, pull, store):
    """A version that was removed from the store is pulled again."""
    first = pull(published, "org/task")
    store.remove(first.digest)

    assert not store.has(first.digest)
    assert pull(published, "org/task@1.0.0").digest == first.digest


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_bytes_tampered_with_in_the_registry_are_refused(published, pull, store, tmp_path, name):
    """A flipped bit in the registry is found at the pull (exit code 6), and nothing gets into the store."""
    flip(version_directory(tmp_path) / name)
    with pytest.raises(IntegrityError, match=name) as caught:
        pull(published, "org/task")

    assert caught.value.exit_code == 6
    assert list(store.adapters()) == []


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_file_missing_in_the_registry_is_named(published, pull, store, tmp_path, name):
    """A version without one of its files is not pulled, and the file is named."""
    (version_directory(tmp_path) / name).unlink()
    with pytest.raises(LoraHubError, match=name):
        pull(published, "org/task")

    assert list(store.adapters()) == []


@pytest.mark.parametrize("position", [0, 20, 100])
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("reference", ["org/task@1.0.0", "org/task"])
def test_bytes_tampered_with_in_the_store_are_refused(published, pull, reference, name, position):
    """A flipped bit anywhere in the store is found at the next pull (exit code 6), in the manifest as well."""
    flip(pull(published, "org/task").path / name, position)
    with pytest.raises(IntegrityError) as caught:
        pull(published, reference)

    assert caught.value.exit_code == 6
    assert caught.value.hint


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_adapter_is_found_removed_and_pulled_again(published, pull, store, name):
    """`verify` names what is damaged; removed by its digest, it is pulled again whole."""
    pulled = pull(published, "org/task")
    flip(pulled.path / name)
    assert broken(store) == [pulled.digest]

    store.remove(pulled.digest)
    assert pull(published, "org/task@1.0.0").digest == pulled.digest
    assert broken(store) == []


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_in_the_store_is_found(published, pull, store, name):
    """`verify` names an adapter that lost one of its files, the manifest included."""
    pulled = pull(published, "org/task")
    (pulled.path / name).unlink()

    assert broken(store) == [pulled.digest]


@pytest.mark.parametrize("claimed", ["org/task@2.0.0", "org/other@1.0.0", "evil/task@1.0.0"])
def test_a_version_under_a_wrong_name_is_refused(published, pull, store, tmp_path, claimed):
    """A registry that hands out one version as another is found out by the manifest (exit code 6)."""
    reference = AdapterRef.parse(claimed)
    target = tmp_path / "registry" / reference.org / reference.task / str(reference.version)
    target.parent.mkdir(parents=True, exist_ok=True)
    version_directory(tmp_path).rename(target)

    with pytest.raises(IntegrityError, match=r"org/task@1\.0\.0") as caught:
        pull(published, claimed)
    assert caught.value.exit_code == 6
    assert list(store.adapters()) == []


def test_a_draft_in_the_registry_is_refused(published, pull, tmp_path):
    """A version whose manifest has no name is not that version."""
    adapter = adapter_files()
    directory = adapter.write(version_directory(tmp_path))
    (directory / MANIFEST_NAME).unlink()
    draft = api.load(directory).manifest.to_bytes()
    (directory / MANIFEST_NAME).write_bytes(draft)

    with pytest.raises(IntegrityError, match="draft"):
        pull(published, "org/task@1.0.0")


def test_a_digest_of_another_adapter_is_refused(published, push, pull):
    """A digest that belongs to another name is refused, also where the store has it."""
    digest = push(published, "org/other@1.0.0", seed=3).digest
    pull(published, "org/other@1.0.0")

    with pytest.raises(IntegrityError, match="org/other"):
        pull(published, f"org/task@{digest}")


def test_a_registry_that_changes_its_mind_is_found_out(published, pull, push_directory, store, tmp_path):
    """Files that do not belong to the manifest that was resolved are refused, whatever manifest comes with them."""

    class Fickle(DirectoryRegistry):
        """Hands out the manifest of one version, and the weights of another."""

        def snapshot(self, reference, revision):
            other = DirectoryRegistry(tmp_path / "other").snapshot(reference, revision)
            mine = super().snapshot(reference, revision)

            def read(name, start, stop):
                return (mine if name == MANIFEST_NAME else other).read(name, start, stop)

            return dataclasses.replace(mine, read=read)

    evil = adapter_files(seed=9).write(tmp_path / "evil")
    push_directory(evil, "org/task@1.0.0", DirectoryRegistry(tmp_path / "other"))
    with pytest.raises(IntegrityError):
        pull(Fickle(tmp_path / "registry"), "org/task")
    assert list(store.adapters()) == []


def test_find_knows_exact_names_and_digests(published, push, pull, store):
    """A stored adapter is found by version or digest, and by its name alone where that is unique."""
    push(published, "org/task@1.1.0", seed=1)
    one, two = (pull(published, f"org/task@{version}") for version in ("1.0.0", "1.1.0"))

    assert store.find(one.reference).digest == one.digest
    assert store.find(AdapterRef.parse(f"org/task@{two.digest}")).digest == two.digest
    with pytest.raises(UsageError, match="any of"):
        store.find(AdapterRef.parse("org/task"))
    with pytest.raises(NotFoundError, match="has no"):
        store.find(AdapterRef.parse("org/task@3.0.0"))


def test_a_digest_under_another_name_is_not_found(published, pull, store):
    """A reference names one thing: a digest of another adapter is not found under it."""
    digest = pull(published, "org/task").digest

    with pytest.raises(NotFoundError):
        store.find(AdapterRef.parse(f"other/name@{digest}"))


def test_prune_removes_what_was_not_used(published, push, pull, store):
    """Adapters unused for longer than asked are removed; those used since stay."""
    push(published, "org/task@1.1.0", seed=1)
    old, new = (pull(published, f"org/task@{version}") for version in ("1.0.0", "1.1.0"))
    for pulled in (old, new):
        os.utime(pulled.path, (0, time.time() - 100))
    pull(published, "org/task@1.1.0")  # used again

    assert store.prune(unused_for=50) == ([old.digest], 0)
    assert [stored.digest for stored in store.adapters()] == [new.digest]


def test_prune_removes_what_killed_processes_left(published, pull, store):
    """Leftovers that are old enough to belong to nobody are removed, younger ones are somebody's work."""
    pull(published, "org/task")
    for name, age in (("old", 7200), ("young", 0)):
        (store.root / "staging" / name).mkdir()
        os.utime(store.root / "staging" / name, (0, time.time() - age))

    assert store.prune(unused_for=1000) == ([], 1)
    assert [path.name for path in (store.root / "staging").iterdir()] == ["young"]


def test_an_empty_store_has_nothing(store):
    """Looking into a store that does not exist yet finds nothing and makes nothing."""
    assert list(store.adapters()) == list(store.verify()) == []
    assert store.prune(unused_for=0) == ([], 0)
    assert not store.root.exists()


@pytest.mark.parametrize("digest", ["sha256:", "sha256:..", "sha256:../versions", "sha256:../../../outside", "", "."])
def test_what_is_no_digest_is_not_in_the_store(published, pull, store, tmp_path, digest):
    """A digest is 64 hex digits; anything else is in no store, whatever path it would make."""
    pull(published, "org/task")
    (tmp_path / "outside").mkdir()

    assert not _has(store, digest)
    with pytest.raises(LoraHubError):
        store.read(digest)
    with pytest.raises(LoraHubError):
        store.remove(digest)
    assert (tmp_path / "outside").is_dir()
    assert len(list(store.adapters())) == 1


def _has(store: Store, digest: str) -> bool:
    try:
        return store.has(digest)
    except LoraHubError:
        return False


def test_a_stray_file_in_the_store_does_no_harm(published, pull, store):
    """A file that does not belong into the store neither hides an adapter nor breaks a listing."""
    pulled = pull(published, "org/task")
    (pulled.path.parent / "README").touch()
    (pulled.path.parent / "abc").touch()

    assert [stored.digest for stored in store.adapters()] == [pulled.digest]
    assert pulled.digest not in broken(store)


def test_what_a_registry_published_is_kept_also_after_removal(published, pull, store, memory):
    """Removing an adapter does not make anybody forget what the registry called it."""
    pulled = pull(published, "org/task")
    store.remove(pulled.digest)

    assert memory.digest(published.url, pulled.reference) == pulled.digest


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}", b"sha256:", b"x" * 200])
def test_a_damaged_memory_is_no_dead_end(published, pull, memory, content):
    """A damaged memory of what registries had is an error that names it: nothing is trusted anew by accident."""
    pulled = pull(published, "org/task")
    memory.path.write_bytes(content)

    with pytest.raises(MalformedError) as caught:
        pull(published, "org/task@1.0.0")
    assert str(memory.path) in caught.value.message
    memory.path.unlink()
    assert pull(published, "org/task@1.0.0").digest == pulled.digest


def test_the_default_store_is_in_the_home(monkeypatch, tmp_path):
    """LORA_HUB_HOME holds the store; without it, it is in the user's cache."""
    monkeypatch.setenv("LORA_HUB_HOME", str(tmp_path / "here"))
    assert default_store().root == tmp_path / "here" / "store"

    monkeypatch.delenv("LORA_HUB_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_store().root == tmp_path / "cache" / "lora-hub" / "store"


def test_an_adapter_that_is_published_twice_is_stored_once(published, push, pull, store, tmp_path):
    """A mirror of a registry brings no second copy: the store knows adapters by their content."""
    shutil.copytree(tmp_path / "registry", tmp_path / "mirror")
    one = pull(published, "org/task")
    two = pull(DirectoryRegistry(tmp_path / "mirror"), "org/task")

    assert one.path == two.path
    assert len(list(store.adapters())) == 1


@pytest.mark.parametrize(
    ("reference", "found"),
    [("org/task@1", True), ("org/task@^1.0", True), ("org/task@2", False), ("org/task@^2", False), ("org/task", True)],
)
def test_find_matches_ranges(published, pull, store, reference, found):
    """A range names what it selects and nothing else: `remove org/task@2` must not remove 1.0.0."""
    pull(published, "org/task")
    if found:
        assert str(store.find(AdapterRef.parse(reference)).manifest.reference) == "org/task@1.0.0"
    else:
        with pytest.raises(NotFoundError):
            store.find(AdapterRef.parse(reference))


def test_find_knows_no_commits(published, pull, store):
    """A commit selects nothing in a store, which keeps adapters by their digests."""
    pull(published, "org/task")

    with pytest.raises(NotFoundError):
        store.find(AdapterRef.parse(f"org/task@{'a' * 40}"))


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_in_the_store_is_damage(published, pull, store, name):
    """A file that is gone from the store is damage (6), with the way to mend it, and can be pruned."""
    pulled = pull(published, "org/task@1.0.0")
    (pulled.path / name).unlink()

    with pytest.raises(IntegrityError) as caught:
        pull(published, "org/task@1.0.0")
    assert f"cache remove {pulled.digest}" in caught.value.hint
    assert store.prune(unused_for=-1)[0] == [pulled.digest]


def test_removing_what_another_process_removed(published, pull, store):
    """Removing what is gone by now is no error."""
    pulled = pull(published, "org/task")
    store.remove(pulled.digest)
    store.remove(pulled.digest)

    assert not store.has(pulled.digest)


def test_prune_between_two_steps_of_a_pull(published, pull, store, monkeypatch):
    """If an adapter is pruned while it is being pulled, it is fetched again."""
    pull(published, "org/task")
    real = Store.read

    def read_after_prune(self, digest):
        monkeypatch.setattr(Store, "read", real)
        self.remove(digest)
        return self.read(digest)

    monkeypatch.setattr(Store, "read", read_after_prune)

    assert pull(published, "org/task").path.is_dir()


def test_prune_clears_half_written_signatures(published, pull, store):
    """What a killed process left beside the files of an adapter is cleared, too."""
    pulled = pull(published, "org/task")
    (pulled.path / ".model.sig.0123").write_bytes(b"")
    os.utime(pulled.path / ".model.sig.0123", (0, 0))

    assert store.prune(unused_for=3600) == ([], 1)
    assert store.read(pulled.digest).digest == pulled.digest


def test_a_size_that_cannot_match_takes_no_memory(published, pull, tmp_path):
    """A file of another size than the manifest says is refused before it is read."""
    with (version_directory(tmp_path) / WEIGHTS_NAME).open("r+b") as file:
        file.truncate(2**42)

    with pytest.raises(IntegrityError, match=str(2**42)):
        pull(published, "org/task")


def test_a_version_that_lost_its_files_is_not_published_already(published, push, tmp_path):
    """A push that finds its version damaged says so, instead of adopting it."""
    (version_directory(tmp_path) / WEIGHTS_NAME).unlink()

    with pytest.raises(RegistryError, match="not whole"):
        push(published, "org/task@1.0.0")


def test_unknown_keys_of_a_draft_are_published(directory_registry, push_directory, tmp_path):
    """What a newer lora-hub wrote into a draft is not lost when an older one publishes it."""
    directory = adapter_files().write(tmp_path / "adapter")
    draft = json.loads(api.load(directory).manifest.to_bytes()) | {"ancestry": {"parents": ["org/other@1.0.0"]}}
    (directory / MANIFEST_NAME).write_text(json.dumps(draft))
    push_directory(directory, "org/task@1.0.0", directory_registry)

    assert json.loads((version_directory(tmp_path) / MANIFEST_NAME).read_text())["ancestry"] == draft["ancestry"]


@pytest.mark.parametrize("damage", ["appended", "flipped"])
def test_every_damage_in_the_store_says_how_to_mend_it(published, pull, damage):
    """Whatever happened to a stored file, the hint is the command that removes it."""
    pulled = pull(published, "org/task@1.0.0")
    path = pulled.path / WEIGHTS_NAME
    path.write_bytes(path.read_bytes() + b"x") if damage == "appended" else flip(path)

    with pytest.raises(IntegrityError) as caught:
        pull(published, "org/task@1.0.0")
    assert caught.value.hint == f"run `lora-hub cache remove {pulled.digest}` and pull again"


def test_a_manifest_that_grows_too_large_is_not_published(directory_registry, push_directory, tmp_path):
    """What nobody could read again is refused before it is published for good."""
    directory = adapter_files().write(tmp_path / "adapter")
    draft = json.loads(api.load(directory).manifest.to_bytes()) | {"notes": [0] * 60_000}
    (directory / MANIFEST_NAME).write_text(json.dumps(draft, separators=(",", ":")))

    with pytest.raises(MalformedError, match="at most"):
        push_directory(directory, "org/task@1.0.0", directory_registry)
    assert list(directory_registry.names()) == []


@pytest.mark.parametrize("content", [None, b"garbage"])
def test_a_version_that_is_not_whole_is_the_registrys_fault(published, push, tmp_path, content):
    """A push that meets a broken version blames the registry (4), not the pushed directory."""
    manifest = version_directory(tmp_path) / MANIFEST_NAME
    manifest.unlink() if content is None else manifest.write_bytes(content)

    with pytest.raises(RegistryError, match="not whole"):
        push(published, "org/task@1.0.0")
