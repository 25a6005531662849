"""The README tells the truth: its examples run, its commands exist, its figures are those of a committed result."""

import re
import shlex
import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).with_name(name)) for name in ("patch", "checkpoint")]

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_example_of_use_runs(tmp_path, monkeypatch):
    """Every line of the first example runs, in order, on a model of a described family."""
    import models

    model = models.llama()
    models.peft_directory(model, tmp_path / "any-peft-adapter", target_modules=["q_proj"])
    before = models.state(model)
    monkeypatch.chdir(tmp_path)
    names = {"model": model, "train": lambda: models.randomise(models.adapter_parameters(model))}
    source = re.sub(r"^\.\.\.(?= +# train)", "train()", PYTHON[0], flags=re.MULTILINE)
    exec(compile(source, "README.md", "exec"), names)
    import lora_hub

    for handle in list(lora_hub.adapters(model).values()):
        handle.remove()

    assert models.same_bits(models.state(model), before)
    assert (tmp_path / "adapters" / "org" / "task" / "1.0.0" / "lora-hub.json").is_file()


def test_example_of_composing_runs(tmp_path, monkeypatch):
    """An adapter of a registry and a directory are composed, merged into a checkpoint, and found in it again."""
    from adapter_files import adapter_files
    from bases import base_files

    import lora_hub

    monkeypatch.chdir(tmp_path)
    lora_hub.push(adapter_files().write(tmp_path / "out"), "org/task@1.0.0", registry="adapters/")
    adapter_files(seed=2).write(tmp_path / "any-peft-adapter")
    base_files().write(tmp_path / "base")
    names = {"lora_hub": lora_hub}
    exec(PYTHON[3], names)

    assert names["found"].pairs[0].cosine > 0.999


def test_example_of_the_hub_runs(hub, tmp_path, monkeypatch):
    """What is pushed to the Hub comes back by its digest, and by a lock file."""
    import models

    import lora_hub
    from lora_hub import api
    from lora_hub import trust as trusts

    model = models.llama()
    models.peft_directory(model, tmp_path / "out", target_modules=["q_proj"])
    monkeypatch.chdir(tmp_path)
    push, *rest = PYTHON[2].splitlines()
    exec(push, {"lora_hub": lora_hub})
    api.lock(["org/task"])
    (pin,) = trusts.trust().read().pins
    for line in rest:
        names = {"lora_hub": lora_hub, "model": model}
        exec(line.replace("sha256:…", pin.digest), names)
        names["adapter"].remove()

    assert hub.repo("org/task").tags.keys() == {"v1.2.0"}


def test_mixin_of_the_readme_is_a_trainer():
    """The line about `Trainer` makes a class that can be instantiated like one."""
    from transformers import Trainer

    names = {"Trainer": Trainer}
    exec("import lora_hub\n" + PYTHON[1], names)

    assert issubclass(names["AdapterTrainer"], Trainer)


def test_plugin_of_the_readme_is_one():
    """The example plugin returns an architecture, and fits into the promised fifteen lines."""
    names: dict = {}
    exec(compile(PYTHON[4], "README.md", "exec"), names)
    (architecture,) = names["lora_hub_architectures"]()

    assert architecture.projection("h.0.attn.qkv").rows("k", 12, {}) == ((4, 8),)
    assert len([line for line in PYTHON[4].splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^    lora-hub ([a-z]+)", README, re.MULTILINE))))
def test_commands_of_the_readme_exist(command):
    """Every command that the README shows is one."""
    from lora_hub.cli import cli

    assert command in cli.commands


SHELL = re.search(r"## In the shell\n\n(.*?)\n\n[A-Z]", README, re.DOTALL).group(1)


def test_commands_of_the_readme_run(hub, tmp_path, monkeypatch, capfd):
    """Every line of the shell's chapter works, one after the other, for somebody who begins with `out/`."""
    from adapter_files import adapter_files
    from bases import base_files

    import lora_hub
    from lora_hub import vouch
    from lora_hub.cli import run

    monkeypatch.chdir(tmp_path)
    adapter_files().write(tmp_path / "out")
    hub.create("other/task", adapter_files(seed=1).files())
    generate, *lines = [shlex.split(line, comments=True)[1:] for line in SHELL.splitlines()]
    assert run(generate) == 0
    (tmp_path / "alice.pub").write_text(vouch.public_key("org").pem)
    lora_hub.push(adapter_files(seed=2).write(tmp_path / "style"), "org/style@1.0.0")
    base_files().write(tmp_path / "base")

    assert [(words, run(words)) for words in lines] == [(words, 0) for words in lines], capfd.readouterr().err


def test_figures_of_the_readme_are_measured():
    """Each ratio in the tables of the README stands in one of the result files that it names."""
    named = re.findall(r"\((benchmarks/results/[^)]+)\)", README)
    results = [(ROOT / name).read_text(encoding="utf-8") for name in named]
    measured = {row[0]: row[-1] for result in results for row in _rows(result) if len(row) in {4, 5}}
    shown = dict(row for row in _rows(README) if len(row) == 2 and row[1][:1].isdigit())

    assert shown
    assert shown.items() <= measured.items()


def _rows(text):
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
