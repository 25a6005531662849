"""GitHub's annotations, read as the runner reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_reports import HOSTILE, LICENSE, ZERO, finding, mixed, report

from lora_hub.checking.outputs import render
from lora_hub.checking.outputs.github import MAX_ANNOTATIONS
from lora_hub.checking.outputs.words import visible

COMMANDS = {"error", "warning", "notice", "group", "endgroup", "debug", "add-mask", "add-matcher", "stop-commands"}


def read_command(line):
    """Return name, properties and data of the command in *line* as actions/runner finds them, or None.

    A line that begins with ``::`` is one if a second ``::`` follows; else one that has ``##[name …]`` anywhere.
    """
    stripped = line.lstrip()
    if stripped.startswith("::") and "::" in stripped[2:]:
        information, _, data = stripped[2:].partition("::")
        name, _, listed = information.partition(" ")
        if name in COMMANDS:
            pairs = [pair.split("=", 1) for pair in listed.split(",") if "=" in pair]
            return name, {key: unescaped(value, {"%3A": ":", "%2C": ","}) for key, value in pairs}, unescaped(data)
    if "##[" in line:
        name = line.partition("##[")[2].partition("]")[0].partition(" ")[0]
        return (name, {}, "") if name in COMMANDS else None
    return None


def unescaped(text, more=None):
    """As the runner does it: what a percent sign stands for comes last."""
    for mark, character in {"%0D": "\r", "%0A": "\n", **(more or {}), "%25": "%"}.items():
        text = text.replace(mark, character)
    return text


def commands(reports):
    return [command for command in map(read_command, render("github", reports).splitlines()) if command]


def test_a_finding_is_an_annotation():
    """Severity, file, title and message arrive where GitHub shows them."""
    (command,) = commands([report(finding())])

    assert command == (
        "error",
        {
            "file": "out/adapter_model.safetensors",
            "title": "LH101 shape-differs: model.layers.0.self_attn.q_proj",
        },
        "`lora_B` is [4, 2], expected [8, 2]\nhint: name the base it was trained on",
    )


def test_an_annotation_without_a_file_names_the_adapter():
    """Of a version in a registry there is no file in the repository, so the message says which it is."""
    found = commands([report(finding(), source="org/task@1.2.0"), report(finding(LICENSE, file=None), source="./out")])

    assert [(name, "file" in properties) for name, properties, _ in found] == [("error", False), ("notice", False)]
    assert [data.partition(": ")[0] for _, _, data in found] == ["org/task@1.2.0", "./out"]


@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_was_said_arrives(text):
    """Whatever a name holds, the runner reads back just this, made visible, and no command of it."""
    reports = [report(finding(message=text, hint=text, place=text or None), source=f"./{text}")]
    (command,) = commands(reports)

    assert command[2] == f"{visible(text)}\nhint: {visible(text)}"
    assert command[1]["title"].endswith(visible(text))


@given(text=st.text(st.sampled_from("#[]:;%,=\n\r 0ADaderorx-"), max_size=30))
def test_no_name_becomes_a_command(text):
    """No mixture of what commands are made of becomes a command, annotated or not."""
    many = [finding(message=text, place=text, hint=text) for _ in range(MAX_ANNOTATIONS + 2)]
    found = commands([report(*many, source=text or "x")])

    assert [name for name, _, _ in found] == ["error"] * MAX_ANNOTATIONS + ["group", "endgroup"]


def test_what_github_would_not_show_is_listed():
    """Ten of each kind are annotated, the worst first; the others are lines of a group, and all are counted."""
    many = [finding(LICENSE, place=f"n{i}") for i in range(12)] + [finding(place=f"e{i}") for i in range(13)]
    text = render("github", [report(*many), report(finding(ZERO))])
    names = [name for name, _, _ in commands([report(*many), report(finding(ZERO))])]

    assert names == ["error"] * 10 + ["warning"] + ["notice"] * 10 + ["group", "endgroup"]
    assert "\nerror ./out LH101 shape-differs: e12: " in text
    assert text.splitlines()[-1] == "lora-hub check: 2 adapters, 13 errors, 1 warning, 12 notes"


@pytest.mark.parametrize("text", ["##[error]x", "a ##[add-mask]b", "###[group]"])
def test_a_plain_line_holds_no_command_of_the_older_form(text):
    """The runner looks for `##[` anywhere in a line: what is listed in the group has none."""
    found = commands([report(*[finding(message=text)] * (MAX_ANNOTATIONS + 1))])

    assert [name for name, _, _ in found] == ["error"] * MAX_ANNOTATIONS + ["group", "endgroup"]


def test_the_last_line_counts():
    """Without findings the only line says so."""
    assert render("github", [report()]) == "lora-hub check: 1 adapter, nothing found\n"
    assert render("github", mixed()).splitlines()[-1] == "lora-hub check: 4 adapters, 2 errors, 1 warning, 2 notes"
