"""The lock file: same entries, same bytes; schema and parser say the same of it."""

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_places import places, replaced, without

from lora_hub.documents import lock_file as documents
from lora_hub.documents import schemas
from lora_hub.documents.lock_file import MAX_LOCK, LockEntry, LockFile
from lora_hub.documents.manifest import MAX_FILE, PAYLOAD_NAMES, FileEntry
from lora_hub.errors import DocumentError, PolicyError, UnsupportedSchemaError
from lora_hub.reference import AdapterRef

VECTORS = Path(__file__).parents[1] / "vectors" / "v1" / "lock"
VALID = sorted((VECTORS / "valid").glob("*.json"))
INVALID = sorted((VECTORS / "invalid").glob("*.json"))
SCHEMA = json.loads(schemas.schema("lock"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

DIGEST, OTHER = f"sha256:{'3c' * 32}", f"sha256:{'7e' * 32}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Valid, but not the bytes that we would write: unknown keys are not kept, nor is another order or indent.
NOT_CANONICAL = {"bytes_are_not_canonical", "keys_are_unknown"}

# Where the parser is stricter, because JSON Schema cannot say it: a reference and a key stand once, a selector is a
# version, a range, a digest or a commit, a string is Unicode, and no document is nested without end.
BEYOND_A_SCHEMA = {
    "digest_stands_twice",
    "json_is_too_deep",
    "reference_has_a_version_with_a_leading_zero",
    "reference_has_an_unknown_selector",
    "reference_stands_twice",
    "registry_is_half_a_surrogate_pair",
}

# Where the error points; "" is the document as a whole.
CONTEXTS = {
    "adapters_are_missing": "adapters",
    "adapters_holds_a_string": "adapters",
    "adapters_is_an_object": "adapters",
    "commit_is_a_branch": "adapters[0].commit",
    "commit_is_a_number": "adapters[0].commit",
    "commit_is_missing": "adapters[0].commit",
    "commit_is_sha256": "adapters[0].commit",
    "commit_is_short": "adapters[0].commit",
    "commit_is_upper_case": "adapters[0].commit",
    "digest_has_no_prefix": "adapters[0].digest",
    "digest_is_md5": "adapters[0].digest",
    "digest_is_missing": "adapters[0].digest",
    "digest_is_null": "adapters[0].digest",
    "digest_is_short": "adapters[0].digest",
    "digest_is_upper_case": "adapters[0].digest",
    "digest_stands_twice": "",
    "file_name_escapes_root": "adapters[0].files[0].name",
    "file_name_is_a_pickle": "adapters[0].files[1].name",
    "files_are_in_another_order": "adapters[0].files",
    "files_are_missing": "adapters[0].files",
    "files_has_one": "adapters[0].files",
    "files_has_three": "adapters[0].files",
    "files_holds_a_string": "adapters[0].files",
    "files_is_an_object": "adapters[0].files",
    "json_has_a_byte_order_mark": "",
    "json_has_conflict_markers": "",
    "json_is_an_array": "",
    "json_is_cut_off": "",
    "json_is_empty": "",
    "json_is_not_utf8": "",
    "json_is_too_deep": "",
    "reference_escapes_root": "adapters[0].reference",
    "reference_has_a_new_line": "adapters[0].reference",
    "reference_has_a_version_with_a_leading_zero": "adapters[0].reference",
    "reference_has_an_empty_selector": "adapters[0].reference",
    "reference_has_an_unknown_selector": "adapters[0].reference",
    "reference_has_no_org": "adapters[0].reference",
    "reference_has_two_dots": "adapters[0].reference",
    "reference_is_a_number": "adapters[0].reference",
    "reference_is_a_path": "adapters[0].reference",
    "reference_is_missing": "adapters[0].reference",
    "reference_stands_twice": "adapters",
    "registry_is_a_list": "adapters[0].registry",
    "registry_is_half_a_surrogate_pair": "",
    "registry_is_missing": "adapters[0].registry",
    "registry_is_null": "adapters[0].registry",
    "schema_is_a_number": "schema",
    "schema_is_missing": "schema",
    "schema_is_newer": "schema",
    "schema_is_that_of_a_manifest": "schema",
    "sha256_has_a_prefix": "adapters[0].files[1].sha256",
    "sha256_is_md5": "adapters[0].files[0].sha256",
    "sha256_is_missing": "adapters[0].files[1].sha256",
    "sha256_is_upper_case": "adapters[0].files[0].sha256",
    "signer_is_a_number": "adapters[0].signer",
    "signer_is_missing": "adapters[0].signer",
    "signer_is_null": "adapters[0].signer",
    "size_is_a_string": "adapters[0].files[1].size",
    "size_is_missing": "adapters[0].files[0].size",
    "size_is_negative": "adapters[0].files[0].size",
    "size_is_too_large": "adapters[0].files[1].size",
    "size_is_true": "adapters[0].files[0].size",
    "version_and_commit_are_null": "adapters[0].version",
    "version_escapes_root": "adapters[0].version",
    "version_has_a_leading_zero": "adapters[0].version",
    "version_has_two_numbers": "adapters[0].version",
    "version_is_a_number": "adapters[0].version",
    "version_is_a_range": "adapters[0].version",
    "version_is_empty": "adapters[0].version",
    "version_is_missing": "adapters[0].version",
    "version_is_too_long": "adapters[0].version",
}

# What a value is replaced by. None is a reference: of their selectors only the parser knows.
REPLACEMENTS = [None, True, -1, 0, 1, 1.5, 2**60, "", "x", "1.0.0", COMMIT, DIGEST, [], ["x"], [1], {}, {"x": 1}]


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def passes_schema(content: bytes) -> bool:
    try:
        return VALIDATOR.is_valid(json.loads(content.decode()))
    except ValueError:  # no JSON at all
        return False


def passes_parser(content: bytes) -> bool:
    try:
        LockFile.parse(content)
    except DocumentError:
        return False
    return True


def file_entries(size: int = 512, letter: str = "a") -> tuple[FileEntry, ...]:
    return tuple(FileEntry(name=name, size=size, sha256=letter * 64) for name in PAYLOAD_NAMES)


def an_entry(reference: str = "org/task", **changes) -> LockEntry:
    values = {"registry": "hf://", "digest": DIGEST, "files": file_entries(), "version": "1.2.0", "commit": COMMIT}
    return LockEntry(reference=reference, **(values | changes))


def locked(*entries: LockEntry) -> LockFile:
    return LockFile().with_entries(entries)


@named(VALID)
def test_a_valid_vector_passes_the_schema(path):
    """The schema accepts every valid vector."""
    assert passes_schema(path.read_bytes())


@named(VALID)
def test_a_valid_vector_round_trips(path):
    """What is parsed prints as the same bytes, where those are canonical, and reads as the same lock file anyhow."""
    content = path.read_bytes()
    lock = LockFile.parse(content)

    assert LockFile.parse(lock.to_bytes()) == lock
    assert (lock.to_bytes() == content) == (path.stem not in NOT_CANONICAL)


@named(INVALID)
def test_an_invalid_vector_is_refused_where_its_defect_is(path):
    """The parser refuses every invalid vector and points at the offending key."""
    with pytest.raises(DocumentError) as caught:
        LockFile.parse(path.read_bytes())

    assert caught.value.context == CONTEXTS[path.stem]
    assert caught.value.exit_code == 8
    assert caught.value.message.isprintable()


@named(INVALID)
def test_an_invalid_vector_fails_the_schema(path):
    """The schema refuses every invalid vector, but for what no schema can say."""
    assert passes_schema(path.read_bytes()) == (path.stem in BEYOND_A_SCHEMA)


def test_every_vector_has_an_expectation():
    """No invalid vector is without a context here, and none here is without a vector."""
    assert {path.stem for path in INVALID} == CONTEXTS.keys()


def test_the_schema_is_a_schema():
    """The schema itself is valid under draft 2020-12, and is of the version that the parser reads."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    assert SCHEMA["properties"]["schema"]["const"] == documents.SCHEMA


@pytest.mark.parametrize("kind", [LockEntry, FileEntry], ids=lambda kind: kind.__name__)
def test_the_schema_names_what_the_dataclass_has(kind):
    """Schema and dataclass have the same properties, all of them are required, and the schema describes each."""
    node = SCHEMA["properties"]["adapters"]["items"] if kind is LockEntry else SCHEMA["$defs"]["file"]
    fields = {field.name for field in dataclasses.fields(kind)}

    assert node["properties"].keys() == fields
    assert set(node["required"]) == fields
    assert node["additionalProperties"] is True
    assert all("description" in entry for entry in node["properties"].values())


def test_a_newer_schema_says_what_to_do():
    """A lock file of the next major version is told apart from a broken one, and the hint says what to do."""
    with pytest.raises(UnsupportedSchemaError) as caught:
        LockFile.parse((VECTORS / "invalid" / "schema_is_newer.json").read_bytes())

    assert "upgrade" in caught.value.hint


def test_what_is_no_lock_file_at_all_is_not_called_newer():
    """The schema of another document is a defect, not a version that an upgrade would read."""
    with pytest.raises(DocumentError) as caught:
        LockFile.parse((VECTORS / "invalid" / "schema_is_that_of_a_manifest.json").read_bytes())

    assert not isinstance(caught.value, UnsupportedSchemaError)


@pytest.mark.parametrize("name", ["json_is_cut_off", "json_has_conflict_markers", "digest_is_short", "files_has_one"])
def test_the_hint_for_a_broken_lock_file_is_to_lock_again(name):
    """Whatever is wrong with a lock file, the hint is the command that writes it, not one that saves adapters."""
    with pytest.raises(DocumentError) as caught:
        LockFile.parse((VECTORS / "invalid" / f"{name}.json").read_bytes())

    assert "lora-hub lock" in caught.value.hint


@named([path for path in VALID if path.stem != "keys_are_unknown"])
def test_schema_and_parser_agree_when_one_key_is_deleted(path):
    """With any one key or item deleted, schema and parser both accept the document or both refuse it."""
    document = json.loads(path.read_bytes())
    disagreements = [place for place in places(document) if not _agree(without(document, place))]

    assert disagreements == []


@pytest.mark.parametrize("value", REPLACEMENTS, ids=repr)
@named([path for path in VALID if path.stem in {"one_adapter", "commit_without_a_version"}])
def test_schema_and_parser_agree_when_one_value_is_replaced(path, value):
    """With any one value replaced by another kind of value, schema and parser both accept or both refuse."""
    document = json.loads(path.read_bytes())
    disagreements = [place for place in places(document) if not _agree(replaced(document, place, value))]

    assert disagreements == []


@pytest.mark.parametrize("key", ["commit", "digest", "reference", "version"])
def test_a_final_new_line_is_part_of_no_value(key):
    """A value with a new line behind it is another value, and refused."""
    document = json.loads((VECTORS / "valid" / "one_adapter.json").read_bytes())
    document["adapters"][0][key] += "\n"

    with pytest.raises(DocumentError) as caught:
        LockFile.parse(_bytes(document))
    assert caught.value.context == f"adapters[0].{key}"


def test_a_lock_file_is_bounded():
    """More bytes than a lock file may have are refused before they are parsed."""
    padded = LockFile().to_bytes().ljust(MAX_LOCK)

    assert passes_parser(padded)
    assert not passes_parser(padded + b" ")


def test_unknown_keys_change_nothing():
    """Within one major version a newer writer may add keys: the file reads as it would without them."""
    content = (VECTORS / "valid" / "keys_are_unknown.json").read_bytes()

    assert LockFile.parse(content) == LockFile.parse((VECTORS / "valid" / "one_adapter.json").read_bytes())


# Writing

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,8}/[A-Za-z0-9]{1,8}", fullmatch=True)
HEX = "0123456789abcdef"
VERSIONS = st.sampled_from(["0.0.0", "1.2.0", "1.2.0-rc.1", "999999999.0.1"])
SELECTORS = st.sampled_from(["", "@1", "@^1.2", "@1.2.0", "@1.2.0-rc.1", f"@{COMMIT}", f"@{DIGEST}"])


@st.composite
def lock_entries(draw) -> LockEntry:
    """One entry of a lock file, with anything in it that may stand there."""
    version, commit = draw(st.none() | VERSIONS), draw(st.none() | st.text(HEX, min_size=40, max_size=40))
    return LockEntry(
        reference=draw(NAMES) + draw(SELECTORS),
        registry=draw(st.text()),
        digest=f"sha256:{draw(st.text(HEX, min_size=64, max_size=64))}",
        files=tuple(
            FileEntry(
                name=name, size=draw(st.integers(0, MAX_FILE)), sha256=draw(st.text(HEX, min_size=64, max_size=64))
            )
            for name in PAYLOAD_NAMES
        ),
        version=version,
        commit=COMMIT if version is None and commit is None else commit,
        signer=draw(st.text()),
    )


@given(st.lists(lock_entries(), max_size=4))
def test_what_is_written_is_read(entries):
    """Every lock file reads as it was written, and passes the schema."""
    lock = locked(*entries)

    assert LockFile.parse(lock.to_bytes()) == lock
    assert passes_schema(lock.to_bytes())


@given(st.lists(lock_entries(), max_size=5, unique_by=lambda entry: entry.reference), st.randoms())
def test_the_order_of_locking_changes_nothing(entries, random):
    """The same entries, in whatever order they come, make the same bytes, sorted by reference."""
    shuffled = random.sample(entries, len(entries))
    written = json.loads(locked(*entries).to_bytes())

    assert locked(*shuffled).to_bytes() == locked(*entries).to_bytes()
    assert [entry["reference"] for entry in written["adapters"]] == sorted(entry.reference for entry in entries)


@given(st.binary(max_size=100))
def test_any_bytes_are_read_or_refused(content):
    """No bytes whatsoever raise anything but an error of ours."""
    assert not passes_parser(content)


def test_a_file_that_is_not_sorted_is_sorted_when_it_is_read():
    """Who merges two lock files by hand need not sort them."""
    document = json.loads(locked(an_entry("org/a"), an_entry("org/b")).to_bytes())
    document["adapters"].reverse()

    assert [entry.reference for entry in LockFile.parse(_bytes(document)).entries] == ["org/a", "org/b"]


def test_a_change_of_one_entry_is_a_change_of_few_lines():
    """A new version of one adapter touches only its own lines: a diff shows what changed."""
    before = locked(an_entry("org/a"), an_entry("org/b"), an_entry("org/c"))
    after = before.with_entries([an_entry("org/b", digest=OTHER)])
    changed = set(after.to_bytes().splitlines()) ^ set(before.to_bytes().splitlines())

    assert changed == {f'      "digest": "{OTHER}",'.encode()}


# Entries


def test_an_entry_replaces_that_of_its_reference():
    """Locking a reference again replaces its entry, and no other."""
    other = an_entry("org/task@^1")
    lock = locked(an_entry(), other).with_entries([an_entry(version="2.0.0", digest=OTHER)])

    assert lock.entries == (an_entry(version="2.0.0", digest=OTHER), other)


def test_of_two_new_entries_of_one_reference_the_last_counts():
    """Who names a reference twice gets one entry."""
    assert locked(an_entry(digest=OTHER), an_entry()).entries == (an_entry(),)


def test_locking_more_leaves_the_old_value_as_it_was():
    """A lock file is a value: adding to it makes another one."""
    lock = locked(an_entry())
    lock.with_entries([an_entry("org/other")])

    assert lock.entries == (an_entry(),)


def test_an_entry_is_found_by_what_was_asked_for():
    """The entry of a range is that of the very range, not of what it selects."""
    entries = [an_entry("org/task"), an_entry("org/task@^1.2"), an_entry("org/task@1.2.0")]

    for entry in entries:
        assert locked(*entries).entry(AdapterRef.parse(entry.reference)) is entry


@pytest.mark.parametrize(("references", "has"), [((), "nothing"), (("org/b@^1", "org/a"), "org/a, org/b@^1")])
def test_what_is_not_locked_is_refused(references, has):
    """A reference without an entry has exit code 7; the error says what there is, the hint how to lock it."""
    lock = locked(*(an_entry(reference) for reference in references))
    with pytest.raises(PolicyError) as caught:
        lock.entry(AdapterRef.parse("org/task@1.2.0"))

    assert caught.value.exit_code == 7
    assert f"`org/task@1.2.0` is not in the lock file, which has {has}" in caught.value.message
    assert caught.value.hint == "run `lora-hub lock org/task@1.2.0`"


@pytest.mark.parametrize(
    ("reference", "version", "commit", "exact"),
    [
        ("org/task", "1.2.0", COMMIT, "org/task@1.2.0"),
        ("org/task@^1", "1.2.0-rc.1", None, "org/task@1.2.0-rc.1"),
        (f"org/task@{DIGEST}", "1.2.0", COMMIT, "org/task@1.2.0"),
        ("org/task", None, COMMIT, f"org/task@{COMMIT}"),
    ],
)
def test_an_entry_is_exact(reference, version, commit, exact):
    """Whatever was asked for, an entry means one version, or one commit of what has no version."""
    assert str(an_entry(reference, version=version, commit=commit).exact) == exact


def _bytes(document) -> bytes:
    return json.dumps(document).encode()


def _agree(document) -> bool:
    content = _bytes(document)
    return passes_schema(content) == passes_parser(content)
