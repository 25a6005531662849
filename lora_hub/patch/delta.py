"""What one adapter adds to one module: its parts as one pair of matrices, and the gradients back to its parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora_hub.patch.factors import Factors, Parameters, Part, PartWeights, TrainableFactors, side_by_side


class Matrices(NamedTuple):
    """A and the transposed B of a delta that adds ``alpha * x A^T B^T``."""

    A: Tensor  # [R, in]
    B_t: Tensor  # [R, out]
    alpha: float


@dataclass(frozen=True, slots=True)
class AdaptedPart:
    """A part, where its A and B live, and which outputs of the module belong to which rows of B."""

    part: Part
    factors: Factors
    blocks: tuple[tuple[slice, slice], ...]
    scaling: float


class Delta:
    """What one adapter adds to one module, in one or several parts.

    The matrices of a frozen adapter are kept as they were last asked for; the parameters of one that is trained are
    given to each call.
    """

    __slots__ = ("_kept", "alpha", "dropout", "in_features", "out_features", "parameter_names", "parts", "r")

    def __init__(
        self, parts: tuple[AdaptedPart, ...], in_features: int, out_features: int, dropout: float = 0.0
    ) -> None:
        self.parts = parts
        self.in_features = in_features
        self.out_features = out_features
        self.dropout = dropout
        self.r = sum(adapted.part.r for adapted in parts)
        self.alpha = parts[0].scaling
        # What is trained, of the module's parameters; none of a frozen adapter.
        self.parameter_names = tuple(name for adapted in parts for name in adapted.factors.parameter_names)
        self._kept: tuple[torch.device, torch.dtype, Matrices] | None = None

    def __reduce__(self) -> tuple[type[Delta], tuple[Any, ...]]:
        return Delta, (self.parts, self.in_features, self.out_features, self.dropout)

    @property
    def nbytes(self) -> int:
        """How many bytes a frozen adapter's A and B take as they are stored."""
        pairs = [adapted.factors.stored({}) for adapted in self.parts] if not self.parameter_names else []
        return sum(lora_A.nbytes + lora_B.nbytes for lora_A, lora_B in pairs)

    @property
    def nbytes_placed(self) -> int:
        """How many bytes the copies take that are kept to compute with; none if what was read is used itself."""
        if self._kept is None:
            return 0
        (_, _, (A, B_t, _)), (stored_A, _) = self._kept, self.parts[0].factors.stored({})
        return 0 if A.data_ptr() == stored_A.data_ptr() else int(A.nbytes + B_t.nbytes)

    def forget_placed(self) -> None:
        """Drop the copies that are kept to compute with."""
        self._kept = None

    def weights(self, module: nn.Module) -> tuple[PartWeights, ...]:
        """Return A and B of each part as they are stored."""
        parameters = self.parameters(module)
        return tuple(PartWeights(adapted.part, *adapted.factors.stored(parameters)) for adapted in self.parts)

    def parameters(self, module: nn.Module) -> dict[str, Tensor]:
        """Return the parameters of *module* that are trained, as they are now."""
        return {name: getattr(module, name) for name in self.parameter_names}

    def matrices(self, parameters: Parameters, device: torch.device, dtype: torch.dtype) -> Matrices:
        """Return A and B on *device* in *dtype*."""
        if self.parameter_names:
            return self._stacked(parameters, device, dtype)
        kept = self._kept
        if kept is None or kept[0] != device or kept[1] is not dtype:
            # What is kept may be needed for a backward, also if this call is under `inference_mode`.
            with torch.inference_mode(False), torch.no_grad():
                kept = (device, dtype, self._stacked(parameters, device, dtype))
            if is_real(kept[2].B_t):
                self._kept = kept
        return kept[2]

    def _stacked(self, parameters: Parameters, device: torch.device, dtype: torch.dtype) -> Matrices:
        pairs = [adapted.factors.stored(parameters) for adapted in self.parts]
        if self.is_whole:
            ((lora_A, lora_B),) = pairs
            return Matrices(lora_A.to(device, dtype), lora_B.to(device, dtype).t(), self.alpha)
        A = torch.cat([lora_A.to(device, dtype) for lora_A, _ in pairs])
        B = [
            (adapted.part, folded(lora_B.to(device), self._fold(adapted)).to(dtype))
            for adapted, (_, lora_B) in zip(self.parts, pairs, strict=True)
        ]
        return Matrices(A, side_by_side(B, self.out_features).t(), self.alpha)

    def split(self, dA: Tensor, dB: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield the gradient of each parameter from those of the matrices, ``[R, in]`` and ``[out, R]``."""
        for columns, adapted in self._columns():
            factors = adapted.factors
            if isinstance(factors, TrainableFactors):
                if self.is_whole:
                    yield factors.name_A, dA
                    yield factors.name_B, dB
                    continue
                yield factors.name_A, dA[columns].clone()  # a gradient of its own, not a view that keeps all of them
                B = torch.cat([dB[outputs, columns] for outputs, _ in adapted.blocks])
                yield factors.name_B, B * self._fold(adapted)

    @property
    def is_whole(self) -> bool:
        """Whether it is one pair of A and B for all outputs of the module."""
        return len(self.parts) == 1 and self.parts[0].part.rows is None

    def _fold(self, adapted: AdaptedPart) -> float:
        """What is folded into the B of a part: its scaling in units of the first one's."""
        return adapted.scaling / self.alpha if self.alpha else 1.0

    def _columns(self) -> Iterator[tuple[slice, AdaptedPart]]:
        start = 0
        for adapted in self.parts:
            yield slice(start, start + adapted.part.r), adapted
            start += adapted.part.r


def is_real(tensor: Tensor) -> bool:
    """Whether *tensor* may be kept for later calls: not what a tracer or a fake mode computes with."""
    return type(tensor) is Tensor


def padded(matrices: Matrices, r: int) -> Matrices:
    """Return *matrices* with zeros up to rank *r* and alpha folded into B, both contiguous."""
    A, B_t, alpha = matrices
    return Matrices(_to_rank(A, r), _to_rank(folded(B_t, alpha), r).contiguous(), 1.0)


def folded(B_t: Tensor, alpha: float) -> Tensor:
    """Return ``alpha * B_t``, multiplied in float32 at least and rounded once."""
    if alpha == 1:
        return B_t
    wide = torch.promote_types(B_t.dtype, torch.float32)
    return (B_t.to(wide) * alpha).to(B_t.dtype)


def _to_rank(matrix: Tensor, r: int) -> Tensor:
    return matrix if len(matrix) == r else nn.functional.pad(matrix, (0, 0, 0, r - len(matrix)))
