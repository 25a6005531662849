"""What a merge writes: the weights that it should, everything else as it was, and where all of it is from."""

import hashlib
import math
import os

import pytest
import torch
from adapter_files import HIDDEN, Tensor, adapter_files, module_paths, pack, tensor
from bases import (
    EMBEDDING,
    INDEX_NAME,
    OUTPUT,
    TOKENS,
    as_torch,
    base_files,
    content,
    delta,
    head_adapter,
    json_in,
    metadata,
    output_adapter,
    stored,
)

import lora_hub
from lora_hub.errors import (
    CompatibilityError,
    IntegrityError,
    MalformedError,
    UsageError,
)

TOUCHED = {f"{path}.weight" for path in module_paths()}


def test_every_weight_is_the_base_plus_the_delta(base, adapter, merge):
    """W + scaling * B A in the modules that the adapter adapts, and in no other."""
    before, after = stored(base), stored(merge(base, adapter))
    changed = {name for name in before if not torch.equal(before[name], after[name])}

    assert changed == TOUCHED
    for path in module_paths():
        expected = before[f"{path}.weight"].double() + delta(adapter_files(), path)
        torch.testing.assert_close(after[f"{path}.weight"].double(), expected, rtol=1e-6, atol=1e-6)


def test_shards_that_no_adapter_touches_are_the_same_bytes(base, adapter, merge):
    """So are header and metadata of those that are touched, the index, the config and what else lies there."""
    before, after = content(base), content(merge(base, adapter))
    same = {name for name in after if before.get(name) == after[name]}

    assert same == {
        "model-00001.safetensors", INDEX_NAME, "config.json", "tokenizer.json", "generation_config.json", "LICENSE",
    }  # fmt: skip
    assert after.keys() - same == {
        "model-00002.safetensors", "model-00003.safetensors", "README.md", "lora_hub.merge.json",
    }  # fmt: skip
    for name in ("model-00002.safetensors", "model-00003.safetensors"):
        length = 8 + int.from_bytes(before[name][:8], "little")
        assert before[name][:length] == after[name][:length]
        assert len(before[name]) == len(after[name])


def test_the_provenance_has_every_digest(base, adapter, tmp_path):
    """Of inputs and outputs; the weight and the digest of the adapter; no path of this machine."""
    merged = lora_hub.merge_checkpoint(base, {str(adapter): 0.5}, tmp_path / "out")
    document = json_in(tmp_path / "out", "lora_hub.merge.json")
    files = content(tmp_path / "out")

    assert document["files"] == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items() if name != "lora_hub.merge.json"
    }
    assert document["base"]["shards"] == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in base.glob("*.safetensors")
    }
    (found,) = document["adapters"]
    assert (found["weight"], found["digest"][:7]) == (0.5, "sha256:")
    assert str(tmp_path) not in str(document)
    assert merged.files == document["files"]


def test_a_pushed_adapter_is_named_in_provenance_and_card(base, adapter, tmp_path, monkeypatch):
    """Name, version, digest and signer."""
    (tmp_path / "registry").mkdir()
    monkeypatch.setenv("LORA_HUB_REGISTRY", str(tmp_path / "registry"))
    digest = lora_hub.push(adapter, "org/task@1.0.0").digest
    lora_hub.merge_checkpoint(base, {"org/task": 1}, tmp_path / "out")
    (found,) = json_in(tmp_path / "out", "lora_hub.merge.json")["adapters"]
    card = (tmp_path / "out" / "README.md").read_text()

    assert (found["name"], found["version"], found["digest"]) == ("org/task", "1.0.0", digest)
    assert 'base_model: "org/base"\nbase_model_relation: "finetune"' in card
    assert "| org/task | 1.0.0 | 1 |" in card


def test_several_adapters_are_a_merge_in_the_card(base, tmp_path, merge):
    """One adapter makes a fine-tune of its base; several make a merge."""
    one, two = (adapter_files(seed=seed).write(tmp_path / str(seed)) for seed in (1, 2))

    assert 'base_model_relation: "merge"' in (merge(base, one, two) / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["F32", "BF16", "F16"])
def test_several_adapters_are_the_sum_in_float64_rounded_once(tmp_path, merge, dtype):
    """Not merged one after the other, which rounds each time."""
    written = base_files(dtype=dtype)
    base, files = written.write(tmp_path / "base"), [adapter_files(seed=seed, r=2 + seed) for seed in range(3)]
    after = stored(merge(base, *(one.write(tmp_path / f"a{seed}") for seed, one in enumerate(files))))
    for path in module_paths():
        exact = as_torch(written.tensors[f"{path}.weight"]).double() + sum(delta(one, path) for one in files)

        assert torch.equal(after[f"{path}.weight"], nearest(exact, after[f"{path}.weight"]))


def nearest(exact: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return of the numbers around *exact* in the dtype of *like* the nearest, as float64 measures it."""
    rounded = exact.to(like.dtype)
    bits = rounded.view({2: torch.int16, 4: torch.int32}[like.element_size()])
    candidates = torch.stack([(bits + step).view(like.dtype) for step in (-1, 0, 1)])
    return candidates.gather(0, (candidates.double() - exact).abs().argmin(dim=0, keepdim=True))[0]


def test_two_merges_of_one_recipe_are_the_same_bytes(base, adapter, merge):
    """Every file, the provenance as well."""
    assert content(merge(base, adapter)) == content(merge(base, adapter, output="again"))


def test_a_weight_is_a_number_however_it_is_written(base, adapter, tmp_path):
    """1 and 1.0 are one recipe."""
    lora_hub.merge_checkpoint(base, {adapter: 1}, tmp_path / "merged")

    assert lora_hub.merge_checkpoint(base, {adapter: 1.0}, tmp_path / "merged", resume=True).reused


def test_a_single_file_is_merged_without_an_index(tmp_path, adapter, merge):
    """A small model is one `model.safetensors`."""
    base = base_files(single=True).write(tmp_path / "base")
    output = merge(base, adapter)

    assert not (output / INDEX_NAME).exists()
    assert metadata(output / "model.safetensors") == {"format": "pt"}
    assert stored(output).keys() == stored(base).keys()


def test_links_to_files_are_followed(tmp_path, base, adapter, merge):
    """As in the cache of the Hub's client, where a model is a directory of links."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for path in base.iterdir():
        (linked / path.name).symlink_to(path)

    assert content(merge(linked, adapter)) == content(merge(base, adapter, output="plain"))


# Dtypes


@pytest.mark.parametrize(("option", "dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_all_floating_tensors_become_the_dtype(base, adapter, merge, option, dtype):
    """The sum is rounded once, what is no weight keeps its dtype, and the config says so."""
    before, output = stored(base), merge(base, adapter, dtype=option)
    after = stored(output)

    assert {name: entry.dtype for name, entry in after.items()} == {
        name: dtype if entry.dtype.is_floating_point else entry.dtype for name, entry in before.items()
    }
    assert torch.equal(after[EMBEDDING], before[EMBEDDING].to(dtype))
    for path in module_paths():
        exact = stored(merge(base, adapter, output=f"{path}-32"))[f"{path}.weight"]
        assert torch.equal(after[f"{path}.weight"], exact.to(dtype))
    assert json_in(output, "config.json")["torch_dtype"] == option
    total = sum(entry.nbytes for entry in after.values())
    assert json_in(output, INDEX_NAME)["metadata"]["total_size"] == total


def test_a_wider_dtype_keeps_the_whole_delta(tmp_path, adapter, merge):
    """float32 weights of a bfloat16 base: W is exact, and the delta is not rounded to 8 bits."""
    written = base_files(dtype="BF16")
    base = written.write(tmp_path / "base")
    after = stored(merge(base, adapter, dtype="float32"))
    for path in module_paths():
        exact = as_torch(written.tensors[f"{path}.weight"]).double() + delta(adapter_files(), path)

        torch.testing.assert_close(after[f"{path}.weight"].double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [EMBEDDING, "model.layers.0.self_attn.q_proj.weight"])
def test_what_float16_cannot_hold_is_an_error(tmp_path, adapter, merge, name):
    """It names the tensor, touched or not, and the output is no model."""
    files = base_files()
    shard = next(shard for shard in files.shards.values() if name in shard)
    (rows, columns) = shard[name].shape
    shard[name] = Tensor(dtype="F32", shape=(rows, columns), content=b"\x00\x00\x80\x47" * rows * columns)  # 65536.0
    with pytest.raises(CompatibilityError, match=f"{name}.*too large for float16"):
        merge(files.write(tmp_path / "base"), adapter, dtype="float16")

    assert not (tmp_path / "merged" / "config.json").exists()


def test_an_infinity_of_the_base_does_not_hide_what_float16_cannot_hold(tmp_path, adapter, merge):
    """It is one in float16 as well; the large number beside it is not."""
    files = base_files()
    content = b"\x00\x00\x80\x7f" + b"\x00\x00\x80\x47" * (TOKENS * HIDDEN - 1)  # inf, 65536.0, …
    files.shards["model-00001.safetensors"][EMBEDDING] = Tensor(dtype="F32", shape=(TOKENS, HIDDEN), content=content)

    with pytest.raises(CompatibilityError, match="too large for float16"):
        merge(files.write(tmp_path / "base"), adapter, dtype="float16")


def test_a_delta_that_float64_cannot_square_is_refused(tmp_path, merge):
    """Its gain and error are no numbers."""
    files = adapter_files(dtype="F64")
    for key, entry in files.tensors.items():
        if "lora_B" in key:
            huge = pack([1e200] * math.prod(entry.shape), "F64")
            files.tensors[key] = Tensor(dtype="F64", shape=entry.shape, content=huge)

    with pytest.raises(MalformedError, match="too large for float64"):
        merge(base_files(dtype="F64").write(tmp_path / "base"), files.write(tmp_path / "adapter"))


# Vocabulary


def test_a_tied_output_that_is_adapted_becomes_a_tensor_of_its_own(tmp_path, merge):
    """The embedding stays; `lm_head.weight` is the embedding plus the delta, and the config unties them."""
    base, files = base_files(tied=True).write(tmp_path / "base"), output_adapter()
    output = merge(base, files.write(tmp_path / "adapter"))
    before, after = stored(base), stored(output)

    assert torch.equal(after[EMBEDDING], before[EMBEDDING])
    torch.testing.assert_close(
        after[OUTPUT].double(), before[EMBEDDING].double() + delta(files, "lm_head"), rtol=0, atol=1e-6
    )
    assert json_in(output, "config.json")["tie_word_embeddings"] is False
    assert json_in(output, INDEX_NAME)["weight_map"][OUTPUT] == "model-00001.safetensors"
    assert metadata(output / "model-00001.safetensors") == {"format": "pt"}


def test_an_untied_output_is_a_weight_like_others(base, tmp_path, merge):
    """Nothing in the config changes."""
    output = merge(base, output_adapter().write(tmp_path / "output"))

    assert (output / "config.json").read_bytes() == (base / "config.json").read_bytes()
    assert not torch.equal(stored(output)[OUTPUT], stored(base)[OUTPUT])


def test_a_tied_vocabulary_that_is_replaced_alike_stays_tied(tmp_path, merge):
    """One tensor is written for both, as before."""
    new = tensor(TOKENS, HIDDEN, seed=9)
    adapter = head_adapter({EMBEDDING: new, OUTPUT: new}).write(tmp_path / "adapter")
    output = merge(base_files(tied=True).write(tmp_path / "base"), adapter)

    assert torch.equal(stored(output)[EMBEDDING], as_torch(new))
    assert OUTPUT not in stored(output)
    assert json_in(output, "config.json")["tie_word_embeddings"] is True


@pytest.mark.parametrize("replaced", [EMBEDDING, OUTPUT])
def test_one_end_of_a_tied_vocabulary_that_is_replaced_unties_it(tmp_path, merge, replaced):
    """The other end stays the base's."""
    new, base = tensor(TOKENS, HIDDEN, seed=9), base_files(tied=True).write(tmp_path / "base")
    output = merge(base, head_adapter({replaced: new}).write(tmp_path / "adapter"))
    other = {EMBEDDING: OUTPUT, OUTPUT: EMBEDDING}[replaced]

    assert torch.equal(stored(output)[replaced], as_torch(new))
    assert torch.equal(stored(output)[other], stored(base)[EMBEDDING])
    assert json_in(output, "config.json")["tie_word_embeddings"] is False


def test_a_larger_vocabulary_is_written_into_the_config(tmp_path, base, merge):
    """Both ends have more rows; the tokenizer that lies beside the adapter is taken."""
    rows = {name: tensor(TOKENS + 2, HIDDEN, seed=seed) for seed, name in enumerate((EMBEDDING, OUTPUT))}
    adapter = head_adapter(rows).write(tmp_path / "adapter")
    (adapter / "tokenizer.json").write_bytes(b'{"of": "the adapter"}')
    output = merge(base, adapter)

    assert {name: tuple(stored(output)[name].shape) for name in rows} == dict.fromkeys(rows, (TOKENS + 2, HIDDEN))
    assert json_in(output, "config.json")["vocab_size"] == TOKENS + 2
    assert json_in(output, "tokenizer.json") == {"of": "the adapter"}


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({EMBEDDING: (TOKENS + 2, HIDDEN)}, "would not be resized alike"),
        ({EMBEDDING: (TOKENS + 2, HIDDEN), OUTPUT: (TOKENS + 3, HIDDEN)}, "would not be resized alike"),
        ({EMBEDDING: (TOKENS - 1, HIDDEN)}, rf"\[{TOKENS}, {HIDDEN}\] in the base, \[{TOKENS - 1}, {HIDDEN}\] in"),
        ({EMBEDDING: (TOKENS, HIDDEN + 1)}, rf"\[{TOKENS}, {HIDDEN}\] in the base, \[{TOKENS}, {HIDDEN + 1}\] in"),
    ],
)
def test_a_vocabulary_that_would_not_fit_is_refused(tmp_path, base, merge, heads, message):
    """With both shapes."""
    adapter = head_adapter({name: tensor(*shape) for name, shape in heads.items()}).write(tmp_path / "adapter")

    with pytest.raises(CompatibilityError, match=message):
        merge(base, adapter)


def test_a_new_head_is_added(tmp_path, base, merge):
    """A classifier that the base does not have: in the base's dtype, and as many labels as it has rows."""
    head = tensor(3, HIDDEN, seed=4)
    adapter = head_adapter({"score.weight": head}, task_type="SEQ_CLS").write(tmp_path / "adapter")
    output = merge(base, adapter)

    assert torch.equal(stored(output)["score.weight"], as_torch(head))
    assert json_in(output, INDEX_NAME)["weight_map"]["score.weight"] == "model-00003.safetensors"
    assert len(json_in(output, "config.json")["id2label"]) == 3


def test_a_new_head_of_two_layers_has_the_labels_of_the_last(tmp_path, base, merge):
    """DistilBERT's is as wide as the model in the middle, and its names are in no order."""
    head = {"classifier.weight": tensor(3, HIDDEN), "pre_classifier.weight": tensor(HIDDEN, HIDDEN)}
    adapter = head_adapter(head, task_type="SEQ_CLS").write(tmp_path / "adapter")

    assert len(json_in(merge(base, adapter), "config.json")["id2label"]) == 3


def test_a_head_is_taken_whole_whatever_the_weight(tmp_path, base):
    """It is no delta; that is said."""
    head = tensor(3, HIDDEN, seed=4)
    adapter = head_adapter({"score.weight": head}).write(tmp_path / "adapter")
    merged = lora_hub.merge_checkpoint(base, {adapter: 0.5}, tmp_path / "merged")

    assert torch.equal(stored(tmp_path / "merged")["score.weight"], as_torch(head))
    assert any("taken whole, whatever its weight" in note for note in merged.notes)


@pytest.mark.parametrize("name", [b"adapter_config.json", b"lora-hub.json", b"\xff.json", b"\x1b[2J.txt"])
def test_what_makes_no_file_of_a_model_is_not_copied(base, adapter, merge, name):
    """A config without its adapter, which transformers would look for; a name that no document can hold."""
    (base / os.fsdecode(name)).write_bytes(b"{}")

    assert os.fsdecode(name) not in content(merge(base, adapter))


def test_what_is_too_large_for_a_file_of_a_model_is_not_copied(tmp_path, base, adapter, monkeypatch):
    """That is said, and no reason to fail once all the weights are written."""
    monkeypatch.setattr("lora_hub.checkpoint.companions._MAX_COMPANION", 100)
    (base / "training.json").write_bytes(b" " * 101)
    merged = lora_hub.merge_checkpoint(base, {adapter: 1.0}, tmp_path / "merged")

    assert "training.json" not in content(tmp_path / "merged")
    assert any("not copied from the base: pytorch_model.bin, training.json" in note for note in merged.notes)


# What is refused


def test_a_delta_of_zero_is_refused(tmp_path, base, merge):
    """An adapter that was saved before it was trained would write a copy of the base."""
    files = adapter_files()
    for key, entry in files.tensors.items():
        if "lora_B" in key:
            files.tensors[key] = Tensor(dtype=entry.dtype, shape=entry.shape, content=bytes(len(entry.content)))

    with pytest.raises(MalformedError, match="nothing to merge"):
        merge(base, files.write(tmp_path / "adapter"))


def test_a_delta_that_rounds_to_nothing_is_refused(tmp_path, adapter):
    """A "merged" model that is the base byte for byte is a failure, and is no model."""
    base = base_files(dtype="BF16").write(tmp_path / "base")
    with pytest.raises(CompatibilityError, match="nothing changed"):
        lora_hub.merge_checkpoint(base, {adapter: 1e-9}, tmp_path / "out")

    assert not (tmp_path / "out" / "config.json").exists()


def test_much_that_rounds_away_is_said(tmp_path, adapter):
    """A small delta in bfloat16: gain and error say how much of it there is."""
    base = base_files(dtype="BF16").write(tmp_path / "base")
    merged = lora_hub.merge_checkpoint(base, {adapter: 5e-4}, tmp_path / "out")

    assert merged.error > 0.3
    assert any("rounds much of the deltas away" in note for note in merged.notes)


@pytest.mark.parametrize("weight", [0, float("nan"), float("inf"), 1e31])
def test_a_weight_must_be_a_number(base, adapter, tmp_path, weight):
    """Before anything is read."""
    with pytest.raises(UsageError, match="weight"):
        lora_hub.merge_checkpoint(base, {adapter: weight}, tmp_path / "out")


def test_gain_and_error_are_those_of_the_weights(tmp_path, adapter):
    """Computed once more from what was written, against the exact delta."""
    written = base_files(dtype="BF16")
    merged = lora_hub.merge_checkpoint(written.write(tmp_path / "base"), {adapter: 0.1}, tmp_path / "out")
    after = stored(tmp_path / "out")
    for path, found in merged.modules.items():
        exact = delta(adapter_files(), path, weight=0.1)
        there = after[f"{path}.weight"].double() - as_torch(written.tensors[f"{path}.weight"]).double()

        assert found.gain == pytest.approx(((there * exact).sum() / exact.square().sum()).item(), rel=1e-4)
        assert found.error == pytest.approx(((there - exact).norm() / exact.norm()).item(), rel=1e-4)


def test_manifests_beside_a_directory_are_honoured(tmp_path, base, merge):
    """A directory whose manifest does not match is refused, as everywhere."""
    files = adapter_files()
    lora_hub.push(files.write(tmp_path / "a"), "org/task@1.0.0", registry=_registry(tmp_path))
    published = tmp_path / "registry" / "org" / "task" / "1.0.0"
    weights = published / "adapter_model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")

    with pytest.raises(IntegrityError):
        merge(base, published)


def _registry(tmp_path):
    (tmp_path / "registry").mkdir()
    return tmp_path / "registry"
