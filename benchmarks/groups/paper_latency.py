"""Table 1 of the paper (arXiv 2106.09685): the latency of one forward of GPT-2 medium, here with random weights.

The paper has 32 x 512, 16 x 256 and 1 x 128 tokens on a card, and merged LoRA, whose latency is that of the base by
construction; it never timed LoRA beside the weights. On a CPU the shapes are smaller. The adapter is the paper's for
this model: r 4 on q and v; in PEFT's files that is r 4 on the fused `c_attn`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

import lora_hub
from benchmarks.figures import Figure
from benchmarks.group import Bench, Case, Group
from benchmarks.machine import device
from benchmarks.measure import Way
from benchmarks.models import assert_same, gpt2, in_peft, tokens, twin, write_adapters

ROUNDS = 5
ON_CARD, ON_CPU = ((32, 512), (16, 256), (1, 128)), ((1, 128), (4, 128))


@functools.cache
def _base() -> PreTrainedModel:
    return gpt2(layers=24, hidden=1024, heads=16)


def latency(bench: Bench, *, rows: int, length: int) -> Iterator[Figure]:
    """The base, merged and not, and PEFT unmerged; they share the weights, but for the merged ones."""
    base, ids = _base(), tokens(rows, length)
    directories = write_adapters(base, bench.folder / f"paper-{rows}", (4,), targets=("c_attn",))
    directory = directories["task0"]
    ours, theirs, merged = twin(base), in_peft(twin(base), directories), copy.deepcopy(base)
    lora_hub.apply_adapter(ours, directory)
    lora_hub.apply_adapter(merged, directory).merge()
    models = {"base": base, "ours": ours, "merged": merged, "peft": theirs}
    with torch.no_grad():
        expected = theirs(ids).logits
        for model in (ours, merged):
            assert_same(model(ids).logits, expected)
        calls = {way: functools.partial(model, ids, use_cache=False) for way, model in models.items()}
        times = bench.time({way: Way(call=call) for way, call in calls.items()}, at_most=ROUNDS)
    shape = f"GPT-2 medium, {rows} x {length} tokens"
    yield Figure(name=f"{shape}, unmerged", samples={way: times[way] for way in ("base", "ours", "peft")})
    yield Figure(name=f"{shape}, merged", samples={"base": times["base"], "ours": times["merged"]}, against="base")


def _cases() -> dict[str, Case]:
    shapes = ON_CARD if device().type == "cuda" else ON_CPU
    return {f"{rows} x {length}": functools.partial(latency, rows=rows, length=length) for rows, length in shapes}


GROUP = Group(name="paper-latency", title="The paper's Table 1: GPT-2 medium, one forward", cases=_cases())
