"""Which tensor of the base each tensor of an adapter is for: one, or the merge is refused by name."""

import pytest
import torch
from adapter_files import (
    HIDDEN,
    Tensor,
    adapter_files,
    fused_adapter_files,
    lora_key,
    module_paths,
    peft_config,
    tensor,
)
from bases import EMBEDDING, as_torch, base_files, delta, head_adapter, stored

import lora_hub
from lora_hub.errors import CompatibilityError, DocumentError, UsageError

Q = "model.layers.0.self_attn.q_proj"


def renamed(files, change):
    """Change the names of a base's tensors."""
    files.shards = {
        shard: {change(name): entry for name, entry in tensors.items()} for shard, tensors in files.shards.items()
    }
    return files


@pytest.mark.parametrize(
    "change",
    [lambda name: name.removeprefix("model."), lambda name: f"language.{name}", lambda name: name],
    ids=["removed", "added", "same"],
)
def test_a_prefix_that_is_missing_or_too_much_is_found(tmp_path, adapter, merge, change):
    """A backbone saved alone lacks the prefix of the model with a head, and the reverse."""
    base = renamed(base_files(), change).write(tmp_path / "base")
    before, after = stored(base), stored(merge(base, adapter))

    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        change(f"{path}.weight") for path in module_paths()
    }


def test_two_prefixes_that_would_do_are_refused(tmp_path, adapter, merge):
    """An encoder and a decoder with the same layers."""
    files = renamed(base_files(), lambda name: f"encoder.{name}")
    twins = {name.replace("encoder", "decoder"): entry for name, entry in files.tensors.items()}
    files.shards["model-00009.safetensors"] = twins

    with pytest.raises(CompatibilityError, match=r"may be `encoder.* and `decoder"):
        merge(files.write(tmp_path / "base"), adapter)


def test_a_module_that_the_base_lacks_is_named(tmp_path, adapter, merge):
    """The base has fewer layers."""
    with pytest.raises(CompatibilityError, match=r"adapts `model\.layers\.1.*has no tensor"):
        merge(base_files(layers=1).write(tmp_path / "base"), adapter)


def test_one_prefix_holds_for_all_modules(tmp_path, adapter, merge):
    """A layer that stands elsewhere is another layer."""
    files = renamed(base_files(), lambda name: name.replace("model.layers.1", "model.others.1"))

    with pytest.raises(CompatibilityError, match="has no tensor"):
        merge(files.write(tmp_path / "base"), adapter)


def test_another_shape_is_refused_with_both(tmp_path, adapter, merge):
    """A base of another size."""
    files = base_files()
    files.shards["model-00002.safetensors"][f"{Q}.weight"] = tensor(HIDDEN, HIDDEN + 2)

    with pytest.raises(CompatibilityError, match=r"\[8, 10\] in the base.*\[8, 8\]"):
        merge(files.write(tmp_path / "base"), adapter)


@pytest.mark.parametrize("dtype", ["U8", "I8", "F8_E4M3"])
def test_a_quantised_weight_is_refused(tmp_path, adapter, merge, dtype):
    """The error names it, and says to merge in 16 bits first."""
    files = base_files()
    files.shards["model-00002.safetensors"][f"{Q}.weight"] = Tensor(dtype=dtype, shape=(8, 8), content=bytes(64))

    with pytest.raises(CompatibilityError, match=f"{Q}.*quantised.*16 bits"):
        merge(files.write(tmp_path / "base"), adapter)


def test_a_quantised_base_is_refused_by_its_config(tmp_path, adapter, merge):
    """Its weights may look like floats, and mean something else."""
    base = base_files(quantization_config={"quant_method": "fp8"}).write(tmp_path / "base")

    with pytest.raises(CompatibilityError, match="quantization_config"):
        merge(base, adapter)


def test_eight_bit_floats_cannot_be_converted(tmp_path, adapter, merge):
    """Without their scales they mean nothing; copied, they stay what they were."""
    files = base_files()
    files.shards["model-00001.safetensors"]["eight"] = Tensor(dtype="F8_E4M3", shape=(3,), content=b"abc")
    base = files.write(tmp_path / "base")

    with pytest.raises(CompatibilityError, match="`eight` is stored as F8_E4M3"):
        merge(base, adapter, dtype="bfloat16")
    assert torch.equal(
        stored(merge(base, adapter, output="as it is"))["eight"].view(torch.uint8), torch.tensor(list(b"abc")).byte()
    )


# Weights that lie [in, out]


def gpt2(layers=1, **sizes):
    """Return a GPT-2 that `fused_adapter_files` fits, and its shapes by name."""
    files = base_files(single=True, architectures=["GPT2LMHeadModel"], model_type="gpt2", n_embd=HIDDEN, n_layer=layers,
                       n_head=2, n_positions=4, vocab_size=16)  # fmt: skip
    shapes = {"attn.c_attn": (HIDDEN, 3 * HIDDEN), "attn.c_proj": (HIDDEN, HIDDEN), "mlp.c_fc": (HIDDEN, 4 * HIDDEN),
              "mlp.c_proj": (4 * HIDDEN, HIDDEN)}  # fmt: skip
    files.shards = {
        "model.safetensors": {
            f"transformer.h.{layer}.{name}.weight": tensor(*sizes.get(name, shape), seed=layer)
            for layer in range(layers)
            for name, shape in shapes.items()
        }
    }
    return files


def adapter_of(path: str, inner: int, outer: int):
    """Return an adapter of one module."""
    files = adapter_files()
    files.config = peft_config(target_modules=[path])
    files.tensors = {lora_key(path, "A"): tensor(2, inner, seed=1), lora_key(path, "B"): tensor(outer, 2, seed=2)}
    return files


def test_a_fused_and_transposed_weight(tmp_path, merge):
    """GPT-2's c_attn: the shape says that it lies [in, out]."""
    files, adapter = gpt2(), fused_adapter_files()
    after = stored(merge(files.write(tmp_path / "base"), adapter.write(tmp_path / "adapter")))
    path = "transformer.h.0.attn.c_attn"
    expected = as_torch(files.tensors[f"{path}.weight"]).double() + delta(adapter, path).T

    torch.testing.assert_close(after[f"{path}.weight"].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("transposed", [True, False], ids=["gpt2", "llama"])
def test_of_a_square_weight_the_plugin_knows_how_it_lies(tmp_path, merge, transposed):
    """c_proj of GPT-2 is transposed, o of LLaMA is not; transformers is not asked."""
    name = "transformer.h.0.attn.c_proj" if transposed else Q
    files = gpt2() if transposed else base_files()
    adapter = adapter_of(name, HIDDEN, HIDDEN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_hub.checkpoint.planning.known_model", lambda *_: pytest.fail("it was asked"))
        after = stored(merge(files.write(tmp_path / "base"), adapter.write(tmp_path / "adapter")))
    exact = delta(adapter, name).T if transposed else delta(adapter, name)

    torch.testing.assert_close(
        after[f"{name}.weight"].double(), as_torch(files.tensors[f"{name}.weight"]).double() + exact, rtol=0, atol=1e-5
    )


def test_a_weight_that_lies_the_other_way_than_the_plugin_says_is_refused(tmp_path, adapter, merge):
    """It would fit if it were turned round; but LLaMA's are not, so it is another module's."""
    files = base_files()
    files.shards["model-00002.safetensors"]["model.layers.0.self_attn.v_proj.weight"] = tensor(HIDDEN, 4)

    with pytest.raises(CompatibilityError, match=r"v_proj` has a weight of shape \[8, 4\] in the base.*\[4, 8\]"):
        merge(files.write(tmp_path / "base"), adapter)


def test_of_a_square_weight_without_a_plugin_transformers_is_asked(tmp_path, merge):
    """Here c_proj of an MLP that is as narrow as the model: the class on the meta device says that it is a Conv1D."""
    files, path = gpt2(**{"mlp.c_proj": (HIDDEN, HIDDEN)}), "transformer.h.0.mlp.c_proj"
    adapter = adapter_of(path, HIDDEN, HIDDEN)
    after = stored(merge(files.write(tmp_path / "base"), adapter.write(tmp_path / "adapter")))
    expected = as_torch(files.tensors[f"{path}.weight"]).double() + delta(adapter, path).T

    torch.testing.assert_close(after[f"{path}.weight"].double(), expected, rtol=0, atol=1e-5)


def test_a_square_weight_that_nobody_knows_is_refused(tmp_path, merge):
    """Half of all guesses would be wrong, and nothing would say so."""
    files = base_files(model_type="unheard-of", architectures=["UnheardOfModel"])

    with pytest.raises(CompatibilityError, match=r"square.*no plugin describes it.*unheard-of"):
        merge(files.write(tmp_path / "base"), adapter_of(Q, HIDDEN, HIDDEN).write(tmp_path / "adapter"))


# Collisions


def test_a_head_that_two_adapters_replace_is_refused(tmp_path, base, merge):
    """One of them would be lost."""
    one, two = (
        head_adapter({"score.weight": tensor(2, HIDDEN, seed=seed)}).write(tmp_path / str(seed)) for seed in (1, 2)
    )

    with pytest.raises(CompatibilityError, match=r"both replace `score\.weight`"):
        merge(base, one, two)


def test_a_weight_that_one_replaces_and_another_adapts_is_refused(tmp_path, base, merge):
    """The delta is not for the replaced weight."""
    replacing = head_adapter({f"{Q}.weight": tensor(HIDDEN, HIDDEN, seed=1)}, target_modules=["v_proj"])
    for key in [key for key in replacing.tensors if "q_proj.lora" in key]:
        del replacing.tensors[key]
    replacing.config["modules_to_save"] = [Q]
    adapting = adapter_files().write(tmp_path / "adapting")

    with pytest.raises(CompatibilityError, match=f"adds to `{Q}.weight`, which .* replaces"):
        merge(base, adapting, replacing.write(tmp_path / "replacing"))


def test_a_head_that_is_not_the_whole_module_is_refused(tmp_path, merge):
    """The base's bias would stay beside the adapter's weight."""
    files = base_files()
    files.shards["model-00001.safetensors"] |= {"score.weight": tensor(2, HIDDEN), "score.bias": tensor(2)}

    with pytest.raises(CompatibilityError, match=r"has nothing for `score\.bias`"):
        merge(
            files.write(tmp_path / "base"),
            head_adapter({"score.weight": tensor(2, HIDDEN)}).write(tmp_path / "adapter"),
        )


def test_an_embedding_among_several_is_refused(tmp_path, merge):
    """Which of them the output is tied to is not known."""
    files = base_files(tied=True)
    files.shards["model-00001.safetensors"]["decoder.embed_tokens.weight"] = tensor(16, HIDDEN)
    adapter = head_adapter({EMBEDDING: tensor(16, HIDDEN)}).write(tmp_path / "adapter")

    with pytest.raises(CompatibilityError, match="2 embeddings"):
        merge(files.write(tmp_path / "base"), adapter)


# Bases


@pytest.mark.parametrize(
    ("model_type", "allowed", "fits"), [("llama", False, True), ("mistral", False, False), ("mistral", True, True)]
)
def test_a_base_of_another_type_needs_a_word(tmp_path, model_type, allowed, fits):
    """As with `apply_adapter`."""
    from lora_hub.documents.base_model import BaseModel
    from lora_hub.documents.verified_adapter import describe, verify

    files = adapter_files().files()
    found = verify(files, source="adapter")
    manifest = describe(
        found.config, found.layout, found.tensors, found.manifest.files, base=BaseModel(model_type="llama")
    )
    files["lora-hub.json"] = manifest.to_bytes()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name, content in files.items():
        (adapter / name).write_bytes(content)
    base = base_files(model_type=model_type).write(tmp_path / "base")

    def merge() -> object:
        return lora_hub.merge_checkpoint(base, {adapter: 1.0}, tmp_path / "out", allow_other_base=allowed)

    if fits:
        assert merge().modules
    else:
        with pytest.raises(CompatibilityError, match="made for a base of type"):
            merge()


def test_a_base_that_has_more_of_the_targets_is_noted(tmp_path, adapter):
    """It may be another base, or an adapter that lacks a part."""
    merged = lora_hub.merge_checkpoint(
        base_files(layers=3).write(tmp_path / "base"), {adapter: 1.0}, tmp_path / "merged"
    )

    assert any("targets 2 more modules" in note for note in merged.notes)


@pytest.mark.parametrize("base", ["org/model/more", "org/model@", "https://x/y", "org/..", ""])
def test_what_is_no_base_is_refused(adapter, tmp_path, base):
    """Neither a directory nor a repository."""
    with pytest.raises((UsageError, DocumentError)):
        lora_hub.merge_checkpoint(base, {adapter: 1.0}, tmp_path / "out")


def test_no_adapter_is_no_merge(base, tmp_path):
    """It would be a copy."""
    with pytest.raises(UsageError, match="no adapter"):
        lora_hub.merge_checkpoint(base, {}, tmp_path / "out")
