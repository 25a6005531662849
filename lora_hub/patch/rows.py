"""Which rows of a module's input belong to which row of a batch: proven from the shapes, or refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lora_hub.documents.adapter_layout import WRAPPERS
from lora_hub.errors import UsageError
from lora_hub.patch.projections import model_type
from lora_hub.patch.record import Record

if TYPE_CHECKING:
    from lora_hub.patch.plan import Plan

# Models of transformers whose modules get [length, batch, features], all of them or their attention.
_SEQUENCE_IN_FRONT = frozenset({"fsmt", "led", "longformer", "xlnet"})
_FLAT = 2  # dimensions of [rows, features]: pooled outputs, but also tokens in any order


def check_rows(x: Tensor, rows: int, record: Record) -> None:
    """Raise `UsageError` unless the leading axis of *x* is the batch of *rows* rows, or each of them repeated.

    Rows that repeat stand side by side, as `generate` puts its beams. Without a sequence axis there may be tokens
    instead of rows, sorted in some way; so there the count must be that of the batch.
    """
    leading = x.shape[0] if x.dim() > 1 else 1
    is_proven = leading == rows if x.dim() <= _FLAT else leading > 0 and leading % rows == 0
    if not is_proven:
        raise UsageError(
            f"`{record.path}` gets an input of shape {list(x.shape)}, which is not a batch of {rows} rows, the number "
            "that `route` was given: whose rows these are cannot be proven",
            hint="give `route` one choice per row of this batch; where the model packs or flattens rows, `use` one "
            "choice for all",
        )
    if record.stranger is None:
        record.stranger = _stranger(record.patch.model, record.path)
    if record.stranger:
        raise UsageError(
            f"`{record.path}` is in {record.stranger}, whose inputs are not the rows of the batch",
            hint="leave that part to one adapter: `use` it, or route adapters that do not adapt this module",
        )


def _stranger(model: nn.Module, path: str) -> str:
    """Return what part of *model* around *path* sees other rows than the batch's, for messages; "" if there is none.

    Those are experts, which get the tokens that were sent to them, towers with an input of their own (images, sound):
    transformers calls it the ``main_input_name``; and what has the sequence in front of the batch.
    """
    own = getattr(model, "main_input_name", None)
    names, inside = path.split("."), model
    if _has_sequence_in_front(model):
        return f"a {type(model).__name__}, which has the sequence in front of the batch"
    for depth, name in enumerate(names[:-1], start=1):
        inside = _child(inside, name)
        is_tower = getattr(inside, "main_input_name", own) not in {own, "input_ids"}
        if name == "experts" or is_tower or _has_sequence_in_front(inside):
            return f"`{'.'.join(names[:depth])}`"
    return ""


def _has_sequence_in_front(module: nn.Module) -> bool:
    attentions = [child for child in module.children() if isinstance(child, nn.MultiheadAttention)]
    return model_type(module) in _SEQUENCE_IN_FRONT or any(not child.batch_first for child in attentions)


def _child(module: nn.Module, name: str) -> nn.Module:
    """Return the child *name*, looking through what torch.compile and FSDP put around a module."""
    while name not in module._modules:  # noqa: SLF001
        module = next(module.get_submodule(wrapper) for wrapper in WRAPPERS if wrapper in module._modules)  # noqa: SLF001
    return module.get_submodule(name)


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
