"""An adapter out of a fine-tuned checkpoint: what was merged comes back, and what cannot come is said."""

import copy
import json
import math
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parents[1] / "patch"))

import models

import lora_hub
from lora_hub.adapter_directory import read_adapter
from lora_hub.cli import run
from lora_hub.errors import CompatibilityError, IntegrityError, MalformedError, NotFoundError, UsageError
from lora_hub.tensors import tensor_of

torch.set_num_threads(1)

QUIET = pytest.mark.filterwarnings("ignore")


def save(model, directory, **options):
    """Save *model* as transformers does, without its bar, and return the directory."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(directory, **options)
    return directory


def merged(model, directory, **config):
    """Save *model* with a PEFT adapter merged into it, and return the directory and the merged model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tuned = models.peft_directory(model, directory / "lora", **{"scale": 0.1, **config}).merge_and_unload()
    return save(tuned, directory / "tuned"), tuned


def deltas(directory):
    """B A times the scaling of each module, by path, in float64."""
    adapter = read_adapter(directory)
    return {
        m.path: tensor_of(adapter, m.lora_B).double() @ tensor_of(adapter, m.lora_A).double() * (m.alpha / m.r)
        for m in adapter.layout.modules
    }


def weight(model, path):
    """The weight of the module at *path*, as [out, in]."""
    module = model.get_submodule(path)
    return (module.weight.T if hasattr(module, "nf") else module.weight).detach().double()


def change(model, **deltas_by_end):
    """A copy of *model* in which parameters, named by their ends with `__` for a dot, are changed by a function."""
    changed = copy.deepcopy(model)
    with torch.no_grad():
        for end, function in deltas_by_end.items():
            for name, parameter in changed.named_parameters():
                if name.endswith(end.replace("__", ".")):
                    parameter.copy_(function(parameter))
    return changed


def low_rank(r, scale=0.05):
    """A function that adds a random matrix of rank *r*."""
    generator = torch.Generator().manual_seed(5)

    def add(parameter):
        B, A = (torch.randn(n, r, generator=generator) for n in parameter.shape)
        return parameter + scale * B @ A.T

    return add


@pytest.fixture(params=sorted(models.FAMILIES))
def family(request):
    """One of the three families."""
    return models.FAMILIES[request.param]


@pytest.fixture
def llama(tmp_path):
    """A tiny model, saved."""
    model = models.llama()
    save(model, tmp_path / "base")
    return model


def extract(tmp_path, tuned, **options):
    """Extract what lies in *tuned*, a model or a directory, against the saved base; return the report."""
    directory = tuned if isinstance(tuned, Path) else save(tuned, tmp_path / "tuned")
    return lora_hub.extract_adapter(directory, tmp_path / "base", tmp_path / "new", **options)


def test_a_merged_adapter_comes_back(family, tmp_path):
    """Of what PEFT merged in float32, exactly the adapted modules come back, of their rank, to the rounding of W."""
    model = family.build()
    save(model, tmp_path / "base")
    targets = [*family.q_and_v, family.mlp[-1]]
    tuned, after = merged(
        model, tmp_path, r=4, lora_alpha=8, target_modules=targets, rank_pattern={family.q_and_v[0]: 2}
    )
    report = extract(tmp_path, tuned, rank="exact")
    expected = {module.path: module.r for module in read_adapter(tmp_path / "lora").layout.modules}
    found = deltas(tmp_path / "new")

    assert {module.path: module.r for module in report.modules} == expected
    assert found.keys() == expected.keys()
    for path, delta in found.items():
        wrong = (weight(model, path) + delta - weight(after, path)).abs().max()
        assert wrong <= 4 * torch.finfo(torch.float32).eps * weight(after, path).abs().max()


def test_the_extracted_adapter_does_what_the_fine_tune_does(family, tmp_path):
    """On the base, in lora-hub and in PEFT, the outputs are those of the fine-tuned model."""
    model = family.build()
    save(model, tmp_path / "base")
    tuned, after = merged(model, tmp_path, r=4, lora_alpha=8, target_modules=list(family.attention))
    extract(tmp_path, tuned)
    expected = models.logits(after)
    in_peft = models.logits(models.load_in_peft(model, tmp_path / "new"))
    lora_hub.apply_adapter(model, tmp_path / "new")

    assert torch.allclose(models.logits(model), expected, atol=1e-5)
    assert torch.allclose(in_peft, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_error_in_16_bits_is_stated(tmp_path, dtype):
    """What rounding costs is in the report: the error is that of what lies in the file."""
    model = models.llama().to(dtype)
    save(model, tmp_path / "base")
    tuned, after = merged(model, tmp_path, r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    report = extract(tmp_path, tuned, rank="exact")
    found = deltas(tmp_path / "new")

    assert report.dtype == str(dtype).removeprefix("torch.")
    for module in report.modules:
        delta = weight(after, module.path) - weight(model, module.path)
        error = (delta - found[module.path]).norm() / delta.norm()
        assert module.error == pytest.approx(error.item(), rel=1e-6)
        assert math.sqrt(max(0, 1 - module.kept)) <= module.error <= 0.02
        assert module.r == 4


def test_a_base_in_float32_and_a_fine_tune_in_bfloat16(llama, tmp_path):
    """What was only rounded did not change; and it is said that the dtypes differ."""
    tuned = change(llama, self_attn__q_proj__weight=low_rank(3)).to(torch.bfloat16)
    report = extract(tmp_path, tuned)

    assert [module.path.rpartition(".")[2] for module in report.modules] == ["q_proj", "q_proj"]
    assert report.unchanged == len(llama.state_dict()) - 2
    assert "bfloat16 in the fine-tuned checkpoint and float32 in the base" in report.notes[0]


def test_noise_of_rounding_is_said(tmp_path):
    """Where bfloat16 loses most of a small change, the report says that the difference is mostly rounding."""
    base = models.llama().to(torch.bfloat16)
    save(base, tmp_path / "base")
    report = extract(tmp_path, change(base.float(), q_proj__weight=low_rank(2, scale=1e-5)).to(torch.bfloat16))

    assert any("most of the difference is what rounding to bfloat16 makes" in note for note in report.notes)


def test_identical_checkpoints_are_refused(llama, tmp_path):
    """Where nothing changed there is no adapter, and no directory."""
    with pytest.raises(CompatibilityError, match="nothing changed: all 21 tensors are the same"):
        extract(tmp_path, llama)

    assert not (tmp_path / "new").exists()


def test_what_lora_cannot_say_is_refused(llama, tmp_path):
    """Norms alone make no adapter."""
    with pytest.raises(CompatibilityError, match=r"only others did \(model.norm.weight\)"):
        extract(tmp_path, change(llama, model__norm__weight=lambda w: w + 1))


def test_what_is_left_out_is_listed(tmp_path):
    """Norms, biases and embeddings that changed are in the report with their size, and not in the file."""
    model = models.bert()
    save(model, tmp_path / "base")
    tuned = change(
        model,
        layer__0__attention__self__query__weight=low_rank(2),
        layer__0__attention__self__query__bias=lambda b: b + 0.1,
        word_embeddings__weight=lambda w: 1.5 * w,
        embeddings__LayerNorm__weight=lambda w: 2 * w,
    )
    report = extract(tmp_path, tuned)
    left_out = {one.name.removeprefix("bert."): one.change for one in report.left_out}

    assert left_out == {
        "embeddings.LayerNorm.weight": pytest.approx(1.0),
        "embeddings.word_embeddings.weight": pytest.approx(0.5),
        "encoder.layer.0.attention.self.query.bias": math.inf,
    }
    assert len(read_adapter(tmp_path / "new").tensors) == 2
    assert len(report.modules) == 1
    assert json.loads(json.dumps(report.to_document(), allow_nan=False))["left_out"][2]["change"] is None


@QUIET
def test_modules_are_taken_as_a_whole_if_asked(llama, tmp_path):
    """`full` stores embeddings, output and norm as PEFT's `modules_to_save`: the outputs are the fine-tune's."""
    tuned = change(
        llama,
        self_attn__v_proj__weight=low_rank(2),
        lm_head__weight=lambda w: w + 0.01,
        embed_tokens__weight=lambda w: w - 0.01,
        model__norm__weight=lambda w: w * 1.1,
    )
    report = extract(tmp_path, tuned, full=("lm_head", "embed_tokens", "model.norm"))
    adapter = read_adapter(tmp_path / "new")
    expected = models.logits(tuned)
    in_peft = models.logits(models.load_in_peft(llama, tmp_path / "new"))
    lora_hub.apply_adapter(llama, tmp_path / "new")

    assert report.full == ("lm_head", "model.embed_tokens", "model.norm")
    assert not report.left_out
    assert adapter.config.modules_to_save == report.full
    assert torch.allclose(models.logits(llama), expected, atol=1e-5)
    assert torch.allclose(in_peft, expected, atol=1e-5)


def test_a_head_that_the_base_lacks(tmp_path):
    """A classifier on a backbone that was saved alone: paths are the classifier's, its new head comes if asked."""
    model = models.bert()
    save(model.bert, tmp_path / "base")
    tuned = save(change(model, attention__self__value__weight=low_rank(2)), tmp_path / "tuned")
    report = extract(tmp_path, tuned)
    whole = lora_hub.extract_adapter(tuned, tmp_path / "base", tmp_path / "whole", full=("classifier",))

    assert [one.name for one in report.left_out] == ["classifier.bias", "classifier.weight"]
    assert {module.path for module in report.modules} == {
        f"bert.encoder.layer.{layer}.attention.self.value" for layer in (0, 1)
    }
    assert whole.full == ("classifier",)
    assert set(read_adapter(tmp_path / "whole").layout.heads["classifier"]) == {"weight", "bias"}


def test_buffers_and_heads_that_only_the_base_has_are_noted(tmp_path):
    """GPT-2 on the Hub has its causal masks and no prefix; a classifier has no `lm_head`."""
    gpt2, llama, classifier = models.gpt2(), models.llama(), models.llama_classifier()
    save(gpt2.transformer, tmp_path / "base")
    rewrite(tmp_path / "base", lambda t: t | {f"h.{layer}.attn.bias": torch.ones(1, 1, 4, 4) for layer in (0, 1)})
    report = extract(tmp_path, change(gpt2, c_attn__weight=low_rank(2)))
    save(llama, tmp_path / "llama")
    classifier.model.load_state_dict(llama.model.state_dict())
    tuned = save(change(classifier, q_proj__weight=low_rank(2)), tmp_path / "classifier")
    other = lora_hub.extract_adapter(tuned, tmp_path / "llama", tmp_path / "other")

    assert len(report.modules) == len(other.modules) == 2
    assert report.notes == ("the base has `h.0.attn.bias` and 1 more, which the fine-tuned model does not read",)
    assert other.notes == ("the base has `lm_head.weight`, which the fine-tuned model does not read",)


def test_a_fine_tune_of_fewer_layers_is_refused(llama, tmp_path):
    """No adapter takes a layer out of the base, though the smaller model has no use for it."""
    tuned = change(llama, q_proj__weight=low_rank(2))
    del tuned.model.layers[1]
    tuned.config.num_hidden_layers = 1

    with pytest.raises(CompatibilityError, match=r"no tensor `model\.layers\.1.*9 are missing"):
        extract(tmp_path, tuned)


def test_a_tied_output_is_no_tensor_of_its_own(tmp_path):
    """GPT-2 ties output and embeddings: a change of them is one entry that is left out."""
    model = models.gpt2()
    save(model, tmp_path / "base")
    report = extract(tmp_path, change(model, c_attn__weight=low_rank(2), wte__weight=lambda w: w * 1.1))

    assert [one.name for one in report.left_out] == ["transformer.wte.weight"]


@QUIET
@pytest.mark.parametrize("asked", ["wte", "lm_head"])
def test_tied_modules_are_taken_together(tmp_path, asked):
    """PEFT would replace the one and leave the other as it was; merged, they are one tensor again."""
    model = models.gpt2()
    save(model, tmp_path / "base")
    tuned = change(model, c_attn__weight=low_rank(2), wte__weight=lambda w: w * 1.1 + 0.1)
    report = extract(tmp_path, tuned, full=(asked,))
    expected = models.logits(tuned)
    in_peft = models.logits(models.load_in_peft(copy.deepcopy(model), tmp_path / "new"))
    lora_hub.merge_checkpoint(tmp_path / "base", {tmp_path / "new": 1.0}, tmp_path / "merged")

    assert sorted(report.full) == ["lm_head", "transformer.wte"]
    assert torch.allclose(in_peft, expected, atol=1e-5)
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == model.state_dict().keys() - {"lm_head.weight"}


def test_a_module_that_is_not_there_cannot_be_taken_as_a_whole(llama, tmp_path):
    """A name that is misspelt is named."""
    with pytest.raises(NotFoundError, match="no module `lmhead`"):
        extract(tmp_path, change(llama, q_proj__weight=low_rank(2)), full=("lmhead",))


def rewrite(directory, function):
    """Change the tensors of a saved checkpoint by *function*, which gets and returns them by name."""
    path = directory / "model.safetensors"
    save_file(function(load_file(path)), path, metadata={"format": "pt"})
    return directory


Q = "model.layers.0.self_attn.q_proj.weight"
MISFITS = {
    "a tensor is missing": (lambda t: {k: v for k, v in t.items() if k != Q}, "no tensor `model.layers.0"),
    "a shape differs": (lambda t: t | {Q: t[Q][:-1].clone()}, r"shape \[63, 48\], in the base \[64, 48\]"),
    "the vocabulary was resized": (
        lambda t: t | {"lm_head.weight": t["lm_head.weight"][:-1].clone()}, "the vocabulary was resized",
    ),
    "it is quantised": (lambda t: t | {Q: t[Q].to(torch.int8)}, "stored as I8, in the base as F32"),
    "nothing is alike": (lambda t: {f"x{n}": v for n, v in enumerate(t.values())}, "no tensor in common"),
}  # fmt: skip


@pytest.mark.parametrize("misfit", sorted(MISFITS))
def test_checkpoints_that_do_not_fit_are_refused(llama, tmp_path, misfit):
    """Another architecture, another vocabulary, a part of a checkpoint: error 9 that names the tensor."""
    function, said = MISFITS[misfit]
    tuned = rewrite(save(change(llama, k_proj__weight=low_rank(1)), tmp_path / "tuned"), function)
    with pytest.raises(CompatibilityError, match=said):
        extract(tmp_path, tuned)

    assert not (tmp_path / "new").exists()


def test_another_model_type_is_refused(llama, tmp_path):
    """A BERT is no fine-tune of a LLaMA."""
    with pytest.raises(CompatibilityError, match='the fine-tuned checkpoint is a `"bert"`'):
        extract(tmp_path, models.bert())


def test_nan_is_refused(llama, tmp_path):
    """A diverged training is named, and no adapter is written."""
    with pytest.raises(MalformedError, match=r"q_proj\.weight` holds NaN"):
        extract(tmp_path, change(llama, layers__1__self_attn__q_proj__weight=lambda w: w / 0 * 0))

    assert not (tmp_path / "new").exists()


def test_a_checkpoint_that_changes_meanwhile_is_found_out(llama, tmp_path):
    """It is read several times: what was compared and what was decomposed would be two matrices."""
    tuned = save(change(llama, q_proj__weight=low_rank(2)), tmp_path / "tuned")

    def touch(pairs, _label):
        for pair in pairs:
            yield pair
            (tuned / "model.safetensors").touch()

    with pytest.raises(IntegrityError, match=r"model\.safetensors` was changed since"):
        lora_hub.extract_adapter(tuned, tmp_path / "base", tmp_path / "new", progress=touch)


def test_what_is_the_same_is_unchanged_whatever_it_is(llama, tmp_path):
    """NaN, integers and empty tensors are no difference; 0 and -0 are none either."""
    odd = {
        "count": torch.tensor([3, 4]), "none": torch.empty(0, 3), "nan": torch.tensor([math.nan, 0.0]),
        "zero": torch.tensor(0.0),
    }  # fmt: skip
    tuned = save(change(llama, q_proj__weight=low_rank(2)), tmp_path / "tuned")
    rewrite(tuned, lambda t: t | odd | {"zero": torch.tensor(-0.0)})
    rewrite(tmp_path / "base", lambda t: t | odd)
    report = extract(tmp_path, tuned)

    assert report.unchanged == 21 - 2 + 4
    assert not report.left_out


def test_changed_integers_are_refused(llama, tmp_path):
    """What is quantised and differs cannot be told in LoRA."""
    tuned = save(change(llama, q_proj__weight=low_rank(2)), tmp_path / "tuned")
    rewrite(tuned, lambda t: t | {"codes": torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)})
    rewrite(tmp_path / "base", lambda t: t | {"codes": torch.tensor([[1, 2], [3, 5]], dtype=torch.uint8)})
    with pytest.raises(CompatibilityError, match="`codes` changed and is stored as U8"):
        extract(tmp_path, tuned)


def test_a_resized_vocabulary_is_taken_as_a_whole_if_asked(llama, tmp_path):
    """New tokens come with their whole embeddings."""
    tuned = change(llama, q_proj__weight=low_rank(2))
    tuned.resize_token_embeddings(models.VOCABULARY + 4, mean_resizing=False)
    report = extract(tmp_path, tuned, full=("embed_tokens", "lm_head"))
    adapter = read_adapter(tmp_path / "new")

    assert report.full == ("lm_head", "model.embed_tokens")
    assert {adapter.tensors[key].shape for h in adapter.layout.heads.values() for key in h.values()} == {(65, 48)}


def test_a_model_that_nobody_knows_is_refused(llama, tmp_path):
    """Where neither transformers nor a plugin says how a weight lies, nothing is guessed."""
    tuned = save(change(llama, gate_proj__weight=low_rank(2)), tmp_path / "tuned")
    for directory in (tuned, tmp_path / "base"):
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"architectures": ["X"], "model_type": "x"}))
        rewrite(directory, lambda t: {k.replace("gate_proj", "strange"): v for k, v in t.items()})
    with pytest.raises(CompatibilityError, match="nobody says whether its weight lies"):
        extract(tmp_path, tuned)


def test_shards_make_no_difference(llama, tmp_path):
    """In one file or in many, the bytes of the adapter are the same."""
    tuned = change(llama, self_attn__o_proj__weight=low_rank(3))
    extract(tmp_path, tuned)
    save(tuned, tmp_path / "shards", max_shard_size="20KB")
    lora_hub.extract_adapter(tmp_path / "shards", tmp_path / "base", tmp_path / "other")
    files = [sorted(path.read_bytes() for path in (tmp_path / name).iterdir()) for name in ("new", "other")]

    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    assert files[0] == files[1]


def test_threads_make_no_difference(llama, tmp_path):
    """The same bytes on one and on two threads."""
    tuned = save(change(llama, mlp__up_proj__weight=low_rank(40)), tmp_path / "tuned")
    contents = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        lora_hub.extract_adapter(tuned, tmp_path / "base", tmp_path / str(threads), rank="5")
        contents.append((tmp_path / str(threads) / "adapter_model.safetensors").read_bytes())
    torch.set_num_threads(1)

    assert contents[0] == contents[1]


class Spectrum(torch.nn.Module):
    """What a pair of checkpoints is made of whose difference has known singular values."""

    shape = (400, 320)

    @classmethod
    def write(cls, tmp_path, values):
        """Write base and fine-tune of a LLaMA of one layer, whose `down_proj` differs by *values*."""
        model = models._seeded(
            models.LlamaForCausalLM,
            models.LlamaConfig(
                hidden_size=400, intermediate_size=320, num_hidden_layers=1, num_attention_heads=4,
                num_key_value_heads=2, head_dim=4, **models.TOKENS,
            ),
        ).double()  # fmt: skip
        save(model, tmp_path / "base")
        generator = torch.Generator().manual_seed(1)
        U, V = (
            torch.linalg.qr(torch.randn(n, len(values), dtype=torch.float64, generator=generator))[0] for n in cls.shape
        )
        delta = U * torch.tensor(values, dtype=torch.float64) @ V.T
        return change(model, down_proj__weight=lambda w: w + delta)


GEOMETRIC = [2.0**-n for n in range(120)]


@pytest.mark.parametrize(
    ("rank", "values", "r"),
    [
        ("8", GEOMETRIC, 8),
        ("max:20", GEOMETRIC[:5], 5),
        ("20", GEOMETRIC[:5], 5),
        ("exact", GEOMETRIC[:12], 12),
        ("exact", [1.0] * 100, 100),
        ("energy:0.74", GEOMETRIC, 1),
        ("energy:0.93", GEOMETRIC, 2),
        ("energy:0.5", [1.0] * 100, 50),
        ("energy:0.95", [1.0] * 100, 95),
        ("ratio:9", GEOMETRIC, 4),
        ("ratio:1.5", [1.0] * 70 + [0.5] * 20, 70),
        ("8", [1 / (n + 1) for n in range(300)], 8),
    ],
)
def test_the_rank_is_what_was_asked(tmp_path, rank, values, r):
    """Of known singular values, the ones that are wanted are kept, and what is kept is stated exactly."""
    (module,) = extract(tmp_path, Spectrum.write(tmp_path, values), rank=rank).modules
    squares = torch.tensor(values, dtype=torch.float64).square()
    (delta,) = deltas(tmp_path / "new").values()
    best = (squares[:r].sum() / squares.sum()).item()

    assert module.r == r
    assert delta.norm().square().item() / squares.sum().item() == pytest.approx(module.kept, rel=1e-9)
    assert best * (1 - 2e-3) <= module.kept <= best * (1 + 1e-9)
    assert module.error == pytest.approx(math.sqrt(max(1 - module.kept, 0)), abs=1e-7)


@pytest.mark.parametrize("options", [{"rank": "fit:vllm"}, {"rank": "0"}, {"rank": "many"}, {"dtype": "int8"}])
def test_a_call_that_makes_no_sense_is_refused(llama, tmp_path, options):
    """No such rank, no such dtype."""
    with pytest.raises(UsageError):
        extract(tmp_path, change(llama, q_proj__weight=low_rank(1)), **options)


def test_what_lies_in_the_output_is_kept(llama, tmp_path):
    """A directory that is not empty is refused before anything is read."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "mine").write_text("mine")
    with pytest.raises(UsageError, match="holds something already"):
        lora_hub.extract_adapter(tmp_path / "none", tmp_path / "base", tmp_path / "new")

    assert [path.name for path in (tmp_path / "new").iterdir()] == ["mine"]


def test_a_dtype_that_cannot_hold_the_numbers_is_refused(tmp_path):
    """float16 ends at 65,504."""
    tuned = Spectrum.write(tmp_path, [1e12])
    with pytest.raises(UsageError, match="float16 cannot hold"):
        extract(tmp_path, tuned, dtype="float16")


def test_the_command_prints_a_table(llama, tmp_path, capsys):
    """Each module with its rank and error, what was left out, and one line at the end."""
    save(change(llama, q_proj__weight=low_rank(2), model__norm__weight=lambda w: w + 1), tmp_path / "tuned")
    words = ["extract", str(tmp_path / "tuned"), "--base", str(tmp_path / "base"), "-o", str(tmp_path / "new")]
    code = run(words)
    out = capsys.readouterr().out

    assert code == 0
    assert "model.layers.0.self_attn.q_proj  64 x 48  2" in out
    assert "model.norm.weight" in out.partition("CHANGED, LEFT OUT")[2]
    assert "2 modules in float32, 18 tensors unchanged" in out.splitlines()[-1]


def test_the_command_prints_json(llama, tmp_path, capsys):
    """The report as JSON, and nothing else on stdout; errors by their exit codes."""
    save(change(llama, q_proj__weight=low_rank(2)), tmp_path / "tuned")
    words = [
        "extract",
        str(tmp_path / "tuned"),
        "--base",
        str(tmp_path / "base"),
        "-o",
        str(tmp_path / "new"),
        "--json",
    ]
    codes = [run(words), run(words)]
    out, err = capsys.readouterr()

    assert codes == [0, 2]
    assert [module["r"] for module in json.loads(out)["modules"]] == [2, 2]
    assert json.loads(err)["error"]["exit_code"] == 2
