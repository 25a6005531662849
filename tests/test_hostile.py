"""Named vectors: each hostile version is refused with its exit code and without harm, each sound one is accepted.

What a vector's folder holds says `vectors.making.case.Case`; ``vectors/make_hostile.py`` makes them all.
"""

import json
import os
import shutil
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from vectors import make_hostile
from vectors.making.published import KEY, P384, P521, STRANGER, VERSION_FILES, fingerprint, public_pem
from vectors.scene import inventory, lay_out

import lora_hub
from lora_hub import cli
from lora_hub.documents import verified_adapter
from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.manifest import Manifest
from lora_hub.errors import LoraHubError, UntrustedError
from lora_hub.signing import verify

ROOT = make_hostile.ROOT
HOSTILE = sorted(path.parent for path in (ROOT / make_hostile.HOSTILE).glob("*/*/expected.json"))
ACCEPTED = sorted((ROOT / make_hostile.ACCEPTED).iterdir())
HUGE = [folder for folder in HOSTILE if (folder / "special.json").exists() and "terabyte" in folder.name]
CANARY = ROOT / make_hostile.ACCEPTED / "strings_would_move_the_cursor"
AT_LEAST = {"bundle": 40, "manifest": 25, "file_set": 20, "safetensors": 30, "adapter_config": 25, "policy": 20}

# Sound, and yet a manifest is read before any signature: of what is named or passed over, to say what it is.
READS_FIRST = {"newest_version_is_not_trusted"}

# What `model-signing` does not read: no bundle at all, and a key that the specification is about to drop.
NOT_OMS = {"unsigned_and_pinned_beside_a_broken_bundle", "allow_symlinks_is_missing"}


class Layer(nn.Module):
    """The modules that the vectors' adapters are for."""

    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj, self.c_attn = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 12)

    def forward(self, x):
        """All of them on *x*."""
        return torch.cat([self.q_proj(x), self.v_proj(x), self.c_attn(x)], dim=-1)


class Model(nn.Module):
    """One layer and a head."""

    def __init__(self):
        super().__init__()
        self.layers, self.classifier = nn.ModuleList([Layer()]), nn.Linear(4, 3)

    def forward(self, x):
        """Both on *x*."""
        return torch.cat([self.layers[0](x), self.classifier(x)], dim=-1)


@pytest.fixture(scope="module")
def model():
    """One model for all vectors, since none of them leaves a trace."""
    torch.manual_seed(0)
    return Model().eval()


def anatomy(model):
    """Everything of *model* that an adapter could change: bits, classes, attributes, hooks."""
    bits = {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}
    hooks = [len(v) for module in model.modules() for k, v in sorted(module.__dict__.items()) if "hooks" in k]
    return bits, hooks, [(name, type(module), sorted(module.__dict__)) for name, module in model.named_modules()]


def outputs(model):
    """What *model* computes."""
    with torch.no_grad():
        return model(torch.tensor([[1.0, -2.0, 3.0, 0.5]]))


@pytest.fixture
def events(monkeypatch):
    """What happened, in order: `verified` is a signature that was right, the others are what was begun to be parsed."""
    happened: list[str] = []

    def spy(function, event):
        def call(*args, **kwargs):
            happened.extend([event] if event != "verified" else [])
            result = function(*args, **kwargs)
            happened.extend([event] if event == "verified" else [])
            return result

        return call

    right = verify.verify_signature
    for module in [module for name, module in sys.modules.items() if name.startswith("lora_hub.")]:
        if getattr(module, "verify_signature", None) is right:
            monkeypatch.setattr(module, "verify_signature", spy(right, "verified"))
    monkeypatch.setattr(AdapterConfig, "parse", staticmethod(spy(AdapterConfig.parse, "config")))
    monkeypatch.setattr(Manifest, "parse", staticmethod(spy(Manifest.parse, "manifest")))
    monkeypatch.setattr(verified_adapter, "read_header", spy(verified_adapter.read_header, "weights"))
    return happened


def before_a_signature(events) -> set[str]:
    """Return what was parsed before any signature was verified."""
    return set(events[: events.index("verified")] if "verified" in events else events)


def moves_no_cursor(text: str) -> bool:
    """Whether *text* holds no control character but new lines, and none that turns the direction of writing."""
    return all(line.isprintable() for line in text.split("\n"))


def named(folders):
    """Return the mark that runs a test once for each of *folders*."""
    return pytest.mark.parametrize("folder", folders, ids=lambda path: f"{path.parent.name}-{path.name}")


@pytest.fixture
def scene(folder, tmp_path, monkeypatch):
    """The vector of *folder*, laid out; the test stands in the directory of the project."""
    laid_out = lay_out(folder, tmp_path)
    monkeypatch.chdir(laid_out.project)
    return laid_out


def pull(scene, *options) -> int:
    return cli.run(["pull", scene.reference, "--registry", str(scene.registry), *options])


@named(HOSTILE)
def test_a_hostile_version_is_refused(folder, scene, model, events, tmp_path, capsys):
    """Exit code, error and words are those of the vector; model, disk and terminal are as they were."""
    before, files = anatomy(model), inventory(tmp_path)

    exit_code = pull(scene)
    said = capsys.readouterr()
    assert cli.run(["verify", scene.reference, "--registry", str(scene.registry)]) == exit_code
    with pytest.raises(LoraHubError) as caught:
        lora_hub.apply_adapter(model, scene.reference, registry=scene.registry)
    error = caught.value

    assert (exit_code, error.exit_code) == (scene.expected["exit_code"], scene.expected["exit_code"]), error
    assert (type(error).__name__, error.hint is None) == (scene.expected["error"], False)
    assert scene.expected["contains"] in error.message
    assert (said.out, error.message in said.err) == ("", True)
    assert moves_no_cursor(f"{said.err}{capsys.readouterr().err}{error}")
    assert anatomy(model) == before
    assert inventory(tmp_path) == files
    assert not list(scene.home.glob("store/adapters/*"))
    check_order(folder.parent.name, events, error)


def check_order(group, events, error):
    """The signature comes first; but what is refused may have been read, to say what it was."""
    is_described = isinstance(error, UntrustedError) or group == "policy"
    assert before_a_signature(events) <= ({"manifest"} if is_described else set())
    if group == "bundle":
        assert {"config", "weights"}.isdisjoint(events)


@named(ACCEPTED)
def test_a_sound_version_is_accepted(folder, scene, model, events, tmp_path, capsys):
    """It is pulled and applied, changes what the model computes, and comes off again without a trace."""
    before, plain, files = anatomy(model), outputs(model), inventory(tmp_path)

    exit_code = pull(scene)
    said = capsys.readouterr()
    assert exit_code == 0, said.err
    adapter = lora_hub.apply_adapter(model, scene.reference, registry=scene.registry)
    try:
        assert not torch.equal(outputs(model), plain)
    finally:
        adapter.remove()

    assert torch.equal(outputs(model), plain)
    assert anatomy(model) == before
    assert inventory(tmp_path) == files
    assert moves_no_cursor(said.out + said.err)
    assert "antigravity" not in sys.modules  # what one of them would have imported
    if not folder.name.startswith("unsigned"):
        assert before_a_signature(events) <= ({"manifest"} if folder.name in READS_FIRST else set())


@named(HUGE)
def test_what_is_huge_takes_no_memory(folder, scene):
    """A file of a terabyte is refused by its size: it is neither read nor made room for."""
    pull(scene)  # which imports what it needs
    tracemalloc.start()
    try:
        assert pull(scene) == scene.expected["exit_code"]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 16 * 2**20


@pytest.mark.parametrize("json_option", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("folder", [CANARY], ids=["canary"])
def test_no_command_moves_the_cursor(scene, json_option, capsys):
    """What a version says of itself is shown by every command so that no terminal obeys it."""
    where = ["--registry", str(scene.registry)]
    assert pull(scene, *json_option) == 0
    for words in (
        ["info", scene.reference, *where],
        ["list", *where],
        ["search", "task", *where],
        ["cache", "list"],
        ["cache", "show", scene.reference],
        ["cache", "verify"],
        ["verify", scene.reference, *where],
        ["trust", "list"],
        ["trust", "explain", scene.reference, *where],
        ["lock", scene.reference, *where],
    ):
        assert cli.run([*words, *json_option]) == 0, words
        said = capsys.readouterr()

        assert moves_no_cursor(said.out + said.err), words


@pytest.mark.full
@named(HOSTILE)
def test_no_command_is_led_astray(scene, tmp_path, capsys):
    """Commands that only look end in order as well, with nothing that a terminal obeys, and change nothing."""
    files, where = inventory(tmp_path), ["--registry", str(scene.registry)]
    for words in (
        ["info", scene.reference, *where],
        ["list", *where],
        ["search", "task", *where],
        ["trust", "list"],
        ["trust", "explain", scene.reference, *where],
        ["verify", str(scene.registry / "org" / "task" / "1.0.0")],
    ):
        assert cli.run(words) in {0, 3, 5, 6, 7, 8, 11}, words
        said = capsys.readouterr()

        assert moves_no_cursor(said.out + said.err), words
    assert inventory(tmp_path) == files


def test_there_are_enough_vectors():
    """Each group has as many vectors as it needs to be called covered."""
    counts = Counter(path.parent.name for path in HOSTILE)

    assert counts.keys() == AT_LEAST.keys()
    assert all(counts[group] >= least for group, least in AT_LEAST.items()), counts
    assert counts.total() >= 160
    assert len(ACCEPTED) >= 30


def test_the_vectors_are_what_their_maker_makes():
    """The script makes the very bytes that lie here, and nothing else lies here."""
    made = make_hostile.tree()
    folders = [ROOT / make_hostile.HOSTILE, ROOT / make_hostile.ACCEPTED]
    found = {str(path.relative_to(ROOT)): path for folder in folders for path in folder.rglob("*") if path.is_file()}
    found |= {name: ROOT / name for name in (make_hostile.KEY_NAME, make_hostile.POLICY_NAME)}

    assert found.keys() == made.keys()
    assert [name for name, path in found.items() if path.read_bytes() != made[name]] == []


def test_the_maker_does_not_ask_lora_hub():
    """What makes the vectors imports nothing of what they test."""
    sources = [Path(make_hostile.__file__), *(Path(__file__).parent / "vectors" / "making").glob("*.py")]

    assert not any(word in path.read_text() for path in sources for word in ("import lora_hub", "from lora_hub"))


@named([folder for folder in ACCEPTED if (folder / "model.sig").exists() and folder.name not in NOT_OMS])
def test_others_verify_what_we_accept(folder, tmp_path):
    """The package `model-signing` agrees about the signatures of sound versions."""
    verifying = pytest.importorskip("model_signing.verifying")
    version, keys = tmp_path / "1.0.0", {fingerprint(key): key for key in (KEY, STRANGER, P384, P521)}
    version.mkdir()
    for name in VERSION_FILES:
        shutil.copy(folder / name, version)
    document = json.loads((folder / "model.sig").read_bytes())
    key = keys[document["verificationMaterial"]["publicKey"]["hint"]]
    (tmp_path / "key.pub").write_bytes(public_pem(key))

    verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "key.pub").verify(version, folder / "model.sig")


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
@pytest.mark.parametrize("folder", [CANARY], ids=["canary"])
def test_what_is_kept_is_private_whatever_the_umask_is(umask, scene):
    """What was pulled is accepted again, since nobody else may write it: the umask of the user has no say in that."""
    before = os.umask(umask)
    try:
        assert [pull(scene), pull(scene)] == [0, 0]
    finally:
        os.umask(before)

    assert [path for path in scene.home.rglob("*") if path.stat().st_mode & 0o022] == []
