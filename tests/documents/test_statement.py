"""What a signature says: that three files are a version, or that a version is yanked, and never one for the other."""

import dataclasses
import hashlib
import json

import pytest
from adapter_files import adapter_files
from hypothesis import given
from hypothesis import strategies as st

from lora_hub.documents.bundle import MAX_BUNDLE
from lora_hub.documents.fields import sha256
from lora_hub.documents.manifest import CONFIG_NAME, MANIFEST_NAME, VERSION_FILES, WEIGHTS_NAME, Manifest, publish
from lora_hub.documents.statement import (
    MAX_REASON,
    SIGNATURE_TYPE,
    YANK_TYPE,
    SignedFiles,
    Yank,
    is_yank_name,
    yank_name,
)
from lora_hub.documents.verified_adapter import manifest_digest, verify
from lora_hub.errors import DocumentError, IntegrityError
from lora_hub.reference import AdapterRef
from lora_hub.version import Version

REFERENCE = AdapterRef.parse("org/task@1.2.0")
CREATED = "2026-01-31T12:00:00Z"
DRAFT = verify(adapter_files().files(), source="test").manifest.to_bytes()
MANIFEST = publish(DRAFT, reference=REFERENCE, created=CREATED)
SIGNED = SignedFiles.of(MANIFEST, Manifest.parse(MANIFEST), public_key="PEM")
YANK = Yank(reference=REFERENCE, digest=manifest_digest(MANIFEST), created=CREATED, reason="it forgets")
MISSING = object()  # takes a key away


def changed(payload: bytes, place: str, value: object) -> bytes:
    """The statement *payload* with *value* at *place*; a number in it is a position in an array."""
    document = json.loads(payload)
    *path, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    inner = document
    for key in path:
        inner = inner[key]
    if value is MISSING:
        del inner[last]
    elif isinstance(inner, list):
        inner[last:last] = [value]
    else:
        inner[last] = value
    return json.dumps(document).encode()


def resource(name: str, **changes: object) -> dict[str, object]:
    return {"name": name, "algorithm": "sha256", "digest": SIGNED.digests.get(name, "0" * 64)} | changes


# Defects that both kinds of statement may have, and where the error points.
COMMON = {
    "another type of statement": ("_type", "https://in-toto.io/Statement/v0.1", "_type"),
    "no type of statement": ("_type", MISSING, "_type"),
    "another predicate type": ("predicateType", "https://slsa.dev/provenance/v1", "predicateType"),
    "no predicate type": ("predicateType", MISSING, "predicateType"),
    "an unknown key": ("extra", 1, "extra"),
    "no subject": ("subject", [], "subject"),
    "two subjects": ("subject.1", {"name": "x", "digest": {"sha256": "0" * 64}}, "subject"),
    "the subject is no array": ("subject", {}, "subject"),
    "the subject has no name": ("subject.0.name", MISSING, "subject[0].name"),
    "the subject has no digest": ("subject.0.digest", {}, "subject[0].digest.sha256"),
    "the digest of the subject is short": ("subject.0.digest.sha256", "3c", "subject[0].digest.sha256"),
    "no predicate": ("predicate", MISSING, "predicate"),
    "the predicate is an array": ("predicate", [], "predicate"),
}

OF_FILES = {
    "no resources": ("predicate.resources", MISSING, "predicate.resources"),
    "a file is missing": ("predicate.resources.0", MISSING, "predicate.resources"),
    "a fourth file": ("predicate.resources.3", resource("README.md"), "predicate.resources[3].name"),
    "a file outside": ("predicate.resources.3", resource("../lora-hub.json"), "predicate.resources[3].name"),
    "a file twice": ("predicate.resources.3", resource(CONFIG_NAME), "predicate.resources[3].name"),
    "a file hashed otherwise": ("predicate.resources.0.algorithm", "blake2b", "predicate.resources[0].algorithm"),
    "a digest that is none": ("predicate.resources.0.digest", "0" * 63, "predicate.resources[0].digest"),
    "hashed in shards": ("predicate.serialization.method", "shards", "predicate.serialization.method"),
    "hashed with BLAKE2": ("predicate.serialization.hash_type", "blake2b", "predicate.serialization.hash_type"),
    "no serialization": ("predicate.serialization", MISSING, "predicate.serialization"),
    "links are followed": (
        "predicate.serialization.allow_symlinks",
        True,
        "predicate.serialization.allow_symlinks",
    ),
    "links are perhaps followed": (
        "predicate.serialization.allow_symlinks",
        None,
        "predicate.serialization.allow_symlinks",
    ),
    "the weights are ignored": (
        "predicate.serialization.ignore_paths",
        [WEIGHTS_NAME],
        "predicate.serialization.ignore_paths",
    ),
    "another file is ignored": (
        "predicate.serialization.ignore_paths",
        [".git", "extra.txt"],
        "predicate.serialization.ignore_paths",
    ),
    "the signer is no object": ("predicate.signer", "me", "predicate.signer"),
    "the key is null": ("predicate.signer.public_key", None, "predicate.signer.public_key"),
}

OF_YANKS = {
    "a name without a version": ("subject.0.name", "org/task", "subject[0].name"),
    "a range": ("subject.0.name", "org/task@^1.2", "subject[0].name"),
    "a commit": ("subject.0.name", f"org/task@{'0' * 40}", "subject[0].name"),
    "a digest": ("subject.0.name", f"org/task@sha256:{'0' * 64}", "subject[0].name"),
    "a path": ("subject.0.name", "../task@1.2.0", "subject[0].name"),
    "no time": ("predicate.created", MISSING, "predicate.created"),
    "a time that is none": ("predicate.created", "yesterday", "predicate.created"),
    "no reason": ("predicate.reason", MISSING, "predicate.reason"),
    "a reason that is none": ("predicate.reason", 7, "predicate.reason"),
    "a long reason": ("predicate.reason", "x" * (MAX_REASON + 1), "predicate.reason"),
}

CASES = [
    *((SignedFiles, SIGNED, defect, *what) for defect, what in (COMMON | OF_FILES).items()),
    *((Yank, YANK, defect, *what) for defect, what in (COMMON | OF_YANKS).items()),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0].__name__}: {case[2]}")
def test_a_defect_is_refused_where_it_is(case):
    """A statement that is not exactly what is expected is refused (8), and the error points at the offending key."""
    kind, statement, _, place, value, context = case
    with pytest.raises(DocumentError) as caught:
        kind.parse(changed(statement.to_bytes(), place, value))

    assert caught.value.context == context
    assert caught.value.exit_code == 8
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("kind", [SignedFiles, Yank])
@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b'{"_type": 1, "_type": 2}', b"[" * 5000], ids=repr)
def test_what_is_no_document_is_refused(kind, content):
    """What is not one JSON object, each key once, is no statement."""
    with pytest.raises(DocumentError, match="the signed statement"):
        kind.parse(content)


@pytest.mark.parametrize(("kind", "statement"), [(SignedFiles, SIGNED), (Yank, YANK)])
def test_a_statement_is_bounded(kind, statement):
    """A statement has at most 64 KiB."""
    content = statement.to_bytes()

    assert kind.parse(content.ljust(MAX_BUNDLE)) == kind.parse(content)
    with pytest.raises(DocumentError, match=f"at most {MAX_BUNDLE}"):
        kind.parse(content.ljust(MAX_BUNDLE + 1))


def test_neither_statement_passes_as_the_other():
    """A signature of a version is no yank of it, and a yank is no signature, whatever else they say."""
    with pytest.raises(DocumentError, match="predicateType"):
        Yank.parse(SIGNED.to_bytes())
    with pytest.raises(DocumentError, match="predicateType"):
        SignedFiles.parse(YANK.to_bytes())

    assert SIGNATURE_TYPE != YANK_TYPE


@pytest.mark.parametrize(
    ("statement", "kind"), [(SIGNED, Yank), (YANK, SignedFiles)], ids=["signature as yank", "yank as signature"]
)
def test_the_predicate_of_the_other_type_is_refused(statement, kind):
    """Nor does it help to rename the type of what was signed for something else."""
    other = SIGNATURE_TYPE if kind is SignedFiles else YANK_TYPE
    with pytest.raises(DocumentError):
        kind.parse(changed(statement.to_bytes(), "predicateType", other))


# A version


def test_a_signature_is_over_exactly_three_files():
    """Config, weights and manifest, each by its SHA-256, and no other file."""
    assert SIGNED.digests.keys() == set(VERSION_FILES)
    assert SIGNED.digests[MANIFEST_NAME] == sha256(MANIFEST)
    for name, content in adapter_files().files().items():
        assert SIGNED.digests[name] == sha256(content)


@pytest.mark.parametrize("key", [None, "-----BEGIN PUBLIC KEY-----\nx\n"])
def test_what_is_signed_is_read(key):
    """A statement comes back as it was written, with the key and without."""
    signed = dataclasses.replace(SIGNED, public_key=key)

    assert SignedFiles.parse(signed.to_bytes()) == signed


def test_the_same_version_makes_the_same_bytes():
    """Nothing but the files, the name and the key is in the statement: no time, no path."""
    again = SignedFiles.of(MANIFEST, Manifest.parse(MANIFEST), public_key="PEM")

    assert again.to_bytes() == SIGNED.to_bytes()


def test_a_statement_is_called_after_its_version():
    """Other tools show the subject: it is the reference, or `draft` where there is none."""
    draft = SignedFiles.of(DRAFT, Manifest.parse(DRAFT))

    assert (SIGNED.name, draft.name) == ("org/task@1.2.0", "draft")
    assert json.loads(SIGNED.to_bytes())["subject"][0]["name"] == "org/task@1.2.0"


def test_the_digest_of_the_subject_is_over_the_digests():
    """It is the SHA-256 of the digests one after the other, as Model Signing has it."""
    document = json.loads(SIGNED.to_bytes())
    digests = b"".join(bytes.fromhex(one["digest"]) for one in document["predicate"]["resources"])

    assert document["subject"][0]["digest"] == {"sha256": hashlib.sha256(digests).hexdigest()}


def test_a_digest_of_the_subject_that_is_wrong_is_refused():
    """Whoever's statement contradicts itself is not believed (6)."""
    with pytest.raises(IntegrityError, match="own digest"):
        SignedFiles.parse(changed(SIGNED.to_bytes(), "subject.0.digest.sha256", "0" * 64))


def test_the_statement_of_another_tool_is_read():
    """Files in another order, no key, fields that we do not know, and what other tools ignore by default."""
    document = json.loads(SIGNED.to_bytes())
    predicate = document["predicate"]
    predicate["resources"] = [one | {"annotations": {}} for one in predicate["resources"][::-1]]
    digests = b"".join(bytes.fromhex(one["digest"]) for one in predicate["resources"])
    document["subject"] = [{"name": "my-adapter", "digest": {"sha256": hashlib.sha256(digests).hexdigest()}}]
    predicate["serialization"] = {
        "method": "files",
        "hash_type": "sha256",
        "ignore_paths": [".git", ".gitattributes", ".github", ".gitignore", "model.0123abcd.sig", "README.md"],
        "new": True,
    }
    del predicate["signer"]
    read = SignedFiles.parse(json.dumps(document).encode())

    assert dict(read.digests) == dict(SIGNED.digests)
    assert (read.name, read.public_key) == ("my-adapter", None)


def test_the_version_that_was_signed_passes():
    """The manifest that was signed, with the files that it lists, is what the statement is over."""
    SIGNED.check(manifest_digest(MANIFEST), lambda: Manifest.parse(MANIFEST), source="test")


def test_another_manifest_is_refused_before_it_is_parsed():
    """A manifest that was not signed is refused (6) without a look into it."""

    def parse():
        raise AssertionError("the manifest was parsed")

    with pytest.raises(IntegrityError, match=r"`lora-hub.json` of `here` has sha256") as caught:
        SIGNED.check(manifest_digest(DRAFT), parse, source="here")

    assert caught.value.exit_code == 6


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
def test_a_manifest_that_lists_other_files_is_refused(name):
    """Who signed a manifest beside files that it does not list has signed nothing that could be meant (6)."""
    signed = dataclasses.replace(SIGNED, digests={**SIGNED.digests, name: "0" * 64})

    with pytest.raises(IntegrityError, match=name):
        signed.check(manifest_digest(MANIFEST), lambda: Manifest.parse(MANIFEST), source="here")


# A yank


@given(reason=st.text(st.characters(codec="utf-8"), max_size=MAX_REASON))
def test_what_is_yanked_is_read(reason):
    """A yank comes back as it was written, whatever its reason says."""
    yank = dataclasses.replace(YANK, reason=reason)

    assert Yank.parse(yank.to_bytes()) == yank


def test_a_yank_names_its_version_by_name_and_digest():
    """It is about one version of one adapter with one content, and nothing else."""
    document = json.loads(YANK.to_bytes())

    assert document["predicateType"] == YANK_TYPE
    assert document["subject"] == [{"name": "org/task@1.2.0", "digest": {"sha256": sha256(MANIFEST)}}]


VERSIONS = st.builds(
    Version,
    st.integers(0, 30),
    st.integers(0, 30),
    st.integers(0, 30),
    st.lists(st.sampled_from(["rc", "1", "12345678", "0123abcd", "x-1"]), max_size=3).map(tuple),
)


@given(version=VERSIONS, other=VERSIONS, signer=st.binary(min_size=32, max_size=32))
def test_the_name_of_a_yank_is_that_of_its_version(version, other, signer):
    """The file in which a key yanks a version is found for that version, and for no other one."""
    name = yank_name(version, signer.hex())

    assert is_yank_name(name, version)
    assert is_yank_name(name, other) == (version == other)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "1.2.0",
        "1.2.0.0123abcd",
        "1.2.0.0123ABCD.sig",
        "1.2.0.0123abc.sig",
        "1.2.00.0123abcd.sig",
        "1.2.0-rc.1.0123abcd.sig",
        "11.2.0.0123abcd.sig",
        "1.2.0.0123abcd.sig.bak",
        "model.0123abcd.sig",
        "1.2.0/0123abcd.sig",
    ],
)
def test_no_other_name_is_that_of_a_yank(name):
    """What only resembles the name of a yank of 1.2.0 is none."""
    assert not is_yank_name(name, Version(1, 2, 0))
