"""The lock file: written from what is trusted, it gives everybody the same bytes, or nothing."""

import json
from pathlib import Path

import jsonschema
import pytest
from adapter_files import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, adapter_files

from lora_hub import api, look
from lora_hub import trust as trusts
from lora_hub.documents.fields import sha256
from lora_hub.errors import LoraHubError, PolicyError, UsageError

PLAIN = "org/plain"
OTHER = f"sha256:{'0' * 64}"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """The directory of the lock file, in which all commands run."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def plain(hub):
    """A repository that PEFT pushed, which this user has pinned."""
    repo = hub.create(PLAIN, adapter_files(seed=9).files())
    trusts.pin([PLAIN])
    return repo


@pytest.fixture
def publish(hub, tmp_path):
    """Publish an adapter, which pins it, and return its digest."""

    def publish(reference: str, *, seed: int = 0) -> str:
        directory = adapter_files(seed=seed).write(tmp_path / "pushed" / sha256(reference.encode())[:8])
        return api.push(directory, reference).digest

    return publish


@pytest.fixture
def locked(cli, hub, publish, plain, place) -> Path:
    """A lock file with org/task, in version 1.0.0, and org/plain; the log is empty."""
    publish("org/task@1.0.0")
    assert cli("lock", "org/task", PLAIN).code == 0
    hub.clear()
    return place / "lora-hub.lock"


@pytest.fixture
def elsewhere(monkeypatch, tmp_path) -> Path:
    """Another machine, where nothing is pinned or stored: its home."""
    monkeypatch.setenv("LORA_HUB_HOME", str(tmp_path / "elsewhere"))
    return tmp_path / "elsewhere"


def entries(path: Path) -> dict:
    return {entry["reference"]: entry for entry in json.loads(path.read_text())["adapters"]}


def edit(path: Path, reference: str, **changes) -> None:
    """Change the entry of *reference* by hand."""
    document = json.loads(path.read_text())
    for entry in document["adapters"]:
        if entry["reference"] == reference:
            entry.update(changes)
    path.write_text(json.dumps(document))


def stored(home: Path) -> list[str]:
    """Every file below the store of *home*."""
    return sorted(str(path.relative_to(home)) for path in (home / "store").rglob("*") if path.is_file())


# Writing


def test_an_entry_says_what_a_reference_means(hub, locked):
    """Reference, registry, version, commit, digest, the files and who vouched for it: all of it stands there."""
    task = entries(locked)["org/task"]
    files = hub.repo("org/task").files(task["commit"])

    assert task["registry"] == "hf://"
    assert (task["version"], task["commit"]) == ("1.0.0", hub.repo("org/task").tags["v1.0.0"])
    assert task["digest"] == f"sha256:{sha256(files[MANIFEST_NAME])}"
    assert task["signer"] == "pinned"
    assert task["files"] == [
        {"name": name, "size": len(files[name]), "sha256": sha256(files[name])} for name in (CONFIG_NAME, WEIGHTS_NAME)
    ]


def test_what_has_no_version_is_locked_by_its_commit(locked, plain):
    """A repository that lora-hub never published has a commit and a digest."""
    entry = entries(locked)[PLAIN]

    assert (entry["version"], entry["commit"]) == (None, plain.branches["main"])
    assert entry["digest"] == look.info(PLAIN).digest


def test_the_file_has_a_schema(cli, locked):
    """What is written is valid by the schema that the command line prints; what is not is not."""
    schema = json.loads(cli("schema", "lock").out)
    document = json.loads(locked.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema)

    for key in ("reference", "registry", "version", "commit", "digest", "files", "signer"):
        broken = json.loads(locked.read_text())
        del broken["adapters"][0][key]
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(broken, schema)


@pytest.mark.parametrize("words", [["org/task", PLAIN], [PLAIN, "org/task"], []], ids=["once", "other order", "all"])
def test_the_same_references_make_the_same_bytes(cli, locked, words):
    """Neither the order of the references nor the time of the day changes a byte."""
    before = locked.read_bytes()

    assert cli("lock", *words).code == 0
    assert locked.read_bytes() == before


def test_locking_moves_no_weights(cli, hub, locked):
    """A lock costs headers and metadata only, and leaves the store alone."""
    cli("lock", "org/task", PLAIN)

    assert hub.count("hub") <= 8
    assert hub.count("cdn") <= 1


def test_a_reference_is_added_beside_the_others(cli, publish, locked):
    """Locking one more reference leaves the other entries as they were."""
    before = entries(locked)
    publish("org/more@0.1.0", seed=5)
    publish("org/task@1.1.0", seed=6)
    cli("lock", "org/more@0.1.0")
    after = entries(locked)

    assert after.pop("org/more@0.1.0")["version"] == "0.1.0"
    assert after == before


def test_without_references_all_are_renewed(cli, publish, locked):
    """`lock` without a reference looks at all again: what floats goes on to the newest pinned version."""
    publish("org/task@1.1.0", seed=6)

    assert cli("lock").code == 0
    assert entries(locked)["org/task"]["version"] == "1.1.0"


def test_what_is_not_trusted_is_not_locked(cli, hub, locked):
    """An adapter that nobody vouched for is refused (5), and the file stays as it was."""
    hub.create("org/new", adapter_files(seed=3).files())
    before = locked.read_bytes()
    done = cli("lock", "org/task", "org/new", "--json")

    assert done.code == 5
    assert "lora-hub trust pin org/new@" in done.error["hint"]
    assert locked.read_bytes() == before


def test_a_named_digest_is_locked(cli, hub, publish, elsewhere, place):
    """A reference by digest is trust enough for its own entry."""
    reference = f"org/task@{publish('org/task@1.0.0')}"
    trusts.untrust("org/task@1.0.0")

    assert cli("lock", reference).code == 0
    assert entries(place / "lora-hub.lock")[reference]["version"] == "1.0.0"


def test_a_lock_says_what_it_did(cli, locked):
    """The command prints the entries, also as JSON."""
    text, data = cli("lock").out, cli("lock", "--json").data

    assert "org/task  org/task@1.0.0  sha256:" in text
    assert data == [entries(locked)[reference] for reference in sorted(entries(locked))]


# Installing


def test_a_fresh_machine_gets_what_is_locked(cli, hub, locked, elsewhere):
    """`pull --locked` needs no trust file, and leaves none: the digests in the lock file say what is meant."""
    done = cli("pull", "--locked", "--json")
    expected = {entry["digest"] for entry in entries(locked).values()}

    assert done.code == 0
    assert {one["digest"] for one in done.data} == expected
    assert {f"sha256:{path.name}" for path in (elsewhere / "store" / "adapters").iterdir()} == expected
    assert not (elsewhere / "trust.toml").exists()


def test_only_what_is_asked_for_is_installed(cli, locked, elsewhere):
    """With references, only their entries are installed."""
    done = cli("pull", "--locked", PLAIN, "--json")

    assert [one["digest"] for one in done.data] == [entries(locked)[PLAIN]["digest"]]
    assert len(list((elsewhere / "store" / "adapters").iterdir())) == 1


def test_what_is_locked_and_in_the_store_needs_no_request(cli, hub, locked, elsewhere):
    """A second `pull --locked` asks nobody, offline as well."""
    cli("pull", "--locked")
    hub.clear()

    assert cli("pull", "--locked").code == 0
    assert cli("pull", "--locked", "--offline").code == 0
    assert hub.requests == []


def test_offline_what_is_not_in_the_store_is_refused(cli, hub, locked, elsewhere):
    """Without the network and without the files, it is exit code 4."""
    done = cli("pull", "--locked", "--offline", "--json")

    assert done.code == 4
    assert hub.requests == []


def test_a_newer_version_does_not_matter(cli, publish, locked, elsewhere):
    """A floating reference means what it meant when it was locked."""
    old = entries(locked)["org/task"]["digest"]
    publish("org/task@1.1.0", seed=6)

    assert [one["digest"] for one in cli("pull", "--locked", "org/task", "--json").data] == [old]


@pytest.mark.parametrize("reference", ["org/other", "org/task@1.0.0", "org/task@1"])
def test_what_is_not_locked_is_refused(cli, hub, locked, elsewhere, reference):
    """A reference that the file does not have, letter for letter, is exit code 7, and nothing changes."""
    done = cli("pull", "--locked", "org/task", reference, "--json")

    assert done.code == 7
    assert f"lora-hub lock {reference}" in done.error["hint"]
    assert stored(elsewhere) == []
    assert hub.requests == []


@pytest.mark.parametrize("reference", ["org/task", PLAIN])
def test_another_digest_is_refused(cli, hub, locked, elsewhere, reference):
    """If one entry does not match, nothing of the file is installed (7), and both digests are named."""
    digest = entries(locked)[reference]["digest"]
    edit(locked, reference, digest=OTHER)
    done = cli("pull", "--locked", "--json")

    assert done.code == 7
    assert OTHER in done.error["message"]
    assert digest in done.error["message"]
    assert stored(elsewhere) == []


@pytest.mark.parametrize("is_stored", [False, True], ids=["new", "stored"])
@pytest.mark.parametrize("change", [{"size": 1}, {"sha256": "0" * 64}], ids=["size", "sha256"])
def test_other_files_are_refused(cli, locked, elsewhere, change, is_stored):
    """If the file lists other files than the digest stands for, nothing changes (7)."""
    if is_stored:
        cli("pull", "--locked")
    before = stored(elsewhere)
    files = entries(locked)["org/task"]["files"]
    edit(locked, "org/task", files=[files[0], files[1] | change])

    assert cli("pull", "--locked").code == 7
    assert stored(elsewhere) == before


def test_a_moved_tag_does_not_matter(cli, hub, locked, elsewhere):
    """What is locked is fetched by its commit, wherever its tag points now."""
    repo = hub.repo("org/task")
    repo.move_tag("v1.0.0", repo.commits[0].id)
    repo.branch("old", entries(locked)["org/task"]["commit"])

    assert cli("pull", "--locked").code == 0


@pytest.mark.parametrize("tags", ["keep", "move", "drop"])
@pytest.mark.parametrize("is_changed", [False, True], ids=["same", "changed"])
def test_a_rewritten_history(cli, hub, locked, elsewhere, tags, is_changed):
    """What is locked comes as long as its bytes are there under its commit or its tag; else it is refused (7)."""
    digest = entries(locked)["org/task"]["digest"]
    repo = hub.repo("org/task")
    files = dict(repo.files("main"))
    if is_changed:
        files = adapter_files(seed=4).files()
    repo.squash(tags=tags, files=files)
    done = cli("pull", "--locked", "--json")

    if tags == "keep" or (tags == "move" and not is_changed):
        assert done.code == 0
        assert digest in {one["digest"] for one in done.data}
    else:
        assert done.code == 7
        assert digest in done.error["message"]
        assert look.info(f"org/task@{repo.branches['main']}").digest in done.error["message"]
        assert stored(elsewhere) == []


def test_a_rewritten_history_of_a_foreign_repository(cli, hub, locked, plain, elsewhere):
    """So is a commit that is gone, of a repository without versions."""
    plain.squash(files=adapter_files(seed=4).files())
    done = cli("pull", "--locked", "--json")

    assert done.code == 7
    assert entries(locked)[PLAIN]["digest"] in done.error["message"]
    assert look.info(f"{PLAIN}@{plain.branches['main']}").digest in done.error["message"]
    assert stored(elsewhere) == []


def test_a_flipped_bit_is_noticed(cli, hub, locked, elsewhere):
    """Weights that are not those of the lock file are refused (6)."""
    hub.tamper(PLAIN, "main", WEIGHTS_NAME, -1)
    done = cli("pull", "--locked", PLAIN)

    assert done.code == 6
    assert stored(elsewhere) == []


def test_a_lock_file_elsewhere(cli, publish, place, elsewhere):
    """`--lockfile` names it, for both commands."""
    publish("org/task@1.0.0")
    (place / "below").mkdir()

    assert cli("lock", "org/task", "--lockfile", "below/x.lock").code == 0
    assert cli("pull", "--locked", "--lockfile", "below/x.lock").code == 0
    assert not (place / "lora-hub.lock").exists()


@pytest.mark.parametrize("words", [["pull", "--locked"], ["lock"]], ids=" ".join)
def test_a_lock_file_that_is_missing(cli, hub, words):
    """There is none (3), and the hint writes it."""
    done = cli(*words, "--json")

    assert done.code == 3
    assert "lora-hub lock" in done.error["hint"]


def test_a_lock_that_names_a_digest_as_well(cli, locked):
    """--locked and --digest contradict each other (2)."""
    assert cli("pull", "--locked", "org/task", "--digest", OTHER).code == 2


BROKEN = {
    "no JSON": lambda _: b"{",
    "another schema": lambda text: text.replace(b"lora-hub/lock/v1", b"lora-hub/lock/v2"),
    "a reference twice": lambda text: text.replace(b'"org/plain"', b'"org/task"'),
    "a commit that is none": lambda text: text.replace(b'"commit":"', b'"commit":"../'),
    "a digest that is none": lambda text: text.replace(b"sha256:", b"sha512:"),
}


@pytest.mark.parametrize("defect", BROKEN)
@pytest.mark.parametrize("words", [["pull", "--locked"], ["lock", "org/task"]], ids=" ".join)
def test_a_malformed_lock_file_is_refused(cli, hub, locked, elsewhere, words, defect):
    """What is no lock file is exit code 8; it stays as it is, and nobody is asked."""
    compact = json.dumps(json.loads(locked.read_text()), separators=(",", ":")).encode()
    broken = BROKEN[defect](compact)
    locked.write_bytes(broken)
    done = cli(*words)

    assert broken != compact
    assert done.code == 8
    assert locked.read_bytes() == broken
    assert hub.requests == []


# In Python


def test_apply_adapter_takes_what_is_locked(hub, locked, publish, elsewhere):
    """`apply_adapter(lock=…)` needs no pin, takes the locked version, and asks nobody once it is in the store."""
    publish("org/task@1.1.0", seed=6)
    trusts.untrust("org/task@1.1.0")
    first = api.apply_adapter(tiny_model(), "org/task", lock=locked)
    hub.clear()
    second = api.apply_adapter(tiny_model(), "org/task", lock=locked)

    assert {f"sha256:{path.name}" for path in (elsewhere / "store" / "adapters").iterdir()} == {
        entries(locked)["org/task"]["digest"]
    }
    assert (first.name, second.name) == ("task", "task")
    assert hub.requests == []


def test_apply_adapter_refuses_what_is_not_locked(hub, locked, elsewhere):
    """A reference that is not locked changes no model, whatever it would mean now."""
    model = tiny_model()
    with pytest.raises(PolicyError):
        api.apply_adapter(model, "org/task@1.0.0", lock=locked)
    edit(locked, "org/task", digest=OTHER)
    with pytest.raises(PolicyError):
        api.apply_adapter(model, "org/task", lock=locked)

    assert stored(elsewhere) == []
    assert all(type(module).__module__.startswith("torch.nn") for module in model.modules())


@pytest.mark.parametrize("digest", ["own", OTHER])
def test_a_digest_beside_a_lock_counts_as_well(hub, locked, elsewhere, digest):
    """Who names a lock file and a digest means both: what does not have that digest is refused."""
    own = entries(locked)["org/task"]["digest"]
    if digest == "own":
        assert api.load("org/task", lock=locked, digest=own).digest == own
        return
    with pytest.raises(LoraHubError) as caught:
        api.load("org/task", lock=locked, digest=digest)
    assert caught.value.exit_code in {2, 7}


def tiny_model():
    """Return modules with the paths and shapes that `adapter_files` is for."""
    from torch import nn

    def attention():
        return nn.ModuleDict({"q_proj": nn.Linear(8, 8), "v_proj": nn.Linear(8, 4)})

    layers = nn.ModuleList(nn.ModuleDict({"self_attn": attention()}) for _ in range(2))
    return nn.ModuleDict({"model": nn.ModuleDict({"layers": layers})})


def test_lock_and_pull_in_processes_of_their_own(process, hub, locked, tmp_path):
    """From the shell: the same bytes again, and another machine gets what is locked."""
    before = locked.read_bytes()
    again = process("lock", "org/task", PLAIN, "--lockfile", locked)
    pulled = process("pull", "--locked", "--lockfile", locked, "--json", LORA_HUB_HOME=str(tmp_path / "third"))

    assert (again.code, pulled.code) == (0, 0), pulled.err
    assert locked.read_bytes() == before
    assert {one["digest"] for one in pulled.data} == {entry["digest"] for entry in entries(locked).values()}


def test_what_does_not_agree_is_refused_at_the_call(hub, locked, elsewhere):
    """Nobody has to ask for the first adapter to learn that another one is not what was locked."""
    hub.repo("org/task").squash(files=adapter_files(seed=4).files(), tags="drop")

    with pytest.raises(PolicyError):
        api.pull_locked(lock=locked)
    assert stored(elsewhere) == []


def test_a_lock_file_for_a_directory_is_a_wrong_call(locked, tmp_path):
    """A directory is named by its path: a lock file beside it would be ignored, and is refused."""
    with pytest.raises(UsageError, match="directory"):
        api.load(adapter_files().write(tmp_path / "adapter"), lock=locked)


def test_a_digest_beside_a_proven_adapter_counts(tmp_path):
    """`digest=` is compared with whatever is applied, also with what was loaded before."""
    from torch import nn

    adapter = api.load(adapter_files().write(tmp_path / "adapter"))

    with pytest.raises(PolicyError, match=adapter.digest):
        api.apply_adapter(nn.Linear(2, 2), adapter, digest=f"sha256:{'0' * 64}")
