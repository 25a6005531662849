"""Adapters made by hand, without torch: JSON, packed numbers and nothing else."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
MANIFEST_NAME = "lora-hub.json"

# Outputs of each projection of the model that these adapters are for; its hidden size is 8.
WIDTHS = {"q_proj": 8, "v_proj": 4}
HIDDEN = 8

_FORMATS = {"F64": "d", "F32": "f", "F16": "e"}  # of `struct`


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor: safetensors' name of its dtype, its shape, its bytes."""

    dtype: str
    shape: tuple[int, ...]
    content: bytes


@dataclass(slots=True, kw_only=True)
class AdapterFiles:
    """An adapter that a test may change as it likes before it is written.

    ``config`` and ``tensors`` are what stands in the two payload files; ``manifest`` is bytes, if there is one.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    manifest: bytes | None = None

    def files(self) -> dict[str, bytes]:
        """Return the files by name."""
        files = {CONFIG_NAME: to_json(self.config), WEIGHTS_NAME: safetensors(self.tensors, {"format": "pt"})}
        return files if self.manifest is None else {**files, MANIFEST_NAME: self.manifest}

    def write(self, directory: Path) -> Path:
        """Write the files into *directory* and return it."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (directory / name).write_bytes(content)
        return directory


def pack(numbers: list[float], dtype: str) -> bytes:
    """Return *numbers* as little-endian bytes of *dtype*."""
    if dtype == "BF16":  # the upper half of a float32
        return b"".join(struct.pack("<f", number)[2:] for number in numbers)
    return struct.pack(f"<{len(numbers)}{_FORMATS[dtype]}", *numbers)


def tensor(*shape: int, seed: int = 0, dtype: str = "F32") -> Tensor:
    """Return a random tensor."""
    return _draw(random.Random(seed), *shape, dtype=dtype)


def _draw(numbers: random.Random, *shape: int, dtype: str = "F32") -> Tensor:
    drawn = [numbers.gauss(0, 1) for _ in range(math.prod(shape))]
    return Tensor(dtype=dtype, shape=shape, content=pack(drawn, dtype))


def to_json(document: object) -> bytes:
    """Return *document* as PEFT writes it."""
    return json.dumps(document, indent=2, sort_keys=True).encode()


def safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file, as https://huggingface.co/docs/safetensors describes it."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for name, entry in tensors.items():
        offsets = [position, position + len(entry.content)]
        header[name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": offsets}
        position = offsets[1]
    return join_header(header, b"".join(entry.content for entry in tensors.values()))


def join_header(header: object, content: bytes) -> bytes:
    """Return a safetensors file of *header* and *content*, whether they fit together or not."""
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + content


def peft_config(**changes: Any) -> dict[str, Any]:
    """Return the keys that every ``adapter_config.json`` in the wild has, with *changes*."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "org/base",
        "revision": None,
        "inference_mode": True,
        "r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_rslora": False,
        "use_dora": False,
    }
    return config | changes


def lora_key(path: str, side: str) -> str:
    """Return PEFT's key of A or B of the module at *path*."""
    return f"base_model.model.{path}.lora_{side}.weight"


def module_paths(layers: int = 2) -> list[str]:
    """Return the paths of q and v in a LLaMA of *layers* layers."""
    return [f"model.layers.{layer}.self_attn.{name}" for layer in range(layers) for name in WIDTHS]


def adapter_files(*, seed: int = 0, r: int = 2, layers: int = 2, dtype: str = "F32", **config: Any) -> AdapterFiles:
    """Return a valid adapter for q and v of a tiny LLaMA; *seed* chooses its numbers, *config* changes its config."""
    numbers = random.Random(seed)
    tensors: dict[str, Tensor] = {}
    for path in module_paths(layers):
        tensors[lora_key(path, "A")] = _draw(numbers, r, HIDDEN, dtype=dtype)
        tensors[lora_key(path, "B")] = _draw(numbers, WIDTHS[path.rpartition(".")[2]], r, dtype=dtype)
    return AdapterFiles(config=peft_config(**{"r": r, **config}), tensors=tensors)


def fused_adapter_files(*, seed: int = 0, r: int = 2, layers: int = 1) -> AdapterFiles:
    """Return a valid adapter for the fused ``c_attn`` of a tiny GPT-2: rank 2r, q and v stacked, k zero."""
    numbers = random.Random(seed)
    tensors: dict[str, Tensor] = {}
    for layer in range(layers):
        path = f"transformer.h.{layer}.attn.c_attn"
        tensors[lora_key(path, "A")] = _draw(numbers, 2 * r, HIDDEN)
        tensors[lora_key(path, "B")] = _draw(numbers, 3 * HIDDEN, 2 * r)
    config = peft_config(r=2 * r, lora_alpha=4 * r, target_modules=["c_attn"])
    return AdapterFiles(config=config, tensors=tensors)


def large_adapter(*, seed: int = 0, size: int = 9 * 2**20) -> AdapterFiles:
    """Return a valid adapter with *size* bytes of weights and a few more, made fast: of one block of random floats."""
    numbers = random.Random(seed)
    block = struct.pack("<1021f", *(numbers.gauss(0, 1) for _ in range(1021)))  # a prime: no two pages are alike
    r, features = 8, size // (2 * 8 * 4)
    content = (block * (r * features * 4 // len(block) + 1))[: r * features * 4]
    path = "model.layers.0.self_attn.q_proj"
    tensors = {
        lora_key(path, "A"): Tensor(dtype="F32", shape=(r, features), content=content),
        lora_key(path, "B"): Tensor(dtype="F32", shape=(features, r), content=content),
    }
    return AdapterFiles(config=peft_config(r=r, target_modules=["q_proj"]), tensors=tensors)
