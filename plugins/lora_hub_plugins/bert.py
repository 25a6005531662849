"""BERT and its relatives: q, k and v apart, in a child `self`; o in the sibling `output`."""

from lora_hub import Architecture, Projection, hookimpl

BERT = Architecture(
    name="bert",
    model_types=("bert", "roberta", "xlm-roberta", "camembert", "electra"),
    projections=(
        Projection(module="self.query", parts=("q",)),
        Projection(module="self.key", parts=("k",)),
        Projection(module="self.value", parts=("v",)),
        Projection(module="attention.output.dense", parts=("o",)),
        Projection(module="crossattention.output.dense", parts=("o",)),
    ),
)


@hookimpl
def lora_hub_architectures() -> list[Architecture]:
    """Return BERT's family."""
    return [BERT]
