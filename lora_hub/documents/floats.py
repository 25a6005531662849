"""Floating-point numbers of each dtype: what their bytes mean, and which real numbers round to them.

IEEE 754 binary formats and bfloat16, rounded to nearest, ties to even. Exact, and without numpy.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction

from lora_hub.documents.fields import Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatFormat:
    """One dtype: bytes of a number, binary digits of its significand, the exponent of its smallest and its range."""

    size: int
    digits: int  # the hidden one included
    lowest: int  # subnormal numbers are multiples of 2^lowest
    top: int  # finite numbers are below 2^top

    @property
    def largest(self) -> float:
        """The largest finite number."""
        return math.ldexp(1 - math.ldexp(1, -self.digits), self.top)


FORMATS = {
    "F64": FloatFormat(size=8, digits=53, lowest=-1074, top=1024),
    "F32": FloatFormat(size=4, digits=24, lowest=-149, top=128),
    "F16": FloatFormat(size=2, digits=11, lowest=-24, top=16),
    "BF16": FloatFormat(size=2, digits=8, lowest=-133, top=128),
}
SIZES = {name: kind.size for name, kind in FORMATS.items()} | dict.fromkeys(("I8", "U8", "F8_E4M3", "F8_E5M2"), 1)
_CODES = {"F64": "d", "F32": "f", "F16": "e", "I8": "b", "U8": "B"}  # of `struct`
_E4M3_BIAS = 7


def decode(content: Bytes, dtype: str) -> list[float]:
    """Return the numbers that *content*, little-endian, holds; *dtype* is one of `SIZES`.

    Raises:
        KeyError: No such dtype.
    """
    if dtype == "BF16":  # the upper half of a float32
        return decode(_widened(content, by=2, size=2), "F32")
    if dtype == "F8_E5M2":  # the upper half of a float16
        return decode(_widened(content, by=1, size=1), "F16")
    if dtype == "F8_E4M3":
        return [_E4M3[byte] for byte in bytes(content)]
    code = _CODES[dtype]
    return list(struct.unpack(f"<{len(content) // struct.calcsize(code)}{code}", content))


def _widened(content: Bytes, *, by: int, size: int) -> bytearray:
    wide = bytearray(len(content) // size * (size + by))
    for byte in range(size):
        wide[by + byte :: size + by] = content[byte::size]
    return wide


def _e4m3(byte: int) -> float:
    """Return what *byte* is with 4 bits of exponent and 3 of significand (arXiv 2209.05433): there is no infinity."""
    exponent, significand = byte >> 3 & 15, byte & 7
    if byte & 0x7F == 0x7F:  # noqa: PLR2004 - the only NaN
        return math.nan
    value = math.ldexp(significand + (8 if exponent else 0), max(exponent, 1) - _E4M3_BIAS - 3)
    return -value if byte & 0x80 else value


_E4M3 = [_e4m3(byte) for byte in range(256)]


def is_as_wide(one: str, other: str) -> bool:
    """Whether the dtype *one* holds every number that *other* holds."""
    wide, narrow = FORMATS[one], FORMATS[other]
    return wide.digits >= narrow.digits and wide.lowest <= narrow.lowest and wide.top >= narrow.top


def rounded(value: float, dtype: str) -> float:
    """Return *value* rounded to *dtype*."""
    if not math.isfinite(value) or dtype == "F64":
        return value
    kind = FORMATS[dtype]
    spacing = max(math.frexp(value)[1] - kind.digits, kind.lowest)
    units = round(math.ldexp(value, -spacing))
    is_finite = abs(units) <= math.ldexp(kind.largest, -spacing)
    return math.ldexp(units, spacing) if is_finite else math.copysign(math.inf, value)


def may_be_one(one: float, dtype: str, other: float, other_dtype: str) -> bool:
    """Whether some real number is *one* when it is rounded to *dtype*, and *other* when rounded to *other_dtype*.

    Zeros are one number, whatever their sign; NaN is none.
    """
    if one == other:
        return True
    if dtype == other_dtype or math.isnan(one) or math.isnan(other):
        return False
    if rounded(one, other_dtype) == other or rounded(other, dtype) == one:
        return True
    # Neither of the two need be that number: a third one between them may be a tie of the one and not of the other.
    (low, high, is_closed), (other_low, other_high, is_other_closed) = (
        _interval(one, dtype),
        _interval(other, other_dtype),
    )
    if high == other_low or other_high == low:
        return is_closed and is_other_closed
    return low < other_high and other_low < high


_Bound = Fraction | float


def _interval(value: float, dtype: str) -> tuple[_Bound, _Bound, bool]:
    """Return from where to where the real numbers lie that are *value* in *dtype*, and whether both ends are."""
    if value < 0:
        low, high, is_closed = _interval(-value, dtype)
        return -high, -low, is_closed
    kind = FORMATS[dtype]
    if math.isinf(value):
        return _interval(kind.largest, dtype)[1], math.inf, True
    mantissa, exponent = math.frexp(value)
    spacing = max(exponent - kind.digits, kind.lowest) if value else kind.lowest
    above, exact = Fraction(2) ** spacing, Fraction(value)
    # Below a power of two the numbers lie twice as dense, unless they are subnormal.
    below = above / 2 if mantissa == 0.5 and spacing > kind.lowest else above  # noqa: PLR2004
    return exact - below / 2, exact + above / 2, (exact / above).numerator % 2 == 0
