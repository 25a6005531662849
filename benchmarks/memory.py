"""The memory of a process of its own, where nothing else was measured before.

    python -m benchmarks.memory loaded|full|lora|tasks [FOLDER]

prints bytes: the peak of loading the model of `paper_claims`, and of training it as well, in full or by LoRA; or what
attaching every adapter that lies in FOLDER adds to it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

import lora_hub
from benchmarks.groups import paper_claims
from benchmarks.machine import device


def in_a_process(what: str, folder: Path | None = None) -> int:
    """Return what a new process finds."""
    command = [sys.executable, "-m", "benchmarks.memory", what, *([] if folder is None else [str(folder)])]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own module
    return int(done.stdout)


def _peak() -> int:
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    return _status("VmHWM")


def _present() -> int:
    return torch.cuda.memory_allocated() if device().type == "cuda" else _status("VmRSS")


def _status(field: str) -> int:
    """Return the bytes that the kernel reports of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def main(what: str, folder: str | None = None) -> None:
    """Do *what*, and print the bytes that it took."""
    model = paper_claims.small()
    if what == "tasks":
        before = _present()
        for directory in sorted(Path(str(folder)).iterdir()):
            lora_hub.apply_adapter(model, directory, active=False)
        print(_present() - before)
        return
    if what != "loaded":
        paper_claims.train(paper_claims.with_adapter(model) if what == "lora" else model, steps=2)
    print(_peak())


if __name__ == "__main__":
    main(*sys.argv[1:])
