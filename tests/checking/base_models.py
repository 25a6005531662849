"""Base models by their names and shapes alone: what a check reads of them, made without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter_files import HIDDEN, WIDTHS, AdapterFiles, Tensor, lora_key, peft_config, safetensors, tensor, to_json

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
TOKENS = 16
Shapes = dict[str, tuple[int, ...]]


@dataclass(slots=True, kw_only=True)
class BaseModel:
    """A base model that a test may change before it is written: its config, and the shape of each tensor by name."""

    config: dict[str, Any]
    shapes: Shapes
    shards: int = 1
    dtype: str = "BF16"
    others: dict[str, bytes] = field(default_factory=dict)

    def files(self) -> dict[str, bytes]:
        """Return the files by name; the tensors are zeros, in as many shards as are wanted."""
        files = {"config.json": to_json(self.config), **self.others}
        names = list(self.shapes)
        size = -(-len(names) // self.shards)
        groups = [names[start : start + size] for start in range(0, len(names), size)]
        if len(groups) == 1:
            return {**files, SINGLE_NAME: self._file(names)}
        shards = {f"model-{i + 1:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups)}
        files |= {shard: self._file(group) for shard, group in shards.items()}
        weight_map = {name: shard for shard, group in shards.items() for name in group}
        return {**files, INDEX_NAME: to_json({"metadata": {"total_size": 1}, "weight_map": weight_map})}

    def _file(self, names: list[str]) -> bytes:
        width = {"BF16": 2, "F32": 4, "U8": 1, "I32": 4}[self.dtype]
        tensors = {
            name: Tensor(dtype=self.dtype, shape=shape, content=bytes(width * math.prod(shape)))
            for name in names
            for shape in [self.shapes[name]]
        }
        return safetensors(tensors, {"format": "pt"})

    def write(self, directory: Path) -> Path:
        """Write the files into *directory* and return it."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files().items():
            (directory / name).write_bytes(content)
        return directory


def llama(
    layers: int = 2, *, hidden: int = HIDDEN, tied: bool = False, prefix: str = "model.", **config: Any
) -> BaseModel:
    """Return a LLaMA that the adapters of `adapter_files` fit: v has 4 outputs, the MLP 12."""
    shapes: Shapes = {f"{prefix}embed_tokens.weight": (TOKENS, hidden)}
    for layer in range(layers):
        at = f"{prefix}layers.{layer}."
        shapes[f"{at}input_layernorm.weight"] = (hidden,)
        for name, width in {"q_proj": hidden, "k_proj": WIDTHS["v_proj"], "v_proj": WIDTHS["v_proj"]}.items():
            shapes[f"{at}self_attn.{name}.weight"] = (width, hidden)
        shapes[f"{at}self_attn.o_proj.weight"] = (hidden, hidden)
        shapes |= {f"{at}mlp.{name}.weight": (12, hidden) for name in ("gate_proj", "up_proj")}
        shapes[f"{at}mlp.down_proj.weight"] = (hidden, 12)
    if prefix == "model." and not tied:
        shapes["lm_head.weight"] = (TOKENS, hidden)
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "num_hidden_layers": layers,
        "tie_word_embeddings": tied,
        "vocab_size": TOKENS,
        **config,
    }
    return BaseModel(config=settings, shapes=shapes)


def gpt2(layers: int = 1, *, hidden: int = HIDDEN) -> BaseModel:
    """Return a GPT-2, whose weights lie [in, out]; the checkpoint has no prefix, as the one on the Hub."""
    shapes: Shapes = {"wte.weight": (TOKENS, hidden), "wpe.weight": (4, hidden)}
    for layer in range(layers):
        shapes[f"h.{layer}.attn.c_attn.weight"] = (hidden, 3 * hidden)
        shapes[f"h.{layer}.attn.c_proj.weight"] = (hidden, hidden)
        shapes[f"h.{layer}.mlp.c_fc.weight"] = (hidden, 4 * hidden)
        shapes[f"h.{layer}.mlp.c_proj.weight"] = (4 * hidden, hidden)
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": TOKENS}
    return BaseModel(config=config, shapes=shapes)


def bert(layers: int = 2, *, hidden: int = HIDDEN, prefix: str = "bert.") -> BaseModel:
    """Return a BERT with a classifier of two labels."""
    shapes: Shapes = {f"{prefix}embeddings.word_embeddings.weight": (TOKENS, hidden)}
    for layer in range(layers):
        at = f"{prefix}encoder.layer.{layer}."
        shapes |= {f"{at}attention.self.{name}.weight": (hidden, hidden) for name in ("query", "key", "value")}
        shapes[f"{at}attention.output.dense.weight"] = (hidden, hidden)
        shapes[f"{at}intermediate.dense.weight"] = (12, hidden)
        shapes[f"{at}output.dense.weight"] = (hidden, 12)
    if prefix:
        shapes |= {"classifier.weight": (2, hidden), "classifier.bias": (2,)}
    return BaseModel(config={"model_type": "bert", "tie_word_embeddings": True, "vocab_size": TOKENS}, shapes=shapes)


def adapter_of(modules: Shapes, *, r: int = 2, seed: int = 0, dtype: str = "F32", **config: Any) -> AdapterFiles:
    """Return an adapter of *modules*, outputs and inputs by path; the last names of the paths are its targets."""
    tensors: dict[str, Tensor] = {}
    for number, (path, (outputs, inputs)) in enumerate(modules.items()):
        tensors[lora_key(path, "A")] = tensor(r, inputs, seed=seed + 2 * number, dtype=dtype)
        tensors[lora_key(path, "B")] = tensor(outputs, r, seed=seed + 2 * number + 1, dtype=dtype)
    targets = sorted({path.rpartition(".")[2] for path in modules})
    return AdapterFiles(config=peft_config(**{"r": r, "target_modules": targets, **config}), tensors=tensors)


def bert_adapter(layers: int = 2, *, prefix: str = "bert.", **config: Any) -> AdapterFiles:
    """Return an adapter of query and value, and of a classifier where that is in `modules_to_save`."""
    modules: Shapes = {
        f"{prefix}encoder.layer.{layer}.attention.self.{name}": (HIDDEN, HIDDEN)
        for layer in range(layers)
        for name in ("query", "value")
    }
    files = adapter_of(modules, **{"task_type": "SEQ_CLS", **config})
    if "classifier" in (config.get("modules_to_save") or ()):
        files.tensors["base_model.model.classifier.weight"] = tensor(2, HIDDEN, seed=90)
        files.tensors["base_model.model.classifier.bias"] = tensor(2, seed=91)
    return files


def llama_adapter(*names: str, layers: int = 2, prefix: str = "model.", **config: Any) -> AdapterFiles:
    """Return an adapter of the modules *names* in every layer of `llama`."""
    shapes = llama(layers, prefix=prefix).shapes
    modules = {
        path: shape
        for name, shape in shapes.items()
        for path in [name.removesuffix(".weight")]
        if path.rpartition(".")[2] in names
    }
    return adapter_of(modules, **config)
