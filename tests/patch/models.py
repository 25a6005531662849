"""Tiny random models of the three families, with sizes that differ so that a wrong slice cannot pass by symmetry."""

import copy
from dataclasses import dataclass

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

VOCABULARY = 61
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "vocab_size": VOCABULARY}


def bert(**options):
    """A BERT classifier: 2 layers of 48 features, 4 heads, 3 labels."""
    config = BertConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, max_position_embeddings=32,
        num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **TOKENS, **options,
    )  # fmt: skip
    return _seeded(BertForSequenceClassification, config)


def gpt2(**options):
    """A GPT-2 language model: 2 layers of 48 features, 4 heads, fused c_attn."""
    config = GPT2Config(
        n_embd=48,
        n_layer=2,
        n_head=4,
        n_positions=32,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        **TOKENS,
        **options,
    )
    return _seeded(GPT2LMHeadModel, config)


def llama(**options):
    """A LLaMA language model: 2 layers of 48 features, 4 heads of 16, 2 key-value heads."""
    return _seeded(LlamaForCausalLM, _llama_config(**options))


def llama_classifier(**options):
    """A LLaMA classifier: its head is `score`, without bias."""
    return _seeded(LlamaForSequenceClassification, _llama_config(num_labels=3, **options))


def _llama_config(**options):
    sizes = {"num_hidden_layers": 2} | options
    return LlamaConfig(
        hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=96,
        max_position_embeddings=32, **TOKENS, **sizes,
    )  # fmt: skip


def _seeded(model_class, config):
    torch.manual_seed(1)
    return model_class(config).eval()


@dataclass(frozen=True)
class Family:
    """A tiny model, and what PEFT calls its modules."""

    build: object
    attention: tuple[str, ...]
    q_and_v: tuple[str, ...]
    mlp: tuple[str, ...]


FAMILIES = {
    "bert": Family(
        bert, ("query", "key", "value", "attention.output.dense"), ("query", "value"),
        ("intermediate.dense", "output.dense"),
    ),
    "gpt2": Family(gpt2, ("c_attn", "attn.c_proj"), ("c_attn",), ("mlp.c_fc", "mlp.c_proj")),
    "llama": Family(
        llama, ("q_proj", "k_proj", "v_proj", "o_proj"), ("q_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")
    ),
}  # fmt: skip


def tokens(rows=3, length=7):
    """Token ids ``[rows, length]``, none of them padding."""
    return torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(2))


def logits(model, ids=None, **kwargs):
    """The model's logits on *ids*, without gradients."""
    with torch.no_grad():
        return model(input_ids=tokens() if ids is None else ids, **kwargs).logits


def randomise(parameters, scale=0.3, seed=3):
    """Give *parameters* values that change the outputs: B = 0 would prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


def adapter_parameters(model):
    """The parameters that training would change."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def state(model):
    """A copy of the model's state; that it lacks trained adapters is known here."""
    import warnings

    from lora_hub.errors import UnsavedAdapterWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnsavedAdapterWarning)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_bits(one, other):
    """Whether two states have the same names and the same bits."""
    return one.keys() == other.keys() and all(
        a.dtype == b.dtype and torch.equal(_bits(a), _bits(b)) for a, b in ((one[k], other[k]) for k in one)
    )


def _bits(tensor):
    return tensor.contiguous().flatten().view(torch.uint8)


def peft_directory(model, directory, *, seed=3, scale=0.3, save=None, **config):
    """Train (that is: randomise) a PEFT adapter on a copy of *model*, save it, and return PEFT's model."""
    import warnings

    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(copy.deepcopy(model), LoraConfig(**config)).eval()
        randomise(adapter_parameters(peft_model), scale=scale, seed=seed)
        peft_model.save_pretrained(directory, **(save or {}))
    return peft_model


def load_in_peft(model, directory):
    """PEFT's reading of an adapter directory, on a copy of *model*."""
    import warnings

    from peft import PeftModel

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        peft_model = PeftModel.from_pretrained(copy.deepcopy(model), directory).eval()
    problems = [str(w.message) for w in caught if "missing" in str(w.message) or "not found" in str(w.message).lower()]
    assert not problems, problems
    return peft_model
