"""Modules that adapters replace, where the rows of a batch run different copies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lora_hub.patch.plan import Plan
from lora_hub.patch.record import Record
from lora_hub.patch.rows import check_rows


def run_replaced(
    module: nn.Module,
    record: Record,
    plan: Plan,
    base: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:  # noqa: ANN401
    """Return what the copies of *module* compute that run in its place, each for its rows of the batch.

    Args:
        module: A module that adapters replace.
        record: What it carries.
        plan: What runs.
        base: What runs for rows without a copy: the module's own forward, with the deltas that others add.
        args: Positional arguments of the call.
        kwargs: Named ones; of every tensor whose leading axis is the batch, each copy gets its rows.
    """
    names = plan.replacing(record)
    if len(set(names)) == 1:
        return record.replacements[str(names[0])].run(module, args, kwargs)
    x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    check_rows(x, len(plan.rows), record)
    repeats = x.shape[0] // len(plan.rows)
    order: list[int] = []
    outputs: list[Any] = []
    for name in dict.fromkeys(names):
        mine = [n * repeats + k for n, row in enumerate(plan.rows) if names[row] == name for k in range(repeats)]
        of_mine = functools.partial(_rows_of, torch.tensor(mine, device=x.device), x.shape[0])
        if name is None:
            outputs.append(tree_map(of_mine, base(*args, **kwargs)))
        else:
            some, named = tree_map(of_mine, (args, kwargs))
            outputs.append(record.replacements[name].run(module, some, named))
        order += mine
    back = torch.tensor(order, device=x.device).argsort()
    return tree_map(lambda *some: torch.cat(some)[back] if isinstance(some[0], Tensor) else some[0], *outputs)


def _rows_of(index: Tensor, rows: int, value: Any) -> Any:  # noqa: ANN401
    return value[index] if isinstance(value, Tensor) and value.dim() and value.shape[0] == rows else value
