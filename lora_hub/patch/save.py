"""Write an adapter as PEFT reads it, with a draft manifest beside it; read it back into the same adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from lora_hub.adapter_directory import write_adapter
from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.adapter_layout import read_layout
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME
from lora_hub.documents.module_names import ModulePattern
from lora_hub.documents.safetensors_header import read_header
from lora_hub.documents.verified_adapter import VerifiedAdapter, describe, most_common
from lora_hub.errors import CompatibilityError
from lora_hub.patch.applied_adapter import AppliedAdapter
from lora_hub.patch.projections import features, linear_modules
from lora_hub.patch.weights import Pair, load_weights, peft_tensors, slices_of, stacked_rank_and_alpha


def save_adapter(adapter: AppliedAdapter, directory: str | os.PathLike[str]) -> Path:
    """Write *adapter* into *directory* and return it; PEFT, transformers and vLLM load it as it is.

    Three files: ``adapter_config.json`` (full module paths), ``adapter_model.safetensors`` (dtypes as trained) and the
    draft manifest ``lora-hub.json``. Same adapter, same bytes.

    Raises:
        StateError: The adapter was removed.
        MachineError: Disk full or no permission; a crash never leaves files that pass as one adapter but are not.
    """
    target = Path(directory)
    write_adapter(target, adapter_files(adapter))
    adapter.mark_saved()
    return target


def adapter_files(adapter: AppliedAdapter) -> dict[str, Bytes]:
    """Return the three files of *adapter*, by name."""
    from safetensors.torch import save as to_safetensors

    modules, saved = _weights(adapter)
    widths = {path: features(adapter.modules[path])[1] for path in modules}
    config = _config(adapter, modules)
    # One metadata key only: safetensors writes several in an order that differs between runs.
    content = to_safetensors(peft_tensors(modules, saved, widths), metadata={"format": "pt"})
    files: dict[str, Bytes] = {CONFIG_NAME: config.to_bytes(), WEIGHTS_NAME: content}
    tensors = read_header(content)
    layout = read_layout(config, tensors, slices_of(modules))
    manifest = describe(
        config,
        layout,
        tensors,
        files,
        base=adapter.info.base,
        targets=adapter.info.targets,
        license=adapter.info.license,
    )
    return {**files, MANIFEST_NAME: manifest.to_bytes()}


def restore(adapter: AppliedAdapter, saved: VerifiedAdapter) -> None:
    """Copy the values of *saved* into the parameters of *adapter*, which must have the same modules, ranks and heads.

    Raises:
        CompatibilityError: The two are not of one kind; nothing was changed.
    """
    import torch

    weights = load_weights(saved)
    modules, heads = _weights(adapter)
    new = _flat(weights.modules, weights.saved)
    old = _flat(modules, heads)
    if {name: t.shape for name, t in old.items()} != {name: t.shape for name, t in new.items()}:
        raise CompatibilityError(
            f"`{saved.source}` holds another kind of adapter than `{adapter.name}`",
            hint="add the adapter with the targets and the rank that it was saved with",
        )
    with torch.no_grad():
        for name, tensor in old.items():
            tensor.copy_(new[name])
    adapter.mark_saved()


def _weights(adapter: AppliedAdapter) -> tuple[dict[str, tuple[Pair, ...]], dict[str, Tensor]]:
    """Return A and B by module, and the tensors of replaced heads by name, as they are on the model."""
    modules: dict[str, tuple[Pair, ...]] = {}
    saved: dict[str, Tensor] = {}
    for path, module in adapter.modules.items():
        record = adapter.patch.record(module)
        if adapter.name in record.slots:
            modules[path] = tuple((part, *f.stored(module)) for part, f in record.slots[adapter.name].parts)
        if adapter.name in record.replacements:
            tensors = record.replacements[adapter.name].tensors(module)
            saved |= {f"{path}.{name}": tensor for name, tensor in tensors.items()}
    return modules, saved


def _flat(modules: Mapping[str, tuple[Pair, ...]], saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
    flat = {
        f"{path}.{part.name or ''}.{side}": tensor
        for path, pairs in modules.items()
        for part, *tensors in pairs
        for side, tensor in zip("AB", tensors, strict=True)
    }
    return flat | dict(saved)


def _config(adapter: AppliedAdapter, modules: Mapping[str, tuple[Pair, ...]]) -> AdapterConfig:
    """Return PEFT's config: the most common r and alpha, and a pattern for each module that differs."""
    ranks = {path: stacked_rank_and_alpha(part for part, _, _ in pairs) for path, pairs in sorted(modules.items())}
    r, alpha = most_common(r for r, _ in ranks.values()), most_common(alpha for _, alpha in ranks.values())
    config = AdapterConfig(
        r=r,
        lora_alpha=alpha,
        use_rslora=adapter.info.use_rslora,
        lora_dropout=adapter.info.lora_dropout,
        rank_pattern=tuple((ModulePattern.exactly(path), own) for path, (own, _) in ranks.items() if own != r),
        alpha_pattern=tuple((ModulePattern.exactly(path), own) for path, (_, own) in ranks.items() if own != alpha),
        target_modules=tuple(ranks),
        modules_to_save=adapter.info.modules_to_save,
        task_type=adapter.info.task_type,
        base_model_name_or_path=adapter.info.base.repo,
        revision=adapter.info.base.revision,
    )
    # PEFT reads a target as the end of a path: what else ends like one of ours must be excluded by name.
    also_named = (config.targets(linear_modules(adapter.patch.model)) or frozenset()) - modules.keys()
    return replace(config, exclude_modules=tuple(also_named) or None)
