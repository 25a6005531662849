"""Broken input, and what a user sees of it: an exit code, a line that names the thing, a line that says what to do."""

import json
import math
import shutil
import subprocess
import sys

import pytest
from adapter_files import (
    CONFIG_NAME,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    Tensor,
    adapter_files,
    fused_adapter_files,
    lora_key,
    pack,
    tensor,
    to_json,
)

from lora_hub import api

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.1.self_attn.v_proj"
NOT_A_NUMBER = Tensor(dtype="F32", shape=(2, 8), content=pack([1.0] * 15 + [math.nan], "F32"))
INTEGERS = Tensor(dtype="I64", shape=(2, 8), content=bytes(128))
BASE_KEY = f"base_model.model.{Q}.weight"


def extra(key):
    return lambda adapter: adapter.tensors.update({key: tensor(8, 8)})


def missing(key):
    return lambda adapter: adapter.tensors.pop(key)


def shaped(path, a, b):
    return lambda adapter: adapter.tensors.update({lora_key(path, "A"): tensor(*a), lora_key(path, "B"): tensor(*b)})


def configured(**changes):
    return lambda adapter: adapter.config.update(changes)


# What is done to a valid adapter, and what the one line of the error must name.
MALFORMED = {
    "tensor_is_missing": (missing(lora_key(V, "B")), f"{V}.lora_B.weight"),
    "target_has_no_tensors": (configured(target_modules=["q_proj", "v_proj", "k_proj"]), "k_proj"),
    "tensor_is_extra": (extra("base_model.model.extra.weight"), "base_model.model.extra.weight"),
    "base_key": (extra(BASE_KEY), BASE_KEY),
    "base_layer_key": (extra(f"base_model.model.{Q}.base_layer.weight"), "a weight of the base model"),
    "shape_is_wrong": (shaped(Q, (3, 8), (8, 3)), Q),
    "shape_is_flat": (shaped(Q, (16,), (16,)), Q),
    "shape_is_empty": (shaped(Q, (0,), (0,)), "gathered"),
    "rank_differs_from_the_config": (configured(r=4), "[4, in]"),
    "rank_pattern_differs": (configured(rank_pattern={"v_proj": 7}), "[7, in]"),
    "dora_flag": (configured(use_dora=True), "use_dora"),
    "dora_vector": (extra(f"base_model.model.{Q}.lora_magnitude_vector"), "DoRA"),
    "config_key_is_unknown": (configured(lora_gain=2.0), "lora_gain"),
    "base_was_changed_by_the_initialisation": (configured(init_lora_weights="pissa"), "init_lora_weights"),
    "bias_is_trained": (configured(bias="all"), "bias"),
    "other_method": (configured(peft_type="IA3"), "peft_type"),
    "pattern_is_a_regular_expression": (configured(alpha_pattern={".*": 2}), "regular expression"),
    "head_has_no_tensors": (configured(modules_to_save=["lm_head"]), "lm_head"),
    "dtype_is_unknown": (lambda a: a.tensors.update({lora_key(Q, "A"): INTEGERS}), "I64"),
    "value_is_nan": (lambda a: a.tensors.update({lora_key(Q, "A"): NOT_A_NUMBER}), lora_key(Q, "A")),
    "alpha_is_a_string": (configured(lora_alpha="16"), "lora_alpha"),
    "alpha_is_beyond_every_float": (configured(lora_alpha=10**400), "lora_alpha"),
    "revision_is_half_a_character": (configured(revision="\ud800"), "adapter_config.json"),
    "no_tensors": (lambda a: a.tensors.clear(), "no LoRA tensors"),
}


def one_line(text: str) -> bool:
    return text == text.strip() and text.isprintable()


@pytest.mark.parametrize("defect", sorted(MALFORMED))
def test_a_malformed_adapter_is_refused(cli, registry, tmp_path, defect):
    """Each defect ends with exit code 8, a line that names it and a line that says what to do; nothing is published."""
    change, named = MALFORMED[defect]
    adapter = adapter_files()
    change(adapter)
    done = cli("push", adapter.write(tmp_path / "adapter"), "org/task@1.0.0", "--json")

    assert (done.code, done.out) == (8, "")
    assert named in done.error["message"] + done.error["hint"]
    assert one_line(done.error["message"])
    assert one_line(done.error["hint"])
    assert not list(registry.iterdir())


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        pytest.param(WEIGHTS_NAME, lambda content: content[:-1], 8, id="weights_are_truncated"),
        pytest.param(WEIGHTS_NAME, lambda content: content[:40], 8, id="header_is_truncated"),
        pytest.param(WEIGHTS_NAME, lambda content: content[:4], 8, id="length_is_truncated"),
        pytest.param(WEIGHTS_NAME, lambda _: b"", 8, id="weights_are_empty"),
        pytest.param(WEIGHTS_NAME, lambda content: content + b"\0", 8, id="weights_are_too_long"),
        pytest.param(WEIGHTS_NAME, lambda _: b"\x80\x04\x95pickle", 8, id="weights_are_a_pickle"),
        pytest.param(CONFIG_NAME, lambda content: content[:-1], 8, id="config_is_truncated"),
        pytest.param(CONFIG_NAME, lambda _: b"[]", 8, id="config_is_no_object"),
        pytest.param(CONFIG_NAME, lambda _: None, 3, id="config_is_missing"),
        pytest.param(WEIGHTS_NAME, lambda _: None, 3, id="weights_are_missing"),
    ],
)
@pytest.mark.parametrize("command", ["push", "info"])
def test_a_damaged_file_is_refused(cli, registry, adapter, name, change, code, command):
    """A file that is no whole file of its kind is refused, by push and by info."""
    content = change((adapter / name).read_bytes())
    (adapter / name).unlink() if content is None else (adapter / name).write_bytes(content)
    done = cli(command, adapter, *["org/task@1.0.0"][: command == "push"])

    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ")
    assert "\nhint: " in done.err
    assert len(done.err.splitlines()) == 2


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("position", [0, 50, -1])
def test_a_flipped_byte_is_refused(cli, registry, adapter, name, position):
    """Where a manifest lies beside the files, one flipped bit ends with exit code 6, and the file is named."""
    (adapter / MANIFEST_NAME).write_bytes(api.load(adapter).manifest.to_bytes())
    content = bytearray((adapter / name).read_bytes())
    content[position] ^= 1
    (adapter / name).write_bytes(content)
    done = cli("push", adapter, "org/task@1.0.0", "--json")

    assert done.code == 6
    assert name in done.error["message"]
    assert done.error["hint"]


def test_a_malformed_manifest_is_refused(cli, registry, adapter):
    """A manifest that is none ends with exit code 8."""
    (adapter / MANIFEST_NAME).write_bytes(b'{"schema": "lora-hub/manifest/v2"}')
    done = cli("push", adapter, "org/task@1.0.0")

    assert done.code == 8
    assert "upgrade" in done.err


def test_slices_that_contradict_are_refused(cli, registry, tmp_path):
    """A manifest whose slices do not fit the tensors ends with exit code 8."""
    adapter = fused_adapter_files()
    directory = adapter.write(tmp_path / "adapter")
    manifest = json.loads(api.load(directory).manifest.to_bytes())
    parts = [{"part": "q", "r": 4, "alpha": 8, "rows": [[0, 25]]}]
    manifest["lora"]["slices"] = [{"modules": ["transformer.h.0.attn.c_attn"], "parts": parts}]
    (directory / MANIFEST_NAME).write_bytes(to_json(manifest))

    assert cli("push", directory, "org/task@1.0.0").code == 8


def test_other_content_is_exit_code_10(cli, published, tmp_path):
    """A version that exists with other content is refused."""
    other = adapter_files(seed=1).write(tmp_path / "other")
    done = cli("push", other, "org/task@1.0.0", "--json")

    assert done.code == 10
    assert "org/task@1.0.0" in done.error["message"]


def test_a_rewritten_version_is_exit_code_7(cli, published, registry, tmp_path):
    """A version that changed since it was pulled is refused."""
    cli("pull", "org/task")
    shutil.rmtree(registry)
    cli("push", adapter_files(seed=1).write(tmp_path / "other"), "org/task@1.0.0")

    assert cli("pull", "org/task").code == 7


def test_tampered_bytes_in_the_registry_are_exit_code_6(cli, published, registry):
    """A flipped bit in the registry is refused at the pull."""
    file = registry / "org" / "task" / "1.0.0" / WEIGHTS_NAME
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")

    assert cli("pull", "org/task").code == 6
    assert cli("cache", "list", "--json").data == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["pull", "org/missing"], 3),
        (["pull", "org/task@9"], 3),
        (["info", "org/task@9.0.0"], 3),
        (["info", "./missing"], 3),
        (["push", "./missing", "org/task@1.0.0"], 3),
        (["cache", "show", "org/task@9.0.0"], 3),
        (["cache", "remove", "org/task@9.0.0"], 3),
        (["cache", "remove", f"sha256:{'0' * 64}"], 3),
        (["schema", "nonsense"], 3),
        (["pull", "task"], 2),
        (["pull", "../task"], 2),
        (["pull", f"org/task@{'0' * 40}"], 3),
        (["pull"], 2),
        (["push", "."], 2),
        (["push", ".", "org/task"], 2),
        (["push", ".", "org/task@^1"], 2),
        (["push", __file__, "org/task@1.0.0"], 2),
        (["pull", "org/task", "--registry", "gopher://x"], 2),
        (["pull", "org/task", "--registry", "http://["], 2),
        (["cache", "prune", "--days", "-1"], 2),
        (["cache", "prune", "--days", "soon"], 2),
        (["cache", "show", "sha256:abc"], 2),
        (["nonsense"], 2),
        (["cache", "nonsense"], 2),
        (["pull", "--nonsense"], 2),
        (["demo", "--steps", "0"], 2),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else str(value),
)
def test_a_wrong_call_says_what_to_do(cli, published, words, code):
    """What is not there is exit code 3, a wrong call exit code 2; both with one line and a hint on stderr."""
    done = cli(*words)

    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("error: ")
    assert "\nhint: " in done.err
    assert "Traceback" not in done.err


def test_the_hub_is_too_large_to_list(cli, monkeypatch):
    """By default the registry is the Hub; a list of all of it is a usage error that says what to name."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    done = cli("list")

    assert done.code == 2
    assert "org/" in done.err


def test_an_unwritable_place_is_exit_code_11(cli, published, home):
    """What the operating system refuses is this machine's matter."""
    home.write_bytes(b"a file where the home should be")
    done = cli("pull", "org/task")

    assert (done.code, done.out) == (11, "")
    assert done.err.startswith("error: ")


@pytest.mark.parametrize(
    "words", [["pull", "org/missing"], ["pull"], ["nonsense"], ["cache", "show", "x"]], ids=" ".join
)
def test_errors_are_json_where_json_was_asked_for(cli, registry, words):
    """With --json an error is one JSON object on stderr, and stdout stays empty."""
    done = cli(*words, "--json")

    assert done.out == ""
    assert done.error.keys() == {"message", "hint", "exit_code"}
    assert done.error["exit_code"] == done.code


def test_an_interrupt_is_exit_code_130(cli, registry, monkeypatch):
    """Ctrl-C ends with 130 and no traceback."""

    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "pull", interrupt)
    done = cli("pull", "org/task")

    assert (done.code, done.out) == (130, "")
    assert done.err.split() == ["interrupted"]


def test_a_bug_of_ours_keeps_its_traceback():
    """What nobody foresaw is exit code 1 with a traceback, not a polite sentence."""
    script = (
        "import lora_hub.api, lora_hub.cli\n"
        "def bug(*_a, **_o): raise ZeroDivisionError('a bug')\n"
        "lora_hub.api.pull = bug\n"
        "lora_hub.cli.main(['pull', 'org/task'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "ZeroDivisionError: a bug" in done.stderr
