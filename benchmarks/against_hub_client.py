"""Pull and push one adapter through a Hub on loopback, here and with huggingface_hub alone, in turn in one process.

    python -m benchmarks.against_hub_client [--rounds 15] [--megabytes 64] [--gigabit]

Throughputs are printed as ratios; above 1 means that lora-hub is faster. It proves every byte on the way and syncs what
it keeps; `snapshot_download` and `create_commit` of the same files do neither. The Hub is the one of the tests, in a
process of its own, on the same cores: as fast as the machine, or with downloads at 1 Gbit/s.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from adapter_files import join_header, lora_key, peft_config, to_json  # noqa: E402 - after its folder is known

R, FEATURES = 8, 4096


def write_adapter(directory: Path, megabytes: int, seed: int) -> None:
    """Write a PEFT adapter whose weights have about *megabytes*, other ones for each *seed*."""
    size = R * FEATURES * 4
    header, position = {}, 0
    for layer in range(megabytes * 2**20 // (2 * size)):
        for side, shape in (("A", [R, FEATURES]), ("B", [FEATURES, R])):
            key = lora_key(f"model.layers.{layer}.self_attn.q_proj", side)
            header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [position, position + size]}
            position += size
    directory.mkdir(parents=True)
    # No exponent has all its bits set: every number is finite.
    numbers = bytearray(random.Random(seed).randbytes(position))  # noqa: S311 - no secret
    numbers[3::4] = bytes(len(numbers) // 4)
    (directory / "adapter_model.safetensors").write_bytes(join_header(header, bytes(numbers)))
    (directory / "adapter_config.json").write_bytes(to_json(peft_config(r=R, target_modules=["q_proj"])))


@contextlib.contextmanager
def hub_on_loopback(home: Path, rate: float | None = None) -> Iterator[None]:
    """Run the Hub of the tests in a process of its own, and have this process take it for the only one."""
    command = [sys.executable, "-m", "loopback_hub", *([] if rate is None else ["--rate", str(rate)])]
    environment = {**os.environ, "HF_HOME": str(home / "server")}
    with subprocess.Popen(  # noqa: S603 - our own server
        command, cwd=TESTS, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as hub:
        answer = json.loads(hub.stdout.readline())
        os.environ |= {
            "HF_ENDPOINT": answer["endpoint"],
            "HF_TOKEN": answer["token"],
            "HF_HOME": str(home / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "LORA_HUB_HOME": str(home / "lora-hub"),
        }
        yield
        hub.terminate()


def timed(action: Callable[[], object]) -> float:
    """Return the seconds that *action* takes; what was written before it is on disk already."""
    os.sync()
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turn(
    rounds: int,
    ours: Callable[[int], object],
    theirs: Callable[[int], object],
    clean: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """Return the median seconds of both; who begins alternates, and one round before is not counted.

    `clean` runs, untimed, after each.
    """
    times: dict[Callable[[int], object], list[float]] = {ours: [], theirs: []}
    for number in range(rounds + 1):
        for action in (ours, theirs) if number % 2 else (theirs, ours):
            times[action].append(timed(lambda action=action, number=number: action(number)))
            clean()
    return statistics.median(times[ours][1:]), statistics.median(times[theirs][1:])


def pull_times(home: Path, rounds: int) -> tuple[float, float]:
    """Return the median seconds of a first pull and of a first `snapshot_download` of the same version."""
    from huggingface_hub import snapshot_download

    import lora_hub

    def ours(_: int) -> None:
        lora_hub.pull("org/pulled@1.0.0")

    def theirs(number: int) -> None:
        snapshot_download("org/pulled", revision="v1.0.0", cache_dir=home / "cache" / str(number))

    def clean() -> None:
        shutil.rmtree(home / "lora-hub" / "store", ignore_errors=True)
        shutil.rmtree(home / "cache", ignore_errors=True)

    return in_turn(rounds, ours, theirs, clean)


def push_times(home: Path, rounds: int, megabytes: int, mode: str) -> tuple[float, float]:
    """Return the median seconds of a push and of `create_repo`, `create_commit` and `create_tag` of as much content."""
    from huggingface_hub import CommitOperationAdd, HfApi

    import lora_hub

    api = HfApi()
    for number in range(rounds + 1):
        for side in ("ours", "theirs"):
            write_adapter(home / side / f"{mode}-{number}", megabytes, seed=hash((mode, side, number)))

    def ours(number: int) -> None:
        lora_hub.push(home / "ours" / f"{mode}-{number}", f"org/ours-{mode}-{number}@1.0.0")

    def theirs(number: int) -> None:
        repo, directory = f"org/theirs-{mode}-{number}", home / "theirs" / f"{mode}-{number}"
        api.create_repo(repo)
        files = [CommitOperationAdd(path.name, path) for path in directory.iterdir()]
        api.create_commit(repo, files, commit_message="Publish")
        api.create_tag(repo, tag="v1.0.0")

    return in_turn(rounds, ours, theirs)


def main() -> None:
    """Run everything and print it as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--gigabit", action="store_true", help="downloads share 1 Gbit/s; pushes are left out")
    arguments = parser.parse_args()
    speed, rate = (", 1 Gbit/s", 1e9 / 8) if arguments.gigabit else ("", None)
    with tempfile.TemporaryDirectory() as folder, hub_on_loopback(home := Path(folder), rate):
        import huggingface_hub

        import lora_hub

        write_adapter(home / "adapter", arguments.megabytes, seed=0)
        lora_hub.push(home / "adapter", "org/pulled@1.0.0")
        cases: dict[str, tuple[float, float]] = {}
        for mode, is_off in (("Xet", False), ("LFS", True)):
            huggingface_hub.constants.HF_HUB_DISABLE_XET = is_off
            cases[f"pull / snapshot_download, {mode}{speed}"] = pull_times(home, arguments.rounds)
            if not arguments.gigabit:
                times = push_times(home, arguments.rounds, arguments.megabytes, mode)
                cases[f"push / create_commit, {mode}"] = times
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(f"{machine}, huggingface_hub {huggingface_hub.__version__}, {arguments.megabytes} MB of weights, "
          f"medians of {arguments.rounds}.")  # fmt: skip
    print("\n| | lora-hub, ms | huggingface_hub, ms | throughput, lora-hub / huggingface_hub |")
    print("| --- | --- | --- | --- |")
    for case, (ours, theirs) in cases.items():
        print(f"| {case} | {ours * 1000:.0f} | {theirs * 1000:.0f} | {theirs / ours:.2f} |")


if __name__ == "__main__":
    main()
