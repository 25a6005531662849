"""The plugin for pytest, in suites of its own processes."""

import subprocess
import sys
import tomllib

import pytest
from places_of_files import ROOT

NAME = "lora_hub_plugins.pytest_plugin"


@pytest.fixture
def suite(pytester, checkout, monkeypatch):
    """Return a function that runs a suite in the checkout, with this plugin and no others."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'plugins'}")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(checkout)

    def suite(source, *options):
        (checkout / "test_adapters.py").write_text(source)
        (checkout / "pytest.ini").write_text("[pytest]\naddopts = --strict-markers --strict-config\n")
        return pytester.run(sys.executable, "-m", "pytest", "-p", NAME, "-p", "no:cacheprovider", *options, checkout)

    return suite


def test_the_fixture_returns_the_report(suite):
    """A good adapter gives its report, which the test can ask; the summary lists it."""
    result = suite(
        "def test_good(adapter_report):\n"
        "    report = adapter_report('./adapters/good')\n"
        "    assert report.facts['r'] == 2\n"
        "    assert report.worst is None or str(report.worst) != 'error'\n"
    )

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*= LoRA adapters =*", "*adapters/good: *"])


def test_the_fixture_fails_the_test(suite):
    """A bad adapter fails the test with the findings and their hints, and no traceback of ours."""
    result = suite("def test_bad(adapter_report):\n    adapter_report('./adapters/bad')\n")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*adapters/bad: * error*", "  error LH*", "    hint: *"])
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_the_fixture_can_leave_the_judgement_to_the_test(suite):
    """With `fail_on=None`, findings are for the test to look at; a lower threshold fails on notes."""
    result = suite(
        "def test_look(adapter_report):\n"
        "    assert adapter_report('./adapters/bad', fail_on=None).worst.name == 'ERROR'\n"
        "def test_strict(adapter_report):\n"
        "    adapter_report('./adapters/good', fail_on='note')\n"
        "def test_unknown(adapter_report):\n"
        "    adapter_report('./adapters/good', fail_on='fatal')\n"
    )

    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*fail_on is 'fatal', expected one of note, warning, error*"])


def test_the_marker_checks_before_the_test_runs(suite):
    """A marked test fails, and does not run, if an adapter that it names does not pass; a class may be marked too."""
    result = suite(
        "import pytest\n"
        "@pytest.mark.lora_adapter('./adapters/bad')\n"
        "def test_bad():\n"
        "    raise AssertionError('it ran')\n"
        "@pytest.mark.lora_adapter('./adapters/good')\n"
        "class TestGood:\n"
        "    def test_one(self): pass\n"
        "    @pytest.mark.lora_adapter('./adapters/bad')\n"
        "    def test_both(self): pass\n"
        "@pytest.mark.lora_adapter()\n"
        "def test_nothing_is_named(): pass\n"
    )

    result.assert_outcomes(passed=1, failed=3)
    result.stdout.no_fnmatch_line("*it ran*")
    result.stdout.fnmatch_lines(["*write @pytest.mark.lora_adapter(source, base=...)*"])


def test_what_is_not_there_fails_the_test_readably(suite):
    """No such directory and no such base are failures of the test in one line, not tracebacks."""
    result = suite(
        "def test_gone(adapter_report):\n    adapter_report('./gone')\n"
        "def test_no_base(adapter_report):\n    adapter_report('./adapters/good', base='./gone')\n"
    )

    result.assert_outcomes(failed=2)
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")


def test_paths_are_those_of_the_suite(suite):
    """A test that changes its directory still means the adapters of its repository."""
    result = suite(
        "def test_elsewhere(adapter_report, tmp_path, monkeypatch):\n"
        "    monkeypatch.chdir(tmp_path)\n"
        "    adapter_report('./adapters/good')\n"
    )

    result.assert_outcomes(passed=1)


def test_workers_report_too(suite):
    """With pytest-xdist, what the workers checked is in the summary."""
    pytest.importorskip("xdist")
    result = suite("def test_good(adapter_report):\n    adapter_report('./adapters/good')\n", "-p", "xdist", "-n", "1")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*= LoRA adapters =*", "*adapters/good: *"])


def test_a_suite_that_does_not_use_it_sees_nothing(suite):
    """Without use there is no section, and nothing of lora-hub or torch is loaded."""
    result = suite(
        "import sys\n"
        "def test_nothing():\n"
        "    ours = {name for name in sys.modules if name.partition('.')[0] in {'lora_hub', 'torch'}}\n"
        "    assert ours == set()\n"
    )

    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*LoRA adapters*")


def test_a_check_loads_no_torch(suite):
    """Also when it is used, neither torch nor transformers is loaded."""
    result = suite(
        "import sys\n"
        "def test_light(adapter_report):\n"
        "    adapter_report('./adapters/good')\n"
        "    assert {'torch', 'transformers', 'numpy'} & set(sys.modules) == set()\n"
    )

    result.assert_outcomes(passed=1)


def test_the_marker_is_told_of(suite):
    """`pytest --markers` explains the marker, and `--fixtures` the fixture."""
    suite("").assert_outcomes()

    suite("", "--markers").stdout.fnmatch_lines(["@pytest.mark.lora_adapter(source, *"])
    suite("", "--fixtures").stdout.fnmatch_lines(["adapter_report*"])


def test_pytest_finds_the_plugin_by_itself():
    """The entry point names this module, which loads pytest and nothing else."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    code = f"import sys, pytest\nbefore = set(sys.modules)\nimport {NAME}\nprint(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert project["entry-points"]["pytest11"] == {"lora_hub": NAME}
    assert {name.partition(".")[0] for name in done.stdout.split()} == {"lora_hub_plugins"}
