"""Every format, of every report, also those that an enemy had a hand in, is what its schema says."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import jsonschema
import pytest
import xmlschema
from hypothesis import given
from hypothesis import strategies as st
from made_reports import HOSTILE, LICENSE, SHAPE, ZERO, finding, hostile, mixed, report

from lora_hub.checking.finding import Severity
from lora_hub.checking.outputs import FORMATS, render
from lora_hub.documents import schemas
from lora_hub.errors import UsageError

SCHEMAS = Path(__file__).with_name("schemas")
JSON = jsonschema.Draft202012Validator(json.loads(schemas.schema("check")))
SARIF = jsonschema.Draft4Validator(json.loads((SCHEMAS / "sarif-2.1.0-rtm.5.json").read_text(encoding="utf-8")))
JUNIT = xmlschema.XMLSchema(SCHEMAS / "junit.xsd")


def check_json(text: str) -> None:
    JSON.validate(json.loads(text))


def check_sarif(text: str) -> None:
    SARIF.validate(json.loads(text))


def check_junit(text: str) -> None:
    JUNIT.validate(text.encode())


def check_github(text: str) -> None:
    """Each line is a command of ours, or one in which the runner finds none."""
    for line in text.splitlines():
        assert line.startswith(("::error ", "::warning ", "::notice ", "::group::", "::endgroup::")) or "::" not in line
        assert line.startswith("::") or "##[" not in line


def check_markdown(text: str) -> None:
    """Each row has four cells, and nothing of what an adapter says is markup."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} <= {5}
    assert not set("<>`*[@") & set(text.replace("<br>", ""))


CHECKS = {
    "json": check_json,
    "junit": check_junit,
    "sarif": check_sarif,
    "github": check_github,
    "markdown": check_markdown,
}
every_format = pytest.mark.parametrize("name", FORMATS)


def test_every_format_is_checked():
    """A new format gets a check of its own."""
    assert CHECKS.keys() == set(FORMATS)


@every_format
@pytest.mark.parametrize("reports", [[], [report()], mixed()], ids=["none", "nothing found", "mixed"])
def test_a_format_is_what_its_schema_says(name, reports):
    """No report, a report without findings, and many of all kinds are valid."""
    text = render(name, reports)
    CHECKS[name](text)

    assert text.endswith("\n")
    assert render(name, reports) == text


@every_format
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_what_an_adapter_says_stays_text(name, text):
    """Control characters, markup, commands and broken Unicode in names neither break a format nor mean anything."""
    rendered = render(name, hostile(text))
    CHECKS[name](rendered)

    assert rendered.encode()  # strict: it can be written to a file
    assert not {c for c in rendered if not c.isprintable()} - {"\n"} or name == "json"


@every_format
@given(text=st.text(st.characters(exclude_categories=()), max_size=20))
def test_any_text_stays_text(name, text):
    """What holds for the hostile texts above holds for any string that Python knows."""
    rendered = render(name, hostile(text))
    CHECKS[name](rendered)

    assert rendered.encode()


@pytest.mark.parametrize("name", ["", "xml", "JSON", "text", "../json"])
def test_an_unknown_format_is_a_usage_error(name):
    """What no format is called is refused with the names that there are."""
    with pytest.raises(UsageError, match="no format is called") as caught:
        render(name, [])

    assert all(known in caught.value.hint for known in FORMATS)


def test_json_holds_everything():
    """The JSON has every finding as it is, what is ignored as well, and counts what is found."""
    document = json.loads(render("json", mixed()))
    (second,) = [r for r in document["reports"] if len(r["findings"]) == 3]

    assert document["summary"] == {"adapters": 4, "errors": 2, "warnings": 1, "notes": 2}
    assert second["findings"][0] == {
        "code": "LH101",
        "name": "shape-differs",
        "severity": "error",
        "concerns_base": True,
        "message": "`lora_B` is [4, 2], expected [8, 2]",
        "hint": "name the base it was trained on",
        "file": "adapter_model.safetensors",
        "place": "model.layers.0.self_attn.q_proj",
    }
    assert [r["worst"] for r in document["reports"]] == [None, "error", "note", "error"]
    assert [f["code"] for f in document["reports"][2]["ignored"]] == ["LH301"]
    assert document["reports"][3]["facts"] == {"nan": "nan"}


def test_json_keeps_what_can_be_kept():
    """Control characters are data: JSON escapes them and gives them back."""
    document = json.loads(render("json", hostile("a\n\x1b\u202e")))

    assert document["reports"][0]["findings"][0]["place"] == "a\n\x1b\u202e"


def test_facts_of_any_kind_become_json():
    """Tuples, sets, paths and infinities among the facts become what JSON knows."""
    facts = {"coverage": {"q": (32, 32)}, "dtypes": {"b", "a"}, "path": Path("x"), "norm": float("-inf"), "none": None}
    document = json.loads(render("json", [report(facts=facts)]))

    assert document["reports"][0]["facts"] == {
        "coverage": {"q": [32, 32]},
        "dtypes": ["a", "b"],
        "path": "x",
        "norm": "-inf",
        "none": None,
    }


def suites(reports, **options):
    return ET.fromstring(render("junit", reports, **options)).findall("testsuite")


def test_junit_has_a_suite_for_each_adapter():
    """An adapter is a suite; its findings are cases that fail, pass or are skipped, or one case passes."""
    found = [(s.get("name"), s.get("tests"), s.get("failures"), s.get("skipped")) for s in suites(mixed())]

    assert found == [
        ("./out", "1", "0", "0"),
        ("./out", "3", "1", "0"),
        ("org/task@1.2.0", "2", "0", "1"),
        ("/srv/adapters/ä b", "1", "1", "0"),
    ]


@pytest.mark.parametrize(
    ("fail_on", "failures"), [(Severity.ERROR, "1"), (Severity.WARNING, "2"), (Severity.NOTE, "3")], ids=str
)
def test_junit_fails_where_the_check_fails(fail_on, failures):
    """What `--fail-on` names is what fails in JUnit too."""
    (suite,) = suites([report(finding(SHAPE), finding(ZERO), finding(LICENSE))], fail_on=fail_on)

    assert suite.get("failures") == failures


def test_junit_names_each_case_once():
    """Two findings of one rule in one place have different names, of which GitLab would else show one."""
    (suite,) = suites([report(finding(), finding(), finding(place="other"), ignored=(finding(),))])
    names = [case.get("name") for case in suite]

    assert len(names) == len(set(names)) == 4


def test_junit_shows_what_xml_cannot_hold():
    """A NUL in a name is shown as what it is."""
    (suite,) = suites(hostile("a\x00b"))

    assert suite.get("name") == r"a\x00b"


def sarif(reports):
    (run,) = json.loads(render("sarif", reports))["runs"]
    return run


def test_sarif_describes_each_rule_once():
    """Each rule that found something is there with its page, and each result points at it."""
    run = sarif(mixed())
    rules = run["tool"]["driver"]["rules"]

    assert [rule["id"] for rule in rules] == ["LH101", "LH301", "LH501"]
    assert rules[0]["help"]["markdown"] == SHAPE.explanation
    assert [rule["defaultConfiguration"]["level"] for rule in rules] == ["error", "warning", "note"]
    assert all(rules[result["ruleIndex"]]["id"] == result["ruleId"] for result in run["results"])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("./out", "out/adapter_model.safetensors"),
        ("out/", "out/adapter_model.safetensors"),
        (".", "adapter_model.safetensors"),
        ("././/out", "out/adapter_model.safetensors"),
        ("../out", "../out/adapter_model.safetensors"),
        ("/srv/a b", "file:///srv/a%20b/adapter_model.safetensors"),
        ("./ä#?%:", "%C3%A4%23%3F%25%3A/adapter_model.safetensors"),
        ("./caf\udce9", "caf%E9/adapter_model.safetensors"),
        ("adapters/task", "adapters/task/adapter_model.safetensors"),
        ("org/task@1.2.0", "lora-hub:org/task@1.2.0/adapter_model.safetensors"),
    ],
)
def test_sarif_says_where_a_file_is(source, expected):
    """Paths are relative URIs where they can be; any name of a file becomes a valid one."""
    (result,) = sarif([report(finding(), source=source)])["results"]

    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == expected


def test_sarif_fingerprints_do_not_depend_on_words():
    """The same finding has the same fingerprint when its message changes; others, and a second one, have others."""

    def prints(*findings):
        return [r["partialFingerprints"]["loraHubFinding/v1"] for r in sarif([report(*findings)])["results"]]

    (one,) = prints(finding())
    (reworded,) = prints(finding(message="other words", hint="another"))
    others = prints(finding(), finding(), finding(place="elsewhere"), finding(ZERO))

    assert one == reworded == others[0]
    assert len(set(others)) == 4


def test_sarif_suppresses_what_is_ignored():
    """What is ignored is a result that is suppressed, not one that is missing."""
    results = sarif([report(finding(), ignored=(finding(ZERO),))])["results"]

    assert [bool(result.get("suppressions")) for result in results] == [False, True]
