"""The ratios to PEFT as a picture: a dot for what was found, a tick for the goal, and the line at 1, which is PEFT."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.figures import Figure, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MET, MISSED, NO_GOAL = "#1a7f37", "#cf222e", "#57606a"
ROW = 0.27  # inches
LEFT_END = 1e-4  # what is below, such as an adapter that noise made faster than the base, is drawn here


def svg(figures: Sequence[Figure], title: str) -> bytes:
    """Return the picture of those *figures* that have a ratio to PEFT; same figures, same bytes."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Sheet

    shown = [figure for figure in figures if figure.against == "peft" and not math.isnan(figure.found)]
    # Ids are hashes of what is drawn and of the salt; text stays text, so it does not depend on where fonts are.
    with rc_context({"svg.hashsalt": "lora-hub", "svg.fonttype": "none"}):
        sheet = Sheet(figsize=(9, ROW * len(shown) + 1.2), layout="constrained")
        axes = sheet.subplots()
        for row, figure in enumerate(shown):
            _draw(axes, row, figure)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlim(right=3 * max([1, *(figure.found for figure in shown)]))  # room for the last number
        axes.set_yticks(range(len(shown)), [figure.label for figure in shown])
        axes.set_ylim(max(1, len(shown)) - 0.5, -0.5)
        axes.set_xlabel("lora-hub / PEFT\na tick is a goal: green if met, red if missed")
        axes.set_title(title)
        axes.grid(axis="x", color="#d0d7de", linewidth=0.5)
        axes.set_axisbelow(True)
        file = io.BytesIO()
        sheet.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _draw(axes: Axes, row: int, figure: Figure) -> None:
    colour = {True: MET, False: MISSED, None: NO_GOAL}[figure.is_met]
    place = max(figure.found, LEFT_END)
    axes.plot([place, 1], [row, row], color=colour, linewidth=1, alpha=0.4)
    axes.plot(place, row, "o", color=colour, markersize=6)
    axes.annotate(short(figure.found), (place, row), (7, 4), textcoords="offset points", fontsize=7, color=colour)
    if figure.goal is not None:
        axes.plot(figure.goal, row, "|", color="black", markersize=11, markeredgewidth=1.5)
