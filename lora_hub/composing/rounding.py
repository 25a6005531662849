"""From float64 to what an adapter is stored in, rounded once."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return *numbers*, float64, as *dtype*: the nearest that it has, of two the even one.

    torch goes to 16 bits by way of float32 and so rounds twice, which now and then is not the nearest. Here what
    float32 cannot hold is made odd in between (Boldo and Melquiond 2008, Emulation of FMA and Correctly Rounded Sums),
    so that the second rounding sees that there is more.
    """
    if dtype in {torch.float64, torch.float32}:
        return numbers.to(dtype)
    narrow = numbers.float()
    missed = numbers - narrow.double()
    towards = torch.where(missed > 0, torch.inf, -torch.inf).float()
    is_even = narrow.view(torch.int32) & 1 == 0
    to_odd = (missed != 0) & is_even & narrow.isfinite()
    return torch.where(to_odd, torch.nextafter(narrow, towards), narrow).to(dtype)
