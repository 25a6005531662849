"""The model card of a published adapter: what the Hub shows and indexes. Never needed to load, never signed.

https://huggingface.co/docs/hub/model-cards: YAML between two lines of ``---``, then Markdown. What the author wrote
stays; what lora-hub knows lies between two comments and is written anew at each push.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.manifest import Manifest
from lora_hub.documents.verified_adapter import hub_name
from lora_hub.errors import MalformedError
from lora_hub.version import Version

_BEGIN, _END = "<!-- lora-hub: written at each push, from here -->", "<!-- lora-hub: to here -->"
_FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
_OURS = re.compile(rf"{re.escape(_BEGIN)}.*?{re.escape(_END)}\n?", re.DOTALL)
_TEMPLATE = (
    "# Model Card for Model ID",
    "[More Information Needed]",
)  # what PEFT writes, as long as nobody filled it in
# Those SPDX expressions that the Hub takes; it refuses a card with any other one.
_LICENSES = frozenset(
    {
        "apache-2.0",
        "bsd-2-clause",
        "bsd-3-clause",
        "cc-by-4.0",
        "cc-by-nc-4.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "gpl-3.0",
        "mit",
    }
)
_BASE_TAG = "base_model:"
_TAGS = ("lora", "lora-hub", "peft")


def update_card(
    current: bytes, author: bytes, *, manifest: Manifest, config: AdapterConfig, versions: Iterable[Version]
) -> bytes:
    """Return the card of the version that *manifest* describes.

    Args:
        current: The card in the repository, or nothing.
        author: The card beside the adapter that is pushed, or nothing; its text counts, unless it is PEFT's template.
        manifest: Of the version that is published.
        config: Its config, for what must not leak out of it.
        versions: All that are published then.

    Raises:
        MalformedError: The author's card is no text, or its metadata no YAML.
    """
    old_metadata, old_text = _parse(current, is_ours=True)
    metadata, text = _parse(author, is_ours=False)
    if all(part in text for part in _TEMPLATE):
        text = ""
    text = _OURS.sub("", text or old_text).strip() or f"# {manifest.name}"
    secret = config.base_model_name_or_path
    if secret and not hub_name(secret):
        text = text.replace(secret, "the base model")
    merged = _with_ours({**old_metadata, **metadata}, manifest)
    front = yaml.safe_dump(merged, sort_keys=False, allow_unicode=True, width=1000)
    return f"---\n{front}---\n\n{text}\n\n{_section(manifest, sorted(versions, reverse=True))}".encode()


def _parse(card: bytes, *, is_ours: bool) -> tuple[dict[str, Any], str]:
    """Return metadata and text of *card*; what lies in a repository may be anything, and then says nothing."""
    try:
        text = card.decode()
        match = _FRONT_MATTER.match(text)
        metadata = (yaml.safe_load(match[1]) or {}) if match else {}
        if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
            raise ValueError("its metadata is no mapping of names to values")  # noqa: TRY301 - said below
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        if is_ours:
            return {}, ""
        raise MalformedError(
            f"the model card README.md is malformed: {error}", hint="mend it, or remove it and let lora-hub write one"
        ) from error
    return metadata, text[match.end() :] if match else text


def _with_ours(metadata: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    tags = metadata.get("tags")
    kept = [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []
    # The Hub adds these itself; PEFT writes them with the path of somebody's machine in it.
    kept = [tag for tag in kept if not tag.startswith(_BASE_TAG)]
    ours: dict[str, Any] = {"library_name": "peft", "tags": sorted({*kept, *_TAGS})}
    base = hub_name(manifest.base.repo)
    if base:
        ours |= {"base_model": base, "base_model_relation": "adapter"}
    if manifest.license and manifest.license.lower() in _LICENSES:
        ours["license"] = manifest.license.lower()
    others = {key: value for key, value in metadata.items() if key not in {"base_model", "base_model_relation"}}
    return others | ours


def _section(manifest: Manifest, versions: list[Version]) -> str:
    lora, name, version = manifest.lora, manifest.name, manifest.version
    newest = next((v for v in versions if not v.is_prerelease), None)
    rows = [
        f"| {v} | `v{v}` |{' newest release' if v == newest else ' pre-release' if v.is_prerelease else ''} |"
        for v in versions
    ]
    return "\n".join(
        [
            _BEGIN,
            f"## Version {version}",
            "",
            f"A LoRA adapter: r {lora.r}, alpha {lora.alpha}, {lora.parameters:,} parameters in {lora.dtype}.",
            "",
            "```python",
            f'lora_hub.apply_adapter(model, "{name}@{version}")          # pip install lora-hub',
            f'PeftModel.from_pretrained(model, "{name}", revision="v{version}")   # pip install peft',
            "```",
            "",
            "| version | tag | |",
            "| --- | --- | --- |",
            *rows,
            _END,
            "",
        ]
    )
