"""The rules as a whole: their codes, their pages, who is selected, and what plugins add."""

import re
from pathlib import Path

import pytest
from adapter_files import adapter_files
from base_models import llama
from hypothesis import given
from hypothesis import strategies as st

import lora_hub
from lora_hub import plugin_manager
from lora_hub.checking.catalogue import BUILT_IN, Selection, catalogue
from lora_hub.checking.check import finds
from lora_hub.checking.pages import built_in, pages
from lora_hub.errors import PluginError, UsageError

DOCS = Path(__file__).parents[2] / "docs" / "checks"
COMPANY = '''
from lora_hub import Hit, Severity, finds, hookimpl

@finds("{code}", "no-owner", severity=Severity.WARNING)
def no_owner(subject):
    """The card says nothing of an owner.

    ## How to mend it

    Write one.
    """
    {body}

@hookimpl
def lora_hub_checks():
    return [no_owner]
'''
FOUND = 'yield Hit(message="no owner", hint="write one", place=subject.source)'


@pytest.fixture
def adapter(tmp_path):
    return adapter_files().write(tmp_path / "adapter")


def codes(report):
    return [finding.rule.code for finding in report.findings]


def test_every_rule_has_a_page():
    """Each says what it is in one line, and then what to do."""
    for rule in built_in():
        assert rule.summary.endswith("."), rule.code
        assert "## How to mend it" in f"\n{rule.explanation}", rule.code
        assert re.fullmatch(r"LH[0-49][0-9]{2}", rule.code)


def test_names_and_codes_are_unique():
    """No two rules share a name."""
    names = [rule.name for rule in built_in()]

    assert len(set(names)) == len(names)


def test_the_documents_are_the_pages():
    """`docs/checks` is what `python -m lora_hub.checking.pages docs/checks` writes."""
    written = {path.name: path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")}

    assert written == pages()


@pytest.mark.parametrize(
    ("select", "ignore", "counting"),
    [
        ((), (), {"LH101", "LH102", "LH201"}),
        (("LH1",), (), {"LH101", "LH102"}),
        ((), ("LH1",), {"LH201"}),
        (("LH1",), ("LH102",), {"LH101"}),
        (("LH102",), ("LH1",), {"LH102"}),
        (("lh2", "LH101"), ("LH2",), {"LH101"}),
        (("LH",), ("LH101",), {"LH102", "LH201"}),
    ],
)
def test_the_longest_code_decides(select, ignore, counting):
    """Beginnings of codes select groups; what is named more exactly wins."""
    selection = Selection.of(select, ignore, BUILT_IN)

    assert {code for code in ("LH101", "LH102", "LH201") if selection.covers(code)} == counting


@given(st.lists(st.sampled_from(sorted(BUILT_IN))), st.lists(st.sampled_from(sorted(BUILT_IN))))
def test_a_rule_that_is_ignored_by_its_code_never_counts(select, ignore):
    """Whatever is selected."""
    selection = Selection.of(select, ignore, BUILT_IN)

    assert not any(selection.covers(code) for code in ignore)


@pytest.mark.parametrize("code", ["LH900", "XYZ", "", "LH1011", "lora"])
def test_a_code_that_is_none_is_refused(adapter, code):
    """A typo must not switch off nothing in silence."""
    with pytest.raises(UsageError, match="names no rule"):
        lora_hub.check(adapter, ignore=[code])


def test_what_is_not_selected_stands_apart(adapter):
    """It is said what would have been found."""
    report = lora_hub.check(adapter, ignore=["LH4"])

    assert report.findings == ()
    assert [finding.rule.code for finding in report.ignored] == ["LH401"]


def test_a_company_adds_a_rule(install, adapter):
    """A plugin's rule is checked, sorted and selected like the built-in ones."""
    install("company", COMPANY.format(code="ACME001", body=FOUND))

    assert codes(lora_hub.check(adapter)) == ["ACME001", "LH401"]
    assert codes(lora_hub.check(adapter, select=["ACME"])) == ["ACME001"]
    assert catalogue()["ACME001"].rule.summary == "The card says nothing of an owner."


def test_a_rule_that_fails_is_an_error_that_names_it(install, adapter):
    """The other rules are checked; one that was not must not look like one that was kept."""
    install("company", COMPANY.format(code="ACME001", body="raise KeyError('owner\\x1b[2J')\n    yield"))
    install("other", COMPANY.format(code="OTHER001", body=FOUND))
    report = lora_hub.check(adapter)

    assert codes(report) == ["LH099", "OTHER001", "LH401"]
    assert "ACME001" in report.findings[0].message
    assert "plugin_company" in report.findings[0].message
    assert report.findings[0].message.isprintable()
    assert report.exit_code() == 8


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('my own fault')", "my own fault"),
        (COMPANY.format(code="LH950", body=FOUND), "LH is lora-hub's own"),
        (COMPANY.format(code="acme", body=FOUND), "code of a rule"),
        (COMPANY.format(code="ACME001", body=FOUND).replace("[no_owner]", "no_owner"), "not a list"),
        (COMPANY.format(code="ACME001", body=FOUND).replace("[no_owner]", "['ACME001']"), "expected a Check"),
    ],
)
def test_a_broken_plugin_is_named_and_the_others_go_on(install, adapter, source, reason):
    """`lora-hub plugins` says what is wrong with it."""
    install("broken", source)
    install("other", COMPANY.format(code="OTHER001", body=FOUND))
    (broken,) = plugin_manager.plugins().broken

    assert reason in str(broken.error)
    assert "OTHER001" in codes(lora_hub.check(adapter))


def test_two_plugins_with_one_code_contradict_each_other(install, adapter):
    """Both are named."""
    install("company", COMPANY.format(code="ACME001", body=FOUND))
    install("other", COMPANY.format(code="ACME001", body=FOUND))

    with pytest.raises(PluginError, match=r"dist-company.*dist-other"):
        lora_hub.check(adapter)


def test_a_rule_sees_the_base_as_well(install, adapter, tmp_path):
    """What the built-in rules know, a company's rule knows."""
    install("company", COMPANY.format(code="ACME001", body=FOUND.replace('"no owner"', "subject.base.model_type")))
    report = lora_hub.check(adapter, llama().write(tmp_path / "base"), select=["ACME"])

    assert [finding.message for finding in report.findings] == ["llama"]


@pytest.mark.parametrize(("code", "name"), [("LH1", "x"), ("lh101", "x"), ("ACME001", "No Owner"), (3, "x")])
def test_a_rule_without_a_proper_code_is_refused(code, name):
    """Codes are letters and three digits, names are words with hyphens."""
    with pytest.raises(TypeError):
        finds(code, name)
