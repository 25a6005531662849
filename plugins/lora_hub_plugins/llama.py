"""LLaMA and those that kept its names: q, k, v and o apart, k and v narrower with grouped queries."""

from lora_hub import Architecture, Projection, hookimpl

LLAMA = Architecture(
    name="llama",
    model_types=("llama", "mistral", "qwen2", "qwen3"),
    projections=(
        Projection(module="self_attn.q_proj", parts=("q",)),
        Projection(module="self_attn.k_proj", parts=("k",)),
        Projection(module="self_attn.v_proj", parts=("v",)),
        Projection(module="self_attn.o_proj", parts=("o",)),
    ),
)


@hookimpl
def lora_hub_architectures() -> list[Architecture]:
    """Return LLaMA's family."""
    return [LLAMA]
