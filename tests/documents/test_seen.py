"""The memory: what was accepted is written down so that it can be read again, and nothing else is."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_hub.documents.seen import MAX_MEMORY, SCHEMA, Seen, Sight
from lora_hub.errors import DocumentError, UnsupportedSchemaError
from lora_hub.reference import AdapterRef
from lora_hub.version import Version

HUB, MIRROR = "hf://", "file:///srv/adapters"
DIGEST, OTHER = f"sha256:{'3c' * 32}", f"sha256:{'7e' * 32}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
EXACT = AdapterRef.parse("org/task@1.2.0")
MISSING = object()  # takes a key away

SIGHTS = st.builds(Sight, digest=st.sampled_from([DIGEST, OTHER]), is_yanked=st.booleans())
PLACES = st.tuples(
    st.text(st.characters(codec="utf-8")),
    st.sampled_from(["org/task", "org/other", "me/task"]),
    st.sampled_from(["1.2.0", "1.10.0", "2.0.0-rc.1", COMMIT]),
)

DEFECTS = {
    "an unknown key": ("extra", 1, "seen[0].extra"),
    "no registry": ("registry", MISSING, "seen[0].registry"),
    "the registry is null": ("registry", None, "seen[0].registry"),
    "a name without an org": ("name", "task", "seen[0].name"),
    "a name with a version": ("name", "org/task@1.2.0", "seen[0].name"),
    "a name that escapes": ("name", "../task", "seen[0].name"),
    "a range": ("at", "^1.2", "seen[0].at"),
    "a branch": ("at", "main", "seen[0].at"),
    "a short commit": ("at", COMMIT[:12], "seen[0].at"),
    "no place": ("at", MISSING, "seen[0].at"),
    "a digest without its prefix": ("digest", "3c" * 32, "seen[0].digest"),
    "a short digest": ("digest", "sha256:3c", "seen[0].digest"),
    "an upper-case digest": ("digest", DIGEST.upper().replace("SHA", "sha"), "seen[0].digest"),
    "no digest": ("digest", MISSING, "seen[0].digest"),
    "yanked is a number": ("yanked", 1, "seen[0].yanked"),
    "yanked is missing": ("yanked", MISSING, "seen[0].yanked"),
}

BROKEN = {
    "empty": b"",
    "no JSON": b"{",
    "an array": b"[]",
    "another document": b'{"schema": "lora-hub/lock/v1", "adapters": []}',
    "no schema": b'{"seen": []}',
    "no entries": json.dumps({"schema": SCHEMA}).encode(),
    "entries that are none": json.dumps({"schema": SCHEMA, "seen": {}}).encode(),
    "an unknown key": json.dumps({"schema": SCHEMA, "seen": [], "more": []}).encode(),
    "a key twice": f'{{"schema": "{SCHEMA}", "seen": [], "seen": []}}'.encode(),
    "zeros, as a crashed disk leaves them": b"\0" * 100,
}


def memory(**changes: object) -> bytes:
    """A memory of one version, with *changes* in its entry."""
    entry = {"registry": HUB, "name": "org/task", "at": "1.2.0", "digest": DIGEST, "yanked": False} | changes
    kept = {key: value for key, value in entry.items() if value is not MISSING}
    return json.dumps({"schema": SCHEMA, "seen": [kept]}).encode()


@given(sights=st.dictionaries(PLACES, SIGHTS))
def test_what_was_seen_comes_back(sights):
    """Every memory is read as it was written."""
    assert Seen.parse(Seen(sights=sights).to_bytes()) == Seen(sights=sights)


@given(sights=st.dictionaries(PLACES, SIGHTS))
def test_the_same_memory_makes_the_same_bytes(sights):
    """In which order things were seen does not change a byte."""
    backwards = dict(reversed(sights.items()))

    assert Seen(sights=backwards).to_bytes() == Seen(sights=sights).to_bytes()


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_damaged_entry_is_refused_where_it_is(defect):
    """An entry that says something else than was written is refused (8), and the error points at it."""
    key, value, context = DEFECTS[defect]
    with pytest.raises(DocumentError) as caught:
        Seen.parse(memory(**{key: value}))

    assert caught.value.context == context
    assert caught.value.exit_code == 8
    assert "mend it by hand" in caught.value.hint


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_damaged_memory_is_refused(content):
    """What is no memory is refused, and says what to do: it is never taken for an empty one."""
    with pytest.raises(DocumentError) as caught:
        Seen.parse(content)

    assert "delete it" in caught.value.hint
    assert caught.value.message.isprintable()


def test_a_newer_memory_says_what_to_do():
    """A memory of a newer lora-hub is not half understood."""
    with pytest.raises(UnsupportedSchemaError) as caught:
        Seen.parse(b'{"schema": "lora-hub/seen/v2", "seen": [], "more": 1}')

    assert "upgrade" in caught.value.hint


def test_a_memory_is_bounded():
    """More than 64 MiB are refused before they are parsed."""
    with pytest.raises(DocumentError, match=f"at most {MAX_MEMORY}"):
        Seen.parse(b" " * (MAX_MEMORY + 1))


def test_a_sight_is_of_one_place():
    """What was seen is known for this registry, this name and this version, and for no other."""
    seen = Seen().with_sight(HUB, EXACT, Sight(digest=DIGEST))

    assert seen.sight(HUB, EXACT) == Sight(digest=DIGEST)
    for registry, reference in [(MIRROR, "org/task@1.2.0"), (HUB, "org/other@1.2.0"), (HUB, "org/task@1.2.1")]:
        assert seen.sight(registry, AdapterRef.parse(reference)) is None


def test_a_commit_is_a_place_as_well():
    """What has no version is known by its commit, and is no version."""
    seen = Seen().with_sight(HUB, EXACT.at(COMMIT), Sight(digest=DIGEST))

    assert seen.sight(HUB, EXACT.at(COMMIT)) == Sight(digest=DIGEST)
    assert seen.versions(HUB, EXACT) == {}


def test_a_new_sight_leaves_the_old_memory_alone():
    """A memory is a value: another one comes back, with the newer sight in place of the older."""
    old = Seen().with_sight(HUB, EXACT, Sight(digest=DIGEST))
    new = old.with_sight(HUB, EXACT, Sight(digest=DIGEST, is_yanked=True))

    assert not old.sight(HUB, EXACT).is_yanked
    assert new.sight(HUB, EXACT).is_yanked
    assert len(new.sights) == 1


def test_versions_rise():
    """The versions of an adapter come in the order of versions, not of texts, each with what it was."""
    seen = Seen()
    for version in ("1.10.0", "1.2.0", "2.0.0-rc.1", "1.9.0"):
        seen = seen.with_sight(HUB, EXACT.at(Version.parse(version)), Sight(digest=DIGEST))

    assert [str(version) for version in seen.versions(HUB, EXACT)] == ["1.2.0", "1.9.0", "1.10.0", "2.0.0-rc.1"]
    assert seen.versions(MIRROR, EXACT) == {}


def test_an_empty_memory_knows_nothing():
    """Nothing was seen, and that can be written down as well."""
    assert Seen().versions(HUB, EXACT) == {}
    assert Seen().sight(HUB, EXACT) is None
    assert Seen.parse(Seen().to_bytes()) == Seen()
