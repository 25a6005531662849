"""The header of a safetensors file, read by hand: no torch, no allocation that a hostile length could choose.

https://huggingface.co/docs/safetensors, "Format": a little-endian length N of 8 bytes, N bytes of JSON, the tensors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

from lora_hub.documents.fields import Bytes, parse_json_object, printable
from lora_hub.errors import MalformedError

MAX_HEADER = 16 * 1024 * 1024  # bytes
MAX_TENSORS = 65_536
MAX_NAME = 512  # characters of a tensor's name
MAX_METADATA = 64 * 1024  # characters
MAX_AXES = 8
MAX_SIZE = 2**48  # of an axis and of an offset
ITEM_SIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes; what an adapter may be stored in
_LENGTH = 8  # bytes
_FIELDS = {"dtype", "shape", "data_offsets"}
# Commas and opening brackets in the header, of which a tensor has 14 at most: so many values may be built in memory.
_MAX_VALUES = 14 * MAX_TENSORS + MAX_METADATA
# NaN and infinity have all bits of the exponent set. Where those lie in the two high bytes, little-endian: (mask of the
# highest byte, mask of the next one).
_EXPONENT = {"F64": (0x7F, 0xF0), "F32": (0x7F, 0x80), "BF16": (0x7F, 0x80), "F16": (0x7C, 0x00)}
# The highest bytes that a value which is not finite can have, by their mask.
_SUSPECT = {m: [bytes([byte]) for byte in range(256) if byte & m == m] for m, _ in _EXPONENT.values()}
# For each byte, whether it has all bits of a mask set.
_ALL_SET = {m: bytes(byte & m == m for byte in range(256)) for masks in _EXPONENT.values() for m in masks}
_BLOCK = 256 * 1024  # bytes that are looked at together, few enough for the processor's cache
_HINT = "download the file again, or save the adapter again"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies: ``start`` and ``stop`` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def header_end(start: Bytes, *, size: int) -> int:
    """Return where the header ends in a safetensors file of *size* bytes that begins with *start*, 8 bytes at least."""
    if len(start) < _LENGTH:
        raise MalformedError(f"the safetensors file is truncated: {len(start)} bytes", hint=_HINT)
    length = int.from_bytes(start[:_LENGTH], "little")
    if length > min(MAX_HEADER, size - _LENGTH):
        raise MalformedError(
            f"the safetensors file is truncated or no safetensors file: its header claims {length} bytes, "
            f"{size - _LENGTH} follow, at most {MAX_HEADER} are read",
            hint=_HINT,
        )
    return _LENGTH + length


def read_header(content: Bytes, *, size: int | None = None) -> dict[str, TensorInfo]:
    """Return the tensors of the safetensors file *content*, by name.

    Args:
        content: The whole file, or its beginning up to the end of the header at least.
        size: Bytes of the whole file, if *content* is only its beginning.

    Raises:
        MalformedError: Truncated, bytes that belong to no tensor, overlapping or empty tensors, a dtype that no adapter
            has, or more than the limits above.
    """
    size = len(content) if size is None else size
    start = header_end(content, size=size)
    header = _parse(bytes(content[_LENGTH:start]))
    _check_metadata(header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise _too_many(f"{len(header)} tensors")
    tensors = {name: _tensor_info(name, entry, start) for name, entry in header.items()}
    _check_no_gaps(tensors, start, size)
    return tensors


def _parse(text: bytes) -> dict[str, Any]:
    """Return the JSON object that *text* spells from its first byte on; only spaces may follow it."""
    if len(text) > _MAX_VALUES < sum(map(text.count, (b",", b"[", b"{"))):
        raise _too_many(f"a header of more than {_MAX_VALUES} values")
    if not text.startswith(b"{") or not text.rstrip(b" ").endswith(b"}"):
        raise MalformedError("the safetensors header must begin with `{` and end with `}`", hint=_HINT)
    return parse_json_object(text, what="the safetensors header", limit=MAX_HEADER)


def _too_many(found: str) -> MalformedError:
    return MalformedError(
        f"the safetensors file has {found}, at most {MAX_TENSORS} tensors are read", hint="it is no adapter"
    )


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedError("the metadata of the safetensors file must map strings to strings", hint=_HINT)
    length = sum(len(key) + len(value) for key, value in metadata.items())
    if length > MAX_METADATA:
        raise MalformedError(
            f"the metadata of the safetensors file has {length} characters, at most {MAX_METADATA} are read", hint=_HINT
        )


def _tensor_info(name: str, entry: Any, data_start: int) -> TensorInfo:  # noqa: ANN401
    if len(name) > MAX_NAME:
        raise MalformedError(
            f"tensor {printable(name)} has a name of {len(name)} characters, at most {MAX_NAME} are read", hint=_HINT
        )
    if not _is_entry(entry):
        raise MalformedError(
            f"the entry of tensor {printable(name)} in the safetensors header is malformed", hint=_HINT
        )
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in ITEM_SIZE:
        raise MalformedError(
            f"tensor {printable(name)} has dtype {printable(dtype)}, expected one of {', '.join(ITEM_SIZE)}",
            hint="save the adapter in one of these dtypes",
        )
    expected = math.prod(shape) * ITEM_SIZE[dtype]
    if not expected:
        raise MalformedError(
            f"tensor {printable(name)} of shape {shape} is empty",
            hint="it was saved before ZeRO-3 or FSDP gathered it: gather, then save",
        )
    if stop - start != expected:
        raise MalformedError(
            f"tensor {printable(name)} of shape {shape} and dtype {dtype} needs {expected} bytes, "
            f"its offsets {start}..{stop} hold {stop - start}",
            hint=_HINT,
        )
    return TensorInfo(dtype=dtype, shape=tuple(shape), start=data_start + start, stop=data_start + stop)


def _is_entry(entry: Any) -> bool:  # noqa: ANN401
    """Whether *entry* has the three fields of a tensor and no other; a `match` takes four times as long."""
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        return False
    shape, offsets = entry["shape"], entry["data_offsets"]
    return (
        isinstance(entry["dtype"], str)
        and isinstance(shape, list)
        and isinstance(offsets, list)
        and len(shape) <= MAX_AXES
        and len(offsets) == 2  # noqa: PLR2004 - start and stop
        and _are_sizes(shape + offsets)
    )


def _are_sizes(values: list[Any]) -> bool:
    for value in values:  # noqa: SIM110 - twice as fast as `all` of so few
        if type(value) is not int or not 0 <= value < MAX_SIZE:
            return False
    return True


def _check_no_gaps(tensors: dict[str, TensorInfo], start: int, end: int) -> None:
    """Every byte belongs to exactly one tensor: nothing hidden, nothing shared, nothing missing."""
    position = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != position:
            raise MalformedError(
                f"tensor {printable(name)} starts at byte {tensor.start}, expected {position}: "
                "tensors must follow each other without gap or overlap",
                hint=_HINT,
            )
        position = tensor.stop
    if position != end:
        raise MalformedError(f"the safetensors file has {end} bytes, its header describes {position}", hint=_HINT)


def are_finite(content: Bytes, tensors: Iterable[TensorInfo]) -> bool:
    """Whether `is_finite` is true of all *tensors* of the file *content*; neighbours of one dtype are read as one."""
    in_order = sorted(tensors, key=attrgetter("start"))
    for _, neighbours in itertools.groupby(in_order, key=attrgetter("dtype")):
        run = list(neighbours)
        if not is_finite(content, replace(run[0], stop=run[-1].stop)):
            return False
    return True


def is_finite(content: Bytes, tensor: TensorInfo) -> bool:
    """Whether no value of *tensor* in the file *content* is NaN or infinite (IEEE 754, bfloat16 likewise)."""
    blocks = range(tensor.start, tensor.stop, _BLOCK)
    return all(_is_block_finite(content, start, min(start + _BLOCK, tensor.stop), tensor.dtype) for start in blocks)


def _is_block_finite(content: Bytes, start: int, stop: int, dtype: str) -> bool:
    size = ITEM_SIZE[dtype]
    high_mask, next_mask = _EXPONENT[dtype]
    high = content[start + size - 1 : stop : size]
    # In a sane adapter no value is that large, so this is all that runs.
    if not any(byte in high for byte in _SUSPECT[high_mask]):
        return True
    following = content[start + size - 2 : stop : size]
    one, two = (high.translate(_ALL_SET[high_mask]), following.translate(_ALL_SET[next_mask]))
    return not int.from_bytes(one, "little") & int.from_bytes(two, "little")
