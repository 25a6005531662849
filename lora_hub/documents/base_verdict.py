"""Is the base in hand the one that a fingerprint was taken of? By rounding: could both have been the same numbers?

A recorded weight v of dtype R and a found one w of dtype F agree if there is a real number that rounds to v in R and to
w in F. Where F holds every number of R, agreement of all decides: it is that base, as far as R could tell. Where F is
narrower, agreement decides nothing, and disagreement still decides that it is another base. Quantised weights are no
rounded ones; only that they go up and down with the recorded ones can be said.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from lora_hub.documents.fields import Bytes
from lora_hub.documents.fingerprint import Fingerprint, Sampled
from lora_hub.documents.floats import FORMATS, decode, is_as_wide, may_be_one

ALIKE = 0.5  # correlation below which quantised weights are those of another base: unrelated ones have 0, int4 has 0.98
_FEW = 64  # pairs; the correlation of fewer may be large by chance


class Outcome(enum.StrEnum):
    """What a comparison comes to."""

    MATCH = "match"
    OTHER = "other base"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Weights of one module in the base in hand.

    Attributes:
        dtype: What they are stored in.
        values: Little-endian, in the order of *which*.
        which: Of the recorded ones, by their number; None is all of them.
    """

    dtype: str
    values: Bytes
    which: Sequence[int] | None = None

    @property
    def is_quantised(self) -> bool:
        """Whether the numbers are codes, or so short that they need a scale."""
        return self.dtype not in FORMATS


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the base in hand is the one that the adapter was trained on.

    Attributes:
        outcome: Match, other base or undecided.
        reason: Why, in one sentence.
        compared: How many weights were compared by rounding.
        recorded: How many were recorded.
        tensors: Of how many tensors any were compared, and how many have some recorded.
        differing: How many of them cannot be the same number.
        correlation: Of quantised weights with the recorded ones.
    """

    outcome: Outcome
    reason: str
    compared: int = 0
    recorded: int = 0
    tensors: tuple[int, int] = (0, 0)
    differing: int = 0
    correlation: float | None = None

    @property
    def is_other(self) -> bool:
        """Whether it is another base for sure."""
        return self.outcome is Outcome.OTHER


def undecided(reason: str) -> Verdict:
    """Return the verdict of somebody who could not compare anything."""
    return Verdict(outcome=Outcome.UNDECIDED, reason=reason)


@dataclass(slots=True)
class _Tally:
    """What comes together while tensors are compared."""

    compared: int = 0
    differing: list[str] = field(default_factory=list)
    others: dict[str, None] = field(default_factory=dict)  # tensors with a difference
    narrow: dict[str, None] = field(default_factory=dict)  # dtypes, as "found in float16, recorded in bfloat16"
    products: float = 0.0
    pairs: int = 0
    quantised: int = 0  # tensors
    tensors: int = 0


def compare(
    fingerprint: Fingerprint, found: Mapping[str, Found], unread: Mapping[str, str] = MappingProxyType({})
) -> Verdict:
    """Return whether the weights *found*, by path, are those of *fingerprint*.

    Args:
        fingerprint: What was recorded.
        found: Weights at the very same positions.
        unread: Why a module could not be read, such as "offloaded", by path. What is in neither was not asked for.
    """
    tally = _Tally()
    for tensor in fingerprint.tensors:
        here = found.get(tensor.path)
        if here is not None:
            tally.tensors += 1
            (_correlate if here.is_quantised else _compare)(tensor, here, tally)
    return _verdict(fingerprint, tally, unread)


def _compare(tensor: Sampled, found: Found, tally: _Tally) -> None:
    which = range(tensor.count) if found.which is None else found.which
    tally.compared += len(which)
    if not is_as_wide(found.dtype, tensor.dtype):
        tally.narrow[f"{found.dtype} in place of {tensor.dtype}"] = None
    if found.dtype == tensor.dtype and found.which is None and found.values == tensor.values:
        return
    every, here = decode(tensor.values, tensor.dtype), decode(found.values, found.dtype)
    for number, value in zip(which, here, strict=True):
        if every[number] == value or may_be_one(every[number], tensor.dtype, value, found.dtype):
            continue
        tally.others[tensor.path] = None
        tally.differing.append(f"`{tensor.path}` has {value:.7g} where {every[number]:.7g} was recorded")


def _correlate(tensor: Sampled, found: Found, tally: _Tally) -> None:
    """Add the products of what was recorded and what is found, both around zero with a variance of one."""
    which = range(tensor.count) if found.which is None else found.which
    tally.quantised += 1
    every, here = decode(tensor.values, tensor.dtype), decode(found.values, found.dtype)
    # The weights nearest to zero say nothing: quantised, they are all the same.
    chosen = [(every[number], value) for number, value in zip(which, here, strict=True) if number % 2 == 0]
    one, other = (_standardised([pair[side] for pair in chosen]) for side in (0, 1))
    tally.products += sum(x * y for x, y in zip(one, other, strict=True))
    if any(one):  # weights that are all one number go neither up nor down: no codes could
        tally.pairs += len(chosen)


def _standardised(values: list[float]) -> list[float]:
    """Return *values* around zero with a variance of one; zeros, where there is no variance, or no number."""
    mean = math.fsum(values) / len(values) if values and all(map(math.isfinite, values)) else math.nan
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / max(1, len(values)))
    return [(value - mean) / deviation for value in values] if deviation > 0 else [0.0] * len(values)


def _verdict(fingerprint: Fingerprint, tally: _Tally, unread: Mapping[str, str]) -> Verdict:
    correlation = tally.products / tally.pairs if tally.pairs >= _FEW else None
    if tally.differing:
        where = len(tally.others)
        outcome, reason = (
            Outcome.OTHER,
            (
                f"{len(tally.differing)} of {tally.compared} weights differ, in {where} of {tally.tensors} modules: "
                f"{tally.differing[0]}"
            ),
        )
    elif correlation is not None and correlation < ALIKE:
        outcome, reason = (
            Outcome.OTHER,
            (
                f"its quantised weights have nothing to do with those that were recorded: their correlation is "
                f"{correlation:.2f}"
            ),
        )
    else:
        doubts = list(_doubts(fingerprint, tally, unread, correlation))
        outcome = Outcome.UNDECIDED if doubts or not tally.compared else Outcome.MATCH
        agree = f"all {tally.compared} weights that were compared agree, of {fingerprint.count} that were recorded"
        nothing = "nothing could be compared exactly"
        reason = "; ".join([agree if tally.compared else nothing, *doubts])
    return Verdict(
        outcome=outcome,
        reason=reason,
        compared=tally.compared,
        recorded=fingerprint.count,
        tensors=(tally.tensors, len(fingerprint.tensors)),
        differing=len(tally.differing),
        correlation=correlation,
    )


def _doubts(
    fingerprint: Fingerprint, tally: _Tally, unread: Mapping[str, str], correlation: float | None
) -> Iterable[str]:
    """Yield why agreement does not decide."""
    if unread:
        why = next(iter(unread.values()))
        yield f"{len(unread)} of {len(fingerprint.tensors)} modules could not be read ({why})"
    if tally.narrow:
        yield (f"{', '.join(tally.narrow)} cannot tell a base from one that training changed by less than its rounding")
    if tally.quantised:
        alike = f" (here their correlation with what was recorded is {correlation:.2f})" if correlation else ""
        yield f"quantised weights tell the architecture and an altogether different base, nothing finer{alike}"
