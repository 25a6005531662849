"""The search over weights: on losses whose minimum is known, with losses that are not numbers, and the same twice."""

import importlib
import math
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lora_hub
from lora_hub.errors import CompatibilityError, MissingExtraError, UsageError
from lora_hub.searching.result import FOUND, NONE

NAMES = ("one", "two", "three")


def bowl(minimum):
    """A convex loss whose minimum, 1.0, is at *minimum*."""
    return lambda weights: 1.0 + sum((weights[name] - at) ** 2 for name, at in minimum.items())


@pytest.mark.parametrize(
    "minimum",
    [{"one": 0.7, "two": -0.4, "three": 0.1}, {"one": 0.5, "two": 0.5}, {"one": -1.2}, {"one": 0.0, "two": 1}],
)
def test_a_known_minimum_is_found(minimum):
    """On a bowl, the weights come near its lowest point."""
    found = lora_hub.search_by_objective(bowl(minimum), tuple(minimum), budget=60, penalty=0.0)

    assert found.weights == pytest.approx(minimum, abs=0.05)
    assert found.at(FOUND).search == pytest.approx(1.0, abs=5e-3)


def test_the_penalty_draws_to_zero():
    """The minimum of w² - 2 w·m + c·|w| lies at m - c/2 for one weight."""
    found = lora_hub.search_by_objective(bowl({"one": 0.8}), ("one",), budget=60, penalty=0.4)

    assert found.weights["one"] == pytest.approx(0.6, abs=0.02)


def test_weights_stay_in_their_bounds():
    """A loss that falls without end is followed to 1.5 and no further."""
    found = lora_hub.search_by_objective(lambda w: -sum(w.values()), ("one", "two"), budget=30)

    assert all(abs(weight) <= 1.5 for step in found.trace for weight in step.weights.values())
    assert found.weights == pytest.approx({"one": 1.5, "two": 1.5}, abs=0.02)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-3, 3), min_size=1, max_size=4), st.integers(1, 12), st.integers(0, 2**31))
def test_the_best_of_what_was_tried_comes_back(minimum, budget, seed):
    """With any budget, of all mixtures that were tried, the one of the lowest objective comes back."""
    target = {f"a{i}": at for i, at in enumerate(minimum)}
    found = lora_hub.search_by_objective(bowl(target), tuple(target), budget=budget, seed=seed)
    penalty = 0.05 * sum(map(abs, found.weights.values())) / len(target)
    mixtures = [step.objective for step in found.trace if any(step.weights.values())]

    assert found.at(FOUND).search == bowl(target)(found.weights)
    assert found.at(FOUND).search + penalty == pytest.approx(min(mixtures))
    assert any(found.weights.values())


def test_the_trace_has_every_try():
    """Equal weights, none, each alone, and then the steps of the optimiser, the first of which is equal weights."""
    found = lora_hub.search_by_objective(bowl({"one": 1.0, "two": 0.0}), ("one", "two"), budget=3)

    assert [step.point for step in found.trace] == [
        "equal weights", "no adapter", "only one", "only two", "step 1", "step 2", "step 3",
    ]  # fmt: skip
    assert found.trace[0].weights == found.trace[4].weights == {"one": 0.5, "two": 0.5}
    assert [m.point for m in found.losses] == ["equal weights", "no adapter", "only one", "only two", "found"]


@pytest.mark.parametrize("budget", [1, 2, 7])
def test_the_budget_is_kept(budget):
    """The optimiser gets its steps, and no mixture is tried twice."""
    calls = []

    def objective(weights):
        calls.append(tuple(weights.values()))
        return bowl({"one": 0.3, "two": 0.3})(weights)

    found = lora_hub.search_by_objective(objective, ("one", "two"), budget=budget)

    assert len(found.trace) == budget + 4
    assert len(calls) == len(set(calls))


def test_same_seed_same_result():
    """Two runs give the same trace, number for number."""
    loss = bowl({"one": 0.7, "two": -0.4, "three": 0.1})
    runs = [lora_hub.search_by_objective(loss, NAMES, seed=7) for _ in range(2)]

    assert runs[0] == runs[1]


def test_progress_is_told_of_every_try():
    """The bar is as long as all tries together, and is filled."""
    shown = []

    def progress(items, label):
        assert label == "Searching"
        for item in items:
            shown.append((item, len(items)))
            yield item

    lora_hub.search_by_objective(bowl({"one": 1.0, "two": 0.0}), ("one", "two"), budget=5, progress=progress)

    assert shown == [(n, 9) for n in range(9)]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_mixture_without_a_loss_is_never_chosen(broken):
    """Where the loss is no number the search goes elsewhere, also if that is minus infinity."""

    def objective(weights):
        return broken if weights["two"] > 0.2 else bowl({"one": 0.5, "two": 0.4})(weights)

    found = lora_hub.search_by_objective(objective, ("one", "two"), budget=40)

    assert math.isfinite(found.at(FOUND).search)
    assert found.weights["two"] <= 0.2
    assert "only two has no finite loss" in " ".join(found.remarks())
    assert found.to_document()["trace"][0]["loss"] is None


def test_where_equal_weights_have_no_loss_the_search_starts_elsewhere():
    """Where nothing around the start has a loss no way out is seen; so it starts at the best adapter alone."""

    def objective(weights):
        return math.nan if weights["one"] > 0.2 else bowl({"one": -0.3, "two": 0.4})(weights)

    found = lora_hub.search_by_objective(objective, ("one", "two"), budget=40)

    assert found.trace[4].weights == {"one": 0.0, "two": 1.0}
    assert found.weights == pytest.approx({"one": -0.3, "two": 0.4}, abs=0.1)


def test_no_loss_at_all_is_an_error():
    """If no mixture has a loss, it says so, and what the bare base gives."""
    with pytest.raises(CompatibilityError, match=r"none of .* has a finite loss") as error:
        lora_hub.search_by_objective(lambda w: math.nan if any(w.values()) else 2.5, ("one", "two"), budget=3)

    assert "bare base is 2.5" in str(error.value)


def test_no_adapter_at_all_is_no_mixture():
    """Where every adapter harms, a mixture comes back all the same, and the remark says that none is better."""
    found = lora_hub.search_by_objective(lambda w: sum(map(abs, w.values())), ("one", "two"), budget=2)

    assert any(found.weights.values())
    assert "the loss of no adapter is no higher" in found.remarks()[0]


def test_a_hold_out_that_disagrees_is_said():
    """What the search fitted and the hold-out does not like is in the remarks."""
    found = lora_hub.search_by_objective(bowl({"one": 1.2}), ("one",), budget=20, holdout=bowl({"one": 0.0}))

    assert found.at(NONE).holdout == 1.0
    assert any("held out" in said and "no adapter" in said for said in found.remarks())


@pytest.mark.parametrize(
    ("names", "budget"), [((), 1), (("a", "a"), 1), (("a",), 0), (("a",), -1), (("a",), 10**9), (tuple("ab") * 200, 1)]
)
def test_a_call_that_makes_no_sense_is_refused(names, budget):
    """No names, a name twice, too many, and a budget out of bounds."""
    with pytest.raises(UsageError):
        lora_hub.search_by_objective(lambda _: 0.0, names, budget=budget)


def test_without_nevergrad_it_says_what_to_install(monkeypatch):
    """The optimiser is an extra; nothing has been computed before it is missed."""
    monkeypatch.setitem(sys.modules, "nevergrad", None)
    importlib.invalidate_caches()
    calls = []
    with pytest.raises(MissingExtraError, match=r"lora-hub\[search\]"):
        lora_hub.search_by_objective(calls.append, ("one",))

    assert calls == []


def test_an_error_of_the_loss_comes_through_and_leaves_no_thread():
    """Nevergrad runs its algorithm in a thread, which would keep the process alive."""
    before = threading.active_count()

    def objective(weights):
        if weights["one"] not in {0.0, 0.5, 1.0}:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        lora_hub.search_by_objective(objective, ("one", "two"))
    for thread in threading.enumerate()[before:]:
        thread.join(timeout=10)

    assert threading.active_count() <= before
