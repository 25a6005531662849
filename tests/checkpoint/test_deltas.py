"""The arithmetic alone: one rounding, whatever the blocks and the threads are, over shapes as they come."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lora_hub.checkpoint.deltas import (
    Scratch,
    Sums,
    Term,
    add_rows,
    computing_dtype,
    round_once,
    rows_at_once,
    threads_to_spare,
)

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SEEDS = st.integers(0, 2**31)


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def terms_of(seed: int, out: int, inner: int, ranks: list[int], weight: torch.dtype) -> list[Term]:
    """Return deltas of these ranks for an ``[out, inner]`` weight, ready to be computed with."""
    terms = [Term(draw(seed + r, out, r), draw(seed - r, r, inner), 0.5 + r) for r in ranks]
    return [term.to(computing_dtype(weight, terms)) for term in terms]


def merged(weight: torch.Tensor, terms: list[Term], *, block: int, transposed: bool = False) -> tuple:
    """Return the merged weight, computed in blocks, and what was realised."""
    out, total, scratch = torch.empty_like(weight), Sums(), Scratch()
    for rows in rows_at_once(*weight.shape, block=block):
        total += add_rows(weight[rows], terms, rows, transposed=transposed, out=out[rows], scratch=scratch)
    return out, total


@given(
    out=st.integers(1, 700),
    inner=st.integers(1, 300),
    ranks=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    dtype=st.sampled_from(DTYPES),
    transposed=st.booleans(),
    block=st.integers(1, 100_000),
    seed=SEEDS,
)
@example(out=193, inner=64, ranks=[1], dtype=torch.float32, transposed=False, block=1, seed=0)
@example(out=512, inner=8, ranks=[33], dtype=torch.float32, transposed=True, block=1, seed=0)
@settings(max_examples=60, deadline=None)
def test_blocks_change_nothing(out, inner, ranks, dtype, transposed, block, seed):
    """Any block size gives the bits of the whole product, for weights that lie either way."""
    weight = draw(seed, *((inner, out) if transposed else (out, inner)), dtype=dtype)
    terms = terms_of(seed, out, inner, ranks, dtype)
    whole, sums = merged(weight, terms, block=2**40, transposed=transposed)
    cut, cut_sums = merged(weight, terms, block=block, transposed=transposed)

    assert torch.equal(whole, cut)
    assert (sums.gain, sums.error) == pytest.approx((cut_sums.gain, cut_sums.error), rel=1e-9)


@given(rows=st.integers(0, 5000), columns=st.integers(1, 200_000), block=st.integers(1, 2**22))
@settings(max_examples=200, deadline=None)
def test_the_slices_are_all_rows_in_order(rows, columns, block):
    """None is left out, none comes twice, and none is so short that a product would be added up in another order."""
    slices = list(rows_at_once(rows, columns, block=block))

    assert [row for part in slices for row in range(part.start, part.stop)] == list(range(rows))
    assert all(part.stop - part.start >= min(rows, 16) for part in slices)


def test_threads_change_nothing():
    """One thread and two give the same weights and the same sums."""
    weight = draw(0, 1100, 520, dtype=torch.bfloat16)
    terms = terms_of(1, 1100, 520, [16], torch.bfloat16)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(merged(weight, terms, block=1 << 17))
    finally:
        torch.set_num_threads(before)

    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_one_delta_is_added_as_peft_adds_it(dtype):
    """B A in float32, times the scaling, plus W in float32, rounded once."""
    weight, (term,) = draw(0, 300, 200, dtype=dtype), terms_of(1, 300, 200, [8], dtype)
    out, _ = merged(weight, [term], block=1 << 10)

    assert torch.equal(out, weight.clone().add_((term.B @ term.A) * term.factor))


def test_what_was_computed_with_is_left_as_it_was():
    """W and factors are views of what lies on disk and of a proven file."""
    weight, terms = draw(0, 100, 80), terms_of(1, 100, 80, [4], torch.float32)
    before = [weight.clone(), *(part.clone() for part in terms[0][:2])]
    merged(weight, terms, block=1)

    assert all(torch.equal(one, other) for one, other in zip(before, (weight, *terms[0][:2]), strict=True))


@given(st.lists(st.floats(width=64), min_size=1, max_size=50))
@example([65519.999999999, 65520.0, -65520.0, 1e300, -1e300, 1e-320, 2.0**-25, 2.0**-25 * (1 + 2**-40), 0.0, -0.0])
@example([1 + 2**-11, (1 + 2**-11) * (1 + 2**-45), (1 + 2**-11) * (1 - 2**-45)])
@settings(max_examples=300, deadline=None)
def test_float64_is_rounded_once_to_float16(numbers):
    """As numpy does, and torch does not: it rounds to float32 first."""
    values = torch.tensor(numbers, dtype=torch.float64)
    out = torch.empty(len(numbers), dtype=torch.float16)
    round_once(values, out)
    with np.errstate(all="ignore"):
        expected = values.numpy().astype(np.float16)

    assert np.array_equal(out.numpy(), expected, equal_nan=True)
    assert np.array_equal(np.signbit(out.numpy()), np.signbit(expected)) or np.isnan(expected).any()


def test_float64_is_rounded_once_to_bfloat16():
    """A hair above the middle of two numbers goes up, where two roundings would go to the even one."""
    middle = 1 + 2.0**-8
    values = torch.tensor([middle, middle * (1 + 2**-45), middle * (1 - 2**-45)], dtype=torch.float64)
    out = torch.empty(3, dtype=torch.bfloat16)
    round_once(values, out)

    assert out.tolist() == [1.0, 1 + 2.0**-7, 1.0]


def test_sums_of_what_float32_cannot_square():
    """The norm of large values is taken in float64."""
    sums = Sums.of(torch.full((2, 2), 1e30), torch.full((2, 2), 1e30))

    assert sums.is_finite
    assert (sums.gain, sums.error) == (1.0, 0.0)


def test_threads_of_the_user_are_given_back():
    """Torch computes with fewer meanwhile, and with as many as before at the end."""
    before = torch.get_num_threads()
    with pytest.raises(RuntimeError), threads_to_spare():
        raise RuntimeError

    assert torch.get_num_threads() == before
