"""`lora-hub check` as it is typed: sources, exit codes, options, pyproject.toml; and what `push` makes of it."""

import json
import math
import subprocess
import sys

import pytest
from adapter_files import MANIFEST_NAME, Tensor, adapter_files, lora_key, module_paths, to_json
from base_models import llama

import lora_hub
from lora_hub import checked_sources, checkup
from lora_hub.adapter_directory import read_adapter
from lora_hub.checking.gate import Gate
from lora_hub.checking.settings import Settings, read_settings
from lora_hub.documents.manifest import Manifest
from lora_hub.errors import IntegrityError, MalformedError, UsageError


@pytest.fixture(autouse=True)
def no_project(tmp_path, monkeypatch):
    """Commands run in the directory of the test, where no project has settled anything."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def good(tmp_path):
    return adapter_files().write(tmp_path / "good")


@pytest.fixture
def bad(tmp_path):
    return adapter_files(r=4, rank_pattern={"v_proj": 2}).write(tmp_path / "bad")


def untrained():
    """Return an adapter whose B is zero everywhere: whole, and useless."""
    files = adapter_files()
    for path in module_paths():
        known = files.tensors[lora_key(path, "B")]
        content = bytes(4 * math.prod(known.shape))
        files.tensors[lora_key(path, "B")] = Tensor(dtype="F32", shape=known.shape, content=content)
    return files


def test_a_sound_adapter_ends_with_0(cli, good):
    """Notes do not fail."""
    done = cli("check", good)

    assert done.code == 0
    assert "note LH401" in done.out


def test_a_broken_adapter_ends_with_8_and_a_wrong_base_with_9(cli, good, bad, tmp_path):
    """One exit code for all: 9, if a finding concerns the base."""
    base = llama(1).write(tmp_path / "base")

    assert cli("check", bad).code == 8
    assert cli("check", good, "--base", base).code == 9
    assert cli("check", good, bad, "--base", base).code == 9
    assert cli("check", good, bad).code == 8


def test_what_fails_can_be_chosen(cli, good):
    """Notes fail, if one wants it."""
    assert cli("check", good, "--fail-on", "warning").code == 0
    assert cli("check", good, "--fail-on", "note").code == 8
    assert cli("check", good, "--fail-on", "note", "--ignore", "LH4").code == 0


def test_rules_are_selected(cli, bad):
    """By codes with commas, or by several options."""
    assert cli("check", bad, "--select", "LH4,LH3").code == 0
    assert cli("check", bad, "--ignore", "LH101", "--ignore", "LH0").code == 0
    assert cli("check", bad, "--select", "LH777").code == 2


def test_a_pattern_means_directories_with_an_adapter(cli, good, bad, tmp_path):
    """Others are passed over; a pattern that matches none is an error."""
    (tmp_path / "empty").mkdir()
    done = cli("check", "./*", "--format", "json")

    assert done.code == 8
    assert "good" in done.out
    assert "bad" in done.out
    assert "empty" not in done.out
    assert cli("check", "./nothing*").code == 3


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["check"], 2),
        (["check", "./nothing"], 3),
        (["check", "no reference"], 2),
        (["check", "org/nothing", "--registry", "./registry"], 3),
        (["check", "./good", "--base", "./nothing"], 3),
        (["check", "./good", "--base", "no base at all"], 2),
        (["check", "./good", "--require-base"], 2),
        (["check", "./good", "--json", "--format", "text"], 2),
        (["check", "./good", "--fail-on", "sometimes"], 2),
        (["check", "--all", "org/", "--registry", "./registry"], 3),
        (["check", "--lock", "./nothing.lock"], 3),
        (["check", "--explain", "LH900"], 2),
    ],
)
def test_wrong_words_are_said_to_be_wrong(cli, good, words, code):
    """With the exit code of the error, and a hint."""
    done = cli(*words)

    assert done.code == code
    assert "hint" in done.err


def test_a_rule_is_explained(cli):
    """In any case of letters; `all` lists every rule."""
    assert cli("check", "--explain", "lh101").out.startswith("# LH101 shape-against-rank")
    assert cli("check", "--explain", "LH099").out.startswith("# LH099")
    assert cli("check", "--explain", "all").out.count("\n") > 60


def test_json_is_the_format_json(cli, good):
    """`--json` is `--format json`, and what it prints has every finding."""
    done = cli("check", good, "--json")

    assert done.out == cli("check", good, "--format", "json").out
    assert "LH401" in json.dumps(done.data)


def test_a_reference_is_checked_without_pulling_it(cli, good, home, tmp_path):
    """From a registry of this machine, whole or broken; nothing comes into the store."""
    cli("push", good, "org/task@1.0.0", "--registry", "./registry")
    whole = cli("check", "org/task", "--registry", "./registry", "--json")
    (tmp_path / "registry/org/task/1.0.0/adapter_config.json").write_bytes(b"{}")
    broken = cli("check", "org/task@1.0.0", "--registry", "./registry")

    assert whole.code == 0
    assert broken.code == 8
    assert "LH015" in broken.out
    assert not (home / "store").exists()


def test_a_version_without_weights_is_a_report(cli, good, tmp_path):
    """A registry that lost a file has a broken adapter, not a broken command."""
    cli("push", good, "org/task@1.0.0", "--registry", "./registry")
    (tmp_path / "registry/org/task/1.0.0/adapter_model.safetensors").unlink()

    assert cli("check", "org/task@1.0.0", "--registry", "./registry").code == 8


def test_a_whole_registry_is_checked(cli, good, tmp_path):
    """The newest version of each adapter."""
    for name in ("org/one@1.0.0", "org/one@1.1.0", "org/two@2.0.0", "team/three@1.0.0"):
        cli("push", good, name, "--registry", "./registry")
    sources = checked_sources.find_sources([], prefix="org/", registry=str(tmp_path / "registry"))

    assert [str(source) for source in sources] == ["org/one@1.1.0", "org/two@2.0.0"]
    assert cli("check", "--all", "", "--registry", "./registry").out.count(": 1 note") == 3


def test_a_lock_file_is_checked_at_its_digests(cli, good, tmp_path):
    """All that it locks; what was rewritten since is found."""
    cli("push", good, "org/task@1.0.0", "--registry", "./registry")
    cli("lock", "org/task@1.0.0", "--registry", "./registry")
    before = cli("check", "--lock", "lora-hub.lock")
    manifest = tmp_path / "registry/org/task/1.0.0" / MANIFEST_NAME
    document = json.loads(manifest.read_bytes()) | {"license": "mit"}
    manifest.write_bytes(to_json(document))

    assert before.code == 0
    assert cli("check", "--lock", "lora-hub.lock").code == 8


def test_an_adapter_on_the_hub_is_checked(hub, cli, good):
    """As PEFT wrote it, unsigned and without a manifest: a check needs no trust."""
    hub.create("org/task", {path.name: path.read_bytes() for path in good.iterdir()})
    done = cli("check", "org/task", "--registry", "hf://", "--json")

    assert done.code == 0


def test_the_project_settles_what_is_not_said(cli, good, bad, tmp_path):
    """What is ignored adds up; the rest is overruled by the command line."""
    llama(1).write(tmp_path / "base")
    (tmp_path / "pyproject.toml").write_text(
        '[tool.lora-hub.check]\nbase = "./base"\nfail-on = "warning"\nignore = ["LH203"]\n'
        '[tool.lora-hub.check.per-path]\n"bad*" = ["LH101", "LH2"]\n'
    )
    llama().write(tmp_path / "other")

    assert cli("check", "./good").code == 9
    assert cli("check", "./good", "--base", "./other").code == 0
    assert cli("check", "./bad").code == 0


@pytest.mark.parametrize(
    "text",
    [
        "[tool.lora-hub.check]\nselects = []",
        '[tool.lora-hub.check]\nselect = "LH1"',
        "[tool.lora-hub.check]\nselect = [1]",
        '[tool.lora-hub.check]\nfail-on = "never"',
        "[tool.lora-hub.check]\nfail-on = []",
        "[tool.lora-hub.check]\nbase = 1",
        '[tool.lora-hub.check]\nrequire-base = "yes"',
        "[tool.lora-hub.check]\nper-path = []",
        '[tool.lora-hub.check.per-path]\n"*" = "LH1"',
        "[tool.lora-hub]\ncheck = 3",
        "[tool",
        "\x00",
    ],
)
def test_settings_are_strict(tmp_path, text):
    """A key or a value that means nothing is an error: a check that is not what one thinks it is helps nobody."""
    (tmp_path / "pyproject.toml").write_text(text)

    with pytest.raises(UsageError, match=r"pyproject\.toml"):
        read_settings(tmp_path)


@pytest.mark.parametrize("text", ["", "[project]\nname = 'x'", "[tool]\nruff = 1", "[tool.lora-hub]\nother = 1"])
def test_other_tools_settings_are_nothing_to_us(tmp_path, text):
    """Nothing is settled then."""
    (tmp_path / "pyproject.toml").write_text(text)

    assert read_settings(tmp_path) == Settings()


def test_many_adapters_are_checked_in_several_processes(tmp_path):
    """The same reports, in the same order."""
    for number in range(checkup.WORTH_PROCESSES):
        adapter_files(seed=number, r=4 if number % 5 == 0 else 2, lora_alpha=2).write(tmp_path / f"{number:02d}")
    base = llama().write(tmp_path / "base")
    sources = checked_sources.find_sources([f"{tmp_path}/[0-9]*"])
    code = (
        "import sys; from lora_hub import checked_sources, checkup\n"
        "if __name__ == '__main__':\n"
        "    sources = checked_sources.find_sources([sys.argv[1] + '/[0-9]*'])\n"
        "    for report in checkup.check_all(sources, sys.argv[1] + '/base', jobs=2):\n"
        "        print(report.source, report.digest, *(finding.rule.code for finding in report.findings))\n"
    )
    (tmp_path / "script.py").write_text(code)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)], capture_output=True, text=True, check=True
    )
    expected = [
        f"{report.source} {report.digest} {' '.join(finding.rule.code for finding in report.findings)}".rstrip()
        for report in checkup.check_all(sources, base)
    ]

    assert done.stdout.splitlines() == expected


# Push


def test_push_refuses_what_the_check_finds_an_error_in(cli, tmp_path):
    """With the code in the message, and before anything is published."""
    directory = untrained().write(tmp_path / "adapter")
    done = cli("push", directory, "org/task@1.0.0", "--registry", "./registry")

    assert done.code == 8
    assert "LH112" in done.err
    assert "--allow LH112" in done.err
    assert not (tmp_path / "registry").exists()


def test_what_is_allowed_is_published_and_signed(cli, tmp_path):
    """The exception stands in the signed manifest, comes along with a pull, and a check honours it."""
    directory = untrained().write(tmp_path / "adapter")
    cli("key", "generate", "org")
    pushed = cli("push", directory, "org/task@1.0.0", "--registry", "./registry", "--allow", "LH203,LH112", "--json")
    pulled = lora_hub.pull("org/task", registry=tmp_path / "registry")
    checked = cli("check", "org/task", "--registry", "./registry", "--json")

    assert pushed.code == 0
    assert pushed.data["signers"]
    assert pulled.adapter.manifest.exceptions == ("LH112", "LH203")
    assert cli("verify", "org/task", "--registry", "./registry").code == 0
    assert checked.code == 0
    assert cli("check", directory).code == 8


def test_an_exception_is_kept_by_the_next_push(cli, tmp_path):
    """The same version again is a success; what was pulled and is pushed under the next number keeps it."""
    directory = untrained().write(tmp_path / "adapter")
    words = ["--registry", "./registry", "--allow", "LH112"]
    cli("push", directory, "org/task@1.0.0", *words)
    again = cli("push", directory, "org/task@1.0.0", *words)
    pulled = lora_hub.pull("org/task", registry=tmp_path / "registry").path
    onward = cli("push", pulled, "org/task@1.1.0", "--registry", "./registry")

    assert (again.code, onward.code) == (0, 0)
    assert "already published" in again.out
    manifest = Manifest.parse((tmp_path / "registry/org/task/1.1.0" / MANIFEST_NAME).read_bytes())
    assert manifest.exceptions == ("LH112",)


@pytest.mark.parametrize("codes", ["LH900", "LH1", "nothing"])
def test_an_unknown_exception_is_refused(cli, good, codes):
    """Neither a code that is none, nor a group of them."""
    assert cli("push", good, "org/task@1.0.0", "--registry", "./registry", "--allow", codes).code == 2


def test_nothing_allows_what_verify_refuses(bad, tmp_path):
    """The error is that of the file, with the codes that explain it."""
    with pytest.raises(MalformedError, match="LH101"):
        lora_hub.push(bad, "org/task@1.0.0", registry=tmp_path / "registry", allow=["LH101"])


def test_a_file_that_is_not_the_manifests_is_explained_by_its_code(good, tmp_path):
    """An error about the bytes is an error about the files, too."""
    manifest = read_adapter(good).manifest.to_bytes()
    (good / MANIFEST_NAME).write_bytes(manifest)
    config = good / "adapter_config.json"
    config.write_bytes(config.read_bytes() + b" ")

    with pytest.raises(IntegrityError, match="LH015"):
        lora_hub.push(good, "org/task@1.0.0", registry=tmp_path / "registry")


def test_an_error_about_something_else_has_no_codes(tmp_path):
    """What the adapter is allowed to break does not explain what is wrong with the registry or the policy."""
    gate = Gate.of(untrained().write(tmp_path / "adapter"), ["LH112"])

    with pytest.raises(MalformedError, match=r"\Athe policy is no TOML"), gate.explained():
        raise MalformedError("the policy is no TOML", hint="mend it")


def test_the_manifest_reads_exceptions_strictly(good):
    """They are codes, and not too many."""
    document = json.loads(read_adapter(good).manifest.to_bytes())
    for wrong in ("LH112", ["lh112"], [3], ["LH112"] * 257, None):
        with pytest.raises(MalformedError, match="exceptions"):
            Manifest.parse(json.dumps(document | {"exceptions": wrong}).encode())

    assert Manifest.parse(json.dumps(document | {"exceptions": ["LH112"]}).encode()).exceptions == ("LH112",)
