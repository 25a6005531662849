"""Run lora-hub and PEFT in turn in one process, and write down what both take.

    python -m benchmarks [--only NAME...] [--rounds 15] [--out FILE.json | --save] [--fresh]

Each case is written into the file as soon as it is done; run again with the same file, and what is in it already is not
measured again. Beside the file lie a Markdown page and a picture of the same name.
"""

from __future__ import annotations

import argparse
import datetime as dt
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# Nothing here is on the Hub, and nobody is asked whether it is.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRANSFORMERS_VERBOSITY": "error"}

from benchmarks import machine
from benchmarks.groups import GROUPS
from benchmarks.results import OtherConditionsError, Results
from benchmarks.run import run, select, write_reports

RESULTS = Path(__file__).with_name("results")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; return 1 if a case failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    cases = select(options.only)
    if not cases:
        parser.error(f"nothing is called {' or '.join(options.only)}; there are\n{_list_of_cases()}")
    about = {"hardware": machine.hardware(), "versions": machine.versions(), "rounds": options.rounds}
    date = dt.datetime.now(tz=dt.UTC).date().isoformat()
    try:
        results = Results.open(_path(options, date), about, date, fresh=options.fresh)
    except OtherConditionsError as error:
        parser.error(str(error))
    print(f"results: {results.path}; `--out {results.path}` continues there", flush=True)
    failed = run(cases, results)
    for path in write_reports(results):
        print(path)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"cases:\n{_list_of_cases()}",
    )  # fmt: skip
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="groups, cases, group/case; * as in shells"
    )
    parser.add_argument("--rounds", type=int, default=15, help="samples of each; a few slow cases take 5 at most")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--out", type=Path, metavar="FILE.json", help="where to write, and what to continue")
    place.add_argument("--save", action="store_true", help=f"write to {RESULTS.name}/, named by date and device")
    parser.add_argument("--fresh", action="store_true", help="measure again what the file has")
    return parser


def _list_of_cases() -> str:
    return "\n".join(f"  {group.name}/{case}" for group in GROUPS for case in group.cases)


def _path(options: argparse.Namespace, date: str) -> Path:
    name = f"{date}-peft-{machine.device().type}.json"
    if options.save:
        return RESULTS / name
    return options.out or Path(tempfile.mkdtemp(prefix="lora-hub-bench-")) / name


if __name__ == "__main__":
    sys.exit(main())
