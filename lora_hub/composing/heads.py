"""Replaced modules (`modules_to_save`) in a composition: kept where there is one answer, else refused by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lora_hub.composing.inputs import Input
from lora_hub.documents.module_names import owners_of
from lora_hub.errors import CompatibilityError

Heads = dict[str, dict[str, Tensor]]  # the parameters by name, by the path of the module


def common_heads(inputs: Sequence[Input]) -> Heads:
    """Return the replaced modules of all *inputs*, as they lie in the files.

    Raises:
        CompatibilityError: Two inputs replace one module by different ones, or one adapts what the other replaces.
    """
    heads: Heads = {}
    owners: dict[str, Input] = {}
    for one in inputs:
        for path in one.adapter.layout.heads:
            own = one.head(path)
            if path in heads and not _are_same(heads[path], own):
                raise CompatibilityError(
                    f"`{owners[path].name}` and `{one.name}` replace `{path}` (modules_to_save) by different modules",
                    hint="whole modules are not deltas and do not add up: train the adapters on one head, or leave "
                    "one of them out",
                )
            heads.setdefault(path, own)
            owners.setdefault(path, one)
    _check_nothing_is_adapted(inputs, owners)
    return heads


def _are_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def _check_nothing_is_adapted(inputs: Sequence[Input], owners: dict[str, Input]) -> None:
    for one in inputs:
        for path in one.modules:
            replaced = next((head for head in (*owners_of(path), path) if head in owners), None)
            if replaced is not None and owners[replaced] is not one:
                raise CompatibilityError(
                    f"`{one.name}` adapts `{path}`, `{owners[replaced].name}` replaces `{replaced}` (modules_to_save)",
                    hint="a delta belongs to the weight that it was trained on: leave one of them out",
                )
