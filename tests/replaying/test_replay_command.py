"""`lora-hub check --replay`: many adapters on one base, with the findings where all others are."""

import json

import models
import pytest
import torch

import lora_hub
from lora_hub.cli import run


@pytest.fixture
def base(tmp_path):
    """The directory of the tiny LLaMA."""
    models.llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapters(tmp_path, saved, base, monkeypatch):
    """Adapters in the working directory: one with golden outputs, one without, one whose weights changed since."""
    monkeypatch.chdir(tmp_path)
    model = models.llama()
    for name in ("recorded", "silent", "changed"):
        saved(model, tmp_path / name)
    lora_hub.record_golden(model, tmp_path / "recorded")
    golden = json.loads((tmp_path / "recorded" / "lora-hub.json").read_text())["golden"]
    saved(model, tmp_path / "changed", size=0.1)
    manifest = tmp_path / "changed" / "lora-hub.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"golden": golden}))
    return tmp_path


def check(capsys, *words):
    """Return the exit code, and the codes of the replay's findings in each adapter, ignored ones in lower case."""
    code = run(["check", *words, "--format", "json"])
    reports = json.loads(capsys.readouterr().out)["reports"]
    found = {
        report["source"]: [f["code"] for f in report["findings"] if f["code"] >= "LH9"]
        + [f["code"].lower() for f in report["ignored"] if f["code"] >= "LH9"]
        for report in reports
    }
    return code, found


def test_a_replay_is_part_of_the_check(adapters, capsys):
    """What passed adds nothing, what is not recorded a note, what differs an error about the adapter."""
    code, found = check(capsys, "./recorded", "./silent", "./changed", "--base", "./base", "--replay")

    assert code == 8
    assert found == {"recorded": [], "silent": ["LH904"], "changed": ["LH901"]}


def test_without_the_option_nothing_is_replayed(adapters, capsys):
    """A check alone finds nothing of this."""
    code, found = check(capsys, "./changed", "--base", "./base")

    assert (code, found) == (0, {"changed": []})


def test_another_base_is_an_error_about_the_base(adapters, capsys):
    """A base of the same shape that gives other outputs ends the check with 9."""
    other = models.llama()
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    other.save_pretrained(adapters / "base")
    code, found = check(capsys, "./recorded", "--base", "./base", "--replay")

    assert found == {"recorded": ["LH902"]}
    assert code == 9


@pytest.mark.parametrize("ignored", ["LH901", "LH9"])
def test_what_a_replay_finds_can_be_ignored(adapters, capsys, ignored):
    """`--ignore` holds for a replay too; what is ignored is still listed."""
    code, found = check(capsys, "./changed", "--base", "./base", "--replay", "--ignore", ignored)

    assert (code, found) == (0, {"changed": ["lh901"]})


def test_an_exception_of_the_manifest_counts(adapters, capsys):
    """What the publisher allowed it to break stands apart, as for all rules."""
    manifest = adapters / "changed" / "lora-hub.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"exceptions": ["LH901"]}))
    code, found = check(capsys, "./changed", "--base", "./base", "--replay")

    assert (code, found) == (0, {"changed": ["lh901"]})


def test_an_adapter_with_errors_is_not_run(adapters, capsys):
    """What a check of the files refuses never reaches the model: there is nothing of a replay in its report."""
    config = adapters / "changed" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 16'))
    code, found = check(capsys, "./changed", "--base", "./base", "--replay")

    assert (code, found) == (8, {"changed": []})


def test_a_replay_needs_a_base(adapters, capsys):
    """Without a base there is nothing to run."""
    assert run(["check", "./recorded", "--replay"]) == 2
    assert "--base" in capsys.readouterr().err


def test_golden_outputs_of_another_model_are_about_the_base(adapters, capsys):
    """Inputs that the base cannot read are a finding, not a crash."""
    manifest = adapters / "recorded" / "lora-hub.json"
    document = json.loads(manifest.read_text())
    document["golden"]["cases"][0]["tokens"] = [61]
    manifest.write_text(json.dumps(document))
    code, found = check(capsys, "./recorded", "--base", "./base", "--replay")

    assert (code, found) == (9, {"recorded": ["LH902"]})


def test_a_classifier_is_replayed_with_its_head(tmp_path, saved, capsys, monkeypatch):
    """The head that the adapter brings makes a classifier of a base that has none."""
    monkeypatch.chdir(tmp_path)
    model = models.llama_classifier()
    saved(model, tmp_path / "out", modules_to_save=["score"])
    lora_hub.record_golden(model, tmp_path / "out")
    language_model = models.llama()
    language_model.model.load_state_dict(model.model.state_dict())
    language_model.save_pretrained(tmp_path / "base")
    code, found = check(capsys, "./out", "--base", "./base", "--replay")

    assert found == {"out": []}
    assert code == 0
