"""Check every adapter of a registry on this disk, against one base, in as many processes as there are cores.

    python -m benchmarks.check_speed [--adapters 1000] [--megabytes 8] [--jobs 1 2]

The registry is a directory of unsigned versions, all of one shape and each with its own numbers: q of some layers, in
float32. The base is a LLaMA of that shape, whose weights are holes in a file. What is timed is the command, started
anew: finding the versions, reading the base's headers, starting the processes, reading and hashing every byte, all
rules, and printing the report. The files lie in the page cache.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lora_hub
from benchmarks.against_hub_client import write_adapter
from lora_hub.documents.safetensors_header import read_header, write_header


def registry_of(folder: Path, adapters: int, megabytes: int) -> Path:
    """Return a registry with as many *adapters* under *folder*; they are one, each with other first numbers."""
    write_adapter(folder / "adapter", megabytes, seed=0)
    lora_hub.push(folder / "adapter", "org/task-0@1.0.0", registry=folder / "registry")
    weights = folder / "adapter" / "adapter_model.safetensors"
    start = min(tensor.start for tensor in read_header(weights.read_bytes()).values())
    (folder / "adapter" / "lora-hub.json").unlink(missing_ok=True)
    for number in range(1, adapters):
        with weights.open("r+b") as file:
            file.seek(start)
            file.write(number.to_bytes(2, "little") + b"\x00\x3c")
        lora_hub.push(folder / "adapter", f"org/task-{number}@1.0.0", registry=folder / "registry")
    return folder / "registry"


def base_of(folder: Path) -> Path:
    """Return a base model that the adapter under *folder* fits, with holes for weights."""
    tensors = read_header((folder / "adapter" / "adapter_model.safetensors").read_bytes())
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for key, info in tensors.items():
        if key.endswith(".lora_B.weight"):
            path = key.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            inputs = tensors[key.replace("lora_B", "lora_A")].shape[1]
            shapes[f"{path}.weight"] = ("BF16", (info.shape[0], inputs))
    header = write_header(shapes, {"format": "pt"})
    size = len(header) + sum(2 * rows * columns for _, (rows, columns) in shapes.values())
    base = folder / "base"
    base.mkdir()
    (base / "model.safetensors").write_bytes(header)
    os.truncate(base / "model.safetensors", size)
    (base / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    return base


def seconds_of(registry: Path, base: Path, jobs: int) -> float:
    """Return how long the command takes; it must find every adapter, and no error."""
    words = ["check", "--all", "", "--registry", str(registry), "--base", str(base), "--jobs", str(jobs), "--json"]
    start = time.perf_counter()
    command = [sys.executable, "-m", "lora_hub", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr + done.stdout[-2000:]
    return seconds


def main() -> None:
    """Run everything and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--adapters", type=int, default=1000)
    parser.add_argument("--megabytes", type=int, default=8)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--folder", type=Path, default=None, help="where the registry is made; by default a new one")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    os.environ["LORA_HUB_HOME"] = str(folder / "home")
    try:
        registry = registry_of(folder, arguments.adapters, arguments.megabytes)
        base = base_of(folder)
        times = {jobs: seconds_of(registry, base, jobs) for jobs in arguments.jobs}
    finally:
        shutil.rmtree(folder)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{machine}, {arguments.adapters:,} adapters of {arguments.megabytes} MB, one run each, in the page cache.")
    print("\n| processes | seconds | adapters / s | MB / s |")
    print("| --- | --- | --- | --- |")
    for jobs, seconds in times.items():
        rate = arguments.adapters / seconds
        print(f"| {jobs} | {seconds:.1f} | {rate:.0f} | {rate * arguments.megabytes:.0f} |")


if __name__ == "__main__":
    main()
