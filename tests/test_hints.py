"""Every error that lora-hub raises says what to do next."""

import ast
from pathlib import Path

import pytest

from lora_hub import errors

ROOT = Path(__file__).parents[1] / "lora_hub"
OURS = {
    name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.LoraHubError)
}
# It brings a hint of its own.
WITH_DEFAULT = {"DocumentError"}


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_errors_have_hints(path):
    """Where one of our errors is made, a hint is given."""
    made = [
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in OURS - WITH_DEFAULT
    ]
    without = [node.lineno for node in made if not any(keyword.arg == "hint" for keyword in node.keywords)]

    assert without == []


def test_exit_codes_are_those_of_the_design():
    """Each class has the exit code that the tree in the module's docstring draws beside it."""
    drawn = {}
    for line in errors.__doc__.splitlines():
        words = line.split()
        if words and words[0] in OURS and len(words) > 1 and words[1].isdigit():
            drawn[words[0]] = int(words[1])

    assert sorted(drawn.values()) == list(range(1, 12))
    assert {name: getattr(errors, name).exit_code for name in drawn} == drawn
    assert all(set(drawn) & {base.__name__ for base in getattr(errors, name).__mro__} for name in OURS)
