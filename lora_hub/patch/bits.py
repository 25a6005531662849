"""The bits of tensors, as digests: for files and names on the host, and for weights wherever they are."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor

_WORD = 8  # bytes
_STRIP = torch.Size([32, 509])  # words; a prime, so that the rows of a weight do not fall on those of a strip
_LARGE = 1 << 17  # words: below, reading twice is as fast


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
    columns, modulo 2^64. In a large tensor strips of 32 rows of 509 words are first summed to one row each.

    Every change inside of one word is noticed. So is an exchange of two different words, unless they stand in one
    column of one strip: a multiple of 509 words apart, fewer than 32 times 509. Rows, columns and blocks that change
    places, a transposition, a shift are many such exchanges: one of them is enough. What is not noticed are changes
    that cancel out in all those sums. It is a guard against accidents, not against somebody who looks for such changes.
    """
    values = tensor.detach().contiguous().view(-1)
    if tensor.nbytes % _WORD or tensor.storage_offset() * tensor.itemsize % _WORD:
        content = values.clone().view(torch.uint8)
        whole = content.numel() // _WORD * _WORD
        sums = torch.cat([_sums(content[:whole].view(torch.int64)), content[whole:].to(torch.int64)])
    else:
        sums = _sums(values.view(torch.int64))
    return hashlib.blake2b(sums.cpu().numpy().data, digest_size=16, key=str(tensor.dtype).encode()).digest()


def _sums(words: Tensor) -> Tensor:
    if words.numel() >= _LARGE:
        whole = words.numel() // _STRIP.numel() * _STRIP.numel()
        strips = words[:whole].view(-1, *_STRIP).sum(1)
        words = torch.cat([strips.view(-1), words[whole:]])
    side = math.isqrt(words.numel())
    square = words[: side * side].view(side, side)
    return torch.cat([square.sum(0), square.sum(1), words[side * side :]])
