"""To another adapter that is on the model already: `lora_hub.use` against PEFT's `set_adapter`.

The first figure is the switch alone, for lora-hub into the block and out of it; the second has the forward of one token
in it, so that what is put off until a module runs is counted as well.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch

import lora_hub
from benchmarks.figures import Figure
from benchmarks.group import Bench, Group
from benchmarks.measure import Way
from benchmarks.models import R, Residents, assert_same, in_ours, in_peft, residents, tokens

COUNTS = (2, 8, 32)
FLAT = 1.2  # 32 adapters against 2: the same, up to noise


def switch(bench: Bench) -> Iterator[Figure]:
    """With 2, 8 and 32 adapters on the model, the next one each time."""
    with torch.no_grad():
        ways: dict[str, Way] = {}
        for count in COUNTS:
            found = _with(count, residents(bench.folder, (R,) * 32))
            _check(found)
            ways |= {f"{way} {count}": made for way, made in _ways(found).items()}
        times = bench.time(ways)
    for count in COUNTS:
        switched = {way: times[f"{way} {count}"] for way in ("ours", "peft")}
        yield Figure(name=f"switch, {count} there", samples=switched, goal=0.002)
    for count in COUNTS:
        run = {way: times[f"{way}, run {count}"] for way in ("ours", "peft")}
        yield Figure(name=f"switch and run 1 token, {count} there", samples=run)
    flat = [many / few for many, few in zip(times["ours 32"], times["ours 2"], strict=True)]
    yield Figure(name="switch, 32 there against 2 there", samples={"ours": flat}, unit="", against=None, goal=FLAT)


def _with(count: int, found: Residents) -> Residents:
    """Return models with only the first *count* of the adapters."""
    if count == len(found.directories):
        return found
    some = dict(itertools.islice(found.directories.items(), count))
    ours, theirs = in_ours(copy.deepcopy(found.base), some), in_peft(copy.deepcopy(found.base), some)
    return Residents(found.base, ours, theirs, some)


def _ways(found: Residents) -> dict[str, Way]:
    _, ours, theirs, directories = found
    names, ids = itertools.cycle(directories), tokens(1, 1)

    def use() -> None:
        with lora_hub.use(ours, next(names)):
            pass

    def use_and_run() -> None:
        with lora_hub.use(ours, next(names)):
            ours(ids, use_cache=False)

    def set_adapter() -> None:
        theirs.set_adapter(next(names))

    def set_adapter_and_run() -> None:
        theirs.set_adapter(next(names))
        theirs(ids, use_cache=False)

    return {
        "ours": Way(call=use, repeat=200),
        "peft": Way(call=set_adapter),
        "ours, run": Way(call=use_and_run),
        "peft, run": Way(call=set_adapter_and_run),
    }


def _check(found: Residents) -> None:
    ids = tokens(2, 16)
    for name in found.names:
        found.peft.set_adapter(name)
        with lora_hub.use(found.ours, name):
            assert_same(found.ours(ids).logits, found.peft(ids).logits)


GROUP = Group(name="switch", title="To another adapter that is on the model already", cases={"all": switch})
