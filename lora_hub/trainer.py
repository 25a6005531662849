"""Checkpoints of `transformers.Trainer` that hold the adapter, and only the adapter."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_hub.adapter_directory import read_adapter
from lora_hub.errors import UsageError
from lora_hub.patch.on_model import adapters, find_patch
from lora_hub.patch.save import load_into, save_adapter

if TYPE_CHECKING:
    from torch import nn

    from lora_hub.patch.applied_adapter import AppliedAdapter


class AdapterTrainerMixin:
    """Put it before `Trainer`: ``class MyTrainer(lora_hub.AdapterTrainerMixin, Trainer): ...``.

    Checkpoints hold the trainable adapter (several: one folder each) with optimizer and trainer state, never the base.
    Resuming and ``load_best_model_at_end`` restore it, bit for bit.
    """

    model: nn.Module
    state: Any

    def train(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """Train as `Trainer` does, once it is certain that the checkpoints will hold an adapter."""
        _check_can_be_saved(self.model)
        return super().train(*args, **kwargs)  # type: ignore[misc]

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        with _saving_adapters(self.model):
            super()._save(output_dir, state_dict)  # type: ignore[misc]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        _restore_adapters(model if model is not None else self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        _restore_adapters(self.model, Path(self.state.best_model_checkpoint))


@contextmanager
def _saving_adapters(model: nn.Module) -> Iterator[None]:
    """While this is entered, `save_pretrained` of *model* writes its adapters instead of its weights."""
    _check_can_be_saved(model)
    attributes = find_patch(model).model.__dict__
    own = attributes.get("save_pretrained")
    attributes["save_pretrained"] = functools.partial(_save_adapters, model)
    try:
        yield
    finally:
        del attributes["save_pretrained"]
        if own is not None:
            attributes["save_pretrained"] = own


def _check_can_be_saved(model: nn.Module) -> None:
    if not any(handle.trainable for handle in adapters(model).values()):
        raise UsageError(
            f"this {type(model).__name__} has no trainable adapter",
            hint="call `lora_hub.add_adapter(model, …)` on the very model that the Trainer gets",
        )
    if not hasattr(find_patch(model).model, "save_pretrained"):
        raise UsageError(
            f"a {type(model).__name__} has no `save_pretrained`, so its Trainer would save the whole base",
            hint="derive the model from `transformers.PreTrainedModel`",
        )


def _save_adapters(
    model: nn.Module, directory: str | os.PathLike[str], *, is_main_process: bool = True, **_: object
) -> None:
    if is_main_process:
        for handle, folder in _folders(model, Path(directory)):
            save_adapter(handle, folder)


def _restore_adapters(model: nn.Module, checkpoint: Path) -> None:
    for handle, folder in _folders(model, checkpoint):
        load_into(handle, read_adapter(folder))


def _folders(model: nn.Module, checkpoint: Path) -> list[tuple[AppliedAdapter, Path]]:
    """Return where each trainable adapter lies: one alone in the checkpoint itself, several in a folder each."""
    trainable = [handle for handle in adapters(model).values() if handle.trainable]
    is_single = len(trainable) == 1
    return [(handle, checkpoint if is_single else checkpoint / handle.name) for handle in trainable]
