"""The loss of a model on examples: cross-entropy in float32, every example counts the same however long it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_hub.errors import CompatibilityError
from lora_hub.searching.examples import Completion, Examples
from lora_hub.searching.tokens import Row, Tokenizer, batches, check_kind, limit_of, rows_of


def loss_on(model: nn.Module, tokenizer: Tokenizer, examples: Examples) -> Callable[[], float]:
    """Return a function that computes the mean loss of *model*, as it is when it is called, on *examples*.

    Of a completion, it is the mean over the tokens of the completion, -log p of each after what stands before it; of a
    labelled text, -log p of its class.

    Raises:
        CompatibilityError: Another kind of model than that of the examples.
        UsageError: An example does not fit the model; the line is named.
    """
    config = getattr(model, "config", None)
    check_kind(config)
    is_completion = isinstance(examples[0], Completion)
    rows = rows_of(
        examples,
        tokenizer,
        limit=limit_of(config),
        classes=getattr(config, "label2id", None) or {},
        count=None if is_completion else getattr(config, "num_labels", None),
    )
    # A classifier over a decoder finds the last token of each row by its padding.
    padding = getattr(config, "pad_token_id", None)
    cut = list(batches(rows, one_by_one=padding is None and not is_completion))
    per_row = _completions if is_completion else _labels
    return lambda: _mean(model, cut, per_row, padding or 0)


def _mean(
    model: nn.Module, cut: Sequence[Sequence[Row]], per_row: Callable[[Tensor, Tensor, Sequence[Row]], Tensor], pad: int
) -> float:
    total = 0.0
    with evaluating(model), torch.no_grad():
        for rows in cut:
            ids, mask = _padded(rows, pad, _device(model))
            logits = _logits(model(input_ids=ids, attention_mask=mask))
            total += per_row(logits, ids, rows).double().sum().item()
    return total / sum(len(rows) for rows in cut)


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _padded(rows: Sequence[Row], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the ids of *rows* and which of them are no padding, both ``[rows, tokens]``; padding is on the right."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.tensor([[*row.ids, *[pad] * (longest - len(row.ids))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row.ids) + [0] * (longest - len(row.ids)) for row in rows], device=device)
    return ids, mask


def _logits(output: Any) -> Tensor:  # noqa: ANN401 - what any model returns
    logits = getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise CompatibilityError(
            "the model gives no `logits`", hint="load it with a head: a causal language model, or a classifier"
        )
    return logits


def _completions(logits: Tensor, ids: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return the loss of each row from logits ``[rows, tokens, vocabulary]``."""
    if logits.ndim != 3:  # noqa: PLR2004
        raise CompatibilityError(
            f"the examples are completions, the model gives logits of shape {list(logits.shape)}",
            hint="load a causal language model, or write labelled texts",
        )
    losses = []
    for row, own, tokens in zip(rows, logits, ids, strict=True):
        judged = slice(row.target, len(row.ids))
        before = own[row.target - 1 : len(row.ids) - 1].float()  # [judged, vocabulary]
        losses.append(F.cross_entropy(before, tokens[judged]))
    return torch.stack(losses)


def _labels(logits: Tensor, _ids: Tensor, rows: Sequence[Row]) -> Tensor:
    """Return the loss of each row from logits ``[rows, classes]``."""
    classes = torch.tensor([row.target for row in rows], device=logits.device)
    if logits.ndim != 2 or logits.shape[1] <= classes.max():  # noqa: PLR2004
        raise CompatibilityError(
            f"the examples have a class each, up to {int(classes.max())}, the model gives logits of shape "
            f"{list(logits.shape)}",
            hint="load a classifier with that many labels, or write completions",
        )
    return F.cross_entropy(logits.float(), classes, reduction="none")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """While this is entered, *model* is in evaluation mode: no dropout."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
