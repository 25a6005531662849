"""Run a model on token ids and take what it gives for the last token."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lora_hub.documents.golden import CLASSES, HIDDEN, LOGITS, MAX_CASES, MAX_TOKENS
from lora_hub.errors import CompatibilityError, UsageError

DRAWN_TOKENS = 8  # of an input that nobody chose


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers do it."""

    def __call__(self, text: str) -> Mapping[str, Any]:
        """Return a mapping that has the ids of *text* at ``input_ids``."""


Inputs = Sequence[str] | Sequence[Sequence[int]]


def token_ids(model: nn.Module, inputs: Inputs | None, tokenizer: Tokenizer | None) -> list[tuple[int, ...]]:
    """Return *inputs* as ids of tokens, of a text the first `MAX_TOKENS`; without inputs, the same random ones always.

    Raises:
        UsageError: None or too many inputs, an empty or too long one, a text without a tokenizer, or no such id.
    """
    vocabulary = _vocabulary(model)
    if inputs is None:
        draw = random.Random(0)  # noqa: S311 - no secret
        return [tuple(draw.randrange(vocabulary) for _ in range(DRAWN_TOKENS)) for _ in range(MAX_CASES)]
    if isinstance(inputs, str) or not 1 <= len(inputs) <= MAX_CASES:
        raise UsageError(
            f"the inputs are {inputs!r:.80}, expected 1 to {MAX_CASES}", hint="pass a list of texts or ids"
        )
    return [_ids(given, tokenizer, vocabulary) for given in inputs]


def _ids(given: str | Sequence[int], tokenizer: Tokenizer | None, vocabulary: int) -> tuple[int, ...]:
    if isinstance(given, str):
        if tokenizer is None:
            raise UsageError(f"the input {given!a:.80} is a text", hint="pass `tokenizer=` as well, or ids of tokens")
        ids = tuple(tokenizer(given)["input_ids"])[:MAX_TOKENS]
    else:
        ids = tuple(given)
    are_known = all(type(token) is int and 0 <= token < vocabulary for token in ids)
    if not 1 <= len(ids) <= MAX_TOKENS or not are_known:
        raise UsageError(
            f"the input {given!a:.80} is no sequence of 1 to {MAX_TOKENS} ids below {vocabulary}",
            hint="the ids of the model's own tokenizer are such ones",
        )
    return ids


def _vocabulary(model: nn.Module) -> int:
    embedding = getattr(model, "get_input_embeddings", lambda: None)()
    count = getattr(embedding, "num_embeddings", None)
    if not isinstance(count, int) or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise CompatibilityError(
            f"`{type(model).__name__}` is no model that reads tokens and has one stack of layers",
            hint="golden outputs are for language models, encoders and text classifiers of transformers",
        )
    return count


def last_output(model: nn.Module, ids: Sequence[int]) -> tuple[str, Tensor]:
    """Return what *model* gives for the last of *ids*, as float64 on the CPU ``[features]``, and what that is."""
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    with torch.no_grad():
        output = model(input_ids=torch.tensor([list(ids)], device=device))
    kind, tensor = _kind(model, output)
    last = tensor[0, -1] if tensor.ndim == 3 else tensor[0]  # noqa: PLR2004 - [batch, tokens, features]
    return kind, last.detach().to("cpu", torch.float64)


def _kind(model: nn.Module, output: Any) -> tuple[str, Tensor]:  # noqa: ANN401 - what any model returns
    logits, hidden = getattr(output, "logits", None), getattr(output, "last_hidden_state", None)
    match logits, hidden:
        case Tensor(ndim=3), _:
            return LOGITS, logits
        case Tensor(ndim=2), _:
            return CLASSES, logits
        case _, Tensor(ndim=3):
            return HIDDEN, hidden
    raise CompatibilityError(
        f"`{type(model).__name__}` gives neither `logits` nor `last_hidden_state`", hint="load it with transformers"
    )
