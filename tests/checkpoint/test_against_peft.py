"""Against PEFT itself: the same bits as `merge_and_unload`, and a checkpoint that transformers loads and runs."""

import itertools

import pytest
import torch
from bases import stored
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import lora_hub

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning"),  # as meant
]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FAMILIES = {
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                    intermediate_size=48, vocab_size=64, bos_token_id=0, eos_token_id=1),
        ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "lm_head"],
    ),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32, bos_token_id=0, eos_token_id=1),
        ["c_attn", "c_proj", "c_fc"],
    ),
    "bert": (
        BertForSequenceClassification,
        BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=64, intermediate_size=48,
                   num_labels=3),
        ["query", "value", "dense"],
    ),
}  # fmt: skip
TOKENS = torch.arange(12).view(2, 6) % 60
# Each dtype of the base with one of the adapter in the quick suite, with all of them else.
PAIRS = [
    pytest.param(base, adapter, marks=[] if (i + j) % 3 == 0 else [pytest.mark.full])
    for (i, base), (j, adapter) in itertools.product(enumerate(DTYPES), enumerate(DTYPES))
]


def save_base(family, dtype, directory):
    """Save a model of random weights in several shards."""
    model_class, config, _ = FAMILIES[family]
    torch.manual_seed(0)
    model_class(config).to(dtype).save_pretrained(directory, max_shard_size="20KB")
    return directory


def save_adapter(family, base, directory, *, dtype=torch.float32, seed=1, **config):
    """Let PEFT save an adapter of random A and B, stored in *dtype*."""
    model_class, _, targets = FAMILIES[family]
    settings = {"r": 4, "lora_alpha": 6, "target_modules": targets, "fan_in_fan_out": family == "gpt2", **config}
    model = get_peft_model(model_class.from_pretrained(base, dtype=torch.float32), LoraConfig(**settings))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
    model.save_pretrained(directory, save_embedding_layers=False)
    weights = directory / "adapter_model.safetensors"
    save_file({key: value.to(dtype) for key, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    return directory


def in_peft(family, base, adapter, dtype):
    """Return the base in *dtype* with the adapter attached by PEFT."""
    return PeftModel.from_pretrained(FAMILIES[family][0].from_pretrained(base, dtype=dtype), adapter).eval()


def load(family, directory, dtype):
    """Return the model in *directory*."""
    return FAMILIES[family][0].from_pretrained(directory, dtype=dtype).eval()


def assert_same_bits(ours, theirs):
    """Every tensor of the one is that of the other."""
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "stored_as"), PAIRS)
def test_the_same_bits_and_outputs_as_peft(tmp_path, merge, family, dtype, stored_as):
    """Tensor by tensor after `merge_and_unload`, and the logits of what transformers loads."""
    base = save_base(family, DTYPES[dtype], tmp_path / "base")
    adapter = save_adapter(family, base, tmp_path / "adapter", dtype=DTYPES[stored_as])
    ours = load(family, merge(base, adapter), DTYPES[dtype])
    attached = in_peft(family, base, adapter, DTYPES[dtype])
    with torch.no_grad():
        expected = attached(TOKENS).logits
        theirs = attached.merge_and_unload()

        assert_same_bits(ours.state_dict(), theirs.state_dict())
        assert torch.equal(ours(TOKENS).logits, theirs(TOKENS).logits)
        tolerance = 1e-5 if dtype == "float32" else 0.1
        assert (ours(TOKENS).logits - expected).abs().max() < tolerance * expected.abs().max()


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 7}}], ids=str)
def test_a_weight_is_what_set_scale_makes_of_it(tmp_path, settings):
    """Multiplied with alpha before it is divided by r, or its root."""
    base = save_base("llama", torch.bfloat16, tmp_path / "base")
    adapter = save_adapter("llama", base, tmp_path / "adapter", **settings)
    lora_hub.merge_checkpoint(base, {adapter: 0.3}, tmp_path / "merged")
    theirs = in_peft("llama", base, adapter, torch.bfloat16)
    for module in theirs.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.3)

    assert_same_bits(
        load("llama", tmp_path / "merged", torch.bfloat16).state_dict(), theirs.merge_and_unload().state_dict()
    )


def test_large_modules_are_the_same_bits_in_blocks(tmp_path, merge, monkeypatch):
    """A module of more elements than one block, in blocks of rows."""
    monkeypatch.setattr("lora_hub.checkpoint.shard.write_shard.__kwdefaults__", {"block": 1 << 14})
    config = LlamaConfig(
        hidden_size=256, num_hidden_layers=1, num_attention_heads=4, intermediate_size=700, vocab_size=64
    )
    monkeypatch.setitem(FAMILIES, "llama", (LlamaForCausalLM, config, FAMILIES["llama"][2]))
    base = save_base("llama", torch.bfloat16, tmp_path / "base")
    adapter = save_adapter("llama", base, tmp_path / "adapter", r=16)
    theirs = in_peft("llama", base, adapter, torch.bfloat16).merge_and_unload()

    assert_same_bits(load("llama", merge(base, adapter), torch.bfloat16).state_dict(), theirs.state_dict())


def test_a_classifier_comes_along(tmp_path, merge):
    """An adapter of a backbone with a new head: transformers loads all of it, without a word about missing weights."""
    base = tmp_path / "base"
    model = load("bert", save_base("bert", torch.float32, tmp_path / "whole"), torch.float32)
    model.bert.save_pretrained(base)
    adapter = save_adapter("bert", tmp_path / "whole", tmp_path / "adapter", task_type="SEQ_CLS")
    merged, info = BertForSequenceClassification.from_pretrained(merge(base, adapter), output_loading_info=True)
    theirs = in_peft("bert", tmp_path / "whole", adapter, torch.float32).merge_and_unload()

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert_same_bits(merged.state_dict(), theirs.state_dict())


def test_a_tied_output_is_loaded_as_it_was_merged(tmp_path, merge):
    """GPT-2's lm_head is its embedding: with LoRA on it, transformers loads two tensors, and the logits are PEFT's."""
    base = save_base("gpt2", torch.float32, tmp_path / "base")
    adapter = save_adapter("gpt2", base, tmp_path / "adapter", target_modules=["lm_head"], fan_in_fan_out=False)
    before = stored(base)
    output = merge(base, adapter)
    attached = in_peft("gpt2", base, adapter, torch.float32)
    ours = load("gpt2", output, torch.float32)
    with torch.no_grad():
        expected, found = attached(TOKENS).logits, ours(TOKENS).logits

    assert torch.equal(ours.transformer.wte.weight, before["transformer.wte.weight"])
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
