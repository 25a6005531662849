"""Strict JSON: what it refuses, and bytes that depend on nothing but the content."""

import json
import math
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_hub.documents.fields import MAX_DEPTH, Fields, canonical_json, check_depth, parse_json_object, printable
from lora_hub.errors import DocumentError

SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
VALUES = st.recursive(
    SCALARS | TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=8
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=4)


def parse(content: bytes, limit: int = 100_000):
    return parse_json_object(content, what="the document", limit=limit)


def nested(depth: int) -> bytes:
    return b'{"x": ' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


@given(OBJECTS)
@settings(deadline=None)
def test_canonical_json_round_trips(document):
    """What is printed canonically reads as the same document."""
    assert parse(canonical_json(document)) == document


@given(OBJECTS)
@settings(deadline=None)
def test_canonical_json_depends_on_the_content_only(document):
    """The order of the keys in memory changes nothing; there is one final newline."""
    backwards = dict(reversed(document.items()))

    assert canonical_json(backwards) == canonical_json(document)
    assert canonical_json(document).endswith(b"}\n")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{",
        b'{"a": 1,}',
        b"{'a': 1}",
        b'{"a": 1} {}',
        b'{"a": 1, "a": 1}',
        b'{"x": {"a": 1, "a": 2}}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\xff"}',
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        b'{"a": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"a": "\x01"}',
        b"[" * 100_000,
        b'{"a":' * 50_000,
    ],
    ids=lambda content: repr(content[:24]),
)
def test_what_is_no_strict_json_object_is_refused(content):
    """Anything but one UTF-8 JSON object with unique keys, finite numbers and whole characters is refused."""
    with pytest.raises(DocumentError):
        parse(content, limit=1_000_000)


@given(st.binary(max_size=40) | st.text('{}[]",:\\ud8019ea.-NI ', max_size=30).map(str.encode))
@settings(deadline=None, max_examples=300)
def test_whatever_is_accepted_can_be_printed(content):
    """Parsing raises nothing but `DocumentError`, and what it accepts can be written and shown."""
    try:
        document = parse(content)
    except DocumentError:
        return

    assert parse(canonical_json(document)) == document
    assert printable(document).isprintable()


def test_depth_is_bounded():
    """A document is read down to the deepest level that is allowed, and not one level further."""
    assert parse(nested(MAX_DEPTH))

    with pytest.raises(DocumentError, match="deeper"):
        parse(nested(MAX_DEPTH + 1))


NESTED = st.recursive(
    st.integers() | st.just({}) | st.just([]),
    lambda inner: st.lists(inner, min_size=1, max_size=2) | st.dictionaries(st.just("x"), inner, min_size=1),
    max_leaves=4,
)


@given(NESTED, st.integers(0, MAX_DEPTH + 1), st.sampled_from(["list", "dict", "both"]))
@settings(deadline=None)
def test_depth_is_that_of_the_deepest_value(value, levels, kind):
    """A document is refused exactly if one of its values, be it empty or a number, lies below the deepest level."""
    for level in range(levels):
        value = [value, 0] if kind == "list" or (kind == "both" and level % 2) else {"x": value, "y": 0}
    document = {"a": value}

    assert is_refused(document) == (depth(document) > MAX_DEPTH)


def is_refused(document) -> bool:
    try:
        check_depth(document, "the document", "hint")
    except DocumentError:
        return True
    return False


def depth(value) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, children), default=0)


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("digits", ["9", "10", "0123456789"])
def test_a_number_has_a_thousand_characters_at_most(sign, digits):
    """The bound is on the number as it is written, with its sign; digits in a string are text."""
    number = sign + "1" + digits * 1000
    fits, too_long = number[:1000], number[:1001]

    assert parse(f'{{"a": [{fits}], "b": "{too_long}"}}'.encode()) == {"a": [int(fits)], "b": too_long}
    with pytest.raises(DocumentError, match="has 1001 digits"):
        parse(f'{{"a": {too_long}}}'.encode())


@pytest.mark.parametrize("text", [r"\ud83d\ude00", r"\\ud800", r"\u0041", r"\n"])
def test_an_escape_that_is_text_is_read(text):
    """A whole surrogate pair is one character, and a backslash that is escaped begins no escape."""
    assert parse(f'{{"a": "{text}"}}'.encode()) == {"a": json.loads(f'"{text}"')}


@pytest.mark.parametrize("text", [r"\ud800", r"\uD800", r"\uDfFf", r"\ude00\ud83d", r"\\\ud800"])
def test_half_a_surrogate_pair_is_refused(text):
    """Half a pair is no text, however it is written, in a key as in a value."""
    for content in (f'{{"a": "{text}"}}', f'{{"{text}": 1}}'):
        with pytest.raises(DocumentError, match="surrogates"):
            parse(content.encode())


def test_digits_are_bounded_whoever_unbounded_them():
    """A number of a megabyte is refused at once, also where Python's own limit, which is the process's, is off."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        with pytest.raises(DocumentError, match="1000000 digits"):
            parse(b'{"a": ' + b"9" * 1_000_000 + b"}", limit=2_000_000)
    finally:
        sys.set_int_max_str_digits(before)

    assert parse(b'{"a": ' + b"9" * 1000 + b"}")["a"] == 10**1000 - 1


def test_size_is_bounded():
    """More bytes than the limit are refused, whatever they are."""
    assert parse(b"{}", limit=2) == {}

    with pytest.raises(DocumentError, match="at most 1"):
        parse(b"{}", limit=1)


def test_a_key_that_stands_twice_is_found_in_linear_time():
    """Many keys with a duplicate at the end do not keep the parser busy: four times the keys, four times as long.

    The quadratic search takes sixteen times as long.
    """
    small, large = (_seconds_to_refuse(count) for count in (5_000, 20_000))

    assert large < 9 * small + 0.05


def _seconds_to_refuse(count: int) -> float:
    keys = [*range(count), count - 1]
    content = ("{" + ",".join(f'"{key}":0' for key in keys) + "}").encode()
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        with pytest.raises(DocumentError, match="twice"):
            parse(content, limit=len(content))
        best = min(best, time.perf_counter() - start)
    return best


@pytest.mark.parametrize(
    "value", ["\x1b[2J", "\u202eabc", "\x00", "\x7f", "\ud800", "\n", {"\x1b": ["\x9b"]}], ids=repr
)
def test_printable_moves_no_cursor(value):
    """Control and direction characters of a document are escaped before they reach a terminal."""
    shown = printable(value)

    assert shown.isascii()
    assert shown.isprintable()


def test_printable_is_short():
    """A long value is cut off, visibly."""
    shown = printable("x" * 5000)

    assert len(shown) < 130
    assert shown.endswith("…`")


@pytest.mark.parametrize("found", [True, False])
def test_a_boolean_is_no_number(found):
    """JSON's true is not the integer 1."""
    fields = Fields({"r": found})

    with pytest.raises(DocumentError, match="expected an integer"):
        fields.integer("r", low=0, high=9)


def test_the_context_is_the_path_of_the_value():
    """An error deep inside names the whole path."""
    outer = Fields(json.loads('{"files": [{}, {"size": -1}]}'))

    with pytest.raises(DocumentError) as caught:
        outer.objects("files")[1].integer("size", low=0, high=9)

    assert caught.value.context == "files[1].size"
    assert "`files[1].size`" in str(caught.value)
