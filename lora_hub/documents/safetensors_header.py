"""The header of a safetensors file, read by hand: no torch, no allocation that a hostile length could choose.

https://huggingface.co/docs/safetensors, "Format": a little-endian length N of 8 bytes, N bytes of JSON, the tensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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
_FIELDS = {"dtype", "shape", "data_offsets"}
_HINT = "download the file again, or save the adapter again"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRules:
    """What a safetensors file may hold.

    Attributes:
        owner: What it is a file of, for hints.
        bits: Of one element, by dtype.
        may_be_empty: Whether a tensor may have no elements.
        max_tensors: How many there may be.
        max_metadata: Characters of its metadata.
    """

    owner: str
    bits: Mapping[str, int]
    may_be_empty: bool
    max_tensors: int
    max_metadata: int

    @property
    def max_values(self) -> int:
        """Commas and opening brackets in the header, of which a tensor has 14 at most: so many values may be built."""
        return 14 * self.max_tensors + self.max_metadata


ADAPTER = FileRules(
    owner="adapter",
    bits={dtype: 8 * size for dtype, size in ITEM_SIZE.items()},
    may_be_empty=False,
    max_tensors=MAX_TENSORS,
    max_metadata=MAX_METADATA,
)
# https://github.com/huggingface/safetensors, `Dtype`: a base model may hold all of them.
CHECKPOINT = FileRules(
    owner="checkpoint",
    bits={
        **dict.fromkeys(("F4",), 4),
        **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
        **dict.fromkeys(("BOOL", "I8", "U8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
        **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
        **dict.fromkeys(("I32", "U32", "F32"), 32),
        **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
    },
    may_be_empty=True,
    max_tensors=262_144,
    max_metadata=1024 * 1024,
)


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


def read_header(content: Bytes, *, size: int | None = None, rules: FileRules = ADAPTER) -> dict[str, TensorInfo]:
    """Return the tensors of the safetensors file *content*, by name.

    Args:
        content: The whole file, or its beginning up to the end of the header at least.
        size: Bytes of the whole file, if *content* is only its beginning.
        rules: What the file may hold.

    Raises:
        MalformedError: Truncated, bytes that belong to no tensor, overlapping tensors, or what the *rules* forbid: by
            default empty tensors, a dtype that no adapter has, more than the limits above.
    """
    return read_header_and_metadata(content, size=size, rules=rules)[0]


def read_header_and_metadata(
    content: Bytes, *, size: int | None = None, rules: FileRules = ADAPTER
) -> tuple[dict[str, TensorInfo], dict[str, str] | None]:
    """Return what `read_header` returns, and the metadata of the file, or None where it has none."""
    size = len(content) if size is None else size
    start = header_end(content, size=size)
    header = _parse(bytes(content[_LENGTH:start]), rules)
    metadata = header.pop("__metadata__", None)
    _check_metadata({} if metadata is None else metadata, rules)
    if len(header) > rules.max_tensors:
        raise _too_many(f"{len(header)} tensors", rules)
    tensors = {name: _tensor_info(name, entry, start, rules) for name, entry in header.items()}
    _check_no_gaps(tensors, start, size)
    return tensors, metadata


def write_header(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None) -> bytes:
    """Return the beginning of a safetensors file that holds *tensors*, dtype and shape by name, in this order.

    It is padded with spaces to a multiple of 8 bytes, as the format's own writer does.
    """
    entries: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    position = 0
    for name, (dtype, shape) in tensors.items():
        stop = position + math.prod(shape) * CHECKPOINT.bits[dtype] // 8
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _LENGTH)
    return len(text).to_bytes(_LENGTH, "little") + text


def _parse(text: bytes, rules: FileRules) -> dict[str, Any]:
    """Return the JSON object that *text* spells from its first byte on; only spaces may follow it."""
    if len(text) > rules.max_values < sum(map(text.count, (b",", b"[", b"{"))):
        raise _too_many(f"a header of more than {rules.max_values} values", rules)
    if not text.startswith(b"{") or not text.rstrip(b" ").endswith(b"}"):
        raise MalformedError("the safetensors header must begin with `{` and end with `}`", hint=_HINT)
    return parse_json_object(text, what="the safetensors header", limit=MAX_HEADER)


def _too_many(found: str, rules: FileRules) -> MalformedError:
    return MalformedError(
        f"the safetensors file has {found}, at most {rules.max_tensors} tensors are read",
        hint=f"it is no {rules.owner}",
    )


def _check_metadata(metadata: object, rules: FileRules) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise MalformedError("the metadata of the safetensors file must map strings to strings", hint=_HINT)
    length = sum(len(key) + len(value) for key, value in metadata.items())
    if length > rules.max_metadata:
        raise MalformedError(
            f"the metadata of the safetensors file has {length} characters, at most {rules.max_metadata} are read",
            hint=_HINT,
        )


def _tensor_info(name: str, entry: Any, data_start: int, rules: FileRules) -> TensorInfo:  # noqa: ANN401
    if len(name) > MAX_NAME:
        raise MalformedError(
            f"tensor {printable(name)} has a name of {len(name)} characters, at most {MAX_NAME} are read", hint=_HINT
        )
    if not _is_entry(entry):
        raise MalformedError(
            f"the entry of tensor {printable(name)} in the safetensors header is malformed", hint=_HINT
        )
    dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in rules.bits:
        raise MalformedError(
            f"tensor {printable(name)} has dtype {printable(dtype)}, expected one of {', '.join(rules.bits)}",
            hint=f"save the {rules.owner} in one of these dtypes",
        )
    expected, beyond = divmod(math.prod(shape) * rules.bits[dtype], 8)
    if beyond:
        raise MalformedError(
            f"tensor {printable(name)} of shape {shape} and dtype {dtype} ends within a byte", hint=_HINT
        )
    if not expected and not rules.may_be_empty:
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
