"""Examples as token ids, with what of them is judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lora_hub.errors import CompatibilityError, UsageError
from lora_hub.searching.examples import Completion, Examples, Labelled

MAX_TOKENS = 8192  # of an example, where the model names no limit
_BATCH = 1024  # tokens that run at once, padding included: the logits of a large vocabulary are what takes memory


class Tokenizer(Protocol):
    """What is asked of a tokenizer; those of transformers do it."""

    def __call__(self, text: str) -> Mapping[str, Any]:
        """Return a mapping that has the ids of *text* at ``input_ids``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One example.

    Attributes:
        ids: Its tokens.
        target: The class; or where the completion begins in *ids*.
    """

    ids: tuple[int, ...]
    target: int


def rows_of(
    examples: Examples, tokenizer: Tokenizer, *, limit: int, classes: Mapping[str, int], count: int | None
) -> list[Row]:
    """Return *examples* as rows.

    Args:
        examples: All of one kind.
        tokenizer: That of the base.
        limit: Tokens that the model takes.
        classes: The number of each class, by its name.
        count: How many classes the model has, if that is known.

    Raises:
        UsageError: A label is none of the classes, a prompt has no token, or an example is too long; the line is named.
    """
    return [
        _completion(example, tokenizer, limit)
        if isinstance(example, Completion)
        else _labelled(example, tokenizer, limit, classes, count)
        for example in examples
    ]


def _completion(example: Completion, tokenizer: Tokenizer, limit: int) -> Row:
    """Tokenise prompt and completion as one text, as training does, and judge from the first token that differs.

    So the token that ends the prompt and begins the completion, if there is one, is judged.
    """
    prompt = _ids(tokenizer, example.prompt)
    ids = _checked(_ids(tokenizer, example.prompt + example.completion), limit, example.line)
    start = next((i for i, (one, other) in enumerate(zip(prompt, ids, strict=False)) if one != other), len(prompt))
    if start >= len(ids):
        raise UsageError(f"line {example.line}: the completion adds no token to the prompt", hint="write a longer one")
    if start == 0:
        raise UsageError(
            f"line {example.line}: nothing stands before the completion, and this tokenizer puts no token at the start",
            hint="write a prompt: the first token of a text cannot be predicted",
        )
    return Row(ids=ids, target=start)


def _labelled(
    example: Labelled, tokenizer: Tokenizer, limit: int, classes: Mapping[str, int], count: int | None
) -> Row:
    label = example.label if isinstance(example.label, int) else classes.get(example.label)
    if label is None or (count is not None and label >= count):
        known = ", ".join(list(classes)[:10]) or f"0 to {(count or 1) - 1}"
        raise UsageError(
            f"line {example.line}: the model has no class {example.label!r}", hint=f"its classes are {known}"
        )
    return Row(ids=_checked(_ids(tokenizer, example.text), limit, example.line), target=label)


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text)["input_ids"])


def _checked(ids: tuple[int, ...], limit: int, line: int) -> tuple[int, ...]:
    if not ids:
        raise UsageError(f"line {line}: the text has no token", hint="write a longer one")
    if len(ids) > limit:
        raise UsageError(
            f"line {line} has {len(ids)} tokens, the model takes {limit}",
            hint="shorten it: nothing is cut off silently",
        )
    return ids


def batches(rows: Sequence[Row], *, one_by_one: bool = False) -> Iterator[list[Row]]:
    """Yield *rows* in batches of at most `_BATCH` tokens after padding, the shortest first."""
    batch: list[Row] = []
    for row in sorted(rows, key=lambda row: (len(row.ids), row.ids, row.target)):
        if batch and (one_by_one or (len(batch) + 1) * len(row.ids) > _BATCH):
            yield batch
            batch = []
        batch.append(row)
    yield batch


def limit_of(config: object) -> int:
    """Return how many tokens a model with *config* takes at once."""
    named = getattr(config, "max_position_embeddings", None)
    return named if isinstance(named, int) and 0 < named < MAX_TOKENS else MAX_TOKENS


def check_kind(config: object) -> None:
    """Raise `CompatibilityError` unless a model with *config* reads left to right, or gives one class."""
    if getattr(config, "is_encoder_decoder", False):
        raise CompatibilityError(
            "the base is an encoder-decoder model, for which no loss is implemented",
            hint="search with a loss of your own: `lora_hub.search_by_objective`",
        )
    if getattr(config, "problem_type", None) in {"regression", "multi_label_classification"}:
        raise CompatibilityError(
            f"the base does {config.problem_type}, examples have one class each",  # type: ignore[attr-defined]
            hint="search with a loss of your own: `lora_hub.search_by_objective`",
        )
