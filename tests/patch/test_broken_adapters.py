"""What is broken or does not fit is refused with its exit code, says what to do, and leaves the model as it was."""

import json

import models
import pytest
import torch
from models import logits, same_bits, state
from safetensors.torch import load_file, save_file

import lora_hub
from lora_hub.errors import LoraHubError

WEIGHTS, CONFIG, MANIFEST = "adapter_model.safetensors", "adapter_config.json", "lora-hub.json"


def edit_tensors(change):
    """Return a defect that changes the tensors; the manifest goes, so that the structure alone must catch it."""

    def apply(directory):
        tensors = load_file(directory / WEIGHTS)
        change(tensors, sorted(tensors))
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        (directory / MANIFEST).unlink()

    return apply


def edit_config(**changes):
    """Return a defect that changes the config, without the manifest that would notice."""

    def apply(directory):
        config = json.loads((directory / CONFIG).read_text()) | changes
        (directory / CONFIG).write_text(json.dumps(config))
        (directory / MANIFEST).unlink()

    return apply


def truncate(directory):
    (directory / WEIGHTS).write_bytes((directory / WEIGHTS).read_bytes()[:-5])
    (directory / MANIFEST).unlink()


def flip_a_byte(directory):
    content = bytearray((directory / WEIGHTS).read_bytes())
    content[-3] ^= 1
    (directory / WEIGHTS).write_bytes(content)


def pop(tensors, *keys):
    for key in keys:
        del tensors[key]


DEFECTS = {
    "one tensor is missing": (edit_tensors(lambda t, k: pop(t, k[0])), 8, "lora_A.weight` is missing"),
    "both tensors of a target are missing": (edit_tensors(lambda t, k: pop(t, *k[:2])), 8, "has no tensor for it"),
    "an extra tensor": (edit_tensors(lambda t, k: t.update({"base_model.model.x.y": torch.ones(2)})), 8, "x.y"),
    "a base key": (edit_tensors(lambda t, k: t.update({k[0].replace("lora_A.", ""): torch.ones(2)})), 8, "be either"),
    "a base_layer key": (
        edit_tensors(lambda t, k: t.update({k[0].replace("lora_A", "base_layer"): torch.ones(2, 2)})), 8, "base model"),
    "NaN": (edit_tensors(lambda t, k: t[k[1]].fill_(float("nan"))), 8, "NaN"),
    "infinity": (edit_tensors(lambda t, k: t[k[0]].view(-1)[3].fill_(float("inf"))), 8, "infinity"),
    "a shape of another base": (edit_tensors(lambda t, k: t.update({k[0]: t[k[0]][:, :-8].clone()})), 9, "outputs)"),
    "an A that does not fit its B": (edit_tensors(lambda t, k: t.update({k[0]: t[k[0]][:-1].clone()})), 8, "A of"),
    "a rank that differs from the config": (edit_config(r=3, rank_pattern={}), 8, "`r` and `rank_pattern`"),
    "DoRA": (edit_config(use_dora=True), 8, "use_dora"),
    "an unknown key with a value": (edit_config(lora_gain=2.0), 8, "lora_gain"),
    "a regular expression for a rank": (edit_config(rank_pattern={"(a+)+$": 4}), 8, "never runs one"),
    "another method": (edit_config(peft_type="IA3"), 8, "peft_type"),
    "a base-changing initialisation": (edit_config(init_lora_weights="pissa"), 8, "pissa"),
    "truncated": (truncate, 8, "safetensors"),
    "a flipped byte": (flip_a_byte, 6, "sha256"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), 3, WEIGHTS),
    "no config": (lambda d: (d / CONFIG).unlink(), 3, CONFIG),
}  # fmt: skip


@pytest.mark.parametrize("defect", DEFECTS)
def test_defect_is_refused(model, saved, defect):
    """Each defect has its exit code and a message that names it and says what to do; the model is as it was."""
    damage, exit_code, message = DEFECTS[defect]
    damage(saved)
    before, outputs = state(model), logits(model)

    with pytest.raises(LoraHubError) as caught:
        lora_hub.apply_adapter(model, saved)
    assert caught.value.exit_code == exit_code
    assert message in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert same_bits(state(model), before)
    assert torch.equal(logits(model), outputs)
    assert not any("Lora" in type(module).__name__ for module in model.modules())


def test_harmless_unknown_keys_are_accepted_and_listed(model, saved):
    """An unknown key that is null, false or empty changes nothing: it is accepted, and `load` lists it."""
    from lora_hub.api import load

    edit_config(new_key=None, other=False, third=[], fourth={})(saved)
    lora_hub.apply_adapter(model, saved)

    assert load(saved).config.accepted_unknown == ("fourth", "new_key", "other", "third")


def refusal(model, directory, **options):
    """The error of applying, with the model proven untouched."""
    before = state(model)
    with pytest.raises(LoraHubError) as caught:
        lora_hub.apply_adapter(model, directory, **options)
    assert same_bits(state(model), before)
    assert dict(lora_hub.adapters(model)) == {}
    return caught.value


def test_base_of_another_architecture(saved, family):
    """A model of another family is refused with exit code 9, naming both types."""
    other = models.llama() if family is not models.FAMILIES["llama"] else models.gpt2()
    error = refusal(other, saved)

    assert error.exit_code == 9
    assert other.config.model_type in error.message


def test_base_of_another_type_with_the_same_shapes(tmp_path):
    """RoBERTa has BERT's names and shapes: the model type tells them apart, `allow_other_base` is the way through."""
    from transformers import RobertaConfig, RobertaModel

    bert = models.bert().bert
    handle = lora_hub.add_adapter(bert, "task")
    lora_hub.save_adapter(handle, tmp_path / "saved")
    roberta = RobertaModel(
        RobertaConfig(
            vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
            max_position_embeddings=34, pad_token_id=1,
        )
    )  # fmt: skip
    error = refusal(roberta, tmp_path / "saved")
    applied = lora_hub.apply_adapter(roberta, tmp_path / "saved", allow_other_base=True)

    assert (error.exit_code, '"bert"' in error.message, '"roberta"' in error.message) == (9, True, True)
    assert applied.other_base_allowed


def test_base_whose_type_would_move_the_cursor(model, saved):
    """What the manifest calls the base is shown escaped."""
    manifest = json.loads((saved / MANIFEST).read_text())
    manifest["base"]["model_type"] = "\x1b[2J\u202e"
    (saved / MANIFEST).write_text(json.dumps(manifest))
    error = refusal(model, saved)

    assert (error.exit_code, str(error).isprintable()) == (9, True)
    assert "\\u001b[2J" in error.message


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "bfloat16")], ids=str)
def test_pair_of_two_dtypes_is_applied(model, saved, dtypes):
    """A and B may each have a dtype of its own: both are computed with as if they had the wider one."""
    tensors, found = load_file(saved / WEIGHTS), []
    for kinds in (dtypes, ("float32", "float32")):
        for key, tensor in tensors.items():
            tensors[key] = tensor.to(torch.bfloat16).to(getattr(torch, kinds["lora_B" in key]))
        save_file(tensors, saved / WEIGHTS, metadata={"format": "pt"})
        (saved / MANIFEST).unlink(missing_ok=True)
        handle = lora_hub.apply_adapter(model, saved, name="task")
        found.append(logits(model))
        handle.remove()

    assert torch.equal(*found)
    assert not torch.equal(found[0], logits(model))


@pytest.mark.parametrize("layers", [1, 3])
def test_base_with_other_depth(layers, tmp_path):
    """A base with fewer layers lacks modules; one with more leaves targets of the config without tensors: both 9."""
    models.peft_directory(models.llama(), tmp_path / "peft", target_modules=["q_proj", "v_proj"])
    error = refusal(models.llama(num_hidden_layers=layers), tmp_path / "peft")

    assert error.exit_code == 9
    assert "layers.1" in error.message if layers == 1 else "layers.2" in error.message


def test_adapter_on_something_that_is_not_linear(tmp_path):
    """A target that is no linear module in this model is refused."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    handle = lora_hub.add_adapter(model, "task", targets=("0",))
    lora_hub.save_adapter(handle, tmp_path / "saved")
    error = refusal(torch.nn.Sequential(torch.nn.LayerNorm(4)), tmp_path / "saved")

    assert error.exit_code == 9
    assert "LayerNorm" in error.message


def test_slices_that_hide_values_are_refused(tmp_path):
    """If B is not zero outside of the slices that the manifest names, cutting it up would drop something: refused."""
    model = models.gpt2()
    handle = lora_hub.add_adapter(model, "task")
    models.randomise(models.adapter_parameters(model))
    lora_hub.save_adapter(handle, tmp_path / "saved")
    handle.remove()
    tensors = load_file(tmp_path / "saved" / WEIGHTS)
    tensors["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"][60, 3] = 1.0  # a row of k
    save_file(tensors, tmp_path / "saved" / WEIGHTS, metadata={"format": "pt"})
    manifest = json.loads((tmp_path / "saved" / MANIFEST).read_text())
    from lora_hub.documents.manifest import FileEntry

    entry = FileEntry.of(WEIGHTS, (tmp_path / "saved" / WEIGHTS).read_bytes())
    manifest["files"][1] |= {"size": entry.size, "sha256": entry.sha256}
    (tmp_path / "saved" / MANIFEST).write_text(json.dumps(manifest))
    error = refusal(model, tmp_path / "saved")

    assert error.exit_code == 8
    assert "not zero outside" in error.message


def test_failure_in_the_middle_leaves_the_model_as_it_was(model, saved, monkeypatch):
    """If attaching fails at the third module, for whatever reason, the first two are undone."""
    from lora_hub.patch import attach

    real, calls = attach.patch_module, []

    def fail_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise MemoryError
        return real(*args)

    outputs, classes = logits(model), [type(module) for module in model.modules()]
    monkeypatch.setattr(attach, "patch_module", fail_at_the_third)
    targets = ("q", "k", "v", "o")

    with pytest.raises(MemoryError):
        lora_hub.add_adapter(model, "task", targets=targets)
    assert torch.equal(logits(model), outputs)
    assert [type(module) for module in model.modules()] == classes
    assert all(p.requires_grad for p in model.parameters())
    assert not any("lora" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_finite_is_decided_as_torch_decides_it(dtype, bad):
    """The check without torch sees NaN and infinity in every dtype, and takes the largest finite number for one."""
    from safetensors.torch import save

    from lora_hub.documents.finite import is_finite
    from lora_hub.documents.safetensors_header import read_header

    limits = torch.finfo(dtype)
    sane = torch.tensor([limits.max, limits.min, limits.tiny, 0.0, -1.5], dtype=dtype)
    insane = sane.clone()
    insane[3] = bad
    found = []
    for tensor in (sane, insane):
        content = save({"x": tensor})
        found.append(is_finite(content, read_header(content)["x"]))

    assert found == [True, False]


@pytest.mark.parametrize("head", ["classifier", "score"])
def test_missing_head_is_refused(head, tmp_path):
    """PEFT adds `classifier` and `score` to every classifier; the one that the model has must have its tensors."""
    model = models.bert() if head == "classifier" else models.llama_classifier()
    targets = ["query"] if head == "classifier" else ["q_proj"]
    models.peft_directory(model, tmp_path / "peft", target_modules=targets, task_type="SEQ_CLS")
    tensors = load_file(tmp_path / "peft" / WEIGHTS)
    pop(tensors, *[key for key in tensors if head in key])
    save_file(tensors, tmp_path / "peft" / WEIGHTS, metadata={"format": "pt"})
    error = refusal(model, tmp_path / "peft")

    assert error.exit_code == 9
    assert f"`{head}` is targeted" in error.message


def test_missing_layer_of_layers_to_transform(tmp_path):
    """`layers_to_transform` says which layers must have tensors."""
    model = models.llama()
    models.peft_directory(model, tmp_path / "peft", target_modules=["q_proj"], layers_to_transform=[0, 1])
    tensors = load_file(tmp_path / "peft" / WEIGHTS)
    pop(tensors, *[key for key in tensors if "layers.1." in key])
    save_file(tensors, tmp_path / "peft" / WEIGHTS, metadata={"format": "pt"})

    assert "layers.1" in refusal(model, tmp_path / "peft").message


def test_slices_of_a_narrower_base(tmp_path):
    """Slices that would fit inside of a wider module are those of another base all the same."""
    model = models.gpt2()
    handle = lora_hub.add_adapter(model, "task", targets=("q",))
    lora_hub.save_adapter(handle, tmp_path / "saved")
    handle.remove()
    from transformers.pytorch_utils import Conv1D

    for block in model.transformer.h:
        block.attn.c_attn = Conv1D(192, 48)
    error = refusal(model, tmp_path / "saved")

    assert error.exit_code == 9
    assert "144" in error.message
