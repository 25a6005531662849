"""Run cases that are not measured yet, and write down what they give."""

from __future__ import annotations

import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import picture, report
from benchmarks.group import Bench, Case, Group
from benchmarks.groups import GROUPS
from benchmarks.results import Results


def select(patterns: Sequence[str], groups: Sequence[Group] = GROUPS) -> dict[str, Case]:
    """Return the cases that one of *patterns* names, by ``group/case``."""
    return {f"{g.name}/{name}": case for g in groups for name, case in g.selected(patterns).items()}


def run(cases: Mapping[str, Case], results: Results) -> list[str]:
    """Run those of *cases* that *results* lacks, and return the names of those that failed."""
    failed = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
        bench = Bench(rounds=results.about["rounds"], folder=Path(folder))
        for name in [name for name in cases if name not in results.figures]:
            start = time.perf_counter()
            try:
                figures = list(cases[name](bench))
            except Exception:  # noqa: BLE001 - the others shall be measured nevertheless
                traceback.print_exc()
                failed.append(name)
                continue
            results.add(name, figures, time.perf_counter() - start)
            print(
                f"{name}, {results.seconds[name]} s\n" + "\n".join(f"  {report.line(f)}" for f in figures), flush=True
            )
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return failed


def write_reports(results: Results, groups: Sequence[Group] = GROUPS) -> list[Path]:
    """Write page and picture beside the file of *results*; return where the three lie."""
    page, drawing = results.path.with_suffix(".md"), results.path.with_suffix(".svg")
    figures = [figure for group in groups for figure in report.figures_of(group, results)]
    page.write_text(report.markdown(results, groups, drawing.name), encoding="utf-8")
    drawing.write_bytes(picture.svg(figures, f"Against PEFT, {results.date}"))
    return [results.path, page, drawing]
