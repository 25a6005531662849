"""Promise 3: the same adapter gives the same outputs in PEFT and here, in both directions."""

import os
import subprocess
import sys
from pathlib import Path

import models
import pytest
import torch
from models import load_in_peft, logits, peft_directory, same_bits, state

import lora_hub

CASES = {
    "all of q, k, v, o": lambda family: {"target_modules": list(family.attention)},
    "q and v": lambda family: {"target_modules": list(family.q_and_v)},
    "attention and MLP": lambda family: {"target_modules": list(family.attention + family.mlp)},
    "rsLoRA": lambda family: {"target_modules": list(family.attention), "use_rslora": True},
    "patterns": lambda family: {
        "target_modules": list(family.attention),
        "rank_pattern": {family.attention[0]: 3, "1.attn.c_proj": 5},
        "alpha_pattern": {family.attention[-1]: 7},
    },
    "regular expression": lambda family: {"target_modules": rf".*({'|'.join(family.q_and_v)})"},
    "all-linear": lambda _: {"target_modules": "all-linear"},
    "one layer": lambda family: {"target_modules": list(family.attention), "layers_to_transform": [1]},
    "excluded": lambda family: {"target_modules": list(family.attention), "exclude_modules": [family.attention[-1]]},
}
HEADS = {
    "bert": (models.bert, "SEQ_CLS", ["query", "value"], ["classifier"]),
    "llama": (models.llama_classifier, "SEQ_CLS", ["q_proj", "v_proj"], ["score"]),
}
TOLERANCE = 1e-5  # float32: PEFT rounds base and delta apart, we accumulate into the base's output


def deviation(ours, theirs):
    """The greatest difference in units of PEFT's greatest output."""
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


@pytest.mark.parametrize("case", CASES)
def test_peft_adapter_applies_here(family, case, tmp_path):
    """What PEFT saved gives PEFT's outputs here, and changes the base's."""
    model = family.build()
    theirs = peft_directory(model, tmp_path / "peft", r=4, lora_alpha=8, **CASES[case](family))
    base = logits(model)
    lora_hub.apply_adapter(model, tmp_path / "peft")

    assert deviation(logits(model), logits(theirs)) <= TOLERANCE
    assert deviation(base, logits(theirs)) > 0.01


@pytest.mark.parametrize("case", CASES)
def test_peft_adapter_survives_our_save(family, case, tmp_path):
    """What PEFT saved, applied and saved here, gives the same outputs in PEFT again, with the tensors bit for bit."""
    model = family.build()
    theirs = peft_directory(model, tmp_path / "peft", r=4, lora_alpha=8, **CASES[case](family))
    lora_hub.save_adapter(lora_hub.apply_adapter(model, tmp_path / "peft", name="task"), tmp_path / "ours")
    lora_hub.adapters(model)["task"].remove()
    again = load_in_peft(model, tmp_path / "ours")

    assert torch.equal(logits(again), logits(theirs))


@pytest.mark.parametrize("name", HEADS)
def test_peft_classifier_applies_here(name, tmp_path):
    """A head of `modules_to_save` replaces the base's while the adapter runs."""
    build, task_type, targets, heads = HEADS[name]
    model = build()
    theirs = peft_directory(
        model, tmp_path / "peft", r=4, target_modules=targets, task_type=task_type, modules_to_save=list(heads)
    )
    base, before = logits(model), state(model)
    adapter = lora_hub.apply_adapter(model, tmp_path / "peft")
    found = logits(model)
    adapter.remove()

    assert deviation(found, logits(theirs)) <= TOLERANCE
    assert torch.equal(logits(model), base)
    assert same_bits(state(model), before)


@pytest.mark.parametrize("name", HEADS)
def test_our_classifier_loads_in_peft(name, tmp_path):
    """A head trained here loads in PEFT with equal outputs."""
    build, task_type, _, heads = HEADS[name]
    model = build()
    adapter = lora_hub.add_adapter(model, "task", r=4, modules_to_save=heads, task_type=task_type)
    models.randomise(models.adapter_parameters(model))
    ours = logits(model)
    lora_hub.save_adapter(adapter, tmp_path / "ours")
    adapter.remove()

    assert deviation(ours, logits(load_in_peft(model, tmp_path / "ours"))) <= TOLERANCE


OURS = {
    "q and v": {},
    "q, k, v and o": {"targets": ("q", "k", "v", "o")},
    "v alone": {"targets": ("v",)},
    "rsLoRA": {"targets": ("q", "v", "o"), "use_rslora": True, "r": 6},
}


@pytest.mark.parametrize("case", OURS)
def test_our_adapter_loads_in_peft(family, case, tmp_path):
    """What is trained here gives the same outputs in PEFT, slices of a fused projection included."""
    model = family.build()
    adapter = lora_hub.add_adapter(model, "task", **OURS[case])
    models.randomise(models.adapter_parameters(model))
    ours = logits(model)
    lora_hub.save_adapter(adapter, tmp_path / "ours")
    adapter.remove()

    assert deviation(ours, logits(load_in_peft(model, tmp_path / "ours"))) <= TOLERANCE
    assert deviation(logits(model), ours) > 0.01


def test_our_mlp_adapter_loads_in_peft(family, tmp_path):
    """Targets may be names of modules, as in PEFT."""
    model = family.build()
    adapter = lora_hub.add_adapter(model, "task", targets=("q", *family.mlp))
    models.randomise(models.adapter_parameters(model))
    ours = logits(model)
    lora_hub.save_adapter(adapter, tmp_path / "ours")
    adapter.remove()

    assert deviation(ours, logits(load_in_peft(model, tmp_path / "ours"))) <= TOLERANCE


@pytest.mark.parametrize("case", OURS)
def test_save_apply_save_is_byte_identical(family, case, tmp_path):
    """The three files of a saved adapter come back bit for bit."""
    model = family.build()
    adapter = lora_hub.add_adapter(model, "task", base_model="org/base", **OURS[case])
    models.randomise(models.adapter_parameters(model))
    lora_hub.save_adapter(adapter, tmp_path / "one")
    adapter.remove()
    lora_hub.save_adapter(lora_hub.apply_adapter(model, tmp_path / "one"), tmp_path / "two")

    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["adapter_config.json", "adapter_model.safetensors", "lora-hub.json"]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_slices_leave_the_other_parts_of_a_fused_projection_alone(tmp_path):
    """With q and v alone on c_attn, k of GPT-2 is computed bit for bit as in the base."""
    model = models.gpt2()
    layer, x = model.transformer.h[0].attn.c_attn, torch.randn(5, 48)
    before = layer(x)
    lora_hub.add_adapter(model, "task", targets=("q", "v"))
    models.randomise(models.adapter_parameters(model))
    after = layer(x)

    assert torch.equal(after[:, 48:96], before[:, 48:96])
    assert not torch.equal(after[:, :48], before[:, :48])
    assert not torch.equal(after[:, 96:], before[:, 96:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strength", [0.01, 0.1])
def test_low_precision_error_is_that_of_peft(dtype, strength, tmp_path):
    """Against float64, our RMS error is at most 1.02 times PEFT's, for deltas of 1% and 10% of W."""
    features, rank = 256, 8
    torch.manual_seed(0)
    weight = torch.randn(features, features) * 0.02
    lora_A, lora_B = torch.randn(rank, features), torch.randn(features, rank)
    # RMS of (alpha/r) B A is sqrt(r) here; scale B to *strength* of W's 0.02.
    lora_B *= strength * 0.02 / rank**0.5
    x = torch.randn(4096, features).to(dtype)
    base = torch.nn.Sequential(torch.nn.Linear(features, features, bias=False)).to(dtype)
    base[0].weight.data.copy_(weight)
    theirs = peft_directory(base, tmp_path / "peft", r=rank, lora_alpha=rank, target_modules=["0"])
    _set(theirs, lora_A, lora_B)
    theirs.save_pretrained(tmp_path / "peft")
    exact = x.double() @ (base[0].weight.double() + lora_B.double() @ lora_A.double()).T
    with torch.no_grad():
        error_theirs = (theirs(x).double() - exact).square().mean().sqrt()
        lora_hub.apply_adapter(base, tmp_path / "peft")
        error_ours = (base(x).double() - exact).square().mean().sqrt()

    assert error_ours <= 1.02 * error_theirs


def _set(peft_model, lora_A, lora_B):
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if "lora_" in name:
                parameter.copy_(lora_A if "lora_A" in name else lora_B)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float64])
def test_stored_dtype_is_kept(stored, tmp_path):
    """An adapter is saved in the dtype it was read in, whatever the base computes in."""
    from safetensors.torch import load_file, save_file

    model = models.llama()
    peft_directory(model, tmp_path / "peft", target_modules=["q_proj"])
    path = tmp_path / "peft" / "adapter_model.safetensors"
    save_file({key: tensor.to(stored) for key, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    adapter = lora_hub.apply_adapter(model, tmp_path / "peft")
    logits(model)
    lora_hub.save_adapter(adapter, tmp_path / "ours")

    assert same_bits(load_file(path), load_file(tmp_path / "ours" / "adapter_model.safetensors"))


def test_bytes_do_not_depend_on_the_hash_seed(tmp_path):
    """Promise 7: in processes with other hash seeds the same adapter is saved as the same bytes."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import models, lora_hub\n"
        "model = models.bert()\n"
        "handle = lora_hub.add_adapter(model, 'task', targets=('q', 'v', 'o'), modules_to_save=('classifier',))\n"
        "models.randomise(models.adapter_parameters(model))\n"
        "lora_hub.save_adapter(handle, sys.argv[2])\n"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", script, str(Path(models.__file__).parent), str(tmp_path / seed)],
            env=os.environ | {"PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        )
    one, two = ({path.name: path.read_bytes() for path in (tmp_path / seed).iterdir()} for seed in ("1", "2"))

    assert one == two
