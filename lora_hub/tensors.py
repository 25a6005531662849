"""The bytes of an adapter as tensors: views of what was proven, never a copy that could differ from it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lora_hub.documents.verified_adapter import VerifiedAdapter

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}  # in a safetensors header


def tensor_of(adapter: VerifiedAdapter, key: str) -> Tensor:
    """Return the tensor that stands at *key* in the file of *adapter*, as a view of its bytes where torch allows it."""
    info = adapter.tensors[key]
    dtype = DTYPES[info.dtype]
    content, start = adapter.buffer, info.start
    if isinstance(content, bytes) or start % dtype.itemsize:
        # torch wants a writable and aligned buffer.
        content, start = bytearray(content[start : info.stop]), 0
    return torch.frombuffer(content, dtype=dtype, count=math.prod(info.shape), offset=start).view(info.shape)
