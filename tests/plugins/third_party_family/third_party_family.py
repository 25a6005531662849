"""OPT, as somebody else's package would describe it."""

from lora_hub import Architecture, Projection, hookimpl


@hookimpl
def lora_hub_architectures():
    """Return OPT: q, k and v apart, and o under another name than LLaMA's."""
    projections = [
        Projection(module=f"self_attn.{name}", parts=(part,))
        for name, part in (("q_proj", "q"), ("k_proj", "k"), ("v_proj", "v"), ("out_proj", "o"))
    ]
    return [Architecture(name="opt", model_types=("opt",), projections=tuple(projections))]
