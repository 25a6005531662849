"""Verify a signed adapter on this disk, and hash the same bytes with `hashlib` alone, in turn in one process.

    python -m benchmarks.verify_speed [--rounds 21] [--megabytes 50]

`lora_hub.vouch.verify` reads every file once, proves signature and digests, reads the header, gives every tensor its
purpose and looks for NaN in each. `hashlib.sha256` of the same bytes, which lie in memory already, does none of it: the
ratio of the two is what is printed. The parts are timed alone, one after the other, so they add up to more than the
whole if parts of it run at the same time. All is warm: in the page cache, and imported.
"""

import argparse
import hashlib
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.against_hub_client import write_adapter

Actions = dict[str, Callable[[], object]]

WHOLE, HASH, FILES = "verify", "sha256 in memory", "file_digest from disk"


def in_turn(actions: Actions, rounds: int) -> dict[str, float]:
    """Return the median seconds of each of *actions*; who begins changes, and one round before is not counted."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        names = list(actions)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            actions[name]()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds[1:]) for name, seconds in times.items()}


def whole(directory: Path) -> Actions:
    """Return what is compared: verify, and hashing the three files of *directory* without it."""
    from lora_hub import vouch
    from lora_hub.documents.manifest import VERSION_FILES

    paths = [directory / name for name in VERSION_FILES]
    contents = [path.read_bytes() for path in paths]

    def hash_files() -> None:
        for path in paths:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")

    return {
        WHOLE: lambda: vouch.verify(directory),
        HASH: lambda: [hashlib.sha256(content).hexdigest() for content in contents],
        FILES: hash_files,
    }


def parts(directory: Path) -> Actions:
    """Return what verify does, piece by piece, each with what the ones before it found."""
    from lora_hub.adapter_directory import read_bundles, read_manifest, read_with_files
    from lora_hub.documents.adapter_config import AdapterConfig
    from lora_hub.documents.adapter_layout import read_layout
    from lora_hub.documents.manifest import CONFIG_NAME, PAYLOAD_NAMES, WEIGHTS_NAME, FileEntry
    from lora_hub.documents.safetensors_header import is_finite, read_header
    from lora_hub.documents.verified_adapter import describe, verify
    from lora_hub.registry.proof import prove
    from lora_hub.registry.terms import current_terms

    _, files = read_with_files(directory)
    found = tuple(FileEntry.of(name, files[name]) for name in PAYLOAD_NAMES)
    config, tensors = AdapterConfig.parse(bytes(files[CONFIG_NAME])), read_header(files[WEIGHTS_NAME])
    layout = read_layout(config, tensors)
    keys = {key.fingerprint: key.public for key in current_terms().policy.keys}
    bundles = read_bundles(directory)
    return {
        "policy of this user": current_terms,
        "manifest": lambda: read_manifest(directory),
        "signature": lambda: [prove(content, keys, ()) for content in bundles.values()],
        "read, hash and prove": lambda: read_with_files(directory),
        "hash them": lambda: [FileEntry.of(name, files[name]) for name in PAYLOAD_NAMES],
        "header": lambda: read_header(files[WEIGHTS_NAME]),
        "layout": lambda: read_layout(config, tensors),
        "NaN": lambda: [is_finite(files[WEIGHTS_NAME], tensor) for tensor in tensors.values()],
        "summary": lambda: describe(config, layout, tensors, found),
        "all but reading and signature": lambda: verify(files, source=str(directory)),
    }


def signed_directory(folder: Path, megabytes: int) -> Path:
    """Return the directory of a signed version with about *megabytes* of weights, made under *folder*."""
    import lora_hub
    from lora_hub import vouch

    write_adapter(folder / "adapter", megabytes, seed=0)
    vouch.generate_key("org")
    lora_hub.push(folder / "adapter", "org/task@1.0.0", registry=folder / "registry")
    return folder / "registry" / "org" / "task" / "1.0.0"


def main() -> None:
    """Run everything and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--megabytes", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LORA_HUB_HOME"] = str(Path(folder) / "home")
        directory = signed_directory(Path(folder), arguments.megabytes)
        times = in_turn(whole(directory), arguments.rounds)
        pieces = in_turn(parts(directory), arguments.rounds)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{machine}, {arguments.megabytes} MB of weights, medians of {arguments.rounds}, warm.")
    print("\n| | ms | verify / this |")
    print("| --- | --- | --- |")
    for name, seconds in times.items():
        print(f"| {name} | {seconds * 1000:.1f} | {times[WHOLE] / seconds:.2f} |")
    print("\n| part of verify, alone | ms |")
    print("| --- | --- |")
    for name, seconds in pieces.items():
        print(f"| {name} | {seconds * 1000:.2f} |")


if __name__ == "__main__":
    main()
