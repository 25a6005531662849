"""A base model's checkpoint as it can be planned with: its config, its shards, and where each tensor lies in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lora_hub.checkpoint.base_files import BaseFiles
from lora_hub.documents.checkpoint_index import INDEX_NAME, MAX_INDEX, SINGLE_NAME, CheckpointIndex
from lora_hub.documents.fields import canonical_json, parse_json_object, printable, sha256
from lora_hub.documents.safetensors_header import (
    CHECKPOINT,
    ITEM_SIZE,
    TensorInfo,
    header_end,
    read_header_and_metadata,
)
from lora_hub.errors import LoraHubError, MalformedError, NotFoundError

CONFIG_NAME = "config.json"
MAX_CONFIG = 4 * 1024 * 1024  # bytes
_FIRST = 256 * 1024  # bytes of a shard; headers of some thousands of tensors are longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One safetensors file: its size in bytes, its beginning up to the tensors, and what it holds by name."""

    name: str
    size: int
    header: bytes
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """All that is known of a base model before its weights are read; ``index`` is None where one file holds all."""

    files: BaseFiles
    config: Mapping[str, Any]
    config_bytes: bytes
    index: CheckpointIndex | None
    shards: tuple[Shard, ...]

    @property
    def model_type(self) -> str | None:
        """The family of models, such as ``llama``."""
        found = self.config.get("model_type")
        return found if isinstance(found, str) else None

    @property
    def shard_of(self) -> dict[str, Shard]:
        """The shard of each tensor, by the tensor's name."""
        return {name: shard for shard in self.shards for name in shard.tensors}

    @property
    def main_dtype(self) -> str:
        """The floating dtype that most of its bytes have."""
        sizes: Counter[str] = Counter()
        for shard in self.shards:
            for info in shard.tensors.values():
                sizes[info.dtype] += info.stop - info.start if info.dtype in ITEM_SIZE else 0
        return max(sizes, key=lambda dtype: (sizes[dtype], dtype)) if sizes.total() else "F32"

    def identity(self) -> dict[str, Any]:
        """Return what makes this the same base for a plan: all of its documents and headers, and where it is from."""
        return {
            "repo": self.files.repo,
            "commit": self.files.commit,
            "config": sha256(self.config_bytes),
            "index": None if self.index is None else sha256(self.index.to_bytes()),
            "shards": {shard.name: {"size": shard.size, "header": sha256(shard.header)} for shard in self.shards},
        }

    def stamp(self) -> str:
        """Return a text that is another one if a shard was changed in place."""
        return sha256(canonical_json({shard.name: self.files.stamp(shard.name) for shard in self.shards}))


def read_checkpoint(files: BaseFiles) -> Checkpoint:
    """Return the checkpoint that *files* are; of the weights only the headers are read.

    Raises:
        NotFoundError: There is no config, no weights in safetensors, or a shard is missing.
        MalformedError: A document or a header is malformed, or index and shards contradict each other.
    """
    content = read_small(files, CONFIG_NAME, limit=MAX_CONFIG)
    config = parse_json_object(content, what=f"`{CONFIG_NAME}`", limit=MAX_CONFIG, hint="download it again")
    index = None
    if INDEX_NAME in files.sizes:
        index = CheckpointIndex.parse(read_small(files, INDEX_NAME, limit=MAX_INDEX))
        if SINGLE_NAME in files.sizes and SINGLE_NAME not in index.shards:
            raise MalformedError(
                f"`{files.name}` has both `{SINGLE_NAME}` and `{INDEX_NAME}`, which does not name it",
                hint="remove the one that is not meant",
            )
    shards = tuple(_shards(files, (SINGLE_NAME,) if index is None else index.shards))
    if index is not None:
        _check_index(index, shards)
    return Checkpoint(files=files, config=config, config_bytes=content, index=index, shards=shards)


def read_small(files: BaseFiles, name: str, *, limit: int) -> bytes:
    """Return the whole file *name*, which has at most *limit* bytes."""
    size = files.sizes.get(name)
    if size is None:
        raise NotFoundError(f"the base `{files.name}` has no `{name}`", hint="name the directory of a whole model")
    if size > limit:
        raise MalformedError(
            f"`{name}` of `{files.name}` has {size} bytes, at most {limit} are read", hint="it is no file of a model"
        )
    return files.read(name, 0, size)


def _shards(files: BaseFiles, names: tuple[str, ...]) -> Iterator[Shard]:
    for name in names:
        if name not in files.sizes:
            raise NotFoundError(f"the base `{files.name}` has no `{name}`", hint=_hint(files, name))
        try:
            yield _read_shard(files, name, files.sizes[name])
        except LoraHubError as error:
            raise error.within(f"`{name}`") from error


def _hint(files: BaseFiles, name: str) -> str:
    if name != SINGLE_NAME:
        return "a shard that the index names is missing: download the base model again"
    if any(other.endswith((".bin", ".pt", ".pth")) for other in files.sizes):
        return "pickles are never read: load the model in transformers, and `save_pretrained` it as safetensors"
    return "name the directory of a model that was saved as safetensors"


def _read_shard(files: BaseFiles, name: str, size: int) -> Shard:
    start = files.read(name, 0, min(_FIRST, size))
    end = header_end(start, size=size)
    if end > len(start):
        start += files.read(name, len(start), end)
    header = start[:end]
    tensors, metadata = read_header_and_metadata(header, size=size, rules=CHECKPOINT)
    return Shard(name=name, size=size, header=header, tensors=tensors, metadata=metadata)


def _check_index(index: CheckpointIndex, shards: tuple[Shard, ...]) -> None:
    """Every tensor lies in the one shard that the index names, and no shard has a tensor that it does not name."""
    found: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.tensors:
            other = found.setdefault(tensor, shard.name)
            if other != shard.name:
                raise _contradiction(tensor, f"lies in `{other}` and in `{shard.name}`")
    for tensor, name in index.weight_map.items():
        if tensor not in found:
            raise _contradiction(tensor, f"is not in `{name}`, where `{INDEX_NAME}` says it is")
    for tensor, name in found.items():
        if index.weight_map.get(tensor) != name:
            named = index.weight_map.get(tensor)
            says = f"says it is in `{named}`" if named else "does not name it"
            raise _contradiction(tensor, f"lies in `{name}`, but `{INDEX_NAME}` {says}")


def _contradiction(tensor: str, what: str) -> MalformedError:
    return MalformedError(f"the tensor {printable(tensor)} {what}", hint="download the base model again")
