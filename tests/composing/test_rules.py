"""Each rule against its formula, written once more for whole matrices, entry by entry; what draws is unbiased."""

import dataclasses

import pytest
import torch
from made_adapters import assert_close, random_factors

from lora_hub.composing.factors import Factors
from lora_hub.composing.merging import Deltas, Method, merge
from lora_hub.composing.rank import Rank
from lora_hub.composing.rules import RULES, della
from lora_hub.composing.spaces import ProjectedTasks, Space, mask_key
from lora_hub.errors import UsageError

SHAPE = (7, 5)
WEIGHTS = [0.5, -0.3, 0.8]
BY_NAME = {rule.name: rule for rule in RULES}
ENTRYWISE = [rule for rule in RULES if "full" in rule.spaces]


def deltas(n: int = 3) -> list[Factors]:
    return [random_factors(seed, SHAPE, 2 + seed % 2) for seed in range(n)]


def merged(name: str, space: str, **given: float) -> torch.Tensor:
    """Return what the rule *name* makes of three deltas, as a matrix."""
    rule = BY_NAME[name]
    method = Method(rule=rule, settings=rule.settings(given), space=space, rank=Rank("number", 5), seed=3)
    found = merge(Deltas(path="q", factors=deltas(), weights=WEIGHTS, digests=["a", "b", "c"]), method, SHAPE)
    return found.factors.B @ found.factors.A


def whole() -> list[torch.Tensor]:
    return [delta.B @ delta.A for delta in deltas()]


def top(matrix: torch.Tensor, share: float, without: int = 0) -> torch.Tensor:
    """Keep the *share* of entries that are largest, but not the first *without* of them."""
    order = matrix.abs().flatten().argsort(descending=True)[without:][: round(share * matrix.numel())]
    kept = torch.zeros(matrix.numel(), dtype=matrix.dtype)
    kept[order] = matrix.flatten()[order]
    return kept.view_as(matrix)


def elect(matrices: list[torch.Tensor], weights: list[float]) -> torch.Tensor:
    """The weighted mean of those that agree with the weighted sum, one entry after the other."""
    result = torch.zeros(SHAPE, dtype=torch.float64)
    for i in range(SHAPE[0]):
        for j in range(SHAPE[1]):
            votes = [(w * m[i, j].item(), abs(w)) for m, w in zip(matrices, weights, strict=True)]
            total = sum(vote for vote, _ in votes)
            agreeing = [(vote, size) for vote, size in votes if vote * total > 0]
            if agreeing:
                result[i, j] = sum(vote for vote, _ in agreeing) / sum(size for _, size in agreeing)
    return result


def weighted_sum(matrices: list[torch.Tensor], weights: list[float] = WEIGHTS) -> torch.Tensor:
    return sum((w * m for m, w in zip(matrices, weights, strict=True)), torch.zeros(SHAPE, dtype=torch.float64))


def masks(density: float) -> list[torch.Tensor]:
    """What the rules draw for each of the three adapters."""
    tasks = ProjectedTasks(deltas=deltas(), numbers=WEIGHTS, keys=[mask_key(3, d, "q") for d in "abc"])
    (block,) = tasks.blocks()
    return list(tasks.draws(block) < density)


def test_ties_is_trim_elect_and_mean():
    """TIES: weights before the election, and the divisor is what those who agree weigh."""
    expected = 1.5 * elect([top(m, 0.4) for m in whole()], WEIGHTS)

    assert_close(merged("ties", "full", density=0.4, scale=1.5), expected, 1e-10)


def test_magnitude_sums_what_is_large():
    """Magnitude pruning: the largest of each, weighted and summed."""
    assert_close(merged("magnitude", "full", density=0.4), weighted_sum([top(m, 0.4) for m in whole()]), 1e-10)


def test_breadcrumbs_drops_outliers_and_crumbs():
    """Breadcrumbs: without the two largest of 35, then the largest half."""
    expected = weighted_sum([top(m, 0.5, without=2) for m in whole()])

    assert_close(merged("breadcrumbs", "full", density=0.5, gamma=0.06), expected, 1e-10)


def test_dare_rescales_what_survives():
    """DARE: survivors are divided by the density."""
    expected = weighted_sum([m * mask / 0.3 for m, mask in zip(whole(), masks(0.3), strict=True)])

    assert_close(merged("dare", "full", density=0.3), expected, 1e-10)


def test_dare_ties_elects_among_survivors():
    """DARE-TIES: the mask first, then the election."""
    expected = elect([m * mask / 0.3 for m, mask in zip(whole(), masks(0.3), strict=True)], WEIGHTS)

    assert_close(merged("dare-ties", "full", density=0.3), expected, 1e-10)


def test_della_keeps_by_rank_in_the_row():
    """DELLA: the probability rises with the rank in the row, and each survivor is divided by its own."""
    survivors = []
    for m, draws in zip(whole(), _draws(), strict=True):
        keep = torch.empty(SHAPE, dtype=torch.float64)
        for i, row in enumerate(m):
            for rank, j in enumerate(row.abs().argsort().tolist()):
                keep[i, j] = 0.4 - 0.2 + 0.4 * rank / (SHAPE[1] - 1)
        survivors.append(torch.where(draws < keep, m / keep, 0.0))

    assert_close(merged("della", "full", density=0.4, epsilon=0.2), elect(survivors, WEIGHTS), 1e-10)


def _draws() -> list[torch.Tensor]:
    tasks = ProjectedTasks(deltas=deltas(), numbers=WEIGHTS, keys=[mask_key(3, d, "q") for d in "abc"])
    return list(tasks.draws(next(tasks.blocks())))


def test_sce_weighs_by_the_squares_of_what_varies():
    """SCE: entries of large variance, weights from their squares, then the election."""
    variance = torch.stack(whole()).var(dim=0, correction=0)
    selected = [m * (top(variance, 0.4) > 0) for m in whole()]
    squares = [m.square().sum().item() for m in selected]
    weights = [w * s / sum(squares) for w, s in zip(WEIGHTS, squares, strict=True)]

    assert_close(merged("sce", "full", density=0.4), elect(selected, weights), 1e-10)


def test_iso_levels_the_spectrum_of_the_sum():
    """Iso-C: the mean is that over the numerical rank, not over min(out, in)."""
    U, S, Vh = torch.linalg.svd(weighted_sum(whole()), full_matrices=False)
    rank = int((S > 1e-12).sum())

    assert_close(merged("iso", "core"), S[:rank].mean() * U[:, :rank] @ Vh[:rank], 1e-9)


def test_tsv_makes_the_vectors_orthogonal():
    """TSV-M on whole matrices: each adapter's strongest triplets, and orthonormal vectors nearest to all of them."""
    triplets = []
    for matrix, factors in zip(whole()[:2], deltas()[:2], strict=True):
        U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
        r = round(factors.r / 2)
        triplets.append((U[:, :r], S[:r], Vh[:r]))
    sizes = torch.cat([S * w for (_, S, _), w in zip(triplets, WEIGHTS, strict=False)])
    sides = [torch.linalg.svd(torch.cat([t[side] for t in triplets], dim=dim), full_matrices=False)
             for side, dim in ((0, 1), (2, 0))]  # fmt: skip
    left, right = (U @ Vh for U, _, Vh in sides)
    rule = BY_NAME["tsv"]
    method = Method(rule=rule, settings=rule.settings({}), space="core", rank=Rank("exact"), seed=0)
    found = merge(Deltas(path="q", factors=deltas(2), weights=WEIGHTS[:2], digests=["a", "b"]), method, SHAPE)

    assert_close(found.factors.B @ found.factors.A, left * sizes @ right, 1e-9)


@pytest.mark.parametrize("space", ["core", "knots", "full"])
def test_linear_by_entries_is_linear_by_factors(space):
    """The sum that is exact by factors is the same in every space: bases lose nothing of a delta."""
    rule = dataclasses.replace(BY_NAME["linear"], is_linear=False)
    method = Method(rule=rule, settings={}, space=space, rank=Rank("number", 5), seed=0)
    found = merge(Deltas(path="q", factors=deltas(), weights=WEIGHTS, digests=["a", "b", "c"]), method, SHAPE)

    assert_close(found.factors.B @ found.factors.A, weighted_sum(whole()), 1e-12)


@pytest.mark.parametrize("name", ["ties", "magnitude", "sce"])
def test_knots_is_the_published_one(name):
    """Acting on S Vᵀ of the naive decomposition of [D₁ … Dₙ] gives what acting on projected factors gives."""
    U, S, Vh = torch.linalg.svd(torch.cat(whole(), dim=1), full_matrices=False)
    coordinates = [S[:, None] * part for part in Vh.split(SHAPE[1], dim=1)]
    rule = BY_NAME[name]
    tasks = ProjectedTasks(
        deltas=[Factors(torch.eye(len(S), dtype=torch.float64), m) for m in coordinates],
        numbers=WEIGHTS,
        keys=[0, 1, 2],
    )
    (block,) = tasks.blocks()
    expected = U @ rule.merge(tasks, rule.settings({"density": 0.3}))(block)

    assert_close(merged(name, "knots", density=0.3), expected, 1e-9)


@pytest.mark.parametrize("rule", ENTRYWISE, ids=lambda rule: rule.name)
def test_size_of_blocks_does_not_matter(rule):
    """One row at a time or all at once: thresholds, masks and sums are the same."""
    keys = [mask_key(0, digest, "q") for digest in "abc"]
    whole = ProjectedTasks(deltas=deltas(), numbers=WEIGHTS, keys=keys)
    rows = ProjectedTasks(deltas=deltas(), numbers=WEIGHTS, keys=keys, block_bytes=1)
    given = rule.settings({"density": 0.4} if "density" in rule.parameters else {})
    found = [torch.cat([merge_block(block) for block in tasks.blocks()])
             for tasks in (whole, rows) for merge_block in [rule.merge(tasks, given)]]  # fmt: skip

    assert len(list(rows.blocks())) == SHAPE[0]
    assert_close(found[1], found[0], 1e-14)


@pytest.mark.parametrize(("name", "given"), [("dare", {"density": 0.2}), ("della", {"density": 0.4, "epsilon": 0.3})])
def test_what_is_drawn_is_unbiased(name, given):
    """Over many draws an entry's mean is the entry: large or small, kept often or seldom."""
    rows = 40_000
    row = torch.tensor([[-3.0, 0.1, 2.0, 0.5, -1.0]], dtype=torch.float64)
    tasks = ProjectedTasks(deltas=[Factors(torch.ones(rows, 1, dtype=torch.float64), row)], numbers=[1.0], keys=[7])
    rule = BY_NAME[name]
    merge_block = rule.merge(tasks, rule.settings(given))
    drawn = torch.cat([merge_block(block) for block in tasks.blocks()])
    error = (drawn.mean(dim=0) - row[0]).abs() / (drawn.std(dim=0) / rows**0.5)

    assert error.max() < 5  # standard errors
    assert (drawn == 0).any()


def test_smallest_of_a_row_is_kept_least():
    """DELLA's probabilities run from density - epsilon to density + epsilon; a row of one has the density."""
    keep = della.probabilities(torch.tensor([[[3.0, -1.0, 2.0], [0.0, 5.0, 5.0]]]), 0.5, 0.2)

    assert_close(keep[0], torch.tensor([[0.7, 0.3, 0.5], [0.3, 0.5, 0.7]]), 1e-6)
    assert della.probabilities(torch.ones(1, 2, 1), 0.5, 0.2).unique().tolist() == [0.5]


@pytest.mark.parametrize("name", ["dare", "dare-ties", "della"])
def test_seed_and_adapter_decide_what_is_drawn(name):
    """Another seed draws other masks; the same adapter draws the same mask, so a - a is 0 at any density."""
    rule = BY_NAME[name]

    def draw(seed: int, digests: list[str], weights: list[float]) -> torch.Tensor:
        method = Method(rule=rule, settings=rule.settings({}), space="full", rank=Rank("number", 5), seed=seed)
        same = Deltas(path="q", factors=[deltas()[0]] * len(digests), weights=weights, digests=digests)
        found = merge(same, method, SHAPE)
        return found.factors.B @ found.factors.A

    assert not torch.equal(draw(0, ["a"], [1.0]), draw(1, ["a"], [1.0]))
    assert torch.equal(draw(0, ["a"], [1.0]), draw(0, ["a"], [1.0]))
    assert draw(0, ["a", "a"], [1.0, -1.0]).norm() == 0
    assert draw(0, ["a", "b"], [1.0, -1.0]).norm() > 0


def test_near_even_votes_elect_nobody():
    """What float64 leaves where two deltas cancel is no majority: the result is 0, not one of the two."""
    one = deltas()[0]
    other = Factors(one.B * (1 + 1e-13), one.A)
    rule = BY_NAME["ties"]
    method = Method(rule=rule, settings=rule.settings({"density": 1}), space="core", rank=Rank("exact"), seed=0)
    found = merge(Deltas(path="q", factors=[one, other], weights=[1.0, -1.0], digests=["a", "b"]), method, SHAPE)

    assert found.rank == 0


@pytest.mark.parametrize(
    ("name", "given", "reason"),
    [
        ("linear", {"density": 0.5}, "has no parameter `density`"),
        ("ties", {"density": 0}, "more than 0"),
        ("ties", {"density": float("nan")}, "more than 0"),
        ("ties", {"scale": float("inf")}, "at most 1e\\+06"),
        ("della", {"density": 0.2, "epsilon": 0.2}, "probabilities"),
        ("della", {"density": 0.9, "epsilon": 0.2}, "probabilities"),
        ("breadcrumbs", {"density": 0.9, "gamma": 0.2}, "more than 1 together"),
        ("tsv", {"density": 1.5}, "at most 1"),
    ],
)
def test_parameters_are_checked(name, given, reason):
    """What is unknown, out of range or contradicts another is refused, with a hint."""
    with pytest.raises(UsageError, match=reason) as caught:
        BY_NAME[name].settings(given)

    assert caught.value.hint


def test_rule_refuses_a_space_it_has_no_meaning_in():
    """TSV and Iso act on the core; a space that does not exist is named with those that do."""
    assert BY_NAME["ties"].space(None) == "core"
    with pytest.raises(UsageError, match="core only, not in `full`"):
        BY_NAME["tsv"].space("full")
    with pytest.raises(UsageError, match="no space") as caught:
        BY_NAME["ties"].space("knot")
    assert "did you mean `knots`" in caught.value.hint


def test_core_holds_every_delta_whole():
    """Projected and back, each delta is what it was, though the core is as small as their ranks."""
    found = deltas()
    space = Space.of("core", found)
    back = [space.left @ space.project(delta).B @ space.project(delta).A @ space.right.T for delta in found]

    assert (space.left.shape[1], space.right.shape[1]) == (sum(delta.r for delta in found), SHAPE[1])
    for one, delta in zip(back, found, strict=True):
        assert_close(one, delta.B @ delta.A, 1e-13)
