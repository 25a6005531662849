"""Where an adapter comes from: what it was made of, and how. Part of the manifest, and so signed with it.

Paths of directories are nobody's business: what came from one is known by its digest alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from lora_hub.documents.fields import MAX_NUMBER, Fields
from lora_hub.documents.recipe import MAX_INPUTS, MAX_WEIGHT, Recipe, is_id
from lora_hub.reference import AdapterRef, is_commit, is_digest
from lora_hub.version import Version

BIT, ROUNDED, TOLERANCE = "bit", "rounded", "tolerance"
REPRODUCIBLE = (BIT, ROUNDED, TOLERANCE)
MAX_SIGNERS = 64
MAX_MEASURED = 64
MAX_TEXT = 512  # characters

_KIND = re.compile(r"[a-z][a-z-]{0,31}", re.ASCII)
_MEASURE = re.compile(r"[a-z][a-z0-9_]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageInput:
    """One adapter that went in.

    Attributes:
        id: What the recipe calls it.
        weight: What the recipe multiplies its delta with.
        digest: ``sha256:…`` of its manifest.
        signers: Whose signatures on it were verified when it went in.
        name: ``org/task``, or None for a directory.
        version: Which one, where it has versions.
        commit: Where it lies on the Hub, where it has none.
    """

    id: str
    weight: float
    digest: str
    signers: tuple[str, ...]
    name: str | None = None
    version: str | None = None
    commit: str | None = None

    @property
    def reference(self) -> AdapterRef | None:
        """What it can be asked for by; None for a directory."""
        if self.name is None:
            return None
        return AdapterRef.parse(f"{self.name}@{self.version or self.commit or self.digest}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageBase:
    """The base model that the inputs share; ``digest`` where its weights were read."""

    repo: str | None = None
    revision: str | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """What an adapter was made of, and how.

    Attributes:
        kind: ``compose``, …
        inputs: The adapters that went in, in the order of the recipe.
        base: The base model, as far as it is known.
        recipe: As the writer's version of the recipe has it, but for the inputs; `to_recipe` reads it.
        tool: What made it, such as ``lora-hub 0.1.0``.
        measured: What was lost and the like, by name: numbers and texts.
        reproducible: What the same recipe gives elsewhere: the same bits (``bit``), the same but for a value that may
            be rounded the other way (``rounded``), or the same delta within a tolerance (``tolerance``).
    """

    kind: str
    inputs: tuple[LineageInput, ...]
    base: LineageBase = LineageBase()
    recipe: Mapping[str, Any]
    tool: str
    measured: Mapping[str, float | str]
    reproducible: str

    @classmethod
    def parse(cls, fields: Fields) -> Self:
        """Return the lineage in *fields*. Unknown keys are allowed, and the recipe is not looked into.

        Raises:
            DocumentError: With the path of the offending value in ``.context``.
        """
        base = fields.object("base") if "base" in fields.values else Fields({})
        return cls(
            kind=fields.text("kind", "a lower-case word", _KIND.fullmatch),
            inputs=_parse_inputs(fields),
            base=LineageBase(
                repo=base.present_text("repo"),
                revision=base.present_text("revision"),
                digest=_checked(base, "digest", "`sha256:` and 64 lower-case hex digits", is_digest),
            ),
            recipe=fields.object("recipe").values,
            tool=fields.text("tool", f"at most {MAX_TEXT} characters", _is_short),
            measured=_parse_measured(fields),
            reproducible=fields.text("reproducible", f"one of {', '.join(REPRODUCIBLE)}", REPRODUCIBLE.__contains__),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the value of the key ``lineage`` in the manifest."""
        base = {"repo": self.base.repo, "revision": self.base.revision, "digest": self.base.digest}
        return {
            "kind": self.kind,
            "inputs": [_input_to_json(one) for one in self.inputs],
            "base": {key: value for key, value in base.items() if value is not None},
            "recipe": dict(self.recipe),
            "tool": self.tool,
            "measured": dict(self.measured),
            "reproducible": self.reproducible,
        }

    @staticmethod
    def recorded(recipe: Recipe) -> dict[str, Any]:
        """Return *recipe* as a lineage holds it: its inputs stand beside it, by their digests."""
        return {key: value for key, value in recipe.to_json().items() if key != "inputs"}

    def to_recipe(self) -> Recipe:
        """Return the recipe that makes the same adapter again; its inputs are named by their digests.

        Raises:
            DocumentError: It holds what this version does not know, and so cannot do again.
        """
        inputs = [{"reference": _pinned(one), "id": one.id, "weight": one.weight} for one in self.inputs]
        return Recipe.from_json({**self.recipe, "inputs": inputs})


def _pinned(one: LineageInput) -> str:
    """Return a reference that names *one* by its digest; a directory is looked for by its id."""
    return f"./{one.id}" if one.name is None else f"{one.name}@{one.digest}"


def _input_to_json(one: LineageInput) -> dict[str, Any]:
    document = {"id": one.id, "weight": one.weight, "digest": one.digest, "signers": list(one.signers)}
    named = {"name": one.name, "version": one.version, "commit": one.commit}
    return document | {key: value for key, value in named.items() if value is not None}


# Reading


def _parse_inputs(fields: Fields) -> tuple[LineageInput, ...]:
    inputs = tuple(_parse_input(entry) for entry in fields.objects("inputs")[: MAX_INPUTS + 1])
    if len(inputs) > MAX_INPUTS:
        fields.fail("inputs", f"at most {MAX_INPUTS} inputs")
    if len({one.id for one in inputs}) < len(inputs):
        fields.fail("inputs", "inputs with an id of their own")
    return inputs


def _parse_input(fields: Fields) -> LineageInput:
    signers = fields.texts("signers")
    if len(signers) > MAX_SIGNERS or not all(map(_is_short, signers)):
        fields.fail("signers", f"at most {MAX_SIGNERS} texts of at most {MAX_TEXT} characters")
    name = _checked(fields, "name", "a name of the form `org/task`", AdapterRef.is_name)
    version = _checked(fields, "version", "a version of the form `1.2.0`", Version.is_version)
    commit = _checked(fields, "commit", "40 lower-case hex digits", is_commit)
    if name is None and (version is not None or commit is not None):
        fields.fail("name", "a name: there is a version or a commit")
    return LineageInput(
        id=fields.text("id", "a word of at most 64 letters, digits and `._-`", is_id),
        weight=float(fields.number("weight", low=-MAX_WEIGHT, high=MAX_WEIGHT)),
        digest=fields.text("digest", "`sha256:` and 64 lower-case hex digits", is_digest),
        name=name,
        version=version,
        commit=commit,
        signers=signers,
    )


def _parse_measured(fields: Fields) -> dict[str, float | str]:
    measured = fields.object("measured")
    if len(measured.values) > MAX_MEASURED or not all(map(_MEASURE.fullmatch, measured.values)):
        fields.fail("measured", f"at most {MAX_MEASURED} numbers and texts, by lower-case words")
    return {key: _measure(measured, key) for key in measured.values}


def _measure(fields: Fields, key: str) -> float | str:
    if isinstance(fields.values[key], str):
        return fields.text(key, f"at most {MAX_TEXT} characters", _is_short)
    return fields.number(key, low=-MAX_NUMBER, high=MAX_NUMBER)


def _checked(fields: Fields, key: str, expected: str, check: Callable[[str], object]) -> str | None:
    return fields.text(key, expected, check) if key in fields.values else None


def _is_short(text: str) -> bool:
    return len(text) <= MAX_TEXT
