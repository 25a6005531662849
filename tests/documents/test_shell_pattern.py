"""Shell patterns: they mean what Python's `fnmatch` says, and no pattern takes long."""

import fnmatch
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lora_hub.documents.shell_pattern import matches

# Few characters, so that patterns and texts often have to do with each other.
TEXTS = st.text("ab.0", max_size=8)
PATTERNS = st.lists(st.sampled_from([*"ab.0*?[]!-", "[ab]", "[!a]", "[a-b]", "[b-a]", "[]a]", "[!]]", "[a-]"])).map(
    "".join
)


@given(PATTERNS, TEXTS)
@example("[a-b-0]", "-")
@example("[!", "[!")
@example("[]", "[]")
@example("[--b]", "a")
def test_a_pattern_means_what_fnmatch_says(pattern, text):
    """Every pattern matches the same texts as in Python's own module."""
    assert matches(pattern, text) == fnmatch.fnmatchcase(text, pattern)


@pytest.mark.parametrize(
    ("pattern", "is_meant"),
    [
        ("*", True),
        ("*.layers.3.*", True),
        ("*.layers.[0-3].*", True),
        ("model.layers.3.self_attn.q_proj", True),
        ("*.layers.?.*_proj", True),
        ("*.layers.[!3].*", False),
        ("*.LAYERS.3.*", False),
        ("layers.3", False),
        (r".*layers\.3.*", False),
        ("", False),
    ],
)
def test_a_pattern_is_for_the_whole_path(pattern, is_meant):
    """A pattern is no part of a path and no regular expression, and knows upper from lower case."""
    assert matches(pattern, "model.layers.3.self_attn.q_proj") is is_meant


def test_many_stars_take_no_time():
    """What would keep a regular expression busy for ever is answered at once."""
    started = time.process_time()

    assert not matches("*a" * 250 + "b", "a" * 500)
    assert time.process_time() - started < 5  # a regular expression would not come to an end
