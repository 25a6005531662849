"""The ``config.json`` of what is written: that of the base, but for what the merge makes untrue in it."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora_hub.checkpoint.vocabulary import Vocabulary
from lora_hub.tensors import DTYPES

if TYPE_CHECKING:
    from lora_hub.checkpoint.changes import Changes
    from lora_hub.checkpoint.checkpoint import Checkpoint
    from lora_hub.checkpoint.plan import Source

_WITH_LABELS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
_TWO = 2  # labels that a config means which does not say how many


def changed_config(
    checkpoint: Checkpoint, changes: Changes, vocabulary: Vocabulary, sources: Sequence[Source], dtype: str | None
) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the new config, or None where the base's stays true, and notes on what changed in it."""
    config: dict[str, Any] = copy.deepcopy(dict(checkpoint.config))
    notes: list[str] = []
    if vocabulary.unties:
        config["tie_word_embeddings"] = False
        for inner in _inner(config, "tie_word_embeddings"):
            inner["tie_word_embeddings"] = False
    if vocabulary.rows is not None:
        _set_where_it_is(config, "vocab_size", vocabulary.rows)
        notes.append(f"the vocabulary has {vocabulary.rows} tokens now, and config.json says so")
    if dtype is not None:
        _set_dtype(config, str(DTYPES[dtype]).removeprefix("torch."))
        notes.append(f"all floating tensors are written as {dtype}, and config.json says so")
    notes += _set_labels(config, checkpoint, changes, sources)
    return (None if config == checkpoint.config else config), notes


def config_bytes(config: Mapping[str, Any]) -> bytes:
    """Return *config* as transformers writes it: indented, its keys in the order of the base's."""
    return f"{json.dumps(config, indent=2, ensure_ascii=False)}\n".encode()


def _inner(config: Mapping[str, Any], key: str) -> Iterator[dict[str, Any]]:
    """Yield the configs of a multimodal model's text part that have *key*."""
    for name in ("text_config", "llm_config", "language_config"):
        inner = config.get(name)
        if isinstance(inner, dict) and key in inner:
            yield inner


def _set_where_it_is(config: dict[str, Any], key: str, value: object) -> None:
    places = [*_inner(config, key), *([config] if key in config else [])] or [config]
    for place in places:
        place[key] = value


def _set_dtype(config: dict[str, Any], dtype: str) -> None:
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    for key in keys:
        config[key] = dtype
    for key in ("dtype", "torch_dtype"):
        for inner in _inner(config, key):
            inner[key] = dtype


def _set_labels(
    config: dict[str, Any], checkpoint: Checkpoint, changes: Changes, sources: Sequence[Source]
) -> list[str]:
    """Say how many labels a classifier has that is new, and of which class the model is then."""
    stored = checkpoint.shard_of
    new = {name: replaced for name, replaced in changes.replaced.items() if name not in stored}
    tasks = [source.input.adapter.config.task_type for source in sources]
    task = next((task for task in tasks if task in _WITH_LABELS), None)
    weights = [replaced.tensor() for name, replaced in new.items() if name.endswith(".weight")]
    rows = [weight.shape[0] for weight in weights if weight.dim() == 2]  # noqa: PLR2004
    if task is None or not rows:
        return []
    labels = min(rows)  # a head may have a layer as wide as the model before the last one
    known = config.get("id2label")
    if labels != (len(known) if isinstance(known, dict) else config.get("num_labels", _TWO)):
        config.pop("num_labels", None)
        config["id2label"] = {str(label): f"LABEL_{label}" for label in range(labels)}
        config["label2id"] = {f"LABEL_{label}": label for label in range(labels)}
    heads = ", ".join(sorted({replaced.path for replaced in new.values()}))
    return [f"the base had no {heads}: load the result as AutoModel{_WITH_LABELS[task]}, with {labels} labels"]
