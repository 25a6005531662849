"""Fixtures of the search: two trained adapters, and examples of both of their tasks."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "patch"))

import models
import toy

torch.set_num_threads(1)


@pytest.fixture
def model():
    """The tiny model, bare."""
    return toy.model()


@pytest.fixture(scope="session")
def adapters(tmp_path_factory):
    """The directories of two adapters that each learned one task, and of one that learned neither."""
    folder, bare = tmp_path_factory.mktemp("adapters"), toy.model()
    one, two = toy.pairs("a"), toy.pairs("b")
    neither = [(prompt, completion) for (prompt, _), (_, completion) in zip(one, reversed(two), strict=True)]
    tasks = {"one": one, "two": two, "neither": neither}
    return {name: toy.train(bare, name, examples, folder / name) for name, examples in tasks.items()}


@pytest.fixture
def examples(tmp_path):
    """A file of examples of both tasks."""
    return toy.jsonl(tmp_path / "examples.jsonl", toy.pairs("a") + toy.pairs("b"))


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The directory of the tiny model with its tokenizer."""
    return toy.save_base(toy.model(), tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def classifier(tmp_path_factory):
    """The directory of a tiny classifier with its tokenizer."""
    return toy.save_base(models.bert(), tmp_path_factory.mktemp("classifier"))
