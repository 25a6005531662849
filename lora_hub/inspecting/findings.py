"""What was found in adapters: singular values, and what follows from them; no tensor, no torch.

The energy of a delta is its squared Frobenius norm, the sum of its squared singular values.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from lora_hub.inspecting.relations import Pair, SharedModule, SignConflict

SHARES = (0.9, 0.99, 0.999)  # of the energy, for which the rank is told


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleDelta:
    """The delta ``scaling * B @ A`` of one module, ``[out_features, in_features]``.

    Attributes:
        path: The module's.
        out_features: Rows of B.
        in_features: Columns of A.
        r: The rank that is stored: columns of B.
        dead: Of those, how many have a column of B or a row of A that is zero: they cost memory and do nothing.
        singular_values: Falling; those that are only the rounding of their computation are left out.
    """

    path: str
    out_features: int
    in_features: int
    r: int
    dead: int
    singular_values: tuple[float, ...]

    @property
    def norm(self) -> float:
        """The Frobenius norm."""
        return math.hypot(*self.singular_values)

    @property
    def spectral_norm(self) -> float:
        """The largest singular value: the most that it can stretch an input."""
        return self.singular_values[0] if self.singular_values else 0.0

    @property
    def numerical_rank(self) -> int:
        """How many directions it has; the rest of ``r`` is wasted."""
        return len(self.singular_values)

    @property
    def stable_rank(self) -> float:
        """Energy over squared spectral norm (Rudelson and Vershynin 2007): from 1 to the rank; 0 of a zero delta."""
        return math.fsum(self._relative_energies())

    @property
    def effective_rank(self) -> float:
        """``exp(-sum p ln p)`` with p each direction's share of the energy; after Roy and Vetterli 2007.

        They take shares of the sum of the singular values; shares of the energy are those that a truncation keeps.
        """
        if not self.singular_values:
            return 0.0
        energies = self._relative_energies()
        whole = math.fsum(energies)
        return math.exp(-math.fsum(e / whole * math.log(e / whole) for e in energies if e))

    def _relative_energies(self) -> list[float]:
        """Of each direction, relative to that of the first, so that no square is too small or too large."""
        return [(value / self.spectral_norm) ** 2 for value in self.singular_values]


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterDeltas:
    """All deltas of one adapter, and what its files say it is.

    Attributes:
        name: What it was called by whoever asked; printable.
        digest: ``sha256:…``, the identity of its version.
        r: The rank that most of its modules have.
        alpha: The ``lora_alpha`` that most of them have.
        dtype: Of its tensors.
        parameters: How many numbers it adds.
        heads: Paths of the modules that it replaces; they have no delta and are only listed.
        modules: In the order of their paths.
    """

    name: str
    digest: str
    r: int
    alpha: float
    dtype: str
    parameters: int
    heads: tuple[str, ...]
    modules: tuple[ModuleDelta, ...]

    @property
    def norm(self) -> float:
        """The Frobenius norm of all deltas together."""
        return math.hypot(*(module.norm for module in self.modules))

    @property
    def dead(self) -> int:
        """How many ranks do nothing, over all modules."""
        return sum(module.dead for module in self.modules)

    @property
    def wasted(self) -> int:
        """How many ranks are stored beyond the numerical ranks, over all modules: the dead ones, and repetitions."""
        return sum(module.r - module.numerical_rank for module in self.modules)

    @property
    def effective_rank(self) -> float:
        """The median over its modules."""
        return median(module.effective_rank for module in self.modules)

    def retained(self) -> tuple[float, ...]:
        """Return the share of the energy that truncating every module to rank 1, 2, … keeps; the last is 1."""
        return retained(self.modules)

    def rank_for(self, energy: float) -> int:
        """Return the lowest rank that keeps this share of the *energy*; 0 where all deltas are zero."""
        return rank_for(self.modules, energy)


def retained(modules: Iterable[ModuleDelta]) -> tuple[float, ...]:
    """Return the share of the energy of *modules* that truncating each to rank 1, 2, … keeps; the last is 1."""
    spectra = [module.singular_values for module in modules]
    length = max(map(len, spectra), default=0)
    energies = [math.fsum(values[n] ** 2 for values in spectra if n < len(values)) for n in range(length)]
    sums = list(accumulate(energies))
    return tuple(part / sums[-1] for part in sums)


def rank_for(modules: Iterable[ModuleDelta], energy: float) -> int:
    """Return the lowest rank that keeps this share of the *energy* of *modules*; 0 where all deltas are zero."""
    return next((rank for rank, kept in enumerate(retained(modules), start=1) if kept >= energy), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """One or more adapters, and every two of them side by side.

    ``interference`` and ``conflict`` are over all modules, and None of one adapter, or where there is nothing to say.
    """

    adapters: tuple[AdapterDeltas, ...]
    pairs: tuple[Pair, ...] = ()
    shared: tuple[SharedModule, ...] = ()
    interference: float | None = None
    conflict: SignConflict | None = None

    @property
    def copies(self) -> tuple[Pair, ...]:
        """The pairs of which one adapter is the other, times a number."""
        return tuple(pair for pair in self.pairs if pair.scale is not None)
