"""How many singular values of a composition are kept: what the user may ask for, and what it means for a spectrum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from lora_hub.documents.manifest import MAX_RANK
from lora_hub.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

# What vLLM accepts as `max_lora_rank` (vllm/config/lora.py).
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_DIGITS = 9  # of a rank, fewer than this
_HINT = "write `exact`, a number, `energy:0.99`, `ratio:1000`, `max:64` or `fit:vllm`"


@dataclass(frozen=True, slots=True)
class Rank:
    """A wish about the rank.

    ``exact`` keeps all that is there; ``number`` gives every module this rank, filled up with zeros if need be; ``max``
    is a limit; ``energy`` keeps the fewest values whose squares make up this share of all; ``ratio`` those that are at
    most so many times smaller than the largest; ``fit`` gives every module the smallest rank of vLLM's that holds all.
    """

    kind: str
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what *text* spells.

        Raises:
            UsageError: It is none of the forms, or the number is out of its range.
        """
        if text in {"exact", "fit:vllm"}:
            return cls(text.partition(":")[0])
        kind, colon, number = text.partition(":")
        if kind == "max" or not colon:
            limit = number if colon else text
            if limit.isascii() and limit.isdecimal() and len(limit) < _DIGITS:
                return cls("max" if colon else "number", _checked(text, float(limit), 1, MAX_RANK))
        if kind == "energy":
            return cls(kind, _checked(text, _number(text, number), 0, 1))
        if kind == "ratio":
            return cls(kind, _checked(text, _number(text, number), 1, math.inf))
        raise UsageError(f"`{text}` is no rank", hint=_HINT)

    def choose(self, S: Tensor, *, rank: int, energy: float) -> int:
        """Return how many of the singular values *S* are kept.

        Args:
            S: Falling; of what is streamed, perhaps not all.
            rank: How many of them are more than noise.
            energy: The sum of the squares of all.
        """
        if self.kind in {"number", "max"}:
            return min(int(self.value), rank)
        if self.kind == "ratio":
            return int((S[:rank] * self.value >= S[:1]).sum())
        if self.kind == "energy" and self.value < 1:
            enough = S[:rank].square().cumsum(dim=0) >= self.value * energy
            return int((~enough).sum()) + 1 if enough.any() else rank
        return rank

    def is_reached(self, S: Tensor, energy: float) -> bool:
        """Whether the singular values *S*, the largest of more, are all that is wanted."""
        if self.kind == "ratio":
            return bool((S[-1:] * self.value < S[:1]).all())
        return bool(S.square().sum() >= self.value * energy)


def _number(text: str, number: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise UsageError(f"`{text}` is no rank", hint=_HINT) from None


def _checked(text: str, number: float, low: float, high: float) -> float:
    if not (low <= number <= high and number > 0 and math.isfinite(number)):
        least = f"at least {low:g}" if low else "more than 0"
        most = f" and at most {high:g}" if math.isfinite(high) else ""
        raise UsageError(f"`{text}`: {number:g} is out of range", hint=f"a finite number, {least}{most}")
    return number


def fitting(rank: int) -> int:
    """Return the smallest rank of vLLM's that holds *rank*, or its largest."""
    return next((known for known in VLLM_RANKS if known >= rank), VLLM_RANKS[-1])
