"""What the Hub reads from the card of a model: its metadata, mistakes in it, and the tags to search by."""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from loopback_hub.blobs import Blob

FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
REPO_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
NO_METADATA = "empty or missing yaml metadata in repo card"


class CardError(Exception):
    """The front of a card is not what it should be."""


def metadata(card: str) -> dict[str, Any]:
    """Return the YAML in front of a card.

    Raises:
        CardError: It is not a mapping in YAML.
    """
    found = FRONT_MATTER.match(card)
    try:
        document = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise CardError(f"Invalid YAML: {error}") from error
    if not isinstance(document, dict | None):
        raise CardError("The metadata must be a mapping")
    return document or {}


def mistakes(card: str) -> list[str]:
    """Return why the Hub would refuse this card."""
    try:
        document = metadata(card)
    except CardError as error:
        return [str(error)]
    return [
        f'"base_model" with value "{base}" is not valid. Use a model id from https://hf.co/models.'
        for base in _listed(document.get("base_model"))
        if not REPO_ID.fullmatch(str(base))
    ]


def card_of(blobs: Mapping[str, Blob]) -> dict[str, Any]:
    """Return the metadata of the card among the files of a commit, empty if there is none or it is broken."""
    try:
        return metadata(blobs["README.md"].content.decode())
    except (KeyError, UnicodeDecodeError, CardError):
        return {}


def tags_of(blobs: Mapping[str, Blob]) -> list[str]:
    """Return the tags of a model, as the Hub computes them."""
    card = card_of(blobs)
    bases = _listed(card.get("base_model"))
    relation = card.get("base_model_relation") or ("adapter" if "adapter_config.json" in blobs else "finetune")
    tags = [
        *_listed(card.get("library_name")),
        *(["safetensors"] if any(path.endswith(".safetensors") for path in blobs) else []),
        *_listed(card.get("pipeline_tag")),
        *_listed(card.get("tags")),
        *(f"base_model:{base}" for base in bases),
        *(f"base_model:{relation}:{base}" for base in bases),
        *(f"license:{name}" for name in _listed(card.get("license"))),
    ]
    return list(dict.fromkeys(map(str, tags)))


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
