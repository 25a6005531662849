"""What was found of adapters side by side: angles, overlap, interference and signs; no tensor, no torch."""

from __future__ import annotations

from dataclasses import dataclass

COPY = 0.9999  # a cosine from here on: rounding to bfloat16 costs a copy about 2e-6


def share(part: float, whole: float) -> float:
    """Return ``part / whole``; of nothing, nothing."""
    return part / whole if whole else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """How much the subspaces of two deltas have in common, on the side of their outputs or of their inputs.

    Attributes:
        shared: Mean squared cosine of the principal angles, from 0 to 1 (``|Q_i' Q_j|_F^2 / min(rank_i, rank_j)``).
        chance: What random subspaces of these ranks would share on average.
        one_in_other: Share of the energy of the one that lies in the subspace of the other.
        other_in_one: The reverse.
        cosines: Of the principal angles, falling; of one module only.
    """

    shared: float
    chance: float
    one_in_other: float
    other_in_one: float
    cosines: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two adapters by their positions, in one module or altogether.

    Attributes:
        one: Position of the first.
        other: Position of the second.
        modules: How many modules both adapt.
        cosine: ``<D_one, D_other> / (|D_one| |D_other|)``; 0 where one of them is zero.
        outputs: Of what they write.
        inputs: Of what they read.
        scale: If one is a copy, what the first is to be multiplied with to give the second.
    """

    one: int
    other: int
    modules: int
    cosine: float
    outputs: Overlap
    inputs: Overlap
    scale: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignConflict:
    """Where adapters pull one entry of a weight into opposite directions, counted in some rows of the deltas.

    Attributes:
        rows: How many rows were looked at.
        of: How many there are; the counts are exact where these are equal.
        contested: Entries that at least two adapters change.
        conflicting: Of those, entries that some raise and some lower.
        mass: Sum of the absolute values of all entries of all adapters.
        lost: The part of it whose sign is not that of the sum: an election of signs throws it away (TIES, 2306.01708).
    """

    rows: int
    of: int
    contested: float
    conflicting: float
    mass: float
    lost: float

    @property
    def rate(self) -> float:
        """Share of the contested entries that are in conflict."""
        return share(self.conflicting, self.contested)

    @property
    def lost_share(self) -> float:
        """Share of the mass that an election of signs throws away, at most a half."""
        return share(self.lost, self.mass)


def chance_of_conflict(adapters: int) -> float:
    """Return the rate of so many *adapters* that have nothing to do with each other: their signs are coins."""
    return 1 - 0.5 ** (adapters - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedModule:
    """A module that several adapters change.

    Attributes:
        path: The module's.
        adapters: Their positions.
        interference: ``|sum D|^2 / sum |D|^2``: 1 where they are orthogonal, more where they add up, less where they
            cancel; None where all are zero.
        conflict: Of signs.
        pairs: Every two of them.
    """

    path: str
    adapters: tuple[int, ...]
    interference: float | None
    conflict: SignConflict
    pairs: tuple[Pair, ...]
