"""Training: the base is frozen, A and B learn, and heads too if asked."""

import models
import pytest
import torch
from models import logits, same_bits, state

import lora_hub
from lora_hub.errors import CompatibilityError, MalformedError, StateError, UnsavedAdapterWarning, UsageError


def loss(model, ids=None):
    """A loss of any of the three families."""
    return model(input_ids=models.tokens() if ids is None else ids).logits.square().mean()


def train(model, steps=3):
    """Train the adapter with a plain loop."""
    optimizer = torch.optim.AdamW(models.adapter_parameters(model), lr=1e-2)
    for _ in range(steps):
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_new_adapter_changes_nothing(model):
    """B is zero at the start, so the outputs are the base's bit for bit."""
    expected = logits(model)
    lora_hub.add_adapter(model, "task", targets=("q", "k", "v", "o"))

    assert torch.equal(logits(model), expected)


def test_new_factors_are_random_and_zero(model):
    """A is random, B is zero, and two adapters draw different A."""
    lora_hub.add_adapter(model, "one")
    lora_hub.add_adapter(model, "two")
    named = dict(model.named_parameters())
    A = {n: p for n, p in named.items() if "lora_A" in n}

    assert all((p != 0).any() for p in A.values())
    assert all((p == 0).all() for n, p in named.items() if "lora_B" in n)
    assert not any(torch.equal(p, A[n.replace("one", "two")]) for n, p in A.items() if n.endswith("one"))


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v", "o"), ("k",), ("o",)])
def test_only_a_and_b_get_gradients(model, targets):
    """Every A and B gets a gradient, nothing else does."""
    lora_hub.add_adapter(model, "task", targets=targets)
    models.randomise(models.adapter_parameters(model))
    loss(model).backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}

    assert got == {name for name, _ in model.named_parameters() if "lora_" in name}


def test_parameter_count_is_r_times_in_plus_out(family):
    """A and B of q and v hold r x (in + out) numbers each; on a fused projection the parts count, not the module."""
    model = family.build()
    handle = lora_hub.add_adapter(model, "task", r=4)
    widths = {"bert": (48, 48), "gpt2": (48, 48), "llama": (64, 32)}
    name = next(key for key, value in models.FAMILIES.items() if value is family)

    assert handle.parameter_count() == sum(4 * (48 + width) for width in widths[name]) * 2


@pytest.mark.parametrize("rslora", [False, True])
def test_scaling(rslora):
    """The delta is alpha/r BA x, or alpha/√r BA x with rsLoRA."""
    layer = torch.nn.Sequential(torch.nn.Linear(6, 5, bias=False)).double()
    handle = lora_hub.add_adapter(layer, "task", r=4, lora_alpha=3, targets=("0",), use_rslora=rslora)
    models.randomise(models.adapter_parameters(layer))
    (A, B) = (tensor for _, tensor in handle.weights().tensors())
    x = torch.randn(2, 6, dtype=torch.float64)
    expected = x @ layer[0].weight.T + (3 / 2 if rslora else 3 / 4) * x @ A.T @ B.T

    assert torch.allclose(layer(x), expected, rtol=1e-12)


def test_training_moves_the_adapter_only(model):
    """After training the outputs changed, and every bit of the base is as it was."""
    before, expected = state(model), logits(model)
    handle = lora_hub.add_adapter(model, "task")
    train(model)

    assert not torch.equal(logits(model), expected)
    assert same_bits(state(model), before)
    handle.remove()
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(family, reentrant):
    """With gradient checkpointing of transformers, in both modes, the gradients are those without it."""
    plain, checkpointed = family.build(), family.build()
    found = []
    for model in (plain, checkpointed):
        lora_hub.add_adapter(model, "task")
        models.randomise(models.adapter_parameters(model))
        model.train()
        if model is checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        loss(model).backward()
        found.append([p.grad for p in models.adapter_parameters(model)])

    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_trains_in_float32_on_a_bfloat16_base(family):
    """A and B are float32 on a low-precision base, and get float32 gradients."""
    model = family.build().to(torch.bfloat16)
    lora_hub.add_adapter(model, "task")
    models.randomise(models.adapter_parameters(model))
    loss(model).backward()
    parameters = models.adapter_parameters(model)

    assert {p.dtype for p in parameters} == {p.grad.dtype for p in parameters} == {torch.float32}


def test_trains_under_autocast(model):
    """Under autocast every A and B gets a gradient."""
    lora_hub.add_adapter(model, "task")
    models.randomise(models.adapter_parameters(model))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss(model).backward()

    assert all(p.grad.abs().sum() > 0 for p in models.adapter_parameters(model))


def test_dropout_acts_in_training_only(model):
    """`lora_dropout` makes outputs random in training mode, and does nothing in evaluation mode."""
    lora_hub.add_adapter(model, "task", lora_dropout=0.5)
    models.randomise(models.adapter_parameters(model))
    quiet = [logits(model) for _ in range(2)]
    model.train()
    noisy = [logits(model) for _ in range(2)]

    assert torch.equal(*quiet)
    assert not torch.equal(*noisy)


def test_applied_adapter_can_be_trained_on(model, saved):
    """`apply_adapter(trainable=True)` makes parameters of A and B, equal at the start and free to move."""
    lora_hub.apply_adapter(model, saved).remove()
    frozen = lora_hub.apply_adapter(model, saved, name="frozen")
    expected = logits(model)
    frozen.remove()
    handle = lora_hub.apply_adapter(model, saved, name="moving", trainable=True)
    start = logits(model)
    train(model)

    assert torch.equal(start, expected)
    assert not torch.equal(logits(model), expected)
    assert handle.has_unsaved_changes()


def test_requires_grad_comes_back_with_the_last_trainable_adapter(model):
    """The base stays frozen while one trainable adapter is left; then each parameter is as it was."""
    frozen = next(model.parameters()).requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    one, two = lora_hub.add_adapter(model, "one"), lora_hub.add_adapter(model, "two")
    one.remove()
    between = {p.requires_grad for n, p in model.named_parameters() if "lora_" not in n}
    two.remove()

    assert between == {False}
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before
    assert not frozen.requires_grad


# Heads


def test_head_starts_as_the_base_and_learns():
    """A head in `modules_to_save` starts from the base's values and gets gradients; the base's own does not."""
    model = models.bert()
    expected, before = logits(model), state(model)
    handle = lora_hub.add_adapter(model, "task", modules_to_save=("classifier",))
    start = logits(model)
    train(model)
    trained = logits(model)
    changed = {
        name
        for name, tensor in handle.weights().tensors()
        if name.startswith("classifier") and not torch.equal(tensor, before[name])
    }
    handle.remove()

    assert torch.equal(start, expected)
    assert not torch.equal(trained, expected)
    assert changed == {"classifier.weight", "classifier.bias"}
    assert same_bits(state(model), before)


def test_head_follows_use():
    """Under `use(model, None)` the base's own head runs."""
    model = models.llama_classifier()
    expected = logits(model)
    lora_hub.add_adapter(model, "task", modules_to_save=("score",))
    models.randomise(models.adapter_parameters(model))
    with lora_hub.use(model, None):
        assert torch.equal(logits(model), expected)


def test_head_with_children():
    """A head of several layers is replaced as a whole, and its parts stay where they are in the module tree."""
    model = models.bert()
    names = [name for name, _ in model.named_modules()]
    base = logits(model)
    handle = lora_hub.add_adapter(model, "task", targets=("q",), modules_to_save=("bert.pooler",))
    models.randomise([p for n, p in model.named_parameters() if "pooler" in n and p.requires_grad])

    assert [name for name, _ in model.named_modules()] == names
    assert not torch.equal(logits(model), base)
    assert {n for n, _ in handle.weights().tensors() if "pooler" in n} == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
    }


def test_second_head_starts_from_the_bare_base():
    """A head that is added beside another starts from the base's own values."""
    model = models.bert()
    expected = logits(model)
    first = lora_hub.add_adapter(model, "first", modules_to_save=("classifier",))
    models.randomise(models.adapter_parameters(model))
    first.active = False
    lora_hub.add_adapter(model, "second", modules_to_save=("classifier",))

    assert torch.equal(logits(model), expected)


def test_bare_copy_of_a_merged_head_is_the_base():
    """What a new head starts from is the original also while another is merged into it."""
    from lora_hub.patch.layer import bare_copy

    model = models.bert()
    expected = model.classifier.weight.clone()
    handle = lora_hub.add_adapter(model, "task", modules_to_save=("classifier",))
    models.randomise(models.adapter_parameters(model))
    handle.merge()
    copied = bare_copy(model.classifier)

    assert type(copied) is torch.nn.Linear
    assert torch.equal(copied.weight, expected)
    assert [name for name, _ in copied.named_parameters()] == ["weight", "bias"]


def test_head_over_an_adapted_layer_is_refused_while_both_would_run():
    """LoRA of one adapter on a module that another replaces would be lost, so they cannot run at once."""
    model = models.bert()
    lora_hub.add_adapter(model, "lora", targets=("classifier",))
    with pytest.raises(StateError, match="`head` and `lora` both change `classifier`"):
        lora_hub.add_adapter(model, "head", modules_to_save=("classifier",))
    lora_hub.adapters(model)["lora"].active = False
    lora_hub.add_adapter(model, "head", modules_to_save=("classifier",))
    models.randomise([p for n, p in model.named_parameters() if "__head%" in n])

    with lora_hub.use(model, "lora"):
        lora = logits(model)
    assert not torch.equal(lora, logits(model))
    with pytest.raises(StateError, match="both change"), lora_hub.use(model, {"lora": 1, "head": 1}):
        pass


def test_target_inside_of_its_own_head_is_left_out(tmp_path):
    """LoRA inside of a module that the same adapter replaces would be dead: it is left out, as in PEFT."""
    model = models.bert()
    handle = lora_hub.add_adapter(model, "task", targets=("dense",), modules_to_save=("pooler", "pooler.dense"))
    models.randomise(models.adapter_parameters(model))
    loss(model).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    ours = logits(model)
    lora_hub.save_adapter(handle, tmp_path / "saved")
    handle.remove()

    assert without == []
    assert "bert.pooler.dense" not in handle.modules
    assert torch.allclose(ours, logits(models.load_in_peft(model, tmp_path / "saved")), atol=1e-5)


def test_head_that_peft_would_confuse_is_refused():
    """PEFT takes `pre_classifier` for `classifier`: naming one alone is refused, naming both is right."""
    model = torch.nn.ModuleDict({n: torch.nn.Linear(4, 4) for n in ("proj", "classifier", "pre_classifier")})
    with pytest.raises(CompatibilityError, match="pre_classifier"):
        lora_hub.add_adapter(model, "task", targets=("proj",), modules_to_save=("classifier",))
    both = lora_hub.add_adapter(model, "task", targets=("proj",), modules_to_save=("classifier", "pre_classifier"))

    assert both.heads == {"classifier", "pre_classifier"}


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_head_follows_the_model_to_another_dtype(tmp_path, trainable, dtype):
    """A replaced head computes in the dtype of the model after `.to(dtype)`, and is saved as it was read."""
    model = models.bert()
    handle = lora_hub.add_adapter(model, "task", modules_to_save=("classifier",))
    models.randomise(models.adapter_parameters(model))
    lora_hub.save_adapter(handle, tmp_path / "saved")
    handle.remove()
    applied = lora_hub.apply_adapter(model, tmp_path / "saved", trainable=trainable)
    expected = logits(model)
    found = logits(model.to(dtype))
    kept = {t.dtype for n, t in applied.weights().tensors() if n.startswith("classifier")}

    assert found.dtype is dtype
    assert torch.allclose(found.float(), expected, atol=0.15)
    assert trainable or kept == {torch.float32}


def test_hooks_of_a_replaced_head_run_once():
    """A forward hook on a module runs once around what replaces it, not once more in the copy."""
    model = models.bert()
    model.classifier.register_forward_hook(lambda module, args, output: output * 2)
    expected = logits(model)
    lora_hub.add_adapter(model, "task", modules_to_save=("classifier",))

    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("way", ["scale", "weight"])
def test_factor_zero_turns_a_head_off(tmp_path, way):
    """A head is replaced whole whatever the factor, unless it is 0: then the base's own runs."""
    model = models.bert()
    base = logits(model)
    handle = lora_hub.add_adapter(model, "task", modules_to_save=("classifier",))
    models.randomise(models.adapter_parameters(model))
    lora_hub.save_adapter(handle, tmp_path / "saved")
    handle.remove()
    lora_hub.apply_adapter(model, tmp_path / "saved", name="task", scale=0.0 if way == "scale" else 1.0)
    with lora_hub.use(model, {"task": 0.0 if way == "weight" else 1.0}):
        found = logits(model)

    assert torch.equal(found, base)


def test_unknown_head_is_refused():
    """A head that the model does not have is an error that lists its parts."""
    with pytest.raises(CompatibilityError, match="bert, dropout, classifier"):
        lora_hub.add_adapter(models.bert(), "task", modules_to_save=("clasifier",))


def test_head_of_another_size_is_refused(tmp_path):
    """A classifier with another number of labels does not fit, and the error names the remedy."""
    model = models.bert()
    handle = lora_hub.add_adapter(model, "task", modules_to_save=("classifier",))
    lora_hub.save_adapter(handle, tmp_path / "saved")
    other = models.bert()
    other.classifier = torch.nn.Linear(48, 5)

    with pytest.raises(CompatibilityError, match="num_labels"):
        lora_hub.apply_adapter(other, tmp_path / "saved")
    assert dict(lora_hub.adapters(other)) == {}


# Precision, freezing


def test_gradients_on_a_bfloat16_base_are_those_of_float32():
    """A and B in float32 over a bfloat16 layer get gradients that are exact to float32, as PEFT's are.

    The reference is float64 on the same rounded input; 1e-5 leaves room for the order of a float32 sum of 512 terms.
    """
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64, bias=False)).to(torch.bfloat16)
    handle = lora_hub.add_adapter(model, "task", targets=("0",))
    models.randomise(models.adapter_parameters(model))
    x, dy = torch.randn(512, 64).bfloat16(), torch.randn(512, 64).bfloat16()
    model(x).backward(dy)
    A, B = (tensor.double() for _, tensor in handle.weights().tensors())
    exact = {"lora_A": 2 * (dy.double() @ B).T @ x.double(), "lora_B": 2 * dy.double().T @ (x.double() @ A.T)}

    for name, parameter in model.named_parameters():
        if "lora_" in name:
            reference = exact[name.split("__")[0].removeprefix("0.")]
            assert (parameter.grad - reference).norm() / reference.norm() < 1e-5


def test_several_adapters_round_once(tmp_path):
    """The sum of three adapters is added to a bfloat16 output in float32 and rounded once.

    Against float64 the RMS error stays within 5% of that of the exact sum on the base's rounded output, rounded once:
    what is left is the rounding of each delta of 10% of W to bfloat16. A rounding after each adapter would make it 40%.
    """
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(128, 128, bias=False))
    for name in "abc":
        handle = lora_hub.add_adapter(model, name, targets=("0",))
        models.randomise([p for n, p in model.named_parameters() if n.endswith(name)], seed=ord(name), scale=0.03)
        lora_hub.save_adapter(handle, tmp_path / name)
        handle.remove()
    model.to(torch.bfloat16)
    x = torch.randn(1024, 128).bfloat16()
    base = model(x).detach()
    exact = torch.zeros(1024, 128, dtype=torch.float64)
    for name in "abc":
        A, B = (t.double() for _, t in lora_hub.apply_adapter(model, tmp_path / name).weights().tensors())
        exact += 2 * x.double() @ A.T @ B.T
    reference = x.double() @ model[0].weight.double().T + exact
    found = (model(x).double() - reference).square().mean().sqrt()
    best = ((base.double() + exact).bfloat16().double() - reference).square().mean().sqrt()

    assert found <= 1.05 * best


def test_requires_grad_comes_back_after_weights_were_replaced(model):
    """Loading with `assign=True` replaces the parameters; their `requires_grad` comes back all the same."""
    handle = lora_hub.add_adapter(model, "task")
    model.load_state_dict(state(model), assign=True)
    handle.remove()

    assert all(parameter.requires_grad for parameter in model.parameters())


def test_names_of_parameters_do_not_collide():
    """Adapter and part are told apart in the names of parameters, whatever the adapters are called."""
    model = models.gpt2()
    lora_hub.add_adapter(model, "x", targets=("q", "v"))
    models.randomise(models.adapter_parameters(model))
    expected = logits(model)
    lora_hub.add_adapter(model, "q__x", targets=("c_attn",))
    lora_hub.add_adapter(model, "x__q", targets=("c_attn",))

    assert torch.equal(logits(model), expected)


def test_training_after_inference_mode(saved, family):
    """What a forward under `inference_mode` placed may be needed by a later backward."""
    model = family.build().to(torch.bfloat16)
    lora_hub.apply_adapter(model, saved, name="frozen")
    with torch.inference_mode():
        model(input_ids=models.tokens())
    lora_hub.add_adapter(model, "task")
    loss(model).backward()

    assert all(p.grad is not None for p in models.adapter_parameters(model))


# Warnings and arguments


def test_save_pretrained_warns_of_unsaved_training(model, tmp_path):
    """`save_pretrained` with a trained and unsaved adapter warns and names `save_adapter`; once saved it is silent."""
    handle = lora_hub.add_adapter(model, "task")
    model.save_pretrained(tmp_path / "untrained")
    train(model)
    with pytest.warns(UnsavedAdapterWarning, match="save_adapter"):
        model.save_pretrained(tmp_path / "unsaved")
    lora_hub.save_adapter(handle, tmp_path / "adapter")

    model.save_pretrained(tmp_path / "saved")


def test_cast_but_untrained_adapter_is_nothing_to_save(model, tmp_path):
    """An adapter that was only cast has nothing to lose, so saving the base is silent."""
    lora_hub.add_adapter(model, "task")
    model.to(torch.bfloat16)

    model.save_pretrained(tmp_path / "base")


def test_state_dict_warns_of_unsaved_training(model, adapter):
    """Every way of saving that goes through `state_dict` would lose the adapter, and says so."""
    with pytest.warns(UnsavedAdapterWarning, match="AdapterTrainerMixin"):
        model.state_dict()


def test_diverged_adapter_is_not_saved(model, adapter, tmp_path):
    """NaN in an adapter is an error when it is saved: nothing could load it."""
    with torch.no_grad():
        models.adapter_parameters(model)[0][0, 0] = float("nan")

    with pytest.raises(MalformedError, match="diverged"):
        lora_hub.save_adapter(adapter, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_numbers_of_numpy_are_numbers(model, tmp_path):
    """A number of numpy is taken for what it is, and written as plain JSON."""
    import numpy as np

    handle = lora_hub.add_adapter(model, "task", lora_alpha=np.float32(16), lora_dropout=np.float64(0.5))
    lora_hub.save_adapter(handle, tmp_path / "saved")

    assert lora_hub.apply_adapter(model, tmp_path / "saved").info.lora_dropout == 0.5


@pytest.mark.parametrize(
    "options",
    [{"r": 0}, {"r": -1}, {"r": 2.5}, {"r": True}, {"r": 10**6}, {"lora_dropout": 1.0}, {"lora_dropout": -0.1},
     {"lora_dropout": "x"}, {"targets": ()}, {"lora_alpha": float("nan")}, {"lora_alpha": "16"}, {"lora_alpha": True}],
)  # fmt: skip
def test_bad_numbers_are_refused(model, options):
    """Ranks, alphas and probabilities out of range are usage errors; the model is as it was."""
    before = state(model)

    with pytest.raises(UsageError):
        lora_hub.add_adapter(model, "task", **options)
    assert dict(lora_hub.adapters(model)) == {}
    assert same_bits(state(model), before)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("child", "options"),
    [
        (torch.nn.BatchNorm1d(4), {"modules_to_save": ("child",)}),
        (torch.nn.Dropout(), {"modules_to_save": ("child",)}),
        (torch.nn.ModuleDict({"en:de": torch.nn.Linear(4, 4)}), {"targets": ("en:de",)}),
        (torch.nn.ModuleDict({"base_layer": torch.nn.Linear(4, 4)}), {"targets": ("base_layer",)}),
    ],
    ids=["integers in a head", "a head without tensors", "a path of other characters", "a name of PEFT's own"],
)
def test_what_could_not_be_saved_is_not_trained(child, options):
    """What `save_adapter` would refuse after the training is refused before it, and the model is as it was."""
    model = torch.nn.ModuleDict({"proj": torch.nn.Linear(4, 4), "child": child})

    with pytest.raises(UsageError):
        lora_hub.add_adapter(model, "task", **{"targets": ("proj",)} | options)
    assert dict(lora_hub.adapters(model)) == {}


def test_offloaded_head_is_refused():
    """A head whose weights are elsewhere cannot be copied: an error of ours, with the remedy."""
    model = models.bert()
    model.classifier.to("meta")

    with pytest.raises(StateError, match="offloaded"):
        lora_hub.add_adapter(model, "task", modules_to_save=("classifier",))


def test_head_with_weights_tied_inside_is_refused():
    """Two names of one tensor cannot be written into a file, which is said before the training."""
    head = torch.nn.ModuleDict({"k": torch.nn.Linear(4, 4), "l": torch.nn.Linear(4, 4)})
    head["k"].weight = head["l"].weight
    model = torch.nn.ModuleDict({"proj": torch.nn.Linear(4, 4), "head": head})

    with pytest.raises(UsageError, match="are one tensor"):
        lora_hub.add_adapter(model, "task", targets=("proj",), modules_to_save=("head",))


class Scaled(torch.nn.Linear):
    """A layer with a buffer that is not saved."""

    def __init__(self):
        super().__init__(4, 4)
        self.register_buffer("factor", torch.ones(1), persistent=False)

    def forward(self, x):
        """Scale the output."""
        return super().forward(x) * self.factor


def test_head_with_a_buffer_that_is_not_saved(tmp_path):
    """A buffer outside of `state_dict` follows the module to another dtype as well."""
    model = torch.nn.ModuleDict({"proj": torch.nn.Linear(4, 4), "head": Scaled()})
    handle = lora_hub.add_adapter(model, "task", targets=("proj",), modules_to_save=("head",))
    lora_hub.save_adapter(handle, tmp_path / "saved")
    handle.remove()
    lora_hub.apply_adapter(model, tmp_path / "saved")
    model.double()

    assert model["head"](torch.ones(2, 4, dtype=torch.float64)).dtype is torch.float64


def test_head_that_does_not_fit_float16_is_not_merged(tmp_path):
    """A head in float32 that float16 cannot hold is refused when it is merged, and nothing changes."""
    model = models.bert()
    handle = lora_hub.add_adapter(model, "task", modules_to_save=("classifier",))
    models.randomise([p for n, p in model.named_parameters() if "head__" in n], scale=1e6)
    lora_hub.save_adapter(handle, tmp_path / "saved")
    handle.remove()
    model.half()
    before = state(model)
    applied = lora_hub.apply_adapter(model, tmp_path / "saved")

    with pytest.raises(StateError, match="too large"):
        applied.merge()
    assert same_bits(state(model), before)
