"""Examples that a search is judged by: one JSON object per line, read strictly and bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_hub.documents.fields import Fields, parse_json_object
from lora_hub.errors import DocumentError, UsageError
from lora_hub.files import read_file

MAX_FILE = 64 * 1024 * 1024  # bytes
MAX_LINE = 1024 * 1024  # bytes
MAX_EXAMPLES = 10_000
_HINT = (
    'write one JSON object per line, {"prompt": "…", "completion": "…"} for a causal language model or '
    '{"text": "…", "label": 0} for a classifier'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What a causal language model should write after *prompt*; *line* is where it stands, from 1."""

    line: int
    prompt: str
    completion: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The class of a text: its number, or its name in the model's ``label2id``."""

    line: int
    text: str
    label: int | str


Examples = tuple[Completion, ...] | tuple[Labelled, ...]


def read_examples(path: Path) -> Examples:
    """Return the examples in the JSONL file at *path*; what is raised is that of `read_file` and `parse_examples`."""
    return parse_examples(bytes(read_file(path, limit=MAX_FILE)), source=str(path))


def parse_examples(content: bytes, *, source: str) -> Examples:
    """Return the examples that the lines of *content* are; empty lines are skipped.

    Raises:
        DocumentError: A line is no example, or not of the kind of those before it; no line at all; more than the limits
            above. The message names the line.
    """
    try:
        return _of_one_kind(list(_examples(content)))
    except DocumentError as error:
        raise error.within(f"`{source}`") from error


def _examples(content: bytes) -> Iterator[Completion | Labelled]:
    count = 0
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        count += 1
        if count > MAX_EXAMPLES:
            raise DocumentError(f"more than {MAX_EXAMPLES} examples", hint="a few dozen are enough for a search")
        document = parse_json_object(line, what=f"line {number}", limit=MAX_LINE, hint=_HINT)
        yield _example(number, Fields(document, f"line {number}", _HINT))


def _example(line: int, fields: Fields) -> Completion | Labelled:
    if "prompt" in fields.values or "completion" in fields.values:
        fields.only("prompt", "completion")
        completion = fields.text("completion", "a string that is not empty", bool)
        return Completion(line=line, prompt=fields.text("prompt"), completion=completion)
    fields.only("text", "label")
    text = fields.text("text", "a string that is not empty", bool)
    label = fields.read("label", int | str, "the number or the name of a class", _can_be_label)  # type: ignore[arg-type]
    return Labelled(line=line, text=text, label=label)


def _can_be_label(value: int | str) -> bool:
    return value >= 0 if isinstance(value, int) else bool(value)


def _of_one_kind(found: Sequence[Completion | Labelled]) -> Examples:
    if not found:
        raise DocumentError("there is no example", hint=_HINT)
    completions = tuple(example for example in found if isinstance(example, Completion))
    labelled = tuple(example for example in found if isinstance(example, Labelled))
    if completions and labelled:
        line = max(completions[0].line, labelled[0].line)
        raise DocumentError(f"line {line} is of another kind than the lines before it", hint=_HINT)
    return completions or labelled


def split(examples: Examples, order: Sequence[int], *, holdout: float | None) -> tuple[Examples, Examples]:
    """Return the examples to search on and those held out: the first of *order*, each part in the order of the file.

    Args:
        examples: All of them.
        order: Their positions, shuffled.
        holdout: The share that is held out; None is a fifth of 10 examples or more, and none of fewer.

    Raises:
        UsageError: The share is not from 0 to less than 1, or nothing would be left to search on.
    """
    share = _default_share(len(examples)) if holdout is None else holdout
    if not 0 <= share < 1:
        raise UsageError(f"a hold-out of {share}", hint="expected a share from 0 to less than 1, such as 0.2")
    count = max(1, round(share * len(examples))) if share else 0
    if count >= len(examples):
        raise UsageError(
            f"a hold-out of {share} leaves none of {len(examples)} examples to search on", hint="add examples"
        )
    held = frozenset(order[:count])
    kept = tuple(example for position, example in enumerate(examples) if position not in held)
    return kept, tuple(examples[position] for position in sorted(held))  # type: ignore[return-value]


def _default_share(count: int) -> float:
    return 0.2 if count >= 10 else 0.0  # noqa: PLR2004 - of fewer, one or two say nothing
