"""Merge adapters into a checkpoint: shard by shard into a new directory, so that a crash at any point can go on."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from lora_hub.checkpoint import provenance as provenances
from lora_hub.checkpoint.base_files import LocalBase
from lora_hub.checkpoint.checkpoint import CONFIG_NAME
from lora_hub.checkpoint.companions import PROVENANCE_NAME, Companion, companions, new_card, new_config, new_index
from lora_hub.checkpoint.deltas import threads_to_spare
from lora_hub.checkpoint.hashed_file import hash_file
from lora_hub.checkpoint.journal import JOURNAL_NAME, Journal, alone_in, read_journal, realised
from lora_hub.checkpoint.plan import MergePlan, Replaced, ShardPlan
from lora_hub.checkpoint.provenance import Merged, provenance
from lora_hub.checkpoint.shard import OnBytes, WrittenShard, write_shard
from lora_hub.documents.checkpoint_index import INDEX_NAME
from lora_hub.documents.fields import sha256
from lora_hub.documents.manifest import CARD_NAME
from lora_hub.errors import CompatibilityError, IntegrityError, MachineError, NotFoundError, UsageError
from lora_hub.files import machine_errors, make_directory, read_file, sync_directory, write_files

Progress = Callable[[str, int], AbstractContextManager[OnBytes]]
_SPARE = 16 * 1024 * 1024  # bytes for what lies beside the weights


def merge(
    plan: MergePlan,
    output: Path,
    *,
    tool: str,
    resume: bool = False,
    tokenizers: Mapping[str, LocalBase],
    progress: Progress,
) -> Merged:
    """Write what *plan* describes into *output*, and return what was written.

    Args:
        plan: What to write.
        output: A new or empty directory; with *resume*, one in which a merge of the same plan was cut off.
        tool: Version of lora-hub, for the provenance.
        resume: Whether to go on: shards that are whole are kept, after they were hashed again.
        tokenizers: Directories of adapters that may hold a tokenizer, by the adapters' names.
        progress: How to show what is written.

    Raises:
        UsageError: The output holds something else.
        MachineError: The disk has not enough space, or another process merges into it.
        CompatibilityError: Nothing would be changed, or a sum is too large for the dtype.
    """
    with machine_errors():
        make_directory(output)
    with alone_in(output), threads_to_spare():
        journal, finished = _open(plan, output, resume=resume)
        copied, notes = companions(plan, tokenizers)
        notes = [*plan.notes, *notes]
        if finished is not None:
            return provenances.merged(output, finished, notes=tuple(notes), reused=tuple(s.name for s in plan.shards))
        kept = _kept(journal, plan, output, progress)
        check_space(plan, output, kept=kept)
        for shard in plan.shards:
            if shard.name not in kept:
                journal.done(shard.name, _write(plan, shard, output, progress))
        _check_something_changed(plan, journal)
        document = _finish(plan, output, journal, copied, tool)
        return provenances.merged(output, document, notes=tuple(notes), reused=kept)


def _open(plan: MergePlan, output: Path, *, resume: bool) -> tuple[Journal, dict[str, object] | None]:
    """Return the journal to go on with, and what a merge that is finished already says of itself."""
    recipe, stamp = plan.digest(), plan.checkpoint.stamp()
    with machine_errors():
        names = {path.name for path in output.iterdir()}
    if not names:
        journal = Journal(directory=output, recipe=recipe, stamp=stamp)
        journal.write()
        return journal, None
    if not resume:
        is_begun = JOURNAL_NAME in names
        raise UsageError(
            f"the output `{output}` is not empty{': a merge was cut off there' if is_begun else ''}",
            hint="go on with --resume, or name a new directory" if is_begun else "name a new directory",
        )
    if JOURNAL_NAME in names:
        return read_journal(output, recipe=recipe, stamp=stamp), None
    if names <= {name for name in names if name.startswith(f".{JOURNAL_NAME}.")}:  # killed before it was in its place
        journal = Journal(directory=output, recipe=recipe, stamp=stamp)
        journal.write()
        return journal, None
    return Journal(directory=output, recipe=recipe, stamp=stamp), _finished(plan, output, recipe)


def _finished(plan: MergePlan, output: Path, recipe: str) -> dict[str, object]:
    """Return the provenance of the merge in *output*, which must be of this recipe and base, all its files proven."""
    try:
        document = provenances.parse(bytes(read_file(output / PROVENANCE_NAME, limit=provenances.MAX_PROVENANCE)))
    except NotFoundError as error:
        raise UsageError(
            f"`{output}` holds no merge that could go on", hint="name a new directory, or the one of the merge"
        ) from error
    if document["recipe"] != recipe:
        raise UsageError(
            f"`{output}` holds a finished merge of another recipe: {document['recipe']}, not {recipe}",
            hint="name a new directory",
        )
    for name, expected in document["files"].items():
        if not (output / name).is_file() or hash_file(output / name)[1] != expected:
            raise IntegrityError(
                f"`{name}` in `{output}` was changed since the merge", hint="merge into a new directory"
            )
    _check_same_base(plan, output, document["base"]["shards"])
    return document


def _check_same_base(plan: MergePlan, output: Path, merged: Mapping[str, str]) -> None:
    """A recipe has the headers of a base in a directory, which those of its siblings may equal, and not its weights."""
    files = plan.checkpoint.files
    for shard in plan.shards:
        if (files.sha256(shard.name) or hash_file(files.fetched(shard.name))[1]) != merged.get(shard.name):
            raise UsageError(
                f"`{output}` holds a finished merge into another base: its `{shard.name}` had other weights",
                hint="name a new directory",
            )


def _kept(journal: Journal, plan: MergePlan, output: Path, progress: Progress) -> tuple[str, ...]:
    """Return the names of the shards that lie in *output* as the journal says; they are read once more."""
    kept = []
    for shard in plan.shards:
        done = journal.shards.get(shard.name)
        if done is None or not (output / shard.name).is_file() or (output / shard.name).is_symlink():
            continue
        with progress(f"checking {shard.name}", done.size) as on_bytes:
            if hash_file(output / shard.name, on_bytes=on_bytes) == (done.size, done.sha256):
                kept.append(shard.name)
    return tuple(kept)


def check_space(plan: MergePlan, output: Path, *, kept: tuple[str, ...] = ()) -> None:
    """Raise `MachineError` unless the disk holds what is still to be written."""
    missing = [shard for shard in plan.shards if shard.name not in kept]
    needed, free = sum(shard.size for shard in missing), free_space(output)
    with machine_errors():
        # What a killed run left half is written over.
        parts = [path for shard in missing if (path := _part(output, shard)).is_file()]
        free += sum(path.stat().st_size for path in parts)
    if needed + _SPARE > free:
        raise MachineError(
            f"{needed + _SPARE} bytes are to be written to `{output}`, {free} are free there",
            hint="free some space, or name another disk",
        )


def free_space(output: Path) -> int:
    """Return how many bytes may be written to *output*, which need not exist."""
    place = output.absolute()
    with machine_errors():
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free


def _write(plan: MergePlan, shard: ShardPlan, output: Path, progress: Progress) -> WrittenShard:
    files = plan.checkpoint.files
    part, target = _part(output, shard), output / shard.name
    source = files.fetched(shard.name)
    with progress(shard.name, shard.size) as on_bytes:
        written = write_shard(shard, source, part, on_bytes=on_bytes)
    expected = files.sha256(shard.name)
    if expected not in {None, written.base_sha256}:
        raise IntegrityError(
            f"`{shard.name}` of the base has sha256 {written.base_sha256}, the Hub says {expected}",
            hint="remove it from the Hub's cache (`hf cache`), and run it again with --resume",
        )
    with machine_errors():
        part.replace(target)
        sync_directory(output)
    return written


def _part(output: Path, shard: ShardPlan) -> Path:
    """Return where the shard lies until it is whole."""
    return output / f"{shard.name}.part"


def _check_something_changed(plan: MergePlan, journal: Journal) -> None:
    sums = realised(journal.shards)
    is_replaced = any(isinstance(target.change, Replaced) for target in plan.touched())
    if not is_replaced and not any(one.found for one in sums.values()):
        raise CompatibilityError(
            "nothing changed: every delta is smaller than what the weights' dtype can hold",
            hint="merge with --dtype float32, or apply the adapter unmerged",
        )


def _finish(plan: MergePlan, output: Path, journal: Journal, copied: list[Companion], tool: str) -> dict[str, object]:
    """Write what lies beside the weights, what makes it a model last, and forget the journal."""
    shards = {shard.name: journal.shards[shard.name] for shard in plan.shards}
    digests = {name: shard.sha256 for name, shard in shards.items()}
    for companion in copied:
        content = companion.read()
        digests[companion.name] = sha256(content)
        _write_small(output, companion.name, content)
    index, config, card = new_index(plan), new_config(plan), new_card(plan)
    last = {CARD_NAME: card, **({} if index is None else {INDEX_NAME: index}), CONFIG_NAME: config}
    digests |= {name: sha256(content) for name, content in last.items()}
    document = provenance(plan, shards, digests, tool=tool)
    for name, content in {PROVENANCE_NAME: provenances.to_bytes(document), **last}.items():
        _write_small(output, name, content)
    _remove_parts(output, {JOURNAL_NAME, PROVENANCE_NAME, *digests})
    journal.close()
    return document


def _write_small(output: Path, name: str, content: bytes) -> None:
    with machine_errors():
        write_files(output, {name: content})


def _remove_parts(output: Path, names: set[str]) -> None:
    """Remove what killed runs left of the files *names* in *output*."""
    with machine_errors():
        for path in output.iterdir():
            if any(path.name.startswith(f".{name}.") for name in names):
                path.unlink(missing_ok=True)
