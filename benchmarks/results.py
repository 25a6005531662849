"""The file that results are kept in: what is in it is not measured again."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.figures import Figure


class OtherConditionsError(Exception):
    """The file holds figures of another machine, of other versions or of another number of rounds."""


@dataclass(slots=True, kw_only=True)
class Results:
    """Figures by ``group/case``, and the conditions they were taken under.

    Attributes:
        path: The file, in JSON; it is rewritten whenever a case is added.
        about: Hardware, versions, rounds: what must be equal for figures to stand side by side.
        date: When the first of them was taken.
    """

    path: Path
    about: dict[str, Any]
    date: str
    figures: dict[str, list[Figure]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, about: dict[str, Any], date: str, *, fresh: bool = False) -> Self:
        """Return what *path* holds, or nothing yet.

        Raises:
            OtherConditionsError: It was not measured under the conditions *about*.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        if fresh or not path.is_file():
            return cls(path=path, about=about, date=date)
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["about"] != about:
            raise OtherConditionsError(
                f"`{path}` was measured under other conditions, {document['about']}, than these, {about}: "
                "name another file, or start over with --fresh"
            )
        figures = {name: [Figure.from_json(f) for f in case["figures"]] for name, case in document["cases"].items()}
        seconds = {name: case["seconds"] for name, case in document["cases"].items()}
        return cls(path=path, about=about, date=document["date"], figures=figures, seconds=seconds)

    def add(self, case: str, figures: Iterable[Figure], seconds: float) -> None:
        """Add what the *case* ``group/case`` gave, which took *seconds*, and write it all down."""
        # As they are in the file, so that a page does not depend on when its figures were taken.
        self.figures[case] = [Figure.from_json(figure.to_json()) for figure in figures]
        self.seconds[case] = round(seconds, 1)
        cases = {
            name: {"seconds": self.seconds[name], "figures": [figure.to_json() for figure in figures]}
            for name, figures in self.figures.items()
        }
        text = json.dumps({"date": self.date, "about": self.about, "cases": cases}, indent=1)
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(_on_one_line(text) + "\n", encoding="utf-8")
        unfinished.replace(self.path)


def _on_one_line(text: str) -> str:
    """Return the JSON *text* with each list of numbers on one line."""
    return re.sub(r"\[[-+\d.e,\s]+\]", lambda found: "[" + " ".join(found[0][1:-1].split()) + "]", text)
