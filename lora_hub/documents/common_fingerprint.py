"""One fingerprint of several that were recorded of what should be one base."""

from __future__ import annotations

from collections.abc import Sequence

from lora_hub.documents.fingerprint import Fingerprint, Sampled
from lora_hub.documents.floats import FORMATS, decode, may_be_one


def contradiction(one: Fingerprint, other: Fingerprint) -> str | None:
    """Return what says that the two were recorded of different bases, or None if nothing does.

    Only the modules that both have can be compared, and of those the weights at the same positions.
    """
    known = {tensor.path: tensor for tensor in one.tensors}
    for tensor in other.tensors:
        earlier = known.get(tensor.path)
        if earlier is None or earlier == tensor:
            continue
        found = _difference(earlier, tensor)
        if found is not None:
            return found
    return None


def _difference(one: Sampled, other: Sampled) -> str | None:
    if one.shape != other.shape:
        return f"`{one.path}` is {list(one.shape)} in one of them, {list(other.shape)} in the other"
    count = min(one.count, other.count)
    one, other = one.first(count), other.first(count)
    numbers = zip(decode(one.values, one.dtype), decode(other.values, other.dtype), strict=True)
    places = zip(one.positions(), other.positions(), strict=True)
    for (first, second), (place, other_place) in zip(numbers, places, strict=True):
        if place == other_place and not may_be_one(first, one.dtype, second, other.dtype):
            return f"`{one.path}` at {list(place)} is {first:.7g} in one of them, {second:.7g} in the other"
    return None


def united(fingerprints: Sequence[Fingerprint]) -> Fingerprint | None:
    """Return the fingerprint of all modules of *fingerprints*, none of which contradict each other.

    Of a module that several have, the widest dtype stays, and of one dtype the most weights.
    """
    tensors: dict[str, Sampled] = {}
    for fingerprint in fingerprints:
        for tensor in fingerprint.tensors:
            tensors[tensor.path] = max(tensors.get(tensor.path, tensor), tensor, key=_worth)
    found = Fingerprint.of(tensors.values())
    return None if found is None else found.trimmed()


def _worth(tensor: Sampled) -> tuple[int, int]:
    return FORMATS[tensor.dtype].digits, tensor.count
