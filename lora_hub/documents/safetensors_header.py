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
MAX_TENSORS = 100_000
ITEM_SIZE = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}  # bytes; what an adapter may be stored in
_LENGTH = 8  # bytes
_HINT = "download the file again, or save the adapter again"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where one tensor lies: ``start`` and ``stop`` are byte offsets in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


def read_header(content: Bytes) -> dict[str, TensorInfo]:
    """Return the tensors of the safetensors file *content*, by name.

    Raises:
        MalformedError: Truncated, bytes that belong to no tensor, overlapping tensors, a dtype that no adapter has, or
            a header beyond `MAX_HEADER` bytes or `MAX_TENSORS` tensors.
    """
    if len(content) < _LENGTH:
        raise MalformedError(f"the safetensors file is truncated: {len(content)} bytes", hint=_HINT)
    length = int.from_bytes(content[:_LENGTH], "little")
    if length > min(MAX_HEADER, len(content) - _LENGTH):
        raise MalformedError(
            f"the safetensors file is truncated or no safetensors file: its header claims {length} bytes, "
            f"{len(content) - _LENGTH} follow, at most {MAX_HEADER} are read",
            hint=_HINT,
        )
    start = _LENGTH + length
    header = parse_json_object(bytes(content[_LENGTH:start]), what="the safetensors header", limit=MAX_HEADER)
    _check_metadata(header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise MalformedError(f"the safetensors file has {len(header)} tensors, at most {MAX_TENSORS} are read")
    tensors = {name: _tensor_info(name, entry, start) for name, entry in header.items()}
    _check_no_gaps(tensors, start, len(content))
    return tensors


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedError("the metadata of the safetensors file must map strings to strings", hint=_HINT)


def _tensor_info(name: str, entry: object, data_start: int) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]} if _is_shape(shape):
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
    if not 0 <= start <= stop or stop - start != expected:
        raise MalformedError(
            f"tensor {printable(name)} of shape {shape} and dtype {dtype} needs {expected} bytes, "
            f"its offsets {start}..{stop} hold {stop - start}",
            hint=_HINT,
        )
    return TensorInfo(dtype=dtype, shape=tuple(shape), start=data_start + start, stop=data_start + stop)


def _is_shape(shape: list[Any]) -> bool:
    return len(shape) <= 8 and all(type(size) is int and 0 <= size < 2**40 for size in shape)  # noqa: PLR2004


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
