"""Embeddings and outputs of real model classes: what they are called in the checkpoint, and what is tied to what."""

import pytest
import torch
from adapter_files import lora_key, tensor
from bases import EMBEDDING, OUTPUT, TOKENS, as_torch, base_files, delta, head_adapter, output_adapter, stored
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from lora_hub.errors import CompatibilityError

WIDTH = 8
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
HEADS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
TEXT = {"hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
        "vocab_size": TOKENS}  # fmt: skip
MODELS = {
    "bart": (
        BartForConditionalGeneration,
        lambda: BartConfig(d_model=WIDTH, encoder_layers=1, decoder_layers=1, vocab_size=TOKENS, **HEADS, **SPECIAL),
    ),
    "t5": (
        T5ForConditionalGeneration,
        lambda: T5Config(d_model=WIDTH, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=TOKENS, **SPECIAL),
    ),
    "whisper": (
        WhisperForConditionalGeneration,
        lambda: WhisperConfig(d_model=WIDTH, encoder_layers=1, decoder_layers=1, vocab_size=TOKENS, num_mel_bins=2,
                              max_source_positions=4, max_target_positions=4, **HEADS, **SPECIAL),
    ),
    "gpt_neox": (GPTNeoXForCausalLM, lambda: GPTNeoXConfig(**TEXT)),
    "mamba": (
        MambaForCausalLM,
        lambda: MambaConfig(hidden_size=WIDTH, num_hidden_layers=1, vocab_size=TOKENS, state_size=2),
    ),
    "gemma3": (
        Gemma3ForConditionalGeneration,
        lambda: Gemma3Config(text_config={**TEXT, "num_key_value_heads": 2, "head_dim": 4},
                             vision_config={**TEXT, "image_size": 4, "patch_size": 2}, mm_tokens_per_image=4),
    ),
}  # fmt: skip


@pytest.fixture
def save(tmp_path):
    """Save a tiny model, and return its directory."""

    def save(name):
        from transformers.utils import logging

        logging.disable_progress_bar()
        model_class, config = MODELS[name]
        torch.manual_seed(0)
        model_class(config()).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


def lora_of(module, shape=(TOKENS, WIDTH), heads=None):
    """Return an adapter of one module, whose weight has this *shape*, that also replaces *heads*."""
    files = head_adapter(heads or {}, target_modules=[module])
    lora = {lora_key(module, "A"): tensor(2, shape[1], seed=5), lora_key(module, "B"): tensor(shape[0], 2, seed=6)}
    files.tensors = lora | {key: entry for key, entry in files.tensors.items() if "lora" not in key}
    return files


def load(name, directory):
    """Return the model in *directory*, which must have all that its class wants and nothing else."""
    model, info = MODELS[name][0].from_pretrained(directory, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return model


@pytest.mark.parametrize("name", ["bart", "t5"])
@pytest.mark.parametrize("is_replaced", [True, False])
def test_an_embedding_that_encoder_and_decoder_share_is_not_untied(save, tmp_path, merge, name, is_replaced):
    """Without its tie to the output, transformers would draw those of encoder and decoder at random."""
    base = save(name)
    (shared,) = (key for key in stored(base) if key.endswith("shared.weight"))
    adapter = lora_of("lm_head", heads={shared: tensor(TOKENS, WIDTH)} if is_replaced else None)

    with pytest.raises(CompatibilityError, match=r"is one tensor with `.*embed_tokens\.weight`"):
        merge(base, adapter.write(tmp_path / "adapter"))


def test_an_output_of_its_own_is_a_weight_though_its_class_would_tie_it(save, tmp_path, merge):
    """As in Flan-T5, whose config says that the two are not tied."""
    from safetensors.torch import save_file

    base, files = save("t5"), lora_of("lm_head")
    save_file(stored(base) | {OUTPUT: torch.randn(TOKENS, WIDTH)}, base / "model.safetensors", {"format": "pt"})
    config = (base / "config.json").read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false')
    (base / "config.json").write_text(config)
    found = stored(merge(base, files.write(tmp_path / "adapter")))[OUTPUT].double()

    assert '"tie_word_embeddings": false' in config
    torch.testing.assert_close(found, stored(base)[OUTPUT].double() + delta(files, "lm_head"), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "embedding", "output"),
    [("whisper", "model.decoder.embed_tokens", "proj_out"), ("mamba", "backbone.embeddings", "lm_head")],
)
def test_the_output_is_the_one_that_the_class_ties(save, tmp_path, merge, name, embedding, output):
    """Whatever it is called: it stays what it was when the embedding is replaced."""
    base, new = save(name), tensor(TOKENS, WIDTH, seed=9)
    weights = {
        key: value for key, value in stored(base).items() if key.endswith(("q_proj.weight", "mixer.out_proj.weight"))
    }
    path, weight = next(iter(weights.items()))
    files = lora_of(path.removesuffix(".weight"), weight.shape, {f"{embedding}.weight": new})
    model = load(name, merge(base, files.write(tmp_path / "adapter")))

    assert torch.equal(model.get_submodule(embedding).weight, as_torch(new))
    assert torch.equal(model.get_submodule(output).weight, stored(base)[f"{embedding}.weight"])


def test_an_output_that_is_called_otherwise_in_the_checkpoint(save, tmp_path, merge):
    """GPT-NeoX's `lm_head` lies there as `embed_out`."""
    base, files = save("gpt_neox"), lora_of("lm_head")
    model = load("gpt_neox", merge(base, files.write(tmp_path / "adapter")))
    expected = stored(base)["embed_out.weight"].double() + delta(files, "lm_head")

    torch.testing.assert_close(model.lm_head.weight.double(), expected, rtol=0, atol=1e-5)


def test_an_embedding_that_is_called_otherwise_in_the_checkpoint(save, tmp_path, merge):
    """It is replaced, and no second one is added beside it."""
    base, new = save("gemma3"), tensor(TOKENS, WIDTH, seed=9)
    files = lora_of("lm_head", heads={"model.language_model.embed_tokens.weight": new})
    output = merge(base, files.write(tmp_path / "adapter"))
    model = load("gemma3", output)

    assert stored(output).keys() - stored(base).keys() == {OUTPUT}
    assert torch.equal(model.get_input_embeddings().weight, as_torch(new))


def test_an_output_that_the_base_lacks_is_not_made_up(tmp_path, merge):
    """LLaMA's is not tied unless the config says so; without it the base is not whole."""
    files = base_files(tied=True)
    del files.config["tie_word_embeddings"]

    with pytest.raises(CompatibilityError, match=rf"no `{OUTPUT}`, and it is not tied to `{EMBEDDING}`"):
        merge(files.write(tmp_path / "base"), output_adapter().write(tmp_path / "adapter"))


def test_an_embedding_that_the_base_does_not_have_is_refused(tmp_path, base, merge):
    """Nobody would read it, or it would stand beside the one that is meant."""
    adapter = head_adapter({"decoder.embed_tokens.weight": tensor(TOKENS, WIDTH)}).write(tmp_path / "adapter")

    with pytest.raises(CompatibilityError, match="2 embeddings"):
        merge(base, adapter)
