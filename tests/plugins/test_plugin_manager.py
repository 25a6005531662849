"""Plugins: a broken one is named, two that contradict each other are an error, all others go on working."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lora_hub import plugin_manager
from lora_hub.architecture import Architecture, Projection
from lora_hub.cli import run
from lora_hub.errors import PluginError
from lora_hub.plugin_manager import Plugin, Plugins

THIRD_PARTY = Path(__file__).with_name("third_party_family")

WORKING = """
from lora_hub import Architecture, Projection, hookimpl

Q = Projection(module="q", parts=("q",))

@hookimpl
def lora_hub_architectures():
    return [Architecture(name="mine", model_types=("{model_type}",), projections=(Q,))]
"""


def hook(body: str, *, name: str = "lora_hub_architectures", arguments: str = "") -> str:
    """Return the source of a plugin whose hook does *body*."""
    return f"from lora_hub import Architecture, hookimpl\n@hookimpl\ndef {name}({arguments}):\n    {body}"


# What a broken plugin's module says, and what the reason must name.
BROKEN = {
    "does_not_parse": ("def (", "SyntaxError"),
    "fails_to_import": ("import a_module_that_is_not_there", "a_module_that_is_not_there"),
    "raises_at_import": ("raise RuntimeError('my own fault')", "my own fault"),
    "exits_at_import": ("raise SystemExit('goodbye')", "goodbye"),
    "hook_is_misspelt": (hook("return []", name="lora_hub_architecture"), "lora_hub_architecture"),
    "hook_has_other_arguments": (hook("return []", arguments="model"), "model"),
    "hook_raises": (hook("raise KeyError('projections')"), "projections"),
    "hook_raises_late": (hook("yield from ()\n    raise ValueError('late')"), "late"),
    "hook_returns_a_number": (hook("return 3"), "int"),
    "hook_returns_strings": (hook("return ['llama']"), "llama"),
    "hook_returns_nothing": (hook("pass"), "None"),
    "hook_forgets_the_list": (
        hook("return Architecture(name='a', model_types=('x',), projections=())"),
        "Architecture",
    ),
    # A comma short of a tuple: the model types would be the letters m, i, n, e, and no module would be a projection.
    "model_types_is_a_string": (WORKING.replace('("{model_type}",)', '("mine")'), "model_types"),
    "projections_is_one_projection": (WORKING.format(model_type="x").replace("(Q,)", "(Q)"), "projections"),
    "projections_are_strings": (WORKING.format(model_type="x").replace("(Q,)", "('attn',)"), "projections"),
    "model_types_are_numbers": (WORKING.replace('("{model_type}",)', "(5,)"), "model_types"),
    "hookimpl_is_forgotten": (hook("return []").replace("@hookimpl", ""), "hookimpl"),
}


def loaded() -> dict[str, Plugin]:
    return {plugin.name: plugin for plugin in plugin_manager.plugins().plugins}


def test_the_built_in_families_are_plugins():
    """BERT, GPT-2 and LLaMA are found through the same entry points as everybody's."""
    assert {"bert", "gpt2", "llama"} <= loaded().keys()
    assert plugin_manager.plugins().broken == ()


def test_plugins_are_loaded_once():
    """A process asks each plugin once."""
    assert plugin_manager.plugins() is plugin_manager.plugins()


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_a_model_type_finds_its_architecture(model_type):
    """The architecture of a model is found by its model type."""
    assert model_type in plugin_manager.plugins().find(model_type).model_types


def test_a_working_plugin_is_loaded(install):
    """A plugin of another distribution is found, with its name, its module and where it came from."""
    install("mine", WORKING.format(model_type="mine"))
    plugin = loaded()["mine"]

    assert (plugin.module, plugin.distribution, plugin.error) == ("plugin_mine", "dist-mine 1.5", None)
    assert plugin_manager.plugins().find("mine").name == "mine"


@pytest.mark.parametrize("defect", sorted(BROKEN))
def test_a_broken_plugin_is_named_and_the_others_work(install, defect):
    """Whatever a plugin does wrong, it is named with the reason, and the other plugins are loaded."""
    source, reason = BROKEN[defect]
    install(defect, source)
    install("working", WORKING.format(model_type="mine"))
    plugin = loaded()[defect]

    assert plugin.error is not None
    assert reason in plugin.error
    assert plugin.architectures == ()
    assert plugin_manager.plugins().broken == (plugin,)
    assert plugin_manager.plugins().find("mine").name == "mine"
    assert plugin_manager.plugins().find("llama").name == "llama"


def test_a_plugin_whose_module_is_missing_is_named(install, tmp_path):
    """An entry point that leads nowhere is a broken plugin."""
    install("gone", "")
    (tmp_path / "installed" / "plugin_gone.py").unlink()

    assert "plugin_gone" in loaded()["gone"].error


def test_the_command_names_a_broken_plugin(install, capsys):
    """`lora-hub plugins` lists a broken plugin with its reason and its distribution, beside those that work."""
    install("broken", "raise RuntimeError('my own fault\x1b[2J')")
    run(["plugins"])
    out = capsys.readouterr().out
    (line,) = (line for line in out.splitlines() if line.startswith("broken"))

    assert "my own fault" in line
    assert "dist-broken 1.5" in line
    assert "llama, mistral" in out
    assert out.replace("\n", "").isprintable()


def test_an_unknown_model_type_names_the_broken_plugins(install):
    """When no plugin describes a model, a broken one might have: the error names it."""
    install("broken", "raise RuntimeError('my own fault')")
    with pytest.raises(PluginError, match="no plugin describes the model type `mystery`") as caught:
        plugin_manager.plugins().find("mystery")

    assert "dist-broken" in caught.value.message
    assert "my own fault" in caught.value.message
    assert "lora-hub plugins" in caught.value.hint


@pytest.mark.parametrize("model_type", [None, "", "mystery"])
def test_an_unknown_model_type_is_a_usage_error(model_type):
    """A model that nobody describes is exit code 2, with a hint."""
    with pytest.raises(PluginError) as caught:
        plugin_manager.plugins().find(model_type)

    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_two_plugins_that_claim_one_type_are_an_error(install):
    """Two plugins that describe one model type are both named; nobody guesses which one is right."""
    install("rival", WORKING.format(model_type="llama"))
    with pytest.raises(PluginError, match="`llama` is claimed by") as caught:
        plugin_manager.plugins().find("llama")

    assert "`rival` (plugin_rival, from dist-rival 1.5)" in caught.value.message
    assert "`llama` (lora_hub_plugins.llama, from lora-hub" in caught.value.message
    assert plugin_manager.DISABLED in caught.value.hint
    assert plugin_manager.plugins().find("mistral").name == "llama"


def test_the_command_ends_with_2_when_two_plugins_claim_one_type(install, capsys):
    """`lora-hub plugins` lists all plugins, then names the two that contradict each other, and ends with 2."""
    install("rival", WORKING.format(model_type="llama"))
    code = run(["plugins"])
    out, err = capsys.readouterr()

    assert code == 2
    assert "rival" in out
    assert "plugin_rival" in err
    assert "lora_hub_plugins.llama" in err


def test_a_plugin_can_be_left_out(install, monkeypatch):
    """The hint of a contradiction works: the plugin that the environment names is left out."""
    monkeypatch.setenv(plugin_manager.DISABLED, "other, rival")
    install("rival", WORKING.format(model_type="llama"))

    assert "rival" not in loaded()
    assert plugin_manager.plugins().find("llama").name == "llama"


def test_one_plugin_may_describe_several_types():
    """Claims are counted by model type, not by plugin."""
    architecture = Architecture(name="a", model_types=("x", "y"), projections=(Projection(module="q", parts=("q",)),))
    plugin = Plugin(name="a", module="a", distribution="a", architectures=(architecture,))

    assert Plugins((plugin,)).find("x") is Plugins((plugin,)).find("y") is architecture


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    """A directory into which pip installed `third_party_family`, built from a copy of its sources."""
    source = tmp_path_factory.mktemp("source") / "third_party_family"
    shutil.copytree(THIRD_PARTY, source, ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path_factory.mktemp("target")
    options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(target), str(source)],
        check=True,
        stderr=subprocess.PIPE,
    )
    return target


def test_a_plugin_of_another_distribution_is_installed_with_pip(target):
    """A package that pip installed is seen by a process that has it on its path: name, module, distribution, types."""
    done = subprocess.run(
        [sys.executable, "-m", "lora_hub", "plugins", "--json"],
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )
    by_name = {plugin["name"]: plugin for plugin in json.loads(done.stdout)}

    assert by_name["opt"] == {
        "name": "opt",
        "module": "third_party_family",
        "distribution": "third-party-family 0.3",
        "model_types": ["opt"],
        "methods": [],
        "error": None,
    }
    assert {"bert", "gpt2", "llama"} <= by_name.keys()


def test_an_installed_plugin_is_found_by_model_type(target):
    """In that process the architecture of the model type is the third party's."""
    script = "from lora_hub.plugin_manager import plugins; print(plugins().find('opt').projections[3].module)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout == "self_attn.out_proj\n"
