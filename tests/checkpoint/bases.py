"""Tiny checkpoints made by hand, which the adapters of `adapter_files` fit, and what to read back from a merge."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from adapter_files import HIDDEN, WIDTHS, AdapterFiles, Tensor, adapter_files, lora_key, safetensors, tensor, to_json
from safetensors import safe_open
from safetensors.torch import load_file

from lora_hub.tensors import DTYPES

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
TOKENS = 16
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(slots=True, kw_only=True)
class BaseFiles:
    """A base model that a test may change before it is written: its config, and the tensors of each shard."""

    config: dict[str, Any]
    shards: dict[str, dict[str, Tensor]]
    others: dict[str, bytes] = field(default_factory=dict)
    weight_map: dict[str, str] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {name: entry for shard in self.shards.values() for name, entry in shard.items()}

    def files(self) -> dict[str, bytes]:
        """Return the files by name."""
        files = {"config.json": to_json(self.config), **self.others}
        files |= {name: safetensors(tensors, {"format": "pt"}) for name, tensors in self.shards.items()}
        if list(self.shards) != [SINGLE_NAME]:
            found = {tensor: shard for shard, tensors in self.shards.items() for tensor in tensors}
            weight_map = found if self.weight_map is None else self.weight_map
            total = sum(len(entry.content) for entry in self.tensors.values())
            files[INDEX_NAME] = to_json({"metadata": {"total_size": total}, "weight_map": weight_map})
        return files

    def write(self, directory: Path) -> Path:
        """Write the files into *directory* and return it."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (directory / name).write_bytes(content)
        return directory


def base_files(
    *, dtype: str = "F32", layers: int = 2, single: bool = False, tied: bool = False, **config: Any
) -> BaseFiles:
    """Return a LLaMA as small as its adapters in `adapter_files`: a shard for each layer, one for the vocabulary."""
    vocabulary = {EMBEDDING: tensor(TOKENS, HIDDEN, seed=1, dtype=dtype)}
    if not tied:
        vocabulary[OUTPUT] = tensor(TOKENS, HIDDEN, seed=2, dtype=dtype)
    vocabulary["model.position_ids"] = Tensor(dtype="I64", shape=(1, 4), content=bytes(32))
    vocabulary["model.nothing"] = Tensor(dtype=dtype, shape=(0, 4), content=b"")
    shards = {"model-00001.safetensors": vocabulary}
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        tensors = {f"{prefix}input_layernorm.weight": tensor(HIDDEN, seed=10 + layer, dtype=dtype)}
        for name, width in {"k_proj": 4, **WIDTHS}.items():
            tensors[f"{prefix}self_attn.{name}.weight"] = tensor(width, HIDDEN, seed=20 + layer, dtype=dtype)
        shards[f"model-{layer + 2:05d}.safetensors"] = tensors
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float32",
        "tie_word_embeddings": tied,
        "vocab_size": TOKENS,
        **config,
    }
    if single:
        shards = {SINGLE_NAME: {name: entry for shard in shards.values() for name, entry in shard.items()}}
    others = {
        "tokenizer.json": b'{"version": "1.0"}',
        "generation_config.json": b"{}",
        "LICENSE": b"Do what you like.\n",
        "README.md": b"# The base\n",
        "pytorch_model.bin": b"a pickle",
    }
    return BaseFiles(config=settings, shards=shards, others=others)


def head_adapter(heads: Mapping[str, Tensor], **config: Any) -> AdapterFiles:
    """Return an adapter for q and v that replaces *heads*: their tensors, by path and parameter."""
    names = sorted({name.rpartition(".")[0].rpartition(".")[2] for name in heads})
    files = adapter_files(modules_to_save=names, **config)
    files.tensors |= {f"base_model.model.{name}": entry for name, entry in heads.items()}
    return files


def output_adapter(rows: int = TOKENS) -> AdapterFiles:
    """Return an adapter of ``lm_head`` alone."""
    files = adapter_files(target_modules=["lm_head"])
    files.tensors = {
        lora_key("lm_head", "A"): tensor(2, HIDDEN, seed=5),
        lora_key("lm_head", "B"): tensor(rows, 2, seed=6),
    }
    return files


def stored(directory: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint, read as others read it."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(directory.glob("*.safetensors")):
        found |= load_file(path)
    return found


def metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def as_torch(entry: Tensor) -> torch.Tensor:
    """Return the tensor that *entry* is."""
    return torch.frombuffer(bytearray(entry.content), dtype=DTYPES[entry.dtype]).view(entry.shape)


def delta(files: AdapterFiles, path: str, *, weight: float = 1.0) -> torch.Tensor:
    """Return the delta of the module at *path* in float64."""
    A, B = (as_torch(files.tensors[lora_key(path, side)]).double() for side in "AB")
    return B @ A * (weight * files.config["lora_alpha"] / files.config["r"])


def json_in(directory: Path, name: str) -> Any:
    """Return the document *name* in *directory*."""
    return json.loads((directory / name).read_text(encoding="utf-8"))


def content(directory: Path) -> dict[str, bytes]:
    """Return all files of *directory* by name."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
