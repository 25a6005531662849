"""Rules whose findings fail nothing by themselves: each finds what it is for, and nothing in an adapter without it."""

import pytest
from adapter_files import HIDDEN, adapter_files, lora_key, module_paths, tensor
from base_models import adapter_of, llama

import lora_hub


def with_head():
    """Return an adapter that replaces the output."""
    files = adapter_files(modules_to_save=["lm_head"])
    files.tensors["base_model.model.lm_head.weight"] = tensor(16, HIDDEN, seed=5)
    return files


def of_two_dtypes():
    """Return an adapter whose first B is in bfloat16."""
    files = adapter_files()
    key = lora_key(module_paths()[0], "B")
    files.tensors[key] = tensor(*files.tensors[key].shape, seed=5, dtype="BF16")
    return files


# By code: an adapter, and a base if the rule is about one.
NOTED = {
    "LH018": (adapter_files(next_year=None), None),
    "LH116": (of_two_dtypes(), None),
    "LH212": (adapter_files(), llama(quantization_config={"quant_method": "gptq"})),
    "LH214": (adapter_of({"model.layers.0.self_attn.q_proj": (HIDDEN, HIDDEN)}, r=200), llama(1)),
    "LH301": (adapter_files(use_rslora=True), None),
    "LH311": (with_head(), None),
    "LH312": (adapter_files(alpha_pattern={"v_proj": 8}), None),
    "LH313": (adapter_of({"lm_head": (16, HIDDEN)}), None),
    "LH320": (adapter_files(use_rslora=True), None),
    "LH321": (with_head(), None),
}


@pytest.mark.parametrize("code", NOTED)
def test_what_is_worth_a_note_is_noted(tmp_path, code):
    """By the rule that it is for, and not in an adapter without it."""
    files, base = NOTED[code]
    found = lora_hub.check(files.write(tmp_path / "a"), base and base.write(tmp_path / "base"))
    plain = lora_hub.check(adapter_files().write(tmp_path / "plain"), llama().write(tmp_path / "own"))

    assert code in {finding.rule.code for finding in found.findings}
    assert code not in {finding.rule.code for finding in plain.findings}


def test_a_file_that_is_not_published_is_named(tmp_path):
    """A tokenizer in the directory does not come along."""
    directory = adapter_files().write(tmp_path / "a")
    (directory / "tokenizer.json").write_bytes(b"{}")
    found = {finding.rule.code: finding for finding in lora_hub.check(directory).findings}

    assert found["LH408"].file == "tokenizer.json"


def test_a_directory_in_place_of_a_file_is_unreadable(tmp_path):
    """What is no regular file is an error of the report, and is not opened."""
    directory = adapter_files().write(tmp_path / "a")
    (directory / "adapter_config.json").unlink()
    (directory / "adapter_config.json").mkdir()

    assert "LH003" in {finding.rule.code for finding in lora_hub.check(directory).findings}


@pytest.mark.parametrize("changes", [{"use_rslora": True}, {"alpha_pattern": {"v_proj": 8}}])
def test_the_hint_about_llama_cpp_does_what_it_says(cli, tmp_path, changes):
    """What the hint's command writes is scaled alike everywhere."""
    directory = adapter_files(**changes).write(tmp_path / "a")
    (hint,) = (f.hint for f in lora_hub.check(directory).findings if f.rule.code == "LH320")
    words = hint.split("`")[1].replace("REF", str(directory)).split()[1:]
    done = cli(*words, "-o", tmp_path / "out")

    assert done.code == 0, done.err
    assert "LH320" not in {finding.rule.code for finding in lora_hub.check(tmp_path / "out").findings}
