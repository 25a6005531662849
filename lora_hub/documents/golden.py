"""Golden inputs and outputs: what the model gave with the adapter, and without it, when it was published.

Part of the manifest, and so signed with it. A few short inputs as token ids, and of what the model gave for the last
token a few numbers: at most `MAX_CASES` x `MAX_TOKENS` ids and `MAX_CASES` x `MAX_VALUES` pairs of numbers, under 8 kB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from lora_hub.documents.fields import MAX_NUMBER, Fields

LOGITS, CLASSES, HIDDEN = "logits", "classes", "hidden"
OUTPUTS = (LOGITS, CLASSES, HIDDEN)
DTYPES = ("float64", "float32", "bfloat16", "float16")
MAX_CASES = 4
MAX_TOKENS = 16  # of one input
MAX_VALUES = 12  # of one output
MAX_INDEX = 2**31 - 1
MIN_SCALE = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenCase:
    """One input and a sample of its outputs.

    Attributes:
        tokens: Ids of the input.
        scale: The largest magnitude of the whole output with the adapter: what differences are measured against.
        values: Index in the output of the last token, what stood there without the adapter, what with it.
    """

    tokens: tuple[int, ...]
    scale: float
    values: tuple[tuple[int, float, float], ...]

    @property
    def effect(self) -> float:
        """The largest change by the adapter among the values, relative to the scale."""
        return max(abs(adapted - base) for _, base, adapted in self.values) / self.scale


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """What a replay should give again.

    Attributes:
        output: ``logits`` over the vocabulary, ``classes`` (logits of a classifier), or ``hidden`` (the last layer).
        dtype: The narrowest dtype of the base's parameters when it was recorded.
        cases: The inputs.
    """

    output: str
    dtype: str
    cases: tuple[GoldenCase, ...]

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """Return what *fields* say; `DocumentError` if they say anything else."""
        return cls(
            output=fields.text("output", f"one of {', '.join(OUTPUTS)}", OUTPUTS.__contains__),
            dtype=fields.text("dtype", f"one of {', '.join(DTYPES)}", DTYPES.__contains__),
            cases=_parse_cases(fields),
        )

    def to_json(self) -> dict[str, Any]:
        """Return what `parse` reads."""
        return {
            "output": self.output,
            "dtype": self.dtype,
            "cases": [
                {"tokens": list(case.tokens), "scale": case.scale, "values": [list(value) for value in case.values]}
                for case in self.cases
            ],
        }


def _parse_cases(fields: Fields) -> tuple[GoldenCase, ...]:
    cases = fields.objects("cases")
    if not 1 <= len(cases) <= MAX_CASES:
        fields.fail("cases", f"1 to {MAX_CASES} objects")
    return tuple(_parse_case(case) for case in cases)


def _parse_case(fields: Fields) -> GoldenCase:
    tokens = fields.read("tokens", list, f"1 to {MAX_TOKENS} ids of tokens", _are_tokens)
    values = fields.read("values", list, f"1 to {MAX_VALUES} triples `[index, base, adapted]`", _are_values)
    return GoldenCase(
        tokens=tuple(tokens),
        scale=fields.number("scale", low=MIN_SCALE),
        values=tuple((index, base, adapted) for index, base, adapted in values),
    )


def _are_tokens(items: list[Any]) -> bool:
    return 1 <= len(items) <= MAX_TOKENS and all(_is_index(item) for item in items)


def _are_values(items: list[Any]) -> bool:
    return 1 <= len(items) <= MAX_VALUES and all(_is_value(item) for item in items)


def _is_value(item: object) -> bool:
    match item:
        case [index, base, adapted]:
            return _is_index(index) and _is_number(base) and _is_number(adapted)
    return False


def _is_index(item: object) -> bool:
    return type(item) is int and 0 <= item <= MAX_INDEX


def _is_number(item: object) -> bool:
    return isinstance(item, int | float) and not isinstance(item, bool) and -MAX_NUMBER <= item <= MAX_NUMBER
