"""What is recorded with an adapter comes again with the same base and adapter, and with no other."""

import copy
import json

import models
import pytest
import torch
from trained import add_trained

import lora_hub
from lora_hub.adapter_directory import read_adapter
from lora_hub.documents.manifest import MANIFEST_NAME, Manifest
from lora_hub.errors import CompatibilityError, StateError, UsageError
from lora_hub.replaying.precision import TOLERANCES, dtype_of, tolerance
from lora_hub.replaying.verdict import Verdict
from lora_hub.replays import Base, findings_of

FAMILIES = ["bert", "gpt2", "llama", "llama_classifier"]


def manifest(directory):
    return Manifest.parse((directory / MANIFEST_NAME).read_bytes())


@pytest.fixture
def model():
    """The tiny LLaMA, bare."""
    return models.llama()


@pytest.fixture
def recorded(model, saved):
    """The directory of an adapter for the tiny LLaMA, with golden outputs."""
    directory = saved(model)
    lora_hub.record_golden(model, directory)
    return directory


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replay_of_the_same_passes(family, saved):
    """With the same base and the same adapter, a replay passes, whatever kind of output the model gives."""
    model = getattr(models, family)()
    directory = saved(model)
    golden = lora_hub.record_golden(model, directory)
    replayed = lora_hub.replay(getattr(models, family)(), directory)

    assert golden.output == ("classes" if "classif" in family or family == "bert" else "logits")
    assert replayed.verdict is Verdict.PASSED
    assert replayed.adapted == pytest.approx(0.0, abs=1e-6)
    assert findings_of(replayed) == ()


def test_recording_changes_the_manifest_alone(model, saved):
    """Config, weights and what else the manifest says stay as they were, and what is unknown in it stays too."""
    directory = saved(model)
    draft = json.loads((directory / MANIFEST_NAME).read_text())
    (directory / MANIFEST_NAME).write_text(json.dumps(draft | {"x-note": {"kept": True}}))
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    golden = lora_hub.record_golden(model, directory)
    after = {path.name: path.read_bytes() for path in directory.iterdir()}
    written = json.loads(after.pop(MANIFEST_NAME))

    assert after == {name: content for name, content in before.items() if name != MANIFEST_NAME}
    assert written == draft | {"x-note": {"kept": True}, "golden": golden.to_json()}
    assert manifest(directory).golden == golden


def test_recording_twice_writes_the_same_bytes(model, recorded):
    """Same model, same adapter, same bytes; recording again replaces what was recorded."""
    first = (recorded / MANIFEST_NAME).read_bytes()
    lora_hub.record_golden(model, recorded, [[5]])
    second = (recorded / MANIFEST_NAME).read_bytes()
    lora_hub.record_golden(model, recorded)

    assert second != first
    assert (recorded / MANIFEST_NAME).read_bytes() == first


def test_a_peft_directory_gets_a_manifest(model, recorded):
    """Where no manifest lies, the one that is derived is written, with what was recorded."""
    (recorded / MANIFEST_NAME).unlink()
    lora_hub.record_golden(model, recorded)

    assert lora_hub.replay(model, recorded).verdict is Verdict.PASSED


def test_what_is_recorded_is_small(model, saved):
    """The largest golden outputs there can be take less than 8 kB of the manifest."""
    directory = saved(model)
    without = len((directory / MANIFEST_NAME).read_bytes())
    lora_hub.record_golden(model, directory, [[60 - i for i in range(16)]] * 4)
    golden = manifest(directory).golden

    assert [len(case.values) for case in golden.cases] == [12] * 4
    assert len((directory / MANIFEST_NAME).read_bytes()) - without < 8_000


def test_recording_and_replaying_leave_the_model_alone(model, saved):
    """State, mode of training, other adapters and their activity are as they were."""
    directory = saved(model)
    other = add_trained(model, "other")
    model.train()
    ids = torch.tensor([[1, 5, 9]])
    before, weights = model(input_ids=ids).logits, copy.deepcopy(models.state(model))
    lora_hub.record_golden(model, directory)
    replayed = lora_hub.replay(model, directory)

    assert replayed.verdict is Verdict.PASSED
    assert model.training
    assert list(lora_hub.adapters(model)) == ["other"]
    assert other.active
    assert torch.equal(model(input_ids=ids).logits, before)
    assert all(torch.equal(weights[key], value) for key, value in models.state(model).items())


def test_other_adapters_are_off_while_it_runs(model, recorded):
    """An active adapter of another task changes nothing of a replay."""
    add_trained(model, "other", size=0.5)

    assert lora_hub.replay(model, recorded).verdict is Verdict.PASSED


def test_a_merged_adapter_stands_in_the_way(model, recorded, saved, tmp_path):
    """With another one merged, the bare base is not there to run: the hint is to unmerge it."""
    other = lora_hub.apply_adapter(model, saved(model, tmp_path / "other"))
    other.merge()

    with pytest.raises(StateError):
        lora_hub.replay(model, recorded)


def change(directory, edit):
    """Edit the tensors in *directory*, and make the manifest agree, as an attacker or a careless script would."""
    from safetensors.torch import load_file, save_file

    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    golden = manifest(directory).golden
    save_file(tensors, path, metadata={"format": "pt"})
    (directory / MANIFEST_NAME).unlink()
    adapter = read_adapter(directory)
    draft = json.loads(adapter.manifest.to_bytes())
    (directory / MANIFEST_NAME).write_text(json.dumps(draft | {"golden": golden.to_json()}))


def swap_sides_of_two_layers(tensors):
    first, second = (k for k in sorted(tensors) if "q_proj.lora_B" in k)
    tensors[first], tensors[second] = tensors[second].clone(), tensors[first].clone()


def zero_one_module(tensors):
    tensors[min(k for k in tensors if "lora_B" in k)].zero_()


def grow_by_one_percent(tensors):
    for key in tensors:
        if "lora_B" in key:
            tensors[key].mul_(1.01)


@pytest.mark.parametrize("edit", [swap_sides_of_two_layers, zero_one_module, grow_by_one_percent])
def test_another_adapter_fails(model, recorded, edit):
    """Exchanged layers, a dead module, a scaling that is 1% off: the base is the same, the adapter is not."""
    change(recorded, edit)
    replayed = lora_hub.replay(model, recorded)
    (finding,) = findings_of(replayed)

    assert replayed.verdict is Verdict.FAILED
    assert replayed.base <= TOLERANCES["float32"] < replayed.adapted
    assert (finding.rule.code, str(finding.severity)) == ("LH901", "error")


def test_another_base_is_told_apart_from_another_adapter(model, recorded):
    """A fine-tuned sibling of the base gives other outputs on its own: exit code 9, not 8."""
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight.mul_(1.05)
    replayed = lora_hub.replay(model, recorded)
    (finding,) = findings_of(replayed)

    assert replayed.verdict is Verdict.OTHER_BASE
    assert finding.rule.code == "LH902"
    assert finding.rule.concerns_base


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_narrower_dtype_passes_if_the_effect_is_larger(saved, dtype):
    """In half precision the same adapter passes, within the tolerance of that dtype, if it does enough."""
    model = models.llama(initializer_range=0.2)
    directory = saved(model, size=0.1)
    lora_hub.record_golden(model, directory)
    replayed = lora_hub.replay(models.llama(initializer_range=0.2).to(getattr(torch, dtype)), directory)

    assert replayed.verdict is Verdict.PASSED
    assert (replayed.dtype, replayed.tolerance) == (dtype, TOLERANCES[dtype])
    assert replayed.adapted > TOLERANCES["float32"]


def test_a_dtype_that_cannot_tell_is_undecided(saved):
    """If the bare base would be as close as the noise, nothing is claimed: a note, no error."""
    model = models.llama(initializer_range=0.2)
    directory = saved(model, size=0.01)
    lora_hub.record_golden(model, directory)
    exact = lora_hub.replay(model, directory)
    replayed = lora_hub.replay(model.to(torch.bfloat16), directory)
    (finding,) = findings_of(replayed)

    assert exact.verdict is Verdict.PASSED
    assert replayed.verdict is Verdict.UNDECIDED
    assert (finding.rule.code, str(finding.severity)) == ("LH903", "note")


def test_nan_is_no_match(model, recorded):
    """A base that gives NaN is another one."""
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))

    assert lora_hub.replay(model, recorded).verdict is Verdict.OTHER_BASE


def test_without_golden_outputs_there_is_nothing_to_replay(model, saved):
    """A manifest without golden outputs is a note."""
    (finding,) = findings_of(lora_hub.replay(model, saved(model)))

    assert (finding.rule.code, str(finding.severity)) == ("LH904", "note")


def test_a_head_that_the_adapter_brings_is_on_in_both(saved):
    """A classifier whose head is random in the base replays the same: the base is judged with the adapter's head."""
    model = models.llama_classifier()
    directory = saved(model, modules_to_save=["score"])
    lora_hub.record_golden(model, directory)
    other = models.llama_classifier()
    with torch.no_grad():
        other.score.weight.normal_()

    assert lora_hub.replay(other, directory).verdict is Verdict.PASSED


def test_an_untrained_adapter_cannot_be_recorded(model, tmp_path):
    """With B = 0 a replay could never fail, so nothing is recorded."""
    handle = lora_hub.add_adapter(model, "task", targets=("q", "v"))
    directory = lora_hub.save_adapter(handle, tmp_path / "out")
    handle.remove()
    before = (directory / MANIFEST_NAME).read_bytes()
    with pytest.raises(UsageError, match="changes none"):
        lora_hub.record_golden(model, directory)

    assert (directory / MANIFEST_NAME).read_bytes() == before


def test_what_is_published_keeps_its_manifest(model, recorded, tmp_path):
    """The manifest of a version is its identity: nothing is recorded into it. It replays, by reference."""
    registry = str(tmp_path / "registry")
    lora_hub.push(recorded, "org/task@1.0.0", registry=registry)
    pulled = lora_hub.pull("org/task@1.0.0", registry=registry)
    with pytest.raises(StateError, match="published"):
        lora_hub.record_golden(model, pulled.path)

    assert lora_hub.replay(model, "org/task@1.0.0", registry=registry).verdict is Verdict.PASSED


def test_what_is_signed_keeps_its_manifest(model, saved):
    """A signature beside the draft is over its bytes: nothing is recorded into it."""
    directory = saved(model)
    (directory / "model.sig").write_text("{}")

    with pytest.raises(StateError, match="signed"):
        lora_hub.record_golden(model, directory)


def test_a_quantised_base_decides_nothing(model, recorded):
    """On a quantised base nothing is recorded, and a replay is a note whatever it finds."""
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    replayed = lora_hub.replay(model, recorded)
    with pytest.raises(CompatibilityError, match="quantised"):
        lora_hub.record_golden(model, recorded)

    assert (replayed.verdict, replayed.dtype) == (Verdict.UNDECIDED, "quantised")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "expected 1 to 4"),
        ("a text", "expected 1 to 4"),
        ([[1]] * 5, "expected 1 to 4"),
        ([[]], "no sequence of 1 to 16"),
        ([[1] * 17], "no sequence of 1 to 16"),
        ([[61]], "ids below 61"),
        ([[-1]], "ids below 61"),
        ([[True]], "ids below 61"),
        ([[1.0]], "ids below 61"),
        (["a text"], "is a text"),
    ],
)
def test_inputs_that_are_none_are_refused(model, saved, inputs, message):
    """Too many, too long, unknown ids, a text without a tokenizer: a usage error that says what was expected."""
    with pytest.raises(UsageError, match=message):
        lora_hub.record_golden(model, saved(model), inputs)


def test_texts_are_read_by_the_tokenizer(model, saved):
    """Of a text, the first 16 tokens are recorded."""
    golden = lora_hub.record_golden(
        model, saved(model), ["abc"], tokenizer=lambda text: {"input_ids": [ord(c) % 61 for c in text * 10]}
    )

    assert golden.cases[0].tokens == tuple(ord(c) % 61 for c in ("abc" * 10)[:16])


def test_a_model_without_tokens_is_refused(saved, tmp_path):
    """A model that reads no tokens has no golden outputs: the error says which models have."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 6))
    handle = lora_hub.add_adapter(model, "task", targets=("0",))
    directory = lora_hub.save_adapter(handle, tmp_path / "out")
    handle.remove()

    with pytest.raises(CompatibilityError, match="reads tokens"):
        lora_hub.record_golden(model, directory)


def test_golden_inputs_of_another_vocabulary_do_not_fit(model, recorded):
    """Token ids beyond the vocabulary of the base are no crash of an embedding."""
    document = json.loads((recorded / MANIFEST_NAME).read_text())
    document["golden"]["cases"][0]["tokens"] = [2**31 - 1]
    (recorded / MANIFEST_NAME).write_text(json.dumps(document))

    with pytest.raises(CompatibilityError, match="not for this model"):
        lora_hub.replay(model, recorded)


def test_an_index_beyond_the_output_does_not_fit(model, recorded):
    """Recorded places that the output does not have are no crash."""
    document = json.loads((recorded / MANIFEST_NAME).read_text())
    document["golden"]["cases"][0]["values"][0][0] = 2**31 - 1
    (recorded / MANIFEST_NAME).write_text(json.dumps(document))

    with pytest.raises(CompatibilityError, match="load it with the head"):
        lora_hub.replay(model, recorded)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_base_on_disk_is_loaded_as_it_was_recorded(family, saved, tmp_path):
    """The kind of output that was recorded says how the base is loaded; no tokenizer is needed."""
    model = getattr(models, family)()
    model.save_pretrained(tmp_path / "base")
    directory = saved(model)
    lora_hub.record_golden(model, directory)

    assert Base(str(tmp_path / "base")).findings(read_adapter(directory)) == ()


def test_an_encoder_on_disk_needs_no_pooler(saved, tmp_path):
    """The last layer of an encoder is compared; a pooler that the checkpoint lacks has no say in it."""
    model = models.bert().bert
    model.pooler = None
    model.save_pretrained(tmp_path / "base")
    directory = saved(model)
    golden = lora_hub.record_golden(model, directory)

    assert golden.output == "hidden"
    assert Base(str(tmp_path / "base")).findings(read_adapter(directory)) == ()


def test_the_narrowest_dtype_counts():
    """Norms in float32 do not make a bfloat16 model exact; a dtype without a table is quantised."""
    model = models.llama().to(torch.bfloat16)
    model.model.norm.float()
    packed = torch.nn.Module()
    packed.weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False)

    assert dtype_of(model) == "bfloat16"
    assert dtype_of(packed) == "quantised"


@pytest.mark.parametrize(
    ("recorded", "replayed", "expected"),
    [
        ("float32", "float32", 1e-4),
        ("float64", "float32", 1e-4),
        ("float32", "bfloat16", 6e-2),
        ("bfloat16", "float32", 6e-2),
        ("float16", "bfloat16", 6e-2),
        ("float32", "quantised", None),
    ],
)
def test_the_coarser_dtype_decides_the_tolerance(recorded, replayed, expected):
    """Noise is that of the coarser of both runs; of a quantised one it is not known."""
    assert tolerance(recorded, replayed) == expected
