"""Embeddings and outputs of a language model: tied or not, and as many rows as the vocabulary has tokens.

A tied model keeps one tensor for both. What changes only one of them unties them: both are written then, and the config
says so, since a reader would overwrite one by the other (transformers #45127, PEFT #2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora_hub.checkpoint.token_layers import is_embedding, is_output
from lora_hub.errors import CompatibilityError
from lora_hub.tensors import DTYPES

if TYPE_CHECKING:
    from lora_hub.checkpoint.changes import Changes
    from lora_hub.checkpoint.checkpoint import Checkpoint
    from lora_hub.checkpoint.known_model import Known, KnownModel

_WEIGHT = ".weight"
_PIECE = 4 * 1024 * 1024  # bytes that are compared at once
_IMPLIED = {  # the output that a tied model does not store, by the end of its class's name
    "ForCausalLM": "lm_head",
    "LMHeadModel": "lm_head",
    "ForConditionalGeneration": "lm_head",
    "ForMaskedLM": "cls.predictions.decoder",
    "ForPreTraining": "cls.predictions.decoder",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What becomes of embedding and output.

    Attributes:
        made: Tensors that are new, and the tensor of the base that each begins as.
        unties: Whether the config must say that the two are no longer one.
        rows: How many tokens there are, if that changes.
    """

    made: Mapping[str, str]
    unties: bool = False
    rows: int | None = None


def settle(checkpoint: Checkpoint, changes: Changes, dtype: str | None, known: Known) -> Vocabulary:
    """Return what becomes of embedding and output when *changes* are made; one that changes nothing is taken out.

    Raises:
        CompatibilityError: It is not clear which of several embeddings is meant, the two would not fit each other, or
            more than these two are one tensor.
    """
    stored = checkpoint.shard_of
    concerned = sorted(name for name in changes.names() if _is_of(name, is_output) or _is_of(name, is_embedding))
    if not concerned:
        return Vocabulary(made={})
    names = sorted({*stored, *changes.names()})
    embeddings = [name for name in names if _is_of(name, is_embedding)]
    outputs = [name for name in names if _is_of(name, is_output)]
    if len(embeddings) != 1 or embeddings[0] not in stored or len(outputs) > 1:
        raise CompatibilityError(
            f"`{concerned[0]}` is changed, and with the adapters' the base has {len(embeddings)} embeddings and "
            f"{len(outputs)} outputs: which of them are tied is not known",
            hint="apply the adapter unmerged, or train it without its vocabulary",
        )
    (embedding,), model = embeddings, known()
    output = outputs[0] if outputs else _output_of(checkpoint, embedding, model)
    is_apart = output in stored and _says_tied(checkpoint.config) is False
    for name in concerned:
        if not (name == output and is_apart):
            _check_no_other(_tied_to(name, model) - {embedding, output}, name)
    if output is None:  # a backbone without an output
        rows = stored[embedding].tensors[embedding].shape[0]
        return Vocabulary(made={}, rows=_rows(changes, rows, [embedding]))
    return _settle_pair(checkpoint, changes, embedding, output, dtype, model)


def _tied_to(tensor: str, model: KnownModel | None) -> frozenset[str]:
    """Return the names of all that is one with *tensor* in memory, as far as transformers knows the model."""
    return next((names for names in ([] if model is None else model.tied) if tensor in names), frozenset())


def _check_no_other(names: frozenset[str | None], changed: str) -> None:
    """An encoder and a decoder may share their embedding: whoever unties the output would untie them too."""
    if names:
        raise CompatibilityError(
            f"`{changed}` is one tensor with {' and '.join(f'`{name}`' for name in sorted(map(str, names)))}: changing "
            "one of several is not implemented",
            hint="apply the adapter unmerged, or train it without its vocabulary",
        )


def _settle_pair(
    checkpoint: Checkpoint,
    changes: Changes,
    embedding: str,
    output: str,
    dtype: str | None,
    model: KnownModel | None,
) -> Vocabulary:
    shard_of = checkpoint.shard_of
    info = shard_of[embedding].tensors[embedding]
    is_stored, says = output in shard_of, _says_tied(checkpoint.config)
    if says is None and not is_stored and model is not None:
        says = output in _tied_to(embedding, model)
    _check_can_be_tied(changes, embedding, output, info.shape, is_stored=is_stored, says=says)
    rows = _rows(changes, info.shape[0], [embedding, output])
    if _end_equal(changes, embedding, output, DTYPES[dtype or info.dtype]):
        if not is_stored:
            del changes.replaced[output]
            changes.notes.append("embedding and output are replaced by equal tensors: they stay tied")
        return Vocabulary(made={}, rows=rows)
    if is_stored:
        unties = says is not False and _are_equal(checkpoint, embedding, output, says=says)
        made = {}
    else:
        unties, made = True, {} if output in changes.replaced else {output: embedding}
    if unties:
        changes.notes.append(
            f"embedding and output were one tensor and differ now: `{output}` is written, and config.json says "
            "tie_word_embeddings: false"
        )
    return Vocabulary(made=made, unties=unties, rows=rows)


def _is_of(tensor: str, kind: Any) -> bool:  # noqa: ANN401 - one of the two questions above
    return tensor.endswith(_WEIGHT) and bool(kind(tensor.removesuffix(_WEIGHT)))


def _says_tied(config: Mapping[str, Any]) -> bool | None:
    """Return what the config says of ties; None where it says nothing, and the model class decides."""
    inner = config.get("text_config")
    for settings in (config, inner if isinstance(inner, dict) else {}):
        if isinstance(settings.get("tie_word_embeddings"), bool):
            return bool(settings["tie_word_embeddings"])
    return None


def _output_of(checkpoint: Checkpoint, embedding: str, model: KnownModel | None) -> str | None:
    """Return the name of the output that the base does not store: what transformers ties, or what its class implies."""
    tied = _tied_to(embedding, model) - {embedding}
    return next(iter(tied)) if len(tied) == 1 else _implied_output(checkpoint)


def _implied_output(checkpoint: Checkpoint) -> str | None:
    """Return the name of the output that a tied language model does not store; None if it is a backbone alone."""
    architectures = checkpoint.config.get("architectures")
    names = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    implied = [path for name in names for ending, path in _IMPLIED.items() if name.endswith(ending)]
    return f"{implied[0]}{_WEIGHT}" if implied else None


def _check_can_be_tied(
    changes: Changes, embedding: str, output: str, shape: tuple[int, ...], *, is_stored: bool, says: bool | None
) -> None:
    if not is_stored and says is False:
        raise CompatibilityError(
            f"the base has no `{output}`, and it is not tied to `{embedding}`",
            hint="download the base model again",
        )
    if not is_stored and output.endswith(f".decoder{_WEIGHT}"):
        raise CompatibilityError(
            f"`{embedding}` and `{output}` are one tensor, whose bias lies elsewhere: changing one is not implemented",
            hint="apply the adapter unmerged",
        )
    added = changes.added.get(output)
    if is_stored or added is None:
        return
    source, module = added.parts[0]
    if (module.out_features, module.in_features) != shape:
        raise CompatibilityError(
            f"`{source.input.name}` adapts `{module.path}` as {[module.out_features, module.in_features]}, the tied "
            f"`{embedding}` of the base is {list(shape)}",
            hint="name the base that the adapter was trained on, with the same vocabulary",
        )


def _rows(changes: Changes, rows: int, tensors: list[str]) -> int | None:
    """Return how many tokens the vocabulary has, if that changes; then all of *tensors* must be replaced alike."""
    found = {name: _replaced_rows(changes, name) for name in tensors}
    new = {count for count in found.values() if count is not None and count > rows}
    if not new:
        return None
    if len(new) > 1 or None in found.values() or rows in found.values():
        shown = ", ".join(f"`{name}` {rows if count is None else count}" for name, count in found.items())
        raise CompatibilityError(
            f"the vocabulary of {rows} tokens would not be resized alike: {shown} rows",
            hint='train with `modules_to_save=["embed_tokens", "lm_head"]`, so that both are in the adapter',
        )
    return new.pop()


def _replaced_rows(changes: Changes, tensor: str) -> int | None:
    replaced = changes.replaced.get(tensor)
    return None if replaced is None else replaced.tensor().shape[0]


def _end_equal(changes: Changes, embedding: str, output: str, dtype: torch.dtype) -> bool:
    one, other = changes.replaced.get(embedding), changes.replaced.get(output)
    return one is not None and other is not None and torch.equal(one.tensor().to(dtype), other.tensor().to(dtype))


def _are_equal(checkpoint: Checkpoint, one: str, other: str, *, says: bool | None) -> bool:
    """Whether both tensors of the base have the same bytes.

    Raises:
        CompatibilityError: They differ, though the config *says* that they are tied: readers do not agree on which.
    """
    shards = checkpoint.shard_of
    first, second = shards[one].tensors[one], shards[other].tensors[other]
    size = first.stop - first.start
    is_same = (first.dtype, first.shape) == (second.dtype, second.shape) and all(
        checkpoint.files.read(shards[one].name, first.start + start, first.start + min(start + _PIECE, size))
        == checkpoint.files.read(shards[other].name, second.start + start, second.start + min(start + _PIECE, size))
        for start in range(0, size, _PIECE)
    )
    if says and not is_same:
        raise CompatibilityError(
            f"`{one}` and `{other}` of the base differ, though its config says that they are one",
            hint="load the base in transformers, and `save_pretrained` it again",
        )
    return is_same
