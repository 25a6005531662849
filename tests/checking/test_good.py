"""Sound adapters in the dialects of the wild: nothing is found in them that is more than a note."""

import pytest
from adapter_files import HIDDEN, AdapterFiles, adapter_files, fused_adapter_files, module_paths, tensor
from base_models import BaseModel, adapter_of, bert, bert_adapter, gpt2, llama, llama_adapter

import lora_hub

PREFIX = "base_model.model."
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_0_3 = (
    "peft_type",
    "task_type",
    "base_model_name_or_path",
    "inference_mode",
    "r",
    "lora_alpha",
    "lora_dropout",
    "bias",
)
# Keys that a release of PEFT writes beside those of the ones before.
NEW_KEYS = {
    "0.5": {"revision": None, "layers_to_transform": None, "layers_pattern": None, "auto_mapping": None},
    "0.7": {"rank_pattern": {}, "alpha_pattern": {}, "megatron_config": None, "megatron_core": "megatron.core"},
    "0.9": {"use_rslora": False, "use_dora": False, "loftq_config": {}, "layer_replication": None},
    "0.14": {"lora_bias": False, "exclude_modules": None, "eva_config": None, "corda_config": None},
    "0.18": {"peft_version": "0.18.1", "target_parameters": None, "trainable_token_indices": None, "use_qalora": False,
             "qalora_group_size": 16, "alora_invocation_tokens": None, "arrow_config": None,
             "ensure_weight_tying": False},
    "0.21": {"peft_version": "0.21.2", "use_bdlora": None, "kasa_config": None, "velora_config": None,
             "monteclora_config": None, "lora_ga_config": None},
}  # fmt: skip


def written_by(release: str) -> AdapterFiles:
    """Return an adapter with the keys that *release* of PEFT writes."""
    files = adapter_files()
    keys = {key: files.config[key] for key in (*_0_3, "fan_in_fan_out", "target_modules", "modules_to_save")}
    for version, added in NEW_KEYS.items():
        keys |= added
        if version == release:
            break
    files.config = keys | {"init_lora_weights": True}
    return files


def oldest() -> AdapterFiles:
    """Return one of PEFT 0.2, with the two keys that it alone has."""
    files = adapter_files()
    files.config = {key: files.config[key] for key in (*_0_3, "target_modules")} | {
        "enable_lora": None,
        "merge_weights": False,
    }
    return files


def with_head(path: str, *shape: int, base: AdapterFiles | None = None, **config) -> AdapterFiles:
    """Return an adapter that replaces the module at *path*."""
    files = base or adapter_files()
    files.config |= {"modules_to_save": [path.rpartition(".")[2]], **config}
    files.tensors[f"{PREFIX}{path}.weight"] = tensor(*shape, seed=33)
    return files


def with_ranks() -> AdapterFiles:
    """Return one whose v has another rank and another alpha than its q."""
    q, v = llama_adapter("q_proj", r=4), llama_adapter("v_proj", r=2, seed=50)
    q.config |= {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 8}}
    q.tensors |= v.tensors
    return q


def one_layer(number: int, **config) -> AdapterFiles:
    """Return an adapter of one layer of two."""
    files = adapter_files(**config)
    files.tensors = {key: t for key, t in files.tensors.items() if f"layers.{number}." in key}
    return files


def quantised() -> BaseModel:
    """Return a base whose weights are packed in four bits."""
    base = llama(quantization_config={"quant_method": "bitsandbytes"})
    base.shapes = {name: (32, 1) if "proj" in name else shape for name, shape in base.shapes.items()}
    base.dtype = "U8"
    return base


def qweights() -> BaseModel:
    """Return a base as GPTQ writes it."""
    base = llama(quantization_config={"quant_method": "gptq"})
    base.shapes = {name.replace("proj.weight", "proj.qweight"): shape for name, shape in base.shapes.items()}
    base.dtype = "I32"
    return base


def sharded(shards: int) -> BaseModel:
    base = llama()
    base.shards = shards
    return base


T5 = {f"encoder.block.{i}.layer.0.SelfAttention.{name}": (HIDDEN, HIDDEN) for i in range(2) for name in "qv"}
PHI = {f"model.layers.{i}.self_attn.qkv_proj": (16, HIDDEN) for i in range(2)}
NEOX = {f"gpt_neox.layers.{i}.attention.query_key_value": (24, HIDDEN) for i in range(2)}

# By name: the adapter, and the base that it is checked against, if it is.
GOOD: dict[str, tuple[AdapterFiles, BaseModel | None]] = {
    "PEFT 0.2": (oldest(), llama()),
    **{f"PEFT {release}": (written_by(release), llama()) for release in NEW_KEYS},
    "alone": (adapter_files(), None),
    "its own base": (adapter_files(), llama()),
    "float16": (adapter_files(dtype="F16"), llama()),
    "bfloat16": (adapter_files(dtype="BF16"), llama()),
    "float64": (adapter_files(dtype="F64"), llama()),
    "all linear modules by name": (llama_adapter(*ALL), llama()),
    "all-linear": (llama_adapter(*ALL, target_modules="all-linear"), llama()),
    "attention only": (llama_adapter("q_proj", "k_proj", "v_proj", "o_proj"), llama()),
    "MLP only": (llama_adapter("gate_proj", "up_proj", "down_proj"), llama()),
    "targets are full paths": (adapter_files(target_modules=module_paths()), llama()),
    "targets are a regular expression": (adapter_files(target_modules=r".*\.(q|v)_proj"), llama()),
    "unsloth's regular expression": (
        llama_adapter("q_proj", "v_proj", target_modules=r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|v_proj).*?)"),
        None,
    ),
    "ends of paths": (adapter_files(target_modules=["self_attn.q_proj", "self_attn.v_proj"]), llama()),
    "rank-stabilised": (adapter_files(use_rslora=True), llama()),
    "alpha is r": (adapter_files(lora_alpha=2), llama()),
    "alpha is a fraction": (adapter_files(lora_alpha=0.5), llama()),
    "QLoRA's alpha": (adapter_files(lora_alpha=32), llama()),
    "ranks and alphas in patterns": (with_ranks(), llama()),
    "an anchored pattern": (adapter_files(alpha_pattern={rf"^{module_paths()[0]}": 8}), llama()),
    "one layer by number": (one_layer(1, layers_to_transform=[1]), llama()),
    "one layer by a pattern": (one_layer(0, layers_to_transform=[0], layers_pattern="layers"), llama()),
    "one layer by paths": (one_layer(0, target_modules=module_paths(1)), llama()),
    "one layer is excluded": (
        one_layer(0, exclude_modules=["layers.1.self_attn.q_proj", "layers.1.self_attn.v_proj"]),
        llama(),
    ),
    "a gaussian beginning": (adapter_files(init_lora_weights="gaussian"), llama()),
    "an orthogonal beginning": (adapter_files(init_lora_weights="orthogonal"), llama()),
    "EVA's beginning": (adapter_files(init_lora_weights="eva", eva_config={"rho": 2.0}), llama()),
    "with dropout": (adapter_files(lora_dropout=0.1), llama()),
    "lists are empty": (adapter_files(modules_to_save=[], layers_pattern=[]), llama()),
    "an unknown key is empty": (adapter_files(next_year=None), llama()),
    "large ranks": (llama_adapter("q_proj", r=8), llama()),
    "the output is adapted": (adapter_of({"lm_head": (16, HIDDEN)}), llama()),
    "the output is replaced": (with_head("lm_head", 16, HIDDEN), llama()),
    "a classifier of a decoder": (with_head("score", 2, HIDDEN, task_type="SEQ_CLS"), llama()),
    "GPT-2 whole": (fused_adapter_files(), gpt2()),
    "GPT-2 in both parts": (
        adapter_of({"transformer.h.0.attn.c_attn": (24, 8), "transformer.h.0.mlp.c_fc": (32, 8)}, fan_in_fan_out=True),
        gpt2(),
    ),
    "BERT": (bert_adapter(), bert()),
    "BERT with its classifier": (bert_adapter(modules_to_save=["classifier", "score"]), bert()),
    "BERT's backbone alone": (bert_adapter(prefix="", task_type="FEATURE_EXTRACTION"), bert(prefix="")),
    "BERT's backbone on a model with a head": (bert_adapter(prefix=""), bert()),
    "LLaMA's backbone saved alone": (adapter_files(), llama(prefix="")),
    "T5": (adapter_of(T5), None),
    "Phi-3's fused qkv": (adapter_of(PHI), None),
    "GPT-NeoX's fused qkv": (adapter_of(NEOX), None),
    "on a base in four bits": (adapter_files(), quantised()),
    "on a base of GPTQ": (adapter_files(), qweights()),
    "on two shards": (adapter_files(), sharded(2)),
    "on many shards": (adapter_files(), sharded(9)),
}


def test_the_table_is_large_enough():
    """There are at least forty of them."""
    assert len(GOOD) >= 40


@pytest.mark.parametrize("name", GOOD)
def test_nothing_is_found_in_what_is_sound(tmp_path, name):
    """A sound adapter has no finding above note, alone or on its base."""
    adapter, base = GOOD[name]
    against = None if base is None else base.write(tmp_path / "base")
    report = lora_hub.check(adapter.write(tmp_path / "adapter"), against)

    assert [f"{f.rule.code} {f.message}" for f in report.findings if f.severity > lora_hub.Severity.NOTE] == []
