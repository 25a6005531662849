"""What was accepted is remembered: no version becomes another one, and nobody is led back to an old one in silence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from adapter_files import MANIFEST_NAME, WEIGHTS_NAME, adapter_files
from tampering import Place

from lora_hub import api, look, vouch
from lora_hub import trust as trusts
from lora_hub.cli import run
from lora_hub.documents.bundle import SIGNATURE_NAME
from lora_hub.documents.fields import sha256
from lora_hub.documents.signers import PublicKey
from lora_hub.errors import DocumentError, LoraHubError, PolicyError, UntrustedError
from lora_hub.registry.directory import DirectoryRegistry
from lora_hub.registry.memory import default_memory
from lora_hub.registry.registry import Registry

OLD, NEW = "org/task@1.0.0", "org/task@1.1.0"
OVER_XET = "hub_over_xet"
FLOATING = ["org/task", "org/task@1", "org/task@^1.0"]

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def publish(become, tmp_path):
    """Publish as alice, who has a key, or as somebody *unsigned*; be the reader again, and return the digest."""

    def publish(registry: Registry, reference: str, *, seed: int | None = None, unsigned: bool = False) -> str:
        home = become("somebody" if unsigned else "alice")
        if not unsigned and not (home / "keys").exists():
            vouch.generate_key("org")
        seed = int(sha256(reference.encode())[:6], 16) if seed is None else seed
        directory = adapter_files(seed=seed).write(tmp_path / f"adapter-{seed}")
        digest = api.push(directory, reference, registry=registry).digest
        become("reader")
        return digest

    return publish


@pytest.fixture
def reader(registry, publish, become) -> PublicKey:
    """Both versions are published, and one is a reader who trusts alice and has pulled nothing; the key of alice."""
    publish(registry, OLD)
    publish(registry, NEW)
    return trusting_alice(become)


def trusting_alice(become) -> PublicKey:
    """Be the reader, who trusts alice from now on, and return her key."""
    become("alice")
    key = vouch.public_key("org")
    become("reader")
    trusts.trust_key(key, scope="org/*")
    return key


def means(reference: str, registry: Registry, **options) -> str:
    """Return what a reference means."""
    return str(api.pull(reference, registry=registry, **options).reference)


def refused(reference: str, registry: Registry, *codes: int) -> LoraHubError:
    """Return the error with which a pull is refused; it has one of these exit codes, and says what to do."""
    with pytest.raises(LoraHubError) as caught:
        api.pull(reference, registry=registry)

    assert caught.value.exit_code in codes, caught.value
    assert caught.value.hint
    return caught.value


def seen() -> dict[str, str]:
    """What the reader remembers of `org/task`: versions and commits, and their digests."""
    return {at: sight.digest for (_, name, at), sight in default_memory().read().sights.items() if name == "org/task"}


# A version stays what it is


@pytest.fixture
def rewritten(registry, place, reader, publish, tmp_path) -> tuple[str, str]:
    """1.1.0 was pulled, and is another one since, which alice has signed as well; both digests."""
    first = api.pull(NEW, registry=registry).digest
    (tmp_path / "other").mkdir()
    other = DirectoryRegistry(tmp_path / "other")
    second = publish(other, NEW, seed=99)
    place.change(NEW, Place(other).files(NEW))
    api.store().remove(first)
    return first, second


@pytest.mark.parametrize("reference", [NEW, *FLOATING])
def test_a_version_that_became_another_is_refused(registry, rewritten, reference):
    """However well the new one is signed, it is not what this version was (7); both digests are named."""
    first, second = rewritten
    error = refused(reference, registry, 7)

    assert first in error.message
    assert second in error.message
    assert "never changes" in error.message
    assert list(api.store().adapters()) == []


def test_a_version_that_became_another_is_not_locked(registry, rewritten, tmp_path):
    """Nor is it locked, or pinned (7)."""
    with pytest.raises(PolicyError, match="never changes"):
        api.lock(["org/task"], lock=tmp_path / "x.lock", registry=registry)
    with pytest.raises(PolicyError, match="never changes"):
        trusts.pin([NEW], registry=registry)

    assert not (tmp_path / "x.lock").exists()


def test_a_version_that_became_another_is_told(registry, rewritten):
    """Whoever looks at it is told that it may not be used, and why."""
    first, second = rewritten
    told = look.info(NEW, registry=registry)

    assert (told.digest, told.is_trusted) == (second, False)
    assert first in told.reason


def test_the_new_one_can_be_named(registry, rewritten):
    """Whoever finds out that the new one is right names its digest, as the hint says; what was seen stays known."""
    first, second = rewritten
    assert f"org/task@{second}" in refused(NEW, registry, 7).hint

    assert api.pull(f"org/task@{second}", registry=registry).digest == second
    assert seen()["1.1.0"] == first


def test_an_older_version_is_no_way_out(registry, rewritten):
    """That the newest became another one is no reason to use the one before, unless that is named."""
    refused("org/task", registry, 7)

    assert means(OLD, registry) == OLD


# Nobody is led back


@pytest.fixture
def accepted(registry, reader) -> PublicKey:
    """The newest of both versions was accepted; the key of alice."""
    assert means("org/task", registry) == NEW
    return reader


def strip(place: Place) -> None:
    place.change(NEW, {SIGNATURE_NAME: None})


def spoil(place: Place) -> None:
    """Keep the signature in form, and let it be of something else."""
    bundle = json.loads(place.signatures(NEW)[SIGNATURE_NAME])
    other = json.loads(place.signatures(OLD)[SIGNATURE_NAME])
    bundle["dsseEnvelope"]["signatures"] = other["dsseEnvelope"]["signatures"]
    place.change(NEW, {SIGNATURE_NAME: json.dumps(bundle).encode()})


def rename(place: Place) -> None:
    """Let the signature be one of a key that nobody knows."""
    bundle = json.loads(place.signatures(NEW)[SIGNATURE_NAME])
    bundle["verificationMaterial"]["publicKey"]["hint"] = "0" * 64
    place.change(NEW, {SIGNATURE_NAME: json.dumps(bundle).encode()})


ATTACKS = {
    "hidden": lambda place: place.hide(NEW),
    "stripped of its signature": strip,
    "with the signature of another": lambda place: place.change(NEW, place.signatures(OLD)),
    "with a spoilt signature": spoil,
    "signed by nobody one knows": rename,
    "with an empty signature": lambda place: place.change(NEW, {SIGNATURE_NAME: b""}),
    "with garbage for a signature": lambda place: place.change(NEW, {SIGNATURE_NAME: b"\xff" * 100}),
    "with an endless signature": lambda place: place.change(NEW, {SIGNATURE_NAME: b" " * 65 * 1024}),
    "without its manifest": lambda place: place.change(NEW, {MANIFEST_NAME: None}),
    "with garbage for a manifest": lambda place: place.change(NEW, {MANIFEST_NAME: b"{}"}),
    "with the manifest of another": lambda place: place.change(NEW, {MANIFEST_NAME: place.files(OLD)[MANIFEST_NAME]}),
    "that is a copy of the older one": lambda place: place.copy(OLD, NEW),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_newest_that_was_accepted_cannot_be_taken_away(registry, place, accepted, attack):
    """Whatever happens to the newest version, the older one does not take its place: the error names the newest."""
    ATTACKS[attack](place)
    error = refused("org/task", registry, 6, 7, 8)

    assert "1.1.0" in error.message


@pytest.mark.parametrize("attack", ["hidden", "stripped of its signature"])
def test_the_older_one_can_be_named(registry, place, accepted, attack):
    """Whoever wants the older version names it."""
    ATTACKS[attack](place)
    error = refused("org/task", registry, 7)

    assert "exactly" in error.hint
    assert means(OLD, registry) == OLD


@pytest.mark.parametrize("attack", ["hidden", "stripped of its signature", "with a spoilt signature"])
def test_an_attack_goes_into_no_lock_file(registry, place, accepted, tmp_path, attack):
    """Nobody is led back by `lock` either."""
    ATTACKS[attack](place)
    with pytest.raises(LoraHubError) as caught:
        api.lock(["org/task"], lock=tmp_path / "x.lock", registry=registry)

    assert caught.value.exit_code in {6, 7}
    assert not (tmp_path / "x.lock").exists()


def test_what_was_never_accepted_binds_nobody(registry, place, reader):
    """Whoever has only the older version, and never met the newer one, has it as before when that goes away."""
    assert means(OLD, registry) == OLD
    place.hide(NEW)

    assert means("org/task", registry) == OLD


def test_a_version_that_comes_back_is_meant_again(registry, place, accepted):
    """What was hidden and is there again is what it was."""
    files = place.files(NEW)
    place.hide(NEW)
    refused("org/task", registry, 7)
    place.change(NEW, files)

    assert means("org/task", registry) == NEW


def test_a_newer_version_may_take_the_place(registry, place, accepted, publish):
    """A version above the newest that was accepted is no step back, whatever became of that one."""
    publish(registry, "org/task@1.2.0")
    place.hide(NEW)

    assert means("org/task", registry) == "org/task@1.2.0"


def test_without_any_tag_nobody_is_led_back(hub, hub_over_xet, publish, become):
    """Whoever takes all tags away and winds main back does not get the old version through as the head of main (7)."""
    publish(hub_over_xet, OLD)
    publish(hub_over_xet, NEW)
    trusting_alice(become)
    assert means("org/task", hub_over_xet) == NEW
    repo = hub.repo("org/task")
    old = repo.tags["v1.0.0"]
    for tag in list(repo.tags):
        repo.delete_tag(tag)
    repo.branches["main"] = old

    refused("org/task", hub_over_xet, 7)


def test_without_any_tag_a_version_stays_what_it_is(hub, hub_over_xet, publish, become, tmp_path):
    """Nor does another content get through as the head of main that alice has signed as the same version (7)."""
    publish(hub_over_xet, NEW)
    trusting_alice(become)
    assert means("org/task", hub_over_xet) == NEW
    (tmp_path / "other").mkdir()
    other = DirectoryRegistry(tmp_path / "other")
    publish(other, NEW, seed=99)
    hub.repo("org/task").commit(Place(other).files(NEW))
    hub.repo("org/task").delete_tag("v1.1.0")

    refused("org/task", hub_over_xet, 7)


# A range has a floor of its own


@pytest.fixture
def three(registry, publish, become) -> None:
    """1.0.0, 1.1.0 and 2.0.0 are published, and the reader trusts alice."""
    for reference in (OLD, NEW, "org/task@2.0.0"):
        publish(registry, reference)
    trusting_alice(become)


def test_a_newer_line_is_no_floor_for_a_range(registry, place, three):
    """Who had 2.0.0 may use the newest of `@1`, as it was always meant."""
    assert means("org/task", registry) == "org/task@2.0.0"
    assert means("org/task@1", registry) == NEW
    place.hide("org/task@2.0.0")

    assert means("org/task@1", registry) == NEW
    refused("org/task", registry, 7)


def test_a_range_is_not_led_back(registry, place, three):
    """The newest that was accepted within a range cannot be taken from it; who floats freely is above it."""
    assert means("org/task@^1.0", registry) == NEW
    place.hide(NEW)

    refused("org/task@1", registry, 7)
    refused("org/task@^1.0", registry, 7)
    assert means("org/task", registry) == "org/task@2.0.0"


def test_an_exact_version_is_a_floor_as_well(registry, place, three):
    """Who named 1.1.0 knows that it is there, and is not led below it by a range."""
    assert means(NEW, registry) == NEW
    place.hide(NEW)

    refused("org/task@1", registry, 7)


def test_a_range_below_is_free(registry, place, three):
    """A range that does not select the newest that was accepted is not bound by it."""
    assert means("org/task", registry) == "org/task@2.0.0"
    place.hide(NEW)

    assert means("org/task@1", registry) == OLD


@pytest.mark.parametrize("reference", ["org/task", "org/task@2"])
def test_a_pre_release_is_no_floor(registry, place, three, publish, reference):
    """Who tried a pre-release goes on with releases, which are what a floating reference means."""
    publish(registry, "org/task@2.1.0-rc.1")
    assert means("org/task@2.1.0-rc.1", registry) == "org/task@2.1.0-rc.1"

    assert means(reference, registry) == "org/task@2.0.0"
    place.hide("org/task@2.1.0-rc.1")
    assert means(reference, registry) == "org/task@2.0.0"


def test_a_pre_release_stays_what_it_is(registry, place, three, publish, tmp_path):
    """A pre-release is a version as any other: it never becomes another one (7)."""
    exact = "org/task@2.1.0-rc.1"
    digest = publish(registry, exact)
    assert means(exact, registry) == exact
    (tmp_path / "other").mkdir()
    other = DirectoryRegistry(tmp_path / "other")
    publish(other, exact, seed=99)
    place.change(exact, Place(other).files(exact))
    api.store().remove(digest)

    refused(exact, registry, 7)


# Withdrawn on purpose


def test_a_revoked_version_is_no_floor(registry, accepted):
    """Whoever revokes the newest version by its digest wants the one before."""
    trusts.revoke(api.pull(NEW, registry=registry).digest)

    assert means("org/task", registry) == OLD


def test_a_version_above_a_limit_is_no_floor(registry, accepted, publish, tmp_path, become):
    """Whoever limits the rank below that of the newest wants the one before."""
    become("alice")
    directory = adapter_files(r=4).write(tmp_path / "large")
    api.push(directory, "org/task@1.2.0", registry=registry)
    become("reader")
    assert means("org/task", registry) == "org/task@1.2.0"
    path = trusts.trust().path
    path.write_text(path.read_text() + "max_r = 2\n")

    assert means("org/task", registry) == NEW


@pytest.mark.parametrize("how", ["named", "locked", "verified with a key"])
def test_what_no_rule_accepted_is_no_floor(directory_registry, publish, become, tmp_path, how):
    """Who tried a stranger's version by its digest, or by a key of their own choice, floats on as the rule says."""
    publish(directory_registry, OLD)
    become("mallory")
    vouch.generate_key("org")
    digest = api.push(adapter_files(seed=66).write(tmp_path / "evil"), NEW, registry=directory_registry).digest
    api.lock([NEW], lock=tmp_path / "x.lock", registry=directory_registry)
    trusting_alice(become)
    if how == "named":
        api.pull(NEW, registry=directory_registry, digest=digest)
    elif how == "locked":
        list(api.pull_locked(lock=tmp_path / "x.lock"))
    else:
        vouch.verify(NEW, registry=directory_registry, key=tmp_path / "mallory" / "keys" / "org.pub")

    assert means("org/task", directory_registry) == OLD


# The memory itself


DAMAGES = {
    "empty": b"",
    "zeros": b"\0" * 50,
    "cut off": b'{"schema": "lora-hub/seen/v1", "seen": [{',
    "another document": b'{"schema": "lora-hub/lock/v1", "adapters": []}',
    "of a newer lora-hub": b'{"schema": "lora-hub/seen/v2", "seen": []}',
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("reference", [NEW, "org/task"])
def test_a_damaged_memory_is_refused(directory_registry, publish, become, damage, reference):
    """Nothing is trusted anew just because a file was damaged (8); it is left as it is, to be mended."""
    publish(directory_registry, OLD)
    publish(directory_registry, NEW)
    trusting_alice(become)
    assert means("org/task", directory_registry) == NEW
    path = default_memory().path
    path.write_bytes(DAMAGES[damage])
    error = refused(reference, directory_registry, 8)

    assert error.hint
    assert path.read_bytes() == DAMAGES[damage]


def test_a_deleted_memory_trusts_anew(directory_registry, publish, become):
    """As the hint says, whoever deletes it trusts what there is now."""
    publish(directory_registry, OLD)
    publish(directory_registry, NEW)
    trusting_alice(become)
    assert means("org/task", directory_registry) == NEW
    Place(directory_registry).hide(NEW)
    default_memory().path.unlink()

    assert means("org/task", directory_registry) == OLD


@pytest.mark.parametrize("how", ["removed", "deleted", "pruned"])
def test_the_memory_survives_the_store(registry, place, accepted, how):
    """What was accepted stays known when the store is emptied, in whatever way."""
    store = api.store()
    if how == "removed":
        for adapter in list(store.adapters()):
            store.remove(adapter.digest)
    elif how == "deleted":
        shutil.rmtree(store.root)
    else:
        store.prune(unused_for=-1)
    assert list(store.adapters()) == []
    place.hide(NEW)

    refused("org/task", registry, 7)


def test_cache_prune_touches_neither_keys_nor_trust_nor_memory(directory_registry, publish, become, capsys):
    """`cache prune` empties the store, and nothing else changes by a byte."""
    publish(directory_registry, NEW)
    home = become("alice")
    api.pull(NEW, registry=directory_registry)
    (adapter,) = api.store().adapters()
    os.utime(adapter.path, (0, 0))
    before = contents(home)
    code = run(["cache", "prune", "--days", "0"])
    capsys.readouterr()

    assert code == 0
    assert list(api.store().adapters()) == []
    assert contents(home) == before
    assert {"trust.toml", "seen.json", "keys/org.key", "keys/org.pub"} <= before.keys()


def contents(home: Path) -> dict[str, bytes]:
    """All files of *home* but those of the store."""
    files = [path for path in home.rglob("*") if path.is_file()]
    names = {str(path.relative_to(home)): path for path in files}
    return {name: path.read_bytes() for name, path in names.items() if not name.startswith("store/")}


def test_registries_do_not_share_memory(registry, reader, publish, tmp_path):
    """What one registry has under a version binds no other one."""
    (tmp_path / "other").mkdir()
    other = DirectoryRegistry(tmp_path / "other")
    mirrored = publish(other, "org/task@1.0.5", seed=98)
    publish(other, OLD, seed=99)
    assert means("org/task", registry) == NEW

    assert api.pull("org/task", registry=other).digest == mirrored
    assert means(OLD, registry) == OLD
    assert means(OLD, other) == OLD


def test_what_is_only_looked_at_is_not_remembered(registry, reader):
    """Only what was brought was accepted: neither `info` nor a lock nor a pin is."""
    look.info(NEW, registry=registry)
    trusts.explain(NEW, registry=registry)

    assert seen() == {}


def test_what_was_brought_is_remembered(registry, reader):
    """Each version that came is known by its digest from then on."""
    digests = {reference.rpartition("@")[2]: api.pull(reference, registry=registry).digest for reference in (OLD, NEW)}

    assert seen() == digests


# A hostile registry


@pytest.mark.parametrize("reference", ["org/task", "org/task@^999"])
def test_a_version_that_nobody_signed_does_not_block(registry, reader, publish, reference):
    """A registry that lists an unsigned v999.0.0 blocks nobody: what is trusted is used, and the other one is told."""
    publish(registry, "org/task@999.0.0", unsigned=True)
    if reference.endswith("999"):
        assert isinstance(refused(reference, registry, 5), UntrustedError)
        return
    pulled = api.pull(reference, registry=registry)

    assert (str(pulled.reference), str(pulled.skipped)) == (NEW, "org/task@999.0.0")
    assert "is unsigned" in pulled.skipped_because
    assert seen().keys() == {"1.1.0"}


def test_a_version_that_nobody_signed_may_go_again(registry, place, reader, publish):
    """It was never accepted, so that it is gone surprises nobody."""
    publish(registry, "org/task@999.0.0", unsigned=True)
    assert means("org/task", registry) == NEW
    place.hide("org/task@999.0.0")

    assert means("org/task", registry) == NEW


def test_a_version_of_a_stranger_does_not_block(registry, reader, become, tmp_path):
    """Nor does one that somebody signed whom one does not know."""
    become("mallory")
    vouch.generate_key("org")
    api.push(adapter_files(seed=66).write(tmp_path / "evil"), "org/task@999.0.0", registry=registry)
    become("reader")
    pulled = api.pull("org/task", registry=registry)

    assert str(pulled.reference) == NEW
    assert "is signed by key" in pulled.skipped_because


@pytest.fixture
def looked_at(registry, monkeypatch) -> list[str]:
    """The versions whose files the registry is asked for, from now on."""
    asked, snapshot = [], registry.snapshot

    def spy(reference, revision):
        asked.append(str(reference.version))
        return snapshot(reference, revision)

    monkeypatch.setattr(registry, "snapshot", spy)
    return asked


@pytest.mark.parametrize("registry", ["directory_registry", OVER_XET, "memory_registry"], indirect=True)
@pytest.mark.parametrize(("count", "expected"), [(15, NEW), (16, None), (20, None)])
def test_not_more_than_16_versions_are_looked_at(registry, place, reader, publish, become, looked_at, count, expected):
    """A registry of endless untrusted versions does not keep anybody busy: after sixteen it is refused (5)."""
    publish(registry, "org/task@999.0.0", unsigned=True)
    files = place.files("org/task@999.0.0")
    for number in range(1, count):
        place.change(f"org/task@{999 + number}.0.0", renamed(files, f"{999 + number}.0.0"))
    looked_at.clear()
    if expected:
        assert means("org/task", registry) == expected
    else:
        refused("org/task", registry, 5)

    assert len(set(looked_at)) == 16
    assert WEIGHTS_NAME in files


def renamed(files: dict[str, bytes], version: str) -> dict[str, bytes]:
    """The files of a version as those of another one."""
    manifest = json.loads(files[MANIFEST_NAME]) | {"version": version}
    return files | {MANIFEST_NAME: json.dumps(manifest).encode()}


def test_where_all_is_hidden_nothing_else_comes(registry, place, accepted):
    """A registry that lists nothing any more says that it is not there (3), is not believed (7), or has it still."""
    digest = seen()["1.1.0"]
    for reference in (OLD, NEW):
        place.hide(reference)
    try:
        outcome = api.pull("org/task", registry=registry).digest
    except LoraHubError as error:
        outcome = error.exit_code

    assert outcome in {3, 7, digest}


def test_a_memory_that_cannot_be_read_stops_before_anybody_is_asked(hub, hub_over_xet, publish, become):
    """Whoever has a damaged memory asks no registry."""
    publish(hub_over_xet, NEW)
    trusting_alice(become)
    api.pull(NEW, registry=hub_over_xet)
    default_memory().path.write_bytes(b"{")
    hub.clear()
    with pytest.raises(DocumentError):
        api.pull(NEW, registry=hub_over_xet)

    assert hub.requests == []
