"""The bits of tensors, as digests: for files and names on the host, and for weights wherever they are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor

_WORD = 8  # bytes


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 over the names and bits of *tensors*, as 64 hex digits."""
    total = hashlib.sha256()
    for name, tensor in tensors:
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        total.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def checksum(tensor: Tensor) -> bytes:
    """Return 16 bytes that tell changes of a weight apart, at the cost of reading it; the same on every device.

    The bits are taken as 64-bit words and laid out as a square; what is hashed are the sums of its rows and of its
    columns, modulo 2^64. So every change inside of one word is noticed, and every exchange of two words: rows, columns
    or blocks that change places, a transposition and a shift are noticed as well, unless all those sums stay the same.
    What is not noticed are changes that cancel out in each row and in each column of the square: at least four words.
    It is a guard against accidents; it does not stop somebody who looks for such a change.
    """
    content = tensor.detach().contiguous().flatten().view(torch.uint8)
    if content.storage_offset() % _WORD:
        content = content.clone()
    whole = content.numel() // _WORD * _WORD
    words = content[:whole].view(torch.int64)
    # Odd: sums over columns are slow where all words of a column fall into one set of the cache.
    side = max(0, (math.isqrt(words.numel()) + 1) // 2 * 2 - 1)
    square, rest = words[: side * side].view(side, side), words[side * side :]
    sums = torch.cat([square.sum(0), square.sum(1), rest, content[whole:].to(torch.int64)])
    return hashlib.blake2b(sums.cpu().numpy().data, digest_size=16, key=str(tensor.dtype).encode()).digest()
