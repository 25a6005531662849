"""Numbers of each dtype: read as torch reads them, rounded as torch rounds, compared by what may round to both."""

import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_hub.documents.floats import FORMATS, SIZES, decode, is_as_wide, may_be_one, rounded
from lora_hub.tensors import DTYPES

TORCH = DTYPES | {
    "I8": torch.int8,
    "U8": torch.uint8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
REALS = st.floats(width=64, allow_nan=False, allow_infinity=False) | st.floats(
    min_value=-1, max_value=1, allow_nan=False
)
PAIRS = [(one, other) for one in FORMATS for other in FORMATS]


@pytest.mark.parametrize("dtype", sorted(SIZES))
def test_bytes_are_read_as_torch_reads_them(dtype):
    """All patterns of the short dtypes, many of the long ones; NaN is NaN."""
    size = SIZES[dtype]
    patterns = range(256**size) if size < 4 else range(0, 256**size, 256**size // 5000)
    content = b"".join(pattern.to_bytes(size, "little") for pattern in patterns)
    expected = torch.frombuffer(bytearray(content), dtype=TORCH[dtype]).double()

    assert torch.equal(
        torch.tensor(decode(content, dtype), dtype=torch.float64).nan_to_num(7.5), expected.nan_to_num(7.5)
    )


@given(st.floats(width=32, allow_nan=False))
def test_rounding_is_that_of_torch(value):
    """From float32, to nearest and ties to even, into subnormal numbers and infinity."""
    for dtype in ("F16", "BF16", "F32"):
        expected = torch.tensor(value, dtype=torch.float32).to(TORCH[dtype]).double().item()

        assert rounded(value, dtype) == expected


@given(REALS)
def test_rounding_to_float32_is_that_of_the_machine(value):
    """From float64, as `struct` does it; it refuses what becomes infinite."""
    try:
        expected = struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        expected = math.copysign(math.inf, value)

    assert rounded(value, "F32") == expected


@settings(max_examples=300)
@given(REALS)
def test_one_number_rounded_twice_may_be_one(value):
    """No false reject: whatever a number is, its roundings to any two dtypes agree."""
    for one, other in PAIRS:
        assert may_be_one(rounded(value, one), one, rounded(value, other), other)


def neighbours(value: float, dtype: str) -> list[float]:
    """The numbers of a 16-bit dtype right below and above *value*."""
    torch_dtype = TORCH[dtype]
    up = torch.nextafter(torch.tensor(value, dtype=torch_dtype), torch.tensor(math.inf, dtype=torch_dtype))
    down = torch.nextafter(torch.tensor(value, dtype=torch_dtype), torch.tensor(-math.inf, dtype=torch_dtype))
    return [down.double().item(), up.double().item()]


def witnesses(value: float, dtype: str) -> list[float]:
    """Numbers among which is one that rounds to *value* and to another number, if any does: ends and what is inside."""
    ends = [(value + other) / 2 for other in neighbours(value, dtype) if math.isfinite(other)]
    return [value, *ends, *(math.nextafter(end, value) for end in ends)]


@settings(max_examples=300)
@given(st.integers(0, 2**16 - 1), st.integers(-300, 300), st.sampled_from([("F16", "BF16"), ("BF16", "F16")]))
def test_may_be_one_says_what_a_search_finds(pattern, step, dtypes):
    """float16 against bfloat16, neither of which holds the other: yes exactly if a number is found that is both."""
    one, other = dtypes
    value = decode(pattern.to_bytes(2, "little"), one)[0]
    if not math.isfinite(value):
        return
    near = torch.tensor(rounded(value, other), dtype=TORCH[other]).view(torch.int16) + step // 100
    found = near.view(TORCH[other]).double().item()
    if not math.isfinite(found):
        return
    tried = [*witnesses(value, one), *witnesses(found, other)]
    expected = any(rounded(x, one) == value and rounded(x, other) == found for x in tried)

    assert may_be_one(value, one, found, other) == expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((1.0, "BF16"), (1.0 + 2**-8, "F32"), True),  # the tie, which goes to the even one
        ((1.0, "BF16"), (1.0 + 2**-8 + 2**-23, "F32"), False),
        ((1.0 + 2**-7, "BF16"), (1.0 + 2**-8, "F32"), True),  # what lay a little above the tie became the tie
        ((1.0, "BF16"), (1.0 - 2**-9, "F32"), True),  # below a power of two the tie is half as far
        ((1.0, "BF16"), (1.0 - 2**-9 - 2**-20, "F32"), False),
        ((2**-24, "F16"), (2**-25, "BF16"), True),  # but not below the smallest of all
        ((1.0, "BF16"), (1.0 + 2**-7, "BF16"), False),
        ((1.0, "F32"), (1.0 + 2**-7, "BF16"), False),
        ((1.0 + 2**-7, "F32"), (1.0, "F16"), False),
        ((0.0, "F32"), (-0.0, "BF16"), True),
        ((1e-30, "BF16"), (0.0, "F16"), True),  # too small for it
        ((65520.0, "F32"), (math.inf, "F16"), True),  # too large
        ((65519.0, "F32"), (math.inf, "F16"), False),
        ((math.inf, "F16"), (1e9, "F32"), True),
        ((-math.inf, "F16"), (1e9, "F32"), False),
        ((math.nan, "F32"), (math.nan, "F32"), False),
        ((1.0, "F32"), (math.nan, "BF16"), False),
    ],
)
def test_edges(one, other, expected):
    """Ties, zeros, what is too small or too large, and no number."""
    assert may_be_one(*one, *other) == expected
    assert may_be_one(*other, *one) == expected


def test_wider_holds_every_number():
    """bfloat16 and float16 are no wider than each other; each is as wide as itself."""
    wide = {(one, other) for one, other in PAIRS if one != other and is_as_wide(one, other)}

    assert wide == {("F64", "F32"), ("F64", "F16"), ("F64", "BF16"), ("F32", "F16"), ("F32", "BF16")}
    assert all(is_as_wide(dtype, dtype) for dtype in FORMATS)
