"""Gradients: those of ``W + factor * B A`` by autograd itself, those of PEFT, and what is kept for them."""

import copy
import warnings

import models
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import lora_hub
from lora_hub.patch import stack

MODES = {"plain": None, "reentrant": True, "non-reentrant": False}


def layer(*names, bias=True, dtype=torch.float64, sizes=(6, 5), **options):
    """One linear layer with trainable adapters of rank 2, each with values of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(*sizes, bias=bias)).to(dtype)
    for number, name in enumerate(names):
        lora_hub.add_adapter(model, name, r=2, lora_alpha=3 + number, targets=("0",), **options)
        models.randomise([p for n, p in model.named_parameters() if n.endswith(name)], seed=10 + number)
    return model


def frozen(model, tmp_path, name):
    """Put the adapter *name* back on *model* as a frozen one."""
    handle = lora_hub.adapters(model)[name]
    lora_hub.save_adapter(handle, tmp_path / name)
    handle.remove()
    return lora_hub.apply_adapter(model, tmp_path / name, name=name)


def trained(model):
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def factors(model, name, path="0"):
    """A and B of the adapter *name*, as its parameters."""
    module = model.get_submodule(path)
    return getattr(module, f"lora_A__{name}"), getattr(module, f"lora_B__{name}")


def materialised(model, x, weights):
    """The output of W + sum of factor * B A, for autograd to differentiate; alpha/r is (3 + number) / 2."""
    weight = model[0].weight
    for number, (name, factor) in enumerate(weights.items()):
        A, B = factors(model, name)
        weight = weight + factor * (3 + number) / 2 * (B @ A)
    return functional.linear(x, weight, model[0].bias)


def random(*shape, dtype=torch.float64, seed=5):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def grads(y, inputs, dy):
    return torch.autograd.grad(y, inputs, dy, allow_unused=True)


def close(found, exact, rtol=1e-10):
    """Whether all tensors agree; in float64 only the order of sums may differ."""
    return all(torch.allclose(a, b, rtol=rtol, atol=rtol) for a, b in zip(found, exact, strict=True))


# The formulas


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6), (2, 3, 2, 6), (0, 6), (2, 0, 6)], ids=str)
def test_gradients_are_those_of_the_materialised_weight(shape, bias):
    """Inputs of 1 to 4 dimensions, also empty ones, get the gradients of W + BA; so do A and B."""
    model = layer("task", bias=bias)
    x = random(*shape).requires_grad_()
    inputs, dy = [x, *trained(model).values()], random(*shape[:-1], 5, seed=6)
    y = model(x)
    exact = materialised(model, x, {"task": 1.0})

    assert torch.allclose(y, exact, rtol=1e-12)
    assert close(grads(y, inputs, dy), grads(exact, inputs, dy))


@pytest.mark.parametrize("layout", ["transposed", "expanded", "strided"])
def test_input_may_lie_in_memory_in_any_way(layout):
    """A transposed, expanded or strided input gets the gradients of W + BA, whole and in blocks."""
    model = layer("task")
    x = {
        "transposed": random(3, 4, 6).transpose(0, 1),
        "expanded": random(1, 6).expand(5, 6),
        "strided": random(4, 12)[:, ::2],
    }[layout].requires_grad_()
    inputs, dy = [x, *trained(model).values()], random(*x.shape[:-1], 5, seed=6)

    assert close(grads(model(x), inputs, dy), grads(materialised(model, x, {"task": 1.0}), inputs, dy))


def test_blocks_change_nothing(monkeypatch):
    """With many small blocks, gradients of a bfloat16 layer are those of one block, up to the order of sums."""
    x, dy = random(4, 5, 6, dtype=torch.bfloat16), random(4, 5, 5, dtype=torch.bfloat16, seed=6)
    found = []
    for elements in (6, 1 << 20):
        monkeypatch.setattr(stack, "_BLOCK_ON_CPU", elements)
        model = layer("task", dtype=torch.bfloat16)
        found.append(grads(model(x), list(trained(model).values()), dy))

    assert close(*found, rtol=1e-5)


def test_sum_of_trained_adapters():
    """Each of two trained adapters in a weighted sum gets the gradients of its own A and B."""
    model = layer("one", "two")
    x = random(4, 6).requires_grad_()
    inputs, dy = [x, *trained(model).values()], random(4, 5, seed=6)
    weights = {"one": 0.5, "two": -2.0}
    with lora_hub.use(model, weights):
        y = model(x)

    assert close(grads(y, inputs, dy), grads(materialised(model, x, weights), inputs, dy))


@pytest.mark.parametrize("order", ["frozen first", "trained first"])
def test_frozen_adapter_beside_a_trained_one(tmp_path, order):
    """In a sum with a frozen adapter, the trained one gets its gradients, and x those of both."""
    model = layer("one", "two")
    x = random(4, 6).requires_grad_()
    exact = materialised(model, x, {"one": 1.0, "two": 1.0})
    expected = grads(exact, [x, *factors(model, "two")], random(4, 5, seed=6))
    frozen(model, tmp_path, "one")
    names = ("one", "two") if order == "frozen first" else ("two", "one")
    with lora_hub.use(model, dict.fromkeys(names, 1.0)):
        y = model(x)

    assert len(trained(model)) == 2
    assert close(grads(y, [x, *factors(model, "two")], random(4, 5, seed=6)), expected)


def test_adapter_that_is_not_used_gets_no_gradient():
    """Under `use` of one of two trained adapters, the other's gradients are None, not zero."""
    model = layer("one", "two")
    with lora_hub.use(model, "one"):
        model(random(4, 6)).sum().backward()

    assert all(parameter.grad is not None for parameter in factors(model, "one"))
    assert [parameter.grad for parameter in factors(model, "two")] == [None, None]


ROUTE = ["one", None, "two", {"one": 0.5, "two": -1.0}, "one"]


@pytest.mark.parametrize("shape", [(5, 6), (5, 3, 6), (10, 3, 6), (5, 2, 3, 6)], ids=str)
def test_route_trains_each_adapter_on_its_rows(shape):
    """Adapters that are trained in one batch get the gradients of their rows; so do the rows of x."""
    model = layer("one", "two")
    x = random(*shape).requires_grad_()
    inputs, dy = [x, *trained(model).values()], random(*shape[:-1], 5, seed=6)
    with lora_hub.route(model, ROUTE):
        y = model(x)
    each = x.view(5, -1, *shape[1:])
    rows = []
    for row, choice in zip(each, ROUTE, strict=True):
        given = choice if isinstance(choice, dict) else {choice: 1.0} if choice else {}
        # In the order in which they came, so that each has its own alpha.
        rows.append(materialised(model, row, {name: given.get(name, 0.0) for name in ("one", "two")}))
    exact = torch.stack(rows).view(*shape[:-1], 5)

    assert torch.allclose(y, exact, rtol=1e-12)
    assert close(grads(y, inputs, dy), grads(exact, inputs, dy))


def test_route_of_ranks_that_differ(tmp_path):
    """Trained and frozen adapters of other ranks, in one batch, give the outputs and gradients of one at a time."""
    model = layer("one", "two")
    lora_hub.add_adapter(model, "wide", r=11, targets=("0",))
    models.randomise(factors(model, "wide"), seed=20)
    frozen(model, tmp_path, "two")
    x, choices = random(4, 3, 6), ["wide", "two", None, "one"]
    with lora_hub.route(model, choices):
        y = model(x)
    alone = []
    for row, choice in zip(x, choices, strict=True):
        with lora_hub.use(model, choice):
            alone.append(model(row))
    exact = torch.stack(alone)
    inputs, dy = list(trained(model).values()), random(4, 3, 5, seed=6)

    assert close(grads(y, inputs, dy), grads(exact, inputs, dy))


def test_base_that_is_trained_under_a_frozen_adapter(tmp_path):
    """W and bias of a base that nobody froze get the gradients of W + BA, and so does x."""
    model = layer("task")
    x, dy = random(4, 3, 6).requires_grad_(), random(4, 3, 5, seed=6)
    A, B = (tensor.detach().clone() for tensor in factors(model, "task"))
    frozen(model, tmp_path, "task")
    inputs = [x, model[0].weight, model[0].bias]
    exact = functional.linear(x, model[0].weight + 1.5 * B @ A, model[0].bias)

    assert all(tensor.requires_grad for tensor in inputs)
    assert close(grads(model(x), inputs, dy), grads(exact, inputs, dy))


def test_base_that_is_trained_beside_a_trained_adapter():
    """A base that is thawed by hand trains together with the adapter."""
    model = layer("task").requires_grad_()
    x, dy = random(4, 3, 6).requires_grad_(), random(4, 3, 5, seed=6)
    inputs = [x, *trained(model).values()]

    assert len(inputs) == 5
    assert close(grads(model(x), inputs, dy), grads(materialised(model, x, {"task": 1.0}), inputs, dy))


def test_a_alone_is_trained():
    """Parameters that the user froze get no gradient; the others get theirs."""
    model = layer("task")
    A, B = factors(model, "task")
    B.requires_grad_(False)
    x, dy = random(4, 6), random(4, 5, seed=6)
    model(x).backward(dy)
    (exact,) = grads(materialised(model, x, {"task": 1.0}), [A], dy)

    assert torch.allclose(A.grad, exact)
    assert B.grad is None


def test_lora_alpha_of_zero():
    """An adapter that counts nothing changes nothing, and gets zeros."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5)).double()
    x = random(4, 6)
    expected = model(x)
    lora_hub.add_adapter(model, "task", lora_alpha=0, targets=("0",))
    models.randomise(trained(model).values())
    y = model(x)
    y.sum().backward()

    assert torch.equal(y, expected)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in trained(model).values())


# Autograd's own check


LATER = {"two dropouts": 0.25, "route with dropout": 0.5}  # the dropout of the second adapter
KINDS = [
    "one", "sum", "frozen in the sum", "route", "dropout", "two dropouts", "route with dropout", "fused", "frozen only",
]  # fmt: skip


@pytest.fixture(params=KINDS)
def checked(request, tmp_path):
    """A function of x and of what is trained, and its arguments, for gradcheck."""
    kind, choice = request.param, None
    model = layer("one", **({"lora_dropout": 0.5} if "dropout" in kind else {})).train()
    if kind not in {"one", "dropout", "fused"}:
        lora_hub.add_adapter(model, "two", r=3, targets=("0",), lora_dropout=LATER.get(kind, 0.0))
        models.randomise(factors(model, "two"), seed=20)
    if kind.startswith("frozen"):
        frozen(model, tmp_path, "one")
    if kind == "frozen only":
        frozen(model, tmp_path, "two")
        model.requires_grad_(False)
    if kind == "sum":
        choice = lora_hub.use(model, {"one": 0.5, "two": -1.0})
    if kind.startswith("route"):
        # The second adapter runs alone in one row, and after another one in the next.
        choice = lora_hub.route(model, ["two", None, {"one": 0.5, "two": 1.0}])
    module = model[0]
    if kind == "fused":
        model = models.gpt2().double()
        lora_hub.add_adapter(model, "task", r=2, targets=("q", "v"))
        models.randomise(models.adapter_parameters(model))
        module = model.transformer.h[0].attn.c_attn
    named = trained(module)

    def function(x, *values):
        torch.manual_seed(0)
        call = lambda: functional_call(module, dict(zip(named, values, strict=True)), (x,))
        return call() if choice is None else choice.bind(call)()

    x = random(3, 2, 48 if kind == "fused" else 6)
    return function, tuple(t.detach().clone().requires_grad_() for t in (x, *named.values()))


def test_gradcheck(checked):
    """Gradients are those of finite differences, with undefined ones as well."""
    function, inputs = checked

    assert gradcheck(function, inputs, fast_mode=True)


def test_gradgradcheck(checked):
    """Gradients of gradients are those of finite differences."""
    function, inputs = checked

    assert gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("choice", [None, {"one": 1.0, "two": 0.5}, ["one", "two"]], ids=["default", "sum", "route"])
def test_batched_gradients(choice):
    """A Jacobian whose rows are computed at once is that of one row after the other."""
    model, x = layer("one", "two"), random(2, 6)

    def call(value):
        if choice is None:
            return model(value)
        chosen = lora_hub.route(model, choice) if isinstance(choice, list) else lora_hub.use(model, choice)
        with chosen:
            return model(value)

    one, other = (torch.autograd.functional.jacobian(call, x, vectorize=vectorize) for vectorize in (False, True))

    assert torch.allclose(one, other)


# PEFT


def in_peft(model, directory):
    """PEFT's model with the adapter of *directory*, to be trained on."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(copy.deepcopy(model), directory, is_trainable=True)


def loss(model, ids=None):
    return model(input_ids=models.tokens() if ids is None else ids).logits.float().square().mean()


def of_peft(peft_model):
    """The gradients of PEFT's model, by path and factor."""
    return {
        name.removeprefix("base_model.model.").replace(".default.weight", ""): p.grad
        for name, p in peft_model.named_parameters()
        if p.grad is not None
    }


def of_ours(model, name="task"):
    """Our gradients under the same names."""
    return {n.replace(f"__{name}", ""): p.grad for n, p in model.named_parameters() if p.grad is not None}


def deviation(found, exact):
    """The greatest difference of any gradient in units of its greatest value."""
    assert found.keys() == exact.keys()
    return max(((found[n] - exact[n]).abs().max() / exact[n].abs().max()).item() for n in exact)


def error(found, exact):
    """The RMS error over all gradients, each in units of its own RMS."""
    assert found.keys() == exact.keys()
    parts = [(found[n].double() - exact[n]).square().mean() / exact[n].square().mean() for n in exact]
    return torch.stack(parts).mean().sqrt().item()


def twins(family, directory, dtype=torch.float32, **config):
    """Our model and PEFT's with one adapter on attention and MLP, both to be trained."""
    model = family.build().to(dtype)
    targets = list(family.attention + family.mlp)
    models.peft_directory(model, directory, r=4, lora_alpha=8, target_modules=targets, **config)
    theirs = in_peft(model, directory)
    lora_hub.apply_adapter(model, directory, name="task", trainable=True)
    return model, theirs


def test_gradients_are_those_of_peft(family, tmp_path):
    """Every A and B gets PEFT's gradient: in float64 to 1e-12 of the greatest, so only the order of sums differs."""
    ours, theirs = (model.double() for model in twins(family, tmp_path / "peft"))
    for model in (ours, theirs):
        loss(model).backward()

    assert deviation(of_ours(ours), of_peft(theirs)) <= 1e-12


def test_gradients_in_float32_are_as_exact_as_those_of_peft(family, tmp_path):
    """Of BERT's queries both have errors of 2e-5 of the greatest entry, so neither is a measure of the other."""
    ours, theirs = twins(family, tmp_path / "peft")
    exact = twins(family, tmp_path / "peft")[0].double()
    for model in (ours, theirs, exact):
        loss(model).backward()

    assert error(of_ours(ours), of_ours(exact)) <= 1.5 * error(of_peft(theirs), of_ours(exact)) <= 3e-5


def test_gradients_of_parts_of_a_fused_projection_are_those_of_peft(tmp_path):
    """On c_attn, q and v get PEFT's gradients in their blocks of the adapter that holds both."""
    model = models.gpt2()
    handle = lora_hub.add_adapter(model, "task", r=3, targets=("q", "v"))
    models.randomise(models.adapter_parameters(model))
    lora_hub.save_adapter(handle, tmp_path / "ours")
    loss(model).backward()
    found = of_ours(model)
    bare = models.gpt2()
    theirs = in_peft(bare, tmp_path / "ours")
    loss(theirs).backward()
    exact = {}
    for name, gradient in of_peft(theirs).items():
        for number, part in enumerate("qv"):
            columns, outputs = slice(3 * number, 3 * number + 3), slice(96 * number, 96 * number + 48)
            exact[f"{name}%{part}"] = gradient[columns] if "lora_A" in name else gradient[outputs, columns]

    assert deviation(found, exact) <= 1e-5


@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16 base", "autocast"])
def test_error_of_gradients_in_low_precision_is_that_of_peft(family, tmp_path, autocast):
    """Against float64, gradients of float32 adapters in a whole model are as exact as PEFT's.

    Every layer rounds, and the layers after it amplify that, so that the errors of two correct programs differ by
    chance; one batch strays by some 10%. The layers by themselves are held to 1.02 below.
    """
    ours, theirs = twins(family, tmp_path / "peft", torch.float32 if autocast else torch.bfloat16)
    exact = copy.deepcopy(ours).double()
    errors = {id(ours): 0.0, id(theirs): 0.0}
    for seed in range(6):
        ids = torch.randint(3, models.VOCABULARY, (8, 16), generator=torch.Generator().manual_seed(seed))
        for model in (exact, ours, theirs):
            model.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and model is not exact):
                output = model(input_ids=ids).logits
            (output * random(*output.shape, dtype=output.dtype)).sum().backward()
        errors[id(ours)] += error(of_ours(ours), of_ours(exact)) ** 2
        errors[id(theirs)] += error(of_peft(theirs), of_ours(exact)) ** 2

    assert errors[id(ours)] ** 0.5 <= 1.1 * errors[id(theirs)] ** 0.5


@pytest.mark.parametrize("way", ["bfloat16 base", "autocast", "all in bfloat16"])
def test_error_of_one_layer_in_low_precision_is_that_of_peft(tmp_path, way):
    """Output, dx, dA and dB of one layer, over many blocks, have at most 1.02 times the RMS error of PEFT's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512, bias=False)).to(torch.float32 if way == "autocast" else torch.bfloat16)
    models.peft_directory(model, tmp_path / "peft", r=8, lora_alpha=8, target_modules=["0"], scale=0.02)
    theirs = in_peft(model, tmp_path / "peft")
    lora_hub.apply_adapter(model, tmp_path / "peft", name="task", trainable=True)
    if way == "all in bfloat16":
        theirs, model = theirs.to(torch.bfloat16), model.to(torch.bfloat16)
    dtype = model[0].weight.dtype
    x, dy = (random(4096, 512, dtype=torch.float32, seed=seed).add(0.2).to(dtype) for seed in (5, 6))
    exact = run(copy.deepcopy(model).double(), x.double(), dy.double())
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=way == "autocast"):
        found = {"ours": model, "theirs": theirs}
        found = {name: run(it, x, dy.bfloat16() if way == "autocast" else dy) for name, it in found.items()}
    errors = {
        who: [(value.double() - e).square().mean().sqrt().item() for value, e in zip(values, exact, strict=True)]
        for who, values in found.items()
    }

    assert [a <= 1.02 * b for a, b in zip(errors["ours"], errors["theirs"], strict=True)] == [True] * 4, errors


def run(model, x, dy):
    """The output, and the gradients of x, A and B."""
    x = x.clone().requires_grad_()
    y = model(x)
    with torch.autocast("cpu", enabled=False):
        y.backward(dy)
    return [y.detach(), x.grad, *(p.grad for p in models.adapter_parameters(model))]


def test_precision_does_not_depend_on_what_ran_before():
    """A forward under autocast leaves no trace: the next one without it has float32 gradients on a bfloat16 base."""
    model = layer("task", dtype=torch.bfloat16, sizes=(64, 64))
    x, dy = random(512, 64, dtype=torch.bfloat16), random(512, 64, dtype=torch.bfloat16, seed=6)
    model(x).backward(dy)
    expected = [p.grad.clone() for p in trained(model).values()]
    fresh = layer("task", dtype=torch.bfloat16, sizes=(64, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fresh(x)
    fresh(x).backward(dy)

    assert close([p.grad for p in trained(fresh).values()], expected, rtol=1e-6)


def test_parameters_that_are_made_wider_count():
    """After A and B alone were cast up to float32, gradients are no longer rounded to bfloat16."""
    model = layer("task", dtype=torch.float32, sizes=(64, 64)).to(torch.bfloat16)
    x, dy = random(512, 64, dtype=torch.bfloat16), random(512, 64, dtype=torch.bfloat16, seed=6)
    model(x)
    for parameter in trained(model).values():
        parameter.data = parameter.data.float()
    model(x).backward(dy)
    A, B = (tensor.detach().double() for tensor in factors(model, "task"))
    exact = [1.5 * (dy.double() @ B).T @ x.double(), 1.5 * dy.double().T @ (x.double() @ A.T)]

    assert all((p.grad - e).norm() / e.norm() < 1e-5 for p, e in zip(trained(model).values(), exact, strict=True))


# What is kept


class Kept:
    """The storages that autograd keeps while this is entered, each once, without those of parameters."""

    def __init__(self, model):
        self.others = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.tensors = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)

    def pack(self, tensor):
        """Count the storage of *tensor*."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.others:
            self.tensors[storage.data_ptr()] = tensor
        return tensor

    def __enter__(self):
        self.hooks.__enter__()
        return self

    def __exit__(self, *error):
        self.hooks.__exit__(*error)

    @property
    def bytes(self):
        """How much is kept."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self.tensors.values())


def kept_by(model, ids):
    """What a forward keeps on *ids*, where the embeddings want gradients, so that the base has a graph as well."""
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    with Kept(model) as kept:
        output = model(inputs_embeds=embedded, use_cache=False).logits
    return kept, output


def test_q_k_and_v_share_one_input():
    """On a bfloat16 base, training q, k, v keeps one bfloat16 x per layer above the frozen base, and three x A^T."""
    ids = torch.randint(3, models.VOCABULARY, (4, 30), generator=torch.Generator().manual_seed(2))
    base = models.llama().to(torch.bfloat16).requires_grad_(False)
    before, _ = kept_by(base, ids)
    model = models.llama().to(torch.bfloat16)
    lora_hub.add_adapter(model, "task", targets=("q", "k", "v"))
    models.randomise(models.adapter_parameters(model))
    after, _ = kept_by(model, ids)

    shared, own = ids.numel() * 48 * 2, ids.numel() * 8 * 4  # tokens, features or rank, bytes
    assert after.bytes - before.bytes == 2 * (shared + 3 * own)  # layers


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("way", ["default", "use", "route"])
def test_nothing_wide_and_no_mask_is_kept(dropout, way):
    """Of a bfloat16 layer with float32 adapters, autograd keeps the bfloat16 input, and at most x A^T of the rest."""
    model = layer("one", "two", dtype=torch.bfloat16, sizes=(64, 64), lora_dropout=dropout).train()
    x = random(2, 30, 64, dtype=torch.bfloat16)
    choice = {"default": None, "use": lora_hub.use(model, "one"), "route": lora_hub.route(model, ["one", "two"])}[way]
    with Kept(model) as kept:
        y = model(x) if choice is None else inside(choice, kept, lambda: model(x))
    wide = [tensor for tensor in kept.tensors.values() if tensor.shape[-1] > 2]  # the rank
    seen = [(tensor.dtype, tensor.untyped_storage().data_ptr()) for tensor in wide]

    assert y.requires_grad
    assert len(kept.tensors) <= 2
    assert seen == [(torch.bfloat16, x.untyped_storage().data_ptr())]


def inside(choice, kept, function):
    """Call *function* under *choice*, with the hooks that count inside of those of the choice."""
    with choice:
        inner = torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor)
        with inner:
            return function()


def test_frozen_adapters_keep_nothing(tmp_path):
    """Gradients of an input that pass frozen adapters alone need nothing of it."""
    model = layer("one", "two")
    frozen(model, tmp_path, "one")
    frozen(model, tmp_path, "two")
    model.requires_grad_(False)
    x = random(4, 6).requires_grad_()
    with Kept(model) as kept:
        y = model(x)
    (dx,) = grads(y, [x], torch.ones_like(y))

    assert kept.tensors == {}
    assert torch.allclose(dx, grads(functional_call(model, {}, (x,)), [x], torch.ones_like(y))[0])


@pytest.mark.parametrize("r", [2, 8, 16])
def test_gradient_of_an_adapter_holds_its_own_memory_only(r):
    """In a route of many rows, the gradient of an adapter is not a view of what was computed for all rows."""
    model = layer(sizes=(32, 32))
    lora_hub.add_adapter(model, "task", r=r, targets=("0",))
    with lora_hub.route(model, ["task", *[None] * 15]):
        model(random(16, 3, 32)).sum().backward()
    gradients = [parameter.grad for parameter in trained(model).values()]
    held = [gradient.untyped_storage().nbytes() / gradient.nbytes for gradient in gradients]

    assert max(held) <= 4  # a rank of 2 is padded to 8


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_layer_that_is_trained_beside_its_adapter_has_its_gradient(name):
    """Who lets a base weight or bias be trained after all gets ``dy^T x``, or the sum of ``dy``."""
    model, x, dy = layer("task"), random(4, 6), random(4, 5, seed=6)
    parameter = getattr(model[0], name).requires_grad_()
    model(x).backward(dy)

    assert torch.allclose(parameter.grad, dy.T @ x if name == "weight" else dy.sum(0), rtol=1e-12)


def test_adapter_in_the_dtype_of_autocast_is_trained():
    """On a float32 base, an adapter that was cast to autocast's own dtype gets its gradients, and so does the input."""
    model, x = layer("task", dtype=torch.float32), random(4, 6, dtype=torch.float32).requires_grad_()
    for parameter in trained(model).values():
        parameter.data = parameter.data.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
    y.sum().backward()

    assert x.grad.dtype is torch.float32
    assert all(parameter.grad.dtype is torch.bfloat16 for parameter in trained(model).values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.jit, which some still export with
def test_trace_with_gradients_is_made_of_plain_operations():
    """What `torch.jit.trace` keeps of an adapter in training can be saved: no autograd function of ours is in it."""
    model, x = layer("task"), random(4, 6)
    traced = torch.jit.trace(model, (x,), check_trace=False)

    assert "_AdaptedLinear" not in str(traced.inlined_graph)
    assert torch.allclose(traced(2 * x), model(2 * x), rtol=1e-12)


def test_input_that_needs_no_gradient_gets_none(monkeypatch):
    """Where x wants no gradient, dx is not computed."""
    model, asked = layer("task"), []
    compute = stack.gradients_of_one

    def noting(*args, onto, **kwargs):
        asked.append(onto is not None)
        return compute(*args, onto=onto, **kwargs)

    monkeypatch.setattr("lora_hub.patch.linear_node.gradients_of_one", noting)
    model(random(4, 6)).sum().backward()
    model(random(4, 6).requires_grad_()).sum().backward()

    assert asked == [False, True]


# The graph


@pytest.mark.parametrize("what", ["A", "B", "x"])
@pytest.mark.parametrize("way", ["default", "use"])
def test_change_in_place_is_refused(what, way):
    """What the backward needs must not be changed before it: autograd's own error, or that of `use`."""
    model = layer("task")
    x = random(4, 6)
    if way == "use":
        with lora_hub.use(model, "task"):
            y = model(x)
    else:
        y = model(x)
    A, B = factors(model, "task")
    with torch.no_grad():
        {"A": A, "B": B, "x": x}[what].add_(1)

    with pytest.raises(RuntimeError, match=r"modified by an inplace operation|changed in place"):
        y.sum().backward()


def test_backward_twice():
    """With `retain_graph` the second backward gives the same again; without, the graph is freed."""
    model = layer("task")
    y = model(random(4, 6)).square().sum()
    y.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in trained(model).values()]
    y.backward()

    assert close([parameter.grad for parameter in trained(model).values()], [2 * gradient for gradient in once])
    with pytest.raises(RuntimeError, match="second time"):
        y.backward()


@pytest.mark.parametrize("way", ["default", "use"])
def test_second_derivatives(way):
    """The gradient of the norm of a gradient is that of W + BA, in and out of `use`."""
    model = layer("task")
    x = random(4, 6).requires_grad_()
    inputs = [x, *trained(model).values()]

    def penalty(y):
        first = torch.autograd.grad(y.tanh().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in first), inputs)

    if way == "use":
        with lora_hub.use(model, "task"):
            y = model(x)
    else:
        y = model(x)

    assert close(penalty(y), penalty(materialised(model, x, {"task": 1.0})))


def test_gradients_accumulate():
    """Two backward passes add up to that of both batches at once."""
    model, x = layer("task"), random(8, 6)
    for half in x.chunk(2):
        model(half).square().sum().backward()
    found = [parameter.grad.clone() for parameter in trained(model).values()]
    model.zero_grad()
    model(x).square().sum().backward()

    assert close(found, [parameter.grad for parameter in trained(model).values()])


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["trained", "frozen beside"])
@pytest.mark.parametrize("choice", [None, ["one", "two", None, "one"]], ids=["default", "route"])
def test_forwards_without_gradients_in_between(tmp_path, without, kind, choice):
    """Forwards without gradients, before a forward and before its backward, change neither."""
    model = layer("one", "two")
    if kind == "frozen beside":
        frozen(model, tmp_path, "two")
    x = random(4, 6)
    chosen = lora_hub.use(model, {"one": 1.0, "two": 1.0}) if choice is None else lora_hub.route(model, choice)
    expected = grads(chosen.bind(model)(x), list(trained(model).values()), torch.ones(4, 5).double())
    fresh = copy.deepcopy(model)
    again = lora_hub.use(fresh, {"one": 1.0, "two": 1.0}) if choice is None else lora_hub.route(fresh, choice)
    with without():
        quiet = [again.bind(fresh)(x) for _ in range(3)]
    y = again.bind(fresh)(x)
    with without():
        again.bind(fresh)(x)
    found = grads(y, list(trained(fresh).values()), torch.ones(4, 5).double())

    assert close(found, expected)
    assert torch.allclose(quiet[2], y)


class Viewing(nn.Linear):
    """A layer whose output is a view of something larger, or of a parameter's result transposed."""

    kind = "larger"

    def forward(self, x):
        """Return a view."""
        y = super().forward(x)
        if self.kind == "larger":
            return torch.cat([y, y], dim=-1)[..., : y.shape[-1]]
        if self.kind == "transposed":
            return y.transpose(0, -1).contiguous().transpose(0, -1)
        return y.unsqueeze(0).expand(2, *y.shape)[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["larger", "transposed", "expanded"])
@pytest.mark.parametrize("shape", [(4, 6), (1, 1, 2, 6), (1, 3, 6), (2, 3, 2, 6)], ids=str)
@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
def test_base_whose_output_is_a_view(kind, shape, dtype, grad):
    """A base may return a view of any kind: output and gradients are those of W + BA.

    In bfloat16 the sum is rounded once, and W x before it: two of its units.
    """
    torch.manual_seed(0)
    model = nn.Sequential(Viewing(6, 5)).to(dtype)
    model[0].kind = kind
    lora_hub.add_adapter(model, "task", r=2, lora_alpha=3, targets=("0",))
    models.randomise(models.adapter_parameters(model))
    x = random(*shape).to(dtype)
    with torch.set_grad_enabled(grad):
        y = model(x)
    wide = copy.deepcopy(model).double()
    exact = materialised(wide, x.double(), {"task": 1.0})
    eps = max(torch.finfo(dtype).eps, 1e-12)

    assert torch.allclose(y.double(), exact, rtol=2 * eps, atol=4 * eps)
    if grad:
        y.backward(random(*shape[:-1], 5, seed=6).to(dtype))
        expected = grads(exact, list(trained(wide).values()), random(*shape[:-1], 5, seed=6).to(dtype).double())
        found = [parameter.grad.double() for parameter in trained(model).values()]
        assert close(found, expected, rtol=max(1e-5 if dtype is not torch.float64 else 0, 1e-10))


# Dropout


def dropped(model, x, seed=0):
    torch.manual_seed(seed)
    return model(x)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", ["default", "use", "route"])
def test_checkpointing_draws_the_same_dropout(mode, way):
    """Under one seed, gradients with dropout are bit for bit the same with and without checkpointing."""
    model = layer("one", "two", sizes=(6, 6), dtype=torch.float32, lora_dropout=0.5).train()
    x = random(4, 6, dtype=torch.float32).requires_grad_()
    inputs, found = [x, *trained(model).values()], []
    for how in (None, MODES[mode]):
        choice = {
            "default": lora_hub.use(model, {"one": 1.0, "two": 1.0}),
            "use": lora_hub.use(model, "one"),
            "route": lora_hub.route(model, ["one", "two", None, "one"]),
        }[way]
        torch.manual_seed(3)
        call = model if way == "default" else choice.bind(model)
        y = call(x) if how is None else choice.bind(checkpoint)(model, x, use_reentrant=how)
        y.square().sum().backward()
        found.append([None if t.grad is None else t.grad.clone() for t in inputs])
        for tensor in inputs:
            tensor.grad = None

    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one, other)


def test_dropout_is_a_function_of_the_seed_of_torch():
    """`torch.manual_seed` decides what is dropped: the same again, and another after another seed."""
    model = layer("task", lora_dropout=0.5).train()
    x = random(4, 6)

    assert torch.equal(dropped(model, x), dropped(model, x))
    assert not torch.equal(dropped(model, x), dropped(model, x, seed=1))


def test_dropout_under_a_default_device():
    """Seeds are drawn on the CPU, whatever device torch makes tensors on by default: nothing waits for that device."""
    model, x = layer("task", lora_dropout=0.5).train(), random(4, 6)
    expected = dropped(model, x)
    torch.manual_seed(0)
    with torch.device("meta"):
        found = model(x)

    assert torch.equal(found, expected)


def test_modules_draw_apart():
    """Two modules that get the same input drop other elements of it."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(64, 64), "b": nn.Linear(64, 64)})
    model["b"].load_state_dict(model["a"].state_dict())
    lora_hub.add_adapter(model, "task", targets=("a", "b"), lora_dropout=0.5)
    for path in "ab":
        models.randomise(factors(model.train(), "task", path))
    x = random(1, 64, dtype=torch.float32)

    assert not torch.equal(model["a"](x), model["b"](x))


@pytest.mark.parametrize("probabilities", [(0.5, 0.5), (0.5, 0.25)])
def test_adapters_of_a_sum_draw_apart(probabilities):
    """Two adapters in one sum drop other inputs, as PEFT's do, also if their probabilities differ."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4096, 1, bias=False)).double()
    nn.init.zeros_(model[0].weight)
    for name, p in zip(("one", "two"), probabilities, strict=True):
        lora_hub.add_adapter(model, name, r=1, lora_alpha=1, targets=("0",), lora_dropout=p)
    with torch.no_grad():
        for name in ("one", "two"):
            factors(model, name)[1].fill_(1.0)
    x = torch.ones(1, 4096, dtype=torch.float64)
    dropped(model.train(), x).sum().backward()
    # With B = 1, the gradient of A is what came through to it.
    masks = [factors(model, name)[0].grad[0] == 0 for name in ("one", "two")]
    both = (masks[0] & masks[1]).double().mean().item()

    # The part that both drop is the product if they are independent; 0.05 is six standard deviations.
    assert abs(both - probabilities[0] * probabilities[1]) < 0.05


def test_each_adapter_has_its_own_probability():
    """In one sum, each adapter drops with its own probability, and those without dropout drop nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4096, 1, bias=False)).double()
    probabilities = {"none": 0.0, "some": 0.25, "many": 0.75}
    for name, p in probabilities.items():
        lora_hub.add_adapter(model, name, r=1, targets=("0",), lora_dropout=p)
        with torch.no_grad():
            factors(model, name)[1].fill_(1.0)
    dropped(model.train(), torch.ones(1, 4096, dtype=torch.float64)).sum().backward()
    parts = {name: (factors(model, name)[0].grad == 0).double().mean().item() for name in probabilities}

    assert parts == pytest.approx(probabilities, abs=0.05)  # six standard deviations
    assert parts["none"] == 0


def test_gradient_of_x_passes_the_mask_of_the_forward():
    """The delta is linear in x under one mask, so <dy, delta(x)> is <dx, x>, where dx is that of the delta alone."""
    model = layer("task", lora_dropout=0.5).train()
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    x, dy = random(40, 6).requires_grad_(), random(40, 5, seed=6)
    y = model(x)
    (dx,) = grads(y, [x], dy)

    assert torch.allclose((dy * y).sum(), (dx * x).sum())


def test_no_dropout_in_evaluation():
    """In evaluation mode outputs and gradients are those without dropout, and no random number is drawn."""
    model, plain = layer("task", lora_dropout=0.5).eval(), layer("task")
    x, dy = random(4, 6), random(4, 5, seed=6)
    state = torch.get_rng_state()
    y = model(x)
    found = grads(y, list(trained(model).values()), dy)

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(y, plain(x))
    assert close(found, grads(plain(x), list(trained(plain).values()), dy))


def test_mean_over_seeds_is_the_delta():
    """Over 500 seeds the mean output is that without dropout; the mean strays by 1/22 of what one draw does."""
    model = layer("task", lora_dropout=0.25).train()
    x = random(2, 6)
    with torch.no_grad():
        every = torch.stack([dropped(model, x, seed) for seed in range(500)])
        exact = model.eval()(x)

    assert ((every.mean(0) - exact).abs() < 5 * every.std(0) / 500**0.5).all()


# Dtypes that change under way


def step(model, optimizer, x):
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.float16])
def test_training_goes_on_after_a_cast(dtype):
    """After the model was cast between two steps, gradients have its dtype, and what runs is what is stored."""
    model = layer("task", dtype=torch.float32)
    x = random(16, 6, dtype=torch.float32)
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
    step(model, optimizer, x)
    model.to(dtype)
    before = [parameter.detach().clone() for parameter in trained(model).values()]
    step(model, torch.optim.SGD(trained(model).values(), lr=0.1), x.to(dtype))
    found = list(trained(model).values())
    exact = materialised(copy.deepcopy(model).double(), x.to(dtype).double(), {"task": 1.0})

    assert {p.dtype for p in found} == {p.grad.dtype for p in found} == {dtype}
    assert not any(torch.equal(a, b) for a, b in zip(before, found, strict=True))
    # Products of a few terms near 1 are rounded four times.
    assert torch.allclose(model(x.to(dtype)).double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_optimizer_step_is_seen():
    """The output after a step is that of the new A and B, in training and in evaluation."""
    model, x = layer("task"), random(4, 6)
    optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
    with torch.no_grad():
        model(x)
    step(model, optimizer, x)
    exact = materialised(model, x, {"task": 1.0})
    with torch.no_grad():
        quiet = model(x)

    assert torch.allclose(model(x), exact, rtol=1e-12)
    assert torch.allclose(quiet, exact, rtol=1e-12)


# Hooks of others


def test_forward_hooks_see_input_and_sum():
    """A forward hook sees the module's input and what leaves it, deltas included, and may replace that."""
    model, seen = layer("task"), []
    x = random(4, 6)
    expected = model(x)
    model[0].register_forward_hook(lambda _, args, y: seen.append((args[0], y)) or 2 * y)
    found = model(x)

    assert seen[0][0] is x
    assert torch.equal(seen[0][1], expected)
    assert torch.equal(found, 2 * expected)


def test_pre_hooks_change_the_input_of_both():
    """What a pre-hook returns is the input of the base and of the adapters."""
    model, x = layer("task"), random(4, 6)
    expected = model(2 * x)
    model[0].register_forward_pre_hook(lambda _, args: (2 * args[0],))

    assert torch.equal(model(x), expected)


def test_backward_hooks_see_the_whole_gradient():
    """A full backward hook sees the gradient of x through base and adapters, and that of the output."""
    model, seen = layer("task"), []
    x, dy = random(4, 6).requires_grad_(), random(4, 5, seed=6)
    (expected,) = grads(materialised(model, x, {"task": 1.0}), [x], dy)
    model[0].register_full_backward_hook(lambda _, dx, dy: seen.extend([dx[0], dy[0]]))
    model(x).backward(dy)

    assert torch.allclose(seen[0], expected)
    assert torch.equal(seen[1], dy)


def test_hooks_of_parameters_see_their_gradients():
    """Hooks on A and B run with the gradient, before and after it is accumulated."""
    model, seen = layer("task"), []
    A, B = factors(model, "task")
    A.register_hook(lambda gradient: seen.append(gradient.clone()))
    B.register_post_accumulate_grad_hook(lambda parameter: seen.append(parameter.grad.clone()))
    model(random(4, 6)).sum().backward()

    assert {tuple(gradient.shape) for gradient in seen} == {A.shape, B.shape}


# torch.func


def test_func_grad_of_parameters():
    """`torch.func.grad` over A and B gives the gradients of `backward`."""
    model, x = layer("one", "two"), random(4, 6)
    named = trained(model)
    found = torch.func.grad(lambda values: functional_call(model, values, (x,)).square().sum())(
        {name: parameter.detach() for name, parameter in named.items()}
    )
    model(x).square().sum().backward()

    assert close([found[name] for name in named], [parameter.grad for parameter in named.values()])


@pytest.mark.parametrize("kind", ["trained", "frozen"])
def test_func_grad_of_the_input(tmp_path, kind):
    """`torch.func.grad` over x gives the gradient of `backward`, through trained and frozen adapters."""
    model, x = layer("task"), random(4, 6)
    if kind == "frozen":
        frozen(model, tmp_path, "task")
    found = torch.func.grad(lambda value: model(value).square().sum())(x)
    x.requires_grad_()
    model(x).square().sum().backward()

    assert torch.allclose(found, x.grad)


@pytest.mark.parametrize("kind", ["trained", "frozen"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_func_jvp(tmp_path, kind, grad):
    """Forward-mode derivatives along x are (W + BA) dx."""
    model, x, dx = layer("task"), random(4, 6), random(4, 6, seed=7)
    expected = materialised(model, dx, {"task": 1.0}) - model[0].bias
    if kind == "frozen":
        frozen(model, tmp_path, "task")
    with torch.set_grad_enabled(grad):
        _, found = torch.func.jvp(model, (x,), (dx,))

    assert torch.allclose(found, expected)


@pytest.mark.parametrize("kind", ["trained", "frozen"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_forward_mode_without_func(tmp_path, kind, grad):
    """Dual tensors of `torch.autograd.forward_ad` carry their tangent through, outside of torch.func as well."""
    model, x, dx = layer("task"), random(4, 6), random(4, 6, seed=7)
    expected = materialised(model, dx, {"task": 1.0}) - model[0].bias
    if kind == "frozen":
        frozen(model, tmp_path, "task")
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        found = forward_ad.unpack_dual(model(forward_ad.make_dual(x, dx))).tangent

    assert found is not None
    assert torch.allclose(found, expected)


@pytest.mark.parametrize("kind", ["trained", "frozen"])
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_vmap_over_inputs(tmp_path, kind, grad):
    """`vmap` over a batch is one call on the batch."""
    model, x = layer("task"), random(3, 4, 6)
    if kind == "frozen":
        frozen(model, tmp_path, "task")
    with torch.set_grad_enabled(grad):
        for _ in range(2):  # what the first call keeps serves the second
            found = torch.func.vmap(model)(x)
        expected = model(x)

    assert torch.allclose(found, expected)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
def test_vmap_over_adapters(grad):
    """`vmap` over stacked A and B runs an ensemble of adapters over one base and one input."""
    model, x = layer("task"), random(4, 6)
    values = {name: torch.stack([p.detach(), 2 * p.detach()]) for name, p in trained(model).items()}
    with torch.set_grad_enabled(grad):
        found = torch.func.vmap(lambda one: functional_call(model, one, (x,)))(values)
        expected = [functional_call(model, {n: v[k] for n, v in values.items()}, (x,)) for k in range(2)]

    assert torch.allclose(found, torch.stack(expected))


def test_gradients_of_each_sample():
    """`vmap` of `grad`, as in differentially private training, gives the gradient of each sample."""
    model, x = layer("task"), random(3, 4, 6)
    values = {name: p.detach() for name, p in trained(model).items()}
    one = torch.func.grad(lambda values, row: functional_call(model, values, (row,)).square().sum())
    found = torch.func.vmap(one, in_dims=(None, 0))(values, x)
    expected = [one(values, row) for row in x]

    assert all(torch.allclose(found[name], torch.stack([each[name] for each in expected])) for name in values)


def test_hessian():
    """`torch.func.hessian`, forward over reverse, is that of W + BA."""
    model = layer("task")
    x = random(6)
    weight = (model[0].weight + 1.5 * factors(model, "task")[1] @ factors(model, "task")[0]).detach()
    found = torch.func.hessian(lambda value: model(value).tanh().sum())(x)
    expected = torch.func.hessian(lambda value: functional.linear(value, weight, model[0].bias).tanh().sum())(x)

    assert torch.allclose(found, expected)


def test_functional_call_leaves_the_model_alone():
    """Parameters given to `functional_call` get the gradients; the model's own do not."""
    model, x = layer("task"), random(4, 6)
    values = {name: (2 * p).detach().requires_grad_() for name, p in trained(model).items()}
    functional_call(model, values, (x,)).square().sum().backward()
    found = [value.grad for value in values.values()]
    assert [parameter.grad for parameter in trained(model).values()] == [None, None]
    with torch.no_grad():
        for parameter in trained(model).values():
            parameter.mul_(2)
    model(x).square().sum().backward()

    assert close(found, [parameter.grad for parameter in trained(model).values()])
