"""The GitHub action: its script runs for real, in the environment that a runner would give it."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from places_of_files import ROOT

ACTION = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
(STEP,) = (step for step in ACTION["runs"]["steps"] if "run" in step)


class Runner:
    """What GitHub's runner does: inputs become variables, outputs and the summary are read from files."""

    def __init__(self, folder, checkout, environment):
        self.checkout = checkout
        self.files = {name: folder / name for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        for path in self.files.values():
            path.touch()
        self.environment = environment | {
            **{name: str(path) for name, path in self.files.items()},
            "GITHUB_ACTION_PATH": str(ROOT),
            "GITHUB_WORKSPACE": str(checkout),
            "GITHUB_ACTIONS": "true",
            "RUNNER_TEMP": str(folder),
        }

    def run(self, **inputs):
        """Run the step with *inputs*, by default with the lora-hub that is installed."""
        given = {"version": "installed", **{name.replace("_", "-"): value for name, value in inputs.items()}}
        values = {name: given.get(name, str(known.get("default", ""))) for name, known in ACTION["inputs"].items()}
        variables = {
            name: re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda match: values[match[1]], text)
            for name, text in STEP["env"].items()
        }
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", STEP["run"]],
            cwd=self.checkout, env=self.environment | variables, capture_output=True, text=True, check=False,
        )  # fmt: skip

    def outputs(self):
        """Return the outputs of the step."""
        lines = self.files["GITHUB_OUTPUT"].read_text(encoding="utf-8").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def summary(self):
        """Return the summary of the job."""
        return self.files["GITHUB_STEP_SUMMARY"].read_text(encoding="utf-8")


@pytest.fixture
def runner(tmp_path, checkout, environment):
    """A runner in the checkout."""
    return Runner(tmp_path, checkout, environment)


def test_a_good_adapter_passes(runner):
    """The step ends with 0, says so in the summary, and its outputs name the report."""
    done = runner.run(adapters="./adapters/good")
    outputs = runner.outputs()

    assert done.returncode == 0, done.stderr
    assert (outputs["exit-code"], outputs["errors"]) == ("0", "0")
    assert json.loads(Path(outputs["report"]).read_text(encoding="utf-8"))["summary"]["adapters"] == 1
    assert runner.summary().startswith("### lora-hub check: 1 adapter, ")


def test_a_bad_adapter_fails_with_annotations(runner):
    """The step ends with the exit code of the check; the file of the bad adapter is annotated; SARIF is written."""
    done = runner.run(adapters="\n  ./adapters/*  \n", sarif="lora-hub.sarif")
    errors = [line for line in done.stdout.splitlines() if line.startswith("::error ")]
    results = json.loads((runner.checkout / "lora-hub.sarif").read_bytes())["runs"][0]["results"]
    uris = {result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for result in results}

    assert done.returncode == 8, done.stderr
    assert all("file=adapters/bad/" in line for line in errors)
    assert errors
    assert runner.outputs()["exit-code"] == "8"
    assert int(runner.outputs()["errors"]) == len(errors)
    assert "adapters/bad/adapter_model.safetensors" in uris
    assert "❌ error" in runner.summary()


def test_what_cannot_be_checked_is_one_annotation(runner):
    """No such adapter: the error and its hint are shown, the exit code is that of the error, there is no report."""
    done = runner.run(adapters="./adapters/none")

    assert done.returncode == 3
    assert "::error title=lora-hub check::error: " in done.stdout
    assert runner.outputs() == {"exit-code": "3"}


def test_the_threshold_is_an_input(runner):
    """`fail-on` decides what fails: a note does, if one says so."""
    assert runner.run(adapters="./adapters/good", fail_on="note").returncode == 8


@pytest.mark.parametrize("name", ["adapters", "base", "fail_on", "sarif", "version"])
@pytest.mark.parametrize(
    "text",
    [
        "$(touch pwned)",
        "x\n::error::pwned",
        pytest.param("x'; touch pwned; '", marks=pytest.mark.full),
        pytest.param('x"; touch pwned; "', marks=pytest.mark.full),
        pytest.param("--output=json=pwned", marks=pytest.mark.full),
        pytest.param("x\ntouch pwned", marks=pytest.mark.full),
    ],
)
def test_no_input_is_a_command(runner, name, text):
    """Whatever an input holds, nothing of it is run, installed or obeyed: the step fails, or finds nothing."""
    done = runner.run(**{"adapters": "./adapters/good", name: text})
    commands = [line for line in done.stdout.splitlines() if line.startswith("::")]

    assert not (runner.checkout / "pwned").exists()
    assert "::error::pwned" not in commands
    assert (done.returncode == 0) == (name == "sarif")


def test_nothing_of_an_input_is_in_a_script():
    """Inputs stand in variables and in inputs of other actions alone; each that is declared is used."""
    texts = {
        **STEP["env"],
        **{f"with {key}": v for s in ACTION["runs"]["steps"] for key, v in s.get("with", {}).items()},
    }
    used = {name for text in texts.values() for name in re.findall(r"\$\{\{ inputs\.([a-z-]+) \}\}", str(text))}

    assert all("${{" not in step.get("run", "") for step in ACTION["runs"]["steps"])
    assert used == set(ACTION["inputs"])


def test_other_actions_are_pinned():
    """What the action uses of others is named by commit, not by a tag that can be moved."""
    used = [step["uses"] for step in ACTION["runs"]["steps"] if "uses" in step]

    assert used
    assert all(re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name) for name in used)


def test_a_module_in_the_repository_is_not_imported(runner):
    """A file that is called like our package, in the repository that is checked, is not run."""
    (runner.checkout / "lora_hub.py").write_text("open('pwned', 'w')")
    (runner.checkout / "json.py").write_text("open('pwned', 'w')")
    done = runner.run(adapters="./adapters/good")

    assert done.returncode == 0, done.stderr
    assert not (runner.checkout / "pwned").exists()


def test_no_line_of_an_error_is_a_command(runner, tmp_path):
    """While the runner is shown what went wrong, it obeys nothing; then it listens again."""
    (tmp_path / "bin" / "python").unlink()
    (tmp_path / "bin" / "python").write_text("#!/usr/bin/env bash\nprintf 'error: x\\n::add-mask::y' >&2; exit 4\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    done = runner.run(adapters="./adapters/good")
    lines = done.stdout.splitlines()

    assert done.returncode == 4
    assert re.fullmatch(r"::stop-commands::[0-9a-f]{32}", lines[0])
    assert lines[1:3] == ["error: x", "::add-mask::y"]
    assert lines[3] == f"::{lines[0].rpartition('::')[2]}::"
    assert lines[4:] == ["::error title=lora-hub check::error: x%0A::add-mask::y"]


def pip_of(runner, tmp_path, version):
    """Run the step with a `python` whose environments note what pip gets, and return that."""
    real = tmp_path / "bin" / "real"
    (tmp_path / "bin" / "python").rename(real)
    (tmp_path / "bin" / "python").write_text(
        "#!/usr/bin/env bash\n"
        f'if [[ "$1 $2" == "-m venv" ]]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"\n'
        f'elif [[ "$1 $2" == "-m pip" ]]; then printf "%s\\n" "$@" >"{tmp_path}/pip"\n'
        f'else exec "{real}" "$@"; fi\n'
    )
    (tmp_path / "bin" / "python").chmod(0o755)
    done = runner.run(adapters="./adapters/good", version=version)
    assert done.returncode == 0, done.stderr
    return (tmp_path / "pip").read_text().splitlines()


@pytest.mark.parametrize(("version", "expected"), [("", str(ROOT)), ("0.1.0", "lora-hub==0.1.0")])
def test_what_is_installed_is_the_action_itself(runner, tmp_path, version, expected):
    """Without a version, pip gets the folder of the action, at the commit that the workflow pins; else that version."""
    words = pip_of(runner, tmp_path, version)

    assert words == ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", expected]
