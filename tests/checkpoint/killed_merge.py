"""Run the command line again and again, each time in a process that dies with SIGKILL at its n-th step on the output.

    python killed_merge.py <<< '{"kill_at": N, "root": ROOT, "words": [WORD, …]}'

Each line on stdin is one run, in a fork of this process, which has imported all; it is answered by a line of JSON:
the exit status as `subprocess` has it, how many steps there were, and stderr. A step is a file-system event that
Python audits on a path under ROOT, or a call of the package that moves bytes (`pwrite`, `fsync`, …), in whichever
thread. N = 0 kills nothing.
"""

import json
import os
import signal
import sys
import tempfile
import threading

_AUDITED = {"open", "os.mkdir", "os.remove", "os.rename"}
_CALLED = {"pwrite", "posix_fadvise", "fsync", "write"}


class Steps:
    """Counts the steps, and dies at one of them."""

    def __init__(self, last: int, root: str) -> None:
        self.last = last
        self.root = root
        self.count = 0
        self._lock = threading.Lock()

    def audit(self, event: str, arguments: tuple) -> None:
        """Count an audited event on a path under the root."""
        if event in _AUDITED and any(str(argument).startswith(self.root) for argument in arguments[:2]):
            self.step()

    def profile(self, frame, event: str, function) -> None:
        """Count a call of a built-in that moves bytes, made by the package's own modules."""
        name = frame.f_globals.get("__name__", "")
        if event == "c_call" and function.__name__ in _CALLED and name.startswith("lora_hub."):
            self.step()

    def step(self) -> None:
        """One step more; the last one is never made."""
        with self._lock:
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


def run_once(kill_at: int, root: str, words: list[str]) -> tuple[int, int]:
    """Run the command line that *words* spell, and return its exit code and how many steps it took."""
    from lora_hub.cli import run

    steps = Steps(kill_at, root)
    sys.addaudithook(steps.audit)
    threading.setprofile(steps.profile)
    sys.setprofile(steps.profile)
    code = run(words)
    sys.setprofile(None)
    return code, steps.count


def in_a_fork(order: dict) -> dict:
    """Carry out *order* in a process of its own."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as counted:
        child = os.fork()
        if child == 0:
            os.dup2(said.fileno(), 2)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            code, count = run_once(**order)
            counted.write(str(count).encode())
            counted.flush()
            os._exit(code)
        _, status = os.waitpid(child, 0)
        said.seek(0)
        counted.seek(0)
        steps = int(counted.read() or b"0")
        return {"code": os.waitstatus_to_exitcode(status), "steps": steps, "stderr": said.read().decode()}


def main() -> None:
    """Answer each line on stdin."""
    import lora_hub.checkpoint.merge
    import lora_hub.checkpoint.planning  # noqa: F401 - what is imported now is not imported among the steps

    for line in sys.stdin:
        print(json.dumps(in_a_fork(json.loads(line))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
