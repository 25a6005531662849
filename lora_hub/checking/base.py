"""A base model as a check needs it: its config, and the names and shapes of its weights. No weights are read.

Whatever the base's size, the Hub is asked for little: where there are more shards than may be asked for, the shape of a
weight is that of the same weight in another layer, and it is said of which that is so.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lora_hub.checkpoint.base_files import BaseFiles
from lora_hub.checkpoint.checkpoint import Checkpoint, Shard
from lora_hub.documents.checkpoint_index import INDEX_NAME, MAX_INDEX, SINGLE_NAME, CheckpointIndex
from lora_hub.documents.fields import parse_json_object, printable
from lora_hub.documents.safetensors_header import CHECKPOINT, TensorInfo, header_end, read_header
from lora_hub.errors import LoraHubError, MalformedError, NotFoundError

CONFIG_NAME = "config.json"
MAX_CONFIG = 4 * 1024 * 1024  # bytes
MAX_REQUESTS = 6  # to the Hub for one base, and so
MAX_BYTES = 2_000_000  # in all
_FIRST = 128 * 1024  # bytes of a shard; the headers of nearly all are shorter
_ASKED = 2  # requests that were made to know what files there are
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_WEIGHTS = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.safetensors", re.ASCII)
Shape = tuple[int, ...]


def kind_of(name: str) -> str:
    """Return *name* of a tensor or a module without the numbers of layers: what is alike in all of them."""
    return _NUMBER.sub("*", name)


@dataclass(frozen=True, kw_only=True)
class Base:
    """What is known of a base model.

    Attributes:
        name: What to call it.
        repo: The repository on the Hub, if it comes from there.
        commit: The commit of that repository.
        config: Its ``config.json``.
        names: All names, those that only the index has included.
        is_whole: Whether *names* are all that there are; else the index was too large to be asked for.
        shards: Those whose headers were read.
        files: Its files, if they can be read from here.
        may_sample: Whether some of its weights may be read, to compare them with a fingerprint.
        card: The beginning of its model card, if that could be read.
    """

    name: str
    repo: str | None = None
    commit: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)
    names: frozenset[str] = field(default=frozenset(), repr=False)
    is_whole: bool = True
    shards: tuple[Shard, ...] = field(default=(), repr=False)
    files: BaseFiles | None = field(default=None, repr=False)
    may_sample: bool = False
    card: bytes = field(default=b"", repr=False)

    @cached_property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """What the headers that were read say, by name."""
        return {name: info for shard in self.shards for name, info in shard.tensors.items()}

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The base as far as its headers were read, or None if its files are out of reach."""
        if self.files is None:
            return None
        return Checkpoint(files=self.files, config=self.config, config_bytes=b"", index=None, shards=self.shards)

    @property
    def model_type(self) -> str | None:
        """The family of models, such as ``llama``."""
        found = self.config.get("model_type")
        return found if isinstance(found, str) else None

    @property
    def is_quantised(self) -> bool:
        """Whether the weights are stored as something else than their numbers."""
        return bool(self.config.get("quantization_config"))

    def setting(self, key: str) -> Any:  # noqa: ANN401 - whatever stands in the config
        """Return what the config says of *key*, for the text part of a multimodal model too."""
        for part in (self.config, *(self.config.get(name) for name in ("text_config", "llm_config"))):
            if isinstance(part, Mapping) and part.get(key) is not None:
                return part[key]
        return None

    @cached_property
    def kinds(self) -> Mapping[str, frozenset[Shape]]:
        """The shapes that a tensor of each kind has in the headers that were read."""
        shapes: defaultdict[str, set[Shape]] = defaultdict(set)
        for name, info in self.tensors.items():
            shapes[kind_of(name)].add(info.shape)
        return {kind: frozenset(found) for kind, found in shapes.items()}

    @property
    def unread(self) -> int:
        """How many tensors are known by name only."""
        return len(self.names) - len(self.tensors)

    def has(self, name: str) -> bool:
        """Whether there is a tensor *name*, as far as that is known."""
        return name in self.names or (not self.is_whole and self._may_have(name))

    def _may_have(self, name: str) -> bool:
        """Without the index: another layer has it, and there are so many layers."""
        layers = self.setting("num_hidden_layers")
        numbers = [int(number) for number in _NUMBER.findall(name)]
        is_there = not numbers or not isinstance(layers, int) or numbers[0] < layers
        return kind_of(name) in self.kinds and is_there

    def shape(self, name: str) -> tuple[Shape | None, bool]:
        """Return the shape of the tensor *name*, if it is known, and whether its own header says so."""
        if name in self.tensors:
            return self.tensors[name].shape, True
        alike = self.kinds.get(kind_of(name), frozenset())
        return (next(iter(alike)), False) if len(alike) == 1 else (None, False)


def read_base(files: BaseFiles, *, wanted: Iterable[str] = (), sample: bool = False) -> Base:
    """Return what is known of the base that *files* are.

    Of a base on the Hub at most `MAX_REQUESTS` are made, those of its list of files included, and less than `MAX_BYTES`
    move; of one on this machine every header is read.

    Args:
        files: The base.
        wanted: Paths of modules that are of interest, whose shards are read first.
        sample: Whether a base on the Hub may be asked for more: every header, and later some weights.

    Raises:
        NotFoundError: There is no config, or no weights in safetensors.
        MalformedError: A document or a header is malformed.
    """
    is_remote = files.repo is not None
    read = _Reading(files, is_bounded=is_remote and not sample).read(frozenset(map(kind_of, wanted)))
    return replace(read, may_sample=sample or not is_remote)


class _Reading:
    """One reading of a base, which counts what it asks for."""

    def __init__(self, files: BaseFiles, *, is_bounded: bool) -> None:
        self._files = files
        self._is_bounded = is_bounded
        self._requests, self._bytes = MAX_REQUESTS - _ASKED, MAX_BYTES - len(files.sizes) * 256
        self._shards: list[Shard] = []

    def read(self, wanted: frozenset[str]) -> Base:
        sizes = self._files.sizes
        config = self._document(CONFIG_NAME, MAX_CONFIG)
        index = self._index()
        for shard in self._order(index, wanted):
            if not self._may_ask(min(_FIRST, sizes[shard])):
                break
            self._read_header(shard)
        read = frozenset(name for shard in self._shards for name in shard.tensors)
        names = read if index is None else frozenset(index.weight_map)
        is_whole = index is not None or SINGLE_NAME in sizes
        return Base(
            name=self._files.name,
            repo=self._files.repo,
            commit=self._files.commit,
            config=config,
            names=names | read,
            is_whole=is_whole,
            shards=tuple(self._shards),
            files=self._files,
            card=self._card(),
        )

    def _document(self, name: str, limit: int) -> dict[str, Any]:
        return parse_json_object(
            self._small(name, limit), what=f"`{name}` of the base", limit=limit, hint="download it again"
        )

    def _index(self) -> CheckpointIndex | None:
        """Return the index, or None if one file holds all, or if it is larger than may be asked for."""
        size = self._files.sizes.get(INDEX_NAME)
        room = self._bytes - 2 * _FIRST
        if size is None or (self._is_bounded and size > room):
            return None
        return CheckpointIndex.parse(self._small(INDEX_NAME, MAX_INDEX))

    def _order(self, index: CheckpointIndex | None, wanted: frozenset[str]) -> list[str]:
        """Return the shards, those first that show the most kinds of weights that no shard before them has."""
        sizes = self._files.sizes
        if index is None:
            shards = [SINGLE_NAME] if SINGLE_NAME in sizes else sorted(n for n in sizes if _WEIGHTS.fullmatch(n))
            if not shards:
                raise NotFoundError(
                    f"the base `{self._files.name}` has no weights in safetensors",
                    hint="name a base that was saved as safetensors: pickles are never read",
                )
            return shards[1:2] + shards[:1] + shards[2:]
        missing = next((shard for shard in index.shards if shard not in sizes), None)
        if missing is not None:
            raise NotFoundError(f"the base `{self._files.name}` has no `{missing}`", hint="download the base again")
        return _cover(index.weight_map, wanted) if self._is_bounded else list(index.shards)

    def _read_header(self, shard: str) -> None:
        size = self._files.sizes[shard]
        try:
            start = self._ask(shard, 0, min(_FIRST, size))
            end = header_end(start, size=size)
            if end > len(start):
                if not self._may_ask(end - len(start)):
                    return
                start += self._ask(shard, len(start), end)
            tensors = read_header(start[:end], size=size, rules=CHECKPOINT)
            self._shards.append(Shard(name=shard, size=size, header=start[:end], tensors=tensors, metadata=None))
        except LoraHubError as error:
            raise error.within(f"`{shard}` of the base") from error

    def _card(self) -> bytes:
        """Return the beginning of the model card, which has the license of the base, if it may be asked for."""
        size = min(self._files.sizes.get("README.md", 0), 16 * 1024)
        return self._ask("README.md", 0, size) if size and self._may_ask(size) else b""

    def _small(self, name: str, limit: int) -> bytes:
        size = self._files.sizes.get(name)
        if size is None:
            raise NotFoundError(f"the base `{self._files.name}` has no `{name}`", hint="name a whole model")
        if size > limit or not self._may_ask(size):
            raise MalformedError(
                f"{printable(name)} of `{self._files.name}` has {size} bytes, more than are read",
                hint="it is no file of a model",
            )
        return self._ask(name, 0, size)

    def _may_ask(self, size: int) -> bool:
        return not self._is_bounded or (self._requests > 0 and size <= self._bytes)

    def _ask(self, name: str, start: int, stop: int) -> bytes:
        self._requests -= 1
        self._bytes -= stop - start
        return self._files.read(name, start, stop)


def _cover(weight_map: Mapping[str, str], wanted: frozenset[str]) -> list[str]:
    """Return the shards of *weight_map*: each the one that adds the most kinds, *wanted* ones above all others."""
    kinds: defaultdict[str, set[str]] = defaultdict(set)
    for name, shard in weight_map.items():
        kinds[shard].add(kind_of(name))
    worth = Counter({kind: 1 for shown in kinds.values() for kind in shown})
    for kind in worth:
        if any(kind.removesuffix(".weight").endswith(end) for end in wanted):
            worth[kind] = 1000
    order: list[str] = []
    seen: set[str] = set()
    while kinds:
        best = max(sorted(kinds), key=lambda shard: sum(worth[kind] for kind in kinds[shard] - seen))
        seen |= kinds.pop(best)
        order.append(best)
    return order
