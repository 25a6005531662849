"""What transformers knows of a checkpoint: its names in memory, and which weights lie transposed. No weights are made.

The only module here that knows transformers, and it is asked only where names, shapes and plugins leave a doubt: its
import takes more memory than a merge.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Parameters that are made for a model whose checkpoint has fewer tensors: a second. A config may ask for any number.
_MANY = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """The model class of a checkpoint.

    Attributes:
        transposed: Whether the weight of the module is stored ``[in, out]``, by path, for linear modules.
        tensors: The checkpoint's name of a parameter, by its name in memory; what is converted on the way is not there.
        converted: Names in memory of parameters that are made of several tensors, or of changed ones.
        tied: Parameters that are one tensor in memory, by the checkpoint's names, or their own where it has none.
        foreign: Tensors of the checkpoint that the model does not read, such as another class's head.
    """

    transposed: Mapping[str, bool]
    tensors: Mapping[str, str]
    converted: frozenset[str]
    tied: tuple[frozenset[str], ...]
    foreign: frozenset[str]

    def __call__(self, path: str) -> str:
        """Return the checkpoint's path of the module at *path* in memory, or *path* where it has none."""
        found = self.tensors.get(f"{path}.weight")
        return found.removesuffix(".weight") if found is not None and found.endswith(".weight") else path


Known = Callable[[], KnownModel | None]  # asks once, and only if somebody needs to know


def known_model(config: Mapping[str, Any], tensors: Collection[str]) -> KnownModel | None:
    """Return what transformers knows of the model that *config* describes; None if it is missing, or knows nothing.

    Args:
        config: The checkpoint's ``config.json``; code that it names is never run, nor kernels fetched.
        tensors: The names in the checkpoint.
    """
    try:
        import transformers
    except ModuleNotFoundError:
        return None
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    model_class = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
        return None
    try:
        with _bounded(max(_MANY, 2 * len(tensors))):
            model = _on_meta(model_class, config)
        return _known(model, tensors)
    except Exception:  # noqa: BLE001 - a config that this version cannot build is one that it does not know
        return None


def _known(model: Any, tensors: Collection[str]) -> KnownModel:  # noqa: ANN401 - transformers has no types
    names, state = _names_in_memory(model, tensors), model.state_dict()
    plain = {memory: stored for memory, stored, is_plain in names if is_plain}
    return KnownModel(
        transposed=dict(_linear(model)),
        tensors=plain,
        converted=frozenset(memory for memory, _, is_plain in names if not is_plain),
        tied=tuple(_tied(model.all_tied_weights_keys, plain)),
        foreign=frozenset(stored for memory, stored in plain.items() if memory not in state),
    )


def _on_meta(model_class: Any, config: Mapping[str, Any]) -> Any:  # noqa: ANN401
    import torch

    with torch.device("meta"):
        return model_class(model_class.config_class.from_dict(_harmless(config)))


def _harmless(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return *config* without what names code, or kernels to bring from the Hub (``attn_implementation``)."""
    return {
        key: _harmless(value) if isinstance(value, dict) else value
        for key, value in config.items()
        if key not in {"auto_map", "quantization_config"} and "implementation" not in key
    }


@contextlib.contextmanager
def _bounded(most: int) -> Iterator[None]:
    """Raise `ValueError` where a module is given a parameter more than *most*."""
    from torch.nn.modules.module import register_module_parameter_registration_hook

    numbers = itertools.count(1)

    def count(_module: object, _name: str, _parameter: object) -> None:
        if next(numbers) > most:
            raise ValueError(f"a model of more than {most} parameters")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def _tied(keys: Mapping[str, str], stored: Mapping[str, str]) -> Iterator[frozenset[str]]:
    """Yield the parameters that are one, by the names they are *stored* under; *keys* says whose each of them is."""
    groups: defaultdict[str, set[str]] = defaultdict(set)
    for name, owner in keys.items():
        groups[owner] |= {stored.get(name, name), stored.get(owner, owner)}
    yield from map(frozenset, groups.values())


def _linear(model: Any) -> Iterable[tuple[str, bool]]:  # noqa: ANN401
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            yield path, isinstance(module, Conv1D)


def _names_in_memory(model: Any, tensors: Iterable[str]) -> list[tuple[str, str, bool]]:  # noqa: ANN401
    """Return for each of *tensors* its name in memory, its own, and whether it is the same tensor under both."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    mapping = get_model_conversion_mapping(model)
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in mapping if not isinstance(entry, WeightConverter)]
    state = model.state_dict()
    found = []
    for stored in tensors:
        memory, pattern = rename_source_key(stored, renamings, converters, model.base_model_prefix, state)
        found.append((memory, stored, pattern is None))
    return found
