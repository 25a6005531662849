"""A rule of somebody else: through the same hook, listed, used, named when it is broken or claimed twice."""

import re
from pathlib import Path

import pytest
import torch
from made_adapters import composed, delta, random_adapter

from lora_hub import plugin_manager
from lora_hub.cli import run
from lora_hub.errors import PluginError, UsageError

GUIDE = Path(__file__).parents[2] / "docs" / "compose.md"
MEDIAN = """
from lora_hub import Rule, hookimpl

def merge(tasks, settings):
    def merge_block(block):
        return (block.values * tasks.weights).median(dim=0).values
    return merge_block

@hookimpl
def lora_hub_rules():
    return [Rule(name="{name}", paper="mine", formula="median", merge=merge)]
"""


def test_built_in_rules_come_through_the_hook():
    """They are a plugin like any other."""
    (plugin,) = (plugin for plugin in plugin_manager.plugins().plugins if plugin.rules)

    assert plugin.module == "lora_hub.composing.rules"
    assert {"linear", "ties", "iso"} <= {rule.name for rule in plugin.rules}


def test_rule_of_a_third_party_is_used(install):
    """Its name is a method, in every space, and what it returns is the delta."""
    install("median", MEDIAN.format(name="median"))
    weighted = {name: (random_adapter(i), 1.0) for i, name in enumerate("abc")}
    made, _ = composed(weighted, rule="median", space="full", rank="10")
    expected = torch.stack([delta(one) for one, _ in weighted.values()]).median(dim=0).values

    assert (delta(made) - expected).norm() < 1e-9 * expected.norm()
    assert composed(weighted, rule="median")[1].rank_out <= 6


def test_rule_of_the_guide_works(install, capsys):
    """What the guide says to write is a plugin that works, and that is listed."""
    source = re.search(
        r"```python\n(from lora_hub import Parameter.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
    )[1]
    install("clamped", source)
    made, _ = composed(
        {"a": (random_adapter(1), 1.0)}, rule="clamped", parameters={"density": 1.0}, space="full", rank="10"
    )

    assert delta(made).abs().max() <= 1 + 1e-9
    assert run(["plugins"]) == 0
    assert "clamped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('my own fault')", "my own fault"),
        ("from lora_hub import hookimpl\n@hookimpl\ndef lora_hub_rules():\n    return ['ties']", "expected a Rule"),
        (MEDIAN.format(name="x").replace("merge=merge", "merge=3"), "expected a function"),
        (MEDIAN.format(name="x").replace("merge=merge", "merge=merge, spaces=('core')"), "spaces"),
        (MEDIAN.format(name="x").replace("merge=merge", "merge=merge, parameters={'seed': 1}"), "which are taken"),
        (MEDIAN.format(name=""), "name of a rule"),
        (MEDIAN.format(name="My_Rule"), "name of a rule"),
        (MEDIAN.format(name="x").replace("merge=merge", "merge=merge, parameters={'My-share': 1}"), "'My-share'"),
    ],
)
def test_broken_rule_is_named_and_the_others_work(install, source, reason):
    """A method that does not exist might have been the broken plugin's: it is named in the error."""
    install("broken", source)

    assert plugin_manager.plugins().rule("ties").name == "ties"
    with pytest.raises(UsageError, match=r"`broken`.*is broken") as caught:
        plugin_manager.plugins().rule("x")
    assert reason in caught.value.message


def test_without_any_rule_the_hint_says_why(monkeypatch):
    """Where lora-hub's own rules are left out, or were never installed, no list of nothing is shown."""
    monkeypatch.setenv(plugin_manager.DISABLED, "rules")
    plugin_manager.plugins.cache_clear()
    with pytest.raises(UsageError, match="no method `linear`") as caught:
        plugin_manager.plugins().rule("linear")
    plugin_manager.plugins.cache_clear()

    assert plugin_manager.DISABLED in caught.value.hint


def test_two_rules_of_one_name_contradict_each_other(install, capsys):
    """Nobody guesses which one is meant; other methods go on working."""
    install("rival", MEDIAN.format(name="ties"))
    with pytest.raises(PluginError, match=r"the method `ties` is claimed by .*rival"):
        plugin_manager.plugins().rule("ties")

    assert plugin_manager.plugins().rule("dare").name == "dare"
    assert run(["plugins"]) == 2
    assert "the method `ties` is claimed by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("result", "error", "reason"),
    [
        ("block.values", PluginError, r"the method `odd` made \[1, .* of a block"),
        ("3", PluginError, "made int"),
        ("block.values[0] / 0", UsageError, "NaN or infinity in `model"),
        ("block.values[7]", PluginError, "the method `odd` failed in `model.*q_proj`: IndexError"),
    ],
)
@pytest.mark.parametrize("space", ["core", "full"])
def test_rule_that_returns_nonsense_is_named(install, result, error, reason, space):
    """Another shape, no matrix or no numbers: never a traceback of LAPACK, never an adapter."""
    body = f"return {result}"
    install(
        "odd", MEDIAN.format(name="odd").replace("return (block.values * tasks.weights).median(dim=0).values", body)
    )
    with pytest.raises(error, match=reason):
        composed({"a": (random_adapter(1), 1.0)}, rule="odd", space=space, rank="4")
