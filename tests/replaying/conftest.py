"""Fixtures of a replay: tiny models with adapters of random A and B, which change what they give by a few percent."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "patch"))

import models

import lora_hub

torch.set_num_threads(1)


def add_trained(model, name="task", size=0.05, **options):
    """Put an adapter on *model* whose B is not zero, as if it had been trained."""
    torch.manual_seed(2)
    handle = lora_hub.add_adapter(model, name, r=4, lora_alpha=8, targets=("q", "v"), **options)
    with torch.no_grad():
        for parameter in models.adapter_parameters(model):
            parameter.normal_(std=size)
    return handle


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves a trained adapter of a model into a directory, and takes it off again."""

    def saved(model, directory=tmp_path / "out", **options):
        handle = add_trained(model, **options)
        lora_hub.save_adapter(handle, directory)
        handle.remove()
        return directory

    return saved
