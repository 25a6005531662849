"""Several adapters into one of rank 32: PEFT forms each delta as a matrix and decomposes it, lora-hub its factors.

Both begin with adapters that are in memory, and PEFT's result stays there; lora-hub's is the bytes of the files.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn

from benchmarks.figures import Figure
from benchmarks.group import Bench, Group
from benchmarks.measure import Way
from benchmarks.models import R, in_peft, write_adapters
from lora_hub.adapter_directory import read_adapter
from lora_hub.adapter_files import config_of, files_of
from lora_hub.composing.compose import Composed, compose
from lora_hub.composing.inputs import Input
from lora_hub.documents.base_model import BaseModel
from lora_hub.documents.recipe import Recipe, RecipeInput
from lora_hub.documents.verified_adapter import VerifiedAdapter, verify
from lora_hub.tensors import tensor_of

ADAPTERS = 4
RANK = 32
FEATURES = 4096
# Outputs and inputs of the modules of one layer of Llama 3 8B.
LLAMA_3_8B = {
    "self_attn.q_proj": (4096, 4096), "self_attn.k_proj": (1024, 4096), "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096), "mlp.gate_proj": (14336, 4096), "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}  # fmt: skip
LAYERS = 32


def one_module(bench: Bench) -> Iterator[Figure]:
    """Four adapters of rank 16 on one 4096 x 4096 module; PEFT does it once, since it takes seconds."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(FEATURES, FEATURES, bias=False))
    directories = write_adapters(base, bench.folder / "compose", (R,) * ADAPTERS, targets=("0",))
    adapters = {name: read_adapter(path) for name, path in directories.items()}
    ours = functools.partial(_compose, adapters)
    times = bench.time({"ours": Way(call=ours)})
    theirs = in_peft(base, directories)
    seconds = _seconds_of_peft(theirs, directories)
    _check(ours(), theirs)
    name = f"compose {ADAPTERS} adapters of rank {R} to rank {RANK}, one {FEATURES} x {FEATURES} module"
    yield Figure(name=name, samples={**times, "peft": [seconds]}, goal=0.001)


def whole_model(_bench: Bench) -> Iterator[Figure]:
    """The modules of Llama 3 8B, all linear ones, in two adapters of rank 32, composed to rank 32."""
    adapters = {f"task{number}": _adapter(number) for number in range(2)}
    start = time.perf_counter()
    _compose(adapters)
    seconds = time.perf_counter() - start
    name = f"compose 2 adapters of rank 32 to rank {RANK}, 7 x {LAYERS} modules of Llama 3 8B"
    yield Figure(name=name, samples={"ours": [seconds]}, against=None, goal=10)


def _compose(adapters: Mapping[str, VerifiedAdapter]) -> Composed:
    weight = 1 / len(adapters)
    inputs = [Input(name=name, adapter=adapter) for name, adapter in adapters.items()]
    named = tuple(RecipeInput(reference=f"./{name}", id=name, weight=weight) for name in adapters)
    return compose(inputs, Recipe(inputs=named, rank=str(RANK)))


def _seconds_of_peft(model: PeftModel, directories: Mapping[str, Path]) -> float:
    names = list(directories)
    start = time.perf_counter()
    model.add_weighted_adapter(names, [1 / len(names)] * len(names), "composed", combination_type="svd", svd_rank=RANK)
    return time.perf_counter() - start


def _check(made: Composed, theirs: PeftModel) -> None:
    """Raise `AssertionError` unless both are the same matrix of rank 32, on some of its rows."""
    adapter = verify(made.files, source="composed")
    (module,) = adapter.layout.modules
    layer = theirs.base_model.model[0]
    scaling = layer.scaling["composed"]
    expected = scaling * layer.lora_B["composed"].weight[:64] @ layer.lora_A["composed"].weight
    found: Tensor = tensor_of(adapter, module.lora_B)[:64] @ tensor_of(adapter, module.lora_A)
    difference = ((found - expected).norm() / expected.norm()).item()
    assert difference < 1e-4, f"the results differ by {difference:.1e}"


def _adapter(seed: int) -> VerifiedAdapter:
    """Return an adapter of rank 32 in bfloat16 for all linear modules of Llama 3 8B: random numbers, drawn fast."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(LAYERS):
        for name, (out_features, in_features) in LLAMA_3_8B.items():
            path = f"base_model.model.model.layers.{layer}.{name}"
            for side, shape in (("A", (RANK, in_features)), ("B", (out_features, RANK))):
                drawn = torch.rand(shape, generator=generator).sub_(0.5)
                tensors[f"{path}.lora_{side}.weight"] = drawn.bfloat16()
    paths = {key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for key in tensors if "lora_A" in key}
    base = BaseModel(repo="meta-llama/Llama-3.1-8B")
    config = config_of(dict.fromkeys(paths, (RANK, RANK)), base=base)
    return verify(files_of(config, tensors, base=base), source=f"task{seed}")


GROUP = Group(
    name="compose",
    title="Several adapters into one",
    cases={"one module": one_module, "Llama 3 8B": whole_model},
)
