"""The benchmarks measure what they say: in turn, by medians, each case once; nothing here depends on how fast it is."""

import functools
import json
import math

import pytest
import torch

from benchmarks.figures import Figure, with_unit
from benchmarks.group import Group
from benchmarks.groups import GROUPS, host, merge
from benchmarks.measure import Way, interleave
from benchmarks.picture import svg
from benchmarks.report import markdown
from benchmarks.results import OtherConditionsError, Results
from benchmarks.run import run, select, write_reports

ABOUT = {
    "hardware": {"cpu": "A CPU", "cores": 2, "threads": 2, "system": "Linux x86_64"},
    "versions": {"python": "3.11", "peft": "0.21", "sources": "0123456789ab"},
    "rounds": 3,
}
DECODE = Figure(
    name="decode", samples={"base": [1, 5, 2], "ours": [2, 6, 3], "peft": [5, 9, 6]}, above_base=True, goal=0.33
)
WRONG = Figure(name="wrong outputs", samples={"ours": [0], "peft": [7]}, unit="", against=None, goal=0)


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        """Return what it shows."""
        return self.now

    def way(self, *seconds, log=None, name="", **options):
        """A way whose calls take *seconds*, one after the other."""
        durations = iter(seconds)

        def call():
            self.now += next(durations)
            if log is not None:
                log.append(name)

        return Way(call=call, **options)


@pytest.fixture
def results(tmp_path):
    return Results.open(tmp_path / "out" / "results.json", ABOUT, "2026-01-02")


@pytest.fixture
def groups():
    """Two groups of cases that say when they are run."""
    ran = []

    def case(name, figure):
        def measured(bench):
            ran.append(name)
            return [figure]

        return measured

    one = Group(name="forward", title="Forward", cases={"decode": case("decode", DECODE)})
    other = Group(name="threads", title="Threads", cases={"eager": case("eager", WRONG)})
    return (one, other), ran


def test_each_round_does_every_way_once():
    """One sample of each way per round, each time another first; the round before the first is not counted."""
    clock, log = Clock(), []
    ways = {name: clock.way(*[1] * 4, log=log, name=name) for name in "abc"}
    samples = interleave(ways, rounds=3, clock=clock)

    assert "".join(log) == "abcbcacababc"
    assert samples == {name: [1, 1, 1] for name in "abc"}


def test_sample_is_the_time_of_one():
    """A sample is divided by the calls, and by what each call does."""
    clock = Clock()
    samples = interleave({"a": clock.way(*[6] * 4, repeat=2, counts=3)}, rounds=1, clock=clock)

    assert samples == {"a": [2]}


def test_undoing_is_not_timed():
    """`undo` gets what the call returned, after each call, while the clock is not read."""
    clock, undone = Clock(), []

    def call():
        clock.now += 1
        return clock.now

    def undo(result):
        undone.append(result)
        clock.now += 100

    samples = interleave({"a": Way(call=call, undo=undo, repeat=2)}, rounds=1, clock=clock)

    assert samples == {"a": [1]}
    assert undone == [1, 102, 203, 304]


def test_device_is_waited_for_before_the_clock_is_read():
    """What the device still does at the end of a sample belongs to it."""
    clock = Clock()
    pending = []

    def synchronise():
        clock.now += sum(pending)
        pending.clear()

    way = Way(call=lambda: pending.append(5))

    assert interleave({"a": way}, rounds=2, clock=clock, synchronise=synchronise) == {"a": [5, 5]}


def test_ratio_is_of_medians_or_of_what_is_above_the_base_in_each_round():
    """A slow round, which hits all three alike, does not count in what is above the base."""
    whole = Figure(name="step", samples={"ours": [1, 9, 2], "peft": [4, 4, 40]})

    assert whole.found == 0.5
    assert DECODE.found == 0.25
    assert DECODE.is_met is True


def test_goal_without_a_peer_is_for_our_own_value():
    """A count is compared with its goal itself; without PEFT's figure, a ratio is none."""
    alone = Figure(name="attach, 200 there", samples={"ours": [1]}, goal=0.05)

    assert WRONG.is_met is True
    assert math.isnan(alone.found)
    assert alone.is_met is False


def test_counts_are_kept_exactly(results):
    """Times are written with four digits, numbers of elements and bytes with all."""
    results.add("a/b", [Figure(name="n", samples={"ours": [124439809]}, unit=""), DECODE], seconds=1)
    again = Results.open(results.path, ABOUT, "2026-01-03")

    assert again.figures["a/b"][0].samples == {"ours": [124439809]}
    assert again.figures == results.figures
    assert again.date == "2026-01-02"


def test_what_is_in_the_file_is_not_measured_again(results, groups):
    """A run goes on where the last one ended; --fresh starts over."""
    (forward, threads), ran = groups
    run(select(["forward"], (forward, threads)), results)
    again = Results.open(results.path, ABOUT, "2026-01-02")
    run(select([], (forward, threads)), again)

    assert ran == ["decode", "eager"]
    assert Results.open(results.path, ABOUT, "2026-01-02", fresh=True).figures == {}


def test_case_that_fails_stops_no_other(results, groups, capsys):
    """What fails is named, is not in the file, and is tried again by the next run."""

    def fails(bench):
        raise AssertionError("outputs differ")

    failed = run({"broken/case": fails} | select([], groups[0]), results)

    assert failed == ["broken/case"]
    assert list(results.figures) == ["forward/decode", "threads/eager"]
    assert "outputs differ" in capsys.readouterr().err


@pytest.mark.parametrize("part", ["hardware", "versions", "rounds"])
def test_figures_of_other_conditions_are_not_mixed(results, part):
    """Another machine, version or number of rounds: the file is refused."""
    results.add("a/b", [DECODE], seconds=1)

    with pytest.raises(OtherConditionsError, match="--fresh"):
        Results.open(results.path, ABOUT | {part: "other"}, "2026-01-02")


@pytest.mark.parametrize(
    ("patterns", "selected"),
    [
        ([], ["forward/decode", "threads/eager"]),
        (["forward"], ["forward/decode"]),
        (["eager"], ["threads/eager"]),
        (["thr*/e*"], ["threads/eager"]),
        (["*a*r*"], ["forward/decode", "threads/eager"]),
        (["nothing"], []),
    ],
)
def test_only_selects_groups_and_cases(groups, patterns, selected):
    """By the name of a group, of a case or of both, with * as in shells."""
    assert list(select(patterns, groups[0])) == selected


def test_every_group_has_a_name():
    """Names are unique, since results are kept by them, and so are the cases of a name."""
    names = [group.name for group in GROUPS]

    assert len(set(names)) == len(names) == len(GROUPS) == 14
    assert all(group.name and group.title and group.cases for group in GROUPS)
    assert not any("/" in name for group in GROUPS for name in (group.name, *group.cases))


def test_case_compares_and_measures_all_three(results, monkeypatch):
    """The host time of one projection: what PEFT computes, and a sample of each way in each round."""
    monkeypatch.setattr(host, "LOOP", 2)
    assert run(select(["host"]), results) == []
    (figure,) = results.figures["host/all"]

    assert {way: len(samples) for way, samples in figure.samples.items()} == {"base": 3, "ours": 3, "peft": 3}


def test_merging_gives_back_every_bit(results):
    """The count of changed weights sees what PEFT's cycles leave behind, and nothing of ours."""
    case = functools.partial(merge.merge, what="tiny", layers=1, hidden=64, dtype=torch.float32)

    assert run({"merge/tiny": case}, results) == []
    changed = results.figures["merge/tiny"][1]

    assert changed.samples["ours"] == [0]
    assert changed.samples["peft"][0] > 0


def test_table_shows_medians_ratio_and_goal(results, groups):
    """Each figure is a row of its group, whose last cell is the ratio; the goals say whether they are met."""
    run(select([], groups[0]), results)
    page = markdown(results, groups[0], "picture.svg")

    assert "| decode, above the base | 2.000 s | 3.000 s | 6.000 s | 0.25 |" in page
    assert "| decode, above the base | yes | 0.33 | 0.25 |" in page
    assert "| wrong outputs | 0 | 7 |  |" in page
    assert "| wrong outputs | yes | 0 | 0 |" in page
    assert "A CPU, 2 cores, 2 threads" in page


def test_picture_and_page_are_the_same_each_time(results, groups):
    """Same results, same bytes: no date, no random ids."""
    run(select([], groups[0]), results)
    once = [path.read_bytes() for path in write_reports(results, groups[0])]
    again = [path.read_bytes() for path in write_reports(Results.open(results.path, ABOUT, ""), groups[0])]

    assert once == again
    assert json.loads(once[0])["cases"].keys() == {"forward/decode", "threads/eager"}
    assert b"<dc:date>" not in once[2]


def test_picture_has_what_has_a_ratio_to_peft():
    """A count without a ratio has no place on the scale; a page without any ratio still has a picture."""
    faster = Figure(name="faster", samples={"base": [2], "ours": [1], "peft": [3]}, above_base=True)
    picture = svg([DECODE, WRONG, faster], "Against PEFT").decode()

    assert "decode, above the base" in picture
    assert "faster, above the base" in picture
    assert "wrong outputs" not in picture
    assert svg([WRONG], "Against PEFT")


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.0062901, "s", "6.290 ms"),
        (12.5e-6, "s", "12.50 us"),
        (497_800_000, "bytes", "497.8 MB"),
        (12, "bytes", "12 B"),
        (925171, "", "925,171"),
        (1.094, "", "1.09"),
        (0, "s", "0.000 us"),
    ],
)
def test_values_have_the_unit_that_suits_them(value, unit, shown):
    """Three digits at least, whatever the size."""
    assert with_unit(value, unit) == shown
