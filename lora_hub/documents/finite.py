"""Whether the values of a safetensors file are numbers, found in its bytes: no torch, and no copy of the whole."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from operator import attrgetter

from lora_hub.documents.fields import Bytes
from lora_hub.documents.safetensors_header import ITEM_SIZE, TensorInfo

# NaN and infinity have all bits of the exponent set. Where those lie in the two high bytes, little-endian: (mask of the
# highest byte, mask of the next one).
_EXPONENT = {"F64": (0x7F, 0xF0), "F32": (0x7F, 0x80), "BF16": (0x7F, 0x80), "F16": (0x7C, 0x00)}
# The highest bytes that a value which is not finite can have, by their mask.
_SUSPECT = {m: [bytes([byte]) for byte in range(256) if byte & m == m] for m, _ in _EXPONENT.values()}
# For each byte, whether it has all bits of a mask set.
_ALL_SET = {m: bytes(byte & m == m for byte in range(256)) for masks in _EXPONENT.values() for m in masks}
_BLOCK = 256 * 1024  # bytes that are looked at together, few enough for the processor's cache


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
