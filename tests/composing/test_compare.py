"""Comparing two adapters: bit-equal, rounded, the same within a tolerance, or not the same."""

import struct

import pytest
import torch
from adapter_files import MANIFEST_NAME, Tensor, adapter_files, lora_key, pack
from hypothesis import given
from hypothesis import strategies as st

from lora_hub.composing.compare import LEAST_LIMIT, Agreement, _steps, compare
from lora_hub.documents.verified_adapter import verify
from lora_hub.errors import IntegrityError
from lora_hub.tensors import tensor_of

MODULE = "model.layers.0.self_attn.q_proj"
KEYS = [lora_key(MODULE, side) for side in "AB"]
STEP = {"F32": 2.0**-23, "F16": 2.0**-10, "BF16": 2.0**-7}


def adapter(files=None, *, dtype="F32", **changes):
    files = files or adapter_files(dtype=dtype, **changes)
    return verify(files.files(), source="the adapter")


def with_value(key, change, *, dtype="F32"):
    """Return the adapter with the largest number of the tensor at *key* changed."""
    files = adapter_files(dtype=dtype)
    numbers = tensor_of(adapter(files), key).double().flatten().tolist()
    position = max(range(len(numbers)), key=lambda i: abs(numbers[i]))
    numbers[position] = change(numbers[position])
    files.tensors[key] = Tensor(dtype=dtype, shape=files.tensors[key].shape, content=pack(numbers, dtype))
    return adapter(files)


def rewritten(dtype="F32"):
    """Return the adapter with other factors of the same deltas: twice B, half of A, in another order of the ranks."""
    files = adapter_files(dtype=dtype)
    for key, entry in files.tensors.items():
        values = tensor_of(adapter(files), key).double()
        turned = values[[1, 0]] / 3 if key.endswith("A.weight") else values[:, [1, 0]] * 3
        files.tensors[key] = Tensor(dtype=dtype, shape=entry.shape, content=pack(turned.flatten().tolist(), dtype))
    return adapter(files)


def test_an_adapter_is_bit_equal_to_itself():
    """The same bytes are the same adapter, whatever stands in the manifest beside them."""
    comparison = compare(adapter(), adapter())

    assert comparison.agreement is Agreement.BIT_EQUAL
    assert comparison.worst == (MODULE, (0.0, 0.0))


@pytest.mark.parametrize("dtype", STEP)
@pytest.mark.parametrize("key", KEYS)
def test_a_value_that_was_rounded_the_other_way_is_told(key, dtype):
    """One number that is the next one of its dtype is neither bit-equal nor a reason to refuse."""
    comparison = compare(with_value(key, lambda x: x * (1 + 0.9 * STEP[dtype]), dtype=dtype), adapter(dtype=dtype))

    assert comparison.agreement is Agreement.ROUNDED
    assert 0 < comparison.worst[1].whole < STEP[dtype]


@pytest.mark.parametrize("dtype", STEP)
def test_other_factors_of_the_same_delta_are_the_same_within_a_tolerance(dtype):
    """Two bases of one delta, each rounded, agree as far as their dtype can, and the limit leaves room for that."""
    comparison = compare(rewritten(dtype), adapter(dtype=dtype))

    assert comparison.agreement is Agreement.TOLERANCE
    assert 0 < max(comparison.worst[1]) < max(comparison.limit / 2, STEP[dtype])
    assert comparison.limit == max(LEAST_LIMIT, 2 * STEP[dtype])


@pytest.mark.parametrize("change", [1.1, 0.9, -1.0], ids=str)
@pytest.mark.parametrize("key", KEYS)
def test_one_value_that_was_changed_is_found(key, change):
    """A single number that is another one is refused, and the module is named: it is much of its row or column."""
    with pytest.raises(IntegrityError) as caught:
        compare(with_value(key, lambda x: change * x), adapter())

    assert MODULE in caught.value.message
    assert caught.value.exit_code == 6


def test_one_value_in_a_large_module_is_found():
    """What is little of the whole delta is much of one row: it does not hide in a large matrix."""
    r, features = 8, 4096
    numbers = torch.randn(2, features, r, generator=torch.Generator().manual_seed(0))
    changed = numbers.clone()
    changed[1, 7, 3] += 1
    one, other = (_large(values) for values in (changed, numbers))

    with pytest.raises(IntegrityError, match="one row or column"):
        compare(one, other)


def _large(numbers):
    files = adapter_files(r=numbers.shape[2], layers=1, target_modules=["q_proj"])
    files.tensors = {
        lora_key(MODULE, side): Tensor(dtype="F32", shape=tuple(values.shape), content=values.numpy().tobytes())
        for side, values in (("A", numbers[0].T.contiguous()), ("B", numbers[1]))
    }
    return adapter(files)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"r": 4}, "lora_A"),
        ({"dtype": "F16"}, "lora_A"),
        ({"layers": 1}, "layers.1"),
        ({"lora_alpha": 8}, "adapter_config.json"),
        ({"use_rslora": True}, "adapter_config.json"),
    ],
    ids=str,
)
def test_an_adapter_of_another_form_is_not_the_same(changes, what):
    """Other tensors or another config are refused by name, before any number is looked at."""
    with pytest.raises(IntegrityError) as caught:
        compare(adapter(**changes), adapter())

    assert what in caught.value.message


@pytest.mark.parametrize(("scale", "is_same"), [(1 + 1e-6, True), (1.1, False)])
def test_replaced_modules_are_compared_as_well(scale, is_same):
    """A head (`modules_to_save`) is compared value by value."""
    files = []
    for factor in (scale, 1.0):
        one = adapter_files(modules_to_save=["score"])
        numbers = [factor * number for number in range(1, 17)]
        one.tensors["base_model.model.score.weight"] = Tensor(dtype="F32", shape=(2, 8), content=pack(numbers, "F32"))
        files.append(adapter(one))

    if is_same:
        assert compare(*files).agreement is Agreement.TOLERANCE
        return
    with pytest.raises(IntegrityError, match=r"score\.weight"):
        compare(*files)


def test_nothing_is_not_something():
    """Where the recipe gives no delta at all, any delta is infinitely far away."""
    files = adapter_files()
    files.tensors |= {
        key: Tensor(dtype="F32", shape=entry.shape, content=bytes(len(entry.content)))
        for key, entry in files.tensors.items()
        if key.endswith("B.weight")
    }

    with pytest.raises(IntegrityError, match="inf"):
        compare(adapter(), adapter(files))


def test_the_manifest_does_not_count():
    """What is compared are the tensors and the config: a name or a time in the manifest changes nothing."""
    files = adapter_files()
    files.manifest = adapter().manifest.to_bytes().replace(b'"org/base"', b'"org/other"')

    assert MANIFEST_NAME in files.files()
    assert compare(adapter(files), adapter()).agreement is Agreement.BIT_EQUAL


@given(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(0, 3))
def test_steps_count_the_numbers_of_a_dtype(number, count):
    """From any number to the one that is n further up, n steps are counted; the two zeros are one."""
    further = torch.tensor([number], dtype=torch.float32)
    for _ in range(count):
        further = torch.nextafter(further, torch.tensor([torch.inf]))
    if not further.isfinite():
        return

    assert (_steps(further) - _steps(torch.tensor([number]))).item() == count
    assert _steps(torch.tensor([struct.unpack("f", struct.pack("f", -0.0))[0]])).item() == 0
