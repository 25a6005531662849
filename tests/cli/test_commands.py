"""What each command prints and does."""

import json
import os
import shutil
import time
from pathlib import Path

import jsonschema
import pytest
from adapter_files import adapter_files

from lora_hub.documents import schemas

COMMANDS = [
    ["push"],
    ["pull"],
    ["list"],
    ["info"],
    ["cache"],
    ["cache", "list"],
    ["cache", "show"],
    ["cache", "verify"],
    ["cache", "remove"],
    ["cache", "prune"],
    ["plugins"],
    ["schema"],
    ["demo"],
    ["extract"],
]


def test_push_says_what_it_published(cli, registry, adapter):
    """A push prints reference, digest and state on stdout; on stderr it says that nobody signed."""
    done = cli("push", adapter, "org/task@1.0.0")

    assert done.code == 0
    assert done.err.startswith("note: it is not signed: `lora-hub key generate org`")
    assert done.out.startswith("org/task@1.0.0  sha256:")
    assert done.out.endswith("  published\n")


def test_push_again_says_so(cli, published, adapter):
    """The same content again is a success, and says that it was there."""
    done = cli("push", adapter, "org/task@1.0.0", "--json")

    assert done.code == 0
    assert done.data["status"] == "already published"
    assert done.data["digest"] == published


def test_push_prints_json(cli, registry, adapter):
    """With --json the same is a JSON object, which names the registry too."""
    done = cli("push", adapter, "org/task@1.0.0", "--json")

    assert done.data.keys() == {"reference", "digest", "registry", "commit", "signers", "status"}
    assert done.data["registry"] == registry.as_uri()


def test_push_takes_a_registry(cli, adapter, tmp_path):
    """--registry names the registry, and goes before the environment."""
    done = cli("push", adapter, "org/task@1.0.0", "--registry", tmp_path / "here", "--json")

    assert done.data["registry"] == (tmp_path / "here").as_uri()
    assert (tmp_path / "here" / "org" / "task" / "1.0.0").is_dir()


def test_pull_says_where_it_lies(cli, published, home):
    """A pull prints reference, digest and path; the path is in the home and holds the files."""
    done = cli("pull", "org/task")
    reference, digest, path = done.out.split()

    assert (done.code, done.err) == (0, "")
    assert (reference, digest) == ("org/task@1.0.0", published)
    assert path == str(home / "store" / "adapters" / digest.removeprefix("sha256:"))
    assert {file.name for file in Path(path).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "lora-hub.json",
    }


def test_pull_takes_several_references(cli, published, adapter):
    """Several references are pulled in one go, in the order that was asked for."""
    cli("push", adapter, "org/other@0.1.0")
    done = cli("pull", "org/task", "org/other@^0.1", "--json")

    assert [pulled["reference"] for pulled in done.data] == ["org/task@1.0.0", "org/other@0.1.0"]


def test_pull_by_digest(cli, published):
    """A digest is enough to pull."""
    assert cli("pull", f"org/task@{published}", "--json").data[0]["reference"] == "org/task@1.0.0"


def test_list_shows_names_and_versions(cli, published, adapter):
    """Every adapter is listed with its versions, the newest first."""
    cli("push", adapter, "org/task@1.10.0")
    cli("push", adapter, "a/b@0.1.0-rc.1")

    assert cli("list").out.splitlines() == [
        "ADAPTER   VERSIONS",
        "a/b       0.1.0-rc.1",
        "org/task  1.10.0, 1.0.0",
    ]


def test_list_takes_a_prefix(cli, published, adapter):
    """A prefix leaves out the others."""
    cli("push", adapter, "other/task@1.0.0")

    assert cli("list", "org/", "--json").data == {"org/task": ["1.0.0"]}


def test_list_of_an_empty_registry_is_empty(cli, registry):
    """An empty registry is no error."""
    assert cli("list", "--json").data == {}


def test_info_of_a_reference(cli, published):
    """What an adapter is: base, rank, targets, size; for people in lines, for programs in JSON."""
    data = cli("info", "org/task", "--json").data
    done = cli("info", "org/task@1.0.0")

    assert data["digest"] == published
    assert (data["r"], data["alpha"], data["targets"]) == (2, 4, ["q_proj", "v_proj"])
    assert data["base"] == {"repo": "org/base", "revision": None, "type": None}
    assert (data["parameters"], data["dtype"], data["trusted"]) == (112, "float32", True)
    assert "org/base" in done.out
    assert "q_proj, v_proj" in done.out
    assert published in done.out


def test_info_of_a_directory(cli, tmp_path):
    """A directory needs no registry; a config key that was read over is listed."""
    directory = adapter_files(lora_gain=None).write(tmp_path / "adapter")
    done = cli("info", directory, "--json")

    assert (done.code, done.data["reference"]) == (0, None)
    assert done.data["ignored_config_keys"] == ["lora_gain"]
    assert "lora_gain" in cli("info", directory).out


def test_cache_list(cli, published):
    """What was pulled is listed by name, digest and size."""
    assert cli("cache", "list", "--json").data == []
    cli("pull", "org/task")
    (entry,) = cli("cache", "list", "--json").data

    assert (entry["reference"], entry["digest"]) == ("org/task@1.0.0", published)
    assert "org/task@1.0.0" in cli("cache", "list").out


@pytest.mark.parametrize("reference", ["org/task@1.0.0", "org/task", "org/task@{digest}"])
def test_cache_show(cli, published, reference):
    """A stored adapter is found by version, by digest, and by its name where that is unique."""
    path = cli("pull", "org/task", "--json").data[0]["path"]
    done = cli("cache", "show", reference.format(digest=published), "--json")

    assert done.data["path"] == path
    assert path in cli("cache", "show", reference.format(digest=published)).out


def test_cache_verify(cli, published):
    """Every byte in the store is checked; a flipped one ends with exit code 6, its digest on stdout."""
    path = cli("pull", "org/task", "--json").data[0]["path"]
    assert cli("cache", "verify", "--json").data == {"checked": 1, "broken": []}

    _flip(path, "adapter_model.safetensors")
    done = cli("cache", "verify", "--json")
    assert done.code == 6
    assert [entry["digest"] for entry in done.data["broken"]] == [published]
    assert published in done.error["hint"]


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "lora-hub.json"])
def test_the_hint_of_cache_verify_works(cli, published, name):
    """A damaged adapter is removed by the command that the hint names, and pulled again."""
    _flip(cli("pull", "org/task", "--json").data[0]["path"], name)
    hint = cli("cache", "verify", "--json").error["hint"]
    words = hint.split("`")[1].split()

    assert words[:3] == ["lora-hub", "cache", "remove"]
    assert cli(*words[1:]).code == 0
    assert cli("pull", "org/task@1.0.0").code == 0
    assert cli("cache", "verify").code == 0


@pytest.mark.parametrize("reference", ["org/task@1.0.0", "{digest}", "org/task@{digest}"])
def test_cache_remove(cli, published, reference):
    """A stored adapter is removed by name or digest."""
    cli("pull", "org/task")
    done = cli("cache", "remove", reference.format(digest=published), "--json")

    assert done.data == {"removed": [published]}
    assert cli("cache", "list", "--json").data == []


def test_cache_remove_is_all_or_nothing(cli, published):
    """If one of several references is not there, none is removed."""
    cli("pull", "org/task")
    done = cli("cache", "remove", "org/task@1.0.0", "org/missing@1.0.0")

    assert done.code == 3
    assert len(cli("cache", "list", "--json").data) == 1


def test_cache_remove_of_one_adapter_under_two_names(cli, published):
    """An adapter that is named twice is removed once."""
    cli("pull", "org/task")
    done = cli("cache", "remove", "org/task@1.0.0", published, "--json")

    assert done.code == 0, done.err
    assert cli("cache", "list", "--json").data == []


@pytest.mark.parametrize("word", ["sha256:", "sha256:..", "sha256:../versions", "sha256:{outside}", "sha256:abc"])
def test_cache_remove_removes_nothing_but_adapters(cli, published, tmp_path, word):
    """What only looks like a digest is no path: it is refused, and nothing is removed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    cli("pull", "org/task")
    done = cli("cache", "remove", word.format(outside=outside))

    assert done.code in {2, 3}
    assert outside.is_dir()
    assert cli("cache", "list", "--json").data[0]["digest"] == published
    assert cli("pull", "org/task@1.0.0").code == 0


def test_cache_prune(cli, published, home):
    """Adapters unused for so many days are removed."""
    path = cli("pull", "org/task", "--json").data[0]["path"]
    assert cli("cache", "prune", "--json").data == {"removed": [], "leftovers": 0}

    os.utime(path, (0, time.time() - 31 * 24 * 3600))
    assert cli("cache", "prune", "--json").data["removed"] == [published]
    assert cli("cache", "list", "--json").data == []


def test_cache_prune_touches_nothing_else(cli, published, home):
    """Keys, trust and memory are not the cache's business."""
    cli("key", "generate", "other")
    cli("pull", "org/task")
    kept = {
        path: path.read_bytes() for path in home.rglob("*") if path.is_file() and home / "store" not in path.parents
    }
    cli("cache", "prune", "--days", "0")

    assert {"trust.toml", "seen.json", "other.key", "other.pub"} <= {path.name for path in kept}
    assert {path: path.read_bytes() for path in kept} == kept
    assert list((home / "store" / "adapters").iterdir()) == []


def test_plugins_lists_the_built_in_families(cli):
    """The three families are there, from this distribution."""
    by_name = {plugin["name"]: plugin for plugin in cli("plugins", "--json").data}

    assert {"bert", "gpt2", "llama"} <= by_name.keys()
    assert "bert" in by_name["bert"]["model_types"]
    assert by_name["gpt2"]["distribution"].startswith("lora-hub ")
    assert all(plugin["error"] is None for plugin in by_name.values())
    assert "lora_hub_plugins.llama" in cli("plugins").out


def test_schema_prints_the_schema(cli):
    """A schema is printed as it ships, byte for byte."""
    done = cli("schema", "manifest")

    assert done.out == schemas.schema("manifest")
    assert json.loads(done.out)["$id"].startswith("urn:lora-hub:schema:")


def test_an_unknown_schema_is_not_found(cli):
    """An unknown name ends with exit code 3, and the hint lists what there is."""
    done = cli("schema", "nonsense")

    assert done.code == 3
    assert "manifest" in done.err


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_every_command_has_help(cli, command, option):
    """Help goes to stdout and is a success."""
    done = cli(*command, option)

    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Usage: lora-hub")


def test_help_names_every_command_and_exit_code(cli):
    """The front page lists the commands and what the exit codes mean."""
    out = " ".join(cli("--help").out.split())

    assert all(f" {command[0]} " in out for command in COMMANDS)
    assert "10 the version exists with other content" in out


def test_the_version_is_printed(cli):
    """--version says which lora-hub this is."""
    import lora_hub

    assert cli("--version").out == f"lora-hub, version {lora_hub.__version__}\n"


def test_a_cached_version_needs_no_registry(cli, published, registry):
    """What was pulled by its exact version is had with the registry gone."""
    cli("pull", "org/task@1.0.0")
    shutil.rmtree(registry)

    assert cli("pull", "org/task@1.0.0").code == 0
    assert cli("info", "org/task@1.0.0").code == 0


def test_home_holds_everything(cli, published, home, tmp_path, monkeypatch):
    """With LORA_HUB_HOME elsewhere, the store is elsewhere, and nothing else was written."""
    monkeypatch.setenv("LORA_HUB_HOME", str(tmp_path / "elsewhere"))
    cli("pull", "org/task")

    assert (tmp_path / "elsewhere" / "store").is_dir()
    assert not home.exists()


def test_a_fixed_time_makes_the_same_bytes(cli, adapter, tmp_path, monkeypatch):
    """With SOURCE_DATE_EPOCH two registries get the same manifest, and so the same digest."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    digests = {
        cli("push", adapter, "org/task@1.0.0", "--registry", tmp_path / name, "--json").data["digest"]
        for name in ("one", "two")
    }

    assert len(digests) == 1
    manifest = json.loads((tmp_path / "one" / "org" / "task" / "1.0.0" / "lora-hub.json").read_bytes())
    assert manifest["created"] == "2023-11-14T22:13:20Z"


def test_the_manifest_that_is_published_passes_its_schema(cli, published, registry):
    """What push writes is a valid document of the schema that `schema` prints."""
    manifest = json.loads((registry / "org" / "task" / "1.0.0" / "lora-hub.json").read_bytes())

    assert jsonschema.Draft202012Validator(json.loads(cli("schema", "manifest").out)).is_valid(manifest)


def _flip(path: str, name: str) -> None:
    file = Path(path) / name
    content = bytearray(file.read_bytes())
    content[60] ^= 1
    file.write_bytes(content)


def test_remove_names_an_adapter_twice(cli, published):
    """An adapter that is named twice is removed once."""
    cli("pull", "org/task")

    assert cli("cache", "remove", "org/task@1.0.0", published, "--json").data == {"removed": [published]}


def test_cache_remove_of_a_range_that_selects_nothing(cli, published):
    """A range that does not select the stored version removes nothing."""
    cli("pull", "org/task")

    assert cli("cache", "remove", "org/task@2").code == 3
    assert len(cli("cache", "list", "--json").data) == 1
