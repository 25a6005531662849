"""The command line against the Hub: what it asks, prints and leaves behind, also when it is interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from adapter_files import WEIGHTS_NAME, adapter_files, large_adapter

from lora_hub import api
from lora_hub import trust as trusts
from lora_hub.registry import network
from lora_hub.registry.network import Retry

MIB = 1024 * 1024
PLAIN = "org/plain"
CANARY = "hf_CANARYcanary0123456789"
CARD = b"---\nlibrary_name: peft\nbase_model: org/base\n---\nA task.\n"
MODES = {"xet": {}, "lfs": {"HF_HUB_DISABLE_XET": "1"}}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """In this process, what may pass is tried again at once."""
    monkeypatch.setattr(network, "RETRY", Retry(tries=2, first=0.001, longest=0.002))


@pytest.fixture
def task(hub, adapter) -> str:
    """The digest of org/task@1.0.0, which is on the Hub and pinned; the log is empty."""
    digest = api.push(adapter, "org/task@1.0.0").digest
    hub.clear()
    return digest


@pytest.fixture
def large(hub, tmp_path) -> bytes:
    """The weights of org/task@1.0.0, 9 MiB, which is on the Hub and pinned; the log is empty."""
    files = large_adapter()
    api.push(files.write(tmp_path / "large"), "org/task@1.0.0")
    hub.clear()
    return files.files()[WEIGHTS_NAME]


def stored(home: Path) -> list[str]:
    """The digests of the adapters in the store of *home*."""
    return [f"sha256:{path.name}" for path in (home / "store" / "adapters").glob("*")]


def weights_in(home: Path) -> bytes:
    """The weights of the one adapter in the store of *home*."""
    (path,) = (home / "store" / "adapters").iterdir()
    return (path / WEIGHTS_NAME).read_bytes()


# One process for each command


@pytest.mark.parametrize("mode", MODES)
def test_push_and_pull(process, hub, tmp_path, home, mode):
    """What is pushed by one process is pulled by another, over Xet and without it; again, it needs no request."""
    files = large_adapter()
    pushed = process("push", files.write(tmp_path / "large"), "org/task@1.0.0", "--json", **MODES[mode])
    hub.clear()
    pulled = process("pull", "org/task@1.0.0", "--json", **MODES[mode])
    asked = {host: hub.count("cdn", "GET", f"/{host}/") > 0 for host in ("xorbs", "files")}
    hub.clear()
    again = process("pull", "org/task@1.0.0", **MODES[mode])

    assert (pushed.code, pulled.code, again.code) == (0, 0, 0), pushed.err + pulled.err
    assert {key: pulled.data[0][key] for key in ("reference", "digest", "commit")} == {
        key: pushed.data[key] for key in ("reference", "digest", "commit")
    }
    assert (pulled.data[0]["trusted"], pulled.data[0]["signers"]) == ("its digest is pinned", [])
    assert weights_in(home) == files.files()[WEIGHTS_NAME]
    assert asked == {"xorbs": mode == "xet", "files": mode == "lfs"}
    assert again.out.split() == ["org/task@1.0.0", pushed.data["digest"], pulled.data[0]["path"]]
    assert hub.requests == []


def test_info(process, hub):
    """`info` tells people and programs what an adapter is, that nobody vouched for it, and moves no weights."""
    hub.create(PLAIN, large_adapter().files())
    as_json = process("info", PLAIN, "--json")
    asked = hub.count("hub"), hub.count("cdn")

    assert as_json.code == 0, as_json.err
    assert as_json.data["base"]["repo"] == "org/base"
    assert (as_json.data["r"], as_json.data["targets"], as_json.data["trusted"]) == (8, ["q_proj"], False)
    assert asked[0] <= 4
    assert asked[1] <= 1
    assert sum(request.answer_size for request in hub.requests) < MIB


def test_search(process, hub):
    """`search --base` finds adapters by their base model, in one request."""
    hub.create(PLAIN, {**adapter_files().files(), "README.md": CARD})
    hub.create("org/other", {**adapter_files().files(), "README.md": CARD.replace(b"org/base", b"org/b")})
    done = process("search", "--base", "org/base", "--json")

    assert done.code == 0, done.err
    assert done.data == [{"name": PLAIN, "base": "org/base", "downloads": 0}]
    assert len(hub.requests) == 1


def test_list(process, hub, task):
    """`list` shows the versions of an organisation's adapters."""
    done = process("list", "org/", "--json")

    assert done.code == 0, done.err
    assert done.data == {"org/task": ["1.0.0"]}


@pytest.mark.parametrize("how", ["--offline", "HF_HUB_OFFLINE"])
def test_offline(process, hub, task, how):
    """Offline, what is pinned and in the store is there, by a range as well; else it is exit code 4. No request."""
    words = ["--offline"] if how == "--offline" else []
    environment = {how: "1"} if how != "--offline" else {}
    refused = process("pull", "org/task@1.0.0", "--json", *words, **environment)
    seen = len(hub.requests)
    api.pull("org/task@1.0.0")
    hub.clear()
    pulled = process("pull", "org/task@^1.0", "--json", *words, **environment)

    assert (refused.code, pulled.code) == (4, 0), pulled.err
    assert "offline" in refused.error["hint"].lower()
    assert pulled.data[0]["digest"] == task
    assert (seen, hub.requests) == (0, [])


# In this process


def test_the_newer_version_is_named(cli, hub, task, tmp_path, home):
    """Of several versions the newest pinned one is pulled; a note on stderr names the newer one."""
    for minor in (1, 2):
        api.push(adapter_files(seed=minor).write(tmp_path / f"{minor}"), f"org/task@1.{minor}.0")
    trusts.untrust("org/task@1.2.0")
    done = cli("pull", "org/task", "--json")

    assert done.code == 0
    assert done.data[0]["reference"] == "org/task@1.1.0"
    assert done.err.startswith("note: org/task@1.2.0 is newer, but was passed over: it is not pinned")
    assert len(done.err.splitlines()) == 1


def test_no_note_where_nothing_is_newer(cli, hub, task):
    """Where the newest version is pinned, stderr is empty."""
    assert cli("pull", "org/task").err == ""


def test_several_references(cli, hub, task):
    """Each reference is pulled, and each has its line."""
    hub.create(PLAIN, adapter_files(seed=1).files())
    (pin,) = trusts.pin([PLAIN])
    done = cli("pull", "org/task", PLAIN)

    assert done.code == 0
    assert [line.split()[:2] for line in done.out.splitlines()] == [
        ["org/task@1.0.0", task],
        [str(pin.reference), pin.digest],
    ]


def test_info_says_whether_it_is_trusted(cli, hub, task):
    """For people, `info` says how to trust what is not."""
    hub.create(PLAIN, adapter_files(seed=1).files())

    assert "trusted:             yes" in cli("info", "org/task").out
    untrusted = cli("info", PLAIN).out
    assert "trusted:             no" in untrusted
    assert "is unsigned, and no rule covers its name" in untrusted


FAULTS = {
    "401": ({"status": 401}, 4),
    "403": ({"status": 403}, 4),
    "404": ({"status": 404}, 3),
    "429": ({"status": 429}, 4),
    "503": ({"status": 503}, 4),
    "HTML": ({"status": 200, "body": b"<!doctype html>"}, 4),
    "cut off": ({"refuse": True}, 4),
    "no answer": ({"hang": True}, 4),
    "half an answer": ({"cut": 10}, 4),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    "words", [["pull", "org/task"], ["info", "org/task"], ["trust", "pin", "org/task"]], ids=" ".join
)
def test_a_fault_has_its_exit_code(cli, hub, task, words, fault, monkeypatch):
    """A fault of network or Hub is an exit code and two lines; without the fault, the same words succeed."""
    if fault == "no answer":
        monkeypatch.setenv("LORA_HUB_TIMEOUT", "0.3")
    what, code = FAULTS[fault]
    added = hub.fault("/api/models/org/task", times=None, **what)
    done = cli(*words)
    added.times = added.hits
    monkeypatch.delenv("LORA_HUB_TIMEOUT", raising=False)
    again = cli(*words)

    assert (done.code, done.out) == (code, "")
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["error", "hint"]
    assert again.code == 0


def test_a_wait_that_is_none(cli, hub, task, monkeypatch):
    """LORA_HUB_TIMEOUT must be seconds (2)."""
    monkeypatch.setenv("LORA_HUB_TIMEOUT", "soon")
    done = cli("pull", "org/task", "--json")

    assert done.code == 2
    assert "LORA_HUB_TIMEOUT" in done.error["message"]


def test_a_server_cannot_move_the_cursor(cli, hub):
    """What a Hub answers is printed without control characters, for people."""
    evil = {"id": "org/\x1b[2Jx", "tags": ["peft", "base_model:adapter:org/\x1b]0;y\x07"], "downloads": 1}
    hub.fault("/api/models", status=200, body=[evil])
    done = cli("search", "x")

    assert done.code == 0
    assert all(line.isprintable() for line in done.out.splitlines())


def test_a_warning_of_the_server_is_not_printed_as_it_is(process, hub):
    """What a Hub wants to tell the user cannot move the cursor, nor get between the JSON on stderr."""
    hub.fault("/refs", status=403, headers={"X-HF-Warning": "news; \x1b[2J\x1b]0;title\x07"})
    done = process("pull", PLAIN, "--json")

    assert "\x1b" not in done.err
    assert done.error["exit_code"] == 4


def test_a_try_that_failed_is_not_worth_a_word(process, hub):
    """What passed is not told: stderr stays empty, so that an error in JSON is all of it."""
    hub.fault("/api/models", status=503)
    done = process("search", "x", "--json")

    assert (done.code, done.data, done.err) == (0, [], "")


def test_a_password_in_the_endpoint_is_not_printed(process, hub):
    """HF_ENDPOINT may carry a password for a proxy; no message repeats it."""
    hub.fault("/api/models", status=503)
    endpoint = hub.endpoint.replace("http://", f"http://user:{CANARY}@")
    done = [process(*words, HF_ENDPOINT=endpoint) for words in (["search", "x"], ["pull", PLAIN])]

    assert CANARY not in repr(done)


@pytest.mark.parametrize("endpoint", ["https://[::1", "http://127.0.0.1:99999", "ftp://127.0.0.1"])
def test_an_endpoint_that_is_none(process, hub, endpoint):
    """HF_ENDPOINT that names no host is a mistake of the user (2 or 4), in two lines that name the variable."""
    done = process("pull", PLAIN, HF_ENDPOINT=endpoint)

    assert done.code in {2, 4}
    assert done.out == ""
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["error", "hint"]
    assert "HF_ENDPOINT" in done.err


# Disk, signals, secrets


@pytest.mark.parametrize("mode", MODES)
def test_a_disk_that_is_full(process, hub, large, home, tmp_path, mode):
    """No space left is exit code 11 with what to do; nothing is visible, and with space the next run completes."""
    code = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({4 * MIB}, {4 * MIB}))\n"
        "from lora_hub.cli import main\n"
        "main(['pull', 'org/task@1.0.0', '--json'])\n"
    )
    full = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | MODES[mode],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    seen = stored(home)
    again = process("pull", "org/task@1.0.0", **MODES[mode])

    assert full.returncode == 11, full.stderr
    assert "free some space" in json.loads(full.stderr)["error"]["hint"]
    assert seen == []
    assert again.code == 0, again.err
    assert weights_in(home) == large


@pytest.mark.parametrize("mode", MODES)
def test_ctrl_c_in_the_middle_of_a_download(process, hub, large, home, tmp_path, mode):
    """Interrupted, it says so (130) and leaves nothing half-visible; the next run goes on and completes."""
    path = {"xet": "/xorbs/", "lfs": "/files/"}[mode]
    if mode == "lfs":
        hub.fault(path, cut=4 * MIB)
        hub.fault(path, delay=0)  # the first request is answered, and cut off; those for the rest hang
    hang = hub.fault(path, times=None, hang=True)
    code = interrupted(tmp_path, MODES[mode], lambda: hang.hits)
    hang.times = hang.hits
    seen = stored(home), (home / "store" / "versions").exists()
    hub.clear()
    again = process("pull", "org/task@1.0.0", **MODES[mode])

    assert code == (130, "", "interrupted\n")
    assert seen == ([], False)
    assert again.code == 0, again.err
    assert weights_in(home) == large
    if mode == "lfs":
        assert [r.headers["range"].startswith("bytes=0-") for r in hub.requests if r.host == "cdn"] == [False]


@pytest.mark.parametrize("path", ["/refs", "/tree/"])
def test_ctrl_c_while_the_hub_is_asked(hub, task, home, tmp_path, path):
    """An interrupted question ends at once as well."""
    hang = hub.fault(path, times=None, hang=True)

    assert interrupted(tmp_path, {}, lambda: hang.hits) == (130, "", "interrupted\n")
    assert stored(home) == []


def interrupted(directory: Path, environment: dict[str, str], is_there) -> tuple[int, str, str]:
    """Pull in a process that gets SIGINT as soon as *is_there*; return its exit code, stdout and stderr."""
    with subprocess.Popen(
        [sys.executable, "-m", "lora_hub", "pull", "org/task@1.0.0"],
        env=os.environ | environment, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            while not is_there():
                assert process.poll() is None, process.communicate()
                time.sleep(0.01)
            time.sleep(0.1)  # it waits for the answer now
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=10)
        finally:
            process.kill()
    return process.returncode, out, err


@pytest.mark.parametrize("mode", MODES)
def test_the_token_appears_nowhere(process, hub, tmp_path, mode):
    """No output, no file and no request to the CDN ever has the token."""
    hub.add_token(CANARY, "org", orgs=None)
    environment = {**MODES[mode], "HF_TOKEN": CANARY}
    directory = large_adapter(size=2 * MIB).write(tmp_path / "large")
    hub.create(PLAIN, adapter_files(seed=1).files())
    done = [
        process("push", directory, "org/task@1.0.0", **environment),
        process("pull", "org/task@1.0.0", **environment),
        process("pull", PLAIN, "--json", **environment),
        process("lock", "org/task", **environment),
    ]
    hub.fault("/api/models", status=403, body={"error": f"Bearer {CANARY} may not"})
    done.append(process("search", "x", **environment))
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    told = {request.host for request in hub.requests if CANARY in f"{request.path} {request.headers}"}

    assert [one.code for one in done] == [0, 0, 5, 0, 4], done
    assert CANARY not in repr(done)
    assert tmp_path / "lora-hub.lock" in files
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert hub.count("cdn") > 0
    assert told == {"hub"}


PEFT = """
import sys
import torch
from peft import PeftConfig, PeftModel
from transformers import LlamaConfig, LlamaForCausalLM
import lora_hub

torch.manual_seed(0)
sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "num_hidden_layers": 2}
model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=16, vocab_size=32)).eval()
ids = torch.arange(3, 12)[None]

def logits(model):
    with torch.no_grad():
        return model(input_ids=ids).logits

lora_hub.apply_adapter(model, "org/task@1.2.0")
ours = logits(model)
lora_hub.adapters(model)["task"].remove()
base = logits(model)
config = PeftConfig.from_pretrained("org/task", revision="v1.2.0")
theirs = logits(PeftModel.from_pretrained(model, "org/task", revision="v1.2.0").eval())
print(config.r, config.base_model_name_or_path)
print(torch.allclose(ours, theirs, atol=1e-5), torch.allclose(ours, base, atol=1e-2))
"""


def test_peft_loads_what_was_pushed(hub, tmp_path):
    """`PeftModel.from_pretrained(repo, revision="v1.2.0")` gives the outputs of `apply_adapter` at that version."""
    for seed, version in enumerate(("1.2.0", "1.3.0")):
        api.push(adapter_files(seed=seed, r=4).write(tmp_path / version), f"org/task@{version}")
    done = subprocess.run(
        [sys.executable, "-c", PEFT], env=os.environ, cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert done.stdout.splitlines() == ["4 org/base", "True False"], done.stderr
