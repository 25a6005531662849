"""Forward and backward with an adapter in training: time and kept activations above those of the frozen base.

In all three the output of the embedding requires a gradient, so that each backward runs through every layer down to
it; the weights of the base have none. What is above the base is then exactly what the adapter adds: its products, their
gradients, and what is kept for them. PEFT has its default, adapters in float32 also on a bfloat16 base, and so has
lora-hub. Clearing the gradients is not timed.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

import lora_hub
from benchmarks.figures import Figure
from benchmarks.group import Bench, Group
from benchmarks.measure import Way
from benchmarks.models import ALPHA, TARGETS, TOLERANCE, R, llama, tokens, write_adapters

ROWS, LENGTH = 4, 64


def step_time(bench: Bench, *, what: str, dtype: torch.dtype) -> Iterator[Figure]:
    """One step, without the optimizer."""
    if dtype is torch.float32:
        _check(bench.folder / "training")
    models, ids = _models(dtype), tokens(ROWS, LENGTH)
    ways = {
        way: Way(call=functools.partial(_step, model, ids), undo=functools.partial(_clear, model))
        for way, model in models.items()
    }
    yield Figure(name=f"training step, {what}", samples=bench.time(ways), above_base=True, goal=0.75)


def activations(_: Bench, *, what: str, dtype: torch.dtype) -> Iterator[Figure]:
    """What autograd keeps between forward and backward, each storage once, the model's own weights left out.

    Seen is what goes through autograd's hooks; a function that hides tensors elsewhere would look better than it is.
    """
    models, ids = _models(dtype), tokens(ROWS, LENGTH)
    samples = {way: [float(_kept(model, ids))] for way, model in models.items()}
    yield Figure(name=f"kept for the backward, {what}", samples=samples, unit="bytes", above_base=True, goal=0.3)


def _models(dtype: torch.dtype) -> dict[str, nn.Module]:
    base = _frozen(llama().to(dtype))
    ours, theirs = copy.deepcopy(base), copy.deepcopy(base)
    lora_hub.add_adapter(ours, "task", r=R, lora_alpha=ALPHA, targets=("q", "k", "v", "o"))
    trained = get_peft_model(theirs, LoraConfig(r=R, lora_alpha=ALPHA, target_modules=list(TARGETS)))
    return {"base": base, "ours": ours, "peft": trained.train()}


def _frozen(model: PreTrainedModel) -> PreTrainedModel:
    """Return *model* in training mode, frozen, with an embedding whose output requires a gradient."""
    model.train().requires_grad_(False)
    model.get_input_embeddings().register_forward_hook(_require_grad)
    return model


def _require_grad(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
    return output.requires_grad_()


def _step(model: nn.Module, ids: Tensor) -> None:
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()


def _clear(model: nn.Module, _: object) -> None:
    model.zero_grad(set_to_none=True)


def _kept(model: nn.Module, ids: Tensor) -> int:
    """Return the bytes of all storages that the backward of *model* would need."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()  # held here, or its address would be used again
        kept[storage.data_ptr()] = storage

    with saved_tensors_hooks(keep, lambda _: None):
        model(input_ids=ids, labels=ids, use_cache=False)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


def _check(folder: Path) -> None:
    """Compare loss and gradients under a random adapter: a new one has B = 0, and would prove little."""
    base, ids = _frozen(llama()), tokens(ROWS, LENGTH)
    directory = write_adapters(base, folder, (R,))["task0"]
    ours = copy.deepcopy(base)
    lora_hub.apply_adapter(ours, directory, trainable=True)
    theirs = PeftModel.from_pretrained(copy.deepcopy(base), directory, is_trainable=True)
    found = [_loss_and_gradient(model, ids) for model in (ours, theirs)]
    for one, other in zip(*found, strict=True):
        assert abs(one - other) < TOLERANCE * other, f"loss and size of the gradient: {found}"


def _loss_and_gradient(model: nn.Module, ids: Tensor) -> tuple[float, float]:
    """Return the loss, and the norm of the gradient of everything that is trained."""
    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return loss.item(), torch.stack([gradient.double().norm() for gradient in gradients]).norm().item()


SHAPE = f"{ROWS} x {LENGTH} tokens"
GROUP = Group(
    name="training",
    title="Training above the frozen base",
    cases={
        "float32": functools.partial(step_time, what=f"{SHAPE}, float32", dtype=torch.float32),
        "bfloat16": functools.partial(step_time, what=f"{SHAPE}, bfloat16", dtype=torch.bfloat16),
        "kept": functools.partial(activations, what=f"{SHAPE}, bfloat16", dtype=torch.bfloat16),
    },
)
