"""The fingerprint of a live base: recorded when an adapter is saved, compared when one is applied."""

import copy
import json
import random
from pathlib import Path

import models
import pytest
import torch
from torch import nn

import lora_hub
from lora_hub.adapter_directory import read_adapter
from lora_hub.documents.base_verdict import Outcome
from lora_hub.documents.floats import is_as_wide
from lora_hub.errors import CompatibilityError, MalformedError
from lora_hub.patch.fingerprint import compare_with_model, fingerprint_of
from lora_hub.patch.projections import linear_modules, modules_by_path
from lora_hub.tensors import DTYPE_NAMES

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def save(model, directory, *, targets=("q", "v"), **how) -> Path:
    """Train (that is: randomise) an adapter on *model*, save it, and take it off again."""
    handle = lora_hub.add_adapter(model, "task", targets=targets, **how)
    models.randomise(models.adapter_parameters(model))
    lora_hub.save_adapter(handle, directory)
    handle.remove()
    return directory


def recorded(directory):
    """Return what the manifest in *directory* has recorded of the base."""
    return read_adapter(directory).manifest.base.fingerprint


def document(directory):
    """Return the manifest in *directory* as JSON."""
    return json.loads((directory / "lora-hub.json").read_text(encoding="utf-8"))


def of_model(model):
    """Return the fingerprint of all linear modules of *model*."""
    return fingerprint_of(linear_modules(modules_by_path(model)))


def verdict(base, model):
    """Compare *model* with a fingerprint."""
    return compare_with_model(base, modules_by_path(model))


# What a right base may have gone through: a model in, the same base out.


def _saved(model, directory):
    model.save_pretrained(directory, max_shard_size="40KB")
    return type(model).from_pretrained(directory, dtype=model.dtype)


def _loaded(model, _):
    twin = type(model)(model.config).to(model.dtype)
    twin.load_state_dict(model.state_dict(), assign=True)
    return twin


def _strided(model, _):
    for module in linear_modules(modules_by_path(model)).values():
        module.weight = nn.Parameter(module.weight.detach().t().contiguous().t())
    return model


def _adapted(model, directory):
    lora_hub.apply_adapter(model, save(copy.deepcopy(model), directory, targets=("q", "k", "v", "o")), name="other")
    return model


def _trained(model, _):
    lora_hub.add_adapter(model, "other", targets=("q", "k", "v"))
    models.randomise(models.adapter_parameters(model))
    return model


def _merged(model, directory):
    lora_hub.adapters(_adapted(model, directory))["other"].merge()
    return model


def _merged_twice(model, directory):
    _merged(model, directory / "one")
    path = save(copy.deepcopy(_bare(model)), directory / "two", targets=("q",), r=2)
    lora_hub.apply_adapter(model, path, name="third").merge()
    return model


def _bare(model):
    twin = copy.deepcopy(model)
    for handle in list(lora_hub.adapters(twin).values()):
        handle.remove()
    return twin


def _unmerged(model, directory):
    lora_hub.adapters(_merged(model, directory))["other"].unmerge()
    return model


WAYS = [_saved, _loaded, _strided, _adapted, _trained, _merged, _merged_twice, _unmerged]


def _right_base(seed, directory):
    """Return a fingerprint that was recorded, and its very base after whatever happened to it; and both dtypes."""
    chance = random.Random(seed)
    one, other = chance.choice(DTYPES), chance.choice(DTYPES)
    family = models.FAMILIES[chance.choice(sorted(models.FAMILIES))]
    options = {"tie_word_embeddings": chance.random() < 0.5}
    stored = family.build(**options).to(chance.choice([torch.float32, one]))
    with torch.no_grad():
        models.randomise(stored.parameters(), scale=0.02, seed=seed)
    base = copy.deepcopy(stored).to(one)
    heads = ("lm_head",) if family is not models.FAMILIES["bert"] else ()
    path = save(base, directory / "adapter", targets=("q", "v", *heads))
    way = WAYS[seed % len(WAYS)]
    return read_adapter(path), way(stored.to(other), directory / "way"), one, other


def _check_right_bases(seeds, directory):
    for seed in seeds:
        adapter, model, one, other = _right_base(seed, directory / str(seed))
        found = verdict(adapter.manifest.base.fingerprint, model)
        decides = is_as_wide(DTYPE_NAMES[other], DTYPE_NAMES[one])

        assert found.outcome is (Outcome.MATCH if decides else Outcome.UNDECIDED), (seed, found)
        assert found.compared == found.recorded
        lora_hub.apply_adapter(model, adapter, name="applied").remove()


def test_right_bases_are_never_refused(tmp_path):
    """Whatever dtype it was recorded and is found in, saved in shards, loaded, adapted, merged: 48 of 48."""
    _check_right_bases(range(48), tmp_path)


@pytest.mark.full
def test_500_right_bases_are_never_refused(tmp_path):
    """No false reject in 500."""
    _check_right_bases(range(48, 548), tmp_path)


def _random_base(seed, dtype):
    model = models.llama()
    models.randomise((p for p in model.parameters() if p.dim() == 2), scale=0.02, seed=seed)  # norms stay one
    return model.to(dtype)


def _fine_tuned(base, optimiser, rate, steps, seed):
    """Yield the number of the step and *base* itself after each of *steps*, a real training on random tokens."""
    trained = optimiser(base.parameters(), lr=rate)
    for step in range(1, max(steps) + 1):
        ids = torch.randint(3, models.VOCABULARY, (2, 8), generator=torch.Generator().manual_seed(1000 * seed + step))
        base(input_ids=ids, labels=ids).loss.backward()
        trained.step()
        trained.zero_grad()
        if step in steps:
            yield step


RUNS = [  # recorded in, trained in, by what, learning rate
    (torch.float32, torch.float32, torch.optim.AdamW, 1e-5),
    (torch.bfloat16, torch.bfloat16, torch.optim.AdamW, 1e-5),
    (torch.bfloat16, torch.float32, torch.optim.AdamW, 2e-5),
    (torch.float16, torch.float32, torch.optim.AdamW, 1e-6),
    (torch.float32, torch.float32, torch.optim.SGD, 1e-3),
]


def _check_fine_tuned(steps):
    for number, (one, other, optimiser, rate) in enumerate(RUNS):
        model = _random_base(number, torch.float32)
        before = of_model(copy.deepcopy(model).to(one))
        model = model.to(other)
        start = {path: m.weight.detach().clone() for path, m in linear_modules(modules_by_path(model)).items()}
        for step in _fine_tuned(model, optimiser, rate, steps, number):
            now = linear_modules(modules_by_path(model))
            touched = [not torch.equal(start[path].to(one), m.weight.detach().to(one)) for path, m in now.items()]

            assert all(touched), (number, step)
            assert verdict(before, model).is_other, (number, step)


def _check_other_weights(count):
    """Random bases, bases with one layer of another, and bases with two layers exchanged: *count* of each."""
    for seed in range(count):
        dtype = DTYPES[seed % len(DTYPES)]
        base, other = _random_base(seed, dtype), _random_base(seed + 10_000, dtype)
        before, target = of_model(base), f"layers.{seed % 2}.self_attn.{'qkvo'[seed % 4]}_proj.weight"
        swapped, exchanged = copy.deepcopy(base), copy.deepcopy(base)
        swapped.model.get_parameter(target).data.copy_(other.model.get_parameter(target))
        exchanged.model.layers = exchanged.model.layers[::-1]

        for wrong in (other, swapped, exchanged):
            assert verdict(before, wrong).is_other, seed
            assert verdict(before, wrong.float()).is_other, seed


def test_wrong_bases_are_always_found():
    """Random ones, with one layer of another, with two exchanged, fine-tuned by 1 to 8 steps: 100 of 100."""
    _check_other_weights(25)
    _check_fine_tuned({1, 2, 3, 5, 8})


@pytest.mark.full
@pytest.mark.timeout(900)
def test_1000_wrong_bases_are_always_found():
    """No false accept in 1,000, in the recorded or in a wider dtype; 250 of them fine-tuned by 1 to 1,000 steps."""
    _check_other_weights(250)
    _check_fine_tuned({1, 2, 3, 5, 7, 10, 15, *range(20, 1000, 23), 1000})


# What is recorded


def test_saving_records_the_base(model, tmp_path):
    """Of every targeted tensor, in the dtype that it has; the manifest is read as it was written."""
    path = save(model, tmp_path / "one")
    base = recorded(path)

    assert {t.path for t in base.tensors} == {m.path for m in read_adapter(path).layout.modules}
    assert {t.dtype for t in base.tensors} == {"F32"}
    assert verdict(base, model).outcome is Outcome.MATCH


def test_same_adapter_on_the_same_base_has_the_same_bytes(model, tmp_path):
    """Nothing in it depends on the run."""
    one, other = save(model, tmp_path / "one"), save(copy.deepcopy(model), tmp_path / "two")

    assert (one / "lora-hub.json").read_bytes() == (other / "lora-hub.json").read_bytes()


def test_logical_positions_are_looked_at_in_either_orientation():
    """Conv1D keeps its weight [in, out]; a value is taken from where (output, input) lies."""
    model = models.gpt2()
    base = of_model(model)
    for tensor in base.tensors:
        weight = model.get_submodule(tensor.path).weight
        stored = weight if isinstance(model.get_submodule(tensor.path), nn.Linear) else weight.t()
        rows, columns = zip(*tensor.positions(), strict=True)
        expected = stored[list(rows), list(columns)].detach()

        assert torch.frombuffer(bytearray(tensor.values), dtype=torch.float32).equal(expected)


def test_every_second_weight_is_the_one_nearest_to_zero():
    """Of its window, zeros and infinities apart: there a step of training shows first."""
    layer = nn.Linear(1000, 8, bias=False)
    with torch.no_grad():
        layer.weight[:, ::3] = 0
    (tensor,) = fingerprint_of({"layer": layer}).tensors
    for (row, column), offset in zip(tensor.positions()[1::2], tensor.offsets, strict=True):
        window = layer.weight[row, column - offset : column - offset + 256].abs()

        assert layer.weight[row, column].abs() == window[window > 0].min()


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_weights_that_are_all_one_number_are_recorded(value):
    """There is nothing nearest to zero then; the first of the window is as good as any."""
    layer = nn.Linear(64, 8, bias=False)
    nn.init.constant_(layer.weight, value)
    base = fingerprint_of({"layer": layer})

    assert compare_with_model(base, {"layer": layer}).outcome is Outcome.MATCH
    assert compare_with_model(base, {"layer": nn.Linear(64, 8)}).is_other


def test_weights_without_numbers_are_left_out():
    """NaN, infinity, weights on no device and quantised ones have no fingerprint; None is what is left of them."""
    broken, infinite, fine = (nn.Linear(8, 8) for _ in range(3))
    nn.init.constant_(broken.weight, torch.nan)
    nn.init.constant_(infinite.weight, torch.inf)
    quantised = nn.Linear(8, 8)
    quantised.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.int8), requires_grad=False)
    modules = {"broken": broken, "infinite": infinite, "none": nn.Linear(8, 8, device="meta"), "codes": quantised}

    assert fingerprint_of(modules) is None
    assert [t.path for t in fingerprint_of(modules | {"fine": fine}).tensors] == ["fine"]


def test_a_head_is_not_part_of_it(tmp_path):
    """What an adapter replaces is its own, not the base's."""
    path = save(models.bert(), tmp_path / "one", modules_to_save=("classifier",))

    assert all("classifier" not in tensor.path for tensor in recorded(path).tensors)


def test_merged_weights_are_recorded_as_they_were(model, tmp_path):
    """By the kept originals: the same bytes as of the bare base."""
    bare = save(copy.deepcopy(model), tmp_path / "bare")
    lora_hub.apply_adapter(model, bare, name="other").merge()
    handle = lora_hub.add_adapter(model, "task")
    lora_hub.save_adapter(handle, tmp_path / "one")

    assert recorded(tmp_path / "one") == recorded(bare)


def test_what_came_from_a_file_keeps_its_fingerprint(model, tmp_path):
    """It was trained on that base, whatever it was applied to since."""
    path = save(model, tmp_path / "one")
    handle = lora_hub.apply_adapter(copy.deepcopy(model).bfloat16(), path, trainable=True)
    lora_hub.save_adapter(handle, tmp_path / "again")

    assert recorded(tmp_path / "again") == recorded(path)


def test_what_is_trained_on_belongs_to_the_base_at_hand(model, tmp_path):
    """Trained on a sibling, on purpose: its fingerprint and its name are those of the sibling, at every save."""
    path = save(model, tmp_path / "one")
    models.randomise(model.parameters(), scale=0.02, seed=9)
    model.config._name_or_path = "org/sibling"
    handle = lora_hub.apply_adapter(model, path, trainable=True, allow_other_base=True)
    models.randomise(models.adapter_parameters(model), seed=5)
    for name in ("two", "three"):
        lora_hub.save_adapter(handle, tmp_path / name)

        assert verdict(recorded(tmp_path / name), model).outcome is Outcome.MATCH
        assert read_adapter(tmp_path / name).manifest.base.repo == "org/sibling"


def test_shards_are_recorded_from_the_cache_of_the_hub(tmp_path, monkeypatch):
    """In the client's cache a file is a link to a blob that is called by its SHA-256: known without hashing."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--org--base" / "snapshots" / ("c" * 40)
    (folder.parents[1] / "blobs").mkdir(parents=True)
    folder.mkdir(parents=True)
    for name, blob in {
        "model.safetensors": "a1" * 32,
        "config.json": "b2" * 32,
        "other.safetensors": "c3" * 20,
    }.items():
        (folder.parents[1] / "blobs" / blob).write_bytes(b"")
        (folder / name).symlink_to(Path("..") / ".." / "blobs" / blob)
    model = models.llama()
    model.config._name_or_path, model.config._commit_hash = "org/base", "c" * 40
    path = save(model, tmp_path / "one")

    assert document(path)["base"]["shards"] == [{"name": "model.safetensors", "sha256": "a1" * 32}]
    model.config._commit_hash = "d" * 40
    assert "shards" not in document(save(model, tmp_path / "two"))["base"]


# What is compared


def test_another_base_is_refused_by_both_names(model, tmp_path):
    """With exit code 9, before anything of the model changes; the way through is a word."""
    model.config._name_or_path = "org/base"
    path = save(model, tmp_path / "one")
    models.randomise(model.parameters(), scale=0.02, seed=9)
    model.config._name_or_path = "org/sibling"
    before = models.state(model)
    with pytest.raises(
        CompatibilityError, match=r"trained on org/base.*another base \(org/sibling\).*differ"
    ) as caught:
        lora_hub.apply_adapter(model, path)

    assert caught.value.exit_code == 9
    assert models.same_bits(before, models.state(model))
    assert not lora_hub.adapters(model)
    assert lora_hub.apply_adapter(model, path, allow_other_base=True).other_base_allowed


def test_a_narrower_dtype_is_applied_to(model, tmp_path):
    """It cannot tell a sibling, so it refuses nobody; an altogether different base it tells."""
    path = save(model, tmp_path / "one")
    lora_hub.apply_adapter(copy.deepcopy(model).half(), path)
    models.randomise(model.parameters(), scale=0.02, seed=9)
    with pytest.raises(CompatibilityError):
        lora_hub.apply_adapter(model.half(), path)


def test_an_adapter_without_fingerprint_is_applied(model, tmp_path):
    """As every adapter that PEFT wrote."""
    path = save(model, tmp_path / "one")
    (path / "lora-hub.json").unlink()
    models.randomise(model.parameters(), scale=0.02, seed=9)

    assert lora_hub.apply_adapter(model, path).active


def test_offloaded_weights_leave_it_undecided():
    """What is on no device cannot be compared; the rest still tells another base."""
    model = models.llama()
    base = of_model(model)
    model.model.layers[0].to("meta")
    part = verdict(base, model)
    models.randomise(model.model.layers[1].parameters(), scale=0.02, seed=9)

    assert part.outcome is Outcome.UNDECIDED
    assert part.tensors == (8, 15)
    assert "offloaded" in part.reason
    assert verdict(base, model).is_other


def test_weights_that_were_merged_without_a_copy_leave_it_undecided(tmp_path):
    """They would have to be computed back, which takes as long as to unmerge."""
    model = models.llama()
    path = save(model, tmp_path / "one", targets=("q", "v"))
    base = of_model(model)
    lora_hub.apply_adapter(model, path, name="other").merge(keep="corrections")
    found = verdict(base, model)

    assert (found.outcome, found.tensors) == (Outcome.UNDECIDED, (11, 15))
    assert "without a copy" in found.reason


class Int8Linear(nn.Linear):
    """A layer of 8-bit codes with a scale for each row, as several libraries have."""

    def __init__(self, layer):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        scale = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((layer.weight.detach() / scale).round().to(torch.int8), requires_grad=False)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_tell_gross_identity_only(dtype):
    """A note for the right one, no more; another base is told."""
    layers = {f"layers.{n}.q": nn.Linear(64, 64, bias=False) for n in range(4)}
    others = {path: nn.Linear(64, 64, bias=False) for path in layers}
    base = fingerprint_of(layers)
    right, wrong = ({path: Int8Linear(layer) for path, layer in which.items()} for which in (layers, others))
    for module in (*right.values(), *wrong.values()):
        module.weight = nn.Parameter(module.weight.to(dtype), requires_grad=False)
    alike, other = compare_with_model(base, right), compare_with_model(base, wrong)

    assert (alike.outcome, alike.compared) == (Outcome.UNDECIDED, 0)
    assert alike.correlation > 0.9
    assert other.is_other


def test_quantised_weights_that_never_varied_speak_for_no_other_base():
    """Projections that a base leaves at zero have no correlation with any codes, so they do not count."""
    layers = {f"layers.{n}.q": nn.Linear(64, 64, bias=False) for n in range(6)}
    for number in (0, 2, 4):
        nn.init.zeros_(layers[f"layers.{number}.q"].weight)
    base = fingerprint_of(layers)
    codes = {path: nn.Linear(64, 64, bias=False) for path in layers}
    for path, layer in layers.items():
        stored = (layer.weight.detach() * 1000).to(torch.int8)
        codes[path].weight = nn.Parameter(stored, requires_grad=False)
    found = compare_with_model(base, codes)

    assert found.outcome is Outcome.UNDECIDED
    assert found.correlation > 0.9


@pytest.mark.parametrize(
    ("store", "reason"),
    [
        (torch.Tensor.to_sparse, "torch.sparse_coo"),
        (torch.Tensor.to_mkldnn, "torch._mkldnn"),
        (lambda _: nn.UninitializedParameter(requires_grad=False), "not initialised"),
    ],
)
def test_weights_that_do_not_lie_as_a_matrix_decide_nothing(store, reason):
    """Sparse ones, those in a layout of a library, those of a lazy layer: a reason, not an error of torch."""
    layer = nn.Linear(64, 32, bias=False)
    base = fingerprint_of({"q": layer})
    stored = store(layer.weight.detach())
    layer.weight = stored if isinstance(stored, nn.Parameter) else nn.Parameter(stored, requires_grad=False)
    found = compare_with_model(base, {"q": layer})

    assert (found.outcome, found.compared) == (Outcome.UNDECIDED, 0)
    assert reason in found.reason
    assert fingerprint_of({"q": layer}) is None


class AnswersForItself(torch.Tensor):
    """A tensor that computes what it is asked for itself, as sharded ones do."""

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(func)


def test_sharded_weights_are_not_asked():
    """Reading one number of a DTensor would be a call to the other machines."""
    layer = nn.Linear(64, 32, bias=False)
    base = fingerprint_of({"q": layer})
    weight = torch.Tensor._make_subclass(AnswersForItself, layer.weight.detach())
    layer._parameters["weight"] = weight
    found = compare_with_model(base, {"q": layer})

    assert found.outcome is Outcome.UNDECIDED
    assert "AnswersForItself" in found.reason


def test_packed_weights_decide_nothing():
    """Four bits in a byte have another shape: nobody here knows what they mean."""
    layer = nn.Linear(64, 64, bias=False)
    base = fingerprint_of({"q": layer})
    layer.weight = nn.Parameter(torch.zeros(64 * 32, 1, dtype=torch.uint8), requires_grad=False)
    found = compare_with_model(base, {"q": layer})

    assert (found.outcome, found.compared) == (Outcome.UNDECIDED, 0)
    assert "packed" in found.reason


def test_missing_modules_decide_nothing():
    """Whether the adapter's modules are there is another check's matter."""
    base = fingerprint_of({"q": nn.Linear(8, 8)})

    assert compare_with_model(base, {}).outcome is Outcome.UNDECIDED
    assert compare_with_model(base, {"q": nn.Linear(8, 9)}).outcome is Outcome.UNDECIDED
    assert compare_with_model(base, {"q": nn.LayerNorm(8)}).outcome is Outcome.UNDECIDED


# On its way


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda group: group.update(module="model.layers.*.self_attn.o_proj"), "which the adapter does not target"),
        (lambda group: group.update(shape=[48, 49]), r"the adapter's is \[64, 48\]"),
    ],
)
def test_a_fingerprint_of_another_adapter_is_refused(change, message, tmp_path):
    """What it is of must be what the adapter targets."""
    path = save(models.llama(), tmp_path / "one", targets=("q",))
    manifest = document(path)
    change(manifest["base"]["fingerprint"]["tensors"][0])
    (path / "lora-hub.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(MalformedError, match=message):
        read_adapter(path)


def test_push_and_pull_keep_it(model, tmp_path):
    """What is published is refused by another base as what was saved."""
    path = save(model, tmp_path / "one")
    lora_hub.push(path, "org/task@1.0.0", registry=tmp_path / "registry")
    pulled = lora_hub.pull("org/task@1.0.0", registry=tmp_path / "registry")
    models.randomise(model.parameters(), scale=0.02, seed=9)

    assert pulled.adapter.manifest.base == read_adapter(path).manifest.base
    with pytest.raises(CompatibilityError, match="another base"):
        lora_hub.apply_adapter(model, "org/task@1.0.0", registry=tmp_path / "registry")
