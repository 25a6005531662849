"""Merge an adapter into a base, and print the peak of this process's memory in bytes.

python merged_memory.py BASE ADAPTER OUTPUT
"""

import sys
from pathlib import Path

import lora_hub


def peak() -> int:
    """Return what the kernel measured; not `ru_maxrss`, which a process inherits from the one that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    base, adapter, output = sys.argv[1:]
    lora_hub.merge_checkpoint(base, {adapter: 1.0}, output)
    sys.stdout.write(f"{peak()}\n")
