"""What lies beside the weights: tokenizer, licence and settings as they are; index, card and provenance anew."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lora_hub.checkpoint.base_files import BaseFiles, LocalBase
from lora_hub.checkpoint.checkpoint import CONFIG_NAME, read_small
from lora_hub.checkpoint.journal import JOURNAL_NAME
from lora_hub.checkpoint.model_config import config_bytes
from lora_hub.checkpoint.plan import MergePlan
from lora_hub.documents.checkpoint_index import INDEX_NAME, MAX_INDEX
from lora_hub.documents.fields import sha256
from lora_hub.documents.manifest import CARD_NAME, MANIFEST_NAME
from lora_hub.documents.manifest import CONFIG_NAME as ADAPTER_CONFIG
from lora_hub.errors import IntegrityError

PROVENANCE_NAME = "lora_hub.merge.json"
_MAX_COMPANION = 128 * 1024 * 1024  # bytes; what is larger is no file of a model, and would be held in memory
_ENDINGS = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab", ".py", ".md")
_LEGAL = ("LICENSE", "LICENCE", "NOTICE", "COPYING", "USE_POLICY")
_OURS = {CONFIG_NAME, INDEX_NAME, JOURNAL_NAME, PROVENANCE_NAME, CARD_NAME}
_OF_AN_ADAPTER = {ADAPTER_CONFIG, MANIFEST_NAME}  # transformers would look for the adapter beside it
_TOKENIZER = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Companion:
    """A file that is copied: its name, and where it lies."""

    name: str
    files: BaseFiles

    def read(self) -> bytes:
        """Return its bytes, which must be those that the Hub says, where it does."""
        content = read_small(self.files, self.name, limit=_MAX_COMPANION)
        expected = self.files.sha256(self.name)
        if expected not in {None, sha256(content)}:
            raise IntegrityError(f"`{self.name}` of `{self.files.name}` was damaged on the way", hint="run it again")
        return content


def companions(plan: MergePlan, tokenizers: Mapping[str, LocalBase]) -> tuple[list[Companion], list[str]]:
    """Return the files that are copied beside the weights, and notes on them.

    Where the vocabulary was resized the base's tokenizer is wrong: then that of an adapter is taken, from one of the
    directories *tokenizers*, by the name of the adapter.
    """
    base = plan.checkpoint.files
    found = {
        name: Companion(name=name, files=base)
        for name, size in base.sizes.items()
        if _is_companion(name) and size <= _MAX_COMPANION
    }
    if plan.resized is None:
        return list(found.values()), list(_left_out(plan, found))
    for adapter, directory in tokenizers.items():
        own = [name for name in _TOKENIZER if directory.sizes.get(name, _MAX_COMPANION + 1) <= _MAX_COMPANION]
        if "tokenizer_config.json" in own or "tokenizer.json" in own:
            kept = {name: companion for name, companion in found.items() if name not in _TOKENIZER}
            kept |= {name: Companion(name=name, files=directory) for name in own}
            note = f"the tokenizer is that of {adapter}, since the vocabulary was resized"
            return list(kept.values()), [note, *_left_out(plan, kept)]
    note = (
        "the vocabulary was resized, and the tokenizer is still that of the base: a version of an adapter holds none; "
        "save the tokenizer that it was trained with into the output"
    )
    return list(found.values()), [note, *_left_out(plan, found)]


def _is_companion(name: str) -> bool:
    if name in {*_OURS, *_OF_AN_ADAPTER} or name.startswith(".") or name.endswith(".index.json"):
        return False
    return name.isprintable() and (name.endswith(_ENDINGS) or name.upper().startswith(_LEGAL))


def _left_out(plan: MergePlan, copied: Mapping[str, Companion]) -> Iterator[str]:
    shards = {shard.name for shard in plan.shards}
    others = sorted(
        name for name in plan.checkpoint.files.sizes if name not in {*copied, *shards, *_OURS} and name[0] != "."
    )
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""  # noqa: PLR2004
        yield f"not copied from the base: {', '.join(others[:3])}{more}"


def new_config(plan: MergePlan) -> bytes:
    """Return ``config.json``: the base's own bytes where nothing in it became untrue."""
    return plan.checkpoint.config_bytes if plan.config is None else config_bytes(plan.config)


def new_index(plan: MergePlan) -> bytes | None:
    """Return the index, or None where one file holds all; its bytes are the base's where no tensor is new."""
    index = plan.checkpoint.index
    if index is None:
        return None
    weight_map = {target.name: shard.name for shard in plan.shards for target in shard.targets}
    if weight_map == index.weight_map and plan.dtype is None and plan.resized is None:
        return read_small(plan.checkpoint.files, INDEX_NAME, limit=MAX_INDEX)
    total = sum(target.size for shard in plan.shards for target in shard.targets)
    return index.changed(weight_map, total_size=total).to_bytes()


def new_card(plan: MergePlan) -> bytes:
    """Return the model card: what was merged into what, as the Hub reads it (``base_model_relation``)."""
    adapters = [source.description for source in plan.sources]
    repos = [source.input.adapter.manifest.base.repo for source in plan.sources]
    base = plan.checkpoint.files.repo or next((repo for repo in repos if repo is not None), None)
    is_one = len(adapters) == 1
    names = [adapter["name"] for adapter in adapters if adapter["name"] is not None]
    front = {
        "base_model": base if is_one or base is None else [base, *names],
        "base_model_relation": "finetune" if is_one else "merge",
        "library_name": "transformers",
        "tags": ["lora-hub", "merge"],
    }
    # JSON is YAML, and nothing in a name can break out of its quotes.
    lines = [f"{key}: {json.dumps(value)}" for key, value in front.items() if value is not None]
    rows = [
        f"| {adapter['name'] or 'a directory'} | {adapter['version'] or ''} | {adapter['weight']:g} | "
        f"`{adapter['digest']}` |"
        for adapter in adapters
    ]
    text = [
        "---",
        *lines,
        "---",
        "",
        f"LoRA adapters merged into {f'`{base}`' if base else 'their base model'} by lora-hub.",
        f"`{PROVENANCE_NAME}` has every digest, and how much of each delta there is in the weights.",
        "",
        "| adapter | version | weight | digest |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(text).encode()
