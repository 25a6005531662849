"""Fixtures of a replay: tiny models with adapters of random A and B, which change what they give by a few percent."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "patch"))

from trained import add_trained

import lora_hub

torch.set_num_threads(1)


@pytest.fixture
def saved(tmp_path):
    """Return a function that saves a trained adapter of a model into a directory, and takes it off again."""

    def saved(model, directory=tmp_path / "out", **options):
        handle = add_trained(model, **options)
        lora_hub.save_adapter(handle, directory)
        handle.remove()
        return directory

    return saved
