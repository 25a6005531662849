"""Is a checkpoint the base that an adapter was trained on: by the digests of its files, else by some of its weights.

Needs no torch. Of the weights only the recorded positions are read, as ranges of bytes; those that lie close together
in a file are one read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_hub.checkpoint.names import find_names
from lora_hub.checkpoint.orientation import is_transposed
from lora_hub.checkpoint.token_layers import is_embedding, is_output
from lora_hub.documents.base_verdict import Found, Outcome, Verdict, compare, undecided
from lora_hub.documents.fingerprint import Fingerprint, Sampled
from lora_hub.documents.floats import SIZES
from lora_hub.errors import CompatibilityError, MalformedError

if TYPE_CHECKING:
    from lora_hub.checkpoint.base_files import BaseFiles
    from lora_hub.checkpoint.checkpoint import Checkpoint
    from lora_hub.documents.adapter_layout import LoraModule
    from lora_hub.documents.base_model import BaseModel
    from lora_hub.documents.safetensors_header import TensorInfo
    from lora_hub.documents.verified_adapter import VerifiedAdapter

REQUESTS = 64  # what `--sample` asks the Hub for at most
_GAP = 16 * 1024  # bytes between two weights that are read over rather than left out
_WEIGHT = ".weight"


def compare_with_files(adapter: VerifiedAdapter, checkpoint: Checkpoint, *, max_reads: int | None = None) -> Verdict:
    """Return whether *checkpoint* is the base that *adapter* was trained on.

    Args:
        adapter: Whose manifest may have the digests of the base's shards, and its fingerprint.
        checkpoint: Of which the headers are known.
        max_reads: How many ranges of weights may be read: with 0, the digests of the files decide alone; None reads all
            that was recorded, which is for files on this machine.

    Raises:
        RegistryError, MachineError: What reading the weights raises.
    """
    base = adapter.manifest.base
    if not base.shards and base.fingerprint is None:
        return undecided("the adapter has no fingerprint of its base")
    by_files = compare_shards(base, checkpoint.files)
    if base.fingerprint is None:
        return by_files
    if max_reads == 0:
        return by_files if by_files.outcome is Outcome.MATCH else undecided(f"{by_files.reason}; no weights were read")
    # The digests say from which files the base was loaded, the weights what it was when the adapter was trained.
    by_weights = plan_sampling(adapter, checkpoint, max_reads=max_reads).verdict()
    is_decided = by_weights.outcome is not Outcome.UNDECIDED
    return by_weights if is_decided or by_files.outcome is not Outcome.MATCH else by_files


def compare_shards(base: BaseModel, files: BaseFiles) -> Verdict:
    """Return whether *files* are the very ones that the weights of *base* came from. Reads nothing.

    Other digests do not decide: the same weights may lie in other shards, or be stored in another dtype.
    """
    known = {shard.name: files.sha256(shard.name) for shard in base.shards if shard.name in files.sizes}
    same = [shard.name for shard in base.shards if known.get(shard.name) == shard.sha256]
    if base.shards and len(same) == len(base.shards):
        return Verdict(outcome=Outcome.MATCH, reason=f"its {len(same)} files of weights have the recorded digests")
    if not base.shards:
        return undecided("no digests of the base's files were recorded")
    if None in known.values():
        return undecided("nobody says what the digests of its files are")
    return undecided("its files are not the recorded ones, and may hold the same weights all the same")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A recorded tensor in the checkpoint: in which file, where there, and which of its weights are wanted."""

    tensor: Sampled
    shard: str
    info: TensorInfo
    transposed: bool
    which: tuple[int, ...]

    def starts(self) -> Iterator[int]:
        """Yield the offset in the file of each wanted weight, in bytes."""
        outputs, inputs = self.tensor.shape
        positions, size = self.tensor.positions(), SIZES[self.info.dtype]
        for number in self.which:
            row, column = positions[number]
            place = column * outputs + row if self.transposed else row * inputs + column
            yield self.info.start + place * size


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """A range of a file, in bytes, and the ranges in it of the weights that are wanted."""

    file: str
    start: int
    stop: int
    wanted: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """What would be read to compare a checkpoint with a fingerprint.

    Attributes:
        reads: What would be read; on the Hub each is a request.
        unread: Why a tensor is not compared, by path.
    """

    files: BaseFiles
    fingerprint: Fingerprint
    stored: tuple[_Stored, ...]
    reads: tuple[Read, ...]
    unread: Mapping[str, str]

    def verdict(self) -> Verdict:
        """Return what comes out when it is read."""
        weights = {place: content for read in self.reads for place, content in self._weights(read)}
        found = {
            stored.tensor.path: Found(
                dtype=stored.info.dtype,
                values=b"".join(weights[stored.shard, start] for start in stored.starts()),
                which=stored.which,
            )
            for stored in self.stored
        }
        return compare(self.fingerprint, found, self.unread)

    def _weights(self, read: Read) -> Iterator[tuple[tuple[str, int], bytes]]:
        content = self.files.read(read.file, read.start, read.stop)
        if len(content) != read.stop - read.start:
            raise MalformedError(f"`{read.file}` is shorter than its header says", hint="download the base model again")
        for start, stop in read.wanted:
            yield (read.file, start), content[start - read.start : stop - read.start]


def plan_sampling(adapter: VerifiedAdapter, checkpoint: Checkpoint, *, max_reads: int | None = None) -> Sampling:
    """Return what to read of *checkpoint* to compare it with the fingerprint of *adapter*, which must have one.

    Of fewer reads than recorded weights, each tensor gets as many as the next, or some tensors have none; the weights
    nearest to zero come first, since training shows there.
    """
    fingerprint = adapter.manifest.base.fingerprint
    if fingerprint is None:
        raise CompatibilityError(f"`{adapter.source}` has no fingerprint of its base", hint="save it again")
    located, unread = _locate(adapter, checkpoint, fingerprint)
    stored = tuple(_chosen(located, max_reads))
    wanted = sorted({(one.shard, start, start + SIZES[one.info.dtype]) for one in stored for start in one.starts()})
    return Sampling(
        files=checkpoint.files,
        fingerprint=fingerprint,
        stored=stored,
        reads=tuple(_coalesced(wanted)),
        unread=unread,
    )


def _chosen(located: list[_Stored], max_reads: int | None) -> Iterator[_Stored]:
    if max_reads is None or not located:
        yield from located
        return
    step = max(1.0, len(located) / max_reads)
    kept = [located[int(i * step)] for i in range(min(len(located), max_reads))]
    each = max(1, max_reads // len(kept))
    for one in kept:
        nearest_first = [*range(1, one.tensor.count, 2), *range(0, one.tensor.count, 2)]
        yield _Stored(
            tensor=one.tensor,
            shard=one.shard,
            info=one.info,
            transposed=one.transposed,
            which=tuple(sorted(nearest_first[:each])),
        )


def _coalesced(wanted: Iterable[tuple[str, int, int]]) -> Iterator[Read]:
    """Yield what to read for rising ranges of files: one range for those with no more than `_GAP` between them."""
    pending: list[tuple[int, int]] = []
    last = ""
    for file, start, stop in wanted:
        if pending and (file != last or start - pending[-1][1] > _GAP):
            yield Read(file=last, start=pending[0][0], stop=pending[-1][1], wanted=tuple(pending))
            pending = []
        pending.append((start, stop))
        last = file
    if pending:
        yield Read(file=last, start=pending[0][0], stop=pending[-1][1], wanted=tuple(pending))


def _locate(
    adapter: VerifiedAdapter, checkpoint: Checkpoint, fingerprint: Fingerprint
) -> tuple[list[_Stored], dict[str, str]]:
    """Return where the tensors of *fingerprint* lie, and why others cannot be compared, by path."""
    tensors = {name: info for shard in checkpoint.shards for name, info in shard.tensors.items()}
    shard_of, modules = checkpoint.shard_of, {module.path: module for module in adapter.layout.modules}
    try:
        names = find_names(modules, tensors, is_optional=is_output, who=adapter.source)
    except CompatibilityError as error:
        names, why = None, error.message
    else:
        why = "the checkpoint has them under other names"
    if names is None:
        return [], dict.fromkeys((tensor.path for tensor in fingerprint.tensors), why)
    located, unread = list[_Stored](), dict[str, str]()
    for tensor in fingerprint.tensors:
        module = modules[tensor.path]
        name = _stored_name(names(tensor.path) + _WEIGHT, module, tensors)
        transposed = _transposed(module, name, tensors, checkpoint.model_type)
        if name is None or isinstance(transposed, str):
            unread[tensor.path] = str(transposed)
            continue
        located.append(
            _Stored(
                tensor=tensor,
                shard=shard_of[name].name,
                info=tensors[name],
                transposed=transposed,
                which=tuple(range(tensor.count)),
            )
        )
    return located, unread


def _stored_name(name: str, module: LoraModule, tensors: Mapping[str, TensorInfo]) -> str | None:
    """Return what the weight of *module* is called: an output that is not there is tied to the embedding."""
    if name in tensors or not is_output(module.path):
        return name if name in tensors else None
    shape = (module.out_features, module.in_features)
    embeddings = [
        other for other, info in tensors.items() if is_embedding(other.removesuffix(_WEIGHT)) and info.shape == shape
    ]
    return embeddings[0] if len(embeddings) == 1 else None


def _transposed(
    module: LoraModule, name: str | None, tensors: Mapping[str, TensorInfo], model_type: str | None
) -> bool | str:
    """Return whether the weight lies ``[in, out]``, or why it cannot be compared."""
    if name is None:
        return "not there"
    info = tensors[name]
    if info.dtype not in SIZES:
        return f"stored as {info.dtype}"
    try:
        return is_transposed(module, name, info.shape, model_type=model_type, known=lambda: None, who="the adapter")
    except CompatibilityError as error:
        return error.message
