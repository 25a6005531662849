"""Models of random weights, adapters that PEFT wrote, and the proof that both sides compute the same with them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import lora_hub
from benchmarks.machine import device

VOCABULARY = 1000
R, ALPHA = 16, 32
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")  # which lora-hub calls q, k, v, o
TOLERANCE = 1e-5  # of the largest output, in float32

Directories = Mapping[str, Path]  # of adapters, by the name they get on a model


def llama(layers: int = 32, hidden: int = 256) -> LlamaForCausalLM:
    """Return a LLaMA in float32 whose attention is narrow: 4 projections in each of *layers* of *hidden* features."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=4,
        intermediate_size=2 * hidden, vocab_size=VOCABULARY, max_position_embeddings=512,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().to(device())


def gpt2(layers: int, hidden: int, heads: int) -> GPT2LMHeadModel:
    """Return a GPT-2 in float32 with its own vocabulary and no dropout."""
    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=hidden, n_layer=layers, n_head=heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval().to(device())


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of *model* with the same weights: the very tensors, not their values."""
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())})


def tokens(rows: int, length: int, vocabulary: int = VOCABULARY) -> Tensor:
    """Return random token ids ``[rows, length]``."""
    ids = torch.randint(0, vocabulary, (rows, length), generator=torch.Generator().manual_seed(1))
    return ids.to(device())


def write_adapters(
    model: nn.Module, folder: Path, ranks: Sequence[int], *, targets: Sequence[str] = TARGETS, alpha: int = ALPHA
) -> dict[str, Path]:
    """Let PEFT save an adapter of random A and B for each of *ranks*; return where they lie, ``task0`` first."""
    is_transposed = isinstance(model, GPT2LMHeadModel)
    directories = {f"task{number}": folder / f"task{number}" for number in range(len(ranks))}
    for r in set(ranks):
        config = LoraConfig(r=r, lora_alpha=alpha, target_modules=list(targets), fan_in_fan_out=is_transposed)
        writer = get_peft_model(copy.deepcopy(model), config)
        for directory, rank in zip(directories.values(), ranks, strict=True):
            if rank == r:
                randomise(writer)
                writer.save_pretrained(str(directory))
    return directories


def randomise(model: nn.Module) -> None:
    """Draw what is trainable in *model* anew: with B = 0, an adapter that is ignored would not be noticed."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.02)


def in_peft(model: nn.Module, directories: Directories) -> PeftModel:
    """Return PEFT's model of *model*, which it changes, with all of *directories* loaded; the first is active."""
    (first, directory), *others = directories.items()
    loaded = PeftModel.from_pretrained(model, directory, adapter_name=first)
    for name, directory in others:
        loaded.load_adapter(directory, adapter_name=name)
    return loaded.eval()


def in_ours(model: PreTrainedModel, directories: Directories) -> PreTrainedModel:
    """Return *model* with all of *directories* attached; none is active."""
    for name, directory in directories.items():
        lora_hub.apply_adapter(model, directory, name=name, active=False)
    return model


class Residents(NamedTuple):
    """The LLaMA in three copies: bare, and with the same adapters of ours, none of which is active, and of PEFT's."""

    base: PreTrainedModel
    ours: PreTrainedModel
    peft: PeftModel
    directories: Directories

    @property
    def names(self) -> list[str]:
        """What the adapters are called."""
        return list(self.directories)


@functools.cache
def residents(folder: Path, ranks: tuple[int, ...]) -> Residents:
    """Return models with one adapter of each of *ranks*, which lie in *folder*.

    Made once for all cases, since it takes PEFT seconds: who changes them puts back what was there.
    """
    base = llama()
    directories = write_adapters(base, folder / "-".join(map(str, ranks)), ranks)
    ours, theirs = in_ours(copy.deepcopy(base), directories), in_peft(copy.deepcopy(base), directories)
    return Residents(base, ours, theirs, directories)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Raise `AssertionError` unless *ours* is *theirs* up to rounding in float32."""
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert difference < TOLERANCE, f"outputs differ by {difference:.1e} of the largest"


def count_differing(before: Iterable[Tensor], after: Iterable[Tensor]) -> int:
    """Return how many elements of *after* have other bits than those of *before*."""
    integers = {2: torch.int16, 4: torch.int32}
    pairs = [(one, other, integers[one.element_size()]) for one, other in zip(before, after, strict=True)]
    return sum(int((one.view(dtype) != other.view(dtype)).sum()) for one, other, dtype in pairs)
