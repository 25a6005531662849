"""The bits of tensors, as digests: for files and names on the host, and for weights wherever they are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor

_CHUNK = 1 << 22  # words of one step of a checksum
_WORD = 8  # bytes


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 over the names and bits of *tensors*, as 64 hex digits."""
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def checksum(tensor: Tensor) -> tuple[int, int]:
    """Return the sum of the bits of *tensor*, and their sum weighted by position, modulo 2^64, on any device."""
    content = tensor.detach().contiguous().flatten().view(torch.uint8)
    if content.storage_offset() % _WORD:
        content = content.clone()
    whole = content.numel() // _WORD * _WORD
    plain, weighted = 0, 0
    for part in (content[:whole].view(torch.int64), content[whole:].to(torch.int64)):
        for start in range(0, part.numel(), _CHUNK):
            words = part[start : start + _CHUNK]
            odd = torch.arange(2 * start + 1, 2 * (start + words.numel()) + 1, 2, device=words.device)
            plain += int(words.sum())
            weighted += int((words * odd).sum())
    return plain % 2**64, weighted % 2**64
