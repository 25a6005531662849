"""Adapters of random A and B, as if they had been trained."""

import models
import torch

import lora_hub


def add_trained(model, name="task", size=0.05, **options):
    """Put an adapter on *model* whose B is not zero, as if it had been trained."""
    torch.manual_seed(2)
    handle = lora_hub.add_adapter(model, name, r=4, lora_alpha=8, targets=("q", "v"), **options)
    with torch.no_grad():
        for parameter in models.adapter_parameters(model):
            parameter.normal_(std=size)
    return handle
