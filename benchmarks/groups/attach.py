"""From a directory that PEFT saved to a model that runs; taking the adapter off again is not timed.

lora-hub reads the files into memory of its own, hashes them and checks every tensor; PEFT maps the file. Both find it
in the page cache. A first adapter is `PeftModel.from_pretrained`, a further one `load_adapter`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import PeftModel
from torch import nn

import lora_hub
from benchmarks.figures import Figure
from benchmarks.group import Bench, Group
from benchmarks.measure import Way
from benchmarks.models import R, Residents, assert_same, in_ours, in_peft, residents, tokens

NEW = "new"


def attach(bench: Bench) -> Iterator[Figure]:
    """With no other adapter on the model, with 1, with 32 and, in lora-hub only, with 200."""
    found = residents(bench.folder, (R,) * 32)
    directory = found.directories["task0"]
    _check(found, directory)
    ours = {count: in_ours(copy.deepcopy(found.base), _others(found, count)) for count in (0, 1, 200)} | {
        32: found.ours
    }
    theirs = {1: in_peft(copy.deepcopy(found.base), _others(found, 1)), 32: found.peft}
    ways = {f"ours {count}": _ours(model, directory) for count, model in ours.items()}
    ways |= {f"peft {count}": _further(model, directory) for count, model in theirs.items()}
    ways["peft 0"] = _first(copy.deepcopy(found.base), directory)
    times = bench.time(ways)
    for count in (0, 1, 32, 200):
        samples = {way: times[f"{way} {count}"] for way in ("ours", "peft") if f"{way} {count}" in times}
        name = "attach" if count == 0 else f"attach, {count} there"
        yield Figure(name=name, samples=samples, goal=0.05 if count == 0 else None)
    yield Figure(
        name="attach, 200 there against none there",
        samples={"ours": [many / none for many, none in zip(times["ours 200"], times["ours 0"], strict=True)]},
        unit="",
        against=None,
    )


def _others(found: Residents, count: int) -> dict[str, Path]:
    directories = list(found.directories.values())
    return {f"other{number}": directories[number % len(directories)] for number in range(count)}


def _ours(model: nn.Module, directory: Path) -> Way:
    def remove(handle: lora_hub.AppliedAdapter) -> None:
        handle.remove()

    return Way(call=functools.partial(lora_hub.apply_adapter, model, directory, name=NEW), repeat=3, undo=remove)


def _first(model: nn.Module, directory: Path) -> Way:
    return Way(call=functools.partial(PeftModel.from_pretrained, model, directory), undo=lambda loaded: loaded.unload())


def _further(model: PeftModel, directory: Path) -> Way:
    return Way(
        call=functools.partial(model.load_adapter, directory, adapter_name=NEW),
        undo=lambda _: model.delete_adapter(NEW),
    )


def _check(found: Residents, directory: Path) -> None:
    ids = tokens(2, 16)
    ours, theirs = copy.deepcopy(found.base), copy.deepcopy(found.base)
    lora_hub.apply_adapter(ours, directory)
    loaded = PeftModel.from_pretrained(theirs, directory).eval()
    with torch.no_grad():
        assert_same(ours(ids).logits, loaded(ids).logits)


GROUP = Group(name="attach", title="From a directory in the page cache to a model that runs", cases={"all": attach})
