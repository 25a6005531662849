"""Change documents and read them, for minutes or for ever: what is neither accepted nor refused as it must be is saved.

    cd tests; python -m fuzz [--minutes N] [--format NAME]... [--seed TEXT] [--save DIR]

A seed makes the same documents on every machine; those of the tests are `tests 0`, `tests 1` and so on. It ends with 1
if something was saved.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fuzz.formats import FORMATS

ROUND = 500  # documents of one format before it is the turn of the next one


@dataclass(slots=True)
class Tally:
    """What was done with one format; `places` are where errors came from that must not come."""

    documents: int = 0
    accepted: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    places: set[tuple[str, int | None]] = field(default_factory=set)

    def __str__(self) -> str:
        rate = self.documents / self.seconds if self.seconds else 0.0
        return (
            f"{self.documents:>10,} documents, {rate:>7,.0f} a second, slowest {self.slowest * 1000:>5.0f} ms, "
            f"{self.accepted:>8,} accepted, {len(self.places)} errors"
        )


def fuzz(name: str, seeds: Iterator[str], tally: Tally, save: Path) -> None:
    """Read the documents that *seeds* make, and save the first of each kind that goes wrong."""
    for seed in seeds:
        content = FORMATS[name].mutant(seed)
        start = time.perf_counter()
        try:
            tally.accepted += FORMATS[name].is_accepted(content)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what we are looking for
            _save(name, seed, content, error, tally, save)
        seconds = time.perf_counter() - start
        tally.documents += 1
        tally.seconds += seconds
        tally.slowest = max(tally.slowest, seconds)


def _save(name: str, seed: str, content: bytes, error: Exception, tally: Tally, save: Path) -> None:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = (frame.filename, frame.lineno)
    if place in tally.places:
        return
    tally.places.add(place)
    save.mkdir(parents=True, exist_ok=True)
    path = save / f"{name}-{seed.replace(' ', '-').replace('/', '-')}"
    path.write_bytes(content)
    _say(f"{path}: {type(error).__name__}: {error}", *traceback.format_tb(error.__traceback__)[-2:])


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))


def turns(names: Sequence[str], end: float) -> Iterator[tuple[str, range]]:
    """Yield whose turn it is, and with which numbers, until the time *end*."""
    for first in itertools.count(0, ROUND):
        for name in names:
            if time.monotonic() >= end:
                return
            yield name, range(first, first + ROUND)


def main() -> int:
    """Run until the time is over or somebody interrupts it, and print what was done."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="how long; for ever unless it is given")
    parser.add_argument("--format", action="append", choices=sorted(FORMATS), help="which documents; all by default")
    parser.add_argument("--seed", default="0", help="what the documents are made from")
    parser.add_argument("--save", type=Path, default=Path("fuzz-findings"), help="where what goes wrong is kept")
    arguments = parser.parse_args()
    names = arguments.format or sorted(FORMATS)
    tallies = {name: Tally() for name in names}
    try:
        for name, numbers in turns(names, time.monotonic() + 60 * arguments.minutes):
            fuzz(name, (f"{arguments.seed} {number}" for number in numbers), tallies[name], arguments.save)
    except KeyboardInterrupt:
        _say("interrupted")
    for name, tally in tallies.items():
        _say(f"{name:<10}{tally}")
    return int(any(tally.places for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
