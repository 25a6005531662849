"""Merge an adapter into a checkpoint in a process of its own, and print what it took: seconds, and bytes at the peak.

    python benchmarks/merge_process.py ours|peft BASE ADAPTER OUTPUT

Not a module of the package, whose groups import everything: each way imports only what it needs. The seconds are those
after the imports; the bytes are all of the process's.
"""

import json
import os
import sys
import time
from pathlib import Path


def merge(base: str, adapter: str, output: str) -> float:
    """Merge with lora-hub; return when it began."""
    import lora_hub
    import lora_hub.checkpoint.merge
    import lora_hub.checkpoint.planning

    start = time.perf_counter()
    lora_hub.merge_checkpoint(base, {adapter: 1.0}, output)
    return start


def merge_in_peft(base: str, adapter: str, output: str) -> float:
    """Load, merge and save with transformers and PEFT; return when it began."""
    import torch
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    start = time.perf_counter()
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(output, max_shard_size="300MB")
    return start


def main() -> None:
    """Do what the arguments say."""
    way, *arguments = sys.argv[1:]
    start = {"ours": merge, "peft": merge_in_peft}[way](*arguments)
    seconds = time.perf_counter() - start
    # What is still in the page cache is written now, so that the next process does not wait for it.
    os.sync()
    # Not `ru_maxrss`, which a process inherits from the one that started it.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    print(json.dumps({"seconds": seconds, "peak": peak}))


if __name__ == "__main__":
    main()
