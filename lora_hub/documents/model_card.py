"""The model card of a published adapter: what the Hub shows and indexes. Never needed to load, never signed.

https://huggingface.co/docs/hub/model-cards: YAML between two lines of ``---``, then Markdown. What the author wrote
stays; what lora-hub knows lies between two comments and is written anew at each push.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import yaml

from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.fields import printable
from lora_hub.documents.manifest import Manifest
from lora_hub.documents.verified_adapter import hub_name
from lora_hub.errors import MalformedError
from lora_hub.version import Version

_BEGIN, _END = "<!-- lora-hub: written at each push, from here -->", "<!-- lora-hub: to here -->"
_FRONT_MATTER = re.compile(r"\A\s*---[ \t]*\r?\n(.*?)(?:\r?\n)?^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
# What stands in PEFT's template before anybody filled it in: headings, remarks, open fields and these sentences.
_OPEN = "[More Information Needed]"
_UNFILLED = re.compile(
    r"#.*|\*\*(BibTeX|APA):\*\*|- PEFT [0-9.a-z]+|- \*\*Finetuned from model|Use the code below to get started"
    r"|Carbon emissions can be estimated|Users \(both direct and downstream\) should be made aware"
)
_TITLE = "# Model Card for Model ID"
# Those SPDX expressions that the Hub takes; it refuses a card with any other one.
_LICENSES = frozenset({"apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "mit"})
_BASE_TAG = "base_model:"
_TAGS = ("lora", "lora-hub", "peft")
_RELATION = "base_model_relation"

# Values stay nodes, as their author wrote them: nothing is constructed, so nothing in them can be expanded or misread.
Metadata = dict[str, yaml.Node]


def update_card(
    current: bytes,
    author: bytes,
    *,
    manifest: Manifest,
    digest: str,
    config: AdapterConfig,
    versions: Iterable[Version],
) -> bytes:
    """Return the card of the version that *manifest* describes.

    Args:
        current: The card in the repository, or nothing.
        author: The card beside the adapter that is pushed, or nothing; its text counts, unless it is PEFT's template.
        manifest: Of the version that is published.
        digest: Of that manifest.
        config: Its config, for what must not leak out of it.
        versions: All that are published then.

    Raises:
        MalformedError: The author's card is no text, or its metadata no YAML.
    """
    old_metadata, old_text = _parse(current, is_authors=False)
    metadata, text = _parse(author, is_authors=True)
    text = _without_ours("" if _is_template(text) else text).strip() or _without_ours(old_text).strip()
    merged = _with_ours({**old_metadata, **metadata}, manifest)
    path = config.base_model_name_or_path
    if path and not hub_name(path) and re.search(r"\w", path):
        # A path of somebody's machine is nobody's business.
        text = text.replace(path, "the base model")
        merged = {key: value for key, value in merged.items() if path not in _to_yaml(value)}
    front = _to_yaml(yaml.MappingNode(_MAP, [(_scalar(key), value) for key, value in merged.items()], flow_style=False))
    section = _section(manifest, digest, sorted(versions, reverse=True))
    return f"---\n{front}---\n\n{text or f'# {manifest.name}'}\n\n{section}".encode()


def check_card(author: bytes) -> None:
    """Raise `MalformedError` if the card *author*, which may be empty, is no text or its metadata no YAML."""
    _parse(author, is_authors=True)


def _parse(card: bytes, *, is_authors: bool) -> tuple[Metadata, str]:
    """Return metadata and text of *card*; what lies in a repository may be anything, and then says nothing."""
    try:
        text = card.decode("utf-8-sig")
        match = _FRONT_MATTER.match(text)
        metadata = _compose(match[1]) if match else {}
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        if not is_authors:
            return {}, ""
        raise MalformedError(
            f"the model card README.md is malformed: {printable(' '.join(str(error).split()))}",
            hint="mend it, or remove it and let lora-hub write one",
        ) from error
    return metadata, text[match.end() :] if match else text


def _compose(text: str) -> Metadata:
    node = yaml.compose(text, yaml.SafeLoader)
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode) or any(key.tag != _TEXT for key, _ in node.value):
        raise ValueError("its metadata is no mapping of names to values")
    _check_values(node)
    _to_yaml(node)  # what could not be written again is refused here
    return {key.value: value for key, value in node.value}


_CORE = "tag:yaml.org,2002:"
_MAP, _SEQUENCE, _TEXT = (f"{_CORE}{kind}" for kind in ("map", "seq", "str"))
_COLLECTIONS = {_MAP, _SEQUENCE, *(f"{_CORE}{kind}" for kind in ("set", "omap", "pairs"))}


def _check_values(root: yaml.Node) -> None:
    """Raise `ValueError` where a value is not of the type that it claims, or of one that only a program could have."""
    constructor, seen, left = yaml.SafeLoader(""), set(), [root]
    while left:
        node = left.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if not isinstance(node, yaml.ScalarNode):
            if node.tag not in _COLLECTIONS:
                raise ValueError(f"it has a value of the type {node.tag}")
            left.extend(child for pair in node.value for child in (pair if isinstance(pair, tuple) else (pair,)))
        elif node.tag != _TEXT:
            try:
                constructor.construct_object(node)
            except (LookupError, TypeError, AttributeError) as error:  # what PyYAML raises on `!!bool maybe`
                raise ValueError(f"{node.value!a} is not of the type {node.tag}") from error


def _scalar(text: str) -> yaml.ScalarNode:
    return yaml.ScalarNode(_TEXT, text)


def _to_yaml(node: yaml.Node) -> str:
    return str(yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True, width=1000))


def _is_template(text: str) -> bool:
    """Whether *text* is what PEFT writes beside an adapter, with nothing filled in."""
    lines = (line.strip() for line in _outside(text, "<!--", "-->").splitlines())
    return _TITLE in text and all(not line or _OPEN in line or _UNFILLED.match(line) for line in lines)


def _without_ours(text: str) -> str:
    """Return *text* without the section that lora-hub wrote."""
    return _outside(text, _BEGIN, _END)


def _outside(text: str, begin: str, end: str) -> str:
    """Return what of *text* is not between *begin* and *end*; what nobody closed goes on to the end of the text."""
    kept, is_inside = [], False
    for part in re.split(f"({re.escape(begin)}|{re.escape(end)})", text):
        if part in {begin, end}:
            is_inside = part == begin
        elif not is_inside:
            kept.append(part)
    return "".join(kept)


def _with_ours(metadata: Metadata, manifest: Manifest) -> Metadata:
    given = metadata.get("tags")
    items = given.value if isinstance(given, yaml.SequenceNode) else []
    # The Hub adds tags of the base itself; PEFT writes them with the path of somebody's machine in it.
    kept = {item.value for item in items if item.tag == _TEXT and not item.value.startswith(_BASE_TAG)}
    tags = [_scalar(tag) for tag in sorted({*kept, *_TAGS})]
    ours = {"library_name": _scalar("peft"), "tags": yaml.SequenceNode(_SEQUENCE, tags, flow_style=False)}
    base = hub_name(manifest.base.repo)
    if base:
        ours |= {"base_model": _scalar(base), _RELATION: _scalar("adapter")}
    if manifest.license and manifest.license.lower() in _LICENSES:
        ours["license"] = _scalar(manifest.license.lower())
    others = {key: value for key, value in metadata.items() if key not in {"base_model", _RELATION}}
    return others | ours


def _section(manifest: Manifest, digest: str, versions: list[Version]) -> str:
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
            "With lora-hub, once you trust it, or with PEFT:",
            "",
            "```",
            f"lora-hub trust pin {name}@{version} --digest {digest}",
            "```",
            "",
            "```python",
            f'lora_hub.apply_adapter(model, "{name}@{version}")',
            f'PeftModel.from_pretrained(model, "{name}", revision="v{version}")',
            "```",
            "",
            "| version | tag | |",
            "| --- | --- | --- |",
            *rows,
            _END,
            "",
        ]
    )
