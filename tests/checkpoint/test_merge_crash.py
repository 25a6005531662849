"""A merge that is killed leaves no model, and goes on to the same bytes. The kills are real: see `killed_merge.py`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from bases import content

from lora_hub.checkpoint.journal import alone_in
from lora_hub.errors import MachineError

KILLED_MERGE = Path(__file__).with_name("killed_merge.py")
ENOUGH_STEPS = 20  # kills that the issue asks for; `make test-all` kills at every step
FEW = 6  # in the quick suite


@pytest.fixture
def run(base, adapter):
    """Merge in a process of its own that dies at a step, or does not."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(KILLED_MERGE)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def run(output: Path, *options: str, kill_at: int = 0) -> dict:
            words = ["merge", str(base), str(adapter), "-o", str(output), *options]
            process.stdin.write(json.dumps({"kill_at": kill_at, "root": str(output), "words": words}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()


def check_killed_at(run, expected, output: Path, step: int) -> None:
    """Kill at *step*: what is left is no model unless it is the whole one, and going on makes it whole."""
    assert run(output, kill_at=step)["code"] == -signal.SIGKILL
    left = content(output) if output.exists() else {}
    if "config.json" in left:
        assert {name: left.get(name) for name in expected} == expected
    for name in left.keys() & expected.keys():
        assert left[name] == expected[name]
    again = run(output, "--resume")
    assert again["code"] == 0, again["stderr"]
    assert content(output) == expected


def kill_points(steps: int, count: int) -> list[int]:
    """Return *count* steps, the first and the last one among them."""
    return sorted({1 + round(number * (steps - 1) / (count - 1)) for number in range(count)})


@pytest.mark.parametrize("count", [FEW, pytest.param(10_000, marks=pytest.mark.full)])
def test_a_killed_merge_goes_on_to_the_same_bytes(tmp_path, run, count):
    """At each of some steps on the file system, from the first to the last, or at every one."""
    steps = run(tmp_path / "whole")["steps"]
    expected = content(tmp_path / "whole")
    assert steps > ENOUGH_STEPS
    for step in kill_points(steps, min(count, steps)):
        check_killed_at(run, expected, tmp_path / f"killed{step}", step)


def test_two_merges_into_one_directory_do_not_mix(tmp_path, base, adapter, merge):
    """The second one is told to wait."""
    (tmp_path / "merged").mkdir()

    with alone_in(tmp_path / "merged"), pytest.raises(MachineError, match="another process"):
        merge(base, adapter)
