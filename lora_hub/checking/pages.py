"""The pages of the rules: what `check --explain` prints, and what lies in ``docs/checks``.

python -m lora_hub.checking.pages docs/checks
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from lora_hub.checking.catalogue import BUILT_IN
from lora_hub.checking.finding import Rule
from lora_hub.checking.run import FAILED
from lora_hub.files import write_files

_GROUPS = {
    "LH0": "Documents and files",
    "LH1": "Tensors and config",
    "LH2": "The base model",
    "LH3": "Other readers: PEFT, transformers, vLLM, llama.cpp",
    "LH4": "Publishing",
    "LH9": "Replays of golden outputs",
}


def page(rule: Rule) -> str:
    """Return the page of *rule* in Markdown."""
    about = "about the base model (exit code 9)" if rule.concerns_base else "about the adapter (exit code 8)"
    head = f"# {rule.code} {rule.name}\n\n{rule.summary}\n\n*{str(rule.severity).capitalize()}, {about}.*\n"
    return f"{head}\n{rule.explanation}\n" if rule.explanation else head


def overview(rules: Iterable[Rule]) -> str:
    """Return one line for each of *rules*."""
    return "\n".join(f"{rule.code}  {rule.severity!s:<7}  {rule.name:<25}  {rule.summary}" for rule in rules)


def built_in() -> list[Rule]:
    """Return the built-in rules, by code."""
    return sorted([FAILED, *(check.rule for check in BUILT_IN.values())], key=lambda rule: rule.code)


def pages() -> dict[str, str]:
    """Return the files of ``docs/checks`` by name: one for each built-in rule, and their table."""
    files = {f"{rule.code}.md": page(rule) for rule in built_in()}
    lines = ["# The rules of `lora-hub check`", "", "Written by `python -m lora_hub.checking.pages docs/checks`."]
    for begin, title in _GROUPS.items():
        lines += ["", f"## {begin}xx {title}", "", "| rule | name | | |", "| --- | --- | --- | --- |"]
        lines += [
            f"| [{rule.code}]({rule.code}.md) | {rule.name} | {rule.severity} | {rule.summary} |"
            for rule in built_in()
            if rule.code.startswith(begin)
        ]
    return {"README.md": "\n".join(lines) + "\n", **files}


if __name__ == "__main__":
    write_files(Path(sys.argv[1]), {name: text.encode() for name, text in pages().items()})
