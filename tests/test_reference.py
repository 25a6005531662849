"""References: `org/task[@version]`, and what is a path instead."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_hub import reference as references
from lora_hub.errors import InvalidReferenceError
from lora_hub.reference import AdapterRef
from lora_hub.version import Version, VersionRange

DIGEST = "sha256:" + "0123456789abcdef" * 4
COMMIT = "0123456789abcdef0123456789abcdef01234567"

NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,20}[A-Za-z0-9_-])?", fullmatch=True).filter(
    lambda n: ".." not in n
)
NUMBERS = st.integers(0, 999)
SELECTORS = (
    st.none()
    | st.builds(Version, NUMBERS, NUMBERS, NUMBERS, st.sampled_from([(), ("rc", "1"), ("0",)]))
    | st.lists(NUMBERS, min_size=1, max_size=2).map(lambda n: VersionRange.parse(".".join(map(str, n))))
    | st.lists(NUMBERS, min_size=1, max_size=3).map(lambda n: VersionRange.parse("^" + ".".join(map(str, n))))
    | st.from_regex(r"[0-9a-f]{40}", fullmatch=True)
    | st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
)
REFERENCES = st.builds(AdapterRef, NAMES, NAMES, SELECTORS)


@given(REFERENCES)
@settings(deadline=None, max_examples=300)
def test_a_reference_round_trips(reference):
    """What is printed parses as the same reference."""
    assert AdapterRef.parse(str(reference)) == reference
    assert references.parse(str(reference)) == reference


@given(st.text(max_size=20) | st.text("aA0./@^-_:\n", max_size=20))
@settings(deadline=None, max_examples=300)
def test_any_text_is_a_reference_or_refused(text):
    """Whatever the text, it is a reference that prints as it was written, or an `InvalidReferenceError`."""
    try:
        reference = AdapterRef.parse(text)
    except InvalidReferenceError:
        return

    assert str(reference) == text


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("org/task", None),
        ("org/task@1.2.0", Version(1, 2, 0)),
        ("org/task@1.2.0-rc.1", Version(1, 2, 0, ("rc", "1"))),
        ("org/task@1", VersionRange.parse("1")),
        ("org/task@1.2", VersionRange.parse("1.2")),
        ("org/task@^1.2", VersionRange.parse("^1.2")),
        ("org/task@^1.2.3", VersionRange.parse("^1.2.3")),
        (f"org/task@{DIGEST}", DIGEST),
        (f"org/task@{COMMIT}", COMMIT),
        ("o/t", None),
        ("Org-1_a.b/task.v2", None),
        (f"{'a' * 96}/{'b' * 96}", None),
    ],
)
def test_what_follows_the_at_selects(text, selector):
    """A version, a range, a digest and a commit are told apart by how they look."""
    assert AdapterRef.parse(text).selector == selector


@pytest.mark.parametrize(
    "text",
    [
        "",
        "task",
        "/task",
        "org/",
        "org/task/more",
        "org//task",
        "org/task@",
        "@1.0.0",
        "org@1.0.0",
        "../task",
        "org/..",
        "./task",
        ".org/task",
        "org/.task",
        "org/task.",
        "org/ta..sk",
        "-org/task",
        "_org/task",
        "org/ta sk",
        "org/task\n",
        "org/tâsk",
        "org\\task",
        "org/task@latest",
        "org/task@v1.2.0",
        "org/task@1.2.0+build",
        "org/task@^1.2.0-rc.1",
        "org/task@1.2.3.4",
        "org/task@sha256:abc",
        f"org/task@{DIGEST.upper()}",
        f"org/task@{DIGEST}0",
        f"org/task@{COMMIT.upper()}",
        f"org/task@{COMMIT[:7]}",
        "org/task@1.0.0@1.0.0",
        "org/task@../../1.0.0",
        f"{'a' * 97}/task",
        "https://huggingface.co/org/task",
        "hf://org/task",
        "org/task@1.0.0\x1b[2J",
    ],
)
def test_what_is_no_reference_is_refused(text):
    """Anything else is refused with a hint, in particular whatever could leave the root of a registry."""
    with pytest.raises(InvalidReferenceError) as caught:
        AdapterRef.parse(text)

    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_a_reference_knows_what_it_names():
    """Name, version and digest are there if the reference names them."""
    assert AdapterRef.parse("org/task@1.2.0").name == "org/task"
    assert AdapterRef.parse("org/task@1.2.0").version == Version(1, 2, 0)
    assert AdapterRef.parse("org/task@^1.2").version is None
    assert AdapterRef.parse(f"org/task@{DIGEST}").digest == DIGEST
    assert AdapterRef.parse(f"org/task@{COMMIT}").digest is None
    assert AdapterRef.parse("org/task").digest is None


def test_at_names_one_version():
    """The reference at a version is exact, whatever the reference selected before."""
    assert str(AdapterRef.parse("org/task@^1").at(Version(1, 2, 0))) == "org/task@1.2.0"


@pytest.mark.parametrize("text", [".", "./out", "../out", "/srv/adapters", "/", ".hidden/adapter"])
def test_a_text_that_starts_like_a_path_is_one(text):
    """A leading dot or slash makes a path."""
    assert references.parse(text) == Path(text)


def test_a_path_object_is_a_path():
    """A `Path` is a path also where its text could be a reference."""
    assert references.parse(Path("org/task")) == Path("org/task")
    assert references.parse("org/task") == AdapterRef("org", "task")


def test_a_reference_is_a_reference():
    """A reference that is parsed already stays what it is."""
    reference = AdapterRef("org", "task")

    assert references.parse(reference) is reference
