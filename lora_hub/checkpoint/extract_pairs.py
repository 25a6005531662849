"""Two checkpoints of one architecture: which tensors belong together, and what each of them is in the model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_hub.checkpoint.base_files import BaseFiles
from lora_hub.checkpoint.checkpoint import Checkpoint
from lora_hub.checkpoint.known_model import KnownModel, known_model
from lora_hub.checkpoint.names import Prefix
from lora_hub.checkpoint.orientation import transposed_by_plugin
from lora_hub.checkpoint.token_layers import is_embedding, is_output
from lora_hub.documents.fields import printable
from lora_hub.documents.module_names import is_named, names_of, owners_of
from lora_hub.documents.safetensors_header import TensorInfo
from lora_hub.errors import CompatibilityError, NotFoundError

_MATRIX = 2  # axes
_NUMBERED = re.compile(r"(?:[^.]*\.)*?[0-9]+(?=\.)", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """One tensor in a shard of a checkpoint."""

    name: str
    files: BaseFiles
    shard: str
    info: TensorInfo

    @property
    def file(self) -> Path:
        """Where the shard lies; `IntegrityError` if it was changed since its header was read."""
        return self.files.fetched(self.shard)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """One tensor of the fine-tuned checkpoint and what it was before; None if the base has nothing like it.

    Attributes:
        name: What it is called in the model; where transformers does not know the model, what it is called in the file.
        transposed: Whether it is the weight of a linear module and lies ``[in, out]``; None if it is something else.
        is_unclear: Whether it may be such a weight, but nobody knows the model.
        whole: If it was asked for as a whole: the names that it has in the model, which may tie it to others, and the
            module of each that is taken.
    """

    name: str
    fine: Stored
    base: Stored | None
    transposed: bool | None
    is_unclear: bool
    whole: Mapping[str, str]

    @property
    def path(self) -> str:
        """The module that it belongs to."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """All tensors of the fine-tuned checkpoint, in the order of their names, and remarks on the two."""

    pairs: tuple[Pair, ...]
    linear: frozenset[str]
    notes: tuple[str, ...]


def pair_up(fine: Checkpoint, base: Checkpoint, full: Collection[str]) -> Pairs:
    """Return the tensors of *fine* with their counterparts in *base*; modules named by *full* are taken as a whole.

    Raises:
        CompatibilityError: Not of one architecture: another model type, a tensor that one lacks, or another shape.
        NotFoundError: A name of *full* is that of no module.
    """
    if None not in (fine.model_type, base.model_type) and fine.model_type != base.model_type:
        raise CompatibilityError(
            f"the fine-tuned checkpoint is a {printable(fine.model_type)}, the base a {printable(base.model_type)}",
            hint="name the base that it was fine-tuned from",
        )
    before, after = _stored(base), _stored(fine)
    counterpart = _prefix(after, before)
    missing = sorted(before.keys() - set(map(counterpart, after)))
    known = known_model(fine.config, [*missing, *after])
    counterparts = {name: before.get(counterpart(name)) for name in after}
    pairs = tuple(_pairs(after, counterparts, fine.model_type, known, frozenset(full)))
    _check_full(pairs, full)
    notes = tuple(_notes_on(missing, before, known))
    for pair in pairs:
        _check_shape(pair)
    linear = frozenset(known.transposed) if known else frozenset(p.path for p in pairs if p.transposed is not None)
    return Pairs(pairs=pairs, linear=linear, notes=notes)


def _pairs(
    after: Mapping[str, Stored],
    before: Mapping[str, Stored | None],
    model_type: str | None,
    known: KnownModel | None,
    full: frozenset[str],
) -> Iterator[Pair]:
    in_memory = {stored: memory for memory, stored in known.tensors.items()} if known else {}
    for name, stored in sorted(after.items()):
        plain = in_memory.get(name, name)
        is_plain = known is None or name in in_memory
        may_be_linear = is_plain and _may_be_linear(plain, stored.info)
        transposed = _transposed(plain.rpartition(".")[0], model_type, known) if may_be_linear else None
        tied = {other for names in (known.tied if known else ()) if name in names for other in names} - after.keys()
        yield Pair(
            name=plain,
            fine=stored,
            base=before[name],
            transposed=transposed,
            is_unclear=may_be_linear and transposed is None and known is None,
            whole=_whole([plain, *sorted(tied)], full),
        )


def _whole(names: Sequence[str], full: frozenset[str]) -> dict[str, str]:
    """Return the module that is taken for each of the *names* of one tensor: none, or all if *full* asks for one."""
    asked = {name: next((owner for owner in owners_of(name) if is_named(owner, full)), None) for name in names}
    if not any(asked.values()):
        return {}
    return {name: owner or name.rpartition(".")[0] for name, owner in asked.items()}


def _stored(checkpoint: Checkpoint) -> dict[str, Stored]:
    return {
        name: Stored(name=name, files=checkpoint.files, shard=shard.name, info=info)
        for shard in checkpoint.shards
        for name, info in shard.tensors.items()
    }


def _prefix(after: Collection[str], before: Collection[str]) -> Prefix:
    """A backbone that was saved alone lacks the prefix of the model with a head (``bert.``), and the reverse."""
    if not set(after).isdisjoint(before):
        return Prefix()
    one = min(before, key=len)
    for name in after:
        if name.endswith(f".{one}"):
            return Prefix(removed=name.removesuffix(one))
    for rest in names_of(one):
        if rest in after:
            return Prefix(added=one.removesuffix(rest))
    raise CompatibilityError(
        f"the two checkpoints have no tensor in common: the base has {printable(one)}, the fine-tuned one "
        f"{printable(min(after, key=len))}",
        hint="name the base that it was fine-tuned from",
    )


def _may_be_linear(name: str, info: TensorInfo) -> bool:
    path, _, parameter = name.rpartition(".")
    return parameter == "weight" and len(info.shape) == _MATRIX and not is_embedding(path)


def _transposed(path: str, model_type: str | None, known: KnownModel | None) -> bool | None:
    if known is not None:
        return known.transposed.get(path)
    return transposed_by_plugin(path, model_type)


def _check_full(pairs: Iterable[Pair], full: Collection[str]) -> None:
    taken = {module for pair in pairs for module in pair.whole.values()}
    for wanted in full:
        if not any(is_named(module, {wanted}) for module in taken):
            raise NotFoundError(
                f"the fine-tuned checkpoint has no module `{wanted}` to take as a whole",
                hint="name one by its path or the end of it, such as `lm_head`",
            )


def _notes_on(missing: Sequence[str], before: Collection[str], known: KnownModel | None) -> Iterator[str]:
    """Yield remarks on tensors of the base that the fine-tuned checkpoint has not: heads, buffers, a tied output."""
    layers = {_layer(name) for name in set(before).difference(missing)} | {None}
    foreign = [n for n in missing if known is not None and n in known.foreign and _layer(n) in layers]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        yield f"the base has `{foreign[0]}`{more}, which the fine-tuned model does not read"
    for name in sorted(set(missing).difference(foreign)):
        if not is_output(name.rpartition(".")[0]):
            raise CompatibilityError(
                f"the fine-tuned checkpoint has no tensor `{name}`, which the base has ({len(missing)} are missing)",
                hint="name the base that it was fine-tuned from, and a whole checkpoint of it",
            )
        yield f"the fine-tuned checkpoint has no `{name}`: it is tied to the embeddings there"


def _layer(name: str) -> str | None:
    """Return the first numbered item of a list that the tensor is in, such as ``model.layers.3``."""
    found = _NUMBERED.match(name)
    return found and found[0]


def _check_shape(pair: Pair) -> None:
    if pair.base is None or pair.whole or pair.fine.info.shape == pair.base.info.shape:
        return
    is_vocabulary = is_embedding(pair.path) or is_output(pair.path)
    raise CompatibilityError(
        f"`{pair.name}` has shape {list(pair.fine.info.shape)}, in the base {list(pair.base.info.shape)}"
        + (": the vocabulary was resized" if is_vocabulary else ""),
        hint=f"`--full {pair.path.rpartition('.')[2]}` takes it as a whole; whoever applies it resizes the base first"
        if is_vocabulary
        else "name the base that it was fine-tuned from",
    )
