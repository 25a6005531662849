"""The arithmetic on stacked matrices, against the formulas in float64."""

from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_hub.patch import stack as arithmetic
from lora_hub.patch.stack import Dropout, Stack, add, added, gradients, input_gradient

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
QUICK = settings(max_examples=40, deadline=None)


class Case:
    """Random tensors of one shape, with the values of the formulas in float64 and a bound of rounding for each."""

    def __init__(self, seed, groups, lead, sizes, dtypes, layouts, alpha):
        n_in, n_out, r = sizes
        of_x, of_stack, of_y = dtypes
        self.generator = torch.Generator().manual_seed(seed)
        self.groups, self.alpha = groups, alpha
        self.x = laid_out(self.random(*lead, n_in).to(of_x), layouts[0])
        self.y = laid_out(self.random(*lead, n_out).to(of_y), layouts[1])
        self.dy = laid_out(self.random(*lead, n_out).to(of_y), layouts[2])
        self.A = self.random(groups, r, n_in).to(of_stack)
        self.B = self.random(groups, n_out, r).to(of_stack)
        A_t, B_t = self.A.mT, self.B.mT
        self.stack = Stack(A_t.contiguous(), B_t.contiguous(), alpha) if layouts[3] else Stack(A_t, B_t, alpha)
        # What is multiplied is rounded to the dtype of the stack twice, and summed in float32 at least.
        terms = n_in + n_out + r + self.x[..., 0].numel() // groups
        self.relative = 4 * torch.finfo(of_stack).eps + terms * max(eps(of_stack), eps(torch.float32) * half(of_stack))
        # The input is rounded to it as well, if it is wider.
        self.relative += 2 * eps(of_stack) + 2 * eps(of_x) + 2 * eps(of_y)

    def random(self, *shape):
        """Normal numbers in float64."""
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def grouped(self, tensor):
        """The tensor in float64 as [G, T, n]."""
        return tensor.double().reshape(self.groups, -1, tensor.shape[-1])

    def delta(self, magnitude, mask=1.0):
        """``alpha x A^T B^T``, or the same of the absolute values."""
        x, A, B = (magnitude(tensor) for tensor in (self.grouped(self.x) * mask, self.A.double(), self.B.double()))
        return magnitude(torch.tensor(self.alpha)).item() * x @ A.mT @ B.mT

    def gradients(self, magnitude, mask=1.0):
        """The gradients of x, A and B, or the same of the absolute values."""
        dy, x = magnitude(self.grouped(self.dy)), magnitude(self.grouped(self.x) * mask)
        A, B = magnitude(self.A.double()), magnitude(self.B.double())
        ds = magnitude(torch.tensor(self.alpha)).item() * dy @ B
        alpha = magnitude(torch.tensor(self.alpha)).item()
        return (ds @ A) * mask, ds.mT @ x, alpha * dy.mT @ (x @ A.mT)


def eps(dtype):
    return torch.finfo(dtype).eps


def half(dtype):
    """1 for dtypes of two bytes, whose sums are in float32; 0 for others."""
    return float(dtype.itemsize == 2)


def same(tensor):
    return tensor


def laid_out(tensor, layout):
    """The same values in memory of another order: as they come, with gaps, or transposed."""
    if layout == "gaps":
        wide = tensor.new_full((*tensor.shape[:-1], tensor.shape[-1] + 3), float("nan"))
        wide[..., 1:-2] = tensor
        return wide[..., 1:-2]
    if layout == "transposed" and tensor.dim() > 1:
        return tensor.transpose(0, -1).contiguous().transpose(0, -1)
    return tensor


@st.composite
def cases(draw, dtypes=DTYPES, least=0):
    """A case with 1-D to 4-D inputs, in up to 4 groups, maybe empty."""
    groups = draw(st.integers(1, 4))
    tokens = draw(st.integers(least, 4))
    lead = draw(st.sampled_from([(groups, tokens), (groups * tokens,), (groups, tokens, 2), (groups, 3, tokens), ()]))
    dtype = st.sampled_from(dtypes)
    layout = st.sampled_from(["plain", "gaps", "transposed"])
    return Case(
        seed=draw(st.integers(0, 2**31)),
        groups=groups if lead else 1,
        lead=lead,
        sizes=(draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 5))),
        dtypes=(draw(dtype), draw(dtype), draw(dtype)),
        layouts=(draw(layout), draw(layout), draw(layout), draw(st.booleans())),
        alpha=draw(st.sampled_from([1.0, 2.0, -0.375, 0.0])),
    )


def blocks_of(elements):
    """Let so few elements be converted at a time that several blocks occur."""
    return mock.patch.object(arithmetic, "_BLOCK_ON_CPU", elements)


BLOCKS = st.sampled_from([1, 8, 1 << 18])


def agree(found, exact, bound):
    """Whether *found* is within *bound* of *exact*; float64 has no room for anything but the order of sums."""
    return bool(((found.double() - exact).abs() <= bound + 1e-12).all())


@QUICK
@given(cases(), BLOCKS)
def test_add_is_the_formula(case, elements):
    """`add` puts ``alpha x A^T B^T`` onto y, in every mix of dtypes and layouts, by groups and in blocks."""
    exact = case.grouped(case.y) + case.delta(same)
    bound = case.relative * (case.delta(torch.abs) + case.grouped(case.y).abs())
    x = case.x.clone()
    with blocks_of(elements):
        add(case.y, case.x, case.stack)

    assert agree(case.grouped(case.y), exact, bound)
    assert torch.equal(case.x, x)


@QUICK
@given(cases())
def test_added_is_the_formula(case):
    """`added` returns the sum in the dtype and shape of y, and leaves y as it is."""
    before = case.y.clone()
    exact = case.grouped(case.y) + case.delta(same)
    bound = case.relative * (case.delta(torch.abs) + case.grouped(case.y).abs())
    found = added(case.y, case.x, case.stack)

    assert agree(case.grouped(found), exact, bound)
    assert (found.dtype, found.shape) == (case.y.dtype, case.y.shape)
    assert torch.equal(case.y, before)


@QUICK
@given(cases(), BLOCKS, st.booleans())
def test_gradients_are_the_formulas(case, elements, wants_x):
    """`gradients` returns dx, dA and dB of the formulas; dx in the dtype of x, and only if it is asked for."""
    before = case.x.clone(), case.dy.clone()
    with blocks_of(elements):
        found = gradients(case.dy, case.x, case.stack, None, wants_x=wants_x)
    pairs = zip((found.x, found.A, found.B), case.gradients(same), case.gradients(torch.abs), strict=True)
    # Partial sums of blocks are rounded, each of at most 16 tokens.
    agreed = [t is None or agree(case.grouped(t) if t is found.x else t, e, 4 * case.relative * b) for t, e, b in pairs]

    assert agreed == [True, True, True]
    assert (found.x is not None) == wants_x
    assert not wants_x or (found.x.dtype, found.x.shape) == (case.x.dtype, case.x.shape)
    assert torch.equal(case.x, before[0])
    assert torch.equal(case.dy, before[1])


@QUICK
@given(cases(), BLOCKS, st.sampled_from(DTYPES))
def test_input_gradient_is_the_formula(case, elements, dtype):
    """`input_gradient` returns ``alpha dy B A`` in the dtype that is asked for."""
    with blocks_of(elements):
        found = input_gradient(case.dy, case.stack, dtype)
    bound = 2 * (case.relative + eps(dtype)) * case.gradients(torch.abs)[0]

    assert agree(case.grouped(found), case.gradients(same)[0], bound)
    assert (found.dtype, found.shape) == (dtype, case.x.shape)


def drawn_mask(dropout, groups, tokens, features, elements):
    """What `add` multiplies each input with: seen through A = B = 1."""
    ones = torch.eye(features, dtype=torch.float64).expand(groups, features, features)
    y = torch.zeros(groups, tokens, features, dtype=torch.float64)
    with blocks_of(elements):
        add(y, torch.ones_like(y), Stack(ones, ones), dropout)
    return y


@QUICK
@given(cases(dtypes=[torch.float64], least=1), BLOCKS, st.sampled_from([0.1, 0.5, 0.9]), st.integers(0, 2**62 - 1))
def test_backward_draws_the_mask_of_the_forward(case, elements, p, seed):
    """What the forward drops, the backward drops: the formulas hold with one mask, whatever the blocks."""
    dropout = Dropout(seed, p)
    mask = drawn_mask(dropout, case.groups, case.grouped(case.x).shape[1], case.x.shape[-1], elements)
    exact = case.grouped(case.y) + case.delta(same, mask)
    with blocks_of(elements):
        add(case.y, case.x, case.stack, dropout)
        found = gradients(case.dy, case.x, case.stack, dropout, wants_x=True)

    assert torch.allclose(case.grouped(case.y), exact, rtol=1e-10, atol=1e-10)
    for tensor, value in zip((case.grouped(found.x), found.A, found.B), case.gradients(same, mask), strict=True):
        assert torch.allclose(tensor, value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("elements", [64, 1 << 18])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_zeroes_p_of_the_inputs(p, elements):
    """A part p of the inputs is zeroed, and the others are divided by 1 - p.

    Of 64 000 draws the part strays by 0.002 (one standard deviation, at p = 0.5); 5 of them are allowed.
    """
    mask = drawn_mask(Dropout(5, p), 2, 1000, 32, elements)

    assert abs((mask == 0).double().mean().item() - p) < 5 * (p * (1 - p) / mask.numel()) ** 0.5
    assert torch.allclose(mask[mask != 0], torch.tensor(1 / (1 - p), dtype=torch.float64), rtol=1e-12)


def test_each_block_draws_anew():
    """No row, group or block repeats the mask of another."""
    mask = drawn_mask(Dropout(5, 0.5), 2, 50, 64, 128)

    assert len({tuple(row.tolist()) for row in mask.flatten(0, 1)}) == 100


@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_keeps_the_mean(dtype):
    """Over 500 seeds the mean delta is the delta without dropout.

    A mean of 500 strays by 1/22 of what one draw does; 5 times that is allowed. In dtypes of two bytes, 1 / (1 - p)
    may be rounded like anything else.
    """
    torch.manual_seed(0)
    x, A, B = (torch.randn(*shape).to(dtype) for shape in [(3, 8), (1, 4, 8), (1, 5, 4)])
    stack, found = Stack(A.mT, B.mT), []
    for seed in range(500):
        y = torch.zeros(3, 5, dtype=torch.float64)
        add(y, x, stack, Dropout(seed, 0.25))
        found.append(y)
    every = torch.stack(found)
    exact = x.double() @ A[0].double().T @ B[0].double().T

    assert ((every.mean(0) - exact).abs() <= 5 * every.std(0) / 500**0.5 + 4 * eps(dtype)).all()


def test_seeds_draw_their_own():
    """One seed draws the same again, another seed another mask."""
    one, again, other = (drawn_mask(Dropout(seed, 0.5), 1, 8, 8, 1 << 18) for seed in (1, 1, 2))

    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_dropout_leaves_the_generator_of_torch_alone():
    """Masks come from their seed alone: what torch draws next does not depend on them."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    drawn_mask(Dropout(5, 0.5), 1, 8, 8, 1 << 18)

    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 6), (2, 0, 6), (0, 3, 6)])
def test_nothing_in_nothing_out(shape, dtype):
    """Without rows, or without tokens, nothing is added, dx is empty, and dA and dB are zero."""
    x, y = torch.empty(*shape, dtype=torch.bfloat16), torch.empty(*shape[:-1], 5, dtype=torch.bfloat16)
    stack = Stack(torch.randn(2, 6, 3).to(dtype), torch.randn(2, 3, 5).to(dtype))
    add(y, x, stack)
    add(y, x, stack, Dropout(1, 0.5))
    found = gradients(y, x, stack, Dropout(1, 0.5), wants_x=True)

    assert found.x.shape == input_gradient(y, stack, dtype).shape == added(x, x[..., :6], square(stack)).shape == shape
    assert found.A.shape == (2, 3, 6)
    assert found.B.shape == (2, 5, 3)
    assert not found.A.any()
    assert not found.B.any()


def square(stack):
    """A stack whose outputs are as many as its inputs."""
    return Stack(stack.A_t, stack.A_t.mT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("of", ["A", "B"])
def test_blocks_do_not_add_to_the_error_of_low_precision(dtype, of):
    """Over many blocks, dA and dB are as near to float64 as over one: partial sums are not rounded to two bytes.

    One block is a product of matrices, summed in float32 and rounded once; 1.02 leaves room for chance.
    """
    torch.manual_seed(0)
    x, dy = (torch.randn(4096, 32) + 0.5 for _ in range(2))
    A, B = torch.randn(1, 4, 32).to(dtype), torch.randn(1, 32, 4).to(dtype)
    errors = []
    for elements in (32 * 64, 32 * 4096):
        with blocks_of(elements):
            found = gradients(dy, x, Stack(A.mT, B.mT), None, wants_x=False)
        low = [tensor.to(dtype).double() for tensor in (dy, x)]
        ds, s = low[0] @ B[0].double(), low[1] @ A[0].double().T
        exact = ds.T @ low[1] if of == "A" else low[0].T @ s
        errors.append((getattr(found, of)[0].double() - exact).square().mean().sqrt())

    assert errors[0] <= 1.02 * errors[1]


def test_sum_is_rounded_once():
    """Onto a bfloat16 output, a float32 delta is added in float32: the nearest bfloat16 to the exact sum comes out.

    Where the sum lies half way between two bfloat16, the products decide, which float32 rounds: 1e-5 of what is added.
    """
    torch.manual_seed(0)
    x, y = torch.randn(64, 16).bfloat16(), torch.randn(64, 16).bfloat16()
    A, B = torch.randn(1, 4, 16), torch.randn(1, 16, 4)
    delta = 0.5 * x.double() @ A[0].double().T @ B[0].double().T
    exact = y.double() + delta
    add(y, x, Stack(A.mT, B.mT, 0.5))
    nearest = (exact.bfloat16().double() - exact).abs()

    assert ((y.double() - exact).abs() <= nearest + 1e-5 * delta.abs().max()).all()


def test_groups_are_apart():
    """What is not a number in one group of rows leaves the others as they are."""
    torch.manual_seed(0)
    x, stack = torch.randn(3, 2, 6), Stack(torch.randn(3, 6, 2), torch.randn(3, 2, 5))
    y, clean = torch.zeros(3, 2, 5), torch.zeros(3, 2, 5)
    add(clean, x, stack)
    x[1] = float("nan")
    add(y, x, stack)

    assert torch.equal(y[[0, 2]], clean[[0, 2]])
    assert y[1].isnan().all()


@pytest.mark.parametrize("groups", [[2, 0], [1], [0, 1, 2, 2]])
def test_stack_of_some_groups(groups):
    """A stack of some groups has their matrices, in that order."""
    stack = Stack(torch.randn(3, 6, 2), torch.randn(3, 2, 5), 0.5)
    picked = stack.of(torch.tensor(groups))

    assert torch.equal(picked.A_t, stack.A_t[groups])
    assert torch.equal(picked.B_t, stack.B_t[groups])
    assert picked.alpha == stack.alpha


def test_stack_of_one_group():
    """The stack of one group has its matrices and no others."""
    stack = Stack(torch.randn(3, 6, 2), torch.randn(3, 2, 5), 0.5)
    one = stack.one(1)

    assert torch.equal(one.A_t, stack.A_t[1:2])
    assert torch.equal(one.B_t, stack.B_t[1:2])


def test_output_that_is_no_view_of_its_rows():
    """An output whose rows cannot be viewed as groups is written all the same."""
    torch.manual_seed(0)
    y = torch.zeros(5, 4, 6).permute(1, 2, 0)
    x, stack = torch.randn(4, 6, 3), Stack(torch.randn(2, 3, 2), torch.randn(2, 2, 5))
    expected = added(y, x, stack)
    add(y, x, stack)

    assert torch.allclose(y, expected, atol=1e-6)
