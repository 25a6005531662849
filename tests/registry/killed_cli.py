"""Run the command line, and kill this very process with SIGKILL at its n-th step on the file system.

    python killed_cli.py N BYTES ROOT WORD...

A step is a file-system event that Python audits (open, rename, mkdir, remove, …) on a path under ROOT, or a call of
`write`, `flush`, `fsync` or `close` on a file. The process dies before the step, so every state between two is seen.
N = 0 kills nothing. No file may grow beyond BYTES, as on a disk that is full; -1 is no limit. When the command ends by
itself, the number of steps is the last line on stderr.

Audit events: https://docs.python.org/3/library/audit_events.html
"""

import os
import resource
import signal
import sys
from pathlib import Path

_AUDITED = {
    "open",
    "os.link",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.symlink",
    "os.truncate",
    "os.utime",
    "shutil.copyfile",
    "shutil.move",
    "shutil.rmtree",
}
_CALLED = {"write", "flush", "fsync", "close", "truncate", "ftruncate", "sendfile"}


class Steps:
    """Counts the steps, and dies at one of them."""

    def __init__(self, last: int, root: str) -> None:
        self.last = last
        self.root = str(Path(root).resolve())
        self.count = 0

    def audit(self, event: str, arguments: tuple) -> None:
        """Count an audited event on a path under the root."""
        if event in _AUDITED and any(self._is_inside(argument) for argument in arguments[:2]):
            self.step()

    def profile(self, frame, event: str, function) -> None:
        """Count a call of a built-in that moves bytes, made by the package's own module of files."""
        is_ours = frame.f_globals.get("__name__") == "lora_hub.files"
        if event == "c_call" and is_ours and function.__name__ in _CALLED:
            self.step()

    def step(self) -> None:
        """One step more; the last one is never made."""
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_inside(self, argument: object) -> bool:
        return isinstance(argument, str | os.PathLike) and str(Path(argument).absolute()).startswith(self.root)


def main() -> int:
    """Run the command line that the arguments spell."""
    from lora_hub import api  # noqa: F401 - what is imported now is not imported among the steps
    from lora_hub.cli import run

    last, size, root, *words = sys.argv[1:]
    steps = Steps(int(last), root)
    if int(size) >= 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(size), int(size)))
    sys.addaudithook(steps.audit)
    sys.setprofile(steps.profile)
    code = run(words)
    sys.setprofile(None)
    sys.stderr.write(f"{steps.count}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
