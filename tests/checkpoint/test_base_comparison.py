"""A checkpoint against the fingerprint of an adapter: what was recorded from a live model is found in its files."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import lora_hub
from lora_hub.adapter_directory import read_adapter
from lora_hub.checkpoint.base_files import LocalBase
from lora_hub.checkpoint.checkpoint import read_checkpoint
from lora_hub.checkpoint.fingerprint import compare_shards, compare_with_files, plan_sampling
from lora_hub.documents.base_model import BaseModel, ShardEntry
from lora_hub.documents.base_verdict import Outcome
from lora_hub.errors import CompatibilityError, MalformedError

SMALL = {"vocab_size": 61, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def llama(**options):
    config = LlamaConfig(
        hidden_size=48, num_attention_heads=4, num_key_value_heads=2, head_dim=16, intermediate_size=96,
        num_hidden_layers=2, **SMALL, **options,
    )  # fmt: skip
    return seeded(LlamaForCausalLM, config)


def gpt2(**options):
    return seeded(GPT2LMHeadModel, GPT2Config(n_embd=48, n_layer=2, n_head=4, n_positions=32, **SMALL, **options))


def bert(**_):
    config = BertConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, max_position_embeddings=32,
        **SMALL,
    )  # fmt: skip
    return seeded(BertForSequenceClassification, config)


def seeded(model_class, config, seed=1):
    torch.manual_seed(seed)
    return model_class(config).eval()


TARGETS = {llama: ("q", "v", "o", "down_proj"), gpt2: ("q", "v", "o", "c_fc"), bert: ("q", "v", "o")}


def adapter_of(model, directory, targets=("q", "v"), base_model="org/base"):
    """Return an adapter that was made on *model*, as it is read from its files."""
    handle = lora_hub.add_adapter(model, "task", targets=targets, base_model=base_model)
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.01)
    lora_hub.save_adapter(handle, directory)
    handle.remove()
    return read_adapter(directory)


def checkpoint_of(model, directory, shard="1GB"):
    """Return the checkpoint that *model* is saved as."""
    model.save_pretrained(directory, max_shard_size=shard)
    return read_checkpoint(LocalBase(directory))


def changed(directory: Path, change) -> None:
    """Let *change* work on the tensors of every file in *directory*."""
    for path in directory.glob("*.safetensors"):
        tensors = load_file(path)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


class OnTheHub(LocalBase):
    """Files that are read by requests, which are counted, and whose digests are known."""

    repo = "org/base"

    def __init__(self, directory: Path, digests=None) -> None:
        super().__init__(directory)
        self.requests: list[tuple[str, int]] = []
        self.digests = digests or {}

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes, and count."""
        self.requests.append((name, stop - start))
        return super().read(name, start, stop)

    def sha256(self, name: str) -> str | None:
        """Return what was said."""
        return self.digests.get(name)


@pytest.mark.parametrize("shard", ["1GB", "40KB"])
@pytest.mark.parametrize("family", [llama, gpt2, bert])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_live_model_and_its_files_agree(family, shard, dtype, tmp_path):
    """In one file or in shards, lying transposed or not, recorded in float32 or, of the same base, in bfloat16."""
    model = family()
    checkpoint = checkpoint_of(model, tmp_path / "base", shard)
    adapter = adapter_of(model.to(dtype), tmp_path / "adapter", TARGETS[family])
    verdict = compare_with_files(adapter, checkpoint)

    assert verdict.outcome is Outcome.MATCH
    assert verdict.compared == verdict.recorded
    assert (len(checkpoint.shards) > 1) == (shard == "40KB")


@pytest.mark.parametrize("family", [llama, gpt2, bert])
def test_another_base_is_told_from_its_files(family, tmp_path):
    """Same shapes, other numbers."""
    adapter = adapter_of(family(), tmp_path / "adapter", TARGETS[family])
    other = seeded(type(family()), family().config, seed=2)
    verdict = compare_with_files(adapter, checkpoint_of(other, tmp_path / "base"))

    assert verdict.is_other
    assert verdict.differing > 0.9 * verdict.compared


def test_files_in_a_narrower_dtype_leave_it_undecided(tmp_path):
    """bfloat16 on disk, recorded in float32."""
    model = llama()
    adapter = adapter_of(model, tmp_path / "adapter")
    verdict = compare_with_files(adapter, checkpoint_of(model.bfloat16(), tmp_path / "base"))

    assert verdict.outcome is Outcome.UNDECIDED
    assert verdict.compared == verdict.recorded


def test_a_backbone_that_was_saved_alone_is_found(tmp_path):
    """Its names lack the prefix of the model with a head."""
    model = llama()
    adapter = adapter_of(model, tmp_path / "adapter")

    assert compare_with_files(adapter, checkpoint_of(model.model, tmp_path / "base")).outcome is Outcome.MATCH


@pytest.mark.parametrize("family", [llama, gpt2])
def test_tied_output_is_read_from_the_embedding(family, tmp_path):
    """A tied model stores one tensor for both."""
    model = family(tie_word_embeddings=True)
    adapter = adapter_of(model, tmp_path / "adapter", ("q", "lm_head"))
    checkpoint = checkpoint_of(model, tmp_path / "base")

    assert "lm_head.weight" not in checkpoint.shard_of
    assert compare_with_files(adapter, checkpoint).outcome is Outcome.MATCH


def test_digests_decide_without_reading(tmp_path):
    """All files that were recorded, under the same names and digests."""
    model = llama()
    adapter_of(model, tmp_path / "adapter")
    checkpoint_of(model, tmp_path / "base", "40KB")
    digests = {path.name: f"{n:064x}" for n, path in enumerate((tmp_path / "base").glob("*.safetensors"))}
    base = BaseModel(shards=tuple(ShardEntry(name=name, sha256=digest) for name, digest in digests.items()))
    first = next(iter(digests))

    assert compare_shards(base, OnTheHub(tmp_path / "base", digests)).outcome is Outcome.MATCH
    for other in ({}, digests | {first: "f" * 64}, {k: v for k, v in digests.items() if k != first}):
        assert compare_shards(base, OnTheHub(tmp_path / "base", other)).outcome is Outcome.UNDECIDED
    assert compare_shards(BaseModel(), OnTheHub(tmp_path / "base", digests)).outcome is Outcome.UNDECIDED


def test_weights_count_for_more_than_the_digests_of_files(tmp_path):
    """A base that was changed in memory is not the files that it came from: where weights are read, they decide."""
    model = llama()
    adapter = adapter_of(model, tmp_path / "adapter")
    checkpoint_of(model, tmp_path / "base")
    changed(tmp_path / "base", lambda tensors: [tensor.mul_(1.5) for tensor in tensors.values()])
    digests = {path.name: "a" * 64 for path in (tmp_path / "base").glob("*.safetensors")}
    shards = tuple(ShardEntry(name=name, sha256=digest) for name, digest in digests.items())
    base = replace(adapter.manifest.base, shards=shards)
    recorded = replace(adapter, manifest=replace(adapter.manifest, base=base))
    checkpoint = read_checkpoint(OnTheHub(tmp_path / "base", digests))

    assert compare_with_files(recorded, checkpoint, max_reads=0).outcome is Outcome.MATCH
    assert compare_with_files(recorded, checkpoint, max_reads=16).is_other
    assert compare_with_files(recorded, checkpoint).is_other


@pytest.mark.parametrize("requests", [1, 3, 5, 16, 64])
def test_requests_are_limited(requests, tmp_path):
    """Over the network a few weights are asked for, each by a few bytes; they tell the base from a fine-tuned one."""
    model = llama()
    adapter = adapter_of(model, tmp_path / "adapter", ("q", "k", "v", "o"))
    checkpoint_of(model, tmp_path / "base", "40KB")
    files = OnTheHub(tmp_path / "base")
    checkpoint = read_checkpoint(files)
    files.requests.clear()
    sampling = plan_sampling(adapter, checkpoint, max_reads=requests)
    planned, verdict = len(files.requests), sampling.verdict()

    assert planned == 0
    assert len(files.requests) == len(sampling.reads) <= requests
    assert verdict.outcome is Outcome.MATCH
    assert min(8, requests) <= verdict.compared <= requests
    changed(tmp_path / "base", lambda tensors: [tensor.mul_(1 + 1e-5) for tensor in tensors.values()])
    assert compare_with_files(adapter, read_checkpoint(OnTheHub(tmp_path / "base")), max_reads=requests).is_other


def test_no_requests_leave_it_undecided(tmp_path):
    """Unless it is asked for, no weight is read over the network."""
    model = llama()
    adapter = adapter_of(model, tmp_path / "adapter")
    checkpoint_of(model, tmp_path / "base")
    files = OnTheHub(tmp_path / "base")
    checkpoint = read_checkpoint(files)
    files.requests.clear()
    verdict = compare_with_files(adapter, checkpoint, max_reads=0)

    assert (verdict.outcome, verdict.compared, files.requests) == (Outcome.UNDECIDED, 0, [])


def test_weights_of_other_names_leave_it_undecided(tmp_path):
    """Nobody says which tensor would be which."""
    model = llama()
    adapter = adapter_of(model, tmp_path / "adapter")
    checkpoint_of(model, tmp_path / "base")

    def rename(tensors):
        for name in list(tensors):
            tensors[name.replace("self_attn", "mixer")] = tensors.pop(name)

    changed(tmp_path / "base", rename)
    verdict = compare_with_files(adapter, read_checkpoint(LocalBase(tmp_path / "base")))

    assert (verdict.outcome, verdict.compared) == (Outcome.UNDECIDED, 0)
    assert "other names" in verdict.reason


def test_quantised_files_tell_gross_identity_only(tmp_path):
    """Codes of 8 bits: the right ones are undecided, those of another base are told."""
    model = llama()
    adapter = adapter_of(model, tmp_path / "adapter", ("q", "k", "v", "o"))
    other = seeded(LlamaForCausalLM, llama().config, seed=2)
    verdicts = []
    for name, base in {"right": model, "wrong": other}.items():
        checkpoint_of(base, tmp_path / name)

        def quantise(tensors):
            for key in (k for k in tensors if k.endswith("_proj.weight")):
                tensors[key] = (tensors[key] * 1000).round().clamp(-127, 127).to(torch.int8)

        changed(tmp_path / name, quantise)
        verdicts.append(compare_with_files(adapter, read_checkpoint(LocalBase(tmp_path / name))))

    assert [verdict.outcome for verdict in verdicts] == [Outcome.UNDECIDED, Outcome.OTHER]


def test_an_adapter_without_fingerprint_leaves_it_undecided(tmp_path):
    """As every adapter that PEFT wrote; there is nothing to sample."""
    model = llama()
    adapter_of(model, tmp_path / "adapter")
    (tmp_path / "adapter" / "lora-hub.json").unlink()
    adapter, checkpoint = read_adapter(tmp_path / "adapter"), checkpoint_of(model, tmp_path / "base")

    assert compare_with_files(adapter, checkpoint).outcome is Outcome.UNDECIDED
    with pytest.raises(CompatibilityError, match="no fingerprint"):
        plan_sampling(adapter, checkpoint)


class CutOff(OnTheHub):
    """Files of which less comes than is asked for."""

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Return one byte too few."""
        return super().read(name, start, stop)[:-1]


def test_a_read_that_is_cut_off_is_refused(tmp_path):
    """No number is made of the bytes that came."""
    model = llama()
    adapter = adapter_of(model, tmp_path / "adapter")
    checkpoint = replace(checkpoint_of(model, tmp_path / "base"), files=CutOff(tmp_path / "base"))
    with pytest.raises(MalformedError, match="shorter"):
        compare_with_files(adapter, checkpoint)


def test_a_merge_into_another_base_is_refused(tmp_path):
    """With exit code 9 and both names, before anything is written; a word merges into a sibling all the same."""
    model = llama()
    adapter_of(model, tmp_path / "adapter")
    sibling = copy.deepcopy(model)
    with torch.no_grad():
        sibling.model.layers[0].self_attn.q_proj.weight.add_(1e-4)
    sibling.save_pretrained(tmp_path / "sibling")
    model.save_pretrained(tmp_path / "base")
    with pytest.raises(CompatibilityError, match=r"trained on org/base.*sibling` is another base: .* differ") as caught:
        lora_hub.merge_checkpoint(tmp_path / "sibling", {tmp_path / "adapter": 1.0}, tmp_path / "out")

    assert caught.value.exit_code == 9
    assert not (tmp_path / "out").exists()
    lora_hub.merge_checkpoint(tmp_path / "base", {tmp_path / "adapter": 1.0}, tmp_path / "right")
    lora_hub.merge_checkpoint(
        tmp_path / "sibling", {tmp_path / "adapter": 1.0}, tmp_path / "out", allow_other_base=True
    )
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("family", [llama, gpt2])
def test_what_is_extracted_has_the_fingerprint_of_its_base(family, tmp_path):
    """The same bytes that a live model of that base would have recorded for these modules."""
    model = family()
    model.save_pretrained(tmp_path / "base")
    path = adapter_of(model, tmp_path / "adapter", ("q", "o")).source
    lora_hub.merge_checkpoint(tmp_path / "base", {path: 1.0}, tmp_path / "fine")
    lora_hub.extract_adapter(tmp_path / "fine", tmp_path / "base", tmp_path / "extracted", rank="16")
    extracted, adapted = (read_adapter(tmp_path / name).manifest.base.fingerprint for name in ("extracted", "adapter"))

    assert extracted == adapted
