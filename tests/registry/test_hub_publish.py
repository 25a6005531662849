"""Publishing on the Hub: one commit and one tag for each version, whoever else publishes and whatever is lost.

Some tests run in this process, with short waits; races run in processes of their own, see `publishers.py`.
"""

import itertools
import json
import threading
import time
import tomllib

import pytest
import yaml
from adapter_files import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, adapter_files
from loopback_hub import LoopbackHub
from publishers import NO_XET, environment, race, run_cli

from lora_hub import api
from lora_hub.documents.manifest import CARD_NAME, Manifest, publish
from lora_hub.documents.verified_adapter import manifest_digest, verify
from lora_hub.errors import LoraHubError, MalformedError, RegistryError, UsageError, VersionConflictError
from lora_hub.reference import AdapterRef
from lora_hub.registry import push as pushes
from lora_hub.registry.directory import DirectoryRegistry
from lora_hub.registry.hub import SIDE, HubRegistry
from lora_hub.registry.memory import Memory
from lora_hub.registry.network import Retry
from lora_hub.registry.pull import pull as pull_into
from lora_hub.registry.store import Store
from lora_hub.registry.terms import Terms
from lora_hub.registry.trust_file import TrustFile
from lora_hub.version import Version

NAME = "org/task"
FIRST_PUSH = 16  # requests at most, of a small adapter over Xet
FIRST_PUSH_OVER_LFS = 12
NEXT_PUSH = 10  # requests at most, for a version whose weights the Hub knows
ALWAYS = None  # as the `times` of a fault
MODES = [pytest.param({}, id="xet"), pytest.param(NO_XET, id="lfs")]
REGISTRIES = ["hub_over_xet", "hub_over_lfs"]
PEFT_CARD = """---
base_model: {base}
library_name: peft
tags:
- base_model:adapter:{base}
- lora
---

# Model Card for Model ID

- **Developed by:** [More Information Needed]
"""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """Whoever tries again waits for a moment only."""
    monkeypatch.setattr("lora_hub.registry.network.RETRY", Retry(tries=3, first=0.01, longest=0.02))
    monkeypatch.setattr("lora_hub.registry.hub.RACES", Retry(tries=6, first=0.01, longest=0.02))


def tags(hub: LoopbackHub, name: str = NAME) -> set[str]:
    """Return the names of the tags, after proving that a version of this name lies at each, and was committed once."""
    repo = hub.repo(name)
    for tag, commit in repo.tags.items():
        reference = Manifest.parse(repo.files(commit)[MANIFEST_NAME]).reference
        assert str(reference) == f"{name}@{tag.removeprefix('v')}"
        assert len(commits(hub, tag.removeprefix("v"), name)) == 1
    return set(repo.tags)


def commits(hub: LoopbackHub, version: str, name: str = NAME) -> list[str]:
    """Return the commits that publish *version*."""
    return [commit.id for commit in hub.repo(name).commits if commit.title == f"Publish {version}"]


def version_at(hub: LoopbackHub, revision: str) -> str | None:
    """Return the version that lies at *revision*, if one does."""
    content = hub.repo(NAME).files(revision).get(MANIFEST_NAME)
    return Manifest.parse(content).version if content else None


def history_of_main(hub: LoopbackHub) -> list[Version]:
    """Return the versions that `main` was, the oldest first."""
    repo = hub.repo(NAME)
    found = [version_at(hub, commit.id) for commit in repo.history(repo.at("main"))][::-1]
    return [Version.parse(version) for version in found if version]


def digest_at(hub: LoopbackHub, revision: str) -> str:
    """Return the digest of the version that lies at *revision*."""
    return manifest_digest(hub.repo(NAME).files(revision)[MANIFEST_NAME])


def version_files(version: str, *, seed: int = 0) -> dict[str, bytes]:
    """Return the files of a version as another publisher would make them."""
    files = adapter_files(seed=seed).files()
    draft = verify(files, source="a test").manifest.to_bytes()
    reference = AdapterRef.parse(f"{NAME}@{version}")
    return {**files, MANIFEST_NAME: publish(draft, reference=reference, created="2026-01-01T00:00:00Z")}


def crash_before_the_tag(hub: LoopbackHub, version: str, *, seed: int = 0, branch: str = "main") -> str:
    """Commit a version as a publisher does that is killed before it makes the tag; return the commit.

    Like any other, this publisher has first made the tags that were missing.
    """
    repo = hub.repo(NAME)
    for head in set(repo.branches.values()) - set(repo.tags.values()):
        left = version_at(hub, head)
        if left is not None and f"v{left}" not in repo.tags:
            repo.tag(f"v{left}", head)
    return hub.repo(NAME).commit(version_files(version, seed=seed), branch, title=f"Publish {version}").id


def on_request(hub: LoopbackHub, number: int, action) -> None:
    """Run *action* when the *number*-th request from now on has arrived, before it is worked on."""
    append, lock, count = hub.log.append, threading.Lock(), 0

    def appended(request) -> None:
        nonlocal count
        with lock:
            count += 1
            is_due = count == number
        append(request)
        if is_due:
            action()

    hub.log.append = appended


def end(fault) -> None:
    """End a fault that would never end."""
    fault.times = fault.hits


@pytest.fixture
def elsewhere(tmp_path):
    """Another machine: what it pushes comes from a store and a trust policy of its own."""

    def push(reference: str, *, seed: int = 0):
        root = tmp_path / f"elsewhere-{seed}"
        directory = adapter_files(seed=seed).write(root / "adapter")
        store, trust = Store(root / "store"), TrustFile(root / "trust.toml")
        return pushes.push(directory, AdapterRef.parse(reference), HubRegistry(), store, trust)

    return push


# What a version is


@pytest.mark.parametrize("over", REGISTRIES)
def test_a_version_is_one_commit_and_one_tag(hub, request, push, over):
    """A push makes one commit onto the head of main, and a tag at it; the commit names the digest."""
    done = push(request.getfixturevalue(over), "org/task@1.0.0")
    repo = hub.repo(NAME)
    initial, commit = repo.commits

    assert done.is_new
    assert repo.tags == {"v1.0.0": commit.id}
    assert repo.branches == {"main": commit.id}
    assert (commit.parent, commit.title, commit.description) == (initial.id, "Publish 1.0.0", done.digest)
    assert set(commit.files) == {".gitattributes", CARD_NAME, CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME}


@pytest.mark.parametrize(
    ("pushed", "main"),
    [
        (["1.0.0", "1.1.0"], "1.1.0"),
        (["1.9.0", "1.10.0"], "1.10.0"),
        (["1.1.0", "1.0.1"], "1.1.0"),
        (["1.0.0", "2.0.0-rc.1"], "1.0.0"),
        (["2.0.0-rc.1", "1.0.0"], "1.0.0"),
        (["2.0.0-rc.1", "2.0.0"], "2.0.0"),
        (["1.0.0-rc.1", "1.0.0-rc.2"], None),
        (["2.0.0", "1.9.0", "1.10.0", "2.0.1-rc.1", "2.1.0", "2.0.1"], "2.1.0"),
    ],
)
def test_main_holds_the_highest_release(hub, hub_registry, push, pull, pushed, main):
    """Older lines and pre-releases lie on a side branch: main only ever rises, and each version can be pulled."""
    digests = {
        version: push(hub_registry, f"{NAME}@{version}", seed=seed).digest for seed, version in enumerate(pushed)
    }
    releases = history_of_main(hub)

    assert version_at(hub, "main") == main
    assert releases == sorted(set(releases))
    assert tags(hub) == {f"v{version}" for version in pushed}
    assert {version: pull(hub_registry, f"{NAME}@{version}").digest for version in pushed} == digests


def test_files_of_others_stay(hub, hub_registry, push):
    """What else lies in the repository is carried over into the next version."""
    hub.create(NAME, {"samples/a.txt": b"a sample"})
    push(hub_registry, "org/task@1.0.0")

    assert hub.repo(NAME).files("v1.0.0")["samples/a.txt"] == b"a sample"


@pytest.mark.parametrize(("over", "first"), [("hub_over_xet", FIRST_PUSH), ("hub_over_lfs", FIRST_PUSH_OVER_LFS)])
def test_a_push_takes_few_requests(hub, request, push, over, first):
    """Request counts of a first version, of the next one with the same weights, and of the same one again."""
    registry, counts = request.getfixturevalue(over), []
    for version in ("1.0.0", "1.1.0", "1.1.0"):
        hub.clear()
        push(registry, f"{NAME}@{version}")
        counts.append(hub.count())

    assert counts[0] <= first
    assert counts[1] <= NEXT_PUSH
    assert counts[2] <= 4


def test_what_was_published_is_pinned(hub, hub_registry, push, pull, trust):
    """A push pins version, commit and digest, so that its publisher can pull; nobody else trusts it for that."""
    done = push(hub_registry, "org/task@1.0.0")
    pins = tomllib.loads(trust.path.read_text())["pin"]

    assert pins == [
        {
            "registry": "hf://",
            "name": NAME,
            "version": "1.0.0",
            "commit": hub.repo(NAME).tags["v1.0.0"],
            "digest": done.digest,
        }
    ]
    assert pull(hub_registry, "org/task").digest == done.digest


@pytest.mark.parametrize(("option", "is_private"), [([], False), (["--private"], True)])
def test_a_private_repository_is_made_on_demand(hub, tmp_path, option, is_private):
    """`push --private` makes a private repository, which another user does not see."""
    adapter = adapter_files().write(tmp_path / "adapter")
    done = run_cli(["push", adapter, "org/task@1.0.0", *option], environment(hub, tmp_path / "mine"))
    hub.add_token("hf_other", "somebody")
    seen = run_cli(["info", "org/task"], environment(hub, tmp_path / "other", HF_TOKEN="hf_other"))

    assert done.code == 0
    assert hub.repo(NAME).private == is_private
    assert seen.code == (3 if is_private else 0)


@pytest.mark.parametrize("is_private", [False, True])
def test_python_makes_a_private_repository_as_well(hub, tmp_path, is_private):
    """`push(private=True)` makes a private repository; its versions can be pulled with the token."""
    adapter = adapter_files().write(tmp_path / "adapter")
    digest = api.push(adapter, "org/task@1.0.0", private=is_private).digest

    assert hub.repo(NAME).private == is_private
    assert api.pull("org/task@1.0.0").digest == digest


def test_a_repository_that_exists_stays_as_private_as_it_is(hub, tmp_path):
    """A public push into a private repository leaves it private."""
    hub.create(NAME, private=True)
    api.push(adapter_files().write(tmp_path / "adapter"), "org/task@1.0.0")

    assert hub.repo(NAME).private


# The model card


def front_matter(hub: LoopbackHub, revision: str = "main") -> dict:
    """Return the metadata of the card."""
    return yaml.safe_load(hub.repo(NAME).files(revision)[CARD_NAME].decode().split("---\n")[1])


def card(hub: LoopbackHub, revision: str = "main") -> str:
    """Return the card."""
    return hub.repo(NAME).files(revision)[CARD_NAME].decode()


@pytest.fixture
def push_with_card(tmp_path, push_directory, hub_registry):
    """Publish an adapter that has a README.md beside it."""

    def push(version: str, readme: str | None, **config: object):
        directory = adapter_files(**config).write(tmp_path / "carded" / version)
        (directory / CARD_NAME).unlink(missing_ok=True)
        if readme is not None:
            (directory / CARD_NAME).write_text(readme)
        return push_directory(directory, f"{NAME}@{version}", hub_registry)

    return push


def test_the_card_says_what_the_hub_indexes(hub, push_with_card):
    """Base model, relation, library and tags are in the metadata, so that the adapter is found under its base."""
    push_with_card("1.0.0", None)

    assert front_matter(hub) == {
        "library_name": "peft",
        "tags": ["lora", "lora-hub", "peft"],
        "base_model": "org/base",
        "base_model_relation": "adapter",
    }


def test_the_card_lists_the_versions(hub, push_with_card):
    """Each push writes the table of the versions anew, the newest first, and how to load this one."""
    for version in ("1.0.0", "1.1.0", "1.1.1-rc.1", "1.2.0"):
        push_with_card(version, None)
    listed = [line.split("|")[1].strip() for line in card(hub).splitlines() if "| `v" in line]

    assert listed == ["1.2.0", "1.1.1-rc.1", "1.1.0", "1.0.0"]
    assert 'revision="v1.2.0"' in card(hub)
    assert card(hub).count("## Version") == 1


def test_the_text_of_the_author_is_kept(hub, push_with_card):
    """What the author wrote beside the adapter stands in the card, metadata included, and survives later pushes."""
    push_with_card("1.0.0", "---\nlanguage: de\ntags: [poems]\n---\n\n# Poems\n\nWrites poems.\n")
    push_with_card("1.1.0", None)

    assert "# Poems\n\nWrites poems." in card(hub)
    assert front_matter(hub)["language"] == "de"
    assert front_matter(hub)["tags"] == ["lora", "lora-hub", "peft", "poems"]


def test_a_new_text_of_the_author_replaces_the_old_one(hub, push_with_card):
    """The README.md beside a later version counts."""
    push_with_card("1.0.0", "# Old\n\nOld words.\n")
    push_with_card("1.1.0", "# New\n\nNew words.\n")

    assert "New words." in card(hub)
    assert "Old words." not in card(hub)
    assert "Old words." in card(hub, "v1.0.0")


def test_a_text_that_was_written_on_the_hub_is_kept(hub, hub_registry, push):
    """A card that lay in the repository before the first version keeps its text and metadata."""
    hub.create(NAME, {CARD_NAME: b"---\nlanguage: fr\n---\n\n# Ours\n\nA text of the organisation.\n"})
    push(hub_registry, "org/task@1.0.0")

    assert "A text of the organisation." in card(hub)
    assert front_matter(hub)["language"] == "fr"


@pytest.mark.parametrize("content", [b"\xff\xfe", b"---\n: : :\n---\n", b"---\n- a\n---\n", b"---\n1: 2\n---\n"])
def test_a_broken_card_on_the_hub_stops_nobody(hub, hub_registry, push, content):
    """A card in the repository that nobody can read is replaced by a readable one."""
    hub.create(NAME, {CARD_NAME: content})
    push(hub_registry, "org/task@1.0.0")

    assert front_matter(hub)["base_model"] == "org/base"


def test_a_broken_card_of_the_author_is_refused(hub, push_with_card):
    """A README.md whose metadata is no YAML ends the push with exit code 8, and nothing is committed."""
    with pytest.raises(MalformedError, match=CARD_NAME) as caught:
        push_with_card("1.0.0", "---\n: : :\n---\n")

    assert caught.value.exit_code == 8
    assert [repo.tags for repo in hub.repos.values()] in ([], [{}])
    assert push_with_card("1.0.0", None).is_new


PATH = "/home/alice/secret/llama"


@pytest.mark.parametrize(
    "readme",
    [
        None,
        PEFT_CARD.format(base=PATH),
        f"---\nbase_model: {PATH}\n---\n\n# Mine\n\nTrained on {PATH}.\n",
        f"---\nbase_model:\n- {PATH}\n---\n\n# Mine\n\n[{PATH}]({PATH}) was the base.\n",
        f"---\nmodel_name: {PATH}\n---\n\n# Mine\n",
        f"---\nmodel-index:\n- name: {PATH}\n---\n\n# Mine\n",
    ],
)
def test_no_local_path_gets_into_the_card(hub, push_with_card, readme):
    """Where the base lay on the machine that trained it is nobody's business, whether PEFT wrote it or a trainer."""
    push_with_card("1.0.0", readme, base_model_name_or_path=PATH)

    assert "alice" not in card(hub)
    assert "base_model" not in front_matter(hub)


def test_no_path_of_the_card_of_peft_gets_into_the_card(hub, push_with_card):
    """PEFT's own card names the path of the base, also where the config names the base by now."""
    push_with_card("1.0.0", PEFT_CARD.format(base=PATH), base_model_name_or_path="org/base")

    assert "alice" not in card(hub)
    assert front_matter(hub)["base_model"] == "org/base"


@pytest.mark.parametrize("base", [".", "..", "/", "./", "~"])
def test_a_short_path_does_not_damage_the_text(hub, push_with_card, base):
    """A base that lay in the current directory leaves the author's sentences whole."""
    push_with_card("1.0.0", "# Poems\n\nShort and/or long. See ~/notes.\n", base_model_name_or_path=base)

    assert "# Poems\n\nShort and/or long. See ~/notes." in card(hub)


def test_the_card_is_no_part_of_a_version(hub, push_with_card):
    """Another README.md is no other content: the same version again is a success and changes nothing."""
    first = push_with_card("1.0.0", "# Old\n")
    again = push_with_card("1.0.0", "# New\n")

    assert (again.is_new, again.digest) == (False, first.digest)
    assert "# Old" in card(hub)


# Answers that are lost


LOSSES = [pytest.param({"drop_answer": True}, id="dropped"), pytest.param({"cut": 1}, id="cut")]


@pytest.mark.parametrize("over", REGISTRIES)
@pytest.mark.parametrize(
    "path",
    [
        "/repos/create",
        "/branch/",
        pytest.param("/preupload/", marks=pytest.mark.full),  # where the client itself waits for seconds
        "/commit/",
        "/tag/",
        "/refs",
    ],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_a_lost_answer_is_no_failure(hub, request, push, over, path, loss):
    """What was done, although the answer was lost, is recognised: one commit and one tag for each version."""
    registry = request.getfixturevalue(over)
    faults = [hub.fault(path, **loss) for _ in range(2)]
    done = [push(registry, f"{NAME}@{version}", seed=seed) for seed, version in enumerate(["1.0.0", "0.9.0"])]

    assert faults[0].hits == 1
    assert all(pushed.is_new for pushed in done)
    assert tags(hub) == {"v1.0.0", "v0.9.0"}
    assert [digest_at(hub, f"v{version}") for version in ("1.0.0", "0.9.0")] == [pushed.digest for pushed in done]
    assert version_at(hub, "main") == "1.0.0"


def test_two_lost_answers_are_no_failure(hub, hub_registry, push):
    """Commit and tag are both recognised, although both answers were lost."""
    for path in ("/repos/create", "/commit/", "/tag/"):
        hub.fault(path, drop_answer=True)
    done = push(hub_registry, "org/task@1.0.0")

    assert done.is_new
    assert tags(hub) == {"v1.0.0"}


@pytest.mark.parametrize("path", ["/commit/", "/tag/"])
def test_a_retry_minutes_later_sends_the_same_manifest(hub, hub_registry, push, store, monkeypatch, path):
    """A push that lost its answer and its Hub is completed minutes later, with the time and digest of the first try."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    lost = hub.fault(path, drop_answer=True, times=ALWAYS)
    down = hub.fault("/refs", status=503, times=0)
    append = hub.log.append

    def append_and_fall_silent(request) -> None:
        append(request)
        if path in request.path:
            down.times = ALWAYS

    hub.log.append = append_and_fall_silent
    with pytest.raises(RegistryError) as caught:
        push(hub_registry, "org/task@1.0.0")
    kept = [manifest_digest(file.read_bytes()) for file in store.pushes.iterdir()]
    del hub.log.append
    end(lost)
    end(down)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000600")
    done = push(hub_registry, "org/task@1.0.0")

    assert caught.value.exit_code == 4
    assert [done.digest] == kept
    assert tags(hub) == {"v1.0.0"}
    assert digest_at(hub, "v1.0.0") == done.digest
    assert Manifest.parse(hub.repo(NAME).files("main")[MANIFEST_NAME]).created == "2001-09-09T01:46:40Z"
    assert list(store.pushes.iterdir()) == []


def test_other_content_gets_a_manifest_of_its_own(hub, hub_registry, push, monkeypatch):
    """A push that failed binds nobody: with other content, the next one is published with its own time."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    refused = hub.fault("/commit/", status=403)
    with pytest.raises(RegistryError):
        push(hub_registry, "org/task@1.0.0", seed=1)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000600")
    push(hub_registry, "org/task@1.0.0", seed=2)

    assert refused.hits == 1
    assert Manifest.parse(hub.repo(NAME).files("main")[MANIFEST_NAME]).created == "2001-09-09T01:56:40Z"
    assert hub.repo(NAME).files("v1.0.0")[WEIGHTS_NAME] == adapter_files(seed=2).files()[WEIGHTS_NAME]


# Others who publish as well


@pytest.mark.parametrize("number", range(1, FIRST_PUSH))
def test_another_publisher_of_this_version_wins_or_loses_at_any_moment(hub, hub_registry, push, elsewhere, number):
    """Whenever another machine publishes other content under this version, one of the two gets it; one commit."""
    outcomes = []
    on_request(hub, number, lambda: outcomes.append(outcome_of(lambda: elsewhere("org/task@1.0.0", seed=2))))
    outcomes.append(outcome_of(lambda: push(hub_registry, "org/task@1.0.0", seed=1)))
    won = [outcome for outcome in outcomes if not isinstance(outcome, LoraHubError)]
    lost = [outcome for outcome in outcomes if isinstance(outcome, LoraHubError)]

    assert [len(won), len(lost)] == [1, 1] if len(outcomes) == 2 else [1, 0]
    assert {error.exit_code for error in lost} <= {10}
    assert tags(hub) == {"v1.0.0"}
    assert len(commits(hub, "1.0.0")) == 1
    assert digest_at(hub, "v1.0.0") == won[0].digest


@pytest.mark.parametrize("number", range(1, FIRST_PUSH))
def test_another_publisher_of_the_same_content_is_no_rival(hub, hub_registry, push, elsewhere, number, monkeypatch):
    """Whenever another machine publishes the same content, both succeed and have one digest, one commit, one tag."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    digests = []

    def publish_later() -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000600")
        digests.append(elsewhere("org/task@1.0.0").digest)

    on_request(hub, number, publish_later)
    digests.append(push(hub_registry, "org/task@1.0.0").digest)

    assert set(digests) == {digest_at(hub, "v1.0.0")}
    assert tags(hub) == {"v1.0.0"}


@pytest.mark.parametrize("other", ["1.1.0", "0.9.0", "1.0.0-rc.1"])
@pytest.mark.parametrize("number", range(1, FIRST_PUSH))
def test_another_version_at_any_moment_succeeds_as_well(hub, hub_registry, push, elsewhere, number, other):
    """Whenever another machine publishes another version, both succeed, and main holds the highest release."""
    on_request(hub, number, lambda: elsewhere(f"org/task@{other}", seed=2))
    done = push(hub_registry, "org/task@1.0.0", seed=1)
    releases = history_of_main(hub)

    assert done.is_new
    assert {"v1.0.0"} <= tags(hub) <= {"v1.0.0", f"v{other}"}
    assert version_at(hub, "main") == str(max(releases))
    assert releases == sorted(set(releases))


def outcome_of(action):
    """Return what *action* returns, or the error of ours that it raises."""
    try:
        return action()
    except LoraHubError as error:
        return error


@pytest.mark.parametrize("times", [1, 3])
def test_a_moved_branch_is_no_failure(hub, hub_registry, push, times):
    """Whoever is told that a commit has happened since reads again and goes on."""
    moved = hub.fault("/commit/", status=412, times=times)
    done = push(hub_registry, "org/task@1.0.0")

    assert moved.hits == times
    assert done.is_new
    assert tags(hub) == {"v1.0.0"}


def test_a_branch_that_moves_for_ever_ends_the_push(hub, hub_registry, push):
    """After a number of tries a push gives up with exit code 4 and says to run it again, which succeeds."""
    moved = hub.fault("/commit/", status=412, times=ALWAYS)
    with pytest.raises(RegistryError) as caught:
        push(hub_registry, "org/task@1.0.0")
    end(moved)

    assert "again" in caught.value.hint
    assert caught.value.exit_code == 4
    assert push(hub_registry, "org/task@1.0.0").is_new


# What a crash leaves


@pytest.mark.parametrize("branch", ["main", SIDE])
@pytest.mark.parametrize("next_version", ["1.0.0", "1.1.0", "0.9.0", "2.0.0-rc.1"])
def test_the_next_push_tags_what_a_crash_left(hub, hub_registry, push, pull, branch, next_version):
    """A commit that a crash left without its tag is tagged by whoever publishes next, whatever they publish."""
    repo = hub.create(NAME)
    repo.branch(SIDE, repo.branches["main"])
    left = crash_before_the_tag(hub, "1.0.0", branch=branch)
    done = push(hub_registry, f"{NAME}@{next_version}", seed=0)

    assert tags(hub) == {"v1.0.0", f"v{next_version}"}
    assert repo.tags["v1.0.0"] == left
    assert done.digest == digest_at(hub, f"v{next_version}")
    assert pull(hub_registry, "org/task@1.0.0", digest=digest_at(hub, left)).commit == left


def test_what_a_crash_left_is_published(hub, hub_registry, push):
    """A version whose publisher crashed before its tag is taken all the same: other content is refused."""
    hub.create(NAME)
    left = crash_before_the_tag(hub, "1.0.0", seed=1)
    with pytest.raises(VersionConflictError):
        push(hub_registry, "org/task@1.0.0", seed=2)

    assert hub.repo(NAME).tags == {"v1.0.0": left}


@pytest.mark.parametrize("number", range(1, FIRST_PUSH))
def test_a_crash_of_another_publisher_at_any_moment_buries_nothing(hub, hub_registry, push, number):
    """Whenever another publisher commits a higher version and is killed, main stays there, and it gets its tag."""
    hub.create(NAME)
    crash_before_the_tag(hub, "1.0.0")
    on_request(hub, number, lambda: crash_before_the_tag(hub, "1.2.0", seed=2))
    push(hub_registry, "org/task@1.1.0", seed=1)
    del hub.log.append
    push(hub_registry, "org/task@1.3.0", seed=3)
    releases = history_of_main(hub)

    assert {"v1.0.0", "v1.1.0", "v1.3.0"} <= tags(hub)
    assert ("v1.2.0" in tags(hub)) == bool(commits(hub, "1.2.0"))
    assert releases == sorted(set(releases))


@pytest.mark.parametrize("number", range(1, FIRST_PUSH))
def test_a_crash_of_another_publisher_of_this_version_leaves_one_commit(hub, hub_registry, push, number):
    """Whenever another publisher commits this very version and is killed, there is no second commit of it."""
    hub.create(NAME)
    crash_before_the_tag(hub, "1.0.0")
    on_request(hub, number, lambda: crash_before_the_tag(hub, "1.1.0", seed=2) if not commits(hub, "1.1.0") else None)
    outcome_of(lambda: push(hub_registry, "org/task@1.1.0", seed=1))

    assert tags(hub) == {"v1.0.0", "v1.1.0"}
    assert len(commits(hub, "1.1.0")) == 1


@pytest.mark.parametrize("content", [b"{}", b"\xff", b"[" * 10_000, b"x" * (300 * 1024)])
def test_a_head_that_is_no_version_is_left_alone(hub, hub_registry, push, content):
    """A file of the manifest's name that is none is replaced, and never tagged."""
    hub.create(NAME, {MANIFEST_NAME: content})
    push(hub_registry, "org/task@1.0.0")

    assert tags(hub) == {"v1.0.0"}


def test_a_copy_of_another_adapter_is_not_tagged(hub, hub_registry, push):
    """A head whose manifest names another adapter, a fork say, gives no version to this one."""
    push(hub_registry, "org/other@3.0.0")
    hub.create(NAME, hub.repo("org/other").files("main"))
    push(hub_registry, "org/task@1.0.0")

    assert tags(hub) == {"v1.0.0"}


def test_a_head_with_other_weights_is_not_tagged(hub, hub_registry, push):
    """A manifest beside files that it does not describe, as somebody uploaded them by hand, makes no version."""
    push(hub_registry, "org/task@1.0.0", seed=1)
    repo = hub.repo(NAME)
    repo.delete_tag("v1.0.0")
    repo.commit({**repo.files("main"), WEIGHTS_NAME: adapter_files(seed=2).files()[WEIGHTS_NAME]})
    push(hub_registry, "org/task@1.1.0", seed=3)

    assert tags(hub) == {"v1.1.0"}


@pytest.mark.parametrize("is_private", [True, False])
def test_a_new_repository_is_as_private_as_was_asked_for(hub, is_private, tmp_path):
    """`private=True` makes a private repository; without, it is public."""
    api.push(adapter_files().write(tmp_path / "adapter"), "org/task@1.0.0", private=is_private)

    assert hub.repo(NAME).private is is_private


def test_a_public_repository_is_not_taken_for_a_private_one(hub, push, hub_registry, tmp_path):
    """Who asks for a private repository does not publish into a public one: a usage error, and nothing changes."""
    push(hub_registry, "org/task@1.0.0", seed=1)
    with pytest.raises(UsageError, match="public"):
        api.push(adapter_files(seed=2).write(tmp_path / "adapter"), "org/task@1.1.0", private=True)

    assert tags(hub) == {"v1.0.0"}


def test_a_pin_of_other_content_is_replaced_and_told(hub, trust, push, hub_registry):
    """Who publishes a version trusts it; what the policy said of it before is returned, and was another digest."""
    old = push(hub_registry, "org/task@1.0.0", seed=1)
    hub.repos.clear()
    new = push(hub_registry, "org/task@1.0.0", seed=2)

    assert [pin.digest for pin in new.replaced] == [old.digest]
    assert [pin.digest for pin in trust.read().pins] == [new.digest]


# Refusals


def push_fails(push, registry, code: int) -> LoraHubError:
    """Return the error of a push, which has this exit code and a hint."""
    with pytest.raises(LoraHubError) as caught:
        push(registry, "org/task@1.0.0")
    assert caught.value.exit_code == code
    assert caught.value.hint
    return caught.value


def recovers(hub: LoopbackHub, push, registry) -> None:
    """The next push, with nothing in its way, publishes the version: one commit, one tag, the digest that it says."""
    done = push(registry, "org/task@1.0.0")
    assert tags(hub) == {"v1.0.0"}
    assert digest_at(hub, "v1.0.0") == done.digest


STEPS = {
    "refs": "/refs",
    "create": "/repos/create",
    "paths": "/tree/",
    "preupload": "/preupload/",
    "commit": "/commit/",
    "tag": "/tag/",
}


REFUSALS = {
    **{str(status): {"status": status} for status in (400, 401, 403, 409, 412, 418)},
    "html": {"status": 200, "body": b"<html>"},
    "json": {"status": 200, "body": []},
}
NO_REFUSALS = {("tag", "html"), ("tag", "json"), ("paths", "json")}  # they say that it is done, that there is nothing


@pytest.mark.parametrize(
    ("step", "refusal"), [pair for pair in itertools.product(STEPS, REFUSALS) if pair not in NO_REFUSALS]
)
@pytest.mark.timeout(20)
def test_a_refusal_ends_the_push(hub, hub_registry, push, step, refusal):
    """A Hub that refuses for good ends the push with exit code 4; the next push completes it."""
    refused = hub.fault(STEPS[step], times=ALWAYS, **REFUSALS[refusal])
    push_fails(push, hub_registry, 4)
    end(refused)

    assert refused.hits >= 1
    recovers(hub, push, hub_registry)


@pytest.mark.parametrize("step", [step for step in STEPS if step != "refs"])  # there it says: not made yet
@pytest.mark.parametrize("status", [404, 410])
def test_what_is_not_found_ends_the_push(hub, hub_registry, push, step, status):
    """An organisation that does not exist, or a repository that vanishes, ends the push with exit code 3."""
    missing = hub.fault(STEPS[step], times=ALWAYS, status=status)
    push_fails(push, hub_registry, 3)
    end(missing)

    assert missing.hits >= 1
    recovers(hub, push, hub_registry)


PASSING = [
    pytest.param({"status": 429, "headers": {"Retry-After": "0"}}, id="429"),
    pytest.param({"status": 500}, id="500"),
    pytest.param({"status": 503}, id="503"),
    pytest.param({"status": 503, "body": b"<html>busy</html>"}, id="503_html"),
    pytest.param({"refuse": True}, id="refused"),
    pytest.param({"drop_answer": True}, id="dropped"),
]
QUICK_STEPS = [step for step in STEPS if step != "preupload"]  # where the client itself waits for seconds


@pytest.mark.parametrize("step", [*QUICK_STEPS, pytest.param("preupload", marks=pytest.mark.full)])
@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_waited_for(hub, hub_registry, push, step, fault):
    """A Hub that is busy for a moment, or a connection that breaks, stops nobody."""
    passing = hub.fault(STEPS[step], **fault)
    done = push(hub_registry, "org/task@1.0.0")

    assert passing.hits == 1
    assert done.is_new
    assert tags(hub) == {"v1.0.0"}


@pytest.mark.parametrize("fault", PASSING)
def test_a_check_of_the_card_that_passes_is_waited_for(hub, hub_registry, push, fault):
    """A Hub that is too busy to check the card is asked again."""
    passing = hub.fault("/validate-yaml", **fault)
    done = push(hub_registry, "org/task@1.0.0")

    assert (passing.hits, done.is_new) == (1, True)


@pytest.mark.parametrize("step", QUICK_STEPS)
@pytest.mark.parametrize("fault", PASSING)
def test_what_does_not_pass_ends_the_push(hub, hub_registry, push, step, fault):
    """A Hub that stays busy ends the push with exit code 4; the next push, when it is well again, completes it."""
    staying = hub.fault(STEPS[step], times=ALWAYS, **fault)
    if (step, fault.get("drop_answer")) not in {("commit", True), ("tag", True), ("create", True)}:
        push_fails(push, hub_registry, 4)
    else:
        outcome_of(lambda: push(hub_registry, "org/task@1.0.0"))  # it was done, and may have been recognised
    end(staying)

    assert staying.hits <= 12
    recovers(hub, push, hub_registry)


@pytest.mark.full
def test_an_upload_that_stays_refused_ends_the_push(hub, hub_registry, push):
    """Where the client itself tries again and again, a push ends as well, and the next one completes it."""
    staying = hub.fault(STEPS["preupload"], times=ALWAYS, status=503)
    push_fails(push, hub_registry, 4)
    end(staying)

    assert staying.hits <= 18  # three tries of ours, six of the client's in each
    recovers(hub, push, hub_registry)


@pytest.mark.parametrize("step", ["refs", "create", "commit", "tag"])
def test_the_hub_says_how_long_to_wait(hub, hub_registry, push, step):
    """A Retry-After of the Hub is obeyed, also where a commit is refused with it."""
    hub.fault(STEPS[step], status=429, headers={"Retry-After": "1"})
    begin = time.monotonic()
    push(hub_registry, "org/task@1.0.0")

    assert time.monotonic() - begin >= 1


def test_an_uncommon_conflict_of_a_tag_makes_no_second_commit(hub, hub_registry, push):
    """A tag that the Hub refuses once as a conflict, although there is none, is made in the end, at one commit."""
    hub.fault("/tag/", status=409)
    push(hub_registry, "org/task@1.0.0")

    assert tags(hub) == {"v1.0.0"}


def test_a_hub_that_is_down_ends_the_push(hub, hub_registry, push):
    """With no Hub there, a push ends with exit code 4 and names the host; once it is up, the push succeeds."""
    hub.stop()
    error = push_fails(push, hub_registry, 4)
    hub.start()

    assert hub.endpoint.removeprefix("http://") in error.message
    recovers(hub, push, hub_registry)


@pytest.mark.parametrize("number", range(1, FIRST_PUSH_OVER_LFS + 1))
def test_a_hub_that_goes_down_at_any_moment_ends_the_push(hub, request, push, number, monkeypatch):
    """A Hub that goes down in the middle of a push loses nothing: the next push publishes the version."""
    registry = request.getfixturevalue("hub_over_lfs")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    stopping = threading.Thread(target=hub.stop)

    def stop() -> None:
        stopping.start()
        stopping.join()

    on_request(hub, number, stop)
    outcome = outcome_of(lambda: push(registry, "org/task@1.0.0"))
    del hub.log.append
    if stopping.ident:
        stopping.join()
    hub.start()

    assert getattr(outcome, "exit_code", 0) in {0, 4}
    recovers(hub, push, registry)


@pytest.mark.parametrize("step", ["refs", "create", "commit", "tag"])
def test_a_hub_that_hangs_ends_the_push(hub, hub_registry, push, step, monkeypatch):
    """A Hub that never answers ends the push within the limits for a wait; the next push completes it."""
    monkeypatch.setenv("LORA_HUB_TIMEOUT", "0.3")
    hanging = hub.fault(STEPS[step], hang=True, times=ALWAYS)
    begin = time.monotonic()
    push_fails(push, hub_registry, 4)
    took = time.monotonic() - begin
    end(hanging)

    assert took < 5
    recovers(hub, push, hub_registry)


@pytest.mark.parametrize("step", ["refs", "create", "commit", "tag"])
def test_a_hub_that_hangs_once_is_asked_again(hub, hub_registry, push, step, monkeypatch):
    """A request that hangs once is repeated; there is one commit."""
    monkeypatch.setenv("LORA_HUB_TIMEOUT", "0.3")
    hub.fault(STEPS[step], hang=True)

    assert push(hub_registry, "org/task@1.0.0").is_new
    assert tags(hub) == {"v1.0.0"}


def test_the_command_line_gives_up_on_a_hung_commit(hub, tmp_path):
    """`LORA_HUB_TIMEOUT=1` ends a push whose commit hangs with exit code 4; the next one completes it."""
    adapter = adapter_files().write(tmp_path / "adapter")
    words, env = ["push", adapter, "org/task@1.0.0"], environment(hub, tmp_path / "home", LORA_HUB_TIMEOUT="1")
    hanging = hub.fault("/commit/", hang=True, times=ALWAYS)
    begin = time.monotonic()
    failed = run_cli(words, env)
    took = time.monotonic() - begin
    end(hanging)
    done = run_cli(words, env)

    assert (failed.code, took < 20) == (4, True)
    assert "Traceback" not in failed.err
    assert done.code == 0
    assert tags(hub) == {"v1.0.0"}


LFS_FAULTS = [
    pytest.param("/lfs/objects/batch", {"status": 403}, id="batch_403"),
    pytest.param("^/lfs/", {"status": 403}, id="put_403"),
    pytest.param("^/lfs/", {"status": 400}, id="put_400"),
]
XET_FAULTS = [
    pytest.param("/xet-write-token/", {"status": 403}, id="token_403"),
    pytest.param("/xet-write-token/", {"status": 404}, id="token_404"),
    pytest.param("/v1/xorbs/", {"status": 403}, id="xorb_403"),
    pytest.param("/v1/shards", {"status": 400}, id="shard_400"),
    pytest.param("/v1/xorbs/", {"status": 500}, marks=pytest.mark.full, id="xorb_500"),
    pytest.param("/v1/xorbs/", {"refuse": True}, marks=pytest.mark.full, id="xorb_refused"),
]


@pytest.mark.parametrize(("path", "fault"), LFS_FAULTS)
def test_an_upload_over_lfs_that_fails_ends_the_push(hub, hub_over_lfs, push, path, fault):
    """Weights that do not arrive are never committed; the next push uploads them."""
    failing = hub.fault(path, times=ALWAYS, **fault)
    with pytest.raises(LoraHubError) as caught:
        push(hub_over_lfs, "org/task@1.0.0")
    end(failing)

    assert failing.hits >= 1
    assert caught.value.exit_code in {3, 4}
    assert commits(hub, "1.0.0") == []
    recovers(hub, push, hub_over_lfs)


@pytest.mark.parametrize(("path", "fault"), XET_FAULTS)
def test_an_upload_over_xet_that_fails_ends_the_push(hub, hub_over_xet, push, path, fault):
    """Weights that do not arrive are never committed; the next push uploads them."""
    failing = hub.fault(path, times=ALWAYS, **fault)
    with pytest.raises(LoraHubError) as caught:
        push(hub_over_xet, "org/task@1.0.0")
    end(failing)

    assert failing.hits >= 1
    assert caught.value.exit_code in {3, 4}
    assert commits(hub, "1.0.0") == []
    recovers(hub, push, hub_over_xet)


def test_a_hub_without_xet_says_which_switch_helps(tmp_path):
    """A server that has no Xet ends a push with the hint to switch it off; with that the push succeeds."""
    adapter = adapter_files().write(tmp_path / "adapter")
    with LoopbackHub(xet=False) as hub:
        failed = run_cli(["push", adapter, "org/task@1.0.0"], environment(hub, tmp_path / "home"))
        done = run_cli(["push", adapter, "org/task@1.0.0"], environment(hub, tmp_path / "home", **NO_XET))
        published = tags(hub)

    assert failed.code == 4
    assert "HF_HUB_DISABLE_XET=1" in failed.err
    assert (done.code, published) == (0, {"v1.0.0"})


def test_a_card_that_the_hub_refuses_is_not_published(hub, hub_registry, push):
    """What the Hub says against the card is shown, and the hint is to mend it; nothing is committed."""
    body = {"errors": [{"message": '"language" must be a code'}], "warnings": []}
    refused = hub.fault("/validate-yaml", status=400, body=body, times=ALWAYS)
    with pytest.raises(LoraHubError) as caught:
        push(hub_registry, "org/task@1.0.0")
    end(refused)

    assert caught.value.exit_code in {4, 8}
    assert "must be a code" in caught.value.message
    assert "README.md" in caught.value.hint
    assert commits(hub, "1.0.0") == []
    recovers(hub, push, hub_registry)


# Who may publish


@pytest.mark.parametrize("repository", ["missing", "public"])
def test_a_token_of_another_organisation_may_not_publish(hub, hub_registry, push, repository, monkeypatch):
    """A token without rights ends the push with exit code 4 and changes nothing; the right one succeeds."""
    if repository == "public":
        hub.create(NAME)
    hub.add_token("hf_other", "somebody", orgs=["others"])
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    error = push_fails(push, hub_registry, 4)
    before = {name: len(repo.commits) for name, repo in hub.repos.items()}
    monkeypatch.setenv("HF_TOKEN", hub.token)

    assert "403" in error.message
    assert before == ({NAME: 1} if repository == "public" else {})
    recovers(hub, push, hub_registry)


def test_a_token_that_may_only_read_may_not_publish(hub, hub_registry, push, monkeypatch):
    """A token of the role `read` ends the push with exit code 4."""
    hub.add_token("hf_reader", "somebody", orgs=["org"], role="read")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")

    assert "403" in push_fails(push, hub_registry, 4).message


@pytest.mark.parametrize("repository", ["missing", "public"])
@pytest.mark.parametrize("token", ["", "hf_wrong"])
def test_without_a_login_nothing_is_published(hub, hub_registry, push, monkeypatch, repository, token):
    """No token, or one that the Hub does not know, ends the push with exit code 4; the hint says how to log in."""
    if repository == "public":
        hub.create(NAME)
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    error = push_fails(push, hub_registry, 4)

    assert "hf auth login" in error.hint
    assert all(len(repo.commits) == 1 for repo in hub.repos.values())


def test_the_token_is_said_to_nobody(hub, tmp_path):
    """Whatever happens to a push, its token stands in no output and in no file of lora-hub."""
    token, home = "hf_" + "s3cr3t" * 5, tmp_path / "home"
    hub.add_token(token, "somebody", orgs=["org"])
    adapter = adapter_files().write(tmp_path / "adapter")
    env = environment(hub, home, HF_TOKEN=token, LORA_HUB_TIMEOUT="5")
    said = []
    for fault in (
        {"path": "/repos/create", "status": 403},
        {"path": "/commit/", "status": 401},
        {"path": "/v1/xorbs/", "status": 403, "times": 4},
        {"path": "/validate-yaml", "status": 400},
        {"path": "/tag/", "status": 418},
        {"path": "never", "status": 500},
    ):
        hub.fault(**fault)
        said.append(run_cli(["push", adapter, "org/task@1.0.0", "--json"], env))
    files = [file for file in home.rglob("*") if file.is_file()]

    assert [outcome.code for outcome in said][-1] == 0
    assert not [outcome for outcome in said if token in outcome.out + outcome.err]
    assert not [file for file in files if token.encode() in file.read_bytes()]


@pytest.mark.parametrize("fault", [{"status": 403}, {"refuse": True}, {"status": 200, "body": b"no JSON"}])
@pytest.mark.parametrize("path", ["/refs", "/commit/"])
def test_a_password_in_the_endpoint_is_said_to_nobody(hub, tmp_path, path, fault):
    """User and password in HF_ENDPOINT, as a mirror may need them, stand in no output."""
    adapter = adapter_files().write(tmp_path / "adapter")
    endpoint = hub.endpoint.replace("http://", "http://alice:s3cr3t@")
    hub.fault(path, times=ALWAYS, **fault)
    said = run_cli(["push", adapter, "org/task@1.0.0"], environment(hub, tmp_path / "home", HF_ENDPOINT=endpoint))

    assert said.code == 4
    assert "s3cr3t" not in said.out + said.err


# Races of processes


QUICK = pytest.param(6, id="6")
FULL = pytest.param(20, id="20", marks=pytest.mark.full)


def whole_versions(hub: LoopbackHub, root) -> dict[str, str]:
    """Return the digests of all published versions, after proving that each can be pulled on another machine."""
    store, found = Store(root / "proof"), {}
    for tag in tags(hub):
        reference, digest = AdapterRef.parse(f"{NAME}@{tag.removeprefix('v')}"), digest_at(hub, tag)
        terms = Terms(memory=Memory(root / "proof" / "seen.json"))
        found[tag] = pull_into(reference, HubRegistry(), store, terms, digest=digest).digest
        assert found[tag] == digest
    return found


@pytest.mark.parametrize("count", [QUICK, FULL])
@pytest.mark.parametrize("mode", MODES)
def test_of_many_processes_one_publishes(hub, tmp_path, mode, count):
    """Of processes that push one version with different content, one wins; all others end with exit code 10."""
    adapters = [adapter_files(seed=seed).write(tmp_path / f"adapter-{seed}") for seed in range(count)]
    outcomes = race(
        (["push", adapter, "org/task@1.0.0"], environment(hub, tmp_path / f"home-{number}", **mode))
        for number, adapter in enumerate(adapters)
    )
    codes = [outcome.code for outcome in outcomes]

    assert sorted(codes) == [0] + [10] * (count - 1), [outcome.err for outcome in outcomes]
    assert tags(hub) == {"v1.0.0"}
    assert len(commits(hub, "1.0.0")) == 1
    winner = adapters[codes.index(0)]
    assert hub.repo(NAME).files("v1.0.0")[WEIGHTS_NAME] == (winner / WEIGHTS_NAME).read_bytes()
    assert whole_versions(hub, tmp_path)["v1.0.0"] in outcomes[codes.index(0)].out


@pytest.mark.parametrize("count", [QUICK, FULL])
@pytest.mark.parametrize("is_shared", [False, True], ids=["own_homes", "one_home"])
def test_processes_with_the_same_content_all_succeed(hub, tmp_path, is_shared, count):
    """Processes that push the same content as one version all succeed with the same digest: one commit, one tag."""
    adapter = adapter_files().write(tmp_path / "adapter")
    outcomes = race(
        (
            ["push", adapter, "org/task@1.0.0", "--json"],
            environment(
                hub, tmp_path / ("home" if is_shared else f"home-{number}"), SOURCE_DATE_EPOCH=f"{10**9 + number}"
            ),
        )
        for number in range(count)
    )

    assert [outcome.code for outcome in outcomes] == [0] * count, [outcome.err for outcome in outcomes]
    assert {json.loads(outcome.out)["digest"] for outcome in outcomes} == {whole_versions(hub, tmp_path)["v1.0.0"]}
    assert len(commits(hub, "1.0.0")) == 1


@pytest.mark.parametrize("count", [QUICK, FULL])
def test_processes_with_different_versions_all_succeed(hub, tmp_path, count):
    """Processes that push different versions at once all succeed, and main holds the highest release in the end."""
    versions = [f"1.{number}.0" for number in range(count - 2)] + ["2.0.0-rc.1", "1.0.0-rc.1"]
    outcomes = race(
        (
            ["push", adapter_files(seed=seed).write(tmp_path / f"adapter-{seed}"), f"{NAME}@{version}"],
            environment(hub, tmp_path / f"home-{seed}"),
        )
        for seed, version in enumerate(versions)
    )
    releases = history_of_main(hub)

    assert [outcome.code for outcome in outcomes] == [0] * count, [outcome.err for outcome in outcomes]
    assert set(whole_versions(hub, tmp_path)) == {f"v{version}" for version in versions}
    assert version_at(hub, "main") == f"1.{count - 3}.0"
    assert releases == sorted(set(releases))


@pytest.mark.parametrize("count", [QUICK, FULL])
def test_of_many_processes_one_publishes_in_a_directory(hub, tmp_path, count):
    """In a directory too, one of many processes with different content wins, the others end with exit code 10."""
    adapters = [adapter_files(seed=seed).write(tmp_path / f"adapter-{seed}") for seed in range(count)]
    registry = DirectoryRegistry(tmp_path / "registry")
    outcomes = race(
        (
            ["push", adapter, "org/task@1.0.0"],
            environment(hub, tmp_path / f"home-{number}", LORA_HUB_REGISTRY=str(tmp_path / "registry")),
        )
        for number, adapter in enumerate(adapters)
    )
    codes = [outcome.code for outcome in outcomes]

    assert sorted(codes) == [0] + [10] * (count - 1), [outcome.err for outcome in outcomes]
    assert list(map(str, registry.listing(AdapterRef.parse(NAME)).versions)) == ["1.0.0"]
    version = tmp_path / "registry" / NAME / "1.0.0"
    assert api.load(version).buffer == (adapters[codes.index(0)] / WEIGHTS_NAME).read_bytes()
    assert hub.count() == 0
