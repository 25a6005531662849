"""The forward of a model under one adapter, unmerged: what it takes above the base."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import torch

import lora_hub
from benchmarks.figures import Figure
from benchmarks.group import Bench, Group
from benchmarks.measure import Way
from benchmarks.models import R, assert_same, in_peft, llama, tokens, write_adapters


def forward(bench: Bench, *, what: str, rows: int, length: int, goal: float, repeat: int) -> Iterator[Figure]:
    """*rows* of *length* tokens, without a cache of keys and values."""
    base, ids = llama(), tokens(rows, length)
    directories = write_adapters(base, bench.folder / f"forward-{rows}-{length}", (R,))
    ours, theirs = copy.deepcopy(base), in_peft(copy.deepcopy(base), directories)
    lora_hub.apply_adapter(ours, directories["task0"])
    models = {"base": base, "ours": ours, "peft": theirs}
    with torch.no_grad():
        assert_same(ours(ids).logits, theirs(ids).logits)
        calls = {way: functools.partial(model, ids, use_cache=False) for way, model in models.items()}
        times = bench.time({way: Way(call=call, repeat=repeat) for way, call in calls.items()})
    yield Figure(name=what, samples=times, above_base=True, goal=goal)


GROUP = Group(
    name="forward",
    title="Forward under one adapter, unmerged",
    cases={
        "decode": functools.partial(forward, what="decode, 1 row", rows=1, length=1, goal=0.33, repeat=5),
        "decode 8": functools.partial(forward, what="decode, 8 rows", rows=8, length=1, goal=0.45, repeat=5),
        "prefill": functools.partial(forward, what="prefill, 1 x 256 tokens", rows=1, length=256, goal=0.45, repeat=2),
    },
)
