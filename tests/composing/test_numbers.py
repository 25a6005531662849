"""The arithmetic below the rules: selection without holding, numbers by position, one rounding, ranks, ranges."""

import contextlib
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_adapters import assert_close, numbers, random_factors

from lora_hub.composing.exactness import reproducible
from lora_hub.composing.factors import Factors, decompose, numerical_rank, polar, stack, svd
from lora_hub.composing.randomness import key_of, signs, uniform
from lora_hub.composing.rank import Rank, fitting
from lora_hub.composing.selection import kth_largest
from lora_hub.composing.streamed import Streamed, range_svd
from lora_hub.errors import UsageError
from lora_hub.rounding import rounded

NOT_NEGATIVE = st.floats(0, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 5e-324, 1.0])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(NOT_NEGATIVE, min_size=6, max_size=6), min_size=1, max_size=3), st.integers(1, 6))
def test_kth_largest_is_that_of_sorting(rows, k):
    """In four passes over one row at a time: what sorting finds, for denormals, equals and zeros as well."""
    matrices = torch.tensor(rows, dtype=torch.float64).view(len(rows), 3, 2)
    found = kth_largest(lambda: iter(matrices.split(1, dim=1)), k)

    assert found.flatten().tolist() == [sorted(row, reverse=True)[k - 1] for row in rows]


@pytest.mark.parametrize("k", [1, 7, 4999, 9999, 10_000])
def test_kth_largest_of_many(k):
    """The same for as many numbers as the digits have values."""
    drawn = numbers(1, 1, 100, 100).abs()

    assert kth_largest(lambda: iter(drawn.split(7, dim=1)), k).item() == drawn.flatten().sort(descending=True)[0][k - 1]


@pytest.mark.parametrize(("start", "count"), [(0, 1), (1, 9), (4, 4), (6, 3), (1000, 17)])
def test_numbers_depend_on_where_they_stand(start, count):
    """Any part of the numbers of a key is that part of all of them."""
    key = key_of("a", 1)

    assert torch.equal(uniform(key, start, count), uniform(key, 0, 2000)[start : start + count])


def philox(counter: int, key: int) -> list[int]:
    """Philox 4x64 with 10 rounds, as Salmon et al. write it (section 4): four numbers of 64 bits."""
    low = (1 << 64) - 1
    words = [counter >> 64 * i & low for i in range(4)]
    keys = [key & low, key >> 64]
    for _ in range(10):
        one, other = words[0] * 0xD2E7470EE14C6C93, words[2] * 0xCA5A826395121157
        words = [(other >> 64) ^ words[1] ^ keys[0], other & low, (one >> 64) ^ words[3] ^ keys[1], one & low]
        keys = [(keys[0] + 0x9E3779B97F4A7C15) & low, (keys[1] + 0xBB67AE8584CAA73B) & low]
    return words


def test_numbers_are_philox_as_published():
    """They are those of the paper, from counter 1 on: what was composed must come out again in any version of numpy."""
    key = key_of("x")
    expected = [number >> 11 for counter in (1, 2) for number in philox(counter, key)]

    # The first of the known answers that the authors publish with Random123.
    assert philox(0, 0)[0] == 0x16554D9ECA36314C
    assert uniform(key, 0, 8).tolist() == [number * 2.0**-53 for number in expected]


def test_numbers_are_even_and_independent_of_other_keys():
    """In [0, 1), of mean 1/2, and unlike those of another seed, adapter or module."""
    one, other = (uniform(key_of("mask", seed), 0, 100_000) for seed in (0, 1))

    assert 0 <= one.min() < 1e-3
    assert 0.999 < one.max() < 1
    assert abs(one.mean() - 0.5) < 0.005
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1]) < 0.02
    assert key_of("a", "b") != key_of("ab", "")
    assert set(signs(3, 50, 4).flatten().tolist()) == {1.0, -1.0}


@settings(max_examples=200, deadline=None)
@given(st.floats(-7e4, 7e4), st.sampled_from([torch.float16, torch.bfloat16]))
def test_rounding_is_to_the_nearest(number, dtype):
    """No 16-bit number is nearer, which going by way of float32 does not ensure."""
    found = rounded(torch.tensor([number], dtype=torch.float64), dtype)
    bits = found.view(torch.int16)
    neighbours = torch.stack([bits - 1, bits + 1]).view(dtype).double()
    distances = (neighbours[neighbours.isfinite()] - number).abs()

    if found.isfinite().all():
        assert (abs(found.double() - number) <= distances).all()
    else:
        assert dtype is torch.float16
        assert abs(number) >= 65_520


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_happens_once(dtype):
    """Just above the middle of two 16-bit numbers, where float32 sees the middle: up, not to the even one."""
    step = torch.finfo(dtype).eps
    just_above = torch.tensor([1 + step / 2 + 1e-12, -(1 + step / 2 + 1e-12)], dtype=torch.float64)

    assert just_above.to(dtype).tolist() == [1.0, -1.0]
    assert rounded(just_above, dtype).tolist() == [1 + step, -(1 + step)]


def test_nothing_is_rounded_that_need_not_be():
    """float64 stays, and float32 is what torch makes of it."""
    drawn = numbers(0, 100)

    assert torch.equal(rounded(drawn, torch.float64), drawn)
    assert torch.equal(rounded(drawn, torch.float32), drawn.float())


@pytest.mark.parametrize(("shape", "r"), [((30, 20), 4), ((20, 30), 4), ((5, 8), 5), ((5, 8), 9), ((1, 1), 1)])
def test_decomposition_is_that_of_the_product(shape, r):
    """Values, vectors and best approximations of B A, narrow or wide, without forming it."""
    factors = random_factors(1, shape, r)
    found, whole = svd(factors), factors.B @ factors.A
    expected = torch.linalg.svdvals(whole)

    assert_close(found.S[: len(expected)], expected[: len(found.S)], 1e-12)
    assert_close(found.U * found.S @ found.Vh, whole, 1e-12)
    assert (found.U.gather(0, found.U.abs().argmax(dim=0, keepdim=True)) > 0).all()  # so that signs are no accident
    best = decompose(factors).strongest(1).truncated(1)
    assert (whole - best.B @ best.A).norm() <= expected[1:].norm() + 1e-12 * expected[0]


def test_rows_that_are_zero_stay_zero():
    """What no delta of a fused projection touches, the decomposition does not touch either."""
    factors = random_factors(1, (12, 8), 3)
    factors.B[3:6] = 0
    factors.A[:, 2] = 0
    found = svd(factors).truncated(2)

    assert not found.B[3:6].any()
    assert not found.A[:, 2].any()
    assert found.B.any(dim=1).sum() == 9


def test_numerical_rank_counts_what_is_no_noise():
    """Two equal deltas have the rank of one; cancelling ones have none."""
    one = random_factors(1, (40, 30), 3)
    for weights, rank in (([1.0, 1.0], 3), ([1.0, -1.0], 0), ([1.0, -1 + 1e-6], 3)):
        stacked = stack([one, one], weights)
        assert numerical_rank(decompose(stacked).S, stacked) == rank


def test_polar_factor_of_columns_that_repeat():
    """Equal columns share one direction: the factor maps onto it, and has no noise of its own."""
    column = numbers(1, 6, 1)
    found = polar(torch.cat([column, column], dim=1))

    assert_close(found, torch.cat([column, column], dim=1) / column.norm() / 2**0.5, 1e-12)


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_range_finder_is_near_the_best(shape):
    """For a slowly falling spectrum, the error is within 1% of that of the best approximation."""
    U, _, Vh = torch.linalg.svd(numbers(3, *shape), full_matrices=False)
    S = 0.93 ** torch.arange(40, dtype=torch.float64)
    whole = U * S @ Vh
    matrix = Streamed(shape, lambda: iter(whole.split(7)))
    found, energy = range_svd(matrix, 8, key_of("k"))
    best = found.truncated(8)

    assert (whole - best.B @ best.A).norm() < 1.01 * S[8:].norm()
    assert energy == pytest.approx(S.square().sum().item())


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("exact", 5), ("3", 3), ("9", 5), ("max:2", 2), ("max:99", 5), ("energy:1", 5), ("energy:0.9", 2),
        ("energy:0.75", 1), ("ratio:1", 1), ("ratio:2", 2), ("ratio:1000", 4), ("fit:vllm", 5),
    ],
)  # fmt: skip
def test_rank_says_what_is_kept(text, kept):
    """Of the values 4, 2, 1, 0.1, 0.001, and one that is noise."""
    S = torch.tensor([4.0, 2.0, 1.0, 0.1, 0.001, 1e-17], dtype=torch.float64)

    assert Rank.parse(text).choose(S, rank=5, energy=S.square().sum().item()) == kept


@pytest.mark.parametrize(
    "text",
    [
        "", "0", "-1", "1.5", "65537", "9" * 5000, "²", "all", "energy", "energy:", "energy:0", "energy:1.1", "max",
        "energy:inf", "ratio:0.5", "ratio:inf", "ratio:nan", "max:0", "max:x", "fit", "fit:tgi", "number:3", "exact:1",
    ],
)  # fmt: skip
def test_rank_that_means_nothing_is_refused(text):
    """With what may be written, or the range."""
    with pytest.raises(UsageError) as caught:
        Rank.parse(text)

    assert caught.value.hint


@pytest.mark.parametrize(("rank", "fits"), [(0, 1), (1, 1), (2, 8), (33, 64), (257, 320), (512, 512), (513, 512)])
def test_rank_of_vllm_is_the_next_one(rank, fits):
    """One of those that `max_lora_rank` may be; beyond the largest, the largest."""
    assert fitting(rank) == fits


def test_threads_come_back():
    """Who computed on two threads does so afterwards, whatever went wrong in between."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with contextlib.suppress(ZeroDivisionError), reproducible():
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_threads_come_back_to_all_who_overlap():
    """Who begins while another computes takes over its one thread, and must not keep it, nor hand it on."""
    first, second = threading.Event(), threading.Event()
    seen = []

    def one():
        with reproducible(), reproducible():
            first.set()
            second.wait(10)

    def other():
        first.wait(10)
        with reproducible():
            second.set()
            threads[0].join()
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    threads = [threading.Thread(target=work) for work in (one, other)]
    try:
        for thread in threads:
            thread.start()
        threads[1].join()
        later = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        later.start()
        later.join()
    finally:
        torch.set_num_threads(before)

    assert seen == [1, 2, 2]


def test_factors_know_their_shape():
    """A delta's shape is (out, in)."""
    assert Factors(numbers(0, 5, 2), numbers(0, 2, 7)).shape == (5, 7)
