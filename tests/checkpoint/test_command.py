"""`lora-hub merge`: what it prints, its exit codes, and that a dry run writes nothing."""

import json

import pytest
from adapter_files import HIDDEN, adapter_files
from bases import base_files, content, json_in, output_adapter


def test_merge(cli, base, adapter, tmp_path):
    """It prints where the model lies, and how exact the least exact modules are."""
    done = cli("merge", base, f"{adapter}=0.5", "-o", tmp_path / "out")

    assert done.code == 0, done.err
    assert "LEAST EXACT MODULES" in done.out
    assert "4 modules changed, gain 1.0000" in done.out
    assert str(tmp_path / "out") in done.out
    assert "not copied from the base: pytorch_model.bin" in done.err
    assert json_in(tmp_path / "out", "lora_hub.merge.json")["adapters"][0]["weight"] == 0.5


def test_merge_as_json(cli, base, adapter, tmp_path):
    """The report for programs."""
    done = cli("merge", base, adapter, "-o", tmp_path / "out", "--json")
    document = json.loads(done.out)

    assert document["modules"].keys() == {
        f"model.layers.{layer}.self_attn.{name}_proj" for layer in (0, 1) for name in "qv"
    }
    assert document["files"] == json_in(tmp_path / "out", "lora_hub.merge.json")["files"]
    assert document["output"] == str(tmp_path / "out")


def test_a_dry_run_prints_the_plan_and_writes_nothing(cli, base, adapter, tmp_path):
    """Shards, changed tensors, bytes to write and bytes free."""
    done = cli("merge", base, adapter, "-o", tmp_path / "out", "--dry-run")
    as_json = json.loads(cli("merge", base, adapter, "-o", tmp_path / "out", "--dry-run", "--json").out)

    assert done.code == 0, done.err
    assert done.out.splitlines()[0].split() == ["SHARD", "SIZE", "CHANGED", "TENSORS"]
    assert "4 tensors changed" in done.out
    assert "not copied from the base: pytorch_model.bin" in done.err
    assert not (tmp_path / "out").exists()
    assert [len(shard["touched"]) for shard in as_json["shards"]] == [0, 2, 2]
    assert as_json["size"] == sum(path.stat().st_size for path in base.glob("*.safetensors"))


def test_the_plan_is_what_is_written(cli, base, tmp_path):
    """Also where a tensor is new and all become another dtype."""
    adapter = output_adapter().write(tmp_path / "adapter")
    base = base_files(tied=True).write(tmp_path / "tied")
    words = ("merge", base, adapter, "-o", tmp_path / "out", "--dtype", "bfloat16", "--json")
    planned, merged = json.loads(cli(*words, "--dry-run").out), json.loads(cli(*words).out)
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")}

    assert {shard["name"]: shard["size"] for shard in planned["shards"]} == sizes
    assert planned["recipe"] == merged["recipe"]


def test_a_path_may_hold_an_equals_sign(cli, base, tmp_path):
    """Only a number behind the last one is a weight."""
    adapter = adapter_files().write(tmp_path / "run=a")

    assert cli("merge", base, adapter, "-o", tmp_path / "one").code == 0
    assert cli("merge", base, f"{adapter}=2", "-o", tmp_path / "two").code == 0
    assert json_in(tmp_path / "two", "lora_hub.merge.json")["adapters"][0]["weight"] == 2


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"base": "./nowhere"}, 3),
        ({"adapter": "./nowhere"}, 3),
        ({"adapter": "nowhere"}, 2),
        ({"options": ["--dtype", "int8"]}, 2),
        ({"options": ["--resume"], "output": "base"}, 2),
        ({"output": "base"}, 2),
        ({"output": "adapter/adapter_config.json"}, 2),
        ({"weight": "=0"}, 2),
        ({"weight": "=nan"}, 2),
    ],
)
def test_exit_codes(cli, base, adapter, tmp_path, change, code):
    """What is wrong has its code and a hint, and nothing is written."""
    before = content(base)
    found = {"base": base, "adapter": adapter, "output": "out", "weight": "", "options": [], **change}
    done = cli(
        "merge",
        found["base"],
        f"{found['adapter']}{found['weight']}",
        "-o",
        tmp_path / found["output"],
        *found["options"],
    )

    assert done.code == code, done.err
    assert "hint:" in done.err
    assert not (tmp_path / "out").exists()
    assert content(base) == before


def test_an_adapter_that_is_named_twice(cli, base, adapter, tmp_path):
    """The sum of the weights is meant, or a mistake."""
    done = cli("merge", base, adapter, f"{adapter}=2", "-o", tmp_path / "out")

    assert (done.code, "named twice" in done.err) == (2, True)


def test_what_does_not_fit_is_exit_code_9(cli, base, tmp_path):
    """As everywhere."""
    adapter = output_adapter(HIDDEN).write(tmp_path / "adapter")

    assert cli("merge", base, adapter, "-o", tmp_path / "out").code == 9
    assert not (tmp_path / "out").exists()
