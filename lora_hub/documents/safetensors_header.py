"""The header of a safetensors file, read by hand: no torch, no allocation that a hostile length could choose.

https://huggingface.co/docs/safetensors, "Format": a little-endian length N of 8 bytes, N bytes of JSON, the tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
# Commas and opening brackets in the header, of which a tensor has 14 at most: so many values may be built in memory.
_MAX_VALUES = 14 * MAX_TENSORS + MAX_METADATA
# NaN and infinity have all bits of the exponent set. Where those lie in the two high bytes, little-endian: (mask of the
# highest byte, mask of the next one).
_EXPONENT = {"F64": (0x7F, 0xF0), "F32": (0x7F, 0x80), "BF16": (0x7F, 0x80), "F16": (0x7C, 0x00)}
# The highest bytes that a value which is not finite can have, by their mask.
_SUSPECT = {m: [bytes([byte]) for byte in range(256) if byte & m == m] for m, _ in _EXPONENT.values()}
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
    if sum(map(text.count, (b",", b"[", b"{"))) > _MAX_VALUES:
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


def _tensor_info(name: str, entry: object, data_start: int) -> TensorInfo:
    if len(name) > MAX_NAME:
        raise MalformedError(
            f"tensor {printable(name)} has a name of {len(name)} characters, at most {MAX_NAME} are read", hint=_HINT
        )
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [start, stop], **more} if (
            not more and _are_sizes([*shape, start, stop])
        ):
            pass
        case _:
            raise MalformedError(
                f"the entry of tensor {printable(name)} in the safetensors header is malformed", hint=_HINT
            )
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


def _are_sizes(values: list[Any]) -> bool:
    return len(values) <= MAX_AXES + 2 and all(type(value) is int and 0 <= value < MAX_SIZE for value in values)


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


def is_finite(content: Bytes, tensor: TensorInfo) -> bool:
    """Whether no value of *tensor* in the file *content* is NaN or infinite (IEEE 754, bfloat16 likewise)."""
    blocks = range(tensor.start, tensor.stop, _BLOCK)
    return all(_is_block_finite(content[start : min(start + _BLOCK, tensor.stop)], tensor.dtype) for start in blocks)


def _is_block_finite(block: Bytes, dtype: str) -> bool:
    size = ITEM_SIZE[dtype]
    high_mask, next_mask = _EXPONENT[dtype]
    high = block[size - 1 :: size]
    # In a sane adapter no value is that large, so this is all that runs.
    if not any(byte in high for byte in _SUSPECT[high_mask]):
        return True
    following = block[size - 2 :: size]
    return not any(
        one & high_mask == high_mask and two & next_mask == next_mask for one, two in zip(high, following, strict=True)
    )
