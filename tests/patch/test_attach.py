"""What stays as it was while an adapter is on a model, and after it was taken off."""

import copy
import io
import pickle

import models
import pytest
import torch
from models import logits, same_bits, state

import lora_hub
from lora_hub.errors import CompatibilityError, StateError, UsageError


def anatomy(model):
    """Every module's path, identity, class, instance-dict keys, parameters and their `requires_grad`."""
    return {
        path: (
            id(module),
            type(module),
            set(module.__dict__),
            {name: (id(p), p.requires_grad) for name, p in module.named_parameters(recurse=False)},
        )
        for path, module in model.named_modules()
    }


@pytest.fixture(params=["applied", "trainable", "trainable with head"])
def attach(request, model, saved):
    """Put an adapter on the model: for inference, to train, and to train with a module of its own."""
    if request.param == "applied":
        return lambda: lora_hub.apply_adapter(model, saved)
    # The last normalisation exists in all three families, and feeds the outputs.
    norms = [path for path, module in model.named_modules() if "norm" in type(module).__name__.lower()]
    heads = (norms[-1],) if request.param == "trainable with head" else ()

    def add():
        handle = lora_hub.add_adapter(model, "task", modules_to_save=heads)
        models.randomise(models.adapter_parameters(model))
        return handle

    return add


def test_modules_keep_their_names_and_classes(model, attach):
    """Under an adapter every module is the same object under the same path, and an instance of the same class."""
    before = {path: (module, type(module)) for path, module in model.named_modules()}
    attach()
    after = dict(model.named_modules())

    assert after.keys() == before.keys()
    assert all(after[path] is module and isinstance(module, cls) for path, (module, cls) in before.items())


def test_state_dict_is_that_of_the_base(model, attach):
    """Under an adapter `state_dict` has the keys and the bits of the base."""
    before = state(model)
    attach()

    assert same_bits(state(model), before)


def test_base_weights_load_strictly(model, attach):
    """Base weights load with `strict=True` under an adapter, and the adapter stays."""
    weights = state(model)
    attach()
    before = logits(model)
    model.load_state_dict(weights, strict=True)

    assert torch.equal(logits(model), before)


def test_save_pretrained_writes_the_base_only(model, attach, tmp_path):
    """`save_pretrained` under a saved adapter writes the file that the base alone would write, without a warning."""
    model.save_pretrained(tmp_path / "before")
    handle = attach()
    lora_hub.save_adapter(handle, tmp_path / "adapter")
    model.save_pretrained(tmp_path / "after")

    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "after" / name).read_bytes() == (tmp_path / "before" / name).read_bytes()


def test_remove_leaves_no_trace(model, attach):
    """After `remove` every module has its class, instance dict, parameters and `requires_grad` back, and its bits."""
    next(model.parameters()).requires_grad_(False)
    before, outputs, weights = anatomy(model), logits(model), state(model)
    handle = attach()
    changed = logits(model)
    handle.remove()

    assert anatomy(model) == before
    assert same_bits(state(model), weights)
    assert torch.equal(logits(model), outputs)
    assert not torch.equal(changed, outputs)


def test_first_of_two_can_be_removed(model, attach, saved):
    """Removing one of two adapters leaves the other as if it had come alone."""
    alone = lora_hub.apply_adapter(model, saved, name="other")
    expected = logits(model)
    alone.remove()
    handle = attach()
    lora_hub.apply_adapter(model, saved, name="other")
    handle.remove()

    assert torch.equal(logits(model), expected)


def test_adapters_add_up(model, saved):
    """Two active adapters give the base plus both deltas."""
    base = models.logits(model)
    lora_hub.apply_adapter(model, saved, name="one", scale=0.5)
    half = logits(model)
    lora_hub.apply_adapter(model, saved, name="two", scale=0.5)
    both = logits(model)
    whole = lora_hub.apply_adapter(model, saved, name="whole", active=False)

    with lora_hub.use(model, whole):
        assert torch.allclose(both, logits(model), atol=1e-6)
    assert not torch.equal(half, base)


def test_inactive_adapter_changes_nothing(model, saved):
    """`active=False` only registers; setting `active` puts it into the default set."""
    base = logits(model)
    handle = lora_hub.apply_adapter(model, saved, active=False)
    still = logits(model)
    handle.active = True

    assert torch.equal(still, base)
    assert not torch.equal(logits(model), base)


def test_adapters_lists_what_is_on_the_model(model, saved):
    """`adapters` gives the handles by name; a bare model has none."""
    none = dict(lora_hub.adapters(model))
    handle = lora_hub.apply_adapter(model, saved)

    assert none == {}
    assert dict(lora_hub.adapters(model)) == {"saved": handle}


def test_name_in_use_is_refused(model, saved):
    """A second adapter of one name needs `replace=True`."""
    lora_hub.apply_adapter(model, saved, name="task")

    with pytest.raises(UsageError, match="replace=True"):
        lora_hub.apply_adapter(model, saved, name="task")


def test_replace_takes_the_old_one_off(model, saved):
    """`replace=True` leaves exactly the new adapter, and kills the old handle."""
    old = lora_hub.apply_adapter(model, saved, name="task")
    new = lora_hub.apply_adapter(model, saved, name="task", scale=0.0, replace=True)

    assert dict(lora_hub.adapters(model)) == {"task": new}
    with pytest.raises(StateError, match="was removed"):
        old.remove()


@pytest.mark.parametrize("name", ["", "a/b", "a b", "-x", "a\n", "x" * 200])
def test_bad_names_are_refused(model, saved, name):
    """A name is made of letters, digits, `_`, `-` and `.`."""
    with pytest.raises(UsageError, match="no name"):
        lora_hub.add_adapter(model, name)


def test_dotted_name_can_be_trained(model):
    """A dot in a name is escaped in parameter names, where torch forbids it."""
    lora_hub.add_adapter(model, "v1.2")
    names = [name for name, p in model.named_parameters() if p.requires_grad]

    assert names
    assert all("__v1%2E2" in name for name in names)


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_whole_and_independent(model, attach, way):
    """A copied model computes the same, has its own adapter, and gives back its own base."""
    base = logits(model)
    handle = attach()
    expected = logits(model)
    twin = _copy(model, way)
    handle.remove()
    found = logits(twin)
    next(iter(lora_hub.adapters(twin).values())).remove()

    assert torch.equal(found, expected)
    assert torch.equal(logits(twin), base)
    assert {type(m) for m in twin.modules()} == {type(m) for m in model.modules()}


def _copy(model, way):
    if way == "deepcopy":
        return copy.deepcopy(model)
    if way == "pickle":
        return pickle.loads(pickle.dumps(model))
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_copied_trainable_adapter_trains_alone(model, adapter):
    """Training a deep copy changes nothing in the original."""
    twin = copy.deepcopy(model)
    expected = logits(model)
    models.randomise(models.adapter_parameters(twin), seed=9)

    assert torch.equal(logits(model), expected)
    assert not torch.equal(logits(twin), expected)


def test_wrapped_models_are_seen_through(model, saved):
    """`adapters` and `use` accept a model behind DDP's or a compiler's wrapper."""

    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    handle = lora_hub.apply_adapter(model, saved)

    assert lora_hub.adapters(Wrapper(Wrapper(model)))["saved"] is handle
    with lora_hub.use(Wrapper(model), "saved"):
        pass


def test_use_without_adapters_says_so(model):
    """`use` on a model without adapters is an error that says which model to pass."""
    with pytest.raises(UsageError, match="no adapters"):
        lora_hub.use(model, "task")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_model_may_be_cast_after_attaching(model, attach, dtype):
    """`.to(dtype)` after attaching leaves a model that runs in the new dtype, close to the old outputs."""
    attach()
    before = logits(model)
    after = logits(model.to(dtype))

    assert after.dtype is dtype
    assert torch.allclose(after.float(), before, atol=0.15 if dtype.itemsize == 2 else 1e-4)


@pytest.mark.parametrize("cache", [True, False])
def test_autocast(model, attach, cache):
    """Under autocast the adapter runs in autocast's dtype, and the outputs stay close."""
    attach()
    expected = logits(model)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=cache):
        found = logits(model)

    assert torch.allclose(found.float(), expected, atol=0.15)


def test_no_grad_and_inference_mode(model, attach):
    """The adapter runs without autograd and in inference mode."""
    attach()
    expected = logits(model)
    with torch.inference_mode():
        found = model(input_ids=models.tokens()).logits

    assert torch.equal(found, expected)


def test_layers_on_other_devices_and_dtypes():
    """A and B follow the input of each layer: here layers of one model compute in different dtypes."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    lora_hub.add_adapter(model, "task", targets=("0", "1"))
    models.randomise(models.adapter_parameters(model))
    model[1].to(torch.bfloat16)
    x = torch.randn(3, 8)

    assert model[1](model[0](x).bfloat16()).dtype is torch.bfloat16


def test_factors_follow_the_input_to_its_device(model, saved):
    """A and B are placed where each layer's input is, here on the meta device."""
    handle = lora_hub.apply_adapter(model.to("meta"), saved)
    outputs = [module(torch.empty(2, 48, device="meta")) for module in handle.modules.values()]

    assert {output.device.type for output in outputs} == {"meta"}


def test_offloaded_layers(family, tmp_path):
    """Adapters for inference work over accelerate's CPU offload, attached before or after it, and come off."""
    from accelerate import cpu_offload

    model = family.build()
    adapter = lora_hub.add_adapter(model, "task")
    models.randomise(models.adapter_parameters(model))
    expected = logits(model)
    lora_hub.save_adapter(adapter, tmp_path / "saved")
    adapter.remove()
    base = logits(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    handle = lora_hub.apply_adapter(model, tmp_path / "saved")
    found = logits(model)
    handle.remove()

    assert torch.equal(found, expected)
    assert torch.equal(logits(model), base)


def test_offloading_after_attaching(model, saved):
    """Offload that comes after the adapter, and goes before it, changes nothing."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    base = logits(model)
    handle = lora_hub.apply_adapter(model, saved)
    expected = logits(model)
    cpu_offload(model, execution_device=torch.device("cpu"))
    found = logits(model)
    remove_hook_from_submodules(model)
    after = logits(model)
    handle.remove()

    assert torch.equal(found, expected)
    assert torch.equal(after, expected)
    assert torch.equal(logits(model), base)


def test_training_on_offloaded_layers_is_refused(model):
    """Parameters on an offloaded layer would never train, so this is an error; the model is as it was."""
    from accelerate import cpu_offload

    cpu_offload(model, execution_device=torch.device("cpu"))
    before = anatomy(model)

    with pytest.raises(StateError, match="offloaded"):
        lora_hub.add_adapter(model, "task")
    assert anatomy(model) == before


def test_hidden_forward_is_refused(model, saved):
    """A `forward` in the instance dict would bypass the adapter silently: it fails closed, changing nothing."""
    layer = next(m for p, m in model.named_modules() if p.endswith(("query", "c_attn", "q_proj")))
    layer.forward = lambda x: x
    before = anatomy(model)

    with pytest.raises(CompatibilityError, match="never run"):
        lora_hub.apply_adapter(model, saved)
    assert anatomy(model) == before


def test_class_swapped_after_us_is_refused(model, saved):
    """If another library swapped the class after us, `remove` refuses, names the module and changes nothing."""
    handle = lora_hub.apply_adapter(model, saved)
    expected = logits(model)
    module = next(iter(handle.modules.values()))
    module.__class__ = type("Sharded", (type(module),), {})

    with pytest.raises(StateError, match="Sharded"):
        handle.remove()
    assert torch.equal(logits(model), expected)


def test_parameters_show_in_state_dict_on_demand(model, adapter):
    """Inside `adapters_in_state_dict` trainable parameters are in `state_dict`, and loading expects them."""
    with lora_hub.adapters_in_state_dict(model):
        shown = state(model)
        model.load_state_dict(shown, strict=True)
    hidden = state(model)

    assert {name for name in shown if "lora_" in name} == {n for n, p in model.named_parameters() if p.requires_grad}
    assert not any("lora_" in name for name in hidden)


def test_repr_names_the_adapters(model, adapter):
    """Printing the model shows which modules carry which adapters."""
    assert ") + task" in repr(model)
    assert "task" in repr(adapter)


def test_adapter_of_the_backbone_says_where_it_belongs(tmp_path):
    """An adapter made for the bare backbone, applied to the model with a head, is refused with the right remedy."""
    model = models.bert()
    adapter = lora_hub.add_adapter(model.bert, "task")
    lora_hub.save_adapter(adapter, tmp_path / "saved")
    adapter.remove()

    with pytest.raises(CompatibilityError, match=r"get_submodule\(.bert.\)"):
        lora_hub.apply_adapter(model, tmp_path / "saved")
    assert lora_hub.apply_adapter(model.bert, tmp_path / "saved").name == "saved"


def test_unknown_model_type_needs_module_names():
    """Parts need a plugin; the error of a model without one says what to do, and names of modules work."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))

    with pytest.raises(UsageError, match="lora-hub plugins"):
        lora_hub.add_adapter(model, "task")
    assert list(lora_hub.add_adapter(model, "task", targets=("0",)).modules) == ["0"]


def test_target_that_names_nothing_is_refused(model):
    """A typo beside a valid target is an error that lists what there is."""
    with pytest.raises(CompatibilityError, match="`q_porj` names nothing"):
        lora_hub.add_adapter(model, "task", targets=("q", "q_porj"))


def test_targets_as_a_string_is_refused(model):
    """`targets="qv"` would mean two targets to Python and one to a reader."""
    with pytest.raises(UsageError, match="string"):
        lora_hub.add_adapter(model, "task", targets="qv")


def test_shared_layer_is_adapted_once():
    """A module that stands at two paths is one module: it gets one adapter."""
    layer = torch.nn.Linear(4, 4)
    model = torch.nn.ModuleDict({"one": layer, "two": layer})
    handle = lora_hub.add_adapter(model, "task", targets=("one",))

    assert list(handle.modules) == ["one"]


def test_tensors_for_both_names_of_one_layer_are_refused(tmp_path):
    """An adapter with tensors for two paths that are one module here would lose one of them: refused."""
    apart = torch.nn.ModuleDict({"one": torch.nn.Linear(4, 4), "two": torch.nn.Linear(4, 4)})
    lora_hub.save_adapter(lora_hub.add_adapter(apart, "task", targets=("one", "two")), tmp_path / "saved")
    layer = torch.nn.Linear(4, 4)

    with pytest.raises(CompatibilityError, match="are one module"):
        lora_hub.apply_adapter(torch.nn.ModuleDict({"one": layer, "two": layer}), tmp_path / "saved")


class Nested(torch.nn.Module):
    """Two layers of which one's path ends like the other's whole path."""

    def __init__(self):
        super().__init__()
        self.q = torch.nn.Linear(4, 4)
        self.decoder = torch.nn.ModuleDict({"q": torch.nn.Linear(4, 4), "v": torch.nn.Linear(4, 4)})

    def forward(self, x):
        """Run all three."""
        return self.decoder["v"](self.decoder["q"](self.q(x)))


def test_paths_that_end_alike_are_told_apart(tmp_path):
    """`q` alone is saved such that neither PEFT nor we take `decoder.q` for it."""
    model, x = Nested(), torch.ones(2, 4)
    theirs = models.peft_directory(model, tmp_path / "peft", target_modules=["q"], exclude_modules=["decoder.q"])
    handle = lora_hub.apply_adapter(model, tmp_path / "peft")
    lora_hub.save_adapter(handle, tmp_path / "ours")
    handle.remove()
    again = lora_hub.apply_adapter(model, tmp_path / "ours")
    found = model(x)
    again.remove()

    assert list(again.modules) == ["q"]
    assert torch.allclose(found, theirs(x), atol=1e-6)
    assert torch.allclose(models.load_in_peft(model, tmp_path / "ours")(x), theirs(x), atol=1e-6)


def test_adding_to_the_parent_of_a_patched_part_is_refused(tmp_path):
    """The parent of a model with adapters cannot take others on the same modules; the part's own stays whole."""
    model = models.bert()
    lora_hub.add_adapter(model.bert, "task")
    models.randomise(models.adapter_parameters(model))
    before, outputs = anatomy(model), logits(model)

    with pytest.raises(StateError, match="of a part of it"):
        lora_hub.add_adapter(model, "task")
    assert anatomy(model) == before
    assert torch.equal(logits(model), outputs)


def test_failed_replace_keeps_the_old_one():
    """If the successor cannot take its place, the predecessor stays as it was."""
    model = models.bert()
    lora_hub.add_adapter(model, "head", modules_to_save=("classifier",))
    task = lora_hub.add_adapter(model, "task")
    models.randomise(models.adapter_parameters(model))
    before = logits(model)

    with pytest.raises(StateError, match="classifier"):
        lora_hub.add_adapter(model, "task", modules_to_save=("classifier",), replace=True)
    assert lora_hub.adapters(model)["task"] is task
    assert torch.equal(logits(model), before)


def test_output_projection_of_multihead_attention_is_refused():
    """`nn.MultiheadAttention` reads the weight of its `out_proj` and never calls it: an adapter there would be dead."""
    model = torch.nn.ModuleDict({"attention": torch.nn.MultiheadAttention(8, 2)})

    with pytest.raises(CompatibilityError, match="out_proj"):
        lora_hub.add_adapter(model, "task", targets=("out_proj",))


def test_subclass_that_needs_its_output_gets_right_gradients():
    """A subclass of `nn.Linear` whose backward needs its own output is not changed in place."""

    class Activated(torch.nn.Linear):
        def forward(self, x):
            return torch.relu(super().forward(x))

    torch.manual_seed(0)
    model = torch.nn.Sequential(Activated(6, 6))
    x = torch.randn(4, 6, requires_grad=True)
    handle = lora_hub.add_adapter(model, "task", targets=("0",))
    models.randomise(models.adapter_parameters(model))
    _, A, B = handle.weights().modules["0"][0]
    (expected,) = torch.autograd.grad((torch.relu(x @ model[0].weight.T + model[0].bias) + 2 * x @ A.T @ B.T).sum(), x)
    with lora_hub.use(model, "task"):
        (found,) = torch.autograd.grad(model(x).sum(), x)

    assert torch.allclose(found, expected, atol=1e-6)


def test_accelerate_came_and_went_before(model, saved):
    """Hooks of accelerate that were removed leave a bound `forward`: harmless, and there again afterwards."""
    from accelerate import cpu_offload
    from accelerate.hooks import remove_hook_from_submodules

    cpu_offload(model, execution_device=torch.device("cpu"))
    remove_hook_from_submodules(model)
    base = logits(model)
    handle = lora_hub.apply_adapter(model, saved)
    changed = logits(model)
    handle.remove()

    assert not torch.equal(changed, base)
    assert torch.equal(logits(model), base)


class Compiled(torch.nn.Module):
    """What torch.compile puts around a module, without compiling anything."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module
        self.config = getattr(module, "config", None)

    def forward(self, *args, **kwargs):
        """Call the module."""
        return self._orig_mod(*args, **kwargs)


def test_wrapped_model_is_adapted_by_its_own_paths(model, tmp_path):
    """An adapter that was made through a compiler's wrapper has the model's own paths, and loads on the bare model."""
    handle = lora_hub.add_adapter(Compiled(model), "task")
    models.randomise(models.adapter_parameters(model))
    expected = logits(model)
    lora_hub.save_adapter(handle, tmp_path / "saved")
    handle.remove()
    lora_hub.apply_adapter(model, tmp_path / "saved")

    assert not any("_orig_mod" in path for path in handle.modules)
    assert torch.equal(logits(model), expected)


def test_compiled_layer_inside_of_a_model(tmp_path):
    """What a compiler inserts in the middle of a path is not part of it, when saving and when applying."""
    model = models.llama()
    handle = lora_hub.add_adapter(model, "task")
    models.randomise(models.adapter_parameters(model))
    expected = logits(model)
    lora_hub.save_adapter(handle, tmp_path / "saved")
    handle.remove()
    model.model.layers[0].self_attn.q_proj = Compiled(model.model.layers[0].self_attn.q_proj)
    again = lora_hub.apply_adapter(model, tmp_path / "saved")
    lora_hub.save_adapter(again, tmp_path / "again")

    assert torch.equal(logits(model), expected)
    assert (tmp_path / "again" / "lora-hub.json").read_bytes() == (tmp_path / "saved" / "lora-hub.json").read_bytes()


def test_shown_parameters_are_those_of_one_model(family):
    """`adapters_in_state_dict(model)` shows the adapters of that model and of no other."""
    one, two = family.build(), family.build()
    for model in (one, two):
        lora_hub.add_adapter(model, "task")
    with lora_hub.adapters_in_state_dict(one):
        shown = [any("lora_" in name for name in state(model)) for model in (one, two)]

    assert shown == [True, False]


def test_roberta_classifier_from_peft(tmp_path):
    """A head of several layers beside LoRA on all linear layers: PEFT leaves out what is inside of the head."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    model = RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=61, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
            max_position_embeddings=40, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )
    ).eval()  # fmt: skip
    theirs = models.peft_directory(model, tmp_path / "peft", target_modules="all-linear", task_type="SEQ_CLS")
    base = logits(model)
    handle = lora_hub.apply_adapter(model, tmp_path / "peft")
    found = logits(model)
    lora_hub.save_adapter(handle, tmp_path / "ours")
    handle.remove()

    assert torch.allclose(found, logits(theirs), atol=1e-5)
    assert torch.allclose(logits(models.load_in_peft(model, tmp_path / "ours")), found, atol=1e-5)
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("choice", ["cross-attention", "untied head"])
def test_gpt2_variants(choice, tmp_path):
    """With cross-attention, its `c_attn` holds k and v and q lies apart; an untied head can be merged."""
    if choice == "cross-attention":
        model = models.gpt2(add_cross_attention=True)
        handle = lora_hub.add_adapter(model, "task", targets=("q", "v"))
        fused = {path: [part.name for part in parts] for path, parts in handle.weights().parts().items()}
        expected = {"attn.c_attn": ["q", "v"], "crossattention.q_attn": [None], "crossattention.c_attn": ["v"]}

        assert fused == {f"transformer.h.{i}.{path}": names for i in (0, 1) for path, names in expected.items()}
    else:
        model = models.gpt2(tie_word_embeddings=False)
        lora_hub.add_adapter(model, "task", targets=("lm_head",)).merge()


class Interrupted(BaseException):
    """Like Ctrl-C, which a test runner would take for its own."""


def interrupt(monkeypatch, where, name, call):
    """Let the *call*-th call of *name* raise, once."""
    real, calls = getattr(where, name), []

    def stop(*args):
        calls.append(args)
        if len(calls) == call:
            raise Interrupted
        return real(*args)

    monkeypatch.setattr(where, name, stop)


@pytest.mark.parametrize("merged", [False, True])
def test_interrupted_replace_brings_the_old_one_back(model, saved, monkeypatch, merged):
    """If the successor is interrupted half-way, the predecessor is back: same handle, same outputs, still merged."""
    from lora_hub.patch import attach

    old = lora_hub.apply_adapter(model, saved, name="task")
    if merged:
        old.merge()
    outputs, weights = logits(model), state(model)
    interrupt(monkeypatch, attach, "patch_module", 2)

    with pytest.raises(Interrupted):
        lora_hub.apply_adapter(model, saved, name="task", scale=2.0, replace=True)
    assert dict(lora_hub.adapters(model)) == {"task": old}
    assert old.merged == merged
    assert torch.equal(logits(model), outputs)
    assert same_bits(state(model), weights)


def test_interrupted_remove_can_be_repeated(model, adapter, monkeypatch):
    """A removal that was interrupted does not run half an adapter, and can be finished."""
    from lora_hub.patch import model_patch

    adapter.active = False
    base = logits(model)
    adapter.active = True
    interrupt(monkeypatch, model_patch, "restore_module", 2)
    with pytest.raises(Interrupted):
        adapter.remove()
    between = logits(model)
    adapter.remove()

    assert torch.equal(between, base)
    assert not any("Lora" in type(module).__name__ for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_failed_registration_leaves_no_trace(model):
    """If a parameter cannot be registered, the cause is what is raised, and the model is as it was."""
    before, modules = anatomy(model), dict(model.named_modules())
    layer = next(module for path, module in modules.items() if path.endswith(("value", "c_attn", "v_proj")))
    name = "lora_A__task%v" if hasattr(layer, "nf") else "lora_A__task"
    setattr(layer, name, None)

    with pytest.raises(KeyError, match="already exists"):
        lora_hub.add_adapter(model, "task")
    delattr(layer, name)
    assert anatomy(model) == before


def test_layers_that_a_fast_path_bypasses_are_refused():
    """`nn.TransformerEncoderLayer` reads the weights of its linear layers in evaluation: an adapter would be off."""
    model = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1)

    with pytest.raises(CompatibilityError, match="never calls it"):
        lora_hub.add_adapter(model, "task", targets=("linear1",))


def test_foreign_forward_under_a_hook_of_accelerate_is_refused(model, saved):
    """What hides behind accelerate's hook must be the class's own `forward` as well."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    layer = next(m for p, m in model.named_modules() if p.endswith(("query", "c_attn", "q_proj")))
    layer.forward = lambda x: x
    add_hook_to_module(layer, ModelHook())

    with pytest.raises(CompatibilityError, match="never run"):
        lora_hub.apply_adapter(model, saved)


def test_parent_of_a_patched_part_is_refused_whatever_is_targeted():
    """Two patches of overlapping models would freeze and thaw each other's base."""
    model = models.bert()
    lora_hub.add_adapter(model.bert, "task")

    with pytest.raises(StateError, match="of a part of it"):
        lora_hub.add_adapter(model, "other", targets=("classifier",))


@pytest.mark.parametrize("field", ["scale", "name", "modules", "trainable"])
def test_handle_is_fixed(model, adapter, field):
    """What a merge or a plan was computed from cannot be changed behind its back."""
    with pytest.raises(AttributeError, match="replace=True"):
        setattr(adapter, field, 2.0)


@pytest.mark.parametrize("trainable", [False, True])
def test_attaching_under_inference_mode(family, saved, trainable):
    """What is attached under `inference_mode` can be trained, or trained through, afterwards."""
    model = family.build()
    with torch.inference_mode():
        lora_hub.apply_adapter(model, saved, trainable=trainable)
    model(input_ids=models.tokens()).logits.sum().backward()

    assert all(p.grad is not None for n, p in model.named_parameters() if p.requires_grad and "pooler" not in n)


def test_layer_that_returns_its_input_is_not_changed_in_place():
    """The output of a layer that is not known to make a new tensor is copied before the delta is added."""

    class Gate(torch.nn.Linear):
        def forward(self, x):
            return x

    model, x = torch.nn.Sequential(Gate(4, 4)), torch.ones(2, 4)
    lora_hub.add_adapter(model, "task", targets=("0",))
    models.randomise(models.adapter_parameters(model))
    with torch.no_grad():
        model(x)

    assert torch.equal(x, torch.ones(2, 4))


@pytest.mark.parametrize("call", [1, 2])
def test_interrupted_replace_of_a_merged_adapter(model, saved, monkeypatch, call):
    """Wherever a replacement of a merged adapter is interrupted, it is merged once, and the base comes back."""
    from lora_hub.patch import model_patch

    weights = state(model)
    old = lora_hub.apply_adapter(model, saved, name="task")
    old.merge()
    merged = state(model)
    interrupt(monkeypatch, model_patch, "remerge", call)

    with pytest.raises(Interrupted):
        lora_hub.apply_adapter(model, saved, name="task", replace=True)
    assert same_bits(state(model), merged)
    old.remove()
    assert same_bits(state(model), weights)


def test_failed_replace_keeps_the_order_and_what_was_unfrozen(model, saved, monkeypatch):
    """After a failed replacement the order of the adapters is as it was, and a layer unfrozen by hand stays so."""
    from lora_hub.patch import attach

    lora_hub.add_adapter(model, "a")
    lora_hub.apply_adapter(model, saved, name="b")
    unfrozen = next(model.parameters()).requires_grad_(True)
    interrupt(monkeypatch, attach, "patch_module", 2)

    with pytest.raises(Interrupted):
        lora_hub.add_adapter(model, "a", replace=True)
    assert list(lora_hub.adapters(model)) == ["a", "b"]
    assert unfrozen.requires_grad


@pytest.mark.parametrize("change", ["pruned", "normed", "plain attribute"])
def test_weight_that_is_computed_after_attaching(change):
    """A weight that something else computes from then on is the one that the layer multiplies with."""
    model = models.llama()
    module = model.model.layers[0].self_attn.q_proj
    lora_hub.add_adapter(model, "new", targets=("q",))
    models.randomise(models.adapter_parameters(model))
    before = logits(model)
    match change:
        case "pruned":
            from torch.nn.utils.prune import random_unstructured

            random_unstructured(module, "weight", amount=0.5)
        case "normed":
            torch.nn.utils.parametrizations.orthogonal(module, "weight")
        case "plain attribute":
            weight = module.weight.detach() * 2
            del module._parameters["weight"]
            module.weight = weight
    seen = module.weight.detach().clone()
    x = torch.randn(2, 3, module.in_features)
    with torch.no_grad(), lora_hub.use(model, None):
        bare = module(x)
    with torch.no_grad():
        adapted = module(x)

    assert not torch.equal(logits(model), before)
    assert torch.allclose(bare, x @ seen.T, atol=1e-5)
    assert torch.allclose(adapted - bare, x @ (module.lora_B__new @ module.lora_A__new).T * 2, atol=1e-4)
