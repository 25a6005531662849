"""How PEFT's config names modules: our reading, without regular expressions, against PEFT's."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_hub.documents.module_names import ModulePattern, is_named, names_of, owners_of
from lora_hub.errors import MalformedError

TOKENS = ["a", "b", "Z", "0", "_", "-", ".", r"\.", r"\-", r"\_"]
ALPHABET = "abZ0_-."


@st.composite
def keys_and_paths(draw):
    """A plain key, and a path that often matches it: its characters, after another beginning."""
    tokens = draw(st.lists(st.sampled_from(TOKENS), min_size=1, max_size=6))
    key = draw(st.sampled_from(["", "^"])) + "".join(tokens) + draw(st.sampled_from(["", "$"]))
    tail = [draw(st.sampled_from(ALPHABET)) if token == "." else token[-1] for token in tokens]
    head = draw(st.sampled_from(["", ".", "x", "x.", "x.y.", "a."]) | st.text(ALPHABET, max_size=3))
    exact = head + "".join(tail)
    return key, draw(st.just(exact) | st.text(ALPHABET, max_size=8))


@given(keys_and_paths())
@settings(deadline=None, max_examples=500)
def test_a_plain_key_matches_what_it_matches_in_peft(drawn):
    """A plain key matches a path exactly when PEFT's regular expression does (`get_pattern_key`)."""
    key, path = drawn
    peft = re.match(rf"(.*\.)?({key})$", path) is not None

    assert ModulePattern.parse(key, where="rank_pattern").matches(path) == peft


@pytest.mark.parametrize(
    ("key", "path", "expected"),
    [
        ("q_proj", "model.layers.0.self_attn.q_proj", True),
        ("q_proj", "q_proj", True),
        ("q_proj", "model.xq_proj", False),
        ("q_proj", "model.q_proj.base", False),
        ("^model.q_proj", "model.q_proj", True),
        ("^q_proj", "model.q_proj", False),
        ("q_proj$", "model.q_proj", True),
        ("0.q_proj", "layers.0.q_proj", True),
        ("0.q_proj", "layers.0xq_proj", True),  # an unescaped dot is any character
        (r"0\.q_proj", "layers.0xq_proj", False),
        (r"0\.q_proj", "layers.10.q_proj", False),
    ],
)
def test_the_matches_that_matter(key, path, expected):
    """Whole components, anchors and dots mean what they mean to PEFT."""
    assert ModulePattern.parse(key, where="rank_pattern").matches(path) is expected


@pytest.mark.parametrize(
    "key",
    [
        ".*",
        "q|v",
        "[qv]_proj",
        "(q)",
        "q+",
        "q?",
        r"q\d",
        r"\w",
        "q{2}",
        "a^b",
        "a$b",
        "q\n",
        "ü",
        "",
        "^",
        "$",
        "q_proj\\",
        "a" * 513,
    ],
)
def test_a_regular_expression_is_refused(key):
    """A key that is more than a name is refused, and named; it is never run."""
    with pytest.raises(MalformedError, match="regular expression"):
        ModulePattern.parse(key, where="alpha_pattern")


def test_the_key_in_the_error_moves_no_cursor():
    """A key with control characters is shown escaped."""
    with pytest.raises(MalformedError) as caught:
        ModulePattern.parse("\x1b[2J", where="rank_pattern")

    assert str(caught.value).isprintable()


def test_a_hostile_key_costs_nothing():
    """What would make a regular expression backtrack for years is answered at once."""
    pattern = ModulePattern.parse("a." * 256, where="rank_pattern")
    start = time.perf_counter()

    assert not pattern.matches("a" * 100_000)
    assert time.perf_counter() - start < 5


@given(st.text("ab.-", min_size=1, max_size=6), st.text("ab.-", max_size=6))
@settings(deadline=None)
def test_an_exact_pattern_matches_one_path(path, other):
    """The pattern that we write for a path matches that path and no other, in our reading and in PEFT's."""
    pattern = ModulePattern.exactly(path)
    candidates = {path, other, f"{other}.{path}", f".{path}"}

    assert {candidate for candidate in candidates if pattern.matches(candidate)} == {path}
    assert {c for c in candidates if re.match(rf"(.*\.)?({pattern.key})$", c)} == {path}
    assert ModulePattern.parse(pattern.key, where="rank_pattern") == pattern


@given(st.text("ab.", max_size=8), st.frozensets(st.text("ab.", max_size=4), max_size=3))
@settings(deadline=None, max_examples=300)
def test_a_list_entry_names_what_it_names_in_peft(path, entries):
    """An entry names a module whose path it is, or whose path ends with it after a dot."""
    peft = path in entries or any(path.endswith(f".{entry}") for entry in entries)

    assert is_named(path, entries) == peft


def test_names_of_a_path_are_its_ends():
    """A path can be named in full, or by its last components."""
    assert names_of("a.b.c") == ["a.b.c", "b.c", "c"]
    assert names_of("a") == ["a"]


def test_owners_of_a_path_are_its_beginnings():
    """A parameter lies in each module that its path begins with, but is none itself."""
    assert owners_of("a.b.weight") == ["a", "a.b"]
    assert owners_of("weight") == []


@given(st.text("ab.", max_size=8))
def test_names_and_owners_are_cut_at_the_dots(path):
    """Whatever the dots, also two side by side or at an end, names begin after one and owners end before one."""
    dots = [position for position, character in enumerate(path) if character == "."]

    assert names_of(path) == [path, *(path[dot + 1 :] for dot in dots)]
    assert owners_of(path) == [path[:dot] for dot in dots]


def test_a_long_key_is_not_repeated_in_the_error():
    """A key of a megabyte is refused in a line that a terminal shows."""
    with pytest.raises(MalformedError) as caught:
        ModulePattern.parse("a" * 2**20, where="rank_pattern")

    assert len(str(caught.value)) < 500
