"""`lora-hub compose -f`: a recipe in a file makes what the same words on the command line make."""

import json

import pytest
from adapter_files import MANIFEST_NAME, adapter_files

RECIPE = """
schema = "lora-hub/recipe/v1"

[[inputs]]
reference = "./a"
weight = 0.7

[[inputs]]
reference = "./b"
weight = 0.3

[method]
rule = "ties"
density = 0.5
seed = 7

[output]
rank = "energy:0.99"

[[layers]]
match = "*.layers.0.*"
weights = { a = 0.9 }
"""
WORDS = ["./a=0.7", "./b=0.3", "--method", "ties", "--density", "0.5", "--seed", "7", "--rank", "energy:0.99"]
LAYER = ["--layer", "*.layers.0.*:a=0.9"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """The directory in which all commands run: two adapters, ./a and ./b, and a recipe of them."""
    place = tmp_path / "project"
    for seed, name in enumerate("ab"):
        adapter_files(seed=seed, r=2 + seed).write(place / name)
    (place / "recipe.toml").write_text(RECIPE)
    monkeypatch.chdir(place)
    return place


def digest(cli, *words) -> str:
    done = cli("compose", *words, "--dry-run", "--json")
    assert done.code == 0, done.err
    return done.data["digest"]


def test_a_recipe_makes_what_its_words_make(cli):
    """The recipe in a file and the same by options have one digest, the lineage included."""
    assert digest(cli, "-f", "recipe.toml") == digest(cli, *WORDS, *LAYER)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_a_recipe_makes_the_same_in_another_process(cli, process, place, threads):
    """Whatever the number of threads, another process gets the digest that this one gets."""
    done = process("compose", "-f", place / "recipe.toml", "--dry-run", "--json", OMP_NUM_THREADS=threads)

    assert (done.code, done.data["digest"]) == (0, digest(cli, "-f", "recipe.toml"))


@pytest.mark.parametrize(
    ("beside", "words"),
    [
        (["--seed", "8"], [*WORDS, *LAYER, "--seed", "8"]),
        (["--density", "0.9", "--rank", "exact"], [*WORDS, *LAYER, "--density", "0.9", "--rank", "exact"]),
        (["--layer", "*:b=0.1"], [*WORDS, "--layer", "*:b=0.1"]),
        (["./b", "./a=2"], ["./b", "./a=2", *WORDS[2:], *LAYER]),
        (["--method", "linear"], [*WORDS[:2], *WORDS[6:], *LAYER]),
        (["--method", "ties"], [*WORDS, *LAYER]),
        (["--dtype", "bfloat16", "--space", "knots"], [*WORDS, *LAYER, "--dtype", "bfloat16", "--space", "knots"]),
    ],
    ids=" ".join,
)
def test_what_is_named_beside_a_recipe_counts_instead(cli, beside, words):
    """Options beside a recipe replace what it says; another method leaves its parameters behind."""
    assert digest(cli, "-f", "recipe.toml", *beside) == digest(cli, *words)


def test_directories_are_seen_from_the_recipe(cli, place, monkeypatch):
    """A recipe means the same wherever it is run; and where its inputs lie is nobody's business."""
    here = digest(cli, "-f", "recipe.toml")
    monkeypatch.chdir(place.parent)
    cli("compose", "-f", "project/recipe.toml", "-o", "new")

    assert cli("info", "./new", "--json").data["digest"] == here
    assert str(place.parent) not in (place.parent / "new" / MANIFEST_NAME).read_text()


def test_the_resolved_recipe_is_written_down(cli, place):
    """Defaults of the method stand in the lineage: it means the same to a version with other defaults."""
    cli("compose", "-f", "recipe.toml", "-o", "new")
    lineage = json.loads((place / "new" / MANIFEST_NAME).read_bytes())["lineage"]

    assert lineage["recipe"]["method"] == {"rule": "ties", "space": "core", "density": 0.5, "scale": 1.0, "seed": 7}
    assert lineage["measured"]["rank_in"] == 5
    assert 0.99 <= lineage["measured"]["worst_retained_energy"] < lineage["measured"]["retained_energy"] < 1
    assert lineage["reproducible"] == "rounded"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["./a", "./wide"], "bit"),
        (["./a"], "bit"),
        (["./a", "./wide", "--weights", "equal"], "bit"),
        (["./a", "./wide", "--weights", "norm"], "rounded"),
        (["./a", "./a"], "rounded"),
        (["./a", "./a", "--rank", "4"], "rounded"),
        (["./a", "./wide", "--rank", "2"], "rounded"),
        (["./a", "./wide", "--rank", "2", "--dtype", "float64"], "tolerance"),
        (["./a", "./wide", "--method", "ties", "--space", "full", "--rank", "2"], "tolerance"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else words,
)
def test_how_far_it_can_be_reproduced_is_written_down(cli, place, words, expected):
    """What is only scaled and stacked is the same bits everywhere; what is decomposed is rounded, unless in float64."""
    adapter_files(seed=9, r=1).write(place / "wide")
    assert cli("compose", *words, "-o", "new").code == 0
    assert json.loads((place / "new" / MANIFEST_NAME).read_bytes())["lineage"]["reproducible"] == expected


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda text: text.replace("density", "densety"), 2, "no parameter `densety`"),
        (lambda text: text.replace("rule", "rul"), 8, "`method.rul`"),
        (lambda text: text.replace("0.7", "inf"), 8, "`inputs[0].weight`"),
        (lambda text: text.replace('"./a"', '"./none"\nid = "a"'), 3, "none"),
        (lambda text: text.replace("*.layers.0.*", "*.layers.7.*"), 2, "*.layers.7.*"),
        (lambda text: text[:-4], 8, "not valid TOML"),
        (lambda text: text.replace("ties", "\\u001b[2J"), 8, "`method.rule`"),
        (lambda _: "", 8, "`schema`"),
    ],
    ids=["parameter", "key", "weight", "directory", "layer", "toml", "control character", "empty"],
)
def test_a_wrong_recipe_is_refused_where_it_is_wrong(cli, place, change, code, message):
    """The error says where in the file, and nothing is written."""
    (place / "wrong.toml").write_text(change(RECIPE))
    done = cli("compose", "-f", "wrong.toml", "-o", "new")

    assert done.code == code
    assert message in done.err
    assert "\x1b[2J" not in done.err
    assert not (place / "new").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [(["-f", "none.toml"], 3), (["-f", "./a"], 2), ([], 2), (["./a", "--seed", "-1"], 2), (["./a=1e7"], 2)],
    ids=["no file", "a directory", "nothing", "seed", "weight"],
)
def test_what_makes_no_recipe_is_refused(cli, words, code):
    """No file, a directory for one, no adapter at all, and what no recipe could say."""
    done = cli("compose", *words, "-o", "new")

    assert done.code == code
    assert "hint:" in done.err


def test_adapters_that_are_called_alike_are_told_apart(cli, place):
    """Of two directories with one name, the second is called so with a number, in a file and beside it."""
    adapter_files(seed=5).write(place / "other" / "a")
    (place / "recipe.toml").write_text(RECIPE.replace("./b", "./other/a"))
    words = [WORDS[0], "./other/a=0.3", *WORDS[2:], *LAYER]

    assert digest(cli, "-f", "recipe.toml") == digest(cli, *words)
    assert [one["id"] for one in cli("compose", *words, "--dry-run", "--json").data["inputs"]] == ["a", "a-2"]


def test_a_directory_may_be_called_anything(cli, place):
    """An input has an id that a recipe may hold, whatever its directory is called; the whole can be made anew."""
    adapter_files(seed=5).write(place / "my adapter (v2)")
    assert cli("compose", "./my adapter (v2)", "./a", "-o", "new").code == 0

    assert cli("verify", "./new", "--recompute", "--input", "my-adapter--v2-=my adapter (v2)").code == 0
