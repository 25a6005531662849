"""Two callers at once, each with an adapter of its own: how many of their outputs are those of another adapter.

Two threads, or two asyncio tasks that let each other run between choosing and calling. PEFT's `set_adapter` is a choice
for the whole model, and is counted for comparison.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

import lora_hub
from benchmarks.figures import Figure
from benchmarks.group import Bench, Group
from benchmarks.models import TOLERANCE, R, assert_same, in_ours, in_peft, llama, tokens, write_adapters

CALLS = 300  # of each caller
SWITCH_INTERVAL = 1e-5  # seconds: threads take turns often enough to meet

Choose = Callable[[str], AbstractContextManager[object]]  # what is entered around a call


def two_callers(bench: Bench, *, compiled: bool) -> Iterator[Figure]:
    """Threads and tasks, on a model of 2 layers, eager or *compiled*."""
    base, ids = llama(layers=2), tokens(1, 4)
    directories = write_adapters(base, bench.folder / f"threads-{compiled}", (R, R))
    ours, theirs = in_ours(copy.deepcopy(base), directories), in_peft(copy.deepcopy(base), directories)
    expected = _expected(theirs, list(directories), ids)
    sides: dict[str, tuple[Callable[..., Any], Choose]] = {"ours": (ours, functools.partial(lora_hub.use, ours))}
    if compiled:
        torch.compiler.reset()
        sides["ours"] = (torch.compile(ours, backend=_backend()), sides["ours"][1])
    else:
        sides["peft"] = (theirs, functools.partial(_set_adapter, theirs))
    for model, choose in sides.values():
        for name, output in expected.items():  # which also compiles, before there are two callers
            with choose(name), torch.no_grad():
                assert_same(model(ids, use_cache=False).logits, output)
    kind = f"compiled by {_backend()}" if compiled else "eager"
    for callers, run in (("threads", _in_threads), ("tasks", _in_tasks)):
        samples = {way: [float(run(model, choose, expected, ids))] for way, (model, choose) in sides.items()}
        name = f"wrong outputs of {2 * CALLS} in 2 {callers}, {kind}"
        yield Figure(name=name, samples=samples, unit="", against=None, goal=0)


def _set_adapter(model: PeftModel, name: str) -> AbstractContextManager[object]:
    model.set_adapter(name)
    return nullcontext()


def _backend() -> str:
    return "inductor" if shutil.which("g++") or shutil.which("clang++") else "aot_eager"


def _expected(theirs: PeftModel, names: list[str], ids: Tensor) -> dict[str, Tensor]:
    expected = {}
    for name in names:
        theirs.set_adapter(name)
        with torch.no_grad():
            expected[name] = theirs(ids, use_cache=False).logits
    one, other = expected.values()
    assert not _is_same(one, other), "the two adapters must differ for the count to mean anything"
    return expected


def _is_same(output: Tensor, expected: Tensor) -> bool:
    return bool((output - expected).abs().max() < TOLERANCE * expected.abs().max())


@torch.no_grad()
def _is_right(model: Callable[..., Any], ids: Tensor, expected: Tensor) -> bool:
    """Whether the output is that of the chosen adapter; an error is a wrong output too."""
    try:
        return _is_same(model(ids, use_cache=False).logits, expected)
    except (RuntimeError, KeyError):  # what a half-made switch may cause
        return False


def _in_threads(model: Callable[..., Any], choose: Choose, expected: Mapping[str, Tensor], ids: Tensor) -> int:
    wrong: list[int] = []

    def caller(name: str) -> None:
        count = 0
        for _ in range(CALLS):
            with choose(name):
                count += not _is_right(model, ids, expected[name])
        wrong.append(count)

    threads = [threading.Thread(target=caller, args=(name,)) for name in expected]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_INTERVAL)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(wrong) == len(threads), "a caller died"
    return sum(wrong)


def _in_tasks(model: Callable[..., Any], choose: Choose, expected: Mapping[str, Tensor], ids: Tensor) -> int:
    async def caller(name: str) -> int:
        count = 0
        for _ in range(CALLS):
            with choose(name):
                await asyncio.sleep(0)
                count += not _is_right(model, ids, expected[name])
        return count

    async def both() -> int:
        return sum(await asyncio.gather(*(caller(name) for name in expected)))

    return asyncio.run(both())


GROUP = Group(
    name="threads",
    title="Two callers at once, each with an adapter of its own",
    cases={
        "eager": functools.partial(two_callers, compiled=False),
        "compiled": functools.partial(two_callers, compiled=True),
    },
)
