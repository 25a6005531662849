"""What a rule of composition is: how several deltas of one module become one, and what is promised of it.

A rule looks at entries. It sees the deltas as blocks of whole rows, in the basis that the user's choice of space gives
them, and as often as it asks: first to prepare (to find a threshold, say), then block by block to merge. So one rule
serves small matrices and ones that are never held whole. Its module loads no torch until it is used.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from lora_hub.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

SPACES = ("core", "knots", "full")
TAKEN = frozenset({"rule", "space", "seed"})  # keys of a recipe's table `[method]` that are no parameters of a rule
NAME = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)  # of a rule
PARAMETER = re.compile(r"[a-z][a-z0-9_]{0,31}", re.ASCII)  # the name of one

Settings = Mapping[str, float]  # by the name of the parameter


class Law(StrEnum):
    """What may be expected of a rule, where it drops nothing (density 1)."""

    IDENTITY = "identity"  # one adapter at weight 1 is itself
    AVERAGE = "average"  # an adapter averaged with itself is itself
    CANCEL = "cancel"  # a - a = 0
    ORDER = "order"  # the order of the adapters does not matter
    GAUGE = "gauge"  # (B G, G⁻¹ A) instead of (B, A) changes nothing


class Block(NamedTuple):
    """Some whole rows of all deltas of one module: ``values`` is ``[n, rows, columns]``, float64, from row ``start``.

    The weights are not in it.
    """

    values: Tensor
    start: int


class Tasks(Protocol):
    """The n deltas of one module that a rule merges, those of the adapters that have it."""

    @property
    def weights(self) -> Tensor:
        """The weights, ``[n, 1, 1]``, none of which is 0."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of each delta."""

    def blocks(self) -> Iterator[Block]:
        """Yield all blocks, from the first row to the last."""

    def kth_largest(self, k: int, of: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the *k*-th largest entry, ``[m, 1, 1]``, of each of the m matrices that *of* makes of the n deltas.

        *of* maps ``[n, rows, columns]`` to ``[m, rows, columns]``, none of them negative; by default the magnitudes.
        """

    def draws(self, block: Block) -> Tensor:
        """Return a number in [0, 1) for each entry of *block*; it depends on seed, adapter, module and position."""


Merge = Callable[[Block], "Tensor"]  # -> [rows, columns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A number that a rule takes: at least ``low``, or more if it is ``above``, and at most ``high``.

    Without a default, the rule's ``resolve`` or its ``merge`` knows what is meant if it is left out.
    """

    meaning: str
    default: float | None
    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    def allows(self, value: float) -> bool:
        """Whether *value* is in the range."""
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    @property
    def range(self) -> str:
        """The range in words."""
        lower = [] if self.low == -math.inf else [f"{'more than' if self.above else 'at least'} {self.low:g}"]
        upper = [] if self.high == math.inf else [f"at most {self.high:g}"]
        return " and ".join(lower + upper) or "a finite number"


DENSITY = Parameter(meaning="share of the entries that is kept", default=0.5, low=0, high=1, above=True)
SCALE = Parameter(meaning="factor of the merged delta (λ in most papers)", default=1.0, low=-1e6, high=1e6)


def as_they_are(settings: Settings) -> Settings:
    """Return *settings*: they do not depend on each other."""
    return settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How several deltas become one.

    Attributes:
        name: What users call it.
        paper: Where it was published.
        formula: What it computes, in one line.
        merge: ``(tasks, settings) -> block -> [rows, columns]``.
        parameters: What may be set, by name.
        spaces: Where it can act; the first is its own choice.
        laws: What it keeps where nothing is dropped.
        is_linear: Whether it is a weighted sum, so that factors can be kept as they are, in any space.
        resolve: Returns the settings with what follows from several of them, or raises ``ValueError``.
    """

    name: str
    paper: str
    formula: str
    merge: Callable[[Tasks, Settings], Merge]
    parameters: Mapping[str, Parameter] = field(default_factory=dict, hash=False)
    spaces: tuple[str, ...] = SPACES
    laws: frozenset[Law] = frozenset(Law)
    is_linear: bool = False
    resolve: Callable[[Settings], Settings] = as_they_are

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise TypeError(f"name of a rule is {self.name!r}, expected lower-case letters, digits and `-`")
        if not isinstance(self.spaces, tuple) or not self.spaces or not set(self.spaces) <= set(SPACES):
            raise TypeError(f"spaces of the rule `{self.name}` are {self.spaces!r}, expected a tuple of {SPACES}")
        if TAKEN & self.parameters.keys():
            raise TypeError(f"a parameter of the rule `{self.name}` has a name of {sorted(TAKEN)}, which are taken")
        for name in self.parameters:
            if not PARAMETER.fullmatch(name):
                expected = "lower-case letters, digits and `_`"
                raise TypeError(f"a parameter of the rule `{self.name}` is called {name!r}, expected {expected}")
        if not callable(self.merge):
            raise TypeError(f"merge of the rule `{self.name}` is {self.merge!r}, expected a function")

    def settings(self, given: Settings) -> Settings:
        """Return all parameters: those *given*, checked, and the defaults of the others.

        Raises:
            UsageError: One is unknown or out of its range, or two of them contradict each other.
        """
        for name, value in given.items():
            if name not in self.parameters:
                raise UsageError(
                    f"the method `{self.name}` has no parameter `{name}`",
                    hint=f"it has {', '.join(self.parameters) or 'none'}{nearest(name, self.parameters)}",
                )
            if not self.parameters[name].allows(value):
                raise UsageError(
                    f"`{name}` of the method `{self.name}` is {value:g}, expected {self.parameters[name].range}",
                    hint=f"it is the {self.parameters[name].meaning}",
                )
        try:
            return self.resolve({**self._defaults(), **given})
        except ValueError as error:
            raise UsageError(f"method `{self.name}`: {error}", hint="change one of the two") from error

    def _defaults(self) -> dict[str, float]:
        return {name: known.default for name, known in self.parameters.items() if known.default is not None}

    def space(self, named: str | None) -> str:
        """Return where it acts if the user *named* this space, or none.

        Raises:
            UsageError: There is no such space, or the rule has no meaning there.
        """
        if named is not None and named not in SPACES:
            raise UsageError(f"`{named}` is no space", hint=f"there are {', '.join(SPACES)}{nearest(named, SPACES)}")
        if named is not None and named not in self.spaces:
            raise UsageError(
                f"the method `{self.name}` acts in the space {' or '.join(self.spaces)} only, not in `{named}`",
                hint="leave out the space",
            )
        return named or self.spaces[0]


def nearest(name: str, names: Mapping[str, object] | tuple[str, ...]) -> str:
    """Return which of *names* may have been meant by *name*, as the end of a hint."""
    close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(f'`{one}`' for one in close)}?" if close else ""
