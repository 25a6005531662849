"""`lora-hub info` of a composed adapter: the tree of what it was made of, whatever its manifest says."""

import dataclasses

import pytest
from adapter_files import MANIFEST_NAME, adapter_files

from lora_hub.adapter_directory import read_adapter
from lora_hub.ancestry import MAX_DEPTH
from lora_hub.documents.lineage import Lineage, LineageBase, LineageInput
from lora_hub.documents.manifest import Manifest
from lora_hub.documents.recipe import MAX_INPUTS

UNKNOWN = f"sha256:{'7e' * 32}"
RECIPE = {
    "schema": "lora-hub/recipe/v1",
    "method": {"rule": "ties", "seed": 7, "density": 0.5},
    "output": {"rank": "energy:0.9999", "weights": "given"},
}


def an_input(called="sql", *, digest=UNKNOWN, **changes) -> LineageInput:
    return LineageInput(**{"id": called, "weight": 0.7, "digest": digest, "signers": (), **changes})


def a_lineage(*inputs: LineageInput, **changes) -> Lineage:
    usual = {
        "kind": "compose",
        "inputs": inputs,
        "base": LineageBase(repo="org/base"),
        "recipe": RECIPE,
        "tool": "lora-hub 0.1.0",
        "measured": {"retained_energy": 0.9998},
        "reproducible": "rounded",
    }
    return Lineage(**usual | changes)


@pytest.fixture
def made(tmp_path):
    """Write an adapter that says it comes from a lineage, and return its directory and its digest."""

    def made(name: str, lineage: Lineage, seed: int = 0):
        directory = adapter_files(seed=seed).write(tmp_path / name)
        manifest = dataclasses.replace(read_adapter(directory).manifest, lineage=lineage)
        (directory / MANIFEST_NAME).write_bytes(manifest.to_bytes())
        return directory, read_adapter(directory).digest

    return made


def tree(out: str) -> list[str]:
    """Return the lines from that of the lineage on, without their common indent."""
    lines = out.splitlines()
    start = next(position for position, line in enumerate(lines) if line.startswith("lineage:"))
    return [line[21:] for line in lines[start:]]


def test_the_inputs_are_drawn(cli, made):
    """How it was made stands first, and below it each input: weight, name, digest, signers."""
    named = an_input("sql", name="org/sql", version="1.0.0", signers=("key ab12",))
    directory, _ = made("child", a_lineage(named, an_input("mine", weight=-1.0)))
    done = cli("info", directory)

    assert done.code == 0
    assert tree(done.out) == [
        (
            "compose, of org/base, rule ties, density 0.5, seed 7, rank energy:0.9999, weights given, "
            "retained energy 0.9998, by lora-hub 0.1.0"
        ),
        f"├─ 0.7  org/sql@1.0.0  {UNKNOWN}  signed by key ab12",
        f"└─ -1  mine  {UNKNOWN}  from a directory",
    ]


def test_what_was_not_composed_has_no_tree(cli, adapter):
    """An adapter that was trained has no lineage, in either form."""
    assert "lineage" not in cli("info", adapter).out
    assert cli("info", adapter, "--json").data["lineage"] is None


def test_the_lineage_is_data(cli, made):
    """As JSON it is what the manifest says, and what each input can be asked for by."""
    named = an_input("sql", name="org/sql", version="1.0.0", signers=("key ab12",))
    directory, _ = made("child", a_lineage(named))
    (entry,) = cli("info", directory, "--json").data["lineage"]["inputs"]

    assert entry == {
        "id": "sql",
        "weight": 0.7,
        "digest": UNKNOWN,
        "signers": ["key ab12"],
        "name": "org/sql",
        "version": "1.0.0",
        "reference": "org/sql@1.0.0",
        "lineage": None,
    }


def test_a_parent_in_the_store_is_drawn_with_its_own(cli, made, registry):
    """Of an input that is on this machine, its own inputs are drawn below it."""
    parent, _ = made("parent", a_lineage(an_input("grandparent")))
    digest = cli("push", parent, "org/parent@1.0.0", "--json").data["digest"]
    cli("pull", "org/parent@1.0.0")
    child, _ = made("child", a_lineage(an_input("parent", digest=digest, name="org/parent", version="1.0.0")))
    lines = tree(cli("info", child).out)

    assert [line[:6] for line in lines[1:]] == ["└─ 0.7", "   com", "   └─ "]
    assert lines[3].startswith("   └─ 0.7  grandparent")


def test_a_parent_beside_it_is_drawn_with_its_own(cli, made):
    """An input that came from a directory is looked for beside the adapter, and only by its digest believed."""
    _, digest = made("parent", a_lineage(an_input("grandparent")))
    child, _ = made("child", a_lineage(an_input("parent", digest=digest)))
    stranger, _ = made("stranger", a_lineage(an_input("parent", digest=UNKNOWN)))

    assert "grandparent" in cli("info", child).out
    assert "grandparent" not in cli("info", stranger).out


def test_the_lineage_of_a_published_version_is_shown_without_its_weights(cli, made, registry):
    """`info` of a reference shows the lineage from the manifest alone; push has kept it."""
    child, _ = made("child", a_lineage(an_input("sql")))
    cli("push", child, "org/child@1.0.0")
    weights = registry / "org" / "child" / "1.0.0" / "adapter_model.safetensors"
    weights.write_bytes(bytes(weights.stat().st_size))
    done = cli("info", "org/child@1.0.0")

    assert done.code == 0
    assert "0.7  sql" in done.out


def test_another_lineage_is_other_content(cli, made, registry):
    """What a version was made of is a part of it: the same weights from elsewhere are a conflict."""
    child, _ = made("child", a_lineage(an_input("sql")))
    cli("push", child, "org/child@1.0.0")
    other, _ = made("other", a_lineage(an_input("chat")))

    assert cli("push", child, "org/child@1.0.0").code == 0
    assert cli("push", other, "org/child@1.0.0").code == 10


def test_an_adapter_is_looked_into_once(cli, made):
    """Whoever appears many times, in one generation or in several, is drawn with its inputs only the first time."""
    digest = UNKNOWN
    for name in "abcde":  # five generations; drawn out, the last one has 64^4 nodes below it
        inputs = [an_input(f"{name}{position}", digest=digest) for position in range(MAX_INPUTS)]
        inputs[0] = dataclasses.replace(inputs[0], id=chr(ord(name) - 1) if name > "a" else "a0")
        directory, digest = made(name, a_lineage(*inputs))
    done = cli("info", directory)

    assert done.code == 0
    assert len(tree(done.out)) == 5 * MAX_INPUTS + 5


def test_generations_are_bounded(cli, made):
    """The tree ends at a depth, however long the line of ancestors is."""
    digest, name = UNKNOWN, "first"
    for generation in range(MAX_DEPTH + 4):
        inputs = an_input(name, digest=digest)
        name = f"generation-{generation}"
        directory, digest = made(name, a_lineage(inputs))

    assert cli("info", directory).out.count("└─") == MAX_DEPTH


@pytest.mark.parametrize(
    "changes",
    [
        {"tool": "\x1b[2Jlora-hub\r\n"},
        {"recipe": {"method": {"rule\x1b[2J": "\x1b[31mties\r\n"}, "output": ["\x1b"], "layers": [[["\x1b[2J"]]]}},
        {"measured": {"worst_module": "\x1b]0;title\x07"}},
        {"base": LineageBase(repo="org/\x1b[2Jbase", revision="\n\n")},
        {"inputs": (an_input(signers=("\x1b[2Jkey", "\u202ekey")),)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_nothing_in_a_lineage_moves_the_cursor(cli, made, changes):
    """Whatever a manifest says, a terminal shows it as plain text, in as many lines as the tree has."""
    directory, _ = made("child", a_lineage(an_input()) if "inputs" in changes else a_lineage(an_input(), **changes))
    if "inputs" in changes:
        directory, _ = made("hostile", a_lineage(*changes["inputs"]))
    done = cli("info", directory)

    assert done.code == 0
    assert all(line.isprintable() for line in done.out.splitlines())
    assert len(tree(done.out)) == 2
    assert cli("info", directory, "--json").out.isascii()


def test_the_recipe_of_a_later_version_is_shown_as_far_as_it_can_be(cli, made):
    """A recipe that this version cannot read makes no adapter unusable, and is shown where it has the same form."""
    recipe = {"schema": "lora-hub/recipe/v2", "method": {"rule": {"name": "new"}, "power": 2}, "output": []}
    directory, _ = made("child", a_lineage(an_input(), recipe=recipe))

    assert tree(cli("info", directory).out)[0].startswith("compose, of org/base, rule …, power 2, ")
    assert Manifest.parse((directory / MANIFEST_NAME).read_bytes()).lineage.recipe == recipe
