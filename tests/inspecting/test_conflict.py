"""Sign conflict, exact and sampled."""

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inspected import QUERY, close, dense, draw, inspect, module

from lora_hub.composing.factors import Factors
from lora_hub.inspecting.conflict import ENTRIES, MIN_ROWS, sampled_rows, sign_conflict

PATH = QUERY.format(0)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_conflict_is_that_of_the_dense_signs(count, out, features, seed):
    """In a small module every entry is looked at: rate and lost mass are those of the dense deltas."""
    modules = [module(out, 2, features, seed=seed + n) for n in range(count)]
    found = inspect(*({PATH: one} for one in modules)).conflict
    D = torch.stack([dense(*one) for one in modules])
    is_split = (D > 0).any(0) & (D < 0).any(0)
    is_loser = (D.sign() != D.sum(0).sign()) & (D != 0)

    assert (found.rows, found.of) == (out, out)
    assert close(found.rate, is_split.double().mean().item())
    assert close(found.lost_share, (D.abs()[is_loser].sum() / D.abs().sum()).item())


def test_what_only_one_adapter_changes_is_not_contested():
    """Rows that B of one adapter leaves alone, as slices of a fused projection do, count for nothing."""
    (B, A), (B_other, A_other) = module(), module(seed=1)
    B[4:] = 0
    B_other[:6] = 0
    conflict = inspect({PATH: (B, A)}, {PATH: (B_other, A_other)}).conflict

    assert (conflict.contested, conflict.rate, conflict.lost_share) == (0, 0, 0)


def test_an_adapter_does_not_contradict_itself():
    """The same adapter twice has no conflict, and its opposite has nothing else."""
    B, A = module()
    same, opposite = inspect({PATH: (B, A)}, {PATH: (B, A)}), inspect({PATH: (B, A)}, {PATH: (-B, A)})

    assert (same.conflict.rate, same.conflict.lost_share) == (0, 0)
    assert (opposite.conflict.rate, opposite.conflict.lost_share) == (1, 0.5)


def test_a_sample_estimates_the_whole():
    """A sample of the rows is near the exact figure, and says how many rows it had."""
    deltas = [Factors(draw(4096, 4, seed=n), draw(4, 2048, seed=n + 9)) for n in range(2)]
    found = sign_conflict(deltas, PATH)
    D, D_other = (delta.B @ delta.A for delta in deltas)

    assert (found.rows, found.of) == (ENTRIES // 2048, 4096)
    assert abs(found.rate - ((D * D_other) < 0).double().mean().item()) < 0.02


def test_rows_are_drawn_by_the_path():
    """The same module has the same rows in every run; another one has others."""
    assert sampled_rows(4096, 8192, PATH) == sampled_rows(4096, 8192, PATH)
    assert sampled_rows(4096, 8192, PATH) != sampled_rows(4096, 8192, QUERY.format(1))


@given(st.integers(1, 5000), st.integers(1, 2**20))
def test_rows_are_spread_over_the_module(out_features, in_features):
    """Rows are distinct and rising, at least 64 or all, and no run of rows is left out."""
    rows = sampled_rows(out_features, in_features, PATH)

    assert rows == sorted(set(rows))
    assert 0 <= rows[0] <= rows[-1] < out_features
    assert len(rows) >= min(out_features, MIN_ROWS)
    assert max(b - a for a, b in pairwise([-1, *rows, out_features])) <= 2 * out_features / len(rows) + 1
