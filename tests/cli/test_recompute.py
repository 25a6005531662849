"""`lora-hub verify --recompute`: whether a composed adapter is what its lineage says."""

import dataclasses
import json
import shutil
import struct
from pathlib import Path

import pytest
from adapter_files import MANIFEST_NAME, WEIGHTS_NAME, adapter_files

from lora_hub.documents.manifest import PAYLOAD_NAMES, FileEntry, Manifest
from lora_hub.signing.keys import PrivateKey
from lora_hub.trust import read_public_key

UNKNOWN = f"sha256:{'7e' * 32}"


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch) -> Path:
    """The directory in which all commands run: two adapters, ./a and ./b."""
    place = tmp_path / "project"
    for seed, name in enumerate("ab"):
        adapter_files(seed=seed, r=1 + seed, dtype="BF16").write(place / name)
    monkeypatch.chdir(place)
    return place


@pytest.fixture
def composed(cli, place) -> Path:
    """The directory of what was composed of ./a and ./b."""
    assert cli("compose", "./a=0.7", "./b=0.3", "--method", "ties", "--dtype", "float32", "-o", "new").code == 0
    return place / "new"


def edit_manifest(directory: Path, change) -> None:
    """Change the document of the manifest in *directory*; what it says of the files is made true."""
    document = json.loads((directory / MANIFEST_NAME).read_bytes())
    change(document)
    manifest = Manifest.parse(json.dumps(document).encode())
    files = tuple(FileEntry.of(name, (directory / name).read_bytes()) for name in PAYLOAD_NAMES)
    (directory / MANIFEST_NAME).write_bytes(dataclasses.replace(manifest, files=files).to_bytes())


def edit_value(directory: Path, change) -> None:
    """Change the last float32 in the weights of *directory*, and describe them anew."""
    content = bytearray((directory / WEIGHTS_NAME).read_bytes())
    content[-4:] = change(bytes(content[-4:]))
    (directory / WEIGHTS_NAME).write_bytes(content)
    edit_manifest(directory, lambda _: None)


def scaled(factor: float):
    return lambda four: struct.pack("<f", struct.unpack("<f", four)[0] * factor)


def next_up(four: bytes) -> bytes:
    return (int.from_bytes(four, "little") + 1).to_bytes(4, "little")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--rank", "exact", "--weights", "norm"],
        ["--rank", "2", "--dtype", "float16"],
        ["--method", "ties", "--rank", "energy:0.9"],
        ["--method", "dare", "--space", "full", "--rank", "2", "--seed", "3"],
        ["--method", "della", "--space", "knots", "--seed", "3"],
        ["--method", "breadcrumbs", "--density", "0.8"],
        ["--layer", "*.layers.0.*:a=-1", "--rank", "fit:vllm"],
    ],
    ids=" ".join,
)
def test_what_was_composed_is_made_again(cli, words):
    """The recipe in the manifest gives the same bytes, whatever was asked for."""
    assert cli("compose", "./a=0.7", "./b=0.3", *words, "-o", "new").code == 0
    done = cli("verify", "./new", "--recompute")

    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "recomputed: bit-equal"


def test_what_was_found_is_data(cli, composed):
    """As JSON: how far it is the same, each module's difference, and why each input was taken."""
    done = cli("verify", "./new", "--recompute", "--json").data["recomputed"]

    assert (done["agreement"], done["difference"], set(done["modules"].values())) == ("bit-equal", 0.0, {0.0})
    assert done["inputs"].keys() == {"a", "b"}
    assert "recomputed" not in cli("info", "./new", "--json").data


@pytest.mark.parametrize("factor", [1.01, -1.0, 0.0], ids=str)
def test_a_changed_value_is_found(cli, composed, factor):
    """One number that is another one is found, although manifest and files agree: exit 6."""
    edit_value(composed, scaled(factor))
    done = cli("verify", "./new", "--recompute")

    assert cli("info", "./new").code == 0
    assert done.code == 6
    assert "differs by" in done.err


def test_a_value_that_was_rounded_the_other_way_is_told(cli, composed):
    """One number that is the next one of its dtype is said to be rounded, with the difference that it makes."""
    edit_value(composed, next_up)
    done = cli("verify", "./new", "--recompute")

    assert done.code == 0
    assert done.out.splitlines()[-1].startswith("recomputed: rounded")
    assert 0 < cli("verify", "./new", "--recompute", "--json").data["recomputed"]["difference"] < 1e-7


def test_a_small_difference_is_a_tolerance_and_said(cli, composed):
    """What is more than rounding and less than the limit is the same within a tolerance, which is named."""
    edit_value(composed, scaled(1.0001))
    done = cli("verify", "./new", "--recompute")

    assert done.code == 0
    assert "within a tolerance: norm(D' - D) / norm(D) is at most" in done.out


def test_a_promise_of_the_same_bits_is_kept(cli, place):
    """Where the lineage promises the same bits, the next number is another one: exit 6."""
    adapter_files(seed=5, r=1, dtype="F32").write(place / "c")
    cli("compose", "./a", "./c", "-o", "new")
    assert Manifest.parse((place / "new" / MANIFEST_NAME).read_bytes()).lineage.reproducible == "bit"
    edit_value(place / "new", next_up)

    assert cli("verify", "./new", "--recompute").code == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda lineage: lineage["inputs"][0].update(weight=0.6),
        lambda lineage: lineage["recipe"]["method"].update(density=0.4),
        lambda lineage: lineage["recipe"]["method"].update(rule="magnitude"),
        lambda lineage: lineage["recipe"]["output"].update(rank="1"),
        lambda lineage: lineage["recipe"]["output"].update(dtype="bfloat16"),
        lambda lineage: lineage["inputs"].pop(),
    ],
    ids=["weight", "density", "rule", "rank", "dtype", "inputs"],
)
def test_a_lineage_that_is_not_true_is_found(cli, composed, change):
    """An adapter that was made otherwise than its manifest says is refused: exit 6."""
    edit_manifest(composed, lambda document: change(document["lineage"]))

    assert cli("verify", "./new", "--recompute").code == 6


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda document: document.pop("lineage"), 2, "has no lineage"),
        (lambda document: document["lineage"].update(kind="extract"), 2, "`extract`"),
        (lambda document: document["lineage"]["recipe"].update(schema="lora-hub/recipe/v2"), 8, "version 2"),
        (lambda document: document["lineage"]["recipe"]["method"].update(power=2), 2, "no parameter `power`"),
        (lambda document: document["lineage"]["recipe"]["method"].update(rule="new"), 2, "no method `new`"),
        (lambda document: document["lineage"]["inputs"].clear(), 8, "inputs"),
        (lambda document: document["lineage"]["inputs"][0].update(digest=UNKNOWN), 3, "`a`"),
    ],
    ids=["none", "kind", "schema", "parameter", "rule", "inputs", "digest"],
)
def test_what_cannot_be_made_again_is_refused(cli, composed, change, code, message):
    """No lineage, one of another kind, a recipe of a later version, an input that is nowhere: each says so."""
    edit_manifest(composed, change)
    done = cli("verify", "./new", "--recompute")

    assert done.code == code
    assert message in done.err
    assert "hint:" in done.err


def test_an_input_that_is_gone_can_be_named(cli, composed, place):
    """A directory that is not beside the adapter is named by its id; only the digest counts."""
    shutil.move(place / "a", place.parent / "elsewhere")
    missing = cli("verify", "./new", "--recompute")

    assert missing.code == 3
    assert "`--input a=DIR`" in missing.err
    assert cli("verify", "./new", "--recompute", "--input", f"a={place.parent / 'elsewhere'}").code == 0
    assert cli("verify", "./new", "--recompute", "--input", "a=./b").code == 3


@pytest.mark.parametrize(
    "words",
    [["--input", "a=./a"], ["--recompute", "--input", "x=./a"], ["--recompute", "--input", "./a"]],
    ids=" ".join,
)
def test_an_input_is_named_by_its_id(cli, composed, words):
    """`--input` needs `--recompute`, an id of the lineage and a directory: exit 2."""
    assert cli("verify", "./new", *words).code == 2


def test_an_unsigned_draft_is_verified_only_to_be_recomputed(cli, composed):
    """Without --recompute, and where somebody must have signed it, a draft is refused as ever: exit 5."""
    assert cli("verify", "./new").code == 5
    assert cli("verify", "./new", "--recompute").code == 0


# Signed and published


@pytest.fixture
def released(cli, become, registry, place):
    """Alice has signed and published org/a and org/b, and org/new that she composed of them; return her home."""
    home = become("alice")
    cli("key", "generate", "org")
    for name in "ab":
        cli("push", name, f"org/{name}@1.0.0")
    assert cli("compose", "org/a@1=0.7", "org/b@1=0.3", "--method", "ties", "-o", "new").code == 0
    assert cli("push", "new", "org/new@1.0.0").code == 0
    return home


@pytest.fixture
def bob(cli, released, become):
    """The fingerprint of alice's key, whom bob trusts, who one is from now on."""
    become("bob")
    key = released / "keys" / "org.pub"
    assert cli("trust", "add", key, "--scope", "org/*", "--name", "alice").code == 0
    return read_public_key(key).fingerprint


def test_a_signed_composition_is_verified_down_to_its_inputs(cli, released, bob):
    """Who trusts the signer sees of what it was made, by whose signatures, and can make it again."""
    assert cli("pull", "org/new@1.0.0").code == 0
    shown, digest = cli("info", "org/new@1.0.0").out, cli("info", "org/a@1.0.0", "--json").data["digest"]
    done = cli("verify", "org/new@1.0.0", "--recompute", "--json")

    assert f"0.7  org/a@1.0.0  {digest}  signed by key {bob}" in shown
    assert done.code == 0, done.err
    assert done.data["recomputed"]["agreement"] == "bit-equal"
    assert done.data["signers"] == [f"key {bob}"]
    assert all(bob in reason for reason in done.data["recomputed"]["inputs"].values())


def test_the_store_is_enough(cli, released, registry):
    """What was pulled is composed anew without its registry."""
    cli("verify", "org/new@1.0.0", "--recompute")
    shutil.rmtree(registry / "org" / "a")
    shutil.rmtree(registry / "org" / "b")

    assert cli("verify", "org/new@1.0.0", "--recompute").code == 0


def test_an_input_that_is_nowhere_is_named(cli, bob, registry):
    """Without an input there is nothing to compare with: exit 3, and which one it is."""
    shutil.rmtree(registry / "org" / "a")
    done = cli("verify", "org/new@1.0.0", "--recompute")

    assert done.code == 3
    assert "input `a`" in done.err


def test_an_input_that_was_replaced_is_not_taken(cli, released, become, registry, place):
    """A version with another digest than the lineage says is another adapter: exit 3."""
    become("stranger")  # who has never seen the first one, and has no rule
    shutil.rmtree(registry / "org" / "a")
    adapter_files(seed=7).write(place / "forged")
    cli("push", "forged", "org/a@1.0.0")
    shutil.rmtree(place / "a")
    done = cli("verify", "./new", "--recompute")

    assert done.code == 3
    assert "the lineage says sha256:" in done.err


def test_an_input_that_was_revoked_is_refused(cli, bob):
    """What the policy revokes is not composed either: exit 7."""
    digest = cli("info", "org/b@1.0.0", "--json").data["digest"]
    assert cli("trust", "revoke", digest, "--reason", "poisoned").code == 0
    done = cli("verify", "org/new@1.0.0", "--recompute")

    assert done.code == 7
    assert "input `b`" in done.err


def test_an_input_that_was_yanked_is_said_to_be(cli, released, become):
    """The bytes are what they were, and whoever makes it again hears that the publisher of one part takes it back."""
    assert cli("yank", "org/a@1.0.0", "--reason", "leaks").code == 0
    become("bob")
    cli("trust", "add", released / "keys" / "org.pub", "--scope", "org/*", "--name", "alice")
    done = cli("verify", "org/new@1.0.0", "--recompute", "--json")

    assert done.code == 0
    assert done.data["recomputed"]["yanked_inputs"] == {"a": '`"leaks"`'}
    assert "`a` was yanked" in done.err


def test_an_input_whose_signer_is_not_trusted_is_refused(cli, bob, registry):
    """An adapter is trusted no more than what it was made of: exit 5."""
    (registry.parent / "stranger.pub").write_text(PrivateKey.generate("P-256").public.pem)
    words = ["--scope", "org/b", "--name", "stranger", "--only"]
    assert cli("trust", "add", registry.parent / "stranger.pub", *words).code == 0
    done = cli("verify", "org/new@1.0.0", "--recompute")

    assert done.code == 5
    assert "input `b`" in done.err


def test_what_lora_hub_never_published_is_found_by_its_commit(cli, hub, become):
    """An input without versions is recorded with its commit, and is the same once its repository has moved on."""
    become("alice")
    commit = hub.create("org/plain", adapter_files(seed=4).files()).at("main").id
    assert cli("trust", "pin", "org/plain").code == 0
    assert cli("compose", "org/plain=0.5", "./a", "-o", "new").code == 0
    hub.repo("org/plain").commit(adapter_files(seed=5).files())
    (entry, _) = cli("info", "./new", "--json").data["lineage"]["inputs"]

    assert (entry["reference"], entry["commit"]) == (f"org/plain@{commit}", commit)
    assert cli("verify", "./new", "--recompute").code == 0
