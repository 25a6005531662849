"""Thousands of changed documents: each is read or refused in our own words, and nothing that differs counts as signed.

What is changed how, and what must hold, is in the package `fuzz`, which also runs by itself: ``python -m fuzz``.
"""

import json

import pytest
from fuzz import specimens
from fuzz.__main__ import Tally, fuzz
from fuzz.formats import FORMATS, Format, ViolationError
from fuzz.mutations import JSON

FEW = 2_000
MANY = 20_000
COUNTS = [pytest.param(range(FEW), id="some"), pytest.param(range(FEW, MANY), id="many", marks=pytest.mark.full)]


@pytest.mark.parametrize("numbers", COUNTS)
@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_changed_document_is_read_or_refused(name, numbers):
    """Whatever a document becomes, the only errors are ours, with exit code 5 to 8, a hint and nothing unprintable."""
    format_ = FORMATS[name]
    accepted = [format_.is_accepted(format_.mutant(f"tests {number}")) for number in numbers]

    assert 0 < sum(accepted) < len(accepted) / 4  # changes are neither all noise nor all harmless


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_seed_makes_the_same_document_again(name):
    """The same seed makes the same document, and two seeds hardly ever do."""
    format_ = FORMATS[name]
    once, again = ([format_.mutant(f"tests {number}") for number in range(100)] for _ in range(2))

    assert once == again
    assert len(set(once)) > 60


def test_what_is_changed_is_sound():
    """Every specimen is accepted as it is by at least one of the formats that are made from it."""
    for format_ in FORMATS.values():
        assert format_.is_accepted(format_.seeds()[0])


def test_an_accepted_bundle_may_only_be_spelled_differently():
    """A bundle with other spaces, order and escapes is the same signature; that much is no forgery."""
    document = json.loads(specimens.version().bundle)

    assert FORMATS["bundle"].is_accepted(json.dumps(document, sort_keys=False).encode())


@pytest.mark.parametrize("error", [RecursionError(), OverflowError(), KeyError("digest"), ViolationError("accepted")])
def test_what_goes_wrong_is_kept(monkeypatch, tmp_path, capsys, error):
    """The endless run saves the first document of each error that must not come, and goes on."""

    def read(_content):
        raise error

    monkeypatch.setitem(FORMATS, "lock", Format(seeds=lambda: (b"{}",), mutation=JSON, read=read))
    tally = Tally()
    fuzz("lock", (f"tests {number}" for number in range(5)), tally, tmp_path / "findings")
    (kept,) = (tmp_path / "findings").iterdir()

    assert kept.name == "lock-tests-0"
    assert kept.read_bytes() == FORMATS["lock"].mutant("tests 0")
    assert (tally.documents, tally.accepted, len(tally.places)) == (5, 0, 1)
    assert type(error).__name__ in capsys.readouterr().out


KEY = specimens.Key(name="a", public=specimens.public_key(specimens.OWN)).to_toml()
FOUND = {
    "policy": {
        "a key of TOML with many parts": b"version" + b".a" * 1500 + b" = 1",
        "a table of TOML with many parts": b"version = 1\n[key" + b".a" * 1500 + b"]",
        "a moment before the first one": f"version = 1\n{KEY}not_before = 0001-01-01T00:00:00+23:59\n".encode(),
        "a moment after the last one": f"version = 1\n{KEY}not_after = 9999-12-31T23:59:59-23:59\n".encode(),
    }
}


@pytest.mark.parametrize(("name", "what"), [(name, what) for name, found in FOUND.items() for what in found])
def test_what_was_found_once_is_read_or_refused(name, what):
    """A document that once raised another error than ours never does again."""
    accepted = FORMATS[name].is_accepted(FOUND[name][what])

    assert isinstance(accepted, bool)
