"""The JSON Schemas of our documents, as they ship with the package."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from lora_hub.errors import NotFoundError

VERSION = "v1"


def schema_names() -> list[str]:
    """Return the names of the documents that have a schema."""
    suffix = ".schema.json"
    return sorted(file.name.removesuffix(suffix) for file in _folder().iterdir() if file.name.endswith(suffix))


def schema(name: str) -> str:
    """Return the JSON Schema (draft 2020-12) of the document *name*, as text."""
    if name not in schema_names():
        raise NotFoundError(f"no document is called `{name}`", hint=f"there are: {', '.join(schema_names())}")
    return (_folder() / f"{name}.schema.json").read_text(encoding="utf-8")


def _folder() -> Traversable:
    packaged = files("lora_hub") / "registry_schema"
    root = packaged if packaged.is_dir() else Path(__file__).parents[2] / "registry_schema"  # a checkout
    return root / VERSION
