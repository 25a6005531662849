"""`lora-hub compose --search`: what it prints and writes, and which calls make no sense."""

import json

import pytest
import toy

import lora_hub
from lora_hub.cli import run


@pytest.fixture
def compose(adapters, base, tmp_path, capsys):
    """Run `compose` over the two trained adapters; return its exit code, stdout and stderr."""

    def compose(*words, refs=("one", "two"), base=base):
        named = [] if base is None else ["--base", str(base)]
        capsys.readouterr()
        code = run(
            ["compose", *(str(adapters.get(ref, ref)) for ref in refs), *named, "-o", str(tmp_path / "new"), *words]
        )
        return code, *capsys.readouterr()

    return compose


def test_the_composed_adapter_has_the_found_weights(compose, examples, tmp_path):
    """The table names what was compared, and what is written does on the examples what the report says."""
    code, out, _ = compose("--search", str(examples), "--json")
    report = json.loads(out)
    found = next(entry for entry in report["search"]["losses"] if entry["point"] == "found")
    weights = {entry["id"]: entry["weight"] for entry in report["inputs"]}
    again = lora_hub.search_weights(toy.model(), toy.WordTokenizer(), {"new": tmp_path / "new"}, examples, budget=1)

    assert code == 0
    assert weights == report["search"]["weights"] == found["weights"]
    assert again.at("only new").search == pytest.approx(found["search"], rel=1e-4)
    assert len(report["search"]["trace"]) == 44


def test_the_lineage_has_the_losses(compose, examples, tmp_path):
    """What was found and equal weights are compared in the manifest, which names the examples by their digest."""
    _, out, _ = compose("--search", str(examples), "--json")
    search = json.loads(out)["search"]
    losses = {entry["point"]: entry for entry in search["losses"]}
    measured = json.loads((tmp_path / "new" / "lora-hub.json").read_text())["lineage"]["measured"]

    assert measured["search_loss"] == pytest.approx(losses["found"]["search"], rel=1e-5)
    assert measured["holdout_loss"] == pytest.approx(losses["found"]["holdout"], rel=1e-5)
    assert measured["search_loss_equal"] == pytest.approx(losses["equal weights"]["search"], rel=1e-5)
    assert measured["examples_sha256"] == search["examples"]["sha256"]


def test_people_get_a_table(compose, examples):
    """For people, the losses come first, then the composition; the budget is kept."""
    code, out, err = compose("--search", str(examples), "--budget", "2")

    assert code == 0
    assert out.splitlines()[0].split() == ["MIXTURE", "LOSS", "ON", "16", "ON", "4", "HELD", "OUT", "WEIGHTS"]
    assert [line.split("  ")[0] for line in out.splitlines()[1:6]] == [
        "equal weights", "no adapter", "only one", "only two", "found",
    ]  # fmt: skip
    assert "Searching" not in err


def test_the_seed_is_that_of_the_recipe(compose, examples, tmp_path):
    """Another seed holds out other examples; the same one gives the same bytes."""
    digests = []
    for seed in ("0", "0", "3"):
        _, out, _ = compose("--search", str(examples), "--json", "--seed", seed, "--force")
        digests.append(json.loads(out)["digest"])

    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("words", "options", "code"),
    [
        (["--search", "EXAMPLES"], {"refs": ("./a=1", "two")}, 2),
        (["--search", "EXAMPLES"], {"base": None}, 2),
        (["--search", "EXAMPLES", "--method", "ties"], {}, 2),
        (["--search", "EXAMPLES", "--weights", "equal"], {}, 2),
        (["--search", "EXAMPLES", "--layer", "*:one=2"], {}, 2),
        (["--search", "EXAMPLES", "--budget", "0"], {}, 2),
        (["--search", "EXAMPLES", "--seed", "-1"], {}, 2),
        (["--search", "none.jsonl"], {}, 3),
        (["--search", "EXAMPLES"], {"base": "./none"}, 3),
        (["--budget", "3"], {"base": None}, 2),
        ([], {}, 2),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(compose, examples, tmp_path, words, options, code):
    """Given weights, no base, another method, no examples: refused by the right code, and nothing is written."""
    found, _, err = compose(*[str(examples) if word == "EXAMPLES" else word for word in words], **options)

    assert found == code
    assert "hint:" in err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rank", "foo"], "is no rank"),
        (["--rank", "9999"], "more than any module has"),
        (["--dtype", "int8"], "no dtype"),
        (["--density", "0.5"], "no parameter"),
        (["--budget", "1000000"], "a budget of"),
    ],
)
def test_what_compose_would_refuse_is_refused_before_the_search(compose, examples, words, said):
    """Nobody waits for a search, nor for a base to load, to hear in the end that there is no such rank."""
    code, _, err = compose("--search", str(examples), *words, base="./none")

    assert code == 2
    assert said in err


def test_a_seed_of_a_recipe_is_one_of_a_search(compose, examples):
    """What is larger than the 32 bits of numpy's old generators is a seed as well."""
    code, out, _ = compose("--search", str(examples), "--json", "--seed", str(2**63 - 1), "--budget", "1")

    assert code == 0
    assert json.loads(out)["search"]["optimiser"]["seed"] == 2**63 - 1


def test_a_bad_line_is_named(compose, tmp_path):
    """A malformed example is error 8, with file and line, before the base is loaded."""
    path = toy.jsonl(tmp_path / "bad.jsonl", [("w1", " w2"), {"prompt": "w1"}])
    code, _, err = compose("--search", str(path), base="./none")

    assert code == 8
    assert "line 2.completion" in err
