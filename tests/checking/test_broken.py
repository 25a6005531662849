"""Broken and misfitting adapters, each with the rule that finds it. PEFT loads a good part of them without a word."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from adapter_files import (
    HIDDEN,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    AdapterFiles,
    Tensor,
    adapter_files,
    lora_key,
    module_paths,
    pack,
    tensor,
)
from base_models import BaseModel, adapter_of, bert, bert_adapter, gpt2, llama, llama_adapter

import lora_hub
from lora_hub.adapter_directory import read_adapter

Q0, V0, Q1, V1 = module_paths()
PREFIX = "base_model.model."


@dataclass
class Scene:
    """An adapter and a base that fit, until a case breaks one of them; *files* are put over what was written."""

    adapter: AdapterFiles = field(default_factory=adapter_files)
    base: BaseModel | None = None
    files: dict[str, bytes | None] = field(default_factory=dict)
    repo: str | None = None  # on the Hub, if the name of the base matters

    def write(self, root: Path) -> Path:
        """Write the adapter and return its directory."""
        directory = self.adapter.write(root / "adapter")
        for name, content in self.files.items():
            if content is None:
                (directory / name).unlink()
            else:
                (directory / name).write_bytes(content)
        return directory

    def rename(self, old: str, new: str) -> None:
        """Call tensors otherwise."""
        self.adapter.tensors = {key.replace(old, new): t for key, t in self.adapter.tensors.items()}

    def draft(self, **changes: object) -> None:
        """Put the manifest beside it that the adapter has, with *changes* in its summary."""
        from lora_hub.documents.verified_adapter import verify

        document = json.loads(verify(self.adapter.files(), source="x").manifest.to_bytes())
        document["lora"] |= {key: value for key, value in changes.items() if key in document["lora"]}
        document["base"] |= {key: value for key, value in changes.items() if key not in document["lora"]}
        self.files[MANIFEST_NAME] = json.dumps(document).encode()


Break = Callable[[Scene], object]


def of(adapter: AdapterFiles, base: BaseModel | None = None) -> Break:
    """Another adapter, or another base."""

    def put(scene: Scene) -> None:
        scene.adapter, scene.base = adapter, base

    return put


def on(base: BaseModel) -> Break:
    return lambda scene: setattr(scene, "base", base)


def config(**changes: object) -> Break:
    return lambda scene: scene.adapter.config.update(changes)


def tensors(**changes: Tensor | None) -> Break:
    """Tensors of the key of q in layer 0 replaced (A, B), or added."""

    def put(scene: Scene) -> None:
        for side, value in changes.items():
            scene.adapter.tensors[lora_key(Q0, side)] = value
            if value is None:
                del scene.adapter.tensors[lora_key(Q0, side)]

    return put


def added(key: str, *shape: int) -> Break:
    return lambda scene: scene.adapter.tensors.update({PREFIX + key: tensor(*shape, seed=77)})


def filled(side: str, value: float, *paths: str) -> Break:
    """All numbers of A or B set to *value*."""

    def put(scene: Scene) -> None:
        for path in paths:
            known = scene.adapter.tensors[lora_key(path, side)]
            content = pack([value] * math.prod(known.shape), "F32")
            scene.adapter.tensors[lora_key(path, side)] = Tensor(dtype="F32", shape=known.shape, content=content)

    return put


def beside(**files: bytes) -> Break:
    return lambda scene: scene.files.update({name.replace("__", "."): content for name, content in files.items()})


def both(*breaks: Break) -> Break:
    def put(scene: Scene) -> None:
        for one in breaks:
            one(scene)

    return put


def _copy_layer(scene: Scene) -> None:
    for side in "AB":
        scene.adapter.tensors[lora_key(Q1, side)] = scene.adapter.tensors[lora_key(Q0, side)]


def _truncate(scene: Scene) -> None:
    scene.files[WEIGHTS_NAME] = scene.adapter.files()[WEIGHTS_NAME][:-40]


def _duplicate_key(scene: Scene) -> None:
    scene.adapter.tensors[lora_key(Q0, "A").replace(".weight", ".default.weight")] = tensor(2, HIDDEN, seed=3)


def _change_after_signing(scene: Scene) -> None:
    scene.draft()
    scene.adapter.config["lora_alpha"] = 16


def _larger_vocabulary(scene: Scene) -> None:
    scene.adapter.config["modules_to_save"] = ["embed_tokens"]
    scene.adapter.tensors[f"{PREFIX}model.embed_tokens.weight"] = tensor(18, HIDDEN)
    scene.base = llama()


def _sliced_wrongly(scene: Scene) -> None:
    scene.adapter = adapter_of({"transformer.h.0.attn.c_attn": (24, 8)}, r=4)
    part = {"part": "q", "r": 3, "alpha": 4, "rows": [[0, 8]]}
    scene.draft()
    document = json.loads(scene.files[MANIFEST_NAME])
    document["lora"]["slices"] = [{"modules": ["transformer.h.0.attn.c_attn"], "parts": [part]}]
    scene.files[MANIFEST_NAME] = json.dumps(document).encode()


NAN, INF = float("nan"), float("inf")
LICENSED = b"---\nlicense: apache-2.0\n---\n"

# By name: the code that finds it, and how it is broken.
BROKEN: dict[str, tuple[str, Break]] = {
    # Documents and files
    "there is no config": ("LH002", beside(adapter_config__json=None)),
    "there are no weights": ("LH002", beside(adapter_model__safetensors=None)),
    "the config is a text": ("LH004", beside(adapter_config__json=b"r = 8")),
    "the config has a key twice": ("LH004", beside(adapter_config__json=b'{"r": 1, "r": 2}')),
    "r is a text": ("LH005", config(r="8")),
    "alpha is null and r is zero": ("LH005", config(r=0)),
    "targets are a number": ("LH005", config(target_modules=3)),
    "a key is of the future": ("LH006", config(lora_gain=2.0)),
    "remote code is trusted": ("LH006", config(trust_remote_code=True)),
    "DoRA without magnitudes": ("LH007", config(use_dora=True)),
    "biases were trained": ("LH007", config(bias="all")),
    "layers are replicated": ("LH007", config(layer_replication=[[0, 2], [1, 2]])),
    "parameters are targets": ("LH007", config(target_parameters=["experts.w"])),
    "tokens were trained": ("LH007", config(trainable_token_indices=[1, 2])),
    "the base was changed by PiSSA": ("LH008", config(init_lora_weights="pissa_niter_16")),
    "the base was changed by OLoRA": ("LH008", config(init_lora_weights="olora")),
    "it is IA3": ("LH009", config(peft_type="IA3")),
    "its type is missing": ("LH009", lambda scene: scene.adapter.config.pop("peft_type")),
    "a pattern hangs": ("LH010", config(rank_pattern={"(a+)+$": 2})),
    "a cache would be unpickled": ("LH011", config(corda_config={"cache_file": "/tmp/x.pt"})),
    "the weights are truncated": ("LH012", _truncate),
    "the weights are a pointer of Git LFS": ("LH012", beside(adapter_model__safetensors=b"version https://git-lfs\n")),
    "the weights are a pickle": ("LH012", beside(adapter_model__safetensors=b"PK\x03\x04" + bytes(60))),
    "the weights are integers": ("LH013", tensors(A=Tensor(dtype="I32", shape=(2, 8), content=bytes(64)))),
    "the manifest is no JSON": ("LH014", beside(**{"lora-hub__json": b"{"})),
    "the config was changed after the manifest": ("LH015", _change_after_signing),
    "the manifest says another rank": ("LH016", lambda scene: scene.draft(r=64)),
    "the manifest says another alpha": ("LH016", lambda scene: scene.draft(alpha=1)),
    "the manifest's slices are of another rank": ("LH017", _sliced_wrongly),
    # Tensors and config
    "the rank is wrong": ("LH101", config(r=4)),
    "a rank in a pattern is wrong": ("LH101", config(rank_pattern={"v_proj": 8})),
    "A and B are exchanged": ("LH101", tensors(A=tensor(8, 2), B=tensor(2, 8))),
    "B is missing": ("LH102", tensors(B=None)),
    "A is missing": ("LH102", tensors(A=None)),
    "a head is not in the config": ("LH103", added("score.weight", 2, HIDDEN)),
    "a bias of B": ("LH103", added(f"{Q0}.lora_B.bias", HIDDEN)),
    "DoRA's magnitudes without DoRA": ("LH104", added(f"{Q0}.lora_magnitude_vector", HIDDEN)),
    "LoRA on the embedding": ("LH104", added("model.embed_tokens.lora_embedding_A", 2, 16)),
    "a weight of the base": ("LH105", added(f"{Q0}.base_layer.weight", HIDDEN, HIDDEN)),
    "the embedding was saved as well": ("LH105", added("lm_head.base_layer.weight", 16, HIDDEN)),
    "one parameter under two names": ("LH106", _duplicate_key),
    "a target has no tensor": ("LH107", config(target_modules=["q_proj", "v_proj", "o_porj"])),
    "the config targets less than there is": ("LH108", config(target_modules=["q_proj"])),
    "the config has fewer layers": ("LH108", config(layers_to_transform=[0])),
    "a head was not saved": ("LH109", config(modules_to_save=["lm_head"])),
    "ZeRO-3 had not gathered": ("LH110", tensors(A=Tensor(dtype="F32", shape=(0,), content=b""))),
    "FSDP had flattened": ("LH110", tensors(A=tensor(16))),
    "one value is NaN": ("LH111", filled("B", NAN, V1)),
    "one value is infinite": ("LH111", filled("A", INF, Q0)),
    "it was never trained": ("LH112", filled("B", 0.0, *module_paths())),
    "it was never trained, and zero has a sign": ("LH112", filled("B", -0.0, *module_paths())),
    "alpha is zero": ("LH112", config(lora_alpha=0)),
    "a layer was never trained": ("LH113", filled("B", 0.0, Q1, V1)),
    "A is zero in one layer": ("LH113", filled("A", 0.0, Q1)),
    "a layer is that of another": ("LH114", _copy_layer),
    "alpha is a thousand times too large": ("LH115", config(lora_alpha=16000)),
    "alpha is absurd": ("LH115", config(lora_alpha=1e20)),
    "the rank is larger than the matrix": ("LH117", of(llama_adapter("k_proj", r=6))),
    "a pattern names nothing": ("LH118", config(alpha_pattern={"k_proj": 32})),
    "a layer that is not there": ("LH119", config(layers_to_transform=[0, 1, 2])),
    "the file has no tensors": ("LH120", lambda scene: scene.adapter.tensors.clear()),
    # The base
    "the base has fewer layers": ("LH201", on(llama(1))),
    "the base is of another family": ("LH201", on(bert())),
    "the base is wider": ("LH202", on(llama(hidden=16))),
    "inputs and outputs are exchanged": ("LH202", of(adapter_of({"model.layers.0.mlp.down_proj": (12, 8)}), llama(1))),
    "GPT-2's weights are read the wrong way": ("LH202", of(adapter_of({"h.0.attn.c_attn": (8, 24)}), gpt2())),
    "the base has more layers": ("LH203", on(llama(4))),
    "another number of labels": ("LH205", of(bert_adapter(modules_to_save=["classifier"]), bert())),
    "the embedding is tied to the output": (
        "LH206",
        of(adapter_of({"lm_head": (16, HIDDEN)}), llama(tied=True)),
    ),
    "the vocabulary has grown": ("LH207", _larger_vocabulary),
    "the base is another one by name": (
        "LH208",
        lambda scene: (on(llama())(scene), setattr(scene, "repo", "org/other")),
    ),
    "the base is another one by type": (
        "LH209",
        lambda scene: (on(llama())(scene), scene.draft(model_type="mistral")),
    ),
    "the base has another commit": (
        "LH210",
        lambda scene: (
            on(llama())(scene),
            setattr(scene, "repo", "org/base"),
            scene.draft(repo="org/base", revision="a" * 40),
        ),
    ),
    "a target is a name of another family": (
        "LH213",
        both(on(llama()), config(target_modules=["q_proj", "v_proj", "query"], exclude_modules=["k_proj"])),
    ),
    # Other readers
    "patterns overlap": ("LH302", config(alpha_pattern={"q_proj": 64, "self_attn.q_proj": 16})),
    "experts are apart": ("LH303", of(adapter_of({"model.layers.0.mlp.experts.0.w1": (12, HIDDEN)}))),
    "transformers 5 has other names": (
        "LH304",
        of(adapter_of({"vit.encoder.layer.0.attention.attention.query": (HIDDEN, HIDDEN)})),
    ),
    "keys have no prefix": ("LH305", lambda scene: scene.rename(PREFIX, "")),
    "the model was compiled when it was saved": ("LH305", lambda scene: scene.rename(PREFIX, f"{PREFIX}_orig_mod.")),
    "the name of the adapter was left in": ("LH305", lambda scene: scene.rename(".weight", ".default.weight")),
    "targets are a regex that hangs": ("LH306", config(target_modules=r"(.*)+\.(q|v)_proj")),
    "layers do not apply to full paths": ("LH307", config(target_modules=module_paths(), layers_to_transform=[0, 1])),
    "the rank is beyond vLLM's": ("LH310", of(adapter_of({"q_proj": (520, 520)}, r=513))),
    # Publishing
    "the base's license is narrower": (
        "LH402",
        lambda scene: (
            on(llama())(scene),
            scene.base.others.update({"README.md": b"---\nlicense: cc-by-nc-4.0\n---\n"}),
            beside(README__md=LICENSED)(scene),
        ),
    ),
    "the card is huge": ("LH404", beside(README__md=b" " * (2**20 + 1))),
    "no base is named": ("LH405", config(base_model_name_or_path=None)),
    "the base is a path": ("LH406", config(base_model_name_or_path="/home/me/llama")),
    "an old pickle lies beside it": ("LH407", beside(adapter_model__bin=b"PK")),
    "a library would be imported": ("LH409", config(auto_mapping={"parent_library": "antigravity"})),
}


def _with_three_labels(scene: Scene) -> None:
    scene.adapter.tensors[f"{PREFIX}classifier.weight"] = tensor(3, HIDDEN, seed=4)


BROKEN["another number of labels"] = ("LH205", both(BROKEN["another number of labels"][1], _with_three_labels))


@pytest.fixture
def report(tmp_path, hub):
    """Return what a check of a scene finds, on its base on the Hub if that has a name, else on this machine."""

    def report(scene: Scene) -> lora_hub.Report:
        directory = scene.write(tmp_path)
        base = None
        if scene.base is not None and scene.repo is not None:
            hub.create(scene.repo, scene.base.files())
            base = scene.repo
        elif scene.base is not None:
            base = scene.base.write(tmp_path / "base")
        return lora_hub.check(directory, base)

    return report


def test_the_table_is_large_enough():
    """There are at least sixty of them, of every group of rules."""
    assert len(BROKEN) >= 60
    assert {code[:3] for code, _ in BROKEN.values()} == {"LH0", "LH1", "LH2", "LH3", "LH4"}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_found(report, name):
    """The rule that the table names finds it, as a warning at least, and says what to do."""
    code, spoil = BROKEN[name]
    scene = Scene()
    spoil(scene)
    found = [finding for finding in report(scene).findings if finding.rule.code == code]

    assert found
    assert max(finding.severity for finding in found) >= lora_hub.Severity.WARNING
    assert all(finding.hint for finding in found)


@pytest.mark.parametrize("name", BROKEN)
def test_what_verify_refuses_is_an_error(report, tmp_path, name):
    """Whatever `verify` does not accept has an error in the report: a check passes nothing that cannot be applied."""
    scene = Scene()
    BROKEN[name][1](scene)
    found = report(scene)
    try:
        read_adapter(tmp_path / "adapter")
    except lora_hub.errors.LoraHubError:
        assert found.worst is lora_hub.Severity.ERROR


def test_an_intact_adapter_has_none_of_it(report):
    """What the cases begin with is sound: each of them breaks it."""
    assert report(Scene(base=llama())).exit_code(lora_hub.Severity.WARNING) == 0


def test_several_defects_are_found_in_one_run(report):
    """A broken config does not hide broken tensors, nor the reverse."""
    scene = Scene(base=llama(1))
    for name in ("a key is of the future", "one value is NaN", "a weight of the base", "no base is named"):
        BROKEN[name][1](scene)

    assert {"LH006", "LH105", "LH111", "LH201", "LH405"} <= {finding.rule.code for finding in report(scene).findings}


def test_a_rule_lists_so_many_places_and_no_more(tmp_path):
    """A file with thousands of strange tensors gives a report that can be read."""
    from lora_hub.checking.check import MAX_HITS

    scene = Scene()
    for number in range(2 * MAX_HITS):
        added(f"strange.x{number}", 1)(scene)
    found = [f for f in lora_hub.check(scene.write(tmp_path)).findings if f.rule.code == "LH103"]

    assert len(found) == MAX_HITS + 1
    assert sum("more than 200 places" in finding.message for finding in found) == 1
