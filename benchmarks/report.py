"""The results as Markdown: a table for each group, and one of the goals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.figures import Figure, short, with_unit
from benchmarks.group import Group
from benchmarks.results import Results

HOW_TO_READ = """\
`make bench`. Read the ratios: below 1 is faster, or less. Where lora-hub is slower, it stands here too. Above the base
means: what the adapter adds, round by round, in units of what PEFT's adds."""
WAYS = {"full": "full fine-tuning", "base": "base", "ours": "lora-hub", "peft": "PEFT"}


def markdown(results: Results, groups: Iterable[Group], picture: str) -> str:
    """Return the whole page; *picture* is the file that lies beside it."""
    found = [(group, figures) for group in groups if (figures := figures_of(group, results))]
    parts = [
        f"# Against PEFT, {_device(results)}, {results.date}",
        HOW_TO_READ,
        _conditions(results),
        f"![What lora-hub takes in units of PEFT]({picture})",
    ]
    for group, figures in found:
        parts += [f"## {group.title}", _table(figures)]
    parts += ["## Goals", _goals([figure for _, figures in found for figure in figures])]
    return "\n\n".join(parts) + "\n"


def figures_of(group: Group, results: Results) -> list[Figure]:
    """Return what was found for *group*, in the order of its cases."""
    return [figure for case in group.cases for figure in results.figures.get(f"{group.name}/{case}", ())]


def line(figure: Figure) -> str:
    """Return *figure* as one line, for who watches."""
    cells = ", ".join(f"{label} {figure.cell(way)}" for way, label in WAYS.items() if way in figure.samples)
    ratio = "" if figure.against is None or not figure.found_cell else f": {figure.found_cell}"
    return f"{figure.label}: {cells}{ratio}{_judgement(figure)}"


def _judgement(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    return f" (goal {_goal(figure)}, {'met' if figure.is_met else 'NOT met'})"


def _goal(figure: Figure) -> str:
    return with_unit(figure.goal or 0, figure.unit) if figure.against is None else short(figure.goal or 0)


def _device(results: Results) -> str:
    return str(results.about["hardware"].get("card", "CPU"))


def _conditions(results: Results) -> str:
    hardware, versions = results.about["hardware"], results.about["versions"]
    card = f", {hardware['card']}" if "card" in hardware else ""
    machine = f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads, {hardware['system']}{card}"
    software = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "sources")
    medians = f"medians of {results.about['rounds']} rounds, of GPT-2 5 at most"
    return f"{machine}; {software} (sources {versions['sources']}); {medians}."


def _table(figures: Sequence[Figure]) -> str:
    ways = [way for way in WAYS if any(way in figure.samples for figure in figures)]
    labels = [WAYS[way] for way in ways]
    against = "full" if "full" in ways else "peft"
    header = ["what", *labels, f"lora-hub / {WAYS[against]}"]
    return _rows(header, ([f.label, *(f.cell(way) for way in ways), _ratio(f)] for f in figures))


def _ratio(figure: Figure) -> str:
    return "" if figure.against is None else figure.found_cell


def _goals(figures: Sequence[Figure]) -> str:
    """Return the table of the goals, whose last column says what that of the other tables does."""
    judged = [figure for figure in figures if figure.goal is not None]
    rows = ([f.label, "yes" if f.is_met else "**no**", _goal(f), f.found_cell] for f in judged)
    return _rows(["what", "met", "at most", "found"], rows)


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))
