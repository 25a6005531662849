"""SECURITY.md tells the truth: every test that it names exists, and every threat has one."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
ROWS = [line.split("|")[1:-1] for line in TEXT.splitlines() if re.match(r"\| \d+ \|", line)]


def test_every_threat_has_a_row():
    """The table has the 31 threats of the model and 6 of what is composed, merged and checked, in order."""
    assert [int(number) for number, *_ in ROWS] == list(range(1, 38))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[1].strip())
def test_every_row_names_tests_that_exist(row):
    """Each row names at least one test file or vector, and each is there."""
    named = [name.strip().replace("hostile/", "tests/vectors/v1/hostile/") for name in row[3].split(",")]

    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []
