"""Processes that run the command line against a Hub on this machine, several of them at the same moment.

    python publishers.py WORD...

Run as a script, it imports all that it will need, says `ready`, and runs the command line when a line comes on stdin.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub  # not there when this runs as a script

NO_XET = {"HF_HUB_DISABLE_XET": "1"}


@dataclass(frozen=True)
class Outcome:
    """What a process did: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


def environment(hub: LoopbackHub, home: Path, **changes: str) -> dict[str, str]:
    """Return the environment of a user with a home of their own, for whom *hub* is the Hub."""
    kept = {name: value for name, value in os.environ.items() if name not in {"HF_HUB_OFFLINE", "LORA_HUB_REGISTRY"}}
    own = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": hub.token,
        "HF_HOME": str(home / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "LORA_HUB_HOME": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return kept | own | changes


def run_cli(words: Sequence[object], env: dict[str, str]) -> Outcome:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "lora_hub", *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    return Outcome(done.returncode, done.stdout, done.stderr)


def race(commands: Iterable[tuple[Sequence[object], dict[str, str]]]) -> list[Outcome]:
    """Run each of *commands*, words and environment, in a process; they begin when the last of them is ready."""
    running = [_start(words, env) for words, env in commands]
    for process in running:
        assert process.stdout.readline() == "ready\n"
    for process in running:
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate() for process in running]
    return [Outcome(process.returncode, *texts) for process, texts in zip(running, said, strict=True)]


def _start(words: Sequence[object], env: dict[str, str]) -> subprocess.Popen:
    pipe = subprocess.PIPE
    command = [sys.executable, __file__, *map(str, words)]
    return subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _main() -> int:
    from lora_hub import api  # noqa: F401 - what is imported now is not imported in the race
    from lora_hub.cli import run
    from lora_hub.registry.hub import HubRegistry  # noqa: F401

    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(_main())
