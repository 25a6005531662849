"""What the paper promises (arXiv 2106.09685, section 4.2), against full fine-tuning of the same model.

Fewer trainable parameters, a smaller state of the optimizer, smaller checkpoints, less memory, faster steps, and a
hundred tasks on one base. The model is a GPT-2 small of random weights in float32, the optimizer AdamW, the adapter the
paper's: r 4 on q and v. That of GPT-3, 1,200 times the model, saves more: what is not weights counts for less there.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import PreTrainedModel

import lora_hub
from benchmarks.figures import Figure, Samples
from benchmarks.group import Bench, Group
from benchmarks.measure import Way
from benchmarks.models import gpt2, randomise, tokens

TASKS = 100
ROWS, LENGTH = 2, 64
ROUNDS = 5


def small() -> PreTrainedModel:
    """Return a GPT-2 small."""
    return gpt2(layers=12, hidden=768, heads=12).train()


def with_adapter(model: PreTrainedModel) -> PreTrainedModel:
    """Return *model*, frozen, with the adapter that is trained."""
    lora_hub.add_adapter(model, "task", r=4, lora_alpha=32, targets=("q", "v"))
    return model


def train(model: nn.Module, *, steps: int = 1) -> torch.optim.Optimizer:
    """Return the optimizer after *steps*."""
    optimizer, ids = torch.optim.AdamW(_trained(model)), tokens(ROWS, LENGTH)
    for _ in range(steps):
        _step(model, optimizer, ids)
    return optimizer


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, ids: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def training(bench: Bench) -> Iterator[Figure]:
    """Parameters, state of the optimizer, and the time of a step with it."""
    models = {"full": small(), "ours": with_adapter(small())}
    optimizers = {way: train(model) for way, model in models.items()}
    counts = {way: [float(sum(p.numel() for p in _trained(model)))] for way, model in models.items()}
    yield _figure("trainable parameters", counts, unit="")
    yield _figure("state of AdamW", {way: [float(_state(optimizer))] for way, optimizer in optimizers.items()}, "bytes")
    ids = tokens(ROWS, LENGTH)
    ways = {w: Way(call=functools.partial(_step, model, optimizers[w], ids)) for w, model in models.items()}
    yield _figure(f"step with AdamW, {ROWS} x {LENGTH} tokens", bench.time(ways, at_most=ROUNDS), unit="s")


def _state(optimizer: torch.optim.Optimizer) -> int:
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)


def peak(_: Bench) -> Iterator[Figure]:
    """The peak of two steps, of which the second finds a state of the optimizer, above that of loading."""
    from benchmarks.memory import in_a_process

    loaded = in_a_process("loaded")
    samples = {way: [float(in_a_process(what) - loaded)] for way, what in (("full", "full"), ("ours", "lora"))}
    yield _figure("peak memory of training, above loading", samples, "bytes")


def tasks(bench: Bench) -> Iterator[Figure]:
    """One task and a hundred: on disk as they are saved, in memory as they are attached."""
    from benchmarks.memory import in_a_process

    model = small()
    checkpoint, folder = bench.folder / "checkpoint.safetensors", bench.folder / "tasks"
    save_model(model, str(checkpoint))
    handle = lora_hub.add_adapter(model, "task", r=4, lora_alpha=32, targets=("q", "v"))
    for number in range(TASKS):
        randomise(model)
        lora_hub.save_adapter(handle, folder / f"task{number}")
    full, one, every = checkpoint.stat().st_size, _on_disk(folder / "task0"), _on_disk(folder)
    weights, attached = sum(p.nbytes for p in small().parameters()), in_a_process("tasks", folder)
    yield _figure("checkpoint", {"full": [full], "ours": [one]}, "bytes")
    yield _figure("1 task on disk, with the base", {"full": [full], "ours": [full + one]}, "bytes")
    yield _figure(f"{TASKS} tasks on disk, with the base", {"full": [TASKS * full], "ours": [full + every]}, "bytes")
    in_memory = {"full": [TASKS * weights], "ours": [weights + attached]}
    yield _figure(f"{TASKS} tasks in memory, with the base", in_memory, "bytes")


def _on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _figure(name: str, samples: Samples, unit: str) -> Figure:
    return Figure(name=name, samples=samples, unit=unit, against="full")


GROUP = Group(
    name="paper-claims",
    title="The paper's promises: LoRA against full fine-tuning of GPT-2 small",
    cases={"training": training, "peak": peak, "tasks": tasks},
)
