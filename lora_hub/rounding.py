"""From what was computed to what is stored: each number rounded once."""

from __future__ import annotations

import torch
from torch import Tensor


def round_once(values: Tensor, out: Tensor) -> None:
    """Write *values* into *out*, each rounded once to the nearest number of its dtype, ties to even.

    torch converts float64 to 16 bits by way of float32, which rounds twice and now and then is not the nearest. Rounded
    to odd on the way, the second rounding is the only one that counts (Boldo and Melquiond, "When double rounding is
    odd", 2005).
    """
    if values.dtype is not torch.float64 or out.dtype.itemsize >= torch.float32.itemsize:
        out.copy_(values)
        return
    narrow = values.float()
    bits = narrow.view(torch.int32)
    inexact = narrow.double() != values
    bits -= (narrow.abs().double() > values.abs()).to(torch.int32)  # towards zero: one less in magnitude
    bits |= inexact.to(torch.int32)
    out.copy_(narrow)


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return *values* as *dtype*, rounded as by `round_once`."""
    out = torch.empty_like(values, dtype=dtype)
    round_once(values, out)
    return out
