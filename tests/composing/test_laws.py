"""What each rule promises, in each space: every cell of the table is tested, that it holds or that it does not."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_adapters import numbers, random_factors

from lora_hub.composing.factors import Factors
from lora_hub.composing.merging import Deltas, Method, merge
from lora_hub.composing.rank import Rank
from lora_hub.composing.rules import RULES
from lora_hub.rule import Law, Rule

DOCS = Path(__file__).parents[2] / "docs" / "compose.md"
CELLS = [
    pytest.param(rule, space, law, id=f"{rule.name} {space} {law}")
    for rule in RULES
    for space in rule.spaces
    for law in Law
]
TOLERANCE = 1e-10


def merged(rule: Rule, space: str, deltas: list[Factors], weights: list[float]) -> torch.Tensor:
    """Return the delta that *rule* makes, where it drops nothing."""
    given = {"density": 1.0} if "density" in rule.parameters else {}
    shape = deltas[0].shape
    method = Method(rule=rule, settings=rule.settings(given), space=space, rank=Rank("number", min(shape)), seed=0)
    digests = [str(hash(tuple(delta.B.flatten().tolist()))) for delta in deltas]
    found = merge(Deltas(path="q", factors=deltas, weights=weights, digests=digests), method, shape)
    return found.factors.B @ found.factors.A


def rewritten(delta: Factors, seed: int) -> Factors:
    """Return other factors of the same delta: B G and G⁻¹ A."""
    gauge = numbers(seed, delta.r, delta.r) + 3 * torch.eye(delta.r, dtype=torch.float64)
    return Factors(delta.B @ gauge, torch.linalg.solve(gauge, delta.A))


def broken_by(rule: Rule, space: str, law: Law, deltas: list[Factors], weights: list[float]) -> float:
    """Return by how much *rule* breaks *law* with these *deltas*, relative to their size."""
    one, whole = deltas[0], deltas[0].B @ deltas[0].A
    match law:
        case Law.IDENTITY:
            found, expected = merged(rule, space, [one], [1.0]), whole
        case Law.AVERAGE:
            found, expected = merged(rule, space, [one, one], [0.5, 0.5]), whole
        case Law.CANCEL:
            found, expected = merged(rule, space, [one, one], [1.0, -1.0]), 0 * whole
        case Law.ORDER:
            found = merged(rule, space, deltas[::-1], weights[::-1])
            expected = merged(rule, space, deltas, weights)
        case Law.GAUGE:
            found = merged(rule, space, [rewritten(delta, i) for i, delta in enumerate(deltas)], weights)
            expected = merged(rule, space, deltas, weights)
    return ((found - expected).norm() / whole.norm()).item()


@st.composite
def cases(draw):
    """Two to four deltas of one shape, of different ranks, with weights of either sign."""
    shape = draw(st.tuples(st.integers(2, 9), st.integers(2, 9)))
    ranks = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    seed = draw(st.integers(0, 10_000))
    weights = draw(st.lists(st.floats(0.1, 2) | st.floats(-2, -0.1), min_size=len(ranks), max_size=len(ranks)))
    return [random_factors(seed + 100 * i, shape, r) for i, r in enumerate(ranks)], weights


@pytest.mark.parametrize("examples", [8, pytest.param(100, marks=pytest.mark.full)])
@pytest.mark.parametrize(("rule", "space", "law"), [cell for cell in CELLS if cell.values[2] in cell.values[0].laws])
def test_rule_keeps_the_law(rule, space, law, examples):
    """A law that a rule claims holds for deltas of all shapes, ranks and weights."""

    @settings(max_examples=examples, deadline=None, derandomize=True)
    @given(cases())
    def holds(case):
        assert broken_by(rule, space, law, *case) < TOLERANCE

    holds()


@pytest.mark.parametrize(
    ("rule", "space", "law"), [cell for cell in CELLS if cell.values[2] not in cell.values[0].laws]
)
def test_rule_breaks_the_law_that_it_does_not_claim(rule, space, law):
    """A law that a rule does not claim is really broken: the table says neither too much nor too little."""
    deltas = [random_factors(seed, (8, 7), 3) for seed in (1, 2)]

    assert broken_by(rule, space, law, deltas, [0.7, 0.4]) > 0.05


def test_table_in_the_guide_is_what_the_rules_say():
    """The guide's table of laws has a row for each rule, with the laws that the rule declares."""
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| rule | identity"))
    laws = [Law(name.strip()) for name in lines[start].split("|")[2:-1]]
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in lines[start + 2 :][: len(RULES)]]
    table = {row[0].strip("`"): {law for law, cell in zip(laws, row[1:], strict=True) if cell == "yes"} for row in rows}

    assert table == {rule.name: set(rule.laws) for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_every_rule_says_where_it_comes_from(rule):
    """A rule cites its paper and is described in the guide."""
    assert re.search(r"arXiv:\d{4}\.\d{5}", rule.paper)
    assert f"`{rule.name}`" in DOCS.read_text(encoding="utf-8")
    assert re.search(r"arXiv:\d{4}\.\d{5}", rule.paper)[0] in DOCS.read_text(encoding="utf-8")
