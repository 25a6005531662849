"""The parts of an adapter that `verify` refuses, each read as far as it can be, with the reason why it is not whole."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lora_hub.documents.adapter_config import MAX_CONFIG, AdapterConfig
from lora_hub.documents.adapter_layout import (
    Keys,
    LoraModule,
    names_a_module,
    purpose_of,
    read_module,
    same_parameter,
    slices_by_module,
)
from lora_hub.documents.fields import Bytes, parse_json_object
from lora_hub.documents.manifest import (
    CONFIG_NAME,
    Manifest,
    Slice,
)
from lora_hub.documents.safetensors_header import ADAPTER, CHECKPOINT, FileRules, TensorInfo, read_header
from lora_hub.errors import LoraHubError, MalformedError

# Of a file that is no adapter's: what can be known of its tensors all the same.
_LENIENT = FileRules(
    owner="adapter",
    bits=CHECKPOINT.bits,
    may_be_empty=True,
    max_tensors=ADAPTER.max_tensors,
    max_metadata=ADAPTER.max_metadata,
)
_NO_SLICES: Mapping[str, tuple[Slice, ...]] = MappingProxyType({})


def read_manifest(content: Bytes | None) -> tuple[Manifest | None, LoraHubError | None]:
    """Return the manifest, if it is there and can be parsed, or why it cannot."""
    if content is None:
        return None, None
    try:
        return Manifest.parse(bytes(content)), None
    except MalformedError as error:
        return None, error


def read_config(content: Bytes | None) -> tuple[dict[str, Any], AdapterConfig | None, dict[str, MalformedError]]:
    """Return the config as it stands there, parsed as far as it can be, and why a key of it cannot."""
    if content is None:
        return {}, None, {}
    try:
        document = parse_json_object(bytes(content), what=f"`{CONFIG_NAME}`", limit=MAX_CONFIG)
    except MalformedError as error:
        return {}, None, {"": error}
    bad = {}
    for key in sorted({*document, "peft_type"}):
        try:
            _parse({key: document[key]} if key in document else {})
        except MalformedError as error:
            bad[key] = error
    sound = {key: value for key, value in document.items() if key not in bad}
    return document, _parse({**sound, "peft_type": "LORA"}), bad


def _parse(document: Mapping[str, Any]) -> AdapterConfig:
    """Return the config that has the keys of *document* alone; its keys do not depend on each other."""
    of_one = document if "peft_type" in document or not document else {**document, "peft_type": "LORA"}
    return AdapterConfig.parse(json.dumps(of_one).encode())


def read_tensors(content: Bytes | None) -> tuple[dict[str, TensorInfo], MalformedError | None]:
    """Return the tensors as far as the header tells them, and why it is not that of an adapter."""
    if content is None:
        return {}, None
    try:
        return read_header(content), None
    except MalformedError as error:
        refusal = error
    try:
        return read_header(content, rules=_LENIENT), refusal
    except MalformedError:
        return {}, refusal


def read_layout(
    config: AdapterConfig, tensors: Mapping[str, TensorInfo], manifest: Manifest | None, *, is_known: bool
) -> dict[str, Any]:
    """Return the fields of a subject that say what each tensor is for; without a config, only what the keys say."""
    pairs: defaultdict[str, Keys] = defaultdict(dict)
    heads: defaultdict[str, Keys] = defaultdict(dict)
    bad_tensors: dict[str, MalformedError] = {}
    has_module = names_a_module(config)
    effort = len(config.modules_to_save) * len(tensors)
    for key in tensors if effort < 1_000_000 else ():  # noqa: PLR2004 - `verify` has its own limit, and says so
        try:
            path, purpose, is_head = purpose_of(config, key, has_module=has_module)
        except MalformedError as error:
            bad_tensors[key] = error
            continue
        keys = (heads if is_head else pairs)[path]
        if purpose in keys:
            bad_tensors[key] = same_parameter(keys[purpose], key)
        keys.setdefault(purpose, key)
    modules, bad_modules = _modules(config, tensors, pairs, _slices(manifest, pairs)) if is_known else ((), {})
    return {
        "pairs": dict(pairs),
        "heads": dict(heads),
        "bad_tensors": bad_tensors,
        "modules": modules,
        "bad_modules": bad_modules,
    }


def _slices(manifest: Manifest | None, pairs: Mapping[str, Keys]) -> Mapping[str, tuple[Slice, ...]]:
    try:
        return slices_by_module(manifest.lora.slices, pairs) if manifest else _NO_SLICES
    except MalformedError:
        return _NO_SLICES


def _modules(
    config: AdapterConfig,
    tensors: Mapping[str, TensorInfo],
    pairs: Mapping[str, Keys],
    slices: Mapping[str, tuple[Slice, ...]],
) -> tuple[tuple[LoraModule, ...], dict[str, MalformedError]]:
    modules, bad = [], {}
    effort = (len(config.rank_pattern) + len(config.alpha_pattern)) * len(pairs)
    for path in sorted(pairs) if effort < 8_000_000 else ():  # noqa: PLR2004 - as above
        try:
            modules.append(read_module(config, tensors, path, pairs[path], slices.get(path, ())))
        except MalformedError as error:
            bad[path] = error
    return tuple(modules), bad
