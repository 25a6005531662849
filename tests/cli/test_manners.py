"""Streams, colours, terminals and signals: what the command line does as a process."""

import hashlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from adapter_files import MANIFEST_NAME, adapter_files, to_json

from lora_hub import api

ESCAPE = "\x1b"
HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e\r\n\x9bx"


def in_terminal(*words: object, **environment: str) -> tuple[int, str]:
    """Run the command line with a terminal for stdout and stderr; return its exit code and what the terminal got."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "lora_hub", *map(str, words)],
        env={key: value for key, value in os.environ.items() if key != "NO_COLOR"} | environment,
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        shown = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
    os.close(ours)
    return process.returncode, shown.decode()


def test_data_goes_to_stdout(process, registry, adapter):
    """A success writes data to stdout, and remarks to stderr."""
    done = process("push", adapter, "org/task@1.0.0")

    assert done.code == 0
    assert done.err.startswith("note: ")
    assert done.out.startswith("org/task@1.0.0  sha256:")


def test_errors_go_to_stderr(process, registry):
    """A failure writes nothing to stdout; its exit code reaches the shell."""
    done = process("pull", "org/missing")

    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("error: ")


def test_several_pulls_keep_stdout_clean(process, published, adapter):
    """A progress bar for several references is on stderr, never on stdout, and does not move without a terminal."""
    process("push", adapter, "org/other@1.0.0")
    done = process("pull", "org/task", "org/other")

    assert done.code == 0
    assert [line.split()[0] for line in done.out.splitlines()] == ["org/task@1.0.0", "org/other@1.0.0"]
    assert ESCAPE not in done.err
    assert "\r" not in done.err


@pytest.mark.parametrize(
    "words", [["pull", "org/missing"], ["list"], ["--help"], ["plugins"], ["nonsense"]], ids=" ".join
)
def test_without_a_terminal_there_is_no_colour(process, registry, words):
    """Nothing that goes into a pipe or a file has escape codes."""
    done = process(*words)

    assert ESCAPE not in done.out + done.err


def test_in_a_terminal_an_error_has_colour(registry):
    """In a terminal the word `error` stands out."""
    code, shown = in_terminal("pull", "org/missing", TERM="xterm")

    assert code == 3
    assert ESCAPE in shown


def test_no_color_is_respected(registry):
    """With NO_COLOR set there is no colour in a terminal either (https://no-color.org)."""
    code, shown = in_terminal("pull", "org/missing", NO_COLOR="1", TERM="xterm")

    assert code == 3
    assert ESCAPE not in shown


def test_the_message_of_an_error_is_plain_text(registry):
    """Colour goes around the word `error`, never into the message."""
    _, shown = in_terminal("pull", "org/missing", TERM="xterm")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)

    assert "error: " in plain
    assert ESCAPE not in plain
    assert "no adapter `org/missing`" in plain


HOSTILE_PLACES = {
    "licence": lambda adapter, manifest: manifest.update(license=HOSTILE),
    "base": lambda adapter, manifest: manifest["base"].update(repo=HOSTILE, revision=HOSTILE, model_type=HOSTILE),
    "targets": lambda adapter, manifest: manifest["lora"].update(targets=[HOSTILE], dtype=HOSTILE),
    "unknown_config_key": lambda adapter, manifest: adapter.config.update({HOSTILE: None}),
    "refused_config_key": lambda adapter, manifest: adapter.config.update({HOSTILE: 1}),
    "refused_config_value": lambda adapter, manifest: adapter.config.update(bias=HOSTILE),
    "peft_type": lambda adapter, manifest: adapter.config.update(peft_type=HOSTILE),
    "target_modules": lambda adapter, manifest: adapter.config.update(target_modules=["q_proj", "v_proj", HOSTILE]),
    "modules_to_save": lambda adapter, manifest: adapter.config.update(modules_to_save=[HOSTILE]),
    "rank_pattern": lambda adapter, manifest: adapter.config.update(rank_pattern={HOSTILE: 2}),
    "alpha_pattern": lambda adapter, manifest: adapter.config.update(alpha_pattern={"q_proj": HOSTILE}),
    "tensor_name": lambda adapter, manifest: adapter.tensors.update({HOSTILE: next(iter(adapter.tensors.values()))}),
    "name": lambda adapter, manifest: manifest.update(name=f"org/{HOSTILE}"),
    "file_name": lambda adapter, manifest: manifest["files"][0].update(name=HOSTILE),
    "schema": lambda adapter, manifest: manifest.update(schema=HOSTILE),
}


@pytest.mark.parametrize("place", sorted(HOSTILE_PLACES))
@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("command", [["info"], ["push", "org/task@1.0.0"]], ids=["info", "push"])
def test_untrusted_text_moves_no_cursor(cli, registry, tmp_path, place, form, command):
    """Whatever an adapter says of itself is printed without a character that a terminal obeys, in errors as well."""
    adapter = adapter_files()
    clean = adapter.write(tmp_path / "clean")
    manifest = {"name": "org/task", "version": "1.0.0", "created": "2026-01-31T12:00:00Z"}
    manifest |= json.loads(api.load(clean).manifest.to_bytes())
    HOSTILE_PLACES[place](adapter, manifest)
    for entry, content in zip(manifest["files"], adapter.files().values(), strict=True):
        entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    adapter.manifest = to_json(manifest)
    directory = adapter.write(tmp_path / "hostile")
    name, *rest = command
    done = cli(name, directory, *rest, *form)

    shown = done.out + done.err
    assert shown.replace("\n", "").isprintable()
    assert HOSTILE not in shown


def test_untrusted_text_is_still_readable(cli, tmp_path):
    """What is no control character is shown as it is."""
    directory = adapter_files().write(tmp_path / "adapter")
    manifest = json.loads(api.load(directory).manifest.to_bytes()) | {"license": "LicenseRef-Zürich-日本"}
    (directory / MANIFEST_NAME).write_bytes(to_json(manifest))

    assert "LicenseRef-Zürich-日本" in cli("info", directory).out


@pytest.mark.parametrize("words", [["schema", "manifest"], ["plugins"], ["--help"]], ids=" ".join)
def test_a_reader_that_has_enough_is_no_error(words):
    """When the reader of stdout goes away (`| head`), the command ends quietly, and not with a bug's exit code."""
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "lora_hub", *words], stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )

    assert done.stderr == ""
    assert done.returncode == 0


def test_a_full_output_device_is_this_machines_fault():
    """A stdout that cannot be written is an error of this machine, with one line."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lora_hub", "schema", "manifest"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.returncode == 11
    assert "Traceback" not in done.stderr


def test_ctrl_c_ends_with_130(tmp_path):
    """A process that is interrupted while it works ends with 130 and one word on stderr."""
    script = (
        "import signal, sys, time, lora_hub.api, lora_hub.cli\n"
        # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait(*_a, **_o): print('ready', file=sys.stderr, flush=True); time.sleep(60)\n"
        "lora_hub.api.pull = wait\n"
        "lora_hub.cli.main(['pull', 'org/task'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as p:
        assert p.stderr.readline() == "ready\n"
        time.sleep(0.05)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate()

    assert (p.returncode, out, err.split()) == (130, "", ["interrupted"])


def test_without_a_command_the_help_is_shown(process):
    """`lora-hub` alone shows its help as it is, without calling it an error message."""
    done = process()

    assert done.code in {0, 2}
    assert "Usage: lora-hub" in done.out + done.err
    assert "error:" not in done.err


def test_the_script_and_the_module_are_the_same(process):
    """`python -m lora_hub` calls itself lora-hub."""
    assert process("--help").out.startswith("Usage: lora-hub ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(shell):
    """The line of the README prints a script that the shell can evaluate."""
    done = subprocess.run(
        [sys.executable, "-m", "lora_hub"],
        env=os.environ | {"_LORA_HUB_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "_LORA_HUB_COMPLETE" in done.stdout
