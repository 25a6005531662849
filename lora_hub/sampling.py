"""Weights at the positions of a fingerprint, gathered on the device where they are and brought here at once."""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from lora_hub.documents.fingerprint import Fingerprint, Sampled, Shape, counts, slots, window
from lora_hub.documents.floats import decode
from lora_hub.tensors import DTYPE_NAMES

Positions = Sequence[tuple[int, int]]  # (output, input)


def fingerprint_of_weights(weights: Mapping[str, Tensor]) -> Fingerprint | None:
    """Return the fingerprint of *weights* ``[out, in]``, by path of the module; None if there is none.

    What is not stored as a number of 16 bits or more is left out, and so is what holds NaN or infinity.
    """
    floating = {path: weight for path, weight in weights.items() if weight.dtype in DTYPE_NAMES}
    size = max((weight.itemsize for weight in floating.values()), default=1)
    wanted = counts({path: shape_of(weight) for path, weight in floating.items()}, size)
    groups = _alike({path: floating[path] for path in wanted})
    return Fingerprint.of(itertools.chain.from_iterable(_sample(group, wanted) for group in groups))


def gather(weights: Mapping[str, Tensor], positions: Mapping[str, Positions]) -> dict[str, bytes]:
    """Return the numbers of *weights* ``[out, in]`` at *positions*, little-endian, by path."""
    found: dict[str, bytes] = {}
    for group in _alike(weights):
        places = _to_device([positions[path] for path in group], next(iter(group.values())).device)
        values = [weight[place[:, 0], place[:, 1]] for weight, place in zip(group.values(), places, strict=True)]
        found |= zip(group, _to_bytes(values), strict=True)
    return found


def shape_of(weight: Tensor) -> Shape:
    """Return outputs and inputs of a *weight* ``[out, in]``."""
    return weight.shape[0], weight.shape[1]


def _alike(weights: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return *weights* by path, those on one device and of one dtype together."""
    groups: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    for path, weight in weights.items():
        groups.setdefault((weight.device, weight.dtype), {})[path] = weight
    return list(groups.values())


def _sample(group: Mapping[str, Tensor], wanted: Mapping[str, int]) -> Iterator[Sampled]:
    """Yield what is taken of each weight of a *group*: single ones, and between them the smallest of windows."""
    device = next(iter(group.values())).device
    places = _to_device([slots(path, shape_of(group[path]), wanted[path]) for path in group], device)
    values, offsets = [], []
    for weight, place in zip(group.values(), places, strict=True):
        rows, columns = place[:, :1], place[:, 1:]
        windows = weight[rows[1::2], columns[1::2] + torch.arange(window(weight.shape[1]), device=device)]
        nearest = _nearest_to_zero(windows)
        pairs = torch.cat([weight[rows[::2], columns[::2]], windows.gather(1, nearest)], dim=1)
        values.append(pairs.view(-1))
        offsets.append(nearest.view(-1).to(torch.uint8))
    for (path, weight), value, offset in zip(group.items(), _to_bytes(values), _to_bytes(offsets), strict=True):
        dtype = DTYPE_NAMES[weight.dtype]
        if all(map(math.isfinite, decode(value, dtype))):
            yield Sampled(path=path, shape=shape_of(weight), dtype=dtype, values=value, offsets=offset)


def _nearest_to_zero(windows: Tensor) -> Tensor:
    """Return ``[n, 1]``: where in each of *windows* ``[n, inputs]`` the number nearest to zero is, but for zeros."""
    sizes = windows.abs()
    usable = sizes.isfinite() & (sizes > 0)
    return torch.where(usable, sizes, torch.inf).argmin(1, keepdim=True)


def _to_device(places: Sequence[Positions], device: torch.device) -> Sequence[Tensor]:
    """Return *places* as one tensor ``[n, 2]`` for each weight: views of one that went to *device* at once."""
    flat = itertools.chain.from_iterable(itertools.chain.from_iterable(places))
    together = torch.frombuffer(array("q", flat), dtype=torch.int64).view(-1, 2)  # quicker than from nested lists
    return together.to(device).split([len(one) for one in places])  # type: ignore[no-any-return, no-untyped-call]


def _to_bytes(values: Sequence[Tensor]) -> list[bytes]:
    """Return the bytes of each of *values*, brought here at once."""
    content = torch.cat(list(values)).cpu().view(torch.uint8).numpy().tobytes()
    ends = list(itertools.accumulate(value.nbytes for value in values))
    return [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
