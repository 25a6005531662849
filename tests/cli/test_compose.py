"""compose on the command line: references and weights, what is printed, what is refused."""

import json
import math

import pytest
from adapter_files import adapter_files

from lora_hub.cli.weights import weighted


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """Two adapters of one base, ./a and ./b, and one of another, ./c."""
    monkeypatch.chdir(tmp_path)
    adapter_files(seed=1, r=2).write(tmp_path / "a")
    adapter_files(seed=2, r=3, use_rslora=True).write(tmp_path / "b")
    adapter_files(seed=3, base_model_name_or_path="org/other").write(tmp_path / "c")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/a@1=0.7", ("org/a@1", 0.7)), ("org/a", ("org/a", 1.0)), ("toxic=-0.5", ("toxic", -0.5)),
        ("./dir=0.5=2", ("./dir=0.5", 2.0)), ("./x=y", ("./x=y", 1.0)), ("a=+1e-2", ("a", 0.01)), ("a=.5", ("a", 0.5)),
        ("a=-inf", ("a", -math.inf)), ("a=1_0", ("a=1_0", 1.0)), ("a=", ("a=", 1.0)), ("a=٣", ("a=٣", 1.0)),
    ],
)  # fmt: skip
def test_weight_is_the_number_after_the_last_equals_sign(text, expected):
    """What is no number belongs to the path."""
    assert weighted(text) == expected


def test_weight_that_is_not_a_number_is_refused_as_a_weight(cli, inputs):
    """``=nan`` is no part of a path: who computed a weight is told that it is wrong."""
    refused = cli("compose", "./a=nan", "./b", "-o", "new")

    assert refused.code == 2
    assert "the weight of `./a` is nan" in refused.err
    assert not (inputs / "new").exists()


def test_composes_and_says_what_was_lost(cli, inputs):
    """Two adapters, one subtracted: the ranks, the retained energy, the worst module, the digest."""
    done = cli("compose", "./a=0.7", "./b=-0.5", "-o", "new", "--rank", "3")

    assert done.code == 0
    assert "linear: +0.7 a -0.5 b" in done.out
    assert "4 modules, rank 5 -> 3, float32" in done.out
    assert "worst module model.layers." in done.out
    assert cli("info", "./new", "--json").data["digest"] in done.out


def test_weights_that_are_computed_are_not_shown_as_given(cli, inputs):
    """What stands beside a name is not all that its delta is multiplied with."""
    assert "linear: +1 a +1 b, weights equal" in cli("compose", "./a", "./b", "--weights", "equal", "--dry-run").out


def test_composed_from_a_registry(cli, inputs, published):
    """A reference is resolved, proven and composed as a directory is; what comes out can be published."""
    done = cli("compose", "org/task@^1=0.5", "./a", "-o", "new", "--json")

    assert done.data["inputs"][0]["digest"] == published
    assert [one["id"] for one in done.data["inputs"]] == ["task", "a"]
    assert cli("push", "new", "org/both@1.0.0").code == 0


def test_one_adapter_is_resized(cli, inputs):
    """With one reference, compose changes the rank."""
    report = cli("compose", "./b", "-o", "small", "--rank", "energy:0.8", "--json").data["report"]

    assert report["rank_out"] < 3
    assert all(module["kept"] >= 0.8 for module in report["modules"])


def test_dry_run_writes_nothing(cli, inputs):
    """It computes and reports the same, with or without a directory."""
    dry = cli("compose", "./a", "./b", "--method", "ties", "--dry-run", "-o", "new", "--json").data

    assert not (inputs / "new").exists()
    assert dry["output"] is None
    assert dry["digest"] == cli("compose", "./a", "./b", "--method", "ties", "-o", "new", "--json").data["digest"]


def test_layers_have_other_weights(cli, inputs):
    """An adapter is called by the last part of its name; the second of one name is name-2."""
    options = ["--layer", "*.layers.0.*:a=0.25", "--layer", "*.layers.0.*:a-2=0"]
    done = cli("compose", "./a", "./a=-1", "--dry-run", *options, "--json").data
    weights = {module["path"]: module["weights"] for module in done["report"]["modules"]}

    assert weights["model.layers.0.self_attn.q_proj"] == [0.25, 0]
    assert weights["model.layers.1.self_attn.q_proj"] == [1, -1]


def test_parameters_reach_the_method(cli, inputs):
    """By an option of their own or by --set; the seed as well."""

    def digest(*options: str) -> str:
        return cli("compose", "./a", "./b", "--dry-run", "--method", "dare", *options, "--json").data["digest"]

    assert digest("--density", "0.3") == digest("--set", "density=0.3") != digest("--density", "0.4")
    assert digest("--seed", "1") == digest("--seed", "1") != digest("--seed", "2")
    assert digest() != digest("--scale", "2")


def test_full_directory_is_not_overwritten(cli, inputs):
    """Unless --force says so; and it is looked at before anything is computed."""
    before = (inputs / "a" / "adapter_model.safetensors").read_bytes()
    refused = cli("compose", "./zz", "-o", "a")

    assert (refused.code, "`a` is not empty" in refused.err, "--force" in refused.err) == (2, True, True)
    assert (inputs / "a" / "adapter_model.safetensors").read_bytes() == before
    assert cli("compose", "./b", "-o", "a", "--force").code == 0
    assert cli("info", "./a", "--json").data["r"] == 3


WRONG = {
    "nothing": (["-o", "new"], 2, "REF"),
    "no output": (["./a"], 2, "no directory for the result"),
    "other base": (["./a", "./c", "-o", "new"], 9, "--allow-other-base"),
    "no such directory": (["./zz", "-o", "new"], 3, "there is no directory"),
    "path without a dot": (["a", "-o", "new"], 2, "./a"),
    "no such method": (["./a", "-o", "new", "--method", "tise"], 2, "did you mean `ties`"),
    "parameter of another": (["./a", "-o", "new", "--density", "0.5"], 2, "no parameter `density`"),
    "density of nothing": (["./a", "-o", "new", "--method", "ties", "--density", "nan"], 2, "more than 0"),
    "no number": (["./a", "-o", "new", "--set", "density"], 2, "sets no parameter"),
    "no layer": (["./a", "-o", "new", "--layer", "zz=1"], 2, "no weight of a layer"),
    "no rank": (["./a", "-o", "new", "--rank", "most"], 2, "energy:0.99"),
    "huge weight": (["./a=1e300", "-o", "new"], 2, "the weight of `a`"),
    "infinite weight": (["./a=1e999", "-o", "new"], 2, "the weight of"),
    "equal and given": (["./a=2", "./b", "-o", "new", "--weights", "equal"], 2, "contradict"),
    "output is a file": (["./a", "-o", "a/adapter_config.json"], 2, "is a file"),
    "output below a file": (["./a", "-o", "a/adapter_config.json/new"], 11, "adapter_config.json"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_use_is_explained(cli, inputs, what):
    """Exit code and what to do next; nothing is written."""
    words, code, reason = WRONG[what]
    done = cli("compose", *words)

    assert (done.code, reason in done.err) == (code, True), done.err
    assert not (inputs / "new").exists()


def test_errors_are_json_if_asked(cli, inputs):
    """As everywhere."""
    assert cli("compose", "./a", "./c", "-o", "new", "--json").error["exit_code"] == 9


def test_output_is_data_and_remarks_are_not(cli, inputs):
    """Remarks of the report go to stderr."""
    done = cli("compose", "./a", "--rank", "fit:vllm", "--dry-run", "--json")

    assert json.loads(done.out)["report"]["rank_out"] == 8
    assert "max_lora_rank" in done.err
