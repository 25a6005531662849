"""Another adapter in every row of a batch: `lora_hub.route` against PEFT's `adapter_names`, above the base.

All 32 adapters are on the model. A fixed route is entered once for several forwards, as in decoding, and entering it is
timed with them; a changing one is made and entered for every forward, in another order of the adapters each time. To
PEFT, which keeps nothing between calls, the two are one.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import lora_hub
from benchmarks.figures import Figure
from benchmarks.group import Bench, Group
from benchmarks.measure import Way
from benchmarks.models import R, Residents, assert_same, residents, tokens

EQUAL, MIXED = (R,) * 32, (4, 8, 16, 32) * 8


def mixed_batch(
    bench: Bench,
    *,
    what: str,
    rows: int,
    length: int = 1,
    steps: int = 8,
    ranks: tuple[int, ...] = EQUAL,
    goals: tuple[float, float],
) -> Iterator[Figure]:
    """*rows* of *length* tokens, an adapter for each; *goals* for a route fixed for *steps* forwards, and another."""
    found, ids = residents(bench.folder, ranks), tokens(rows, length)
    names = found.names[:rows]
    with torch.no_grad():
        with lora_hub.route(found.ours, names):
            assert_same(found.ours(ids).logits, found.peft(ids, adapter_names=names).logits)
        times = bench.time(_ways(found, names, ids, steps))
    for kind, goal in zip(("fixed", "changing"), goals, strict=True):
        samples = {"base": times["base"], "ours": times[kind], "peft": times["peft"]}
        yield Figure(name=f"{what}, {kind} route", samples=samples, above_base=True, goal=goal)


def _ways(found: Residents, names: list[str], ids: Tensor, steps: int) -> dict[str, Way]:
    base, ours, theirs, _ = found
    fixed, next_order = lora_hub.route(ours, names), _orders(names)

    def run_fixed() -> None:
        with fixed:
            for _ in range(steps):
                ours(ids, use_cache=False)

    def run_changing() -> None:
        with lora_hub.route(ours, next_order()):
            ours(ids, use_cache=False)

    return {
        "base": Way(call=functools.partial(base, ids, use_cache=False), repeat=steps),
        "fixed": Way(call=run_fixed, counts=steps),
        "changing": Way(call=run_changing, repeat=steps),
        "peft": Way(call=lambda: theirs(ids, use_cache=False, adapter_names=next_order())),
    }


def _orders(names: list[str]) -> Callable[[], list[str]]:
    """Return a function that gives *names* in another order with each call."""
    order = deque(names)

    def following() -> list[str]:
        order.rotate(1)
        return list(order)

    return following


DECODE, PREFILL = (0.07, 0.10), (0.10, 0.10)
GROUP = Group(
    name="rows",
    title="Another adapter in every row of a batch",
    cases={
        "16": functools.partial(mixed_batch, what="16 rows, 16 adapters", rows=16, goals=DECODE),
        "32": functools.partial(mixed_batch, what="32 rows, 32 adapters", rows=32, goals=DECODE),
        "16 mixed": functools.partial(
            mixed_batch, what="16 rows, 16 adapters of r 4 to 32", rows=16, ranks=MIXED, goals=DECODE
        ),
        "32 mixed": functools.partial(
            mixed_batch, what="32 rows, 32 adapters of r 4 to 32", rows=32, ranks=MIXED, goals=DECODE
        ),
        "prefill": functools.partial(
            mixed_batch, what="8 rows x 64 tokens, 8 adapters", rows=8, length=64, steps=2, goals=PREFILL
        ),
    },
)
