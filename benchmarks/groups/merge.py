"""Into the weights and out again, and what is left of the base after all cycles.

PEFT adds and subtracts, which does not give back what was there; lora-hub has to, to the bit.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import lora_hub
from benchmarks.figures import Figure
from benchmarks.group import Bench, Case, Group
from benchmarks.machine import device
from benchmarks.measure import Way
from benchmarks.models import ALPHA, TARGETS, R, assert_same, count_differing, in_peft, llama, tokens, write_adapters


def merge(bench: Bench, *, what: str, layers: int, hidden: int, dtype: torch.dtype) -> Iterator[Figure]:
    """Merge and unmerge an adapter of a LLaMA of *layers* of *hidden* features in *dtype*."""
    base = llama(layers, hidden).to(dtype)
    directories = write_adapters(base, bench.folder / what, (R,))
    ours, theirs = copy.deepcopy(base), in_peft(copy.deepcopy(base), directories)
    handle = lora_hub.apply_adapter(ours, directories["task0"])

    def cycle() -> None:
        handle.merge()
        handle.unmerge()

    def cycle_in_peft() -> None:
        theirs.merge_adapter()
        theirs.unmerge_adapter()

    if dtype is torch.float32:
        _check(handle, ours, copy.deepcopy(theirs))
    times = bench.time({"ours": Way(call=cycle), "peft": Way(call=cycle_in_peft)})
    yield Figure(name=f"merge and unmerge, {what}", samples=times, goal=0.6)
    handle.remove()
    before = _weights(base)
    differing = {
        "ours": count_differing(before, _weights(ours)),
        "peft": count_differing(before, _weights(theirs.unload())),
    }
    yield Figure(
        name=f"weights changed by {bench.rounds + 1} cycles, {what}",
        samples={way: [count] for way, count in differing.items()},
        unit="",
        against=None,
        goal=0,
    )


def corrections(bench: Bench, *, strength: float) -> Iterator[Figure]:
    """What a merge keeps of bfloat16 weights under ``keep="corrections"``, for a delta that is *strength* of W."""
    torch.manual_seed(1)
    layer = nn.Sequential(nn.Linear(2048, 2048, bias=False))
    nn.init.normal_(layer[0].weight, std=0.02)
    directory = write_adapters(layer, bench.folder / f"kept {strength}", (R,), targets=["0"])["task0"]
    layer.bfloat16().to(device())
    delta = 0.02 * 0.02 * R**0.5 * ALPHA / R  # the RMS of what `write_adapters` writes
    handle = lora_hub.apply_adapter(layer, directory, name="task", scale=strength * 0.02 / delta)
    handle.merge(keep="corrections")
    samples = {"ours": [float(handle.kept_bytes())], "base": [float(layer[0].weight.nbytes)]}
    name = f"kept by corrections in bfloat16, delta of {strength:.0%} of W"
    yield Figure(name=name, samples=samples, unit="bytes", against="base")


def _check(handle: lora_hub.AppliedAdapter, ours: nn.Module, theirs: nn.Module) -> None:
    handle.merge()
    theirs.merge_adapter()
    with torch.no_grad():
        assert_same(ours(tokens(2, 16)).logits, theirs(tokens(2, 16)).logits)
    handle.unmerge()


def _weights(model: nn.Module) -> list[Tensor]:
    return [weight for name, weight in model.named_parameters() if name.split(".")[-2] in TARGETS]


def _case(what: str, layers: int, hidden: int, dtype: torch.dtype) -> Case:
    return functools.partial(merge, what=what, layers=layers, hidden=hidden, dtype=dtype)


GROUP = Group(
    name="merge",
    title="Into the weights and out again",
    cases={
        "float32": _case("32 layers of 256, float32", 32, 256, torch.float32),
        "bfloat16": _case("32 layers of 256, bfloat16", 32, 256, torch.bfloat16),
        "wide float32": _case("4 layers of 1024, float32", 4, 1024, torch.float32),
        "wide bfloat16": _case("4 layers of 1024, bfloat16", 4, 1024, torch.bfloat16),
        **{f"kept {s:.0%}": functools.partial(corrections, strength=s) for s in (0.01, 0.03, 0.1)},
    },
)
