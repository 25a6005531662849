"""The journal of a merge under way, ``merge.json`` in the output: its recipe, and which shards are done.

As long as it lies there the output is not finished; the config, without which nobody loads a model, comes last.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_hub.checkpoint.deltas import Sums
from lora_hub.checkpoint.shard import WrittenShard
from lora_hub.documents.fields import Fields, canonical_json, is_sha256, parse_json_object
from lora_hub.errors import MachineError, StateError
from lora_hub.files import machine_errors, read_file, write_files

JOURNAL_NAME = "merge.json"
SCHEMA = "lora-hub/merge-journal/v1"
_MAX_JOURNAL = 256 * 1024 * 1024  # bytes
MAX_SIZE = 2**48  # bytes of weights
_START_AGAIN = "empty the output directory, and run it without --resume"


@dataclass(slots=True, kw_only=True)
class Journal:
    """What is done of the merge *recipe* in *directory*; *stamp* says whether the base's files are still the same."""

    directory: Path
    recipe: str
    stamp: str
    shards: dict[str, WrittenShard] = field(default_factory=dict)

    def write(self) -> None:
        """Make it durable."""
        document = {
            "schema": SCHEMA,
            "recipe": self.recipe,
            "stamp": self.stamp,
            "shards": {name: _to_json(shard) for name, shard in self.shards.items()},
        }
        with machine_errors():
            write_files(self.directory, {JOURNAL_NAME: canonical_json(document)})

    def done(self, name: str, shard: WrittenShard) -> None:
        """Write down that the shard *name* lies there, whole."""
        self.shards[name] = shard
        self.write()

    def close(self) -> None:
        """Forget the merge: all of it is there."""
        with machine_errors():
            (self.directory / JOURNAL_NAME).unlink(missing_ok=True)


def read_journal(directory: Path, *, recipe: str, stamp: str) -> Journal:
    """Return the journal in *directory*, which must be of the same merge.

    Raises:
        StateError: It is of another merge, or the base was changed since.
        MalformedError: It is no journal.
    """
    content = bytes(read_file(directory / JOURNAL_NAME, limit=_MAX_JOURNAL))
    document = parse_json_object(content, what=f"`{JOURNAL_NAME}`", limit=_MAX_JOURNAL, hint=_START_AGAIN)
    fields = Fields(document, hint=_START_AGAIN)
    fields.check_schema(SCHEMA)
    fields.only("schema", "recipe", "stamp", "shards")
    found = fields.text("recipe")
    if found != recipe:
        raise StateError(
            f"`{directory}` holds a merge of another recipe: {found}, not {recipe}",
            hint=f"name the same base, adapters, weights and dtype as then; or {_START_AGAIN}",
        )
    if fields.text("stamp") != stamp:
        raise StateError("the base was changed since the merge was begun", hint=_START_AGAIN)
    shards = fields.object("shards")
    read = {name: _from_json(shards.object(name)) for name in shards.values}
    return Journal(directory=directory, recipe=recipe, stamp=stamp, shards=read)


def _to_json(shard: WrittenShard) -> dict[str, Any]:
    return {
        "size": shard.size,
        "sha256": shard.sha256,
        "base_sha256": shard.base_sha256,
        "sums": {path: [sums.found, sums.exact, sums.wrong] for path, sums in shard.sums.items()},
    }


def _from_json(fields: Fields) -> WrittenShard:
    fields.only("size", "sha256", "base_sha256", "sums")
    sums = fields.object("sums")
    return WrittenShard(
        size=fields.integer("size", low=0, high=MAX_SIZE),
        sha256=fields.text("sha256", "a SHA-256", is_sha256),
        base_sha256=fields.text("base_sha256", "a SHA-256", is_sha256),
        sums={path: Sums(*sums.read(path, list, "three numbers", _are_three)) for path in sums.values},
    )


def _are_three(values: list[Any]) -> bool:
    return len(values) == 3 and all(isinstance(value, float) and value >= 0 for value in values)  # noqa: PLR2004


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Keep other merges out of *directory* meanwhile; nothing is written for it, and a killed process keeps nobody out.

    Raises:
        MachineError: Another process merges into it.
    """
    with machine_errors():
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with machine_errors():  # not every file system has locks
            _lock(descriptor, directory)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise MachineError(f"another process merges into `{directory}`", hint="wait for it to end") from error


def realised(shards: Mapping[str, WrittenShard]) -> dict[str, Sums]:
    """Return what was realised of each module's delta, by its path."""
    return {path: sums for shard in shards.values() for path, sums in sorted(shard.sums.items())}
