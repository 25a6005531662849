"""REF=W: an adapter and what its delta is multiplied with."""

from __future__ import annotations

import re

# NaN and infinity are numbers as well, which whoever computes with them refuses.
_NUMBER = re.compile(r"[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf(?:inity)?)", re.ASCII | re.IGNORECASE)


def weighted(text: str) -> tuple[str, float]:
    """Return the reference and the weight that *text* spells; what follows the last ``=`` is one if it is a number."""
    reference, equals, weight = text.rpartition("=")
    if equals and _NUMBER.fullmatch(weight):
        return reference, float(weight)
    return text, 1.0
