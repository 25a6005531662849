"""A merge into a whole checkpoint: lora-hub shard by shard, PEFT by loading, merging and saving the model.

Both in fresh processes, in turn, on a bfloat16 LLaMA of 1.2 GB in shards. Ours hashes base and result and waits for the
disk (`fsync`), which PEFT does not.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import merge_process
from benchmarks.figures import Figure
from benchmarks.group import Bench, Case, Group
from benchmarks.models import R, write_adapters

ROUNDS = 7
LIMIT = 500e6  # bytes
ATTENTION = ("q_proj", "v_proj")
ALL_LINEAR = (*ATTENTION, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def checkpoint(bench: Bench, *, what: str, targets: Sequence[str], goal: float) -> Iterator[Figure]:
    """Merge an adapter of rank 16 of *targets*: the time, and the peak of memory."""
    base = _write_base(bench.folder)
    adapter = _write_adapter(base, bench.folder / what, targets)
    seconds: dict[str, list[float]] = {"ours": [], "peft": []}
    peaks: dict[str, list[float]] = {"ours": [], "peft": []}
    for number in range(min(bench.rounds, ROUNDS) + 1):
        outputs = {way: bench.folder / f"merged by {way}" for way in seconds}
        for way in list(outputs)[:: 1 if number % 2 else -1]:
            shutil.rmtree(outputs[way], ignore_errors=True)
            took = _in_a_process(way, base, adapter, outputs[way])
            seconds[way].append(took["seconds"])
            peaks[way].append(took["peak"])
    _check(outputs["ours"], outputs["peft"])
    # The first round brings everything into the page cache.
    times = {way: samples[1:] for way, samples in seconds.items()}
    yield Figure(name=f"merge {what} into a checkpoint of 1.2 GB", samples=times, goal=goal)
    yield Figure(
        name=f"peak of memory, {what} into a checkpoint of 1.2 GB",
        samples=peaks,
        unit="bytes",
        against=None,
        goal=LIMIT,
    )


def _write_base(folder: Path) -> Path:
    base = folder / "checkpoint"
    if not base.exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=2048, num_hidden_layers=10, num_attention_heads=32, num_key_value_heads=8,
            intermediate_size=5632, vocab_size=32_000,
        )  # fmt: skip
        LlamaForCausalLM(config).bfloat16().save_pretrained(base, max_shard_size="300MB")
    return base


def _write_adapter(base: Path, folder: Path, targets: Sequence[str]) -> Path:
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    return write_adapters(model, folder, (R,), targets=targets)["task0"]


def _in_a_process(way: str, base: Path, adapter: Path, output: Path) -> dict[str, float]:
    command = [sys.executable, str(merge_process.__file__), way, str(base), str(adapter), str(output)]
    quiet = os.environ | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=quiet)  # noqa: S603 - our own
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _check(ours: Path, theirs: Path) -> None:
    """All tensors of both have the same bits."""
    expected = dict(_tensors(theirs))
    assert expected
    for name, tensor in _tensors(ours):
        assert torch.equal(tensor, expected.pop(name)), name
    assert not expected


def _tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping
                yield name, file.get_tensor(name)


def _case(what: str, targets: Sequence[str], goal: float) -> Case:
    return functools.partial(checkpoint, what=what, targets=targets, goal=goal)


GROUP = Group(
    name="checkpoint",
    title="Into a checkpoint on disk",
    cases={"q and v": _case("q and v", ATTENTION, 1.5), "all linear": _case("all linear layers", ALL_LINEAR, 1.0)},
)
