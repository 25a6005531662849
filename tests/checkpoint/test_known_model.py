"""What transformers knows of a checkpoint, and that a config from outside cannot make it do more than look."""

import pytest

from lora_hub.checkpoint.known_model import KnownModel, known_model

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 10,
}


def known(*tensors: str, **config) -> KnownModel | None:
    """Return what is known of a tiny LLaMA with these tensors."""
    return known_model(LLAMA | config, tensors)


def test_parameters_that_are_one_have_the_names_of_the_checkpoint():
    """A tied output has no tensor there, so it has the name that it has in memory."""
    tied = known("embed_tokens.weight", tie_word_embeddings=True)

    assert tied.tied == ({"embed_tokens.weight", "lm_head.weight"},)
    assert known("model.embed_tokens.weight", tie_word_embeddings=False).tied == ()


def test_tensors_that_the_model_does_not_read_are_named():
    """Another class's head; with or without the prefix, its own are not."""
    found = known("embed_tokens.weight", "model.norm.weight", "lm_head.weight", "score.weight")

    assert found.foreign == {"score.weight"}


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_kernels_that_a_config_names_are_not_fetched(key):
    """They would be brought from the Hub and run."""
    assert known(**{key: "org/kernel"}).transposed == known().transposed


def test_a_config_of_more_layers_than_anybody_has_is_not_known():
    """To make them all would take days, and all memory."""
    assert known(num_hidden_layers=10**12) is None


@pytest.mark.parametrize(
    "config",
    [{"architectures": "LlamaForCausalLM"}, {"architectures": ["Path"]}, {"architectures": [3]}, {"architectures": []},
     {"num_attention_heads": 0}, {"hidden_size": "many"}, {"hidden_size": 2**60}],
    ids=str,
)  # fmt: skip
def test_a_config_that_makes_no_model_is_not_known(config):
    """It raises nothing."""
    assert known(**config) is None
