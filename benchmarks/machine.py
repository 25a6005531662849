"""The machine and the versions that figures belong to, and the device that is measured on."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path

import torch


@functools.cache
def device() -> torch.device:
    """Return the card if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronise() -> None:
    """Wait until the device has done what it was told."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def hardware() -> dict[str, str | int]:
    """Return what the figures were taken on."""
    found: dict[str, str | int] = {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device().type == "cuda":
        found["card"] = torch.cuda.get_device_name()
    return found


def _cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def versions() -> dict[str, str]:
    """Return the versions of all that is compared; `sources` tells apart two states of lora-hub between releases."""
    import peft
    import transformers

    import lora_hub

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "lora-hub": lora_hub.__version__,
        "sources": _digest(Path(lora_hub.__file__).parent),
    }


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
