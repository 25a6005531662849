"""How many graphs `torch.compile` makes of one model while its adapters come, change and go.

A backend that runs the graphs as they are counts them. lora-hub has to get along with two, for the bare model and the
adapted one, and without a graph break; PEFT may break them, and has no compiled way to route, which it leaves out. What
the compiled models say is compared with PEFT's eager outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
from peft import PeftModel
from torch import Tensor, fx, nn

import lora_hub
from benchmarks.figures import Figure
from benchmarks.group import Bench, Group
from benchmarks.models import Directories, R, assert_same, in_peft, llama, tokens, write_adapters

LAYERS = 4
ENOUGH = 64  # recompilations, before dynamo gives up
WEIGHTS = {"task0": 0.7, "task1": 0.3}
STEPS = "compile, attach, use, None, route, sum, a new rank"


class Counting:
    """A backend of `torch.compile` that counts what it is given, and compiles nothing."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: fx.GraphModule, _: Sequence[object]) -> Callable[..., object]:
        """Return *graph* itself, to be run as it is."""
        self.graphs += 1
        return graph.forward


def graphs(bench: Bench) -> Iterator[Figure]:
    """Take a model through all of the steps, compiled once."""
    base, ids = llama(LAYERS), tokens(2, 8)
    directories = write_adapters(base, bench.folder / "graphs", (R, R, R // 2))
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=ENOUGH):  # noqa: SLF001 - where torch has it
        expected = _expected(copy.deepcopy(base), directories, ids)
        counts = {
            way: [float(count(copy.deepcopy(base), directories, ids, expected))]
            for way, count in (("ours", _ours), ("peft", _peft))
        }
    yield Figure(name=f"graphs: {STEPS}", samples=counts, unit="", against=None, goal=2)


def _expected(model: nn.Module, directories: Directories, ids: Tensor) -> dict[str, Tensor]:
    """Return what each step gives, in PEFT, eager."""
    loaded = in_peft(model, directories)
    with loaded.disable_adapter():
        expected = {"base": loaded(ids).logits}
    expected["route"] = loaded(ids, adapter_names=["task0", "task1"]).logits
    _add_sum(loaded)
    for name in (*directories, "sum"):
        loaded.set_adapter(name)
        expected[name] = loaded(ids).logits
    return expected


def _add_sum(loaded: PeftModel) -> None:
    loaded.add_weighted_adapter(list(WEIGHTS), list(WEIGHTS.values()), "sum", combination_type="cat")


def _ours(model: nn.Module, directories: Directories, ids: Tensor, expected: dict[str, Tensor]) -> int:
    torch.compiler.reset()
    backend = Counting()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    assert_same(compiled(ids).logits, expected["base"])
    lora_hub.apply_adapter(model, directories["task0"])
    assert_same(compiled(ids).logits, expected["task0"])
    lora_hub.apply_adapter(model, directories["task1"], active=False)
    choices = {"task1": "task1", "base": None, "sum": WEIGHTS}
    for step, choice in choices.items():
        with lora_hub.use(model, choice):
            assert_same(compiled(ids).logits, expected[step])
    with lora_hub.route(model, ["task0", "task1"]):
        assert_same(compiled(ids).logits, expected["route"])
    lora_hub.apply_adapter(model, directories["task2"], active=False)
    with lora_hub.use(model, "task2"):
        assert_same(compiled(ids).logits, expected["task2"])
    return backend.graphs


def _peft(model: nn.Module, directories: Directories, ids: Tensor, expected: dict[str, Tensor]) -> int:
    torch.compiler.reset()
    backend = Counting()
    compiled = torch.compile(model, backend=backend)
    assert_same(compiled(ids).logits, expected["base"])
    loaded = PeftModel.from_pretrained(model, directories["task0"], adapter_name="task0").eval()
    assert_same(compiled(ids).logits, expected["task0"])
    loaded.load_adapter(directories["task1"], adapter_name="task1")
    loaded.set_adapter("task1")
    assert_same(compiled(ids).logits, expected["task1"])
    with loaded.disable_adapter():
        assert_same(compiled(ids).logits, expected["base"])
    _add_sum(loaded)
    loaded.set_adapter("sum")
    assert_same(compiled(ids).logits, expected["sum"])
    loaded.load_adapter(directories["task2"], adapter_name="task2")
    loaded.set_adapter("task2")
    assert_same(compiled(ids).logits, expected["task2"])
    return backend.graphs


GROUP = Group(name="graphs", title="Graphs of one compiled model", cases={"all": graphs})
