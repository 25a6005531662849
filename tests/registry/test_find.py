"""What a reference means: of several versions, the newest that is trusted; of one that is gone, no other."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from adapter_files import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, adapter_files

from lora_hub.documents.fields import sha256
from lora_hub.documents.manifest import publish
from lora_hub.documents.trust_entries import Pin
from lora_hub.documents.trust_policy import NOBODY, TrustPolicy
from lora_hub.documents.verified_adapter import manifest_digest, verify
from lora_hub.errors import IntegrityError, NotFoundError, PolicyError
from lora_hub.reference import AdapterRef
from lora_hub.registry.find import find
from lora_hub.registry.memory import Memory
from lora_hub.registry.registry import Found, Listing, Publication, RemoteFile, Sign, Snapshot, unsigned
from lora_hub.registry.resolve import Choice, resolve
from lora_hub.registry.terms import Terms
from lora_hub.version import Version

DIGEST = f"sha256:{'3c' * 32}"


def commit(number: int) -> str:
    return f"{number:040x}"


class MemoryRegistry:
    """A registry of one adapter, in memory; a test puts commits and tags where it likes."""

    url = "memory://registry"

    def __init__(self, *, is_remote: bool = True) -> None:
        self.is_remote = is_remote
        self.commits: dict[str, dict[str, bytes]] = {}
        self.tags: dict[Version, str] = {}
        self.head: str | None = None
        self.asked: list[str] = []

    def names(self, prefix: str) -> Iterator[str]:
        """Yield nothing; it is not asked."""
        return iter(())

    def search(self, text: str, *, base: str | None, limit: int) -> Iterator[Found]:
        """Yield nothing; it is not asked."""
        return iter(())

    def listing(self, reference: AdapterRef) -> Listing:
        """Return tags and head."""
        self.asked.append("listing")
        return Listing(versions=dict(sorted(self.tags.items())), head=self.head)

    def snapshot(self, reference: AdapterRef, revision: str) -> Snapshot:
        """Return the files of a commit."""
        self.asked.append(revision)
        if revision not in self.commits:
            raise NotFoundError(f"no revision `{revision}`", hint="none")
        content = self.commits[revision]
        return Snapshot(
            commit=revision,
            files={name: RemoteFile(size=len(body), sha256=sha256(body)) for name, body in content.items()},
            read=lambda name, start, stop: iter([content[name][start:stop]]),
        )

    def publish(self, reference: AdapterRef, files: Mapping[str, bytes], sign: Sign = unsigned) -> Publication:
        """Do nothing; it is not asked."""
        return Publication(is_new=False)

    def yanks(self, reference: AdapterRef, listing: Listing) -> list[bytes]:
        """Return nothing: nobody yanks here."""
        return []

    def publish_yank(self, reference: AdapterRef, name: str, bundle: bytes) -> None:
        """Do nothing; it is not asked."""

    # What a test does

    def put(self, content: Mapping[str, bytes]) -> str:
        """Commit *content* to the main branch and return the commit."""
        self.head = commit(len(self.commits) + 1)
        self.commits[self.head] = dict(content)
        return self.head

    def put_version(self, version: str, *, name: str = "org/task") -> str:
        """Publish a version and return its digest."""
        content = version_files(version, name)
        self.tags[Version.parse(version)] = self.put(content)
        return manifest_digest(content[MANIFEST_NAME])


def version_files(version: str, name: str = "org/task") -> dict[str, bytes]:
    payload = adapter_files(seed=sum(version.encode())).files()
    draft = verify(payload, source="here").manifest.to_bytes()
    reference = AdapterRef.parse(f"{name}@{version}")
    return {**payload, MANIFEST_NAME: publish(draft, reference=reference, created="2026-01-31T12:00:00Z")}


VERSIONS = ["0.9.0", "1.0.0", "1.2.0-rc.1", "1.2.0", "1.10.0", "2.0.0", "3.0.0-rc.1"]


@pytest.fixture(params=[True, False], ids=["remote", "local"])
def registry(request) -> MemoryRegistry:
    """A registry with releases and pre-releases."""
    return filled(MemoryRegistry(is_remote=request.param))


@pytest.fixture
def remote() -> MemoryRegistry:
    """The same, into which others may write."""
    return filled(MemoryRegistry())


def filled(registry: MemoryRegistry) -> MemoryRegistry:
    for version in VERSIONS[::-1]:  # pushed in another order than that of the versions
        registry.put_version(version)
    return registry


def found(
    registry: MemoryRegistry, reference: str, policy: TrustPolicy = NOBODY, expected: str | None = None
) -> Choice:
    terms = Terms(memory=Memory(Path("/nowhere/seen.json")), policy=policy)
    return resolve(AdapterRef.parse(reference), registry, terms, expected)


def digest_at(registry: MemoryRegistry, at: str) -> str:
    """Return the digest of a version or commit, or another one where there is no such thing."""
    place = registry.tags.get(Version.parse(at)) if "." in at else at
    files = registry.commits.get(place)
    if files is None:
        return DIGEST
    return manifest_digest(files[MANIFEST_NAME]) if MANIFEST_NAME in files else verify(files, source="here").digest


def pinned(registry: MemoryRegistry, *versions: str) -> TrustPolicy:
    """Return a policy that pins *versions*, or commits, of the registry."""
    pins = [
        Pin(
            registry=registry.url,
            name="org/task",
            digest=digest_at(registry, version),
            version=version if "." in version else None,
            commit=None if "." in version else version,
        )
        for version in versions
    ]
    return TrustPolicy(pins=tuple(pins))


# Which version


@pytest.mark.parametrize(
    ("reference", "version"),
    [
        ("org/task", "2.0.0"),
        ("org/task@1", "1.10.0"),
        ("org/task@1.2", "1.2.0"),
        ("org/task@^1.2", "1.10.0"),
        ("org/task@^0.9", "0.9.0"),
        ("org/task@1.2.0", "1.2.0"),
        ("org/task@1.2.0-rc.1", "1.2.0-rc.1"),
        ("org/task@3.0.0-rc.1", "3.0.0-rc.1"),
    ],
)
def test_a_reference_means_the_newest_that_it_selects(registry, reference, version):
    """The newest release, the newest of a range, or exactly what is named; a pre-release only if it is named."""
    choice = found(registry, reference)

    assert str(choice.published.reference) == f"org/task@{version}"
    assert choice.published.snapshot.commit == registry.tags[Version.parse(version)]
    assert choice.skipped is None


@pytest.mark.parametrize(
    "reference", ["org/task@3", "org/task@^3.0", "org/task@1.2.1", "org/task@3.0.0", "org/task@^0.8"]
)
def test_what_nothing_is_selected_by_is_not_found(registry, reference):
    """A reference that selects nothing has exit code 3; the hint lists what there is."""
    with pytest.raises(NotFoundError) as caught:
        found(registry, reference)

    assert caught.value.exit_code == 3
    assert reference in caught.value.message
    assert ", ".join(sorted(VERSIONS, key=Version.parse)) in caught.value.hint


def test_pre_releases_alone_are_not_the_newest_release(registry):
    """Where there are only pre-releases, a name alone means none of them; the hint says how to name one."""
    registry.tags = {Version.parse("3.0.0-rc.1"): registry.tags[Version.parse("3.0.0-rc.1")]}
    with pytest.raises(NotFoundError) as caught:
        found(registry, "org/task")

    assert "it has 3.0.0-rc.1; a pre-release must be named exactly" in caught.value.hint


@pytest.mark.parametrize("reference", ["org/task", "org/task@1.0.0", "org/task@^1", f"org/task@{DIGEST}"])
def test_an_adapter_that_is_not_there_is_not_found(reference):
    """A registry without the adapter has exit code 3, and names both."""
    with pytest.raises(NotFoundError, match=r"`memory://registry` has no adapter `org/task`"):
        found(MemoryRegistry(), reference)


def test_a_version_says_who_it_is(registry):
    """A tag at the manifest of another version is not that version."""
    registry.tags[Version.parse("5.0.0")] = registry.tags[Version.parse("1.0.0")]

    with pytest.raises(IntegrityError, match=r"org/task@1\.0\.0"):
        find(registry, AdapterRef.parse("org/task@5.0.0")).check_identity()


def test_an_adapter_says_who_it_is(registry):
    """The manifest of another adapter is not that of this one."""
    registry.put_version("6.0.0", name="org/other")

    with pytest.raises(IntegrityError, match=r"org/other@6\.0\.0"):
        find(registry, AdapterRef.parse("org/task")).check_identity()


# Pins


@pytest.mark.parametrize(
    ("reference", "pins", "version", "skipped"),
    [
        ("org/task", ["1.0.0"], "1.0.0", "2.0.0"),
        ("org/task", ["1.0.0", "1.2.0"], "1.2.0", "2.0.0"),
        ("org/task", ["2.0.0", "1.0.0"], "2.0.0", None),
        ("org/task", ["3.0.0-rc.1"], "2.0.0", None),
        ("org/task@^1", ["1.0.0", "2.0.0"], "1.0.0", "1.10.0"),
        ("org/task@^1", ["2.0.0"], "1.10.0", None),
        ("org/task@1.2.0", ["1.0.0"], "1.2.0", None),
    ],
)
def test_a_pinned_version_counts_more_than_a_newer_one(remote, reference, pins, version, skipped):
    """Of what a reference selects, the newest that is pinned; what is newer is named, and nothing else is opened."""
    choice = found(remote, reference, pinned(remote, *pins))

    assert str(choice.published.reference) == f"org/task@{version}"
    assert choice.skipped == (None if skipped is None else AdapterRef.parse(f"org/task@{skipped}"))
    assert remote.asked == ["listing", remote.tags[Version.parse(version)]]


def test_where_nothing_needs_a_pin_the_newest_counts():
    """In a directory of this machine, pins do not hold back what is newer."""
    local = filled(MemoryRegistry(is_remote=False))
    choice = found(local, "org/task", pinned(local, "1.0.0"))

    assert str(choice.published.reference) == "org/task@2.0.0"
    assert choice.skipped is None


def test_pins_of_another_registry_do_not_count(remote):
    """What is pinned elsewhere does not choose here."""
    elsewhere = TrustPolicy(pins=(Pin(registry="hf://", name="org/task", version="1.0.0", digest=DIGEST),))

    assert str(found(remote, "org/task", elsewhere).published.reference) == "org/task@2.0.0"


@pytest.mark.parametrize("reference", ["org/task@1.0.0", f"org/task@{commit(1)}"])
def test_a_pin_of_something_else_does_not_stop_an_exact_reference(remote, reference):
    """Who names an exact version or commit gets that one, whatever else is pinned."""
    assert str(found(remote, reference, pinned(remote, "1.2.0")).published.reference) == reference


# Digests


@pytest.mark.parametrize("version", VERSIONS)
def test_a_digest_is_found(registry, version):
    """A digest means the version that has it, a pre-release as well."""
    digest = manifest_digest(registry.commits[registry.tags[Version.parse(version)]][MANIFEST_NAME])
    choice = found(registry, f"org/task@{digest}")

    assert str(choice.published.reference) == f"org/task@{version}"
    assert choice.published.digest == digest


def test_a_digest_of_the_head_is_found(registry):
    """What lies on the main branch without a tag is found by its digest, under the name of its commit."""
    payload = adapter_files(seed=200).files()
    head = registry.put(payload)
    digest = verify(payload, source="here").digest

    assert str(found(registry, f"org/task@{digest}").published.reference) == f"org/task@{head}"


def test_an_unknown_digest_is_not_found(registry):
    """A digest that nothing has is not found, and nothing else is taken for it."""
    with pytest.raises(NotFoundError, match="selects"):
        found(registry, f"org/task@{DIGEST}")


@pytest.mark.parametrize("content", [{}, {"README.md": b""}, {WEIGHTS_NAME: b"x"}], ids=["empty", "card", "no_config"])
def test_a_head_without_an_adapter_does_not_stop_a_digest(registry, content):
    """A main branch that holds no adapter is passed over."""
    registry.put(content)

    with pytest.raises(NotFoundError, match="selects"):
        found(registry, f"org/task@{DIGEST}")


@pytest.mark.parametrize(
    "content", [{MANIFEST_NAME: b"{"}, {CONFIG_NAME: b"{", WEIGHTS_NAME: b"x"}], ids=["", "derived"]
)
def test_a_version_that_is_malformed_does_not_hide_another(registry, content):
    """A digest is found though a newer version, which has another one, is no adapter at all."""
    digest = registry.put_version("1.0.1")
    registry.tags[Version.parse("9.0.0")] = registry.put(content)

    assert str(found(registry, f"org/task@{digest}").published.reference) == "org/task@1.0.1"


# Commits, and what is gone


def test_a_commit_is_asked_for_alone(registry):
    """A commit needs no listing: one look, and no tag can move it."""
    where = registry.tags[Version.parse("1.0.0")]
    choice = found(registry, f"org/task@{where}")

    assert choice.published.snapshot.commit == where
    assert registry.asked == [where]


def test_a_commit_that_was_never_there_is_not_found(registry):
    """A commit that nobody has pinned and that is not there is not found."""
    with pytest.raises(NotFoundError, match="no revision"):
        found(registry, f"org/task@{commit(999)}")


def the_refusal(
    registry: MemoryRegistry, reference: str, policy: TrustPolicy, expected: str | None = None
) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        found(registry, reference, policy, expected)
    assert caught.value.exit_code == 7
    assert "its history was rewritten" in caught.value.hint
    return caught.value


@pytest.mark.parametrize("is_pinned", [True, False], ids=["pinned", "named"])
def test_a_commit_that_is_gone_is_a_rewritten_history(remote, is_pinned):
    """A commit whose digest is pinned or named, and which is gone: both digests, that and the one of the head."""
    gone = commit(999)
    policy = pinned(remote, gone) if is_pinned else NOBODY
    error = the_refusal(remote, f"org/task@{gone}", policy, None if is_pinned else DIGEST)
    head = manifest_digest(remote.commits[remote.head][MANIFEST_NAME])

    assert f"was {DIGEST} and is gone; there is now {head}" in error.message


def test_a_version_whose_tag_is_gone_is_a_rewritten_history(remote):
    """A pinned version without its tag is refused, and no older one is taken for it."""
    del remote.tags[Version.parse("1.2.0")]
    error = the_refusal(remote, "org/task@1.2.0", pinned(remote, "1.2.0"))

    assert "`org/task@1.2.0` in `memory://registry` was sha256:" in error.message
    assert DIGEST in error.message


def _remove(registry: MemoryRegistry) -> None:
    registry.head = None


def _empty(registry: MemoryRegistry) -> None:
    registry.put({})


def _malform(registry: MemoryRegistry) -> None:
    registry.put({MANIFEST_NAME: b"{"})


def _rename(registry: MemoryRegistry) -> None:
    registry.put(version_files("1.0.0", "org/other"))


def _unsafe(registry: MemoryRegistry) -> None:
    registry.put({CONFIG_NAME: b'{"peft_type": "IA3"}', WEIGHTS_NAME: b"x" * 100})


@pytest.mark.parametrize("reference", [f"org/task@{commit(999)}", "org/task@1.2.3"], ids=["commit", "version"])
@pytest.mark.parametrize("change", [_remove, _empty, _malform, _rename, _unsafe])
def test_what_is_gone_is_refused_whatever_is_there_now(remote, change, reference):
    """However broken the main branch is by now, the message is that what was pinned is gone."""
    change(remote)
    error = the_refusal(remote, reference, pinned(remote, reference.partition("@")[2]))

    assert f"was {DIGEST} and is gone; there is now " in error.message


# What lora-hub never published


@pytest.fixture
def tagless() -> MemoryRegistry:
    """A repository that PEFT uploaded: three commits, no tag, no manifest."""
    registry = MemoryRegistry()
    for seed in range(3):
        registry.put(adapter_files(seed=seed).files())
    return registry


def test_a_repository_without_tags_means_its_head(tagless):
    """Who names no version of what has none gets the newest commit, under its name."""
    choice = found(tagless, "org/task")

    assert str(choice.published.reference) == f"org/task@{commit(3)}"
    assert choice.published.digest == verify(adapter_files(seed=2).files(), source="here").digest
    assert choice.skipped is None


@pytest.mark.parametrize(
    ("pins", "number", "skipped"), [([1], 1, 3), ([1, 2], 2, 3), ([2, 1], 1, 3), ([1, 3], 3, None)]
)
def test_a_pinned_commit_counts_more_than_the_head(tagless, pins, number, skipped):
    """Of a repository without tags, the commit that was pinned last; the head is named where that is another one."""
    choice = found(tagless, "org/task", pinned(tagless, *map(commit, pins)))

    assert str(choice.published.reference) == f"org/task@{commit(number)}"
    assert choice.skipped == (None if skipped is None else AdapterRef.parse(f"org/task@{commit(skipped)}"))


def test_a_pinned_commit_that_is_gone_is_not_replaced_by_the_head(tagless):
    """A rewritten history is called so also where the commit was chosen by its pin, not named."""
    error = the_refusal(tagless, "org/task", pinned(tagless, commit(999)))
    head = verify(adapter_files(seed=2).files(), source="here").digest

    assert DIGEST in error.message
    assert head in error.message


@pytest.mark.parametrize("reference", ["org/task@1.0.0", "org/task@^1", "org/task@1"])
def test_a_repository_without_tags_has_no_version(tagless, reference):
    """Who wants a version of what has none is told the commit that can be named instead."""
    with pytest.raises(NotFoundError) as caught:
        found(tagless, reference)

    assert f"`org/task@{commit(3)}`" in caught.value.hint


def test_a_head_counts_no_more_once_there_is_a_version(tagless):
    """With the first tag, the name alone means a release, whatever is committed after it."""
    tagless.put_version("1.0.0")
    tagless.put(adapter_files(seed=5).files())

    assert str(found(tagless, "org/task").published.reference) == "org/task@1.0.0"


def test_only_a_registry_with_commits_may_hold_a_draft():
    """Where there are no commits, a version whose manifest has no name is copied wrongly."""
    registry = filled(MemoryRegistry())
    snapshot = registry.snapshot
    payload = adapter_files().files()
    registry.commits["plain"] = {**payload, MANIFEST_NAME: verify(payload, source="here").manifest.to_bytes()}
    registry.tags[Version.parse("9.0.0")] = "plain"

    def without_commit(reference: AdapterRef, revision: str) -> Snapshot:
        with_commit = snapshot(reference, revision)
        return Snapshot(commit=None, files=with_commit.files, read=with_commit.read)

    registry.snapshot = without_commit
    with pytest.raises(IntegrityError, match="a draft"):
        find(registry, AdapterRef.parse("org/task")).check_identity()
