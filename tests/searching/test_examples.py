"""The file of examples: what is read, and what is refused, with the line."""

import json

import pytest

from lora_hub.errors import DocumentError, MalformedError, NotFoundError, UsageError
from lora_hub.searching import examples as reading
from lora_hub.searching.examples import Completion, Labelled, parse_examples, read_examples, split

GOOD = {"prompt": "1 + 1 =", "completion": " 2"}
LABELLED = {"text": "fine", "label": 1}


def lines(*documents):
    return "\n".join(d if isinstance(d, str) else json.dumps(d) for d in documents).encode()


def test_completions_are_read_with_their_lines():
    """Empty lines are skipped, and counted."""
    found = parse_examples(lines(GOOD, "", "  ", {**GOOD, "prompt": ""}, ""), source="file")

    assert found == (
        Completion(line=1, prompt="1 + 1 =", completion=" 2"),
        Completion(line=4, prompt="", completion=" 2"),
    )


def test_labels_are_numbers_or_names():
    """Of a class, the number or the name stands in the file."""
    found = parse_examples(lines(LABELLED, {"text": "bad", "label": "negative"}), source="file")

    assert found == (Labelled(line=1, text="fine", label=1), Labelled(line=2, text="bad", label="negative"))


def test_windows_line_ends_are_no_part_of_an_example():
    """A carriage return before the end of a line is white space."""
    assert parse_examples(b'{"text": "a", "label": 0}\r\n', source="file")[0].text == "a"


DEFECTS = {
    "it is not JSON": ("{", "line 2 is not valid JSON"),
    "it is an array": ("[1]", "line 2 must be a JSON object"),
    "it is text": ('"a"', "line 2 must be a JSON object"),
    "a key stands twice": ('{"prompt": "a", "prompt": "b", "completion": "c"}', "stands twice"),
    "a key is unknown": ({**GOOD, "weight": 1}, "line 2.weight"),
    "there is no key": ({}, "line 2.text"),
    "the completion is missing": ({"prompt": "a"}, "line 2.completion"),
    "the completion is empty": ({"prompt": "a", "completion": ""}, "line 2.completion"),
    "the completion is null": ({"prompt": "a", "completion": None}, "line 2.completion"),
    "the prompt is a list": ({"prompt": ["a"], "completion": "b"}, "line 2.prompt"),
    "the prompt is missing": ({"completion": "b"}, "line 2.prompt"),
    "the label is missing": ({"text": "a"}, "line 2.label"),
    "the label is true": ({"text": "a", "label": True}, "line 2.label"),
    "the label is negative": ({"text": "a", "label": -1}, "line 2.label"),
    "the label is a fraction": ({"text": "a", "label": 0.5}, "line 2.label"),
    "the label is empty": ({"text": "a", "label": ""}, "line 2.label"),
    "the text is empty": ({"text": "", "label": 0}, "line 2.text"),
    "a number is NaN": ('{"text": "a", "label": NaN}', "line 2 is not valid JSON"),
    "it is half a surrogate pair": (r'{"prompt": "\ud800", "completion": "b"}', "line 2 is not valid JSON"),
    "it is of the other kind": (LABELLED, "line 2 is of another kind"),
}


@pytest.mark.parametrize("defect", sorted(DEFECTS))
def test_a_defect_is_refused_with_its_line(defect):
    """What is wrong in a line is refused, and file and line are named."""
    line, said = DEFECTS[defect]
    with pytest.raises(DocumentError) as error:
        parse_examples(lines(GOOD, line), source="my.jsonl")

    assert "`my.jsonl`" in str(error.value)
    assert said in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \n"])
def test_no_example_is_an_error(content):
    """A file without examples says nothing."""
    with pytest.raises(DocumentError, match="no example"):
        parse_examples(content, source="file")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\xef\xbb\xbf" + lines(GOOD)])
def test_what_is_not_utf8_is_an_error(content):
    """The file is UTF-8, without a byte order mark."""
    with pytest.raises(DocumentError, match="line 1"):
        parse_examples(content, source="file")


def test_sizes_are_bounded(monkeypatch, tmp_path):
    """A long file, a long line and many lines are refused before they are read whole or parsed."""
    path = tmp_path / "examples.jsonl"
    path.write_bytes(lines(*[GOOD] * 5))
    monkeypatch.setattr(reading, "MAX_EXAMPLES", 4)
    with pytest.raises(DocumentError, match="more than 4 examples"):
        read_examples(path)
    monkeypatch.setattr(reading, "MAX_LINE", 10)
    with pytest.raises(DocumentError, match="line 1 has 41 bytes"):
        read_examples(path)
    monkeypatch.setattr(reading, "MAX_FILE", 100)
    with pytest.raises(MalformedError, match="at most 100 are read"):
        read_examples(path)


def test_a_missing_file_is_not_found(tmp_path):
    """There must be a file."""
    with pytest.raises(NotFoundError):
        read_examples(tmp_path / "none.jsonl")


def of(count):
    return parse_examples(lines(*[{**GOOD, "prompt": str(number)} for number in range(count)]), source="file")


@pytest.mark.parametrize(
    ("count", "share", "held"), [(9, None, 0), (10, None, 2), (100, None, 20), (3, 0.01, 1), (10, 0.5, 5), (5, 0, 0)]
)
def test_the_share_is_held_out(count, share, held):
    """Each example is searched on or held out, in the order of the file."""
    kept, other = split(of(count), range(count)[::-1], holdout=share)

    assert len(other) == held
    assert sorted([*kept, *other], key=lambda e: e.line) == list(of(count))
    assert [e.line for e in other] == sorted(e.line for e in other)


@pytest.mark.parametrize("share", [1, 1.5, -0.1, float("nan"), 0.9])
def test_something_is_left_to_search_on(share):
    """A share that leaves no example, or is none, is refused."""
    with pytest.raises(UsageError, match="hold-out"):
        split(of(2), range(2), holdout=share)
