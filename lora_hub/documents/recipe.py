"""The recipe of a composition: which adapters, by which rule, to which rank.

As a TOML file::

    schema = "lora-hub/recipe/v1"

    [[inputs]]                             # each adapter; id is what the recipe calls it, by default the task
    reference = "org/sql@1"                # or a directory, seen from the recipe: "./sql"
    id = "sql"
    weight = 0.7                           # 1 unless it is given

    [method]                               # optional, as is all that follows
    rule = "ties"
    space = "core"                         # core, knots or full
    density = 0.5                          # every other key is a parameter of the rule
    seed = 7

    [output]
    rank = "energy:0.9999"                 # exact, a number, energy:P, ratio:X, max:N or fit:vllm
    weights = "given"                      # given, equal or norm
    dtype = "bfloat16"

    [[layers]]                             # other weights for some modules; the first entry that matches counts
    match = "*.layers.[0-3].*"
    weights = { sql = 0.9 }
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from typing import Any, Self

from lora_hub import reference as references
from lora_hub.documents.fields import Fields, canonical_json
from lora_hub.documents.shell_pattern import matches
from lora_hub.documents.toml import parse_toml
from lora_hub.errors import UsageError
from lora_hub.rule import NAME, PARAMETER, SPACES, TAKEN

SCHEMA = "lora-hub/recipe/v1"
MAX_RECIPE = 64 * 1024  # bytes of the file
MAX_RECORDED = 128 * 1024  # bytes of what a lineage records of it: half of what a manifest may have
MAX_INPUTS = 64
MAX_LAYERS = 256
MAX_PARAMETERS = 16
MAX_REFERENCE = 4096  # characters, of a path as well
MAX_PATTERN = 512  # characters
MAX_WEIGHT = 1e6
MAX_SEED = 2**63 - 1
MAX_RANK = 65_536

WEIGHTS = ("given", "equal", "norm")
DTYPES = ("bfloat16", "float16", "float32", "float64")

_MEND = "`lora-hub schema recipe` says what a recipe may hold"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_RANK = re.compile(r"exact|fit:vllm|(max:)?[0-9]{1,8}|(energy|ratio):[0-9.][0-9.eE+-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeInput:
    """One adapter of the composition.

    Attributes:
        reference: ``org/task[@version]`` or a directory.
        id: What it is called in the recipe.
        weight: What its delta is multiplied with.
    """

    reference: str
    id: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """Other weights for some modules.

    Attributes:
        match: A shell pattern for the whole path of a module, such as ``*.layers.3.*``; no regular expression.
        weights: Weight by the id of the input; an input that is not named keeps its own.
    """

    match: str
    weights: Mapping[str, float]

    def covers(self, path: str) -> bool:
        """Whether these are the weights for the module at *path*."""
        return matches(self.match, path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is composed, and how.

    Attributes:
        inputs: The adapters.
        rule: Name of the rule that makes one delta of several: ``linear``, ``ties``, …
        space: Where a rule that looks at entries acts: ``core``, ``knots`` or ``full``; None is the rule's own.
        parameters: Of the rule: ``density``, ``epsilon``, …; what is left out has the rule's default.
        rank: ``exact``, a number, ``energy:P``, ``ratio:X``, ``max:N`` or ``fit:vllm``.
        weights: ``given``, ``equal`` (1/n each) or ``norm`` (each delta is brought to the mean norm of all first).
        layers: Other weights for some modules; the first entry that matches counts.
        dtype: ``float32``, ``float16``, ``bfloat16``, ``float64``; None is the narrowest that holds all inputs.
        seed: Of the rules that draw at random.
    """

    inputs: tuple[RecipeInput, ...]
    rule: str = "linear"
    space: str | None = None
    parameters: Mapping[str, float] = field(default_factory=dict)
    rank: str = "exact"
    weights: str = "given"
    layers: tuple[LayerWeights, ...] = ()
    dtype: str | None = None
    seed: int = 0

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Return the recipe that *content*, TOML, spells.

        Raises:
            DocumentError: Not TOML, or an unknown key; with the path of the offending value in ``.context``.
        """
        return cls.from_json(parse_toml(content, what="the recipe", limit=MAX_RECIPE, hint=_MEND))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the recipe that the values of *document* spell; what `to_json` returned is read as it was."""
        fields = Fields(document, hint=_MEND)
        fields.check_schema(SCHEMA)
        fields.only("schema", "inputs", "method", "output", "layers")
        inputs = _parse_inputs(fields)
        method, output = _table(fields, "method"), _table(fields, "output")
        output.only("rank", "weights", "dtype")
        recipe = cls(
            inputs=inputs,
            rule=method.text("rule", "the name of a rule", NAME.fullmatch) if "rule" in method.values else "linear",
            space=_one_of(method, "space", SPACES),
            parameters=_parse_parameters(method),
            rank=_parse_rank(output),
            weights=_one_of(output, "weights", WEIGHTS) or "given",
            layers=_parse_layers(fields, {one.id for one in inputs}),
            dtype=_one_of(output, "dtype", DTYPES),
            seed=method.integer("seed", low=0, high=MAX_SEED) if "seed" in method.values else 0,
        )
        if len(canonical_json(recipe.to_json())) > MAX_RECORDED:
            fields.fail("layers", f"no more than {MAX_RECORDED} bytes can record")
        return recipe

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as the values of its file, with what was left out; two that mean the same are equal."""
        method: dict[str, Any] = {"rule": self.rule, "seed": self.seed, **self.parameters}
        output = {"rank": self.rank, "weights": self.weights}
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "inputs": [{"reference": one.reference, "id": one.id, "weight": one.weight} for one in self.inputs],
            "method": method if self.space is None else {**method, "space": self.space},
            "output": output if self.dtype is None else {**output, "dtype": self.dtype},
        }
        if self.layers:
            document["layers"] = [{"match": one.match, "weights": dict(one.weights)} for one in self.layers]
        return document


def default_id(reference: str, taken: Container[str] = ()) -> str:
    """Return what the adapter *reference* is called where its recipe does not say: its task, or its directory's name.

    What no id may hold becomes a ``-``; of several that would be called alike, the second is called ``task-2``.
    """
    named = references.parse(reference)
    name = named.name if isinstance(named, Path) else named.task
    name = re.sub(r"[^A-Za-z0-9._-]", "-", name)[:60].lstrip("._-") or "adapter"
    return next(one for one in chain([name], (f"{name}-{n}" for n in count(2))) if one not in taken)


def is_id(text: str) -> bool:
    """Whether *text* can be what a recipe calls an input."""
    return _ID.fullmatch(text) is not None


# Reading


def _table(fields: Fields, key: str) -> Fields:
    return fields.object(key) if key in fields.values else Fields({}, fields.path(key), fields.hint)


def _parse_inputs(fields: Fields) -> tuple[RecipeInput, ...]:
    entries = fields.objects("inputs")
    if not 1 <= len(entries) <= MAX_INPUTS:
        fields.fail("inputs", f"1 to {MAX_INPUTS} inputs")
    inputs: dict[str, RecipeInput] = {}
    for entry in entries:
        entry.only("reference", "id", "weight")
        reference = entry.text("reference", "`org/task[@version]`, or a directory such as `./task`", _is_reference)
        name = default_id(reference, inputs) if "id" not in entry.values else entry.text("id", "a short word", is_id)
        if name in inputs:
            entry.fail("id", "an id that no input above has")
        inputs[name] = RecipeInput(reference=reference, id=name, weight=_weight(entry, "weight", 1.0))
    return tuple(inputs.values())


def _is_reference(text: str) -> bool:
    if len(text) > MAX_REFERENCE or not text.isprintable():
        return False
    try:
        references.parse(text)
    except UsageError:
        return False
    return True


def _weight(fields: Fields, key: str, default: float | None = None) -> float:
    if default is not None and key not in fields.values:
        return default
    return float(fields.number(key, low=-MAX_WEIGHT, high=MAX_WEIGHT)) + 0.0  # there is one zero


def _parse_parameters(method: Fields) -> dict[str, float]:
    names = [key for key in method.values if key not in TAKEN]
    method.only(*sorted(TAKEN), *filter(PARAMETER.fullmatch, names))
    if len(names) > MAX_PARAMETERS:
        method.fail(names[MAX_PARAMETERS], f"at most {MAX_PARAMETERS} parameters")
    return {name: float(method.number(name)) + 0.0 for name in sorted(names)}


def _parse_rank(output: Fields) -> str:
    if "rank" not in output.values:
        return "exact"
    if isinstance(output.values["rank"], str):
        return output.text("rank", "exact, a number, energy:P, ratio:X, max:N or fit:vllm", _RANK.fullmatch)
    return str(output.integer("rank", low=1, high=MAX_RANK))


def _one_of(fields: Fields, key: str, choices: tuple[str, ...]) -> str | None:
    if key not in fields.values:
        return None
    return fields.text(key, f"one of {', '.join(choices)}", choices.__contains__)


def _parse_layers(fields: Fields, ids: set[str]) -> tuple[LayerWeights, ...]:
    entries = fields.objects("layers") if "layers" in fields.values else []
    if len(entries) > MAX_LAYERS:
        fields.fail("layers", f"at most {MAX_LAYERS} entries")
    return tuple(_parse_layer(entry, ids) for entry in entries)


def _parse_layer(entry: Fields, ids: set[str]) -> LayerWeights:
    entry.only("match", "weights")
    weights = entry.object("weights")
    weights.only(*sorted(ids))
    return LayerWeights(
        match=entry.text("match", f"a shell pattern of at most {MAX_PATTERN} characters", _is_pattern),
        weights={name: _weight(weights, name) for name in sorted(weights.values)},
    )


def _is_pattern(text: str) -> bool:
    return 0 < len(text) <= MAX_PATTERN and text.isprintable()
