"""Docstrings of the standard library, labelled by package and by kind of definition."""

from __future__ import annotations

import ast
import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

PACKAGES = ("asyncio", "email", "importlib", "logging", "multiprocessing", "xml")
KINDS = ("class", "function")
MIN_WORDS = 4  # of a docstring worth classifying
SKIPPED_FOLDERS = frozenset({"__pycache__", "site-packages", "test", "tests"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A docstring with its two labels."""

    text: str
    package: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Texts to train on and disjoint texts to test on."""

    train: tuple[Text, ...]
    test: tuple[Text, ...]


def load_split(*, train_per_package: int, test_per_package: int, seed: int) -> Split:
    """Draw equally many texts from every package, with its kinds as balanced as they can be."""
    rng = random.Random(seed)  # noqa: S311 - a split, no secret
    corpus = _read_corpus()
    train: list[Text] = []
    test: list[Text] = []
    for package in PACKAGES:
        texts = [text for text in corpus if text.package == package]
        drawn = _draw(texts, train_per_package + test_per_package, rng)
        train += drawn[:train_per_package]
        test += drawn[train_per_package:]
    return Split(train=tuple(train), test=tuple(test))


def _draw(texts: Sequence[Text], count: int, rng: random.Random) -> list[Text]:
    """Draw texts at random, from each kind in turn until it runs out, and return them shuffled."""
    if len(texts) < count:
        raise ValueError(f"{count} texts are needed of a package that has {len(texts)}")
    shuffled = rng.sample(texts, len(texts))
    by_kind = ([text for text in shuffled if text.kind == kind] for kind in KINDS)
    in_turn = chain.from_iterable(zip_longest(*by_kind))
    drawn = [text for text in in_turn if text is not None][:count]
    return rng.sample(drawn, count)


def _read_corpus() -> list[Text]:
    """Read the distinct docstrings of all packages, in the order of their files and lines."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    distinct: dict[str, Text] = {}
    for package in PACKAGES:
        for path in _source_files(stdlib / package):
            for kind, text in _docstrings(ast.parse(path.read_bytes())):
                distinct.setdefault(_key(text), Text(text=text, package=package, kind=kind))
    return list(distinct.values())


def _source_files(package: Path) -> list[Path]:
    """List the Python files of a package, without its tests."""
    return sorted(path for path in package.rglob("*.py") if SKIPPED_FOLDERS.isdisjoint(path.relative_to(package).parts))


def _docstrings(node: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield kind and one-line docstring of every documented definition inside a node."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kind = "class" if isinstance(child, ast.ClassDef) else "function"
            words = (ast.get_docstring(child) or "").split()
            if len(words) >= MIN_WORDS:
                yield kind, " ".join(words)
        yield from _docstrings(child)


def _key(text: str) -> str:
    """Reduce a text to its letters and digits, the key by which duplicates are found."""
    return "".join(character for character in text.casefold() if character.isalnum())
