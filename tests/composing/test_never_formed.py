"""No matrix of the size of a weight is ever made for an adapter: every tensor is looked at as it is made."""

import pytest
import torch
from made_adapters import random_factors
from torch.utils._python_dispatch import TorchDispatchMode

from lora_hub.composing.merging import Deltas, Method, merge
from lora_hub.composing.rank import Rank
from lora_hub.composing.rules import RULES

SHAPE = (900, 700)
CASES = [
    pytest.param(rule, space, rank, id=f"{rule.name} {space} {rank}")
    for rule in RULES
    if rule.name in {"linear", "ties", "iso"}
    for space in rule.spaces
    for rank in ("exact", "8", "energy:0.5", "ratio:3")
    if rule.is_linear or space != "full" or rank != "exact"
]


class Largest(TorchDispatchMode):
    """Notes the number of entries of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.found = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **kwargs or {})
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, torch.Tensor):
                self.found = max(self.found, one.numel())
        return result


@pytest.mark.parametrize(("rule", "space", "rank"), CASES)
def test_no_tensor_has_the_size_of_the_weight(rule, space, rank):
    """Two deltas of rank 4 on 900 x 700: the largest tensor is a block, or the factors."""
    method = Method(rule=rule, settings=rule.settings({}), space=space, rank=Rank.parse(rank), seed=0)
    deltas = Deltas(
        path="q", factors=[random_factors(i, SHAPE, 4) for i in range(2)], weights=[0.7, 0.3], digests=["a", "b"]
    )
    with Largest() as largest:
        merge(deltas, method, SHAPE)

    assert SHAPE[0] * 8 <= largest.found < SHAPE[0] * SHAPE[1] / 2
