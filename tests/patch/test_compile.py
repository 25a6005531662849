"""Compiled, exported, traced and transformed models: one graph serves every choice, and every choice is right."""

import copy
import threading
import warnings

import models
import pytest
import torch
from models import logits
from torch.utils.checkpoint import checkpoint

import lora_hub
from lora_hub.errors import LoraHubError, StateError, UsageError

# What runs graphs as they are, and what AOTAutograd makes of them; the second is slower, so many counts of it are full.
EAGER_AND_AOT = ["eager", "aot_eager"]
MOSTLY_EAGER = ["eager", pytest.param("aot_eager", marks=pytest.mark.full)]
SUM = {"a": 0.5, "b": -2.0}
MIXED = ["a", None, SUM, "b"]


@pytest.fixture(params=[pytest.param("bert", marks=pytest.mark.full), "gpt2", "llama"])
def family(request):
    """Conv1D and Linear; compiling takes long, so a second architecture of plain layers is for the full run."""
    return models.FAMILIES[request.param]


@pytest.fixture(autouse=True)
def fresh_compiler():
    """No code that another test compiled, and none left for the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def write(model, directory, *, seed, **options):
    """Save a random adapter of *model*, and leave the model as it was."""
    handle = lora_hub.add_adapter(model, "written", **options)
    models.randomise(models.adapter_parameters(model), seed=seed)
    lora_hub.save_adapter(handle, directory)
    handle.remove()
    return directory


def with_adapters(model, directory):
    """The model with frozen adapters `a`, of rank 3, and `b`, of rank 8 on k as well; a file `c` of rank 5 lies by."""
    for seed, (name, options) in enumerate(
        {"a": {"r": 3}, "b": {"r": 8, "targets": ("q", "k", "v")}, "c": {"r": 5, "targets": ("v", "o")}}.items()
    ):
        path = write(model, directory / name, seed=seed, **options)
        if name != "c":
            lora_hub.apply_adapter(model, path, name=name, active=False)
    return model


@pytest.fixture
def adapted(model, tmp_path):
    """A model of each family with `a` and `b`."""
    return with_adapters(model, tmp_path)


@pytest.fixture
def small(tmp_path):
    """A tiny LLaMA with `a` and `b`, for what is the same in every family."""
    return with_adapters(models.llama(num_hidden_layers=1), tmp_path)


def trained(model, **options):
    """The model in float64 with trainable adapters `a` and `b`."""
    model.double()
    lora_hub.add_adapter(model, "a", r=3, **options)
    lora_hub.add_adapter(model, "b", r=8, targets=("q", "k", "v"), use_rslora=True)
    models.randomise(models.adapter_parameters(model))
    return model


def chosen(model, choice):
    """`use`, or `route` if the choice is a list."""
    return lora_hub.route(model, choice) if isinstance(choice, list) else lora_hub.use(model, choice)


def run(model, choice, ids=None):
    """The logits under a choice, without gradients."""
    with chosen(model, choice):
        return logits(model, models.tokens(4) if ids is None else ids)


def close(found, expected, tolerance=1e-5):
    """Whether the two differ by no more than *tolerance* of the largest value."""
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


class Counter:
    """A backend that counts the graphs that it was given."""

    def __init__(self, backend="eager"):
        from torch._dynamo.testing import CompileCounterWithBackend

        self.backend = CompileCounterWithBackend(backend)

    @property
    def graphs(self):
        """How many there were since this was made."""
        return self.backend.frame_count


def compiled(model, backend="eager", **options):
    """The compiled model, and what counts its graphs."""
    counter = Counter(backend)
    return torch.compile(model, backend=counter.backend, **options), counter


# Inference


@pytest.mark.parametrize("backend", MOSTLY_EAGER)
def test_one_graph_for_every_choice(adapted, backend):
    """One graph, without breaks, runs the base, each adapter, sums and routes, and each gets its own."""
    fast, counter = compiled(adapted, backend, fullgraph=True)
    for choice in ("a", None, "b", SUM, MIXED, [None, None, "b", "a"], "a"):
        assert close(run(fast, choice), run(adapted, choice)), choice
    assert counter.graphs == 1


@pytest.mark.parametrize("backend", MOSTLY_EAGER)
def test_compiled_before_attaching(model, tmp_path, backend):
    """A model that was compiled, and ran, before it had adapters sees them come; two graphs in all."""
    path = write(model, tmp_path / "a", seed=1, r=3)
    fast, counter = compiled(model, backend, fullgraph=True)
    bare = logits(fast, models.tokens(4))
    lora_hub.apply_adapter(fast, path, name="a")
    active = logits(fast, models.tokens(4))

    assert close(active, run(model, "a"))
    assert not close(active, bare, tolerance=1e-3)
    assert close(run(fast, None), bare)
    assert counter.graphs == 2


def test_adapters_come_and_go(small, tmp_path):
    """A new rank, new targets, a replacement and a removal need at most one more graph, and are right at once."""
    fast, counter = compiled(small, fullgraph=True)
    run(fast, "a")
    lora_hub.apply_adapter(small, tmp_path / "c", name="c", active=False)
    for choice in ("c", {"c": 1, "a": 2}, ["c", "a", None, "b"]):
        assert close(run(fast, choice), run(small, choice))
    lora_hub.apply_adapter(small, tmp_path / "b", name="a", active=False, replace=True)
    assert close(run(fast, "a"), run(small, "b"))
    lora_hub.adapters(small)["a"].remove()

    assert close(run(fast, ["c", "b", None, "c"]), run(small, ["c", "b", None, "c"]))
    assert counter.graphs <= 2


def test_last_adapter_is_removed(small):
    """After the last adapter left, compiled code runs the base, bit for bit."""
    fast, _ = compiled(small)
    bare = run(fast, None)
    run(fast, "a")
    for handle in list(lora_hub.adapters(small).values()):
        handle.remove()

    assert torch.equal(logits(fast, models.tokens(4)), bare)


def test_default_set_changes(small):
    """What is active by default may change between calls of one graph."""
    fast, counter = compiled(small, fullgraph=True)
    for name, active in (("a", True), ("b", True), ("a", False), ("b", False)):
        lora_hub.adapters(small)[name].active = active
        assert close(logits(fast), logits(small))
    assert counter.graphs == 1


def test_merged_in_compiled_code(small):
    """A merge and an unmerge are seen by compiled code, and others run on top."""
    fast, counter = compiled(small, fullgraph=True)
    expected = {choice: run(small, {"a": 1} if choice == "a" else {"a": 1, "b": 1}) for choice in "ab"}
    run(fast, "b")
    lora_hub.adapters(small)["a"].merge()

    assert close(run(fast, "a"), expected["a"], tolerance=1e-4)
    assert close(run(fast, {"a": 1, "b": 1}), expected["b"], tolerance=1e-4)
    with pytest.raises(LoraHubError, match="merged"):
        run(fast, [{"a": 1}, None, "a", "a"])
    lora_hub.adapters(small)["a"].unmerge()
    assert close(run(fast, None), run(small, None))
    assert counter.graphs <= 2


def test_wrong_batch_in_compiled_code(small):
    """A route whose rows are not those of the batch is refused in compiled code as well, by the module's name."""
    fast, _ = compiled(small)
    run(fast, MIXED)

    with pytest.raises(UsageError, match=r"q_proj.*4 rows"):
        run(fast, MIXED, models.tokens(3))
    assert close(run(fast, MIXED), run(small, MIXED))


@pytest.mark.parametrize("layers", [2, 6])
def test_regional_compilation(tmp_path, layers):
    """Each decoder layer compiled on its own: one graph for all, as without adapters."""
    model, counter = with_adapters(models.llama(num_hidden_layers=layers), tmp_path), Counter()
    choices = ("a", None, MIXED, "b")
    expected = [run(model, choice) for choice in choices]
    for layer in model.model.layers:
        layer.compile(backend=counter.backend, fullgraph=True)
    for choice, outputs in zip(choices, expected, strict=True):
        with chosen(model, choice):
            # Without a cache, in which each layer has another place and so another graph, adapters or not.
            assert close(logits(model, models.tokens(4), use_cache=False), outputs)
    assert counter.graphs == 1


def test_layers_of_different_targets_share_no_choice(tmp_path):
    """Layers that share a graph still find their own matrices."""
    model = models.llama(num_hidden_layers=4)
    last = "model.layers.3.self_attn.q_proj"
    every = [f"model.layers.{n}.self_attn.{part}_proj" for n in range(4) for part in "qv"]
    for name, targets in (("last", [last]), ("every", every)):
        lora_hub.apply_adapter(model, write(model, tmp_path / name, seed=1, targets=targets), name=name, active=False)
    expected = {choice: run(model, choice) for choice in ("last", "every", None)}
    for layer in model.model.layers:
        layer.compile(backend="eager")

    assert all(close(run(model, choice), y) for choice, y in expected.items())


def test_threads_of_one_compiled_model(small):
    """Threads with different choices under one compiled model, a hundred calls each: none is wrong."""
    fast, _ = compiled(small, fullgraph=True)
    choices = ["a", None, ["b", "a", None, "a"]]
    expected = [run(small, choice) for choice in choices]
    run(fast, "b")
    barrier, wrong = threading.Barrier(len(choices), timeout=60), []

    def work(number):
        try:
            for _ in range(100):
                barrier.wait()
                if not close(run(fast, choices[number]), expected[number]):
                    wrong.append(number)
        except BaseException as error:  # noqa: BLE001 - a test reports it
            wrong.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(choices))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_batches_and_lengths_that_change(small):
    """Sizes that change become dynamic: a few graphs for many shapes, none of them wrong."""
    fast, counter = compiled(small, fullgraph=True)
    for rows in (2, 3, 5, 7):
        for length in (4, 9, 20, 2):
            ids, choice = models.tokens(rows, length), ["a", None, SUM, "b", None, "b", "a"][:rows]
            assert close(run(fast, choice, ids), run(small, choice, ids)), (rows, length)
            assert close(run(fast, "b", ids), run(small, "b", ids)), (rows, length)
    assert counter.graphs <= 4


@pytest.mark.full
def test_dynamic_from_the_start(small):
    """`dynamic=True` runs routes and `use` of any size."""
    fast, counter = compiled(small, "aot_eager", fullgraph=True, dynamic=True)
    for rows, length in ((2, 4), (5, 9), (3, 21)):
        ids, choice = models.tokens(rows, length), ["a", None, SUM, "b", "a"][:rows]
        assert close(run(fast, choice, ids), run(small, choice, ids))
    assert counter.graphs <= 2


def test_inference_mode(small):
    """`inference_mode`, `no_grad` and gradients enabled alternate, each right."""
    fast, _ = compiled(small, "eager")
    expected, ids = run(small, MIXED), models.tokens(4)
    with lora_hub.route(fast, MIXED):
        for _ in range(2):
            with torch.inference_mode():
                assert close(fast(input_ids=ids).logits.clone(), expected)
            with torch.no_grad():
                assert close(fast(input_ids=ids).logits, expected)
            assert close(fast(input_ids=ids).logits.detach(), expected)


def test_block_inside_of_the_compiled_function(small):
    """A block that is entered inside of what is compiled breaks the graph there, and holds all the same."""

    @torch.compile(backend="eager")
    def function(ids):
        with lora_hub.use(small, "a"):
            first = small(input_ids=ids).logits
        with lora_hub.route(small, MIXED):
            second = small(input_ids=ids).logits
        return first, second, small(input_ids=ids).logits

    ids = models.tokens(4)
    expected = [run(small, "a"), run(small, MIXED), run(small, None)]
    for _ in range(2):
        with torch.no_grad():
            found = function(ids)
        assert [close(y, e) for y, e in zip(found, expected, strict=True)] == [True] * 3


def test_two_models_with_one_code(tmp_path):
    """Two models of one class, compiled, keep their adapters apart."""
    one, other = (with_adapters(models.llama(num_hidden_layers=1), tmp_path / name) for name in ("one", "other"))
    lora_hub.apply_adapter(other, tmp_path / "other" / "b", name="a", active=False, replace=True)
    fast, _ = compiled(one)
    fast_other, _ = compiled(other)

    for _ in range(2):
        assert close(run(fast, "a"), run(one, "a"))
        assert close(run(fast_other, "a"), run(one, "b"))


def test_copy_of_a_compiled_model(small):
    """A copy of a model that was compiled runs its own adapters, also after the original lost its."""
    fast, _ = compiled(small)
    expected = run(fast, MIXED)
    twin = copy.deepcopy(small)
    fast_twin, _ = compiled(twin)
    run(fast_twin, MIXED)
    for handle in list(lora_hub.adapters(small).values()):
        handle.remove()

    assert close(run(fast_twin, MIXED), expected)


@pytest.mark.full
def test_generate_with_a_compiled_forward(small):
    """`generate` over a compiled forward writes what eager code writes, for a route with beams too."""
    choices, options = ["a", None, "b"], {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "num_beams": 2}
    with lora_hub.route(small, choices):
        expected = small.generate(models.tokens(3, 5), **options)
    small.forward = torch.compile(small.forward, backend="eager")
    with lora_hub.route(small, choices):
        found = small.generate(models.tokens(3, 5), **options)

    assert torch.equal(found, expected)


def test_heads_break_the_graph(tmp_path):
    """Heads run outside of graphs: right without `fullgraph`, for `use` and for rows."""
    model = models.bert()
    for seed, name in enumerate("xy"):
        path = write(model, tmp_path / name, seed=seed, r=2, modules_to_save=("classifier",))
        lora_hub.apply_adapter(model, path, name=name, active=False)
    fast, counter = compiled(model)
    for choice in ("x", None, "y", ["y", None, "x", "x"]):
        assert close(run(fast, choice), run(model, choice)), choice
    assert counter.graphs <= 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_short_dtypes(small, dtype):
    """A bfloat16 or float16 base gives the bits of eager code under a backend that runs the same kernels."""
    small.to(dtype)
    fast, _ = compiled(small, "aot_eager", fullgraph=True)

    assert all(torch.equal(run(fast, choice), run(small, choice)) for choice in ("a", MIXED, None, SUM))


def test_autocast(small):
    """Under autocast compiled code is as close to float32 as eager code under autocast is."""
    exact = {str(choice): run(small, choice) for choice in ("a", MIXED)}
    for backend in EAGER_AND_AOT:
        fast, _ = compiled(small, backend)
        for choice in ("a", MIXED):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                found, eager = run(fast, choice).float(), run(small, choice).float()
            wanted = exact[str(choice)]

            assert (found - wanted).norm() <= 1.3 * (eager - wanted).norm()


def test_inputs_and_outputs_of_other_layouts(tmp_path):
    """Transposed inputs and a layer that returns its input are not changed in place."""

    class Odd(torch.nn.Linear):
        def forward(self, x):
            return x

    torch.manual_seed(0)
    model = torch.nn.Sequential(Odd(6, 6), torch.nn.Linear(6, 6), Odd(6, 6))
    for name in ("a", "b"):
        lora_hub.add_adapter(model, name, targets=("0", "1", "2"))
    models.randomise(models.adapter_parameters(model))
    fast, _ = compiled(model, "aot_eager")
    x = torch.randn(5, 4, 6).transpose(0, 1)
    kept = x.clone()
    for gradients in (False, True):
        for choice in ("a", MIXED):
            with torch.set_grad_enabled(gradients), chosen(model, choice):
                assert close(fast(x), model(x))
    assert torch.equal(x, kept)


# Training


def step(model, choice, ids, where="inside"):
    """One forward under *choice* and its backward, inside or outside of the block; the gradients, and None for zero."""
    model.zero_grad()
    with chosen(model, choice):
        loss = model(input_ids=ids).logits.square().sum()
        if where == "inside" and loss.requires_grad:
            loss.backward()
    if where == "after":
        loss.backward()
    elif where == "in another":
        with lora_hub.use(model, "b"):
            loss.backward()
    elif where == "in a thread":
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()
    return gradients(model)


def gradients(model):
    """The gradients of what is trained, by the name in the model itself; compiled code may give zeros for None."""
    named = {name.replace("_orig_mod.", ""): p for name, p in model.named_parameters() if p.requires_grad}
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in named.items()}


def same(found, expected, tolerance=1e-9):
    """Whether two sets of gradients are close."""
    return all((found[n] - g).abs().max() <= tolerance * max(float(g.abs().max()), 1e-30) for n, g in expected.items())


@pytest.mark.parametrize(
    "where",
    [*(pytest.param(where, marks=pytest.mark.full) for where in ("inside", "after")), "in another", "in a thread"],
)
@pytest.mark.parametrize("backend", [pytest.param("eager", marks=pytest.mark.full), "aot_eager"])
def test_gradients_are_those_of_eager_code(backend, where):
    """For `use`, sums and routes, wherever the backward runs; two graphs at most."""
    model, ids = trained(models.llama(num_hidden_layers=1)), models.tokens(4)
    fast, counter = compiled(model, backend, fullgraph=True)
    for choice in ("a", SUM, MIXED, ["b", "b", None, "a"], "b"):
        assert same(step(fast, choice, ids, where), step(model, choice, ids, where)), choice
    assert counter.graphs <= 2


@pytest.mark.full
def test_gradients_in_each_family(model):
    """The same for each family: Conv1D's outputs are views, BERT's pooler is flat."""
    trained(model)
    ids = models.tokens(4)
    fast, _ = compiled(model, "aot_eager", fullgraph=True)
    for choice in (SUM, MIXED):
        assert same(step(fast, choice, ids, "after"), step(model, choice, ids, "after")), choice


def test_one_backward_over_several_choices():
    """One backward over compiled forwards of three choices gives each its own."""
    model, ids = trained(models.llama(num_hidden_layers=1)), models.tokens(4)
    fast, _ = compiled(model, "aot_eager")

    def total(some):
        loss = 0
        for choice in ("a", MIXED, SUM):
            with chosen(model, choice):
                loss = loss + some(input_ids=ids).logits.square().sum()
        loss.backward()
        found = gradients(model)
        model.zero_grad()
        return found

    assert same(total(fast), total(model))


def test_default_set_holds_for_the_backward():
    """A forward outside of any block, with the backward inside of one: the default set counts."""
    model, ids = trained(models.llama(num_hidden_layers=1)), models.tokens(4)
    fast, _ = compiled(model, "aot_eager")

    def run_one(some):
        model.zero_grad()
        loss = some(input_ids=ids).logits.square().sum()
        with lora_hub.use(model, None):
            loss.backward()
        return gradients(model)

    assert same(run_one(fast), run_one(model))


@pytest.mark.parametrize("change", ["inactive", "added", "replaced", "removed"])
def test_what_changes_before_the_backward(change, tmp_path):
    """The backward is that of the forward that ran, whoever left or came in between; or it is an error."""
    model, ids = models.llama(num_hidden_layers=1).double(), models.tokens(4)
    path, other = write(model, tmp_path / "f", seed=3, r=4), write(model, tmp_path / "g", seed=4, r=4)
    embeds = model.get_input_embeddings()(ids).detach()

    def gradient(some):
        for handle in list(lora_hub.adapters(model).values()):
            handle.remove()
        handle = lora_hub.apply_adapter(model, path, name="f")
        leaf = embeds.clone().requires_grad_()
        loss = some(inputs_embeds=leaf).logits.square().sum()
        if change == "inactive":
            handle.active = False
        elif change == "added":
            lora_hub.apply_adapter(model, other, name="g")
        elif change == "replaced":
            lora_hub.apply_adapter(model, other, name="f", replace=True)
        else:
            lora_hub.apply_adapter(model, other, name="keeper", active=False)
            handle.remove()
        try:
            loss.backward()
        except (LoraHubError, RuntimeError):
            return None
        return leaf.grad

    lora_hub.apply_adapter(model, path, name="f")
    fast, _ = compiled(model, "aot_eager")
    expected, found = gradient(model), gradient(fast)

    assert found is None or close(found, expected, tolerance=1e-9)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_of_compiled_layers(reentrant):
    """Compiled layers under gradient checkpointing recompute with the choice of the forward."""
    model, ids = trained(models.llama(num_hidden_layers=1)), models.tokens(4)
    twin = copy.deepcopy(model)
    for layer in model.model.layers:
        layer.compile(backend="aot_eager")
    model.train()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    for choice in ("a", MIXED, SUM):
        assert same(step(model, choice, ids, "in another"), step(twin, choice, ids)), choice


@pytest.mark.parametrize("backend", EAGER_AND_AOT)
def test_checkpoint_inside_of_compiled_code(backend):
    """A checkpoint that is compiled as part of the graph: its recomputation has the choice of the forward."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(3))).double()
    for name in ("a", "b"):
        lora_hub.add_adapter(model, name, targets=("0", "1", "2"))
    models.randomise(models.adapter_parameters(model))
    x = torch.randn(4, 6, dtype=torch.float64)

    def forward(value):
        for layer in model:
            value = torch.tanh(checkpoint(layer, value, use_reentrant=False))
        return value.square().sum()

    def gradients_of(function, choice):
        model.zero_grad()
        with chosen(model, choice):
            loss = function(x)
        with lora_hub.use(model, "b"):
            loss.backward()
        return gradients(model)

    fast = torch.compile(forward, backend=backend)
    for choice in ("a", MIXED):
        assert same(gradients_of(fast, choice), gradients_of(forward, choice)), choice


def dropping(p=0.5, width=64):
    """One linear layer with an adapter whose inputs are dropped, and A and B of it."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(width, 5, bias=False)).double()
    lora_hub.add_adapter(model, "a", r=2, targets=("0",), lora_dropout=p)
    models.randomise(models.adapter_parameters(model))
    return model.train()


BACKENDS = ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.full)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("choice", ["a", ["a", None, {"a": 0.5}, "a"]], ids=str)
def test_dropout_of_forward_and_backward_is_one(backend, choice):
    """The delta is bilinear: with one mask in both directions, <dA, A> and <dB, B> are each the delta itself."""
    model = dropping()
    fast, _ = compiled(model, backend)
    lora_A, lora_B = models.adapter_parameters(model)
    for _ in range(3):
        model.zero_grad()
        x = torch.randn(4, 3, 64, dtype=torch.float64, requires_grad=True)
        with chosen(model, choice):
            y = fast(x)
        (y - x @ model[0].weight.t()).sum().backward()
        delta = (y - x @ model[0].weight.t()).sum().detach()

        assert torch.allclose((lora_A.grad * lora_A).sum(), delta)
        assert torch.allclose((lora_B.grad * lora_B).sum(), delta)
        assert torch.allclose((x.grad * x).sum(), delta)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_is_drawn_anew_and_from_the_seed(backend):
    """Each call drops other inputs; `torch.manual_seed` repeats them; evaluation drops none."""
    model, x = dropping(), torch.randn(2, 64, dtype=torch.float64)
    fast, _ = compiled(model, backend)

    def call():
        with lora_hub.use(model, "a"):
            return fast(x).detach()

    torch.manual_seed(4)
    first, second = call(), call()
    torch.manual_seed(4)
    again = call()
    model.eval()
    evaluated = call()

    assert not torch.equal(first, second)
    assert torch.equal(first, again)
    assert torch.allclose(evaluated, model(x))


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_drop_different_inputs(backend):
    """Two layers that get one input draw masks of their own."""
    torch.manual_seed(0)

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = torch.nn.Linear(64, 5), torch.nn.Linear(64, 5)

        def forward(self, x):
            return self.one(x), self.other(x)

    model = Two().train()
    lora_hub.add_adapter(model, "a", r=2, targets=("one", "other"), lora_dropout=0.5)
    for layer in (model.one, model.other):
        models.randomise(models.adapter_parameters(layer))
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    fast, _ = compiled(model, backend)
    one, other = fast(torch.ones(2, 64))

    assert not torch.allclose(one, other)


def test_adapter_that_gives_way_before_the_backward_of_a_block(tmp_path):
    """What was chosen in a block and replaced before the backward is an error, not the gradient of another adapter."""
    model, ids = trained(models.llama(num_hidden_layers=1)), models.tokens(4)
    lora_hub.save_adapter(lora_hub.adapters(model)["a"], tmp_path)
    fast, _ = compiled(model, "aot_eager")
    with lora_hub.use(fast, "a"):
        loss = fast(input_ids=ids).logits.square().sum()
    lora_hub.apply_adapter(model, tmp_path, name="a", trainable=True, replace=True)

    with pytest.raises(StateError, match="changed between"):
        loss.backward()


def test_optimizer_leaves_who_did_not_run(tmp_path):
    """A step after compiled training changes only the adapters that ran, weight decay included."""
    model, ids = trained(models.llama(num_hidden_layers=1)), models.tokens(4)
    fast, _ = compiled(model, "aot_eager")
    optimizer = torch.optim.AdamW(models.adapter_parameters(model), lr=0.1, weight_decay=0.5)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with lora_hub.use(fast, "a"):
        fast(input_ids=ids).logits.square().sum().backward()
    optimizer.step()
    changed = {
        n.rpartition("__")[2].partition("%")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])
    }

    assert changed == {"a"}


@pytest.mark.full
def test_training_in_bfloat16_and_autocast():
    """On a bfloat16 base, and under autocast, compiled gradients are close to eager ones."""
    for dtype in (torch.bfloat16, torch.float32):
        model, ids = models.llama(num_hidden_layers=1).to(dtype), models.tokens(4)
        for name in "ab":
            lora_hub.add_adapter(model, name)
        models.randomise(models.adapter_parameters(model))
        fast, _ = compiled(model, "aot_eager")
        for choice in ("a", MIXED):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.float32):
                found, expected = step(fast, choice, ids, "after"), step(model, choice, ids, "after")

            for name, gradient in expected.items():
                assert (found[name] - gradient).norm() <= 0.05 * gradient.norm(), name


def test_frozen_adapters_pass_gradients_on(small):
    """In compiled code frozen adapters pass each row's gradient on to the input."""
    small.double()
    embeds = small.get_input_embeddings()(models.tokens(4)).detach()
    fast, _ = compiled(small, "aot_eager", fullgraph=True)

    def gradient(model, choice):
        leaf = embeds.clone().requires_grad_()
        with chosen(small, choice):
            loss = model(inputs_embeds=leaf).logits.square().sum()
        loss.backward()
        return leaf.grad

    for choice in ("a", MIXED, None):
        assert close(gradient(fast, choice), gradient(small, choice), tolerance=1e-9)


# Inductor


@pytest.mark.full
@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_inductor(adapted, mode):
    """Inductor's code, also where it would freeze what can be replayed, follows every choice."""
    fast = torch.compile(adapted, mode=mode, fullgraph=True)
    for choice in ("a", None, SUM, MIXED, [None, "b", "a", "a"], "b"):
        for _ in range(2):
            assert close(run(fast, choice), run(adapted, choice)), choice


@pytest.mark.full
def test_inductor_trains():
    """Gradients of Inductor's code are those of eager code, for `use`, sums and routes, after the block."""
    # Not LLaMA, whose norms are float32 whatever the base is: Inductor sums in another order.
    model, ids = trained(models.gpt2()), models.tokens(4)
    fast = torch.compile(model, fullgraph=True)
    for choice in ("a", SUM, MIXED):
        expected = step(model, choice, ids, "in another")
        assert same(step(fast, choice, ids, "in another"), expected, tolerance=1e-8), choice


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_inductor_on_one_layer(mode):
    """One small layer: choices, rows and gradients in Inductor's code."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh()).double()
    for name in ("a", "b"):
        lora_hub.add_adapter(model, name, targets=("0",))
    models.randomise(models.adapter_parameters(model))
    fast = torch.compile(model, mode=mode)
    x = torch.randn(4, 3, 6, dtype=torch.float64)

    for choice in ("a", None, MIXED, "b", MIXED[::-1]):
        with torch.no_grad(), chosen(model, choice):
            assert close(fast(x), model(x), tolerance=1e-9), choice


# Export, trace and transforms


def exported(model, *example, **options):
    """The program that `torch.export` makes of the model, run in eager mode."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about its own
        return torch.export.export(model, example, strict=False, **options).module()


class Logits(torch.nn.Module):
    """A model of transformers, from token ids to logits."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, ids):
        """Without a cache, which is no tensor."""
        options = {} if self.model.config.model_type == "bert" else {"use_cache": False}
        return self.model(input_ids=ids, **options).logits


@pytest.mark.parametrize(
    "choice", ["a", MIXED, *(pytest.param(choice, marks=pytest.mark.full) for choice in (SUM, None))], ids=str
)
@pytest.mark.parametrize("warm", [pytest.param(True, marks=pytest.mark.full), False])
def test_export(adapted, choice, warm):
    """An exported program gives what the choice gave, for other tokens as well."""
    ids, others = models.tokens(4, 5), models.tokens(4, 5).flip(1)
    expected = run(copy.deepcopy(adapted), choice, others)
    if warm:
        run(adapted, choice)
    with chosen(adapted, choice):
        program = exported(Logits(adapted), ids)
    with torch.no_grad():
        found = program(others)

    assert close(found, expected)


@pytest.mark.parametrize("choice", ["a", SUM, ["a", None, "b"]], ids=str)
@pytest.mark.parametrize("how", ["export", "trace", "vmap", "grad", "jvp", "fake", "compile"])
def test_whoever_looked_on_leaves_nothing_behind(tmp_path, choice, how):
    """What a tracer, a transform or a fake tensor saw of a fresh model is not what later calls compute with."""
    model, x = layer(trainable=False, tmp_path=tmp_path), torch.randn(3, 2, 6, dtype=torch.float64)
    expected = run_layer(copy.deepcopy(model), choice, x)

    def inner(value):
        with chosen(model, choice):
            return model(value)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "export":
            with torch.no_grad(), chosen(model, choice):
                torch.export.export(model, (x,), strict=False)
        elif how == "trace":
            with torch.no_grad(), chosen(model, choice):
                torch.jit.trace(model, (x,), check_trace=False)
        elif how == "vmap":
            torch.func.vmap(inner)(torch.stack([x, x]))
        elif how == "grad":
            torch.func.grad(lambda v: inner(v).sum())(x)
        elif how == "jvp":
            torch.func.jvp(inner, (x,), (x,))
        elif how == "fake":
            from torch._subclasses.fake_tensor import FakeTensorMode

            with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
                inner(mode.from_tensor(x))
        else:
            with torch.no_grad(), chosen(model, choice):
                torch.compile(model, backend="aot_eager")(x)

    for gradients_enabled in (True, False):
        with torch.set_grad_enabled(gradients_enabled):
            assert close(run_layer(model, choice, x), expected, tolerance=1e-9)


def run_layer(model, choice, x):
    """The outputs under a choice, in the mode of gradients that is on."""
    with chosen(model, choice):
        return model(x).detach()


@pytest.mark.full
@pytest.mark.parametrize("warm", [True, False])
def test_export_of_a_trainable_adapter(warm):
    """The same of adapters that are trained, under gradients."""
    model, ids = trained(models.llama(num_hidden_layers=1)), models.tokens(4)
    expected = run(model, SUM) if warm else None
    with lora_hub.use(model, SUM), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(Logits(model), (ids,), strict=False).module()
    expected = run(model, SUM) if expected is None else expected

    assert close(program(ids).detach(), expected, tolerance=1e-9)


@pytest.mark.parametrize("choice", ["a", SUM, None, MIXED], ids=str)
@pytest.mark.parametrize("warm", [pytest.param(True, marks=pytest.mark.full), False])
def test_trace(adapted, choice, warm):
    """`torch.jit.trace` under `no_grad` keeps what the choice gave; the model itself runs on as before."""
    ids, others = models.tokens(4), models.tokens(4).flip(1)
    if warm:
        run(adapted, choice)
    with torch.no_grad(), warnings.catch_warnings(), chosen(adapted, choice):
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(Logits(adapted), (ids,), check_trace=False)
    with torch.no_grad():
        found = traced(others)

    assert close(found, run(adapted, choice, others))
    assert close(run(adapted, choice), run(copy.deepcopy(adapted), choice))


def layer(*, trainable=True, tmp_path=None):
    """Two linear layers in float64 with adapters `a` and `b`, trainable or frozen."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 4)).double()
    for seed, name in enumerate("ab"):
        handle = lora_hub.add_adapter(model, name, r=2, targets=("0", "2"))
        models.randomise([p for n, p in model.named_parameters() if n.endswith(f"__{name}")], seed=seed)
        if not trainable:
            lora_hub.save_adapter(handle, tmp_path / name)
            handle.remove()
            lora_hub.apply_adapter(model, tmp_path / name, name=name)
    return model


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("choice", ["a", {"a": 0.5, "b": 2}, ["a", None, "b"]], ids=str)
def test_functional_gradients(tmp_path, trainable, choice):
    """`torch.func.grad` of the input is that of autograd; first, on a model that never ran, and afterwards too."""
    model, x = layer(trainable=trainable, tmp_path=tmp_path), torch.randn(3, 2, 6, dtype=torch.float64)

    def loss(value):
        with chosen(model, choice):
            return model(value).square().sum()

    found = torch.func.grad(loss)(x)
    with chosen(model, choice):
        leaf = x.clone().requires_grad_()
        model(leaf).square().sum().backward()
        with torch.no_grad():
            plain = model(x)
        twin = copy.deepcopy(model)
    with torch.no_grad(), chosen(twin, choice):
        expected = twin(x)

    assert close(found, leaf.grad, tolerance=1e-9)
    assert close(plain, expected, tolerance=1e-9)


@pytest.mark.parametrize("trainable", [True, False])
def test_vmap_over_inputs(tmp_path, trainable):
    """`vmap` over examples equals the batch; first, on a model that never ran; and with gradients."""
    model, x = layer(trainable=trainable, tmp_path=tmp_path), torch.randn(3, 6, dtype=torch.float64)

    def weighted(value):
        with lora_hub.use(model, {"a": 0.5, "b": 2}):
            return model(value)

    for gradients_enabled in (False, True):
        with torch.set_grad_enabled(gradients_enabled):
            assert close(torch.func.vmap(weighted)(x), weighted(x), tolerance=1e-9)
    per_example = torch.func.vmap(torch.func.grad(lambda v: weighted(v).square().sum()))(x)
    leaf = x.clone().requires_grad_()
    weighted(leaf).square().sum().backward()

    assert close(per_example, leaf.grad, tolerance=1e-9)


def test_functional_call_with_other_weights():
    """`functional_call` with other values of A and B gives what these values give."""
    model, x = layer(), torch.randn(3, 6, dtype=torch.float64)
    other = {n: p.detach() * 2 for n, p in model.named_parameters() if p.requires_grad}
    with lora_hub.use(model, "a"), torch.no_grad():
        model(x)
        found = torch.func.functional_call(model, other, (x,))
        for name, parameter in model.named_parameters():
            if name in other:
                parameter.copy_(other[name])
        expected = model(x)

    assert close(found, expected, tolerance=1e-12)


def test_per_example_gradients_of_the_adapter():
    """`vmap(grad(functional_call))`: the gradients of A and B for each example are those of autograd one by one."""
    model, x = layer(), torch.randn(3, 6, dtype=torch.float64)
    parameters = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}

    def loss(values, example):
        return torch.func.functional_call(model, values, (example,)).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for row in range(3):
        model.zero_grad()
        model(x[row]).square().sum().backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                assert close(found[name][row], parameter.grad, tolerance=1e-9)


@pytest.mark.parametrize("gradients_enabled", [True, False])
def test_vmap_over_adapters(gradients_enabled):
    """`vmap` over stacked values of A and B, for one input, runs an ensemble."""
    model, x = layer(), torch.randn(3, 6, dtype=torch.float64)
    stacked = {n: torch.stack([p.detach(), p.detach() * 2]) for n, p in model.named_parameters() if p.requires_grad}
    with torch.set_grad_enabled(gradients_enabled):
        found = torch.func.vmap(lambda values: torch.func.functional_call(model, values, (x,)))(stacked)
        expected = [torch.func.functional_call(model, {n: v[i] for n, v in stacked.items()}, (x,)) for i in (0, 1)]

    assert close(found, torch.stack(expected), tolerance=1e-9)


def test_forward_mode():
    """`torch.func.jvp` through a patched model agrees with reverse mode."""
    model, x, t = layer(), *(torch.randn(2, 6, dtype=torch.float64) for _ in range(2))
    _, tangent = torch.func.jvp(model, (x,), (t,))
    _, pull = torch.func.vjp(model, x)
    y = torch.randn_like(tangent)

    assert torch.allclose((tangent * y).sum(), (pull(y)[0] * t).sum())
