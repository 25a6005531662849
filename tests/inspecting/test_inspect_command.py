"""lora-hub inspect, and the same in Python."""

import json
import os
import re
import stat

import jsonschema
import pytest
from adapter_files import adapter_files
from test_page import HOSTILE, Reader

import lora_hub
from lora_hub import inspection
from lora_hub.cli import run
from lora_hub.documents import schemas

HOSTILE_NAMES = [
    HOSTILE.replace("/", "-"),
    "\x1b]0;owned\x07\x1b[2J\u202e\r\n\x9bx",
    b"\xff\xfe".decode("utf-8", "surrogateescape"),
]


def transposed_files():
    """Return an adapter that has the outputs of q in v and those of v in q."""
    files = adapter_files()
    swapped = {"q_proj": "v_proj", "v_proj": "q_proj"}
    files.tensors = {re.sub("[qv]_proj", lambda found: swapped[found[0]], key): t for key, t in files.tensors.items()}
    return files


@pytest.fixture
def cli(capsys):
    """Run the command line in this process; return exit code, stdout and stderr."""

    def cli(*words):
        capsys.readouterr()
        code = run([str(word) for word in words])
        return code, *capsys.readouterr()

    return cli


@pytest.fixture
def two(tmp_path):
    """Two adapters of one base."""
    return [adapter_files(seed=seed).write(tmp_path / f"adapter-{seed}") for seed in (1, 2)]


def test_text_has_a_table_for_each_adapter_and_one_of_pairs(cli, two):
    """Without options the numbers are tables, of which none is long."""
    code, out, err = cli("inspect", *two)

    assert (code, err) == (0, "")
    assert out.startswith("adapter-1  r 2, alpha 4, float32")
    assert "\nadapter-1 · adapter-2  4 " in out
    assert len(out.splitlines()) < 25


def test_json_follows_its_schema(cli, two):
    """With --json it is one document, sorted, that the schema describes."""
    code, out, _ = cli("inspect", *two, "--json")
    document = json.loads(out)
    jsonschema.validate(document, json.loads(schemas.schema("inspection")))

    assert code == 0
    assert [adapter["name"] for adapter in document["adapters"]] == ["adapter-1", "adapter-2"]
    assert out == json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def test_html_is_one_file(cli, two, tmp_path):
    """--html writes a page, makes its directory, replaces an older page, and says so on stderr."""
    path = tmp_path / "reports" / "page.html"
    cli("inspect", two[0], "--html", path)
    older = path.read_bytes()
    code, out, err = cli("inspect", *two, "--html", path)

    assert code == 0
    assert out.startswith("adapter-1")
    assert err == f"note: wrote {path}, {path.stat().st_size:,} bytes\n"
    assert path.read_bytes() != older
    assert [file.name for file in path.parent.iterdir()] == ["page.html"]
    assert Reader(path.read_bytes()).open == []


def test_references_are_pulled(cli, two, tmp_path):
    """A reference is resolved in the registry, and may stand beside a directory."""
    cli("push", two[0], "org/task@1.0.0", "--registry", tmp_path / "registry")
    code, out, _ = cli("inspect", "org/task", two[1], "--registry", tmp_path / "registry")

    assert code == 0
    assert "org/task · adapter-2" in out


def test_names_are_told_apart(cli, two):
    """The same adapter twice is two adapters, of which one is the copy of the other."""
    code, out, _ = cli("inspect", two[0], two[0])

    assert code == 0
    assert "- adapter-1 #2 is a copy of adapter-1, times 1.00 (cosine 1.0000)." in out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((), 2),
        (("./missing",), 3),
        (("org/missing",), 3),
        (("not a reference",), 2),
        (("./adapter-1", "./missing"), 3),
        (("./adapter-1", "--html", "."), 2),
        (("./adapter-1", "--html", "fifo"), 2),
        (("./adapter-1", "--html", "adapter-1/adapter_config.json/page.html"), 11),
        (("./adapter-1", "./other-base"), 9),
        (("./adapter-1", "./other-shape"), 9),
        (("./broken",), 8),
    ],
)
def test_errors_have_their_exit_codes(cli, two, tmp_path, monkeypatch, words, code):
    """What is missing, malformed or of another base is refused, with nothing on stdout and nothing written."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_HUB_REGISTRY", str(tmp_path / "registry"))
    os.mkfifo("fifo")
    (tmp_path / "registry").mkdir()
    adapter_files(base_model_name_or_path="org/other").write(tmp_path / "other-base")
    adapter_files(r=2).write(tmp_path / "broken").joinpath("adapter_model.safetensors").write_bytes(b"{}")
    transposed_files().write(tmp_path / "other-shape")
    before = sorted(tmp_path.rglob("*"))
    found, out, err = cli("inspect", *words)

    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert [path for path in tmp_path.rglob("*") if path not in before and "home" not in path.parts] == []


def test_siblings_of_one_base_can_be_compared(cli, two, tmp_path):
    """--allow-other-base compares what is of another base by name, and of the same shapes."""
    other = adapter_files(base_model_name_or_path="org/other").write(tmp_path / "other")

    assert cli("inspect", two[0], other, "--allow-other-base")[0] == 0


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_hostile_names_do_no_harm(cli, tmp_path, name):
    """The name of a directory cannot move a cursor, break the JSON, or become part of the page."""
    directory = adapter_files().write(tmp_path / name)
    code, out, _ = cli("inspect", directory, directory, "--html", tmp_path / "page.html")
    as_json = json.loads(cli("inspect", directory, "--json")[1])
    reader = Reader((tmp_path / "page.html").read_bytes())

    assert code == 0
    assert all(line.isprintable() for line in out.splitlines())
    assert as_json["adapters"][0]["name"].isprintable()
    assert reader.open == []
    assert not {"script", "img"} & reader.names()


def test_in_python_it_is_one_call(two, tmp_path):
    """`inspect_adapters` takes paths and adapters that are loaded, and the values make JSON and page."""
    from lora_hub import api

    loaded = api.load(two[1])
    found = lora_hub.inspect_adapters(two[0], loaded)

    assert [adapter.name for adapter in found.adapters] == ["adapter-1", "adapter-2"]
    assert json.loads(inspection.to_json(found))["schema"] == "lora-hub/inspection/v1"
    assert inspection.to_html(found).startswith(b"<!DOCTYPE html>")


def test_no_adapter_is_a_usage_error():
    """Nothing to inspect is a mistake of the caller."""
    with pytest.raises(lora_hub.errors.UsageError):
        lora_hub.inspect_adapters()
