"""Which tensors of a checkpoint the adapters change: every tensor of every adapter is applied exactly once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from lora_hub.checkpoint.checkpoint import Checkpoint
from lora_hub.checkpoint.known_model import Known, KnownModel
from lora_hub.checkpoint.names import Names, Prefix, find_names, not_found
from lora_hub.checkpoint.orientation import is_transposed
from lora_hub.checkpoint.plan import Added, Replaced, Source
from lora_hub.checkpoint.token_layers import is_embedding, is_output
from lora_hub.documents.adapter_layout import LoraModule
from lora_hub.documents.fields import printable
from lora_hub.documents.safetensors_header import TensorInfo
from lora_hub.errors import CompatibilityError, MalformedError
from lora_hub.tensors import DTYPES

_WEIGHT = ".weight"


@dataclass(slots=True)
class Changes:
    """What happens to which tensor, by its name in the checkpoint, while it is being found out.

    ``notes`` is what the user should know of it.
    """

    added: dict[str, Added] = field(default_factory=dict)
    replaced: dict[str, Replaced] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def names(self) -> set[str]:
        """The tensors that are changed."""
        return {*self.added, *self.replaced}


def find_changes(checkpoint: Checkpoint, sources: Iterable[Source], known: Known) -> Changes:
    """Return what *sources* change in *checkpoint*; *known* is asked where names and shapes leave a doubt.

    Raises:
        CompatibilityError: A module is not in the base, has another shape, is quantised, or two changes collide.
        MalformedError: An adapter's delta is zero.
    """
    tensors = {name: info for shard in checkpoint.shards for name, info in shard.tensors.items()}
    changes = Changes()
    for source in sources:
        _check_is_something(source)
        names = _names(source, tensors, known)
        owners: dict[str, str] = {}
        for module in source.input.adapter.layout.modules:
            tensor = names(module.path) + _WEIGHT
            _check_is_alone(owners, tensor, module.path, source)
            _add(changes, tensor, source, module, checkpoint, tensors, known)
        for path in source.input.adapter.layout.heads:
            _replace(changes, names(path), path, source, tensors)
        _note_what_is_missing(changes, source, names, tensors)
        if source.weight != 1 and source.input.adapter.layout.heads:
            changes.notes.append(f"what {source.input.name} replaces is taken whole, whatever its weight")
    for tensor in sorted(changes.added.keys() & changes.replaced.keys()):
        one, other = changes.added[tensor].parts[0][0], changes.replaced[tensor].source
        raise CompatibilityError(
            f"`{one.input.name}` adds to `{tensor}`, which `{other.input.name}` replaces",
            hint="merge one of them only",
        )
    return changes


def _check_is_something(source: Source) -> None:
    adapter = source.input.adapter
    if adapter.layout.heads:
        return
    for module in adapter.layout.modules:
        lora_A, lora_B = source.input.stored(module)
        if lora_A.any() and lora_B.any():
            return
    raise MalformedError(
        f"every delta of `{source.input.name}` is zero: there is nothing to merge",
        hint="it was saved before it was trained, or not gathered: save it again",
    )


def _names(source: Source, tensors: Mapping[str, TensorInfo], known: Known) -> Names:
    """Return how the modules of *source* are called in the checkpoint: by a prefix, or by what transformers knows."""
    layout = source.input.adapter.layout
    paths = [module.path for module in layout.modules]
    found = find_names(paths, tensors, is_optional=is_output, who=source.input.name)
    # Embeddings and outputs may be called otherwise in the checkpoint, though all else is not.
    vocabulary = [path for path in (*paths, *layout.heads) if is_output(path) or is_embedding(path)]
    if found is not None and not _missing(vocabulary, found, tensors):
        return found
    names: Names = known() or Prefix()
    if found is not None and _missing(vocabulary, names, tensors) >= _missing(vocabulary, found, tensors):
        return found
    for path in paths:
        if isinstance(names, KnownModel) and path + _WEIGHT in names.converted:
            raise CompatibilityError(
                f"`{path}`, which `{source.input.name}` adapts, is made of several tensors of the checkpoint, or of "
                "changed ones: merging into those is not implemented",
                hint="load the model in transformers, and `save_pretrained` it; or apply the adapter unmerged",
            )
        if not is_output(path) and names(path) + _WEIGHT not in tensors:
            if found is not None:  # a backbone that was saved alone
                return found
            raise not_found(path, tensors, who=source.input.name)
    return names


def _missing(paths: Iterable[str], names: Names, tensors: Collection[str]) -> int:
    """Return how many of *paths* have no weight in the checkpoint under these *names*."""
    return sum(names(path) + _WEIGHT not in tensors for path in paths)


def _check_is_alone(owners: dict[str, str], tensor: str, path: str, source: Source) -> None:
    other = owners.setdefault(tensor, path)
    if other != path:
        raise CompatibilityError(
            f"`{other}` and `{path}` of `{source.input.name}` are both `{tensor}` in the base",
            hint="name the base that the adapter was trained on",
        )


def _add(
    changes: Changes,
    tensor: str,
    source: Source,
    module: LoraModule,
    checkpoint: Checkpoint,
    tensors: Mapping[str, TensorInfo],
    known: Known,
) -> None:
    earlier = changes.added.get(tensor)
    info, transposed = tensors.get(tensor), False
    if info is not None:
        check_floating(tensor, info)
        transposed = is_transposed(
            module, tensor, info.shape, model_type=checkpoint.model_type, known=known, who=source.input.name
        )
    parts = earlier.parts if earlier is not None else ()
    changes.added[tensor] = Added(path=module.path, parts=(*parts, (source, module)), transposed=transposed)


def check_floating(tensor: str, info: TensorInfo) -> None:
    """Raise `CompatibilityError` unless the weight that is to be changed is of floating numbers."""
    if info.dtype not in DTYPES:
        raise CompatibilityError(
            f"`{tensor}` is stored as {info.dtype} in the base: it is quantised, or no weight",
            hint="merge into the base in 16 bits, and quantise what comes out",
        )


def _replace(changes: Changes, stored: str, path: str, source: Source, tensors: Mapping[str, TensorInfo]) -> None:
    parameters = source.input.adapter.layout.heads[path]
    missing = sorted(
        name for name in tensors if name.startswith(f"{stored}.") and name.removeprefix(f"{stored}.") not in parameters
    )
    if missing:
        raise CompatibilityError(
            f"`{source.input.name}` replaces `{path}`, but has nothing for `{missing[0]}` of the base",
            hint="the head of this base is another one than the adapter's",
        )
    for parameter in parameters:
        tensor = f"{stored}.{parameter}"
        if tensor in changes.replaced:
            other = changes.replaced[tensor].source.input.name
            raise CompatibilityError(
                f"`{other}` and `{source.input.name}` both replace `{tensor}`", hint="merge one of them only"
            )
        if tensor in tensors:
            check_floating(tensor, tensors[tensor])
        changes.replaced[tensor] = Replaced(source=source, path=path, parameter=parameter)


def _note_what_is_missing(changes: Changes, source: Source, names: Names, tensors: Mapping[str, TensorInfo]) -> None:
    """Other modules of the base that the adapter's config targets may be a sign that it is not whole, or not of it."""
    if not isinstance(names, Prefix):
        return
    adapter = source.input.adapter
    paths = {
        name.removesuffix(_WEIGHT).removeprefix(names.added)
        for name, info in tensors.items()
        if name.endswith(_WEIGHT) and len(info.shape) == 2 and name.startswith(names.added)  # noqa: PLR2004 - a matrix
    }
    adapted = {names(module.path).removeprefix(names.added) for module in adapter.layout.modules}
    missing = sorted((adapter.config.targets(paths) or frozenset()) - adapted)
    if missing:
        changes.notes.append(
            f"the config of {source.input.name} targets {len(missing)} more modules of the base, for which it has no "
            f"tensors, such as {printable(missing[0])}: are you sure that this is its base?"
        )
