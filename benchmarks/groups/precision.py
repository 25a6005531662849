"""One bfloat16 layer against float64: how far the rounding of each side is from what should come out.

The deltas are given in units of W, by their RMS. lora-hub rounds the sum of base and delta once, in the products of
bfloat16; PEFT computes the delta of float32 adapters in float32.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import lora_hub
from benchmarks.figures import Figure
from benchmarks.group import Bench, Group
from benchmarks.machine import device
from benchmarks.models import R

HIDDEN, ROWS = 1024, 2048
STD = 0.02  # of W


def error(bench: Bench, *, strength: float) -> Iterator[Figure]:
    """The relative RMS error, in thousandths, under an adapter whose delta is *strength* of W."""
    torch.manual_seed(1)
    layer = nn.Sequential(nn.Linear(HIDDEN, HIDDEN, bias=False)).bfloat16()
    nn.init.normal_(layer[0].weight, std=STD)
    theirs = get_peft_model(copy.deepcopy(layer), LoraConfig(r=R, lora_alpha=R, target_modules=["0"]))
    A, B = torch.randn(R, HIDDEN), torch.randn(HIDDEN, R) * strength * STD / R**0.5
    adapted = theirs.base_model.model[0]
    with torch.no_grad():
        adapted.lora_A["default"].weight.copy_(A)
        adapted.lora_B["default"].weight.copy_(B)
        theirs.save_pretrained(str(bench.folder / f"{strength}"))
        ours = copy.deepcopy(layer)
        lora_hub.apply_adapter(ours, bench.folder / f"{strength}", name="task")
        x = torch.randn(ROWS, HIDDEN).bfloat16()
        exact = x.double() @ (layer[0].weight.double() + B.double() @ A.double()).T
        samples = {way: [_rms(model.to(device()), x, exact)] for way, model in (("ours", ours), ("peft", theirs))}
    goal = 1.02 if strength <= 0.1 else None
    yield Figure(name=f"RMS error in bfloat16, delta of {strength:.0%} of W", samples=samples, unit="", goal=goal)


def _rms(model: nn.Module, x: Tensor, exact: Tensor) -> float:
    """Return the RMS of the error in thousandths of that of the output."""
    difference = model(x.to(device())).double().cpu() - exact
    return 1000 * (difference.square().mean() / exact.square().mean()).sqrt().item()


GROUP = Group(
    name="precision",
    title="Rounding in bfloat16, against float64",
    cases={f"{strength:.0%}": functools.partial(error, strength=strength) for strength in (0.01, 0.03, 0.1, 0.3)},
)
