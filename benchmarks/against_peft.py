"""Attach, run, train and merge one adapter, here and in PEFT, in turn in one process; print medians and ratios.

    python -m benchmarks.against_peft [--rounds 15]

A ratio below 1 means that lora-hub is faster. Both start from the same files and the same weights; before anything is
timed, the outputs are compared.
"""

import argparse
import copy
import functools
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

import lora_hub

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]


def build() -> LlamaForCausalLM:
    """Return a random LLaMA of 12 layers of 256 features in float32, 48 adapted projections."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=256, num_hidden_layers=12, num_attention_heads=8, num_key_value_heads=4, intermediate_size=512,
            vocab_size=1000, max_position_embeddings=512,
        )
    ).eval()  # fmt: skip


def write_adapter(model: LlamaForCausalLM, directory: Path) -> None:
    """Save a random PEFT adapter of rank 16 on q, k, v, o."""
    peft_model = get_peft_model(copy.deepcopy(model), LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS))
    with torch.no_grad():
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.02)
    peft_model.save_pretrained(directory)


def timed(function: Callable[[], object], repeat: int = 1) -> float:
    """Return the seconds that one call of *function* takes, over *repeat* calls."""
    start = time.perf_counter()
    for _ in range(repeat):
        function()
    return (time.perf_counter() - start) / repeat


class Case:
    """One thing to measure, in three ways: without an adapter, here, in PEFT. A way may be missing."""

    def __init__(self, name: str, rounds: int, **ways: tuple[Callable[[], object], int]) -> None:
        for function, _ in ways.values():
            function()
        samples = {way: [] for way in ways}
        for _ in range(rounds):
            for way, (function, repeat) in ways.items():
                samples[way].append(timed(function, repeat))
        self.name = name
        self.medians = {way: statistics.median(times) for way, times in samples.items()}

    def row(self) -> str:
        """Return the row of the table: milliseconds, and our time in units of PEFT's."""
        cells = [f"{self.medians[way] * 1000:.3f}" if way in self.medians else "" for way in ("base", "ours", "peft")]
        return f"| {self.name} | {' | '.join(cells)} | {self.medians['ours'] / self.medians['peft']:.2f} |"


def attach_cases(base: LlamaForCausalLM, directory: Path, rounds: int) -> list[Case]:
    """From files to a model that runs, and back to the base."""
    mine, theirs = copy.deepcopy(base), copy.deepcopy(base)

    def ours() -> None:
        lora_hub.apply_adapter(mine, directory, name="task").remove()

    def in_peft() -> None:
        PeftModel.from_pretrained(theirs, directory).unload()

    return [Case("load, attach and remove", rounds, ours=(ours, 3), peft=(in_peft, 1))]


def forward_cases(base: LlamaForCausalLM, directory: Path, rounds: int) -> list[Case]:
    """Inference, unmerged."""
    mine = copy.deepcopy(base)
    lora_hub.apply_adapter(mine, directory)
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), directory).eval()
    cases = []
    with torch.no_grad():
        for rows, length in ((1, 1), (1, 32), (4, 128)):
            ids = torch.randint(0, 1000, (rows, length))
            difference = (mine(ids).logits - theirs(ids).logits).abs().max() / theirs(ids).logits.abs().max()
            assert difference < 1e-5, difference
            ways = {"base": base, "ours": mine, "peft": theirs}
            runs = {way: (functools.partial(model, ids), 3) for way, model in ways.items()}
            cases.append(Case(f"forward, {rows} x {length} tokens", rounds, **runs))
    return cases


def training_cases(base: LlamaForCausalLM, rounds: int) -> list[Case]:
    """One step of training: forward and backward."""
    mine = copy.deepcopy(base).train()
    lora_hub.add_adapter(mine, "task", r=16, lora_alpha=32, targets=("q", "k", "v", "o"))
    theirs = get_peft_model(copy.deepcopy(base), LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS)).train()
    ids = torch.randint(0, 1000, (4, 64))
    ways = {w: (lambda m=m: m(ids, labels=ids).loss.backward(), 1) for w, m in (("ours", mine), ("peft", theirs))}
    return [Case("training step, 4 x 64 tokens", rounds, **ways)]


def merge_cases(base: LlamaForCausalLM, directory: Path, rounds: int) -> tuple[list[Case], str]:
    """Merge and unmerge in bfloat16, and what is left of the base after all the rounds."""
    low = copy.deepcopy(base).bfloat16()
    mine, theirs = copy.deepcopy(low), copy.deepcopy(low)
    handle = lora_hub.apply_adapter(mine, directory)
    theirs = PeftModel.from_pretrained(theirs, directory)

    def ours() -> None:
        handle.merge()
        handle.unmerge()

    def in_peft() -> None:
        theirs.merge_adapter()
        theirs.unmerge_adapter()

    case = Case("merge and unmerge, bfloat16", rounds, ours=(ours, 1), peft=(in_peft, 1))
    handle.remove()
    found = [changed(low, mine), changed(low, theirs.unload())]
    cycles = rounds + 1
    return [case], f"weights changed after {cycles} cycles: lora-hub {found[0]:.2%}, PEFT {found[1]:.2%}"


def changed(before: LlamaForCausalLM, after: LlamaForCausalLM) -> float:
    """Return the share of the targeted weights whose bits differ."""
    pairs = [(p, after.get_parameter(n)) for n, p in before.named_parameters() if n.split(".")[-2] in TARGETS]
    return sum((a != b).sum().item() for a, b in pairs) / sum(a.numel() for a, _ in pairs)


def low_precision() -> list[str]:
    """RMS error of one bfloat16 layer against float64, ours in units of PEFT's."""
    lines = []
    for strength in (0.01, 0.03, 0.1, 0.3):
        torch.manual_seed(1)
        layer = torch.nn.Sequential(torch.nn.Linear(1024, 1024, bias=False)).bfloat16()
        torch.nn.init.normal_(layer[0].weight, std=0.02)
        theirs = get_peft_model(copy.deepcopy(layer), LoraConfig(r=16, lora_alpha=16, target_modules=["0"]))
        A, B = torch.randn(16, 1024), torch.randn(1024, 16) * strength * 0.02 / 4
        with torch.no_grad(), tempfile.TemporaryDirectory() as directory:
            theirs.base_model.model[0].lora_A.default.weight.copy_(A)
            theirs.base_model.model[0].lora_B.default.weight.copy_(B)
            theirs.save_pretrained(directory)
            lora_hub.apply_adapter(mine := copy.deepcopy(layer), Path(directory), name="task")
            x = torch.randn(2048, 1024).bfloat16()
            exact = x.double() @ (layer[0].weight.double() + B.double() @ A.double()).T
            errors = [(model(x).double() - exact).square().mean().sqrt().item() for model in (mine, theirs)]
        lines.append(f"| {strength:.0%} | {errors[0] / errors[1]:.4f} |")
    return lines


def main() -> None:
    """Run everything and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    base = build()
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_adapter(base, directory)
        cases = attach_cases(base, directory, rounds) + forward_cases(base, directory, rounds)
        cases += training_cases(base, rounds)
        merging, left = merge_cases(base, directory, rounds)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, PEFT {peft.__version__}"
    machine = f"CPU, {torch.get_num_threads()} threads, {platform.machine()}, Python {platform.python_version()}"
    print(f"{machine}, {versions}, medians of {rounds}.")
    print("\n| | base, ms | lora-hub, ms | PEFT, ms | lora-hub / PEFT |\n| --- | --- | --- | --- | --- |")
    print("\n".join(case.row() for case in cases + merging))
    print(f"\n{left}\n\n| delta / W | RMS error in bfloat16, lora-hub / PEFT |\n| --- | --- |")
    print("\n".join(low_precision()))


if __name__ == "__main__":
    main()
