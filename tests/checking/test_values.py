"""What numbers are, told from bytes: zero of either sign, equal, finite; compared with what `struct` unpacks."""

import math
import struct

import pytest
from adapter_files import Tensor, pack, safetensors
from hypothesis import given
from hypothesis import strategies as st

from lora_hub.checking import values as module
from lora_hub.checking.values import Values
from lora_hub.documents.safetensors_header import read_header

DTYPES = ["F64", "F32", "F16", "BF16"]
NUMBERS = st.lists(st.sampled_from([0.0, -0.0, 1.0, -2.0, 2.0**-14, math.inf, math.nan]), min_size=1, max_size=40)


def values_of(**tensors: tuple[str, list[float]]) -> Values:
    """Return the values of a file with these tensors: dtype and numbers by name."""
    content = safetensors({k: Tensor(dtype=d, shape=(len(n),), content=pack(n, d)) for k, (d, n) in tensors.items()})
    return Values(content, read_header(content))


@given(st.sampled_from(DTYPES), NUMBERS)
def test_zero_is_what_equals_zero(dtype, numbers):
    """A tensor is zero if every number of it equals 0."""
    assert values_of(a=(dtype, numbers)).is_zero("a") == all(number == 0 for number in numbers)


@given(st.sampled_from(DTYPES), NUMBERS, NUMBERS)
def test_finite_is_what_is_neither_nan_nor_infinite(dtype, one, other):
    """The tensors that are not are named."""
    expected = [k for k, numbers in {"a": one, "b": other}.items() if not all(map(math.isfinite, numbers))]

    assert values_of(a=(dtype, one), b=(dtype, other)).not_finite() == expected


@pytest.mark.parametrize("position", [0, 1, 63, 64, 100, 1000, 1999])
@pytest.mark.parametrize("block", [64, 512, 256 * 1024])
def test_one_number_anywhere_is_seen(monkeypatch, position, block):
    """Neither zero nor equal, wherever the difference lies among the pieces."""
    monkeypatch.setattr(module, "_BLOCK", block)
    zeros, other = [0.0] * 2000, [0.0] * 2000
    other[position] = 1.0
    values = values_of(zeros=("F32", zeros), other=("F32", other), again=("F32", other))

    assert values.is_zero("zeros")
    assert not values.is_zero("other")
    assert values.groups_of_equals([["zeros"], ["other"], ["again"]]) == [[["other"], ["again"]]]


def test_equal_means_dtype_and_shape_as_well():
    """The same bytes as another dtype are other numbers."""
    content = struct.pack("<4e", 1, 2, 3, 4)
    dtypes = {"a": "F16", "b": "BF16"}
    file = safetensors({key: Tensor(dtype=dtype, shape=(4,), content=content) for key, dtype in dtypes.items()})

    assert Values(file, read_header(file)).groups_of_equals([["a"], ["b"]]) == []


def test_groups_are_compared_as_a_whole():
    """A and B of two modules are the same only if both are."""
    values = values_of(a=("F32", [1.0]), b=("F32", [2.0]), c=("F32", [1.0]), d=("F32", [2.0]), e=("F32", [3.0]))

    assert values.groups_of_equals([["a", "b"], ["c", "d"], ["c", "e"]]) == [[["a", "b"], ["c", "d"]]]


def test_what_cannot_be_read_is_nothing():
    """A tensor that is not there is neither zero nor equal to anything."""
    values = values_of(a=("F32", [0.0]))

    assert not values.is_zero("b")
    assert values.groups_of_equals([["b"], ["c"]]) == []
    assert values.size("b") == 0
