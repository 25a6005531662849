"""The bits of tensors, as digests: for files and names on the host, and for weights wherever they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

_CHUNK = 1 << 22  # elements of one step of a checksum
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 over the names and bits of *tensors*, as 64 hex digits."""
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def checksum(tensor: Tensor) -> tuple[int, int]:
    """Return the sum of the bits of *tensor*, and their sum weighted by position, modulo 2^64, on any device."""
    bits = tensor.detach().contiguous().view(_INTEGERS[tensor.element_size()]).flatten()
    plain = weighted = 0
    for start in range(0, bits.numel(), _CHUNK):
        chunk = bits[start : start + _CHUNK].to(torch.int64)
        position = torch.arange(start, start + chunk.numel(), device=chunk.device)
        plain += int(chunk.sum())
        weighted += int((chunk * (2 * position + 1)).sum())
    return plain % 2**64, weighted % 2**64
