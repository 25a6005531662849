"""What docs/ci.md shows is what there is."""

import re

import yaml
from lora_hub_plugins import pytest_plugin
from places_of_files import ROOT

from lora_hub.checking.outputs import FORMATS
from lora_hub.replaying.precision import TOLERANCES

GUIDE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)]


def test_the_workflow_uses_inputs_that_there_are():
    """Each input that the example names is one of the action, and each output that is named is one."""
    (workflow,) = (block for block in BLOCKS if "jobs" in block)
    (step,) = (s for s in workflow["jobs"]["adapters"]["steps"] if "lora-hub" in s.get("uses", ""))
    action = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))

    assert step["with"].keys() <= action["inputs"].keys()
    assert all(f"`{name}`" in GUIDE for name in action["outputs"])


def test_the_hook_is_called_as_in_its_manifest():
    """The example for pre-commit names the hook that there is."""
    (config,) = (block for block in BLOCKS if "repos" in block)
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))

    assert [h["id"] for h in config["repos"][0]["hooks"]] == [hook["id"]]


def test_every_format_is_described():
    """The table of formats has them all."""
    assert re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE) == ["text", *FORMATS]


def test_the_tolerances_are_those_of_the_code():
    """The table of tolerances says what a replay does."""
    table = dict(re.findall(r"^\| ([\w, ]+) \| (\S+) \| \S+ \|$", GUIDE, re.MULTILINE))
    told = {name: float(value) for names, value in table.items() if "float" in names for name in names.split(", ")}

    assert told == TOLERANCES


def test_the_plugin_has_what_is_shown():
    """The fixture and the marker of the example are those of the plugin."""
    assert hasattr(pytest_plugin, "adapter_report")
    assert "pytest.mark.lora_adapter" in GUIDE
