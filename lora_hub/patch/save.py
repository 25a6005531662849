"""Write an adapter as PEFT reads it, with a draft manifest beside it; read values back into an adapter."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lora_hub.adapter_directory import write_adapter
from lora_hub.adapter_files import config_of, files_of
from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.adapter_layout import read_layout
from lora_hub.documents.fields import Bytes
from lora_hub.documents.safetensors_header import TensorInfo
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import CompatibilityError, MalformedError, StateError, UsageError
from lora_hub.patch.applied_adapter import AdapterInfo, AppliedAdapter
from lora_hub.patch.base import trained_on
from lora_hub.patch.factors import Part, PartWeights
from lora_hub.patch.layer import base_state
from lora_hub.patch.projections import features, linear_modules, modules_by_path
from lora_hub.patch.weights import (
    AdapterWeights,
    load_weights,
    peft_tensors,
    slices_of,
    stacked_rank_and_alpha,
)
from lora_hub.tensors import DTYPE_NAMES


def save_adapter(adapter: AppliedAdapter, directory: str | os.PathLike[str]) -> Path:
    """Write *adapter* into *directory* and return it; PEFT, transformers and vLLM load it as it is.

    Three files: ``adapter_config.json`` (full module paths), ``adapter_model.safetensors`` (dtypes as trained) and the
    draft manifest ``lora-hub.json``, with a fingerprint of the base if the adapter was trained here. Same adapter on
    the same base, same bytes.

    Raises:
        StateError: The adapter was removed.
        MalformedError: A value is NaN or infinite, so that nothing could load what would be written.
        MachineError: Disk full or no permission; a crash never leaves files that pass as one adapter but are not.
    """
    target = Path(directory)
    write_adapter(target, adapter_files(adapter))
    adapter.mark_saved()
    return target


def adapter_files(adapter: AppliedAdapter) -> dict[str, Bytes]:
    """Return the three files of *adapter*, by name."""
    weights = adapter.weights()
    parts = weights.parts()
    info = replace(adapter.info, base=trained_on(adapter))
    return files_of(
        _config(info, parts, adapter.heads, adapter.patch.model),
        peft_tensors(weights, _widths(adapter.modules, parts)),
        slices=slices_of(parts),
        base=info.base,
        targets=info.targets,
        license=info.license,
    )


def check_can_be_saved(
    model: nn.Module, info: AdapterInfo, modules: Mapping[str, tuple[PartWeights, ...]], heads: Iterable[str]
) -> None:
    """Raise `UsageError` if an adapter of these *modules* and *heads* could not be saved after it was trained.

    Looks at names, dtypes and shapes only.
    """
    everything = modules_by_path(model)
    states = {path: base_state(everything[path]) for path in heads}
    for path, state in states.items():
        _check_nothing_is_shared(path, state)
    weights = AdapterWeights(
        modules={p: tuple(PartWeights(w.part, *_on_meta(w)) for w in parts) for p, parts in modules.items()},
        heads={path: {name: tensor.to("meta") for name, tensor in state.items()} for path, state in states.items()},
    )
    parts = weights.parts()
    tensors = {}
    for key, tensor in peft_tensors(weights, _widths(everything, parts)).items():
        if tensor.dtype not in DTYPE_NAMES:
            raise UsageError(f"{key!a} is {tensor.dtype}, which no adapter can hold", hint="leave that head out")
        tensors[key] = TensorInfo(dtype=DTYPE_NAMES[tensor.dtype], shape=tuple(tensor.shape), start=0, stop=0)
    try:
        read_layout(_config(info, parts, weights.heads, model), tensors, slices_of(parts))
    except MalformedError as error:
        raise UsageError(
            f"an adapter of these targets could not be saved: {error.message}", hint="name other targets or heads"
        ) from error


def _on_meta(weights: PartWeights) -> tuple[Tensor, Tensor]:
    return weights.lora_A.to("meta"), weights.lora_B.to("meta")


def _check_nothing_is_shared(path: str, state: Mapping[str, Tensor]) -> None:
    names: dict[int, str] = {}
    for name, tensor in state.items():
        address = tensor.untyped_storage().data_ptr()
        if address and names.setdefault(address, name) != name:
            raise UsageError(
                f"`{path}.{name}` and `{path}.{names[address]}` are one tensor, which a file cannot say",
                hint="untie them first, or leave that head out",
            )


def _widths(modules: Mapping[str, nn.Module], parts: Iterable[str]) -> dict[str, int]:
    return {path: features(modules[path])[1] for path in parts}


def load_into(adapter: AppliedAdapter, saved: VerifiedAdapter) -> None:
    """Copy the values of *saved* into *adapter*, which must have the same modules, ranks, scaling and heads.

    Raises:
        CompatibilityError: The two are not of one kind; nothing was changed.
        StateError: The adapter is merged.
    """
    if adapter.merged:
        raise StateError(f"`{adapter.name}` is merged, so its values cannot be loaded", hint="`unmerge()` it first")
    new, old = load_weights(saved), adapter.weights()
    values, places = dict(new.tensors()), dict(old.tensors())
    shapes_differ = {n: t.shape for n, t in values.items()} != {n: t.shape for n, t in places.items()}
    if shapes_differ or new.parts() != old.parts():
        raise CompatibilityError(
            f"`{saved.source}` holds another kind of adapter than `{adapter.name}`: modules, ranks, alphas, heads",
            hint="add the adapter with the arguments that it was first added with",
        )
    with torch.no_grad():
        for name, place in places.items():
            place.copy_(values[name])
    adapter.mark_saved()


def _config(
    info: AdapterInfo, parts: Mapping[str, tuple[Part, ...]], heads: Iterable[str], model: nn.Module
) -> AdapterConfig:
    return config_of(
        {path: stacked_rank_and_alpha(pieces) for path, pieces in parts.items()},
        base=info.base,
        heads=heads,
        others=linear_modules(modules_by_path(model)),
        use_rslora=info.use_rslora,
        lora_dropout=info.lora_dropout,
        task_type=info.task_type,
    )
