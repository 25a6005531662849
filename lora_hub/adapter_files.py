"""The three files of an adapter, made of its tensors: PEFT's two, and the draft manifest beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain

import torch
from torch import Tensor

from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.adapter_layout import read_layout
from lora_hub.documents.base_model import BaseModel
from lora_hub.documents.fields import Bytes
from lora_hub.documents.lineage import Lineage
from lora_hub.documents.manifest import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, FileEntry, SliceGroup
from lora_hub.documents.module_names import ModulePattern
from lora_hub.documents.safetensors_header import read_header
from lora_hub.documents.verified_adapter import describe, most_common
from lora_hub.errors import MalformedError


def config_of(
    ranks: Mapping[str, tuple[int, float]],
    *,
    base: BaseModel,
    heads: Iterable[str] = (),
    others: Iterable[str] = (),
    use_rslora: bool = False,
    lora_dropout: float = 0.0,
    task_type: str | None = None,
) -> AdapterConfig:
    """Return PEFT's config of an adapter: the most common r and alpha, and a pattern for each module that differs.

    Args:
        ranks: r and alpha of each adapted module, by its full path.
        base: The model that it belongs to.
        heads: Paths of the modules that it replaces.
        others: Paths of the other linear modules of that model, as far as they are known.
        use_rslora: Whether the scaling is alpha/√r.
        lora_dropout: What it was trained with.
        task_type: PEFT's, such as ``CAUSAL_LM``.
    """
    ranks = dict(sorted(ranks.items()))
    r, alpha = most_common(r for r, _ in ranks.values()), most_common(alpha for _, alpha in ranks.values())
    config = AdapterConfig(
        r=r,
        lora_alpha=alpha,
        use_rslora=use_rslora,
        lora_dropout=lora_dropout,
        rank_pattern=tuple((ModulePattern.exactly(path), own) for path, (own, _) in ranks.items() if own != r),
        alpha_pattern=tuple((ModulePattern.exactly(path), own) for path, (_, own) in ranks.items() if own != alpha),
        target_modules=tuple(ranks),
        modules_to_save=tuple(sorted(heads)),
        task_type=task_type,
        base_model_name_or_path=base.repo,
        revision=base.revision,
    )
    # PEFT takes an entry of the list for the end of a path; a string must match the whole path.
    if config.targets(chain(ranks, others)) != frozenset(ranks):
        config = replace(config, target_modules="|".join(re.escape(path) for path in ranks))
    return config


def files_of(
    config: AdapterConfig,
    tensors: Mapping[str, Tensor],
    *,
    base: BaseModel,
    slices: tuple[SliceGroup, ...] = (),
    targets: tuple[str, ...] | None = None,
    license: str | None = None,  # noqa: A002 - the manifest's own word
    lineage: Lineage | None = None,
) -> dict[str, Bytes]:
    """Return the files of the adapter that *config* and *tensors*, under PEFT's keys, are. Same adapter, same bytes.

    Raises:
        MalformedError: A value is NaN or infinite, so that nothing could load what would be written.
    """
    from safetensors.torch import save as to_safetensors

    for key, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise MalformedError(
                f"`{key}` holds NaN or infinity", hint="the training diverged: go back to a checkpoint"
            )
    # One metadata key only: safetensors writes several in an order that differs between runs.
    content = to_safetensors({key: t.cpu().contiguous() for key, t in tensors.items()}, metadata={"format": "pt"})
    files: dict[str, Bytes] = {CONFIG_NAME: config.to_bytes(), WEIGHTS_NAME: content}
    infos = read_header(content)
    layout = read_layout(config, infos, slices)
    entries = [FileEntry.of(name, content) for name, content in files.items()]
    manifest = describe(config, layout, infos, entries, base=base, targets=targets, license=license, lineage=lineage)
    return {**files, MANIFEST_NAME: manifest.to_bytes()}
