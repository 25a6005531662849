"""What the live base of an adapter is: its name, its fingerprint, the files that it was loaded from."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from lora_hub.documents.base_model import BaseModel, ShardEntry
from lora_hub.documents.checkpoint_index import MAX_SHARDS, is_shard_name
from lora_hub.documents.fields import is_sha256
from lora_hub.documents.verified_adapter import hub_name
from lora_hub.patch.fingerprint import fingerprint_of
from lora_hub.patch.projections import model_type

if TYPE_CHECKING:
    from lora_hub.patch.applied_adapter import AppliedAdapter


def base_of(model: nn.Module, name: str | None = None) -> BaseModel:
    """Return what *model* says that it was loaded from; *name* stands in for the repository on the Hub."""
    config = getattr(model, "config", None)
    return BaseModel(
        repo=name or hub_name(getattr(config, "_name_or_path", None)),
        revision=getattr(config, "_commit_hash", None),
        model_type=model_type(model),
    )


def trained_on(adapter: AppliedAdapter) -> BaseModel:
    """Return the base that *adapter* was trained on, with its fingerprint.

    What was trained here was trained on the weights at hand; what came from a file and was not, on those of that file.
    """
    info, model = adapter.info, adapter.patch.model
    if not adapter.was_trained_here():
        return info.base
    base = base_of(model) if adapter.other_base_allowed else info.base
    adapted = {path: module for path, module in adapter.modules.items() if path not in adapter.heads}
    # What is sharded by now cannot be read; when it was applied, it was what the file says.
    return replace(
        base,
        fingerprint=fingerprint_of(adapted) or base.fingerprint,
        shards=tuple(_cached_shards(base)) or base.shards,
    )


def _cached_shards(base: BaseModel) -> Iterator[ShardEntry]:
    """Yield the files of *base* in the Hub client's cache, where each is a link to a blob with its SHA-256 for a name.

    https://huggingface.co/docs/huggingface_hub/guides/manage-cache. Nothing is hashed, and nothing asked for.
    """
    if base.repo is None or base.revision is None or not base.revision.isalnum():
        return
    folder = _cache() / f"models--{base.repo.replace('/', '--')}" / "snapshots" / base.revision
    with contextlib.suppress(OSError):  # what is not known is left out
        for path in sorted(folder.iterdir())[:MAX_SHARDS]:
            digest = path.resolve().name
            if is_shard_name(path.name) and is_sha256(digest):
                yield ShardEntry(name=path.name, sha256=digest)


def _cache() -> Path:
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
