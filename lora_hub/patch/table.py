"""Routes at inference: every choice's matrices stacked once, and the rows of each batch brought into their order.

Weights are large and rows are small. So what is gathered at each call are the rows; the stacks stay where they are, for
every route over the same choices. Choices of one rank, padded to a power of two, are multiplied at once.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lora_hub.patch.delta import is_real
from lora_hub.patch.factors import computing_dtype
from lora_hub.patch.rows import check_rows
from lora_hub.patch.stack import add
from lora_hub.patch.step import Layer, MayKeep, Sum, padded_rank, sum_rank

if TYPE_CHECKING:
    from lora_hub.patch.applied_adapter import AppliedAdapter
    from lora_hub.patch.record import Record

Terms = tuple[tuple["AppliedAdapter", float], ...]  # what runs on top of the weights, each with weight x scale

_MAX_BYTES = 1 << 30  # of stacks that a table keeps, over all modules
_MANY = 16  # tokens that are moved for each row; with more, moving the matrices is cheaper


class Order:
    """How the rows of a batch are divided among the choices of a table: each gets as many places as the largest."""

    __slots__ = ("_index", "_place_of", "_row_in", "choices", "is_trivial", "rows")

    def __init__(self, rows: tuple[int, ...], choices: int) -> None:
        places = max(collections.Counter(rows).values())
        self.rows = len(rows)
        self.choices = rows  # which choice each row runs
        # Places that no row needs get the first row, and nobody reads what comes out.
        self._row_in = [0] * (places * choices)
        self._place_of: list[int] = []
        free = [choice * places for choice in range(choices)]
        for row, choice in enumerate(rows):
            self._place_of.append(free[choice])
            self._row_in[free[choice]] = row
            free[choice] += 1
        self.is_trivial = self._place_of == list(range(len(self._row_in)))
        self._index: tuple[torch.device, tuple[Tensor, Tensor, Tensor]] | None = None

    def moves_few(self, tokens: int) -> bool:
        """Whether little is moved if rows of so many *tokens* are brought to their places."""
        return len(self._row_in) * tokens <= _MANY * self.rows

    def on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Return the row in each place, the place of each row, and the choice of each row."""
        index = self._index
        if index is None or index[0] != device:
            lists = (self._row_in, self._place_of, self.choices)
            row_in, place_of, choices = (torch.tensor(some, device=device) for some in lists)
            index = (device, (row_in, place_of, choices))
            if is_real(row_in):
                self._index = index
        return index[1]


class Table:
    """Distinct choices in the order of their ranks, and for each module their stacked matrices."""

    __slots__ = ("_bytes_left", "_segments", "handles", "number_of", "sums")

    def __init__(self, sums: Iterable[Terms]) -> None:
        self.sums = tuple(sorted(dict.fromkeys(sums), key=lambda terms: sum(handle.deltas.rank for handle, _ in terms)))
        self.number_of = {terms: number for number, terms in enumerate(self.sums)}
        self.handles = tuple(dict.fromkeys(handle for terms in self.sums for handle, _ in terms))
        self._segments: dict[Record, Segments] = {}
        self._bytes_left = _MAX_BYTES

    def holds(self, handles: Mapping[str, AppliedAdapter]) -> bool:
        """Whether all of its adapters are among *handles* still."""
        return all(handles.get(handle.name) is handle for handle in self.handles)

    def order(self, rows: tuple[int, ...], sums: tuple[Terms, ...]) -> Order:
        """Return the order of *rows*, each the number of one of *sums*."""
        numbers = [self.number_of[terms] for terms in sums]
        return Order(tuple(numbers[row] for row in rows), len(self.sums))

    def add(self, module: nn.Module, record: Record, y: Tensor, x: Tensor, order: Order) -> bool:
        """Add to *y* ``[rows, ..., out]`` what each row's choice computes from *x* ``[rows, ..., in]``, in place.

        Return False, and leave *y* as it is, if it cannot be viewed as rows.
        """
        segments = self._segments_of(module, record, x)
        if not segments.layers:
            return True
        check_rows(x, order.rows, record)
        if not y.is_contiguous():
            return False
        rows_x, rows_y = x.reshape(order.rows, -1, x.shape[-1]), y.view(order.rows, -1, y.shape[-1])
        if order.is_trivial:
            segments.add_to(rows_y, rows_x)
        elif order.moves_few(rows_x.shape[1]):
            self._add_in_places(rows_y, rows_x, segments, order)
        elif segments.is_one:
            add(rows_y, rows_x, segments.layers[0][1].stack({}).of(order.on(x.device)[2]))
        else:
            segments.add_each(rows_y, rows_x, order.choices)
        return True

    def _add_in_places(self, y: Tensor, x: Tensor, segments: Segments, order: Order) -> None:
        row_in, place_of, _ = order.on(x.device)
        placed_x, placed_y = x.index_select(0, row_in), y.index_select(0, row_in)
        choices = len(self.sums)
        segments.add_to(placed_y.view(choices, -1, y.shape[-1]), placed_x.view(choices, -1, x.shape[-1]))
        torch.index_select(placed_y, 0, place_of, out=y)

    def _segments_of(self, module: nn.Module, record: Record, x: Tensor) -> Segments:
        dtype = computing_dtype(x)
        segments = self._segments.get(record)
        if segments is None or segments.dtype is not dtype or segments.device != x.device:
            if segments is not None:  # they go, and may be made for another dtype as often as it changes
                self._bytes_left += segments.nbytes
            segments = Segments(sums_on(module, self.sums), x.device, dtype, self._may_keep)
            self._segments[record] = segments
        return segments

    def _may_keep(self, size: int) -> bool:
        if size > self._bytes_left:
            return False
        self._bytes_left -= size
        return True


def sums_on(module: nn.Module, sums: tuple[Terms, ...]) -> tuple[Sum, ...]:
    """Return what each of *sums* adds to *module*."""
    deltas = {handle: handle.delta(module) for terms in sums for handle, _ in terms}
    return tuple(
        tuple((delta, factor) for handle, factor in terms if (delta := deltas[handle]) is not None) for terms in sums
    )


class Segments:
    """The stacked matrices of one module: neighbours in a table whose padded rank is the same are one stack."""

    __slots__ = ("device", "dtype", "is_one", "layers")

    def __init__(self, sums: tuple[Sum, ...], device: torch.device, dtype: torch.dtype, may_keep: MayKeep) -> None:
        self.device = device
        self.dtype = dtype
        runs: list[tuple[int, list[Sum]]] = []  # the first choice of each run, and all of it
        for number, terms in enumerate(sums):
            if runs and padded_rank(sum_rank(runs[-1][1][0])) == padded_rank(sum_rank(terms)):
                runs[-1][1].append(terms)
            else:
                runs.append((number, [terms]))
        self.layers = tuple(
            (slice(start, start + len(run)), Layer(tuple(run), tuple(range(len(run))), 0.0, device, dtype, may_keep))
            for start, run in runs
            if run[0]
        )
        self.is_one = len(runs) == 1

    @property
    def nbytes(self) -> int:
        """How many bytes of stacks are kept; one choice alone is no stack, its matrices are the adapter's own."""
        return sum(layer.kept.nbytes for _, layer in self.layers if layer.kept is not None and len(layer.rows) > 1)

    def add_to(self, y: Tensor, x: Tensor) -> None:
        """Add to *y* ``[choices, T, out]``, in place, what each choice computes from *x* ``[choices, T, in]``."""
        if self.is_one:
            add(y, x, self.layers[0][1].stack({}))
            return
        for choices, layer in self.layers:
            add(y[choices], x[choices], layer.stack({}))

    def add_each(self, y: Tensor, x: Tensor, choices: tuple[int, ...]) -> None:
        """Add to *y* ``[rows, T, out]`` what the choice of each row computes from *x* ``[rows, T, in]``, one by one."""
        stacks = [(place, layer.stack({})) for place, layer in self.layers]
        for row, choice in enumerate(choices):
            for place, stack in stacks:
                if place.start <= choice < place.stop:
                    add(y[row : row + 1], x[row : row + 1], stack.one(choice - place.start))
