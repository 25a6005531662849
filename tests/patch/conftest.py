"""Fixtures of the torch tests."""

import models
import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(params=sorted(models.FAMILIES))
def family(request):
    """One of the three families."""
    return models.FAMILIES[request.param]


@pytest.fixture
def model(family):
    """A tiny random model of the family."""
    return family.build()


@pytest.fixture
def adapter(model):
    """A trainable adapter with targets q and v that changes the outputs."""
    import lora_hub

    handle = lora_hub.add_adapter(model, "task")
    models.randomise(models.adapter_parameters(model))
    return handle


@pytest.fixture
def saved(model, tmp_path):
    """The directory of a saved q, v adapter for the model, which itself is bare again."""
    import lora_hub

    handle = lora_hub.add_adapter(model, "task")
    models.randomise(models.adapter_parameters(model))
    lora_hub.save_adapter(handle, tmp_path / "saved")
    handle.remove()
    return tmp_path / "saved"
