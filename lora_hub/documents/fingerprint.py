"""The fingerprint of a base model: some weights of every targeted tensor, at positions that its name decides.

A vector, not a hash: two fingerprints of one base in different dtypes differ, and still can be compared. The positions
are logical ones, (output, input) of a module at a path, so a live model, a checkpoint in one file and one in shards,
and weights that lie transposed all have the same.

Of each tensor ``count`` weights are taken. The outputs follow the golden ratio, so any number of them is spread over
all rows, and a shorter sample is the beginning of a longer one; the inputs are drawn by SHAKE-256 of path and shape.
Every second weight is not the drawn one but the one nearest to zero, zeros apart, of the `WINDOW` inputs that begin
there. Floating-point numbers are densest around zero: there a step of training shows that a larger weight rounds away.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from lora_hub.documents.fields import Fields
from lora_hub.documents.floats import FORMATS, decode
from lora_hub.documents.runs import are_runs, runs_of

SCHEME = "golden-rows/v1"
WINDOW = 256  # inputs, of which the weight nearest to zero is taken
MAX_FEATURES = 2**31
MAX_COUNT = 256  # weights of one tensor
MIN_COUNT = 4
BUDGET = 16 * 1024  # bytes of all that is sampled, before base64 makes four of three
MAX_GROUPS = 256  # of modules whose names differ in more than the number of a layer; 300 bytes of JSON each
_GOLDEN = 2_654_435_769  # 2^32 / the golden ratio
_LAYER = re.compile(r"(?<![^.])\d{1,9}(?![^.])", re.ASCII)
_MODULE = re.compile(r"[A-Za-z0-9_*-]+(?:\.[A-Za-z0-9_*-]+){0,31}", re.ASCII)

Shape = tuple[int, int]  # [out, in]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """Weights of the linear module at ``path``, whose weight is ``shape`` ``[out, in]``.

    Attributes:
        path: In the model that the adapter is for.
        shape: Outputs and inputs, whichever way they lie in memory.
        dtype: What the weights were seen in: ``F64``, ``F32``, ``F16`` or ``BF16``.
        values: The weights, little-endian.
        offsets: Where in its window each second one lies, a byte for each.
    """

    path: str
    shape: Shape
    dtype: str
    values: bytes
    offsets: bytes

    @property
    def count(self) -> int:
        """How many weights there are."""
        return len(self.values) // FORMATS[self.dtype].size

    def positions(self) -> list[tuple[int, int]]:
        """Return (output, input) of each weight."""
        places = list(slots(self.path, self.shape, self.count))
        places[1::2] = [(row, start + offset) for (row, start), offset in zip(places[1::2], self.offsets, strict=True)]
        return places

    def first(self, count: int) -> Self:
        """Return the sample of the first *count* weights only."""
        size = FORMATS[self.dtype].size
        kept = min(count, self.count)
        return type(self)(
            path=self.path,
            shape=self.shape,
            dtype=self.dtype,
            values=self.values[: kept * size],
            offsets=self.offsets[: kept // 2],
        )


@functools.lru_cache(maxsize=1024)
def slots(path: str, shape: Shape, count: int) -> tuple[tuple[int, int], ...]:
    """Return (output, input) where each of *count* weights of a module is, or where its window begins."""
    outputs, inputs = shape
    drawn = hashlib.shake_256(f"{SCHEME}\n{path}\n{outputs} {inputs}".encode()).digest(4 * (count + 1))
    first, *columns = struct.unpack(f"<{count + 1}I", drawn)
    starts = (inputs, inputs - window(inputs) + 1)  # how many there are: of single weights, of windows
    return tuple(
        ((first + i * _GOLDEN) % 2**32 * outputs >> 32, column * starts[i % 2] >> 32)
        for i, column in enumerate(columns)
    )


def window(inputs: int) -> int:
    """Return how many inputs are looked at for the weight nearest to zero."""
    return min(WINDOW, inputs)


def counts(shapes: Mapping[str, Shape], size: int) -> dict[str, int]:
    """Return how many weights of *size* bytes to take of the modules with these *shapes*, by path.

    As many as `BUDGET` has room for. Where it has none for `MIN_COUNT` of each, or the names alone take too much, some
    modules are left out: by a digest of their paths, so that no layer and no projection is left out as a whole.
    """
    paths = sorted(shapes, key=lambda path: (hashlib.sha256(path.encode()).digest(), path))
    paths = paths[: BUDGET // _bytes(MIN_COUNT, size)]
    while len({(_template(path)[0], shapes[path]) for path in paths}) > MAX_GROUPS:
        paths = paths[: len(paths) // 2]
    each = 2 * int(BUDGET / max(1, len(paths)) / _bytes(2, size))
    return {path: max(MIN_COUNT, min(each, MAX_COUNT, math.prod(shapes[path]) // 8 * 2)) for path in sorted(paths)}


def _bytes(count: int, size: int) -> int:
    return count * size + count // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """Samples of the targeted tensors of a base model, in the order of their paths."""

    tensors: tuple[Sampled, ...]

    @classmethod
    def of(cls, tensors: Iterable[Sampled]) -> Self | None:
        """Return the fingerprint of *tensors*, or None if there is none."""
        found = tuple(sorted(tensors, key=lambda tensor: tensor.path))
        return cls(tensors=found) if found else None

    @property
    def count(self) -> int:
        """How many weights there are in all tensors."""
        return sum(tensor.count for tensor in self.tensors)

    def trimmed(self) -> Self:
        """Return as much of it as one base may take in a manifest."""
        size = max(FORMATS[tensor.dtype].size for tensor in self.tensors)
        kept = counts({tensor.path: tensor.shape for tensor in self.tensors}, size)
        return type(self)(tensors=tuple(t.first(kept[t.path]) for t in self.tensors if t.path in kept))

    def to_json(self) -> dict[str, Any]:
        """Return the value of ``base.fingerprint``: modules that differ in the number of their layer share an entry."""
        groups: dict[tuple[str, Shape, str, int], list[tuple[int | None, Sampled]]] = {}
        for tensor in self.tensors:
            template, layer = _template(tensor.path)
            groups.setdefault((template, tensor.shape, tensor.dtype, tensor.count), []).append((layer, tensor))
        return {"scheme": SCHEME, "tensors": [_group_to_json(key, group) for key, group in sorted(groups.items())]}

    @classmethod
    def parse(cls, fields: Fields) -> Self | None:
        """Return the fingerprint that *fields* spell, or None if it is one of a scheme that is newer than this code.

        Raises:
            DocumentError: A length contradicts another one, a number is NaN or infinite, a module stands twice.
        """
        if fields.text("scheme") != SCHEME:
            return None
        tensors = [tensor for group in fields.objects("tensors") for tensor in _parse_group(group)]
        if not tensors:
            fields.fail("tensors", "at least one group of modules")
        if len({tensor.path for tensor in tensors}) < len(tensors):
            fields.fail("tensors", "each module once")
        return cls.of(tensors)


def _template(path: str) -> tuple[str, int | None]:
    """Return *path* with a star for the number of its layer, and that number; the path alone where it has none."""
    found = _LAYER.search(path)
    if found is None or found[0] != str(int(found[0])):  # `07` would not come back as it was
        return path, None
    return f"{path[: found.start()]}*{path[found.end() :]}", int(found[0])


def _group_to_json(key: tuple[str, Shape, str, int], group: list[tuple[int | None, Sampled]]) -> dict[str, Any]:
    template, shape, dtype, _ = key
    ordered = sorted(group, key=lambda entry: entry[0] or 0)
    document: dict[str, Any] = {
        "module": template,
        "shape": list(shape),
        "dtype": dtype,
        "values": _to_base64(tensor.values for _, tensor in ordered),
        "offsets": _to_base64(tensor.offsets for _, tensor in ordered),
    }
    layers = [layer for layer, _ in ordered if layer is not None]
    return document | {"layers": runs_of(layers)} if layers else document


def _to_base64(pieces: Iterable[bytes]) -> str:
    return base64.b64encode(b"".join(pieces)).decode()


def _parse_group(fields: Fields) -> list[Sampled]:
    module = fields.text("module", "the path of a module, with a star for the number of its layer", _MODULE.fullmatch)
    dtype = fields.text("dtype", f"one of {', '.join(FORMATS)}", FORMATS.__contains__)
    rows, columns = fields.read("shape", list, f"two integers from 1 to {MAX_FEATURES}", _is_shape)
    values, offsets = _parse_base64(fields, "values"), _parse_base64(fields, "offsets")
    paths = _parse_paths(fields, module, len(values))
    size = FORMATS[dtype].size
    count, rest = divmod(len(values), size * len(paths))
    if rest or not 1 <= count <= MAX_COUNT:
        fields.fail("values", f"1 to {MAX_COUNT} numbers of {dtype} for each of {len(paths)} modules")
    if not all(map(math.isfinite, decode(values, dtype))):
        fields.fail("values", "finite numbers")
    if len(offsets) != len(paths) * (count // 2) or any(offset >= window(columns) for offset in offsets):
        fields.fail("offsets", f"{count // 2} bytes below {window(columns)} for each of {len(paths)} modules")
    return [
        Sampled(
            path=path,
            shape=(rows, columns),
            dtype=dtype,
            values=values[i * count * size : (i + 1) * count * size],
            offsets=offsets[i * (count // 2) : (i + 1) * (count // 2)],
        )
        for i, path in enumerate(paths)
    ]


def _parse_paths(fields: Fields, module: str, most: int) -> list[str]:
    """Return the modules of a group; there cannot be more than *most*."""
    stars = module.count("*")
    if stars != ("layers" in fields.values) or (stars and "*" not in module.split(".")):
        fields.fail("module", "one star for the number of its layer, exactly if there are `layers`")
    if not stars:
        return [module]
    runs = fields.read("layers", list, "runs `[start, stop]` in rising order", are_runs)
    if sum(stop - start for start, stop in runs) > most:
        fields.fail("layers", f"at most as many as there are values: {most} bytes")
    return [module.replace("*", str(layer)) for start, stop in runs for layer in range(start, stop)]


def _parse_base64(fields: Fields, key: str) -> bytes:
    text = fields.text(key, "bytes in base64", str.isascii)
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        fields.fail(key, "bytes in base64")


def _is_shape(shape: list[Any]) -> bool:
    return len(shape) == 2 and all(type(n) is int and 1 <= n <= MAX_FEATURES for n in shape)  # noqa: PLR2004
