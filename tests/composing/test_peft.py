"""PEFT as the oracle: what it calls `cat` and `svd` is what ours is, and it loads what was composed."""

import pytest
import torch
from made_adapters import assert_close, delta
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import lora_hub

R, SHAPE = (4, 3), (24, 16)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directories of two adapters that PEFT saved, of different ranks."""
    directories = []
    for number, r in enumerate(R):
        torch.manual_seed(number)
        model = get_peft_model(module(), LoraConfig(r=r, lora_alpha=10, target_modules=["0"]))
        with torch.no_grad():
            model.base_model.model[0].lora_B["default"].weight.normal_()
        directories.append(tmp_path_factory.mktemp(f"peft{number}"))
        model.save_pretrained(str(directories[-1]))
    return directories


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(SHAPE[1], SHAPE[0], bias=False))


def in_peft(directories) -> PeftModel:
    model = PeftModel.from_pretrained(module(), str(directories[0]), adapter_name="a0")
    for number, directory in enumerate(directories[1:], start=1):
        model.load_adapter(str(directory), adapter_name=f"a{number}")
    return model


@pytest.mark.parametrize(("kind", "rank"), [("cat", "exact"), ("svd", "3")])
def test_linear_is_what_peft_computes(saved, kind, rank):
    """`linear` with exact rank is PEFT's `cat`, with a rank its `svd`; which forms the whole matrix."""
    model = in_peft(saved)
    options = {} if kind == "cat" else {"svd_rank": int(rank)}
    model.add_weighted_adapter(["a0", "a1"], [0.7, 0.3], "both", combination_type=kind, **options)
    ours = lora_hub.compose(dict(zip(saved, (0.7, 0.3), strict=True)), rank=rank)

    assert_close(delta(ours.adapter, "0"), model.base_model.model[0].get_delta_weight("both").double(), 1e-5)


@pytest.mark.parametrize("method", ["linear", "ties", "iso"])
def test_peft_loads_what_was_composed(saved, tmp_path, method):
    """The three files are an adapter of PEFT's, whose delta is ours."""
    made = lora_hub.compose(dict.fromkeys(saved, 0.5), method=method, output=tmp_path / "new")
    loaded = in_peft([tmp_path / "new"]).base_model.model[0].get_delta_weight("a0")

    assert_close(loaded.double(), delta(made.adapter, "0"), 1e-6)
