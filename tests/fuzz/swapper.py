"""Have the files of a directory be now those of one version, now those of another, until standard input ends.

    python swapper.py HOW DIRECTORY SOURCE...

Each SOURCE is a directory with the files of one version; a file that it lacks is removed. HOW is `rename`, which puts a
new file in the place of the old one, or `write`, which writes over the old one so that whoever has it open sees it
change. "ready" on standard output says that all of them were there once.
"""

from __future__ import annotations

import itertools
import os
import select
import sys
from pathlib import Path

Files = dict[str, bytes]


def put(how: str, directory: Path, files: Files, names: list[str]) -> None:
    """Make the files *names* of *directory* those in *files*, one after the other."""
    for name in names:
        path = directory / name
        if name not in files:
            path.unlink(missing_ok=True)
        elif how == "rename" or not path.exists():
            temporary = directory / f".{name}.swapped"
            temporary.write_bytes(files[name])
            temporary.replace(path)
        else:
            write_over(path, files[name])


def write_over(path: Path, content: bytes) -> None:
    """Write *content* into the file that is there already, and cut off what is left of the old one."""
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)


def main() -> int:
    """Go round the versions until nobody holds standard input open any more."""
    how, directory, *sources = sys.argv[1:]
    versions: list[Files] = [{path.name: path.read_bytes() for path in Path(source).iterdir()} for source in sources]
    names = sorted({name for files in versions for name in files})
    orders = itertools.cycle((names, names[::-1]))  # which of the files is first the new one
    for turn in itertools.count():
        if turn == len(versions):
            sys.stdout.write("ready\n")
            sys.stdout.flush()
        put(how, Path(directory), versions[turn % len(versions)], next(orders))
        if select.select([sys.stdin], [], [], 0)[0]:
            put("rename", Path(directory), versions[0], names)
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
