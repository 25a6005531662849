"""Whether two adapters are the same: bit by bit, but for rounding, or within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import torch
from torch import Tensor

from lora_hub.composing.factors import Factors, stack
from lora_hub.composing.inputs import Input
from lora_hub.documents.fields import printable
from lora_hub.documents.manifest import CONFIG_NAME
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import IntegrityError
from lora_hub.tensors import tensor_of

LEAST_LIMIT = 1e-3  # of a relative difference
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class Agreement(StrEnum):
    """How far two adapters are the same."""

    BIT_EQUAL = "bit-equal"  # the files of their weights are
    ROUNDED = "rounded"  # no value differs by more than one unit in the last place
    TOLERANCE = "tolerance"  # their deltas are the same within the limit


class Difference(NamedTuple):
    """How much the delta D' of one module differs from D, relative to D.

    ``whole`` is ``norm(D' - D) / norm(D)`` (Frobenius). ``part`` is the same of the row or column that differs most,
    relative to the largest one of D: one value that was changed is much there, and little in the whole.
    """

    whole: float
    part: float


SAME = Difference(0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How far two adapters are the same, the difference of each module, and up to which that is a tolerance."""

    agreement: Agreement
    differences: Mapping[str, Difference]
    limit: float

    @property
    def worst(self) -> tuple[str, Difference]:
        """The module whose delta differs most, and how much."""
        return max(self.differences.items(), key=lambda item: max(item[1]))


def compare(found: VerifiedAdapter, expected: VerifiedAdapter) -> Comparison:
    """Return how far *found* is the same as *expected*, from the factors alone.

    Raises:
        IntegrityError: They are not of the same modules, shapes or dtypes, or differ by more than the limit.
    """
    _check_alike(found, expected)
    if found.manifest.files == expected.manifest.files:  # which have the digests of both
        same = dict.fromkeys((*(module.path for module in expected.layout.modules), *expected.layout.heads), SAME)
        return Comparison(agreement=Agreement.BIT_EQUAL, differences=same, limit=_limit(expected))
    is_rounded = all(_is_rounded(tensor_of(found, key), tensor_of(expected, key)) for key in expected.tensors)
    agreement = Agreement.ROUNDED if is_rounded else Agreement.TOLERANCE
    differences = dict(_differences(found, expected))
    comparison = Comparison(agreement=agreement, differences=differences, limit=_limit(expected))
    path, difference = comparison.worst
    if agreement is Agreement.TOLERANCE and not max(difference) <= comparison.limit:
        raise IntegrityError(
            f"the delta of {printable(path)} differs by {difference.whole:.2g} of its norm, and one row or column by "
            f"{difference.part:.2g}; at most {comparison.limit:.2g} can be rounding",
            hint=f"`{found.source}` is not what its lineage says: do not use it",
        )
    return comparison


def _check_alike(found: VerifiedAdapter, expected: VerifiedAdapter) -> None:
    ours, theirs = ({key: (t.dtype, t.shape) for key, t in one.tensors.items()} for one in (found, expected))
    what = next((key for key in sorted(ours | theirs) if ours.get(key) != theirs.get(key)), None)
    if what is None and found.config != expected.config:
        what = CONFIG_NAME
    if what is not None:
        raise IntegrityError(
            f"{printable(what)} of `{found.source}` is another one than its lineage gives",
            hint="it is not what its lineage says: do not use it",
        )


def _is_rounded(one: Tensor, other: Tensor) -> bool:
    """Whether no value of *one* is further from that of *other* than the next number that its dtype has."""
    return bool(((_steps(one) - _steps(other)).abs() <= 1).all())


def _steps(values: Tensor) -> Tensor:
    """Return which number of their dtype the *values* are, counted from 0, as int64: bits are sign and magnitude."""
    integer = _INTEGERS[values.dtype.itemsize]
    bits = values.view(integer).to(torch.int64)
    return torch.where(bits < 0, torch.iinfo(integer).min - bits, bits)


def _limit(adapter: VerifiedAdapter) -> float:
    """Return what two bases of the same delta may differ by, once both factors of each were rounded.

    Four roundings of at most eps/2 each; what singular values that are nearly equal make of it is more than that of
    float32, and less than the least limit.
    """
    eps = max(torch.finfo(tensor_of(adapter, key).dtype).eps for key in adapter.tensors)
    return max(LEAST_LIMIT, 2 * eps)


def _differences(found: VerifiedAdapter, expected: VerifiedAdapter) -> Iterator[tuple[str, Difference]]:
    one, other = Input(name="found", adapter=found), Input(name="expected", adapter=expected)
    for path, module in other.modules.items():
        yield path, _of_deltas(one.factors(one.modules[path]), other.factors(module))
    for path in expected.layout.heads:
        replaced = one.head(path)
        for name, values in other.head(path).items():
            yield f"{path}.{name}", _of_values(replaced[name].double(), values.double())


def _of_deltas(found: Factors, expected: Factors) -> Difference:
    difference, size = _lengths(stack([found, expected], [1.0, -1.0])), _lengths(expected)
    rows, columns = (_relative(part.max(), of.max()) for part, of in zip(difference, size, strict=True))
    whole = _relative(*(torch.linalg.vector_norm(lengths[0]) for lengths in (difference, size)))
    return Difference(whole, max(rows, columns))


def _lengths(delta: Factors) -> tuple[Tensor, Tensor]:
    """Return the norms of the rows and of the columns of ``B @ A``, which is not formed: those of B Rᵀ, Aᵀ = Q R."""
    R_B, R_A = torch.linalg.qr(delta.B, mode="r").R, torch.linalg.qr(delta.A.T, mode="r").R
    return torch.linalg.vector_norm(delta.B @ R_A.T, dim=1), torch.linalg.vector_norm(R_B @ delta.A, dim=0)


def _of_values(found: Tensor, expected: Tensor) -> Difference:
    difference = found - expected
    whole = _relative(torch.linalg.vector_norm(difference), torch.linalg.vector_norm(expected))
    return Difference(whole, _relative(difference.abs().max(), expected.abs().max()))


def _relative(difference: Tensor, size: Tensor) -> float:
    if not difference:
        return 0.0
    return (difference / size).item() if size else math.inf
