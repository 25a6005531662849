"""Promise 4: merged weights are the exact sum rounded once, and come back bit for bit."""

import models
import pytest
import torch
from models import logits, same_bits, state

import lora_hub
from lora_hub.errors import StateError

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CYCLES = pytest.param(100, marks=pytest.mark.full)


@pytest.fixture
def three(model, tmp_path):
    """Three different adapters on one model: other ranks, targets, strengths; one is to train."""
    settings = {
        "a": {"r": 4, "targets": ("q", "v")},
        "b": {"r": 2, "targets": ("q", "k", "v", "o"), "use_rslora": True},
        "c": {"r": 8, "targets": ("v",), "lora_alpha": 2},
    }
    for seed, (name, options) in enumerate(settings.items()):
        handle = lora_hub.add_adapter(model, name, **options)
        models.randomise((p for n, p in model.named_parameters() if n.endswith(f"__{name}")), seed=seed)
        if name != "c":
            lora_hub.save_adapter(handle, tmp_path / name)
            handle.remove()
            lora_hub.apply_adapter(model, tmp_path / name)
    return model


@pytest.mark.parametrize("cycles", [5, CYCLES])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unmerge_gives_back_the_bits(three, dtype, cycles):
    """After any number of merges and unmerges of three adapters in varying order, no bit of the base differs."""
    three.to(dtype)
    before = state(three)
    adapters = dict(lora_hub.adapters(three))
    for cycle in range(cycles):
        order = sorted(adapters, key=lambda name: (cycle * 7 + ord(name) * 3) % 5)
        for name in order:
            adapters[name].merge()
        for name in order[:: 1 if cycle % 2 else -1]:
            adapters[name].unmerge()

    assert same_bits(state(three), before)


def test_merged_outputs_are_the_unmerged_ones(model, saved):
    """In float32 the merged model computes what the unmerged one does, up to rounding."""
    handle = lora_hub.apply_adapter(model, saved)
    expected = logits(model)
    handle.merge()

    assert torch.allclose(logits(model), expected, atol=1e-5)


def exact_sum(module, *adapters):
    """W0 + the deltas of *adapters* in float64, as the weight is stored: what merging should round once."""
    is_linear = isinstance(module, torch.nn.Linear)
    weight = module.weight.detach().double()
    delta = torch.zeros_like(weight if is_linear else weight.T)  # [out, in]
    for adapter in adapters:
        path = next((path for path, other in adapter.modules.items() if other is module), None)
        for part, A, B in adapter.weights().modules.get(path, ()):
            rows = torch.cat([torch.arange(a, b) for a, b in part.rows or ((0, len(delta)),)])
            delta[rows] += adapter.scale * part.scaling * (B.detach().double() @ A.detach().double())
    return weight + (delta if is_linear else delta.T)


LEAVES = ("query", "c_attn", "q_proj", "value", "v_proj")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merge_rounds_once(three, dtype):
    """The merged weight is within one rounding of the exact sum, where rounding each delta apart is not.

    The bound is half a unit in the last place of the result, and as much again for the float32 accumulation.
    """
    three.to(dtype)
    a, b = (lora_hub.adapters(three)[name] for name in "ab")
    module = next(module for path, module in three.named_modules() if path.endswith(LEAVES))
    exact = exact_sum(module, a, b)
    a.merge()
    b.merge()
    error = (module.weight.detach().double() - exact).abs()
    unit = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)

    assert (error <= 0.5 * unit + 8 * torch.finfo(torch.float32).eps).all()


def test_one_of_two_taken_back_is_the_other_alone(three):
    """`a.merge(); b.merge(); a.unmerge()` equals W0 + delta of b, rounded once."""
    three.to(torch.bfloat16)
    a, b = (lora_hub.adapters(three)[name] for name in "ab")
    b.merge()
    expected = state(three)
    b.unmerge()
    a.merge()
    b.merge()
    a.unmerge()

    assert same_bits(state(three), expected)


def test_order_of_merges_does_not_matter(three):
    """The sum of merged deltas does not depend on history."""
    three.to(torch.float16)
    a, b, c = (lora_hub.adapters(three)[name] for name in "abc")
    for handle in (a, b, c):
        handle.merge()
    expected = state(three)
    for handle in (b, a):
        handle.unmerge()
    for handle in (b, a):
        handle.merge()

    assert same_bits(state(three), expected)


def test_others_add_on_top_of_merged(three):
    """While one adapter is merged, the other active ones run on top."""
    expected = logits(three)
    lora_hub.adapters(three)["a"].merge()

    assert torch.allclose(logits(three), expected, atol=1e-5)


def test_addresses_stay(model, saved):
    """Merging changes weights in place: the parameters are the same objects at the same addresses."""
    handle = lora_hub.apply_adapter(model, saved)
    before = [(id(p), p.data_ptr()) for p in model.parameters()]
    handle.merge()
    merged = [(id(p), p.data_ptr()) for p in model.parameters()]
    handle.unmerge()

    assert before == merged == [(id(p), p.data_ptr()) for p in model.parameters()]


@pytest.mark.parametrize("choice", [None, "b", {"a": 0.5, "b": 1}])
def test_use_that_needs_a_merged_adapter_off_is_refused(three, choice):
    """A choice without a merged adapter, or with another weight of it, raises and says `unmerge()`."""
    lora_hub.adapters(three)["a"].merge()

    with pytest.raises(StateError, match=r"unmerge\(\)"), lora_hub.use(three, choice):
        pass


def test_use_with_the_merged_adapter(three):
    """A choice that includes the merged adapter runs the others on top of it."""
    with lora_hub.use(three, {"a": 1, "c": 0.5}):
        expected = logits(three)
    lora_hub.adapters(three)["a"].merge()
    with lora_hub.use(three, {"a": 1, "c": 0.5}):
        found = logits(three)

    assert torch.allclose(found, expected, atol=1e-5)


def test_merge_inside_of_a_block_without_it_is_refused(three):
    """Merging what this context chose not to run would change its outputs."""
    with lora_hub.use(three, "b"), pytest.raises(StateError, match="leave the `use` block"):
        lora_hub.adapters(three)["a"].merge()


def test_merging_behind_an_open_block_is_noticed(three):
    """A block that was entered before another thread merged raises at its next forward, and never computes wrongly."""
    import threading

    with lora_hub.use(three, "b"):
        thread = threading.Thread(target=lora_hub.adapters(three)["a"].merge)
        thread.start()
        thread.join()
        with pytest.raises(StateError, match="merged"):
            logits(three)


def change_a_leaf(model):
    """Change one number of a module that is merged, and return the module's path."""
    path, module = next((p, m) for p, m in model.named_modules() if p.endswith(LEAVES))
    with torch.no_grad():
        module.weight[0, 0] += 0.5
    return path


@pytest.mark.parametrize("action", ["unmerge", "merge another", "remove"])
def test_changed_merged_weight_is_refused(three, action):
    """If a merged weight was changed since, taking it back is refused, names the tensor and changes nothing."""
    a, b = (lora_hub.adapters(three)[name] for name in "ab")
    a.merge()
    path = change_a_leaf(three)
    before = state(three)
    run = {"unmerge": a.unmerge, "merge another": b.merge, "remove": a.remove}[action]

    with pytest.raises(StateError, match=rf"`{path}.weight` was changed.*force=True"):
        run()
    assert same_bits(state(three), before)
    assert a.merged
    assert not b.merged


def test_force_gives_back_the_original(three):
    """`unmerge(force=True)` drops the change and gives back the original bits."""
    before = state(three)
    handle = lora_hub.adapters(three)["a"]
    handle.merge()
    change_a_leaf(three)
    handle.unmerge(force=True)

    assert same_bits(state(three), before)


def test_cast_while_merged_is_noticed(three):
    """Casting a merged model changes its weights: unmerging is refused, and forced gives the cast original."""
    before = {name: tensor.to(torch.bfloat16) for name, tensor in state(three).items()}
    handle = lora_hub.adapters(three)["a"]
    handle.merge()
    three.to(torch.bfloat16)

    with pytest.raises(StateError, match="was changed"):
        handle.unmerge()
    handle.unmerge(force=True)
    assert same_bits(state(three), before)


def test_remove_while_merged(model, saved):
    """Removing a merged adapter takes it out of the weights first."""
    before = state(model)
    handle = lora_hub.apply_adapter(model, saved)
    handle.merge()
    handle.remove()

    assert same_bits(state(model), before)


@pytest.mark.parametrize("action", ["merge", "unmerge"])
def test_doing_it_twice_is_an_error(model, saved, action):
    """Merging what is merged, or unmerging what is not, is an error."""
    handle = lora_hub.apply_adapter(model, saved)
    if action == "merge":
        handle.merge()

    with pytest.raises(StateError, match="merged"):
        getattr(handle, action)()


def test_tied_weights_are_refused_by_name():
    """A head that is tied to the embedding runs adapted, but a merge would change the embedding: refused."""
    model = models.gpt2()
    handle = lora_hub.add_adapter(model, "task", targets=("lm_head",))

    with pytest.raises(StateError, match=r"`lm_head.weight` is tied to `transformer.wte.weight`"):
        handle.merge()


def test_head_is_merged_and_comes_back():
    """An adapter with a head puts it into the base while merged, and gives the base's own back."""
    model = models.bert()
    before = state(model)
    handle = lora_hub.add_adapter(model, "task", modules_to_save=("classifier",))
    models.randomise(models.adapter_parameters(model))
    expected = logits(model)
    handle.merge()
    found = logits(model)
    head = model.classifier.weight.clone()
    handle.unmerge()

    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.equal(head, before["classifier.weight"])
    assert same_bits(state(model), before)


def test_two_heads_at_once_are_refused():
    """Two adapters that replace one head cannot run together; apart they can."""
    model = models.bert()
    lora_hub.add_adapter(model, "one", modules_to_save=("classifier",))
    before = logits(model)

    with pytest.raises(StateError, match="both change `classifier`"):
        lora_hub.add_adapter(model, "two", modules_to_save=("classifier",))
    assert set(lora_hub.adapters(model)) == {"one"}
    assert torch.equal(logits(model), before)


def test_failed_merge_changes_nothing(three, monkeypatch):
    """If merging fails half way, the modules that were done are restored."""
    from lora_hub.patch import model_patch

    before, real, calls = state(three), model_patch.remerge, []

    def fail_at_the_third(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise MemoryError
        real(*args, **kwargs)

    monkeypatch.setattr(model_patch, "remerge", fail_at_the_third)

    with pytest.raises(MemoryError):
        lora_hub.adapters(three)["b"].merge()
    assert same_bits(state(three), before)
    assert not lora_hub.adapters(three)["b"].merged


def test_copies_of_a_merged_model_unmerge(three):
    """A deep copy of a merged model has its own originals."""
    import copy

    before = state(three)
    handle = lora_hub.adapters(three)["a"]
    handle.merge()
    twin = copy.deepcopy(three)
    handle.unmerge()
    lora_hub.adapters(twin)["a"].unmerge()

    assert same_bits(state(twin), before)


class Interrupted(BaseException):
    """Like Ctrl-C, which a test runner would take for its own."""


@pytest.mark.parametrize("call", [1, 2, 4])
def test_interrupted_merge_changes_nothing(three, monkeypatch, call):
    """An interruption in the middle of a merge, wherever it lands, gives back every bit."""
    from lora_hub.patch import merge

    before, real, calls = state(three), merge.checksum, []

    def interrupt(tensor):
        calls.append(tensor)
        if len(calls) == call:
            raise Interrupted
        return real(tensor)

    monkeypatch.setattr(merge, "checksum", interrupt)
    handle = lora_hub.adapters(three)["b"]
    with pytest.raises(Interrupted):
        handle.merge()
    monkeypatch.undo()
    after = state(three)
    handle.merge()
    handle.unmerge()

    assert same_bits(after, before)
    assert same_bits(state(three), before)


def test_refused_merge_changes_nothing():
    """A merge that an active head forbids has not touched a weight, and nothing is merged."""
    model = models.bert()
    first = lora_hub.add_adapter(model, "first", modules_to_save=("classifier",))
    models.randomise(models.adapter_parameters(model))
    first.active = False
    lora_hub.add_adapter(model, "second", modules_to_save=("classifier",))
    before = state(model)

    with pytest.raises(StateError, match="classifier"):
        first.merge()
    assert same_bits(state(model), before)
    assert not first.merged


def test_merged_adapter_cannot_be_inactive(model, saved):
    """Switching a merged adapter off would have no effect: refused."""
    handle = lora_hub.apply_adapter(model, saved)
    handle.merge()

    with pytest.raises(StateError, match="unmerge"):
        handle.active = False


def test_overflow_is_refused():
    """A sum that does not fit the dtype of the weight is refused by name, and nothing changes."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4)).half()
    handle = lora_hub.add_adapter(model, "task", targets=("0",))
    models.randomise(models.adapter_parameters(model), scale=1e4)
    before = state(model)

    with pytest.raises(StateError, match=r"`0.weight` plus the delta is too large"):
        handle.merge()
    assert same_bits(state(model), before)


def test_computed_weight_is_refused():
    """A weight that a parametrisation computes cannot be merged into: the sum would be lost."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    torch.nn.utils.parametrizations.weight_norm(model[0])
    handle = lora_hub.add_adapter(model, "task", targets=("0",))

    with pytest.raises(StateError, match="computed"):
        handle.merge()


def test_merge_under_autocast_is_exact(three):
    """Autocast of the caller does not reach into the sum of the deltas."""
    handle = lora_hub.adapters(three)["a"]
    handle.merge()
    expected = state(three)
    handle.unmerge()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        handle.merge()

    assert same_bits(state(three), expected)


def test_module_that_left_the_model_is_noticed(model, saved):
    """A module that was taken out of the model after attaching can still be unmerged and removed."""
    handle = lora_hub.apply_adapter(model, saved)
    path, module = next(iter(handle.modules.items()))
    before = module.weight.clone()
    model.set_submodule(path, torch.nn.Identity())
    handle.merge()
    handle.remove()

    assert torch.equal(module.weight, before)


def test_interruption_at_the_very_end_of_a_merge(three, monkeypatch):
    """If the last step of a merge fails, the weights are taken back: the delta is never applied twice."""
    from lora_hub.patch import model_patch

    class Stuck(model_patch.ModelPatch):
        def __setattr__(self, name, value):
            if name == "state" and value.merged:
                raise Interrupted
            super().__setattr__(name, value)

    before, outputs = state(three), logits(three)
    handle = lora_hub.adapters(three)["b"]
    handle.patch.__class__ = Stuck
    with pytest.raises(Interrupted):
        handle.merge()
    handle.patch.__class__ = model_patch.ModelPatch

    assert same_bits(state(three), before)
    assert torch.equal(logits(three), outputs)
