"""Train two adapters, publish them, pull them, apply, swap, merge, unmerge and remove them, and measure each step."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import BertModel

import lora_hub
from lora_hub.demo.encoder import (
    BASE,
    Bar,
    Batch,
    Task,
    balanced_accuracy,
    embed_all,
    load_base,
    make_task,
    tokenize,
    train,
    weights_folder,
)
from lora_hub.demo.texts import Text, load_split
from lora_hub.patch.applied_adapter import AppliedAdapter
from lora_hub.patch.bits import digest
from lora_hub.places import HOME
from lora_hub.registry.pull import Pulled
from lora_hub.signing.key_ring import VARIABLE
from lora_hub.signing.keys import PASSPHRASE
from lora_hub.vouch import generate_key

SEED = 10
TASKS = {"package": "which package is it from?", "kind": "class or function?"}  # two labellings of the same texts


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Balanced accuracy of one task on held-out texts, from 0 to 1; ``adapted`` is by adapter."""

    question: str
    classes: int
    bare: float
    adapted: dict[str, float]
    merged: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the demo found. Sizes are in bytes, times in seconds, in the order of the steps."""

    texts: int
    accuracies: dict[str, Accuracy]
    base_parameters: int
    trained_parameters: int
    base_bytes: int
    adapter_bytes: int
    times: dict[str, float]
    base_unchanged: bool
    signer: str


@dataclass(frozen=True, slots=True)
class _Material:
    """The base, the texts with their tokens, and what shows progress."""

    model: BertModel
    train_texts: Sequence[Text]
    train_tokens: Batch
    test_texts: Sequence[Text]
    test_tokens: Batch
    bar: Bar

    def embed_test(self, label: str) -> torch.Tensor:
        return embed_all(self.model, self.test_tokens, self.bar, label)

    def accuracy(self, task: Task, embeddings: torch.Tensor) -> float:
        return balanced_accuracy(task, embeddings, _labels(self.test_texts, task.name))


@dataclass(slots=True)
class _Clock:
    times: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.times[name] = time.perf_counter() - start


def run(*, steps: int, bar: Bar) -> Report:
    """Live the whole life of two adapters in a temporary directory, and report it."""
    clock = _Clock()
    with tempfile.TemporaryDirectory(prefix="lora-hub-demo-") as folder, _home(Path(folder) / "home"):
        place = Path(folder)
        with clock.step("make a key that signs for demo/*"):
            generate_key("demo")
        with clock.step("load the base and read the texts"):
            material = _prepare(bar)
        before = digest(material.model.state_dict().items())
        embeddings = embed_all(material.model, material.train_tokens, bar, "Computing centroids")
        tasks = {name: make_task(name, _labels(material.train_texts, name), embeddings) for name in TASKS}
        embeddings = material.embed_test("Measuring the bare base")
        bare = {name: material.accuracy(task, embeddings) for name, task in tasks.items()}
        for task in tasks.values():
            _train_and_publish(material, task, place, steps, clock)
        pulled = {name: _pull(name, place, clock) for name in TASKS}
        with clock.step("apply both"):
            handles = {
                n: lora_hub.apply_adapter(material.model, p.adapter, name=n, active=False) for n, p in pulled.items()
            }
        adapted = _swap(material, tasks, clock)
        merged = {name: _merge(material, tasks[name], handle, clock) for name, handle in handles.items()}
        with clock.step("remove both"):
            for handle in handles.values():
                handle.remove()
    accuracies = {
        n: Accuracy(question=q, classes=len(tasks[n].classes), bare=bare[n], adapted=adapted[n], merged=merged[n])
        for n, q in TASKS.items()
    }
    return _report(material, accuracies, pulled["package"], clock, before)


@contextmanager
def _home(directory: Path) -> Iterator[None]:
    """Keep store, keys, trust and memory of the demo in *directory*: nothing of the user's is read or changed."""
    before = {name: os.environ.get(name) for name in (HOME, VARIABLE, PASSPHRASE)}
    os.environ[HOME] = str(directory)
    for name in (VARIABLE, PASSPHRASE):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _report(material: _Material, accuracies: dict[str, Accuracy], pulled: Pulled, clock: _Clock, before: str) -> Report:
    manifest = pulled.adapter.manifest
    return Report(
        texts=len(material.test_texts),
        accuracies=accuracies,
        base_parameters=sum(parameter.numel() for parameter in material.model.parameters()),
        trained_parameters=manifest.lora.parameters,
        base_bytes=(weights_folder() / "model.safetensors").stat().st_size,
        adapter_bytes=manifest.size,
        times=clock.times,
        signer=", ".join(map(str, pulled.adapter.signers)),
        base_unchanged=digest(material.model.state_dict().items()) == before,
    )


def _prepare(bar: Bar) -> _Material:
    model, tokenizer = load_base()
    split = load_split(train_per_package=130, test_per_package=55, seed=SEED)
    tokens = [tokenize(tokenizer, [text.text for text in texts]) for texts in (split.train, split.test)]
    return _Material(model, split.train, tokens[0], split.test, tokens[1], bar)


def _labels(texts: Sequence[Text], name: str) -> list[str]:
    return [getattr(text, name) for text in texts]


def _train_and_publish(material: _Material, task: Task, place: Path, steps: int, clock: _Clock) -> None:
    torch.manual_seed(SEED)
    adapter = lora_hub.add_adapter(material.model, task.name, r=8, lora_alpha=16, targets=("q", "v"), base_model=BASE)
    with clock.step(f"train demo/{task.name}, {steps} steps"):
        train(material.model, task, material.train_tokens, steps=steps, seed=SEED, bar=material.bar)
    with clock.step(f"save, sign and push demo/{task.name}@1.0.0"):
        lora_hub.save_adapter(adapter, place / task.name)
        lora_hub.push(place / task.name, f"demo/{task.name}@1.0.0", registry=place / "registry")
    adapter.remove()


def _pull(name: str, place: Path, clock: _Clock) -> Pulled:
    with clock.step(f"pull demo/{name}@^1 into a fresh store, signature and every byte verified"):
        return lora_hub.pull(f"demo/{name}@^1", registry=place / "registry")


def _swap(material: _Material, tasks: dict[str, Task], clock: _Clock) -> dict[str, dict[str, float]]:
    """Return the accuracy of each task under each adapter."""
    accuracies: dict[str, dict[str, float]] = {name: {} for name in tasks}
    for adapter in TASKS:
        with ExitStack() as stack:
            with clock.step(f"swap to demo/{adapter}"):
                stack.enter_context(lora_hub.use(material.model, adapter))
            embeddings = material.embed_test(f"Measuring demo/{adapter}")
        for name, task in tasks.items():
            accuracies[name][adapter] = material.accuracy(task, embeddings)
    return accuracies


def _merge(material: _Material, task: Task, handle: AppliedAdapter, clock: _Clock) -> float:
    """Return the accuracy of *task* with its adapter merged into the weights, which are then restored."""
    with clock.step(f"merge demo/{handle.name}"):
        handle.merge()
    accuracy = material.accuracy(task, material.embed_test(f"Measuring demo/{handle.name}, merged"))
    with clock.step(f"unmerge demo/{handle.name}"):
        handle.unmerge()
    return accuracy
