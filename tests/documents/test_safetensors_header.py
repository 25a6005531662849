"""The header of a safetensors file: read by hand, with the reference implementation as the oracle."""

import json
import math
import struct
import time
import tracemalloc
from mmap import mmap

import pytest
from adapter_files import Tensor, adapter_files, join_header, lora_key, pack, safetensors, tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_hub.documents.finite import are_finite, is_finite
from lora_hub.documents.safetensors_header import (
    ITEM_SIZE,
    MAX_HEADER,
    MAX_METADATA,
    MAX_NAME,
    MAX_TENSORS,
    read_header,
)
from lora_hub.errors import MalformedError

VALID = safetensors({"a": tensor(2, 3), "b": tensor(4, seed=1), "c": tensor(1, 2, dtype="BF16")}, {"format": "pt"})
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def entry(**changes):
    return {"a": F32 | changes}


@pytest.mark.parametrize("dtype", ITEM_SIZE)
def test_tensors_lie_where_they_were_written(dtype):
    """Each tensor is found by name, with its dtype, its shape and exactly its bytes."""
    tensors = {"a": tensor(2, 3, dtype=dtype), "b": tensor(4, seed=1, dtype=dtype)}
    content = safetensors(tensors, {"format": "pt"})
    found = read_header(content)

    assert {name: (info.dtype, info.shape) for name, info in found.items()} == {
        "a": (dtype, (2, 3)),
        "b": (dtype, (4,)),
    }
    assert all(content[found[name].start : found[name].stop] == tensors[name].content for name in tensors)


def test_a_bytearray_reads_like_bytes():
    """What was read from a file into a bytearray needs no copy."""
    assert read_header(bytearray(VALID)) == read_header(VALID)


def test_a_file_without_tensors_has_none():
    """An empty header is a valid file; whether an adapter may be empty is not decided here."""
    assert read_header(join_header({}, b"")) == {}


@pytest.mark.parametrize("size", range(0, len(VALID), 7))
def test_a_truncated_file_is_refused(size):
    """A file that ends anywhere too early is refused as malformed."""
    with pytest.raises(MalformedError) as caught:
        read_header(VALID[:size])

    assert caught.value.exit_code == 8
    assert caught.value.hint


@pytest.mark.parametrize(
    ("header", "content"),
    [
        pytest.param(entry(dtype="F128"), bytes(8), id="dtype_is_unknown"),
        pytest.param(entry(dtype="I64", shape=[1]), bytes(8), id="dtype_is_an_integer"),
        pytest.param(entry(dtype="F8_E4M3", shape=[8]), bytes(8), id="dtype_is_float8"),
        pytest.param(entry(dtype=None), bytes(8), id="dtype_is_null"),
        pytest.param(entry(shape=[-2]), bytes(8), id="size_is_negative"),
        pytest.param(entry(shape=[2.0]), bytes(8), id="size_is_a_float"),
        pytest.param(entry(shape=[True, 2]), bytes(8), id="size_is_true"),
        pytest.param(entry(shape="2"), bytes(8), id="shape_is_a_string"),
        pytest.param(entry(shape=2), bytes(8), id="shape_is_a_number"),
        pytest.param(entry(shape=[1] * 9 + [2]), bytes(8), id="shape_is_too_long"),
        pytest.param(entry(shape=[2**40, 2**40], data_offsets=[0, 2**82]), bytes(8), id="shape_overflows"),
        pytest.param(entry(shape=[3]), bytes(8), id="shape_needs_more_bytes"),
        pytest.param(entry(shape=[1]), bytes(8), id="shape_needs_fewer_bytes"),
        pytest.param(entry(data_offsets=[8, 0]), bytes(8), id="offsets_fall"),
        pytest.param(entry(data_offsets=[-8, 0]), bytes(8), id="offset_is_negative"),
        pytest.param(entry(data_offsets=[0.0, 8.0]), bytes(8), id="offsets_are_floats"),
        pytest.param(entry(data_offsets=[False, 8]), bytes(8), id="offset_is_false"),
        pytest.param(entry(data_offsets=[0]), bytes(8), id="offset_is_missing"),
        pytest.param(entry(data_offsets=[0, 4, 8]), bytes(8), id="offset_too_many"),
        pytest.param({"a": [0, 8]}, bytes(8), id="entry_is_a_list"),
        pytest.param({"a": None}, bytes(8), id="entry_is_null"),
        pytest.param({"a": {"dtype": "F32", "shape": [2]}}, bytes(8), id="offsets_are_missing"),
        pytest.param({"a": F32, "b": F32}, bytes(8), id="tensors_overlap"),
        pytest.param({"a": F32, "b": F32 | {"data_offsets": [4, 12]}}, bytes(12), id="tensors_overlap_by_half"),
        pytest.param({"a": F32, "b": F32 | {"data_offsets": [12, 20]}}, bytes(20), id="gap_between_tensors"),
        pytest.param(entry(data_offsets=[4, 12]), bytes(12), id="gap_before_the_first"),
        pytest.param({"a": F32}, bytes(9), id="bytes_after_the_last"),
        pytest.param({}, bytes(1), id="bytes_without_a_tensor"),
        pytest.param({"a": F32}, bytes(7), id="bytes_are_missing"),
        pytest.param({"__metadata__": {"a": 1}, "a": F32}, bytes(8), id="metadata_holds_a_number"),
        pytest.param({"__metadata__": [], "a": F32}, bytes(8), id="metadata_is_a_list"),
        pytest.param({"__metadata__": {"a": "x" * MAX_METADATA}, "a": F32}, bytes(8), id="metadata_is_too_long"),
        pytest.param(entry(extra=None), bytes(8), id="entry_has_an_unknown_field"),
        pytest.param({"x" * (MAX_NAME + 1): F32}, bytes(8), id="name_is_too_long"),
        pytest.param(entry(shape=[0], data_offsets=[0, 0]), b"", id="tensor_is_empty"),
        pytest.param(entry(shape=[0, 2**47], data_offsets=[0, 0]), b"", id="tensor_is_empty_and_wide"),
        pytest.param([], b"", id="header_is_a_list"),
        pytest.param(None, b"", id="header_is_null"),
    ],
)
def test_a_malformed_header_is_refused(header, content):
    """Each defect of a header is refused as malformed."""
    with pytest.raises(MalformedError):
        read_header(join_header(header, content))


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, MAX_HEADER + 1, 2**31, 100])
def test_a_header_that_claims_too_much_is_refused(length):
    """A length beyond the file, or beyond the limit, allocates nothing."""
    with pytest.raises(MalformedError, match="header claims"):
        read_header(struct.pack("<Q", length) + b"{}")


def test_a_header_beyond_the_limit_is_refused():
    """A header that is really there, but larger than the limit, is not parsed."""
    content = struct.pack("<Q", MAX_HEADER + 8) + b"{}" + b" " * (MAX_HEADER + 6)

    with pytest.raises(MalformedError, match="at most"):
        read_header(content)


def many(count: int) -> bytes:
    header = {f"{i}": {"dtype": "F32", "shape": [1] * 8, "data_offsets": [4 * i, 4 * i + 4]} for i in range(count)}
    return join_header(header, bytes(4 * count))


def test_the_number_of_tensors_is_bounded():
    """So many tensors are read, of as many axes as there may be, and not one more."""
    assert len(read_header(many(MAX_TENSORS))) == MAX_TENSORS

    with pytest.raises(MalformedError, match=f"{MAX_TENSORS + 1} tensors"):
        read_header(many(MAX_TENSORS + 1))


@pytest.mark.parametrize(
    ("begin", "repeated", "end"),
    [
        (b'{"a":[0', b",0", b"]}"),
        (b'{"a":[[]', b",[]", b"]}"),
        (b'{"a":[{}', b",{}", b"]}"),
        (b'{"a":0', b',"b":0', b"}"),
        (b'{"a":[[[]]', b",[[[[[[[[[[[[[]]]]]]]]]]]]]", b"]}"),
    ],
    ids=lambda text: text.decode(),
)
def test_a_header_of_many_values_takes_no_memory(begin, repeated, end):
    """A header that would fill the memory with small values is refused before it is parsed."""
    text = begin + repeated * ((MAX_HEADER - 100) // len(repeated)) + end
    content = struct.pack("<Q", len(text)) + text
    tracemalloc.start()
    try:
        with pytest.raises(MalformedError, match="values"):
            read_header(content)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 2 * MAX_HEADER + 2**20


def test_a_duplicate_tensor_is_refused():
    """A name that stands twice is refused, whichever of the two a reader would have taken."""
    one = json.dumps(F32)
    text = f'{{"a": {one}, "a": {one}}}'.encode()

    with pytest.raises(MalformedError, match="twice"):
        read_header(struct.pack("<Q", len(text)) + text + bytes(8))


def test_a_hostile_name_moves_no_cursor():
    """The name of a malformed tensor is shown escaped."""
    with pytest.raises(MalformedError) as caught:
        read_header(join_header({"\x1b]0;owned\x07": None}, b""))

    assert str(caught.value).isprintable()


MUTATIONS = st.lists(
    st.tuples(st.integers(0, len(VALID) - 1), st.integers(0, 255), st.sampled_from(["set", "insert", "delete"])),
    min_size=1,
    max_size=4,
)


def mutate(content: bytes, mutations) -> bytes:
    changed = bytearray(content)
    for position, value, kind in mutations:
        at = min(position, len(changed) - 1)
        match kind:
            case "set":
                changed[at] = value
            case "insert":
                changed.insert(at, value)
            case "delete":
                del changed[at]
    return bytes(changed)


def accepts(content: bytes) -> bool:
    """Whether we read *content*; anything raised but `MalformedError` is a failure of the test."""
    try:
        read_header(content)
    except MalformedError:
        return False
    return True


@given(MUTATIONS)
@settings(deadline=None, max_examples=500)
def test_a_mutated_file_raises_nothing_but_malformed(mutations):
    """Whatever happens to the bytes of a file, it is read or it is malformed; and what we read, others read too."""
    content = mutate(VALID, mutations)

    assert not accepts(content) or _read_by_safetensors(content) is not None


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-4, 40) | st.floats(-4, 40) | st.sampled_from(["F32", "F16", "BF16", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["dtype", "shape"]), inner, max_size=2),
    max_leaves=4,
)
ENTRIES = JSON_VALUES | st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "I8"]),
        "shape": st.lists(st.integers(0, 4), max_size=3),
        "data_offsets": st.lists(st.integers(0, 24), min_size=2, max_size=2),
    },
    optional={"extra": JSON_VALUES},
)


@given(st.dictionaries(st.sampled_from(["a", "b", "__metadata__"]), ENTRIES, max_size=3), st.binary(max_size=24))
@settings(deadline=None, max_examples=500)
def test_an_invented_header_raises_nothing_but_malformed(header, content):
    """Whatever a header says, it is read or it is malformed; and what we read, others read too."""
    content = join_header(header, content)

    assert not accepts(content) or _read_by_safetensors(content) is not None


@pytest.mark.parametrize(
    ("text", "is_read"),
    [(b'{"a": %s}       ', True), (b' {"a": %s}', False), (b'\n{"a": %s}', False), (b'{"a": %s}\n', False)],
)
def test_only_spaces_stand_around_the_header_and_only_behind_it(text, is_read):
    """The header begins with `{` and may be padded with spaces, as the format has it; the reference is more lenient."""
    text %= json.dumps(F32).encode()
    content = struct.pack("<Q", len(text)) + text + bytes(8)

    assert accepts(content) == is_read
    assert not is_read or _read_by_safetensors(content) is not None


def test_the_reference_reads_what_we_make():
    """The files that these tests make by hand are files that the reference implementation reads alike."""
    adapter = adapter_files()
    read = dict(_read_by_safetensors(adapter.files()["adapter_model.safetensors"]))
    key = lora_key("model.layers.0.self_attn.q_proj", "A")

    assert read.keys() == adapter.tensors.keys()
    assert read[key]["shape"] == [2, 8]
    assert bytes(read[key]["data"]) == adapter.tensors[key].content


FORMATS = {"F64": "d", "F32": "f", "F16": "e"}


def tensor_of(dtype: str, content: bytes):
    """Return a file with one tensor that has these bytes, and where the tensor lies."""
    file = safetensors({"a": Tensor(dtype=dtype, shape=(len(content) // ITEM_SIZE[dtype],), content=content)})
    return file, read_header(file)["a"]


def values_of(dtype: str, content: bytes) -> tuple[float, ...]:
    if dtype == "BF16":  # the upper half of a float32
        content = b"".join(b"\0\0" + content[i : i + 2] for i in range(0, len(content), 2))
    kind = FORMATS.get(dtype, "f")
    return struct.unpack(f"<{len(content) // struct.calcsize(kind)}{kind}", content)


@pytest.mark.parametrize("dtype", ITEM_SIZE)
@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_finite_is_what_ieee_754_says(dtype, data):
    """Whatever the bits, a tensor is finite exactly when each of its values is."""
    size = ITEM_SIZE[dtype]
    extreme = st.sampled_from([0x00, 0x7B, 0x7C, 0x7E, 0x7F, 0x80, 0xEF, 0xF0, 0xFB, 0xFC, 0xFF])
    value = st.lists(extreme | st.integers(0, 255), min_size=size, max_size=size).map(bytes)
    content = b"".join(data.draw(st.lists(value, min_size=1, max_size=3)))
    file, info = tensor_of(dtype, content)

    assert is_finite(file, info) == all(map(math.isfinite, values_of(dtype, content)))
    assert is_finite(bytearray(file), info) == is_finite(file, info)


VALUES = st.floats() | st.sampled_from([math.nan, math.inf, 0.0, 1.5, 65504.0, 3.3e38])


def as_read(make, content: bytes):
    memory = make(content) if make is not mmap else mmap(-1, len(content))
    if make is mmap:
        memory[:] = content
    return memory


@pytest.mark.parametrize("make", [bytes, bytearray, mmap])
@given(st.lists(st.tuples(st.sampled_from(list(ITEM_SIZE)), st.lists(VALUES, min_size=1, max_size=3)), max_size=6))
@settings(deadline=None, max_examples=300)
def test_tensors_are_finite_if_each_one_is(make, drawn):
    """Read in large runs or one by one, of whatever dtypes side by side, tensors are finite alike."""
    tensors = {
        f"{9 - i}": Tensor(dtype=dtype, shape=(len(values),), content=packed(values, dtype))
        for i, (dtype, values) in enumerate(drawn)
    }
    content = safetensors(tensors)
    found = read_header(content)
    file = as_read(make, content)

    assert are_finite(file, found.values()) == all(is_finite(file, info) for info in found.values())
    assert are_finite(file, found.values()) == all(
        map(math.isfinite, (v for t in tensors.values() for v in values_of(t.dtype, t.content)))
    )


def packed(values, dtype: str) -> bytes:
    """Return *values* in *dtype*: one that is too large for it becomes infinite."""
    kind = FORMATS.get(dtype)
    if kind is None:  # the upper half of a float32
        full = packed(values, "F32")
        return b"".join(full[i + 2 : i + 4] for i in range(0, len(full), 4))
    return b"".join(_pack_one(value, kind) for value in values)


def _pack_one(value: float, kind: str) -> bytes:
    try:
        return struct.pack(f"<{kind}", value)
    except OverflowError:
        return struct.pack(f"<{kind}", math.copysign(math.inf, value))


def test_what_is_not_finite_is_found_in_any_block():
    """In tensors that are larger together than what is looked at at once, the first and the last value count."""
    count = 100_000  # values: 400 kB
    for position in (0, 65_535, 65_536, count - 1, count, 2 * count - 1):
        numbers = [0.5] * (2 * count)
        numbers[position] = math.nan
        halves = (numbers[:count], numbers[count:])
        content = safetensors(
            {
                f"{i}": Tensor(dtype="F32", shape=(count,), content=struct.pack(f"<{count}f", *half))
                for i, half in enumerate(halves)
            }
        )
        found = read_header(content)

        assert not are_finite(content, found.values())
        assert [is_finite(content, found[name]) for name in "01"] == [position >= count, position < count]


def test_many_large_numbers_take_no_time():
    """A tensor of which each value looks like NaN at first sight is read about as fast as any other."""
    content, info = tensor_of("F16", b"\0\x7b" * 8_000_000)
    hostile, suspect = tensor_of("BF16", b"\x7f\x7f" * 8_000_000)
    start = time.perf_counter()

    assert is_finite(content, info)
    assert is_finite(hostile, suspect)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ITEM_SIZE)
def test_one_value_that_is_not_finite_is_found(dtype, number):
    """One NaN among many numbers is found, and the largest finite numbers are not taken for one."""
    largest = {"F64": 1.7e308, "F32": 3.4e38, "BF16": 3.3e38, "F16": 65504.0}[dtype]
    numbers = [0.0, -0.0, 1.5, largest, -largest] * 3

    assert is_finite(*tensor_of(dtype, pack(numbers, dtype)))
    assert not is_finite(*tensor_of(dtype, pack([*numbers, number, 1.0], dtype)))


def _read_by_safetensors(content: bytes):
    """Return what the reference implementation reads, or None if it refuses."""
    from safetensors import SafetensorError, deserialize

    try:
        return deserialize(content)
    except SafetensorError:
        return None
