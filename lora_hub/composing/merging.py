"""One module: several deltas become one, of the rank that is wanted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_hub.composing.factors import Factors, Svd, canonical, decompose, norm, numerical_rank, significant, stack
from lora_hub.composing.randomness import key_of
from lora_hub.composing.rank import Rank
from lora_hub.composing.spaces import ProjectedTasks, Space, mask_key
from lora_hub.composing.streamed import Streamed, range_svd
from lora_hub.errors import LoraHubError, PluginError, UsageError
from lora_hub.rule import Block, Merge, Rule, Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """Rule, space and rank, as they were resolved."""

    rule: Rule
    settings: Settings
    space: str
    rank: Rank
    seed: int

    def __post_init__(self) -> None:
        if self.is_streamed and self.rank.kind in {"exact", "fit"}:
            raise UsageError(
                f"what `{self.rule.name}` makes in the space `full` has no exact rank but min(out, in)",
                hint="name a rank, such as `--rank 32` or `--rank energy:0.99`; or leave out the space",
            )

    @property
    def is_streamed(self) -> bool:
        """Whether it makes matrices of full size, which are never held."""
        return self.space == "full" and not self.rule.is_linear


@dataclass(frozen=True, slots=True, kw_only=True)
class Deltas:
    """What goes into one module, of the inputs that have it and count there: none of *weights* is 0."""

    path: str
    factors: Sequence[Factors]
    weights: Sequence[float]
    digests: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What became of one module.

    Attributes:
        factors: Its delta, with as many columns of B as its rank is.
        rank: How many singular values the whole result has, apart from rounding; of what is streamed, of those found.
        kept: The share of the squares of its singular values that *factors* have.
        norm: The Frobenius norm of the whole result.
    """

    factors: Factors
    rank: int
    kept: float
    norm: float


def merge(deltas: Deltas, method: Method, shape: tuple[int, int]) -> Merged:
    """Return what *method* makes of *deltas*, matrices of *shape* ``(out, in)``."""
    if not deltas.factors:
        return _of_rank(_nothing(shape), method.rank, 0, kept=1.0, energy=0.0)
    if method.rule.is_linear:
        return _sum(deltas, method.rank)
    if method.is_streamed:
        return _streamed(deltas, method)
    return _in_bases(deltas, method)


def _sum(deltas: Deltas, rank: Rank) -> Merged:
    """Return the weighted sum: the factors as they are where no singular value is to go, else a truncated SVD."""
    stacked = stack(deltas.factors, deltas.weights)
    found = decompose(stacked)
    known = numerical_rank(found.S, stacked)
    energy = found.S[:known].square().sum().item()
    r = rank.choose(found.S, rank=known, energy=energy)
    factors = stacked if r == stacked.r else found.strongest(r).truncated(r)
    return _of_rank(factors, rank, known, kept=_share(found.S, r, energy), energy=energy)


def _in_bases(deltas: Deltas, method: Method) -> Merged:
    """Return what the rule makes of the deltas' coordinates in common bases, `core` or `knots`."""
    space = Space.of(method.space, deltas.factors)
    shape = (deltas.factors[0].shape[0], deltas.factors[0].shape[1])
    if space.left is None or not space.left.shape[1]:  # all deltas are zero
        return _of_rank(_nothing(shape), method.rank, 0, kept=1.0, energy=0.0)
    tasks = _tasks(deltas, method, space)
    merge_block = _merge_block(tasks, method, deltas.path)
    small = torch.cat([merge_block(block) for block in tasks.blocks()])  # [p, q] or [p, in]
    U, S, Vh = torch.linalg.svd(small, full_matrices=False)
    whole = _masked(Svd(space.left @ U, S, Vh if space.right is None else Vh @ space.right.T), deltas)
    return _cut(whole, deltas, method.rank)


def _streamed(deltas: Deltas, method: Method) -> Merged:
    """Return the strongest singular triplets of what the rule makes of the deltas' entries."""
    tasks = _tasks(deltas, method, Space())
    merge_block = _merge_block(tasks, method, deltas.path)
    matrix = Streamed(tasks.shape, lambda: map(merge_block, tasks.blocks()))
    key, r = key_of("lora-hub/range/v1", method.seed, deltas.path), int(method.rank.value)
    if method.rank.kind in {"number", "max"}:
        found, energy = range_svd(matrix, r, key)
        return _cut(_masked(found, deltas), deltas, method.rank, energy)
    r = sum(delta.r for delta in deltas.factors)
    found, energy = range_svd(matrix, r, key)
    while r < min(matrix.shape) and not method.rank.is_reached(found.S[:r], energy):
        r *= 2
        found, energy = range_svd(matrix, r, key)
    return _cut(_masked(found, deltas), deltas, method.rank, energy)


def _merge_block(tasks: ProjectedTasks, method: Method, path: str) -> Merge:
    """Return what the rule prepared, with its results looked at: it may be anybody's."""
    with _named(method.rule, path):
        prepared = method.rule.merge(tasks, method.settings)

    def merge_block(block: Block) -> Tensor:
        with _named(method.rule, path):
            merged = prepared(block)
        if not isinstance(merged, Tensor) or merged.shape != block.values.shape[1:]:
            found = list(merged.shape) if isinstance(merged, Tensor) else type(merged).__name__
            raise PluginError(
                f"the method `{method.rule.name}` made {found} of a block of {list(block.values.shape)}",
                hint="`lora-hub plugins` says whose it is",
            )
        if not merged.isfinite().all():
            raise UsageError(
                f"the method `{method.rule.name}` made NaN or infinity in `{path}`",
                hint="try other parameters; if it is a plugin's, tell its author",
            )
        return merged.double()

    return merge_block


@contextmanager
def _named(rule: Rule, path: str) -> Iterator[None]:
    """Say of what *rule* raises whose it is: it may be anybody's."""
    try:
        yield
    except (LoraHubError, MemoryError):
        raise
    except Exception as error:
        raise PluginError(
            f"the method `{rule.name}` failed in `{path}`: {type(error).__name__}: {error}",
            hint="`lora-hub plugins` says whose it is; tell its author",
        ) from error


def _tasks(deltas: Deltas, method: Method, space: Space) -> ProjectedTasks:
    return ProjectedTasks(
        deltas=[space.project(delta) for delta in deltas.factors],
        numbers=deltas.weights,
        keys=[mask_key(method.seed, digest, deltas.path) for digest in deltas.digests],
    )


def _masked(whole: Svd, deltas: Deltas) -> Svd:
    rows = torch.stack([delta.B.any(dim=1) for delta in deltas.factors]).any(dim=0)
    columns = torch.stack([delta.A.any(dim=0) for delta in deltas.factors]).any(dim=0)
    return canonical(whole, rows, columns)


def _cut(whole: Svd, deltas: Deltas, rank: Rank, energy: float | None = None) -> Merged:
    """Return *whole* cut to the *rank*; *energy* is the sum of the squares of all entries, if there is more of it."""
    weighted = [abs(w) * norm(delta) for w, delta in zip(deltas.weights, deltas.factors, strict=True)]
    known = significant(whole.S, deltas.factors[0].shape, max(*weighted, whole.S.max().item()))
    found = whole.S[:known].square().sum().item()
    energy = max(energy or 0.0, found) if known else 0.0
    r = rank.choose(whole.S, rank=known, energy=energy)
    return _of_rank(whole.truncated(r), rank, known, kept=_share(whole.S, r, energy), energy=energy)


def _share(S: Tensor, r: int, energy: float) -> float:
    return min(1.0, S[:r].square().sum().item() / energy) if energy > 0 else 1.0


def _nothing(shape: tuple[int, int]) -> Factors:
    return Factors(torch.zeros(shape[0], 0, dtype=torch.float64), torch.zeros(0, shape[1], dtype=torch.float64))


def _of_rank(factors: Factors, rank: Rank, known: int, *, kept: float, energy: float) -> Merged:
    """Return *factors* filled up with zeros to the rank that is wanted, or to 1: there is no adapter of rank 0."""
    missing = max(int(rank.value) if rank.kind == "number" else 1, factors.r) - factors.r
    B = torch.cat([factors.B, factors.B.new_zeros(factors.shape[0], missing)], dim=1)
    A = torch.cat([factors.A, factors.A.new_zeros(missing, factors.shape[1])])
    return Merged(factors=Factors(B, A), rank=known, kept=kept, norm=math.sqrt(energy))
