"""From a checkpoint and adapters to the plan of a merge. Everything that can be refused is refused here."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence

from lora_hub.checkpoint.changes import Changes, find_changes
from lora_hub.checkpoint.checkpoint import Checkpoint
from lora_hub.checkpoint.fingerprint import REQUESTS, compare_with_files
from lora_hub.checkpoint.known_model import known_model
from lora_hub.checkpoint.model_config import changed_config
from lora_hub.checkpoint.plan import Added, MergePlan, Replaced, ShardPlan, Source, Target
from lora_hub.checkpoint.token_layers import is_embedding, is_output
from lora_hub.checkpoint.vocabulary import Vocabulary, settle
from lora_hub.composing.inputs import common_base
from lora_hub.documents.fields import printable
from lora_hub.documents.safetensors_header import TensorInfo
from lora_hub.errors import CompatibilityError, UsageError
from lora_hub.tensors import DTYPES

DTYPE_OPTIONS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_WEIGHT = ".weight"


def plan_merge(
    checkpoint: Checkpoint, sources: Sequence[Source], *, dtype: str | None = None, allow_other_base: bool = False
) -> MergePlan:
    """Return what merging *sources* into *checkpoint* will write.

    Args:
        checkpoint: The base.
        sources: The adapters; none is held back, however small its weight is.
        dtype: ``float32``, ``float16`` or ``bfloat16`` for all floating tensors; None lets each keep its own.
        allow_other_base: Whether adapters of siblings of this base are merged into it.

    Raises:
        UsageError: No adapter, or no such dtype.
        CompatibilityError: Adapters and base do not fit.
    """
    if not sources:
        raise UsageError("no adapter is named", hint="name at least one REF")
    target = _target_dtype(dtype)
    _check_base(checkpoint, sources, allow_other_base=allow_other_base)
    known = functools.cache(lambda: known_model(checkpoint.config, checkpoint.shard_of))
    changes = find_changes(checkpoint, sources, known)
    vocabulary = settle(checkpoint, changes, target, known)
    shards = tuple(_plan_shards(checkpoint, changes, vocabulary, target))
    config, notes = changed_config(checkpoint, changes, vocabulary, sources, target)
    return MergePlan(
        checkpoint=checkpoint,
        sources=tuple(sources),
        dtype=target,
        shards=shards,
        config=config,
        resized=vocabulary.rows,
        notes=(*changes.notes, *notes),
    )


def _target_dtype(dtype: str | None) -> str | None:
    if dtype is not None and dtype not in DTYPE_OPTIONS:
        raise UsageError(f"there is no dtype {printable(dtype)} to merge in", hint=f"one of {', '.join(DTYPE_OPTIONS)}")
    return None if dtype is None else DTYPE_OPTIONS[dtype]


def _check_base(checkpoint: Checkpoint, sources: Sequence[Source], *, allow_other_base: bool) -> None:
    if checkpoint.config.get("quantization_config"):
        raise CompatibilityError(
            f"the base `{checkpoint.files.name}` is quantised: its config has a `quantization_config`",
            hint="merge into the base in 16 bits, and quantise what comes out",
        )
    base = common_base([source.input for source in sources], allow_other_base=allow_other_base)
    for what, made_for, found in (
        ("type", base.model_type, checkpoint.model_type),
        ("repository", base.repo, checkpoint.files.repo),
    ):
        if None in (made_for, found) or made_for == found or allow_other_base:
            continue
        raise CompatibilityError(
            f"`{sources[0].input.name}` was made for a base of {what} {printable(made_for)}, "
            f"`{checkpoint.files.name}` is of {what} {printable(found)}",
            hint="name the adapter's own base; `--allow-other-base` merges all the same, if the shapes fit",
        )
    if not allow_other_base:
        _check_weights(checkpoint, sources)


def _check_weights(checkpoint: Checkpoint, sources: Sequence[Source]) -> None:
    """Of files on the Hub only some weights are asked for, before any of them is downloaded."""
    for source in sources:
        adapter = source.input.adapter
        verdict = compare_with_files(adapter, checkpoint, max_reads=REQUESTS if checkpoint.files.repo else None)
        if verdict.is_other:
            raise CompatibilityError(
                f"`{source.input.name}` was trained on {adapter.manifest.base}, `{checkpoint.files.name}` is another "
                f"base: {verdict.reason}",
                hint="name the adapter's own base; `--allow-other-base` merges into a sibling all the same",
            )


def _plan_shards(
    checkpoint: Checkpoint, changes: Changes, vocabulary: Vocabulary, dtype: str | None
) -> list[ShardPlan]:
    targets: dict[str, list[Target]] = {
        shard.name: [_target(name, info, changes, dtype) for name, info in shard.tensors.items()]
        for shard in checkpoint.shards
    }
    shard_of = checkpoint.shard_of
    for name, base in vocabulary.made.items():
        info = shard_of[base].tensors[base]
        target = Target(
            name=name, dtype=_dtype(name, info, dtype), shape=info.shape, base=info, change=changes.added.get(name)
        )
        targets[shard_of[base].name].append(target)
    for name in changes.replaced:
        if name not in shard_of:
            targets[checkpoint.shards[-1].name].append(
                _new(name, changes.replaced[name], dtype or checkpoint.main_dtype)
            )
    _check_all_are_planned(changes, targets)
    return [ShardPlan.of(shard, targets[shard.name]) for shard in checkpoint.shards]


def _target(name: str, info: TensorInfo, changes: Changes, dtype: str | None) -> Target:
    replaced = changes.replaced.get(name)
    shape = info.shape if replaced is None else _replaced_shape(name, info, replaced)
    change: Added | Replaced | None = replaced or changes.added.get(name)
    return Target(name=name, dtype=_dtype(name, info, dtype), shape=shape, base=info, change=change)


def _new(name: str, replaced: Replaced, dtype: str) -> Target:
    return Target(name=name, dtype=dtype, shape=tuple(replaced.tensor().shape), base=None, change=replaced)


def _dtype(name: str, info: TensorInfo, dtype: str | None) -> str:
    if dtype is not None and info.dtype.startswith(("F8", "F6", "F4")):
        raise CompatibilityError(
            f"`{name}` is stored as {info.dtype}: without its scales it cannot become {dtype}",
            hint="leave out --dtype",
        )
    return dtype if dtype is not None and info.dtype in DTYPES else info.dtype


def _replaced_shape(name: str, info: TensorInfo, replaced: Replaced) -> tuple[int, ...]:
    """Return the shape of the head's tensor: that of the base, or more rows if it is of the vocabulary."""
    shape, path = tuple(replaced.tensor().shape), name.rpartition(".")[0]
    is_vocabulary = is_embedding(path) or is_output(path)
    if shape == info.shape or (is_vocabulary and shape[1:] == info.shape[1:] and shape[0] > info.shape[0]):
        return shape
    raise CompatibilityError(
        f"`{name}` has shape {list(info.shape)} in the base, {list(shape)} in `{replaced.source.input.name}`",
        hint="name the base as the adapter was trained on it: the same number of labels, or of tokens",
    )


def _check_all_are_planned(changes: Changes, targets: Mapping[str, list[Target]]) -> None:
    """Every change is made exactly once."""
    count: defaultdict[str, int] = defaultdict(int)
    for planned in targets.values():
        for target in planned:
            count[target.name] += target.change is not None
    for name in sorted(changes.names()):
        if count[name] != 1:
            path = name.removesuffix(_WEIGHT)
            raise CompatibilityError(
                f"the adapter changes `{path}`, which would be written {count[name]} times",
                hint="name the base that the adapter was trained on",
            )
