"""What an adapter costs the host in each projection: one row through one linear module, where arithmetic is nothing."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import torch
from torch import nn

import lora_hub
from benchmarks.figures import Figure
from benchmarks.group import Bench, Group
from benchmarks.machine import device
from benchmarks.measure import Way
from benchmarks.models import R, assert_same, in_peft, write_adapters

FEATURES = 256
LOOP = 1000


def host(bench: Bench) -> Iterator[Figure]:
    """``[1, 1, 256]`` through ``nn.Linear(256, 256)``, a thousand times."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(FEATURES, FEATURES)).to(device()).eval()
    directories = write_adapters(base, bench.folder / "host", (R,), targets=("0",))
    ours, theirs = copy.deepcopy(base), in_peft(copy.deepcopy(base), directories)
    lora_hub.apply_adapter(ours, directories["task0"])
    modules = {"base": base[0], "ours": ours[0], "peft": theirs.base_model.model[0]}
    x = torch.randn(1, 1, FEATURES, device=device())
    with torch.no_grad():
        assert_same(modules["ours"](x), modules["peft"](x))
        ways = {way: Way(call=functools.partial(module, x), repeat=LOOP) for way, module in modules.items()}
        times = bench.time(ways)
    yield Figure(name="one projection, one row", samples=times, above_base=True, goal=0.25)


GROUP = Group(name="host", title="Host time of one adapted projection", cases={"all": host})
