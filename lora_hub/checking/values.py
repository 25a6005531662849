"""What the numbers of an adapter are, told from their bytes: finite, all zero, the same twice. No tensor is made."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from lora_hub.documents.fields import Bytes
from lora_hub.documents.finite import are_finite, is_finite
from lora_hub.documents.safetensors_header import ITEM_SIZE, TensorInfo

_GLANCE = 64  # bytes that nearly every tensor differs in from zero, and from every other
_BLOCK = 256 * 1024  # bytes, a multiple of every item's size
_CANDIDATES = 1000  # that are compared with each other; a model has fewer layers
_WITHOUT_SIGN = bytes(byte & 0x7F for byte in range(256))


class Values:
    """The numbers in the safetensors file *content*, whose *tensors* are known by name."""

    def __init__(self, content: Bytes, tensors: Mapping[str, TensorInfo]) -> None:
        self._content = content
        # Of a dtype that no adapter has nothing is said; nor of what lies beyond the end of the file.
        self._tensors = {k: t for k, t in tensors.items() if t.dtype in ITEM_SIZE and t.stop <= len(content)}

    def not_finite(self) -> list[str]:
        """Return the keys of the tensors that hold NaN or infinity."""
        if are_finite(self._content, self._tensors.values()):
            return []
        return [key for key, tensor in self._tensors.items() if not is_finite(self._content, tensor)]

    def is_zero(self, key: str) -> bool:
        """Whether every number of the tensor at *key* is zero, of either sign; False if it cannot be read."""
        tensor = self._tensors.get(key)
        if tensor is None or tensor.start == tensor.stop:
            return False
        return all(
            _is_zero(self._content[start : min(start + _BLOCK, tensor.stop)], ITEM_SIZE[tensor.dtype])
            for start in _starts(tensor)
        )

    def groups_of_equals(self, keys: Iterable[Sequence[str]]) -> list[list[Sequence[str]]]:
        """Return those of *keys*, each one a few tensors that belong together, that hold the same numbers as others."""
        alike: defaultdict[tuple[object, ...], list[Sequence[str]]] = defaultdict(list)
        for group in keys:
            if all(key in self._tensors for key in group):
                alike[tuple(self._glance(key) for key in group)].append(group)
        return [same for candidates in alike.values() for same in self._equal(candidates)]

    def _glance(self, key: str) -> tuple[object, ...]:
        tensor = self._tensors[key]
        middle = (tensor.start + tensor.stop) // 2
        spots = (tensor.start, middle, max(tensor.start, tensor.stop - _GLANCE))
        samples = (bytes(self._content[spot : min(spot + _GLANCE, tensor.stop)]) for spot in spots)
        return (tensor.dtype, tensor.shape, *samples)

    def _equal(self, candidates: list[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
        candidates = candidates[:_CANDIDATES]
        while len(candidates) > 1:
            first, *others = candidates
            same = [other for other in others if all(map(self._are_same, first, other))]
            if same:
                yield [first, *same]
            candidates = [other for other in others if other not in same]

    def _are_same(self, one: str, other: str) -> bool:
        first, second = self._tensors[one], self._tensors[other]
        return all(
            self._content[start : min(start + _BLOCK, first.stop)] == self._content[begin : begin + size]
            for start, begin, size in _steps(first, second)
        )

    def size(self, key: str) -> int:
        """Return how many numbers the tensor at *key* has."""
        return math.prod(self._tensors[key].shape) if key in self._tensors else 0


def _starts(tensor: TensorInfo) -> Iterator[int]:
    """Yield where the pieces of *tensor* begin: a glance first, since that is nearly always enough."""
    return itertools.chain([max(tensor.start, tensor.stop - _GLANCE)], range(tensor.start, tensor.stop, _BLOCK))


def _steps(first: TensorInfo, second: TensorInfo) -> Iterator[tuple[int, int, int]]:
    for start in range(first.start, first.stop, _BLOCK):
        yield start, second.start + start - first.start, min(_BLOCK, first.stop - start)


def _is_zero(block: Bytes, size: int) -> bool:
    """Whether all numbers of *size* bytes in *block* are 0.0 or -0.0, little-endian: nothing but signs is set."""
    content = bytes(block)
    if not content.strip(b"\0"):
        return True
    signs = content[size - 1 :: size].translate(_WITHOUT_SIGN)
    return not signs.strip(b"\0") and all(not content[place::size].strip(b"\0") for place in range(size - 1))
