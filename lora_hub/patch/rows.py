"""Which rows of a module's input belong to which row of a batch: proven from the shapes, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lora_hub.documents.adapter_layout import WRAPPERS
from lora_hub.errors import UsageError
from lora_hub.patch.record import Record

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
            f"`{record.path}` is in `{record.stranger}`, whose inputs are not the rows of the batch",
            hint="leave that part to one adapter: `use` it, or route adapters that do not adapt this module",
        )


def _stranger(model: nn.Module, path: str) -> str:
    """Return the part of *model* around *path* that sees other rows than the batch's; "" if there is none.

    Those are experts, which get the tokens that were sent to them, and towers with an input of their own (images,
    sound): transformers calls it the ``main_input_name``.
    """
    own = getattr(model, "main_input_name", None)
    names, inside = path.split("."), model
    for depth, name in enumerate(names[:-1], start=1):
        inside = _child(inside, name)
        if name == "experts" or getattr(inside, "main_input_name", own) not in {own, "input_ids"}:
            return ".".join(names[:depth])
    return ""


def _child(module: nn.Module, name: str) -> nn.Module:
    """Return the child *name*, looking through what torch.compile and FSDP put around a module."""
    while name not in module._modules:  # noqa: SLF001
        module = next(module.get_submodule(wrapper) for wrapper in WRAPPERS if wrapper in module._modules)  # noqa: SLF001
    return module.get_submodule(name)


def run_replaced(
    module: nn.Module,
    record: Record,
    names: tuple[str | None, ...],
    rows: tuple[int, ...],
    base: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:  # noqa: ANN401
    """Return what the copies of *module* compute that run in its place, each for its rows of the batch.

    Args:
        module: A module that adapters replace.
        record: What it carries.
        names: Whose copy runs, for each distinct choice; None is the module itself.
        rows: Which of the choices each row runs.
        base: The module's own forward.
        args: Positional arguments of the call.
        kwargs: Named ones; every tensor whose leading axis is the batch is divided.
    """
    runs = {name: record.replacements[name].run if name is not None else None for name in names}
    if len(set(names)) == 1:
        run = runs[names[0]]
        return base(*args, **kwargs) if run is None else run(module, args, kwargs)
    x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
    check_rows(x, len(rows), record)
    repeats = x.shape[0] // len(rows)
    order: list[int] = []
    outputs: list[Tensor] = []
    for name, run in runs.items():
        mine = [n * repeats + k for n, row in enumerate(rows) if names[row] == name for k in range(repeats)]
        index = torch.tensor(mine, device=x.device)
        some = [_rows_of(value, index, x.shape[0]) for value in args]
        named = {key: _rows_of(value, index, x.shape[0]) for key, value in kwargs.items()}
        outputs.append(base(*some, **named) if run is None else run(module, tuple(some), named))
        order += mine
    return torch.cat(outputs)[torch.tensor(order, device=x.device).argsort()]


def _rows_of(value: Any, index: Tensor, rows: int) -> Any:  # noqa: ANN401
    return value[index] if isinstance(value, Tensor) and value.dim() and value.shape[0] == rows else value
