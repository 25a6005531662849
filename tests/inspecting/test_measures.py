"""What is computed from factors is what dense linear algebra computes from the product."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inspected import QUERY, close, dense, dense_cosine, draw, inspect, module, spaces

from lora_hub.errors import MalformedError
from lora_hub.inspecting.relations import COPY

PATH = QUERY.format(0)
DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@st.composite
def shapes(draw):
    """Draw out, in, and the ranks and dtypes of two adapters; a rank may exceed both sides."""
    size = st.integers(1, 9)
    return draw(size), draw(size), draw(size), draw(size), draw(st.sampled_from(DTYPES)), draw(st.integers(0, 999))


def two(drawn):
    out, features, r, r_other, dtype, seed = drawn
    one = draw(out, r, seed=seed, dtype=dtype), draw(r, features, seed=seed + 1, dtype=dtype)
    return one, (draw(out, r_other, seed=seed + 2), draw(r_other, features, seed=seed + 3))


@settings(max_examples=60, deadline=None)
@given(shapes())
def test_a_spectrum_is_that_of_the_product(drawn):
    """Singular values, and what follows from them, are those of B A."""
    (B, A), _ = two(drawn)
    (found,) = inspect({PATH: (B, A)}).adapters[0].modules
    S = torch.linalg.svdvals(dense(B, A))
    rank = int(torch.linalg.matrix_rank(dense(B, A), rtol=1e-12))
    p = (S**2 / (S**2).sum())[:rank]

    assert found.numerical_rank == rank
    assert close(found.singular_values, S[:rank].tolist())
    assert close(found.norm, S.norm().item())
    assert close(found.spectral_norm, S[0].item())
    assert close(found.stable_rank, ((S**2).sum() / S[0] ** 2).item())
    assert close(found.effective_rank, math.exp(-(p * p.log()).sum().item()))


@settings(max_examples=60, deadline=None)
@given(shapes())
def test_a_pair_is_that_of_the_products(drawn):
    """Cosine, angles, overlap and shares of energy are those of the two dense deltas."""
    one, other = two(drawn)
    inspection = inspect({PATH: one}, {PATH: other})
    (pair,) = inspection.shared[0].pairs
    D, D_other = dense(*one), dense(*other)
    ranks = [adapter.modules[0].numerical_rank for adapter in inspection.adapters]
    bases = zip(spaces(D, ranks[0]), spaces(D_other, ranks[1]), strict=True)

    assert close(pair.cosine, dense_cosine(D, D_other))
    for found, (Q, Q_other), X, X_other in zip(
        (pair.outputs, pair.inputs), bases, (D, D.T), (D_other, D_other.T), strict=True
    ):
        assert close(found.cosines, torch.linalg.svdvals(Q.T @ Q_other).tolist())
        assert close(found.shared, ((Q.T @ Q_other) ** 2).sum().item() / min(ranks))
        assert close(found.one_in_other, ((Q_other.T @ X).norm() / X.norm()).item() ** 2)
        assert close(found.other_in_one, ((Q.T @ X_other).norm() / X_other.norm()).item() ** 2)
        assert close(found.chance, max(ranks) / len(X))


@settings(max_examples=40, deadline=None)
@given(shapes())
def test_interference_is_that_of_the_sum(drawn):
    """The energy of the dense sum, over the energies of its parts."""
    one, other = two(drawn)
    inspection = inspect({PATH: one}, {PATH: other})
    D, D_other = dense(*one), dense(*other)
    expected = ((D + D_other).norm() ** 2 / (D.norm() ** 2 + D_other.norm() ** 2)).item()

    assert close(inspection.shared[0].interference, expected)
    assert close(inspection.interference, expected)


def rewritten(B, A, seed):
    """Return other factors of the same delta."""
    G = torch.eye(len(A), dtype=torch.float64) + 0.3 * draw(len(A), len(A), seed=seed)
    return B @ G, torch.linalg.solve(G, A)


@pytest.mark.parametrize("seed", range(4))
def test_only_the_product_counts(seed):
    """Another pair of factors with the same product has the same findings, but for which ranks are zero in the file."""
    one, other = module(20, 4, 15, seed=seed), module(20, 3, 15, seed=seed + 50)
    before = inspect({PATH: one}, {PATH: other})
    after = inspect({PATH: rewritten(*one, seed)}, {PATH: rewritten(*other, seed + 1)})
    (pair,), (again,) = before.pairs, after.pairs

    for one_adapter, same in zip(before.adapters, after.adapters, strict=True):
        assert close(one_adapter.modules[0].singular_values, same.modules[0].singular_values)
    assert close(pair.cosine, again.cosine)
    for side in ("outputs", "inputs"):
        for name in ("shared", "chance", "one_in_other", "other_in_one"):
            assert close(getattr(getattr(pair, side), name), getattr(getattr(again, side), name))
    assert close(before.interference, after.interference)
    assert before.conflict.conflicting == after.conflict.conflicting
    assert close(before.conflict.lost_share, after.conflict.lost_share)


def test_what_cancels_inside_a_delta_is_no_rank():
    """Two ranks that undo each other are a zero delta, of rank 0, and no noise is taken for signs."""
    b, a = draw(9, 1), draw(1, 7, seed=1)
    third = torch.cat([b / 3, b / 3, -b * (2 / 3)], dim=1), a.repeat(3, 1)
    inspection = inspect({PATH: third}, {PATH: module(9, 2, 7)})
    (found,) = inspection.adapters[0].modules

    assert (found.numerical_rank, found.norm, found.stable_rank, found.effective_rank) == (0, 0, 0, 0)
    assert inspection.conflict.conflicting == 0
    assert inspection.pairs[0].cosine == 0


def test_dead_ranks_are_counted():
    """A zero column of B and a zero row of A are dead ranks, a rank that is both counts once."""
    B, A = module(8, 5, 6)
    B[:, 1] = B[:, 3] = 0
    A[3] = A[4] = 0
    adapter = inspect({PATH: (B, A)}).adapters[0]

    assert (adapter.dead, adapter.wasted) == (3, 3)
    assert adapter.modules[0].numerical_rank == 2


def test_a_repeated_rank_is_wasted_and_not_dead():
    """A direction that is stored twice wastes a rank, although nothing in the file is zero."""
    B, A = module(8, 2, 6)
    adapter = inspect({PATH: (B.repeat(1, 2), A.repeat(2, 1))}).adapters[0]

    assert (adapter.dead, adapter.wasted) == (0, 2)


@pytest.mark.parametrize("size", [1e-40, 1.0, 1e40])
def test_no_size_is_too_small_or_too_large(size):
    """Cosines and ranks do not depend on the size of the numbers."""
    B, A = module()
    one, other = inspect({PATH: (B * size, A)}, {PATH: module(seed=3)}), inspect({PATH: (B, A)}, {PATH: module(seed=3)})

    assert close(one.pairs[0].cosine, other.pairs[0].cosine)
    assert close(one.adapters[0].modules[0].effective_rank, other.adapters[0].modules[0].effective_rank)


@pytest.mark.parametrize(("size", "other_size"), [(1e60, 1e60), (1e160, 1e160), (1e300, 1e300), (1e300, 1e-300)])
def test_what_overflows_is_refused(size, other_size):
    """Numbers whose product is no number any more are refused, not reported as infinite."""
    B, A = module()
    with pytest.raises(MalformedError) as caught:
        inspect({PATH: (B * size, A * other_size)})

    assert PATH in caught.value.message


def test_copies_in_bfloat16_are_found():
    """A copy that was rounded to bfloat16 and scaled is found with its factor; a stranger is not."""
    B, A = module(64, 4, 48)
    found = inspect({PATH: (B, A)}, {PATH: ((-2 * B).bfloat16(), A.bfloat16())}, {PATH: module(64, 4, 48, seed=9)})
    (copy,) = found.copies

    assert (copy.one, copy.other) == (0, 1)
    assert -1 <= copy.cosine <= -COPY
    assert close(copy.scale, -2, within=1e-2)
