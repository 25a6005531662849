"""Which modules of a language model are of its vocabulary, by the names that families of models use."""

from __future__ import annotations

_OUTPUTS = ("lm_head", "embed_out", "cls.predictions.decoder", "lm_head.decoder")
_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared", "embeddings")


def is_output(path: str) -> bool:
    """Whether the module at *path* is one that turns hidden states into logits of the vocabulary."""
    return any(path == name or path.endswith(f".{name}") for name in _OUTPUTS)


def is_embedding(path: str) -> bool:
    """Whether the module at *path* is one that turns tokens into hidden states."""
    return path.rpartition(".")[2] in _EMBEDDINGS
