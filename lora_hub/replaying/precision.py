"""How exactly a model computes, by the dtype of its parameters, and so how far two runs of it may lie apart."""

from __future__ import annotations

import torch
from torch import nn

from lora_hub.documents.golden import DTYPES

QUANTISED = "quantised"

# Relative to the largest magnitude of the output. Against float64, MiniLM (6 layers, trained) and random LLaMAs of 2 to
# 32 layers were at most 1.1e-6 off in float32, 3.1e-3 in float16 and 2.3e-2 in bfloat16; two runs may err in opposite
# directions. In float32, the rest is for other kernels, devices and orders of summation, but not for TF32.
TOLERANCES = {"float64": 1e-4, "float32": 1e-4, "float16": 1e-2, "bfloat16": 6e-2}


def dtype_of(model: nn.Module) -> str:
    """Return the narrowest dtype among the parameters of *model*, or `QUANTISED` if one of them is no plain number."""
    dtypes = {parameter.dtype for parameter in model.parameters()}
    names = {str(dtype).removeprefix("torch.") for dtype in dtypes}
    is_quantised = getattr(getattr(model, "config", None), "quantization_config", None) is not None
    if is_quantised or not names <= set(DTYPES) or not names:
        return QUANTISED
    return str(max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)).removeprefix("torch.")


def tolerance(recorded: str, replayed: str) -> float | None:
    """Return how far outputs in these two dtypes may lie apart, or None where nothing is known."""
    known = [TOLERANCES.get(recorded), TOLERANCES.get(replayed)]
    return None if None in known else max(value for value in known if value is not None)
