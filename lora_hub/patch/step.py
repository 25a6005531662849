"""What one module computes under one plan: which deltas are stacked for which rows, and kept for the next call."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import torch
from torch import Tensor
from torch.nn import functional

from lora_hub.patch.delta import Delta, Matrices, folded, is_real, padded
from lora_hub.patch.factors import Parameters
from lora_hub.patch.stack import (
    Dropout,
    Gradients,
    Stack,
    add,
    add_one,
    added,
    gradients,
    input_gradient,
    is_one_block,
)

Sum = tuple[tuple[Delta, float], ...]  # deltas and their factors; empty is the bare base
MayKeep = Callable[[int], bool]  # whether so many bytes more may be kept

_LEAST_RANK = 8


def sum_rank(terms: Sum) -> int:
    """Return the rank of a sum of deltas, computed at once."""
    return sum(delta.r for delta, _ in terms)


def padded_rank(r: int) -> int:
    """Return the rank to which *r* is padded where several are stacked: a power of two, so that few sizes occur."""
    return max(_LEAST_RANK, 1 << (r - 1).bit_length()) if r else 0


class Layer:
    """Deltas that are computed at once: a sum for each group of rows, all with one probability of dropout."""

    __slots__ = ("_calls", "_may_keep", "device", "dropout", "dtype", "is_trained", "kept", "rows", "sums")

    def __init__(
        self,
        sums: tuple[Sum, ...],
        rows: tuple[int, ...],  # which of the sums each group of rows runs
        dropout: float,
        device: torch.device,
        dtype: torch.dtype,
        may_keep: MayKeep | None = None,  # asked before the matrices of several groups are kept
    ) -> None:
        self.sums = sums
        self.rows = rows
        self.dropout = dropout
        self.device = device
        self.dtype = dtype
        self.is_trained = any(delta.parameter_names for terms in sums for delta, _ in terms)
        self._may_keep = may_keep
        self.kept: Stack | None = None
        self._calls = 0

    def stack(self, parameters: Parameters) -> Stack:
        """Return the matrices of all groups of rows; those of frozen adapters are kept."""
        if self.kept is not None:
            return self.kept
        if self.is_trained:
            return self._stack(parameters)
        # They may be needed for a backward, also if this call is under `inference_mode`.
        with torch.inference_mode(False), torch.no_grad():
            stack = self._stack(parameters)
        if is_real(stack.B_t) and (len(self.rows) == 1 or self._is_worth_keeping(stack)):
            self.kept = stack
        return stack

    def _is_worth_keeping(self, stack: Stack) -> bool:
        # What is run once would only fill memory.
        self._calls += 1
        return self._may_keep is not None and self._calls > 1 and self._may_keep(stack.nbytes)

    def dropout_from(self, seed: int | None, number: int) -> Dropout | None:
        """Return what is dropped under *seed* by the layer with this *number*; nothing without a seed."""
        return Dropout(seed + number, self.dropout) if self.dropout and seed is not None else None

    def _stack(self, parameters: Parameters) -> Stack:
        if len(self.rows) == 1:
            A, B_t, alpha = self._summed(self.sums[0], parameters)
            return Stack(A.t()[None], B_t[None], alpha)
        r = padded_rank(max(sum_rank(terms) for terms in self.sums))
        every = [self._padded(terms, parameters, r) for terms in self.sums]
        pick, groups = itemgetter(*self.rows), len(self.rows)
        A = torch.cat(pick([matrices.A for matrices in every]))
        B_t = torch.cat(pick([matrices.B_t for matrices in every]))
        return Stack(A.view(groups, r, -1).mT, B_t.view(groups, r, -1))

    def _summed(self, terms: Sum, parameters: Parameters) -> Matrices:
        """Return one delta for the weighted sum of several."""
        every = [(delta.matrices(parameters, self.device, self.dtype), factor) for delta, factor in terms]
        alphas = [matrices.alpha * factor for matrices, factor in every]
        if len(every) == 1:
            return every[0][0]._replace(alpha=alphas[0])
        common = alphas[0] if len(set(alphas)) == 1 else 1.0
        B_t = [folded(matrices.B_t, alpha / common) for (matrices, _), alpha in zip(every, alphas, strict=True)]
        return Matrices(torch.cat([matrices.A for matrices, _ in every]), torch.cat(B_t), common)

    def _padded(self, terms: Sum, parameters: Parameters, r: int) -> Matrices:
        if terms:
            return padded(self._summed(terms, parameters), r)
        delta = next(delta for terms in self.sums for delta, _ in terms)
        zeros = torch.zeros(r, delta.in_features + delta.out_features, device=self.device, dtype=self.dtype)
        return Matrices(zeros[:, : delta.in_features].contiguous(), zeros[:, delta.in_features :].contiguous(), 1.0)

    def split(self, found: Gradients, stack: Stack) -> dict[str, Tensor]:
        """Return the gradient of each trained parameter from those of the *stack*."""
        assert found.A is not None and found.B is not None  # noqa: S101, PT018 - for the type checker
        total: dict[str, Tensor] = {}
        for number, terms in enumerate(self.sums):
            groups = [group for group, row in enumerate(self.rows) if row == number]
            start = 0
            for delta, factor in terms:
                columns = slice(start, start + delta.r)
                start += delta.r
                if not delta.parameter_names:
                    continue
                # What of the factor is not in the stack's alpha is folded into B.
                fold = delta.alpha * factor / stack.alpha if stack.alpha else 1.0
                dA, dB = _total(found.A, groups), _total(found.B, groups)
                if delta.r < dA.shape[0]:  # gradients of their own, not views that keep those of all
                    dA, dB = dA[columns].clone(), dB[:, columns].clone()
                dB = dB if fold == 1 else dB * fold
                for name, gradient in delta.split(dA, dB):
                    total[name] = total[name] + gradient if name in total else gradient
        return total


def _total(tensor: Tensor, groups: list[int]) -> Tensor:
    if len(groups) > 1:
        return tensor[groups].sum(0)
    return tensor[groups[0]] if tensor.shape[0] == 1 else tensor[groups[0]].clone()


class Step:
    """What one module adds to its output under one plan, for inputs on one device in one dtype."""

    __slots__ = ("device", "dtype", "has_dropout", "kept", "layers", "only", "parameter_names", "rows", "wide")

    def __init__(
        self, layers: tuple[Layer, ...], rows: int, device: torch.device, dtype: torch.dtype, wide: torch.dtype
    ) -> None:
        self.layers = layers
        self.rows = rows if layers else 1  # that choose on their own; 1 if all run the same
        self.only = _only(layers)  # the names of A and B and their factor, if one adapter is trained and no other runs
        self.kept: Stack | None = None  # what is all there is to compute, as long as nothing is trained
        self.device = device
        self.dtype = dtype  # in which frozen adapters compute
        self.wide = wide  # in which those compute that are trained
        self.has_dropout = any(layer.dropout for layer in layers)
        deltas = [delta for layer in layers for terms in layer.sums for delta, _ in terms]
        # What is trained, of the module's parameters.
        self.parameter_names = tuple(dict.fromkeys(name for delta in deltas for name in delta.parameter_names))

    def add_to(self, y: Tensor, x: Tensor, parameters: Parameters, seed: int | None = None) -> None:
        """Add to *y* ``[..., out]``, in place, what the deltas compute from *x* ``[..., in]``."""
        if self.only is not None and seed is None and y.is_contiguous():
            A, B, alpha = parameters[self.only[0]], parameters[self.only[1]], self.only[2]
            if self.is_simple(x, A, B):  # the same operations as where there are gradients, so the same bits
                add_one(y, x, A, B, alpha)
                return
        for number, layer in enumerate(self.layers):
            add(y, x, layer.stack(parameters), layer.dropout_from(seed, number))
        if len(self.layers) == 1:
            self.kept = self.layers[0].kept

    def is_simple(self, x: Tensor, A: Tensor, B: Tensor) -> bool:
        """Whether *x* can be computed with *A* and *B* at once, as they are stored."""
        return A.dtype is B.dtype is self.wide and x.device == A.device == B.device and is_one_block(x, A.dtype)

    def added_to(self, y: Tensor, x: Tensor, parameters: Parameters, *, training: bool) -> Tensor:
        """Return the same as a new tensor, by operations that torch's transforms and exporters know."""
        for layer in self.layers:
            y = added(y, functional.dropout(x, layer.dropout, training), layer.stack(parameters))
        return y

    def gradients(
        self,
        dy: Tensor,
        x: Tensor | None,
        dtype: torch.dtype,
        parameters: Parameters,
        seed: int | None,
        *,
        wants_x: bool,
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Return the gradients of the input, in *dtype*, and of each parameter, by name, for *dy* ``[..., out]``.

        *x* is needed only if parameters are trained.
        """
        dx = None
        found: dict[str, Tensor] = {}
        for number, layer in enumerate(self.layers):
            stack, more = layer.stack(parameters), None
            if layer.is_trained and x is not None:
                of_stack = gradients(dy, x, stack, layer.dropout_from(seed, number), wants_x=wants_x)
                for name, gradient in layer.split(of_stack, stack).items():
                    found[name] = found[name] + gradient if name in found else gradient
                more = of_stack.x
            elif wants_x:
                more = input_gradient(dy, stack, dtype)
            dx = more if dx is None or more is None else dx + more
        return dx, found


def _only(layers: tuple[Layer, ...]) -> tuple[str, str, float] | None:
    terms = layers[0].sums[0] if len(layers) == 1 and len(layers[0].rows) == 1 else ()
    if len(terms) != 1 or not terms[0][0].is_whole or not terms[0][0].parameter_names:
        return None
    ((delta, factor),) = terms
    name_A, name_B = delta.parameter_names
    return name_A, name_B, delta.alpha * factor


def make_step(
    sums: tuple[Sum, ...],
    rows: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
    wide: torch.dtype,
) -> Step:
    """Return the step of a module whose groups of *rows* run *sums*.

    Args:
        sums: The distinct sums of deltas.
        rows: Which of them each group of rows runs; one entry if all rows run the same.
        device: Where the inputs are.
        dtype: In which frozen adapters compute.
        wide: In which all compute if one of them is trained.
    """
    compute = wide if any(delta.parameter_names for terms in sums for delta, _ in terms) else dtype
    layers = tuple(
        Layer(_kind_of(sums, kind), rows, kind[0], device, compute)
        for kind in sorted({kind for terms in sums for kind in _kinds(terms)})
    )
    return Step(layers, len(rows), device, dtype, wide)


def _kinds(terms: Sum) -> list[tuple[float, int]]:
    """Return for each term what it can be computed together with: what drops nothing, else nothing of its row."""
    return [(delta.dropout, number if delta.dropout else 0) for number, (delta, _) in enumerate(terms)]


def _kind_of(sums: tuple[Sum, ...], kind: tuple[float, int]) -> tuple[Sum, ...]:
    """Return what of each sum is of that kind."""
    return tuple(tuple(term for term, own in zip(terms, _kinds(terms), strict=True) if own == kind) for terms in sums)
