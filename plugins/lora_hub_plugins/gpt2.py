"""GPT-2: one Conv1D holds query, key and value side by side."""

from lora_hub import Architecture, Projection, hookimpl

GPT2 = Architecture(
    name="gpt2",
    model_types=("gpt2",),
    projections=(
        Projection(module="attn.c_attn", parts=("q", "k", "v"), fan_in_fan_out=True),
        Projection(module="attn.c_proj", parts=("o",), fan_in_fan_out=True),
        # With cross-attention, q has a module of its own and c_attn holds the other two.
        Projection(module="crossattention.q_attn", parts=("q",), fan_in_fan_out=True),
        Projection(module="crossattention.c_attn", parts=("k", "v"), fan_in_fan_out=True),
        Projection(module="crossattention.c_proj", parts=("o",), fan_in_fan_out=True),
    ),
)


@hookimpl
def lora_hub_architectures() -> list[Architecture]:
    """Return GPT-2."""
    return [GPT2]
