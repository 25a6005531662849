"""Which rows of a module's input belong to which row of a batch: proven from the shapes, or refused."""

from __future__ import annotations

from torch import Tensor, nn

from lora_hub.documents.adapter_layout import WRAPPERS
from lora_hub.errors import UsageError
from lora_hub.patch.projections import model_type
from lora_hub.patch.record import Record

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
