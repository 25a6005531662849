"""`use`: exactly the chosen adapters run, in this context and for this model, also in the backward."""

import asyncio
import dataclasses
import gc
import threading
import weakref

import models
import pytest
import torch
from models import logits
from torch.utils.checkpoint import checkpoint

import lora_hub
from lora_hub.errors import StateError, UsageError


@pytest.fixture
def outputs(model, saved):
    """A model with the adapters `task` and `style`, and what each choice gives."""
    lora_hub.apply_adapter(model, saved, name="task")
    lora_hub.apply_adapter(model, saved, name="style", scale=-0.5)
    choices = {"both": {"task": 1, "style": 1}, "task": "task", "style": "style", "base": None}
    expected = {}
    for name, choice in choices.items():
        with lora_hub.use(model, choice):
            expected[name] = logits(model)
    return expected


def test_each_choice_gives_its_own_outputs(outputs):
    """The four choices differ pairwise."""
    names = sorted(outputs)

    assert not any(torch.equal(outputs[a], outputs[b]) for a in names for b in names if a < b)


def test_default_is_the_sum_of_the_active(model, outputs):
    """Outside of `use` all active adapters run, and after it again."""
    assert torch.equal(logits(model), outputs["both"])


def test_weights_multiply_scale(model, saved, outputs):
    """The factor is weight x scale x alpha/r."""
    lora_hub.apply_adapter(model, saved, name="again", scale=-1.0, active=False)
    with lora_hub.use(model, {"again": 0.5}):
        found = logits(model)

    assert torch.allclose(found, outputs["style"], atol=1e-6)


def test_handle_is_a_choice(model, outputs):
    """A handle chooses its adapter."""
    with lora_hub.use(model, lora_hub.adapters(model)["task"]):
        assert torch.equal(logits(model), outputs["task"])


def test_nesting(model, outputs):
    """The innermost choice counts, and each block gives back what was before it, also on an exception."""
    with lora_hub.use(model, "task"):
        with pytest.raises(ZeroDivisionError), lora_hub.use(model, None):
            assert 1 / torch.equal(logits(model), outputs["style"])
        assert torch.equal(logits(model), outputs["task"])
    assert torch.equal(logits(model), outputs["both"])


def test_one_use_can_be_entered_again(model, outputs):
    """One `use` object may be entered many times, also while it is entered."""
    task = lora_hub.use(model, "task")
    with task, task:
        inside = logits(model)
    with task:
        again = logits(model)

    assert torch.equal(inside, outputs["task"])
    assert torch.equal(again, outputs["task"])
    assert torch.equal(logits(model), outputs["both"])


def test_choice_belongs_to_one_model(model, saved, family):
    """A choice for one model leaves another alone."""
    other = family.build()
    lora_hub.apply_adapter(model, saved, name="task")
    lora_hub.apply_adapter(other, saved, name="task")
    expected = logits(other)
    with lora_hub.use(model, None):
        assert torch.equal(logits(other), expected)
        with lora_hub.use(other, None):
            assert torch.equal(logits(model), logits(other))


def test_threads_do_not_see_each_others_choice(model, outputs):
    """Two threads with choices of their own, in lockstep, each get their own outputs."""
    barrier, wrong = threading.Barrier(3), []

    def run(name):
        with lora_hub.use(model, None if name == "base" else name):
            for _ in range(20):
                barrier.wait()
                if not torch.equal(logits(model), outputs[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("task", "style", "base")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_tasks_do_not_see_each_others_choice(model, outputs):
    """Two asyncio tasks that interleave inside their blocks each get their own outputs."""

    async def run(name):
        with lora_hub.use(model, name):
            for _ in range(5):
                await asyncio.sleep(0)
                assert torch.equal(logits(model), outputs[name])

    async def main():
        await asyncio.gather(run("task"), run("style"))

    asyncio.run(main())


def test_bind_carries_the_choice_into_a_thread(model, outputs):
    """A bound function runs under its choice wherever it is called; a plain one does not."""
    found = {}

    def run(key):
        found[key] = logits(model)

    with lora_hub.use(model, "task") as task:
        bound = task.bind(run)
        threads = [threading.Thread(target=bound, args=("bound",)), threading.Thread(target=run, args=("plain",))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert torch.equal(found["bound"], outputs["task"])
    assert torch.equal(found["plain"], outputs["both"])


@pytest.mark.parametrize("choice", ["unknown", {"task": 1, "unknown": 1}])
def test_unknown_name_lists_the_known(model, outputs, choice):
    """An unknown name is an error that lists what there is."""
    with pytest.raises(UsageError, match="style, task"), lora_hub.use(model, choice):
        pass


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1", None, True])
def test_weight_must_be_a_finite_number(model, outputs, weight):
    """A weight that is no finite number is refused before anything runs."""
    with pytest.raises(UsageError, match="finite"):
        lora_hub.use(model, {"task": weight})


def test_removed_while_in_use(model, outputs):
    """Running on with an adapter that was removed is an error, not the bare base."""
    with lora_hub.use(model, "task"):
        lora_hub.adapters(model)["task"].remove()
        with pytest.raises(StateError, match="removed"):
            logits(model)


def test_generate(saved, model, family):
    """`generate` runs under the choice of the caller."""
    if family is models.FAMILIES["bert"]:
        return
    lora_hub.apply_adapter(model, saved, name="task", scale=20.0)

    def generate():
        return model.generate(models.tokens(1), max_new_tokens=6, do_sample=False)

    with lora_hub.use(model, None):
        bare = generate()
    adapted = generate()
    lora_hub.adapters(model)["task"].remove()

    assert torch.equal(bare, generate())
    assert not torch.equal(bare, adapted)


@pytest.mark.parametrize("kind", ["of another model", "removed"])
def test_handle_must_be_of_this_model(model, saved, family, outputs, kind):
    """A handle of another model, or one that was removed, chooses nothing here."""
    other = lora_hub.apply_adapter(family.build(), saved, name="task")
    if kind == "removed":
        other = lora_hub.adapters(model)["task"]
        lora_hub.apply_adapter(model, saved, name="task", replace=True)

    with pytest.raises(UsageError, match="not on this model"):
        lora_hub.use(model, other)


@pytest.mark.parametrize("choice", [["task"], 3, ("task",)])
def test_what_is_no_choice_is_refused(model, outputs, choice):
    """A list of names is no choice: weights would be missing."""
    with pytest.raises(UsageError, match="no choice"):
        lora_hub.use(model, choice)


def test_handle_stands_for_itself_only(model, saved, outputs):
    """A choice by handle does not pass to the adapter that takes the handle's name later."""
    choice = lora_hub.use(model, lora_hub.adapters(model)["task"])
    lora_hub.apply_adapter(model, saved, name="task", replace=True)

    with pytest.raises(StateError, match="removed"), choice:
        pass


def test_one_use_in_two_threads_at_once(model, outputs):
    """One `use` object may be entered by several threads at the same time."""
    task, barrier, found = lora_hub.use(model, "task"), threading.Barrier(2), []

    def run():
        with task:
            barrier.wait()
            found.append(logits(model))
            barrier.wait()
        found.append(logits(model))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(torch.equal(one, outputs["task"]) for one in found) == 2
    assert sum(torch.equal(one, outputs["both"]) for one in found) == 2


def test_choosing_looks_at_the_chosen_only(model, outputs):
    """However many adapters are there, a new choice does not go over all of them."""

    class Named(dict):
        def __iter__(self):
            raise AssertionError("all adapters were looked at")

        keys = values = items = __iter__

    patch = lora_hub.adapters(model)["task"].patch
    patch.state = dataclasses.replace(patch.state, handles=Named(patch.state.handles))
    for choice in ("task", {"task": 1, "style": 1}, None):
        with lora_hub.use(model, choice):
            logits(model)
    with lora_hub.route(model, ["task", "style", None]):
        found = logits(model)

    assert torch.allclose(found[0], outputs["task"][0], atol=1e-5)


# The backward


@pytest.fixture
def chain():
    """Three layers with two trainable adapters, and a function that runs them under checkpointing."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(6, 6) for _ in range(3)))
    for name in ("task", "style"):
        lora_hub.add_adapter(model, name, targets=("0", "1", "2"))
    models.randomise(models.adapter_parameters(model))
    return model


MODES = {"plain": None, "reentrant": True, "non-reentrant": False}


def forward(model, x, mode):
    """Run *model*, each layer under the checkpointing of *mode*."""
    for layer in model:
        x = layer(x) if mode is None else checkpoint(layer, x, use_reentrant=mode)
        x = torch.tanh(x)
    return x


def gradients(model):
    """The gradients of all adapter parameters; then none are left."""
    found = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


def same(one, other):
    """Whether two sets of gradients are equal, where None is not zero."""
    return all(
        (a is None) == (b is None) and (a is None or torch.allclose(a, b))
        for a, b in zip(one.values(), other.values(), strict=True)
    )


@pytest.fixture
def x():
    """An input that wants a gradient, as reentrant checkpointing needs."""
    return torch.randn(4, 6, requires_grad=True)


def expected_gradients(model, x, *choices):
    """The gradients of the sum of the outputs under each choice, without checkpointing and inside of the block."""
    for choice in choices:
        if choice == "default":
            forward(model, x, None).sum().backward()
        else:
            with lora_hub.use(model, choice):
                forward(model, x, None).sum().backward()
    return gradients(model)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("choice", ["task", {"task": 0.5, "style": 2.0}])
def test_backward_after_the_block(chain, x, mode, choice):
    """The choice of the forward holds for its backward, also when that recomputes after the block was left."""
    expected = expected_gradients(chain, x, choice)
    with lora_hub.use(chain, choice):
        y = forward(chain, x, MODES[mode])
    y.sum().backward()

    assert same(gradients(chain), expected)


@pytest.mark.parametrize("mode", MODES)
def test_backward_under_another_choice(chain, x, mode):
    """A backward that runs inside of another block does not take that block's choice."""
    expected = expected_gradients(chain, x, "default")
    y = forward(chain, x, MODES[mode])
    with lora_hub.use(chain, "style"):
        y.sum().backward()

    assert same(gradients(chain), expected)


@pytest.mark.parametrize("mode", MODES)
def test_one_backward_over_several_choices(chain, x, mode):
    """One backward over forwards of three choices, the default among them, gives each its own."""
    expected = expected_gradients(chain, x, "task", "default", "style", "task")
    total = 0
    for choice in ("task", "default", "style", "task"):
        if choice == "default":
            total = total + forward(chain, x, MODES[mode]).sum()
        else:
            with lora_hub.use(chain, choice):
                total = total + forward(chain, x, MODES[mode]).sum()
    total.backward()

    assert same(gradients(chain), expected)


@pytest.mark.parametrize("mode", MODES)
def test_backward_in_another_thread(chain, x, mode):
    """The backward may run in a thread that chose nothing."""
    expected = expected_gradients(chain, x, "task")
    with lora_hub.use(chain, "task"):
        loss = forward(chain, x, MODES[mode]).sum()
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()

    assert same(gradients(chain), expected)


@pytest.mark.parametrize("mode", MODES)
def test_use_inside_of_a_checkpointed_function(chain, x, mode):
    """A block that is entered inside of the checkpointed function is entered again by the recomputation."""

    def inner(value):
        with lora_hub.use(chain, "style"):
            value = chain[0](value)
        return chain[1](value)

    with lora_hub.use(chain, "task"):
        y = inner(x) if MODES[mode] is None else checkpoint(inner, x, use_reentrant=MODES[mode])
    y.sum().backward()
    touched = {name for name, gradient in gradients(chain).items() if gradient is not None}

    assert touched == {f"{layer}.lora_{side}__{name}" for layer, name in ((0, "style"), (1, "task")) for side in "AB"}


def test_interleaved_tasks_train_their_own(chain, x):
    """Autograd keeps hooks per thread: tasks that interleave inside their blocks still get their own gradients."""
    expected = expected_gradients(chain, x, "task", "style")

    async def run(name):
        with lora_hub.use(chain, name):
            await asyncio.sleep(0)
            y = forward(chain, x, mode=False)
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        return y.sum()

    async def main():
        return await asyncio.gather(run("task"), run("style"))

    sum(asyncio.run(main())).backward()

    assert same(gradients(chain), expected)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_may_be_enabled_inside_of_the_block(chain, x, mode):
    """A block that was entered without gradients still carries its choice into a recomputation."""
    expected = expected_gradients(chain, x, "task")
    with torch.no_grad(), lora_hub.use(chain, "task"), torch.enable_grad():
        y = forward(chain, x, MODES[mode])
    y.sum().backward()

    assert same(gradients(chain), expected)


def test_change_in_place_is_noticed(chain, x):
    """What autograd would refuse outside of `use`, parameters changed before the backward, is refused inside too."""
    with lora_hub.use(chain, "task"):
        loss = forward(chain, x, None).square().sum()
    with torch.no_grad():
        for parameter in chain.parameters():
            parameter.mul_(0.5)

    with pytest.raises(RuntimeError, match="changed in place"):
        loss.backward()


def test_choices_keep_no_model_alive():
    """After the block and the backward, nothing of ours holds the model or the graph."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 6))
    lora_hub.add_adapter(model, "task", targets=("0",))
    with lora_hub.use(model, "task"):
        y = torch.tanh(checkpoint(model, torch.randn(2, 6), use_reentrant=False))
    y.sum().backward()
    watch = [weakref.ref(model), weakref.ref(y)]
    del model, y
    gc.collect()

    assert [ref() for ref in watch] == [None, None]


@pytest.mark.parametrize("reentrant", [True, False])
def test_nested_checkpoints_under_another_choice(chain, x, reentrant):
    """A checkpoint inside of a checkpoint, with the backward in another block: both keep the choice of the forward."""
    expected = expected_gradients(chain, x, "task")

    def outer(value):
        return checkpoint(lambda v: forward(chain, v, None), value, use_reentrant=reentrant)

    with lora_hub.use(chain, "task"):
        y = checkpoint(outer, x, use_reentrant=reentrant)
    with lora_hub.use(chain, "style"):
        y.sum().backward()

    assert same(gradients(chain), expected)


def test_forwards_without_a_backward_keep_nothing_alive():
    """Inside of a block, a graph that no backward ever runs through is freed with its last reference."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Tanh(), torch.nn.Softmax(dim=-1))
    lora_hub.add_adapter(model, "task", targets=("0",))
    with lora_hub.use(model, "task"):
        y = model(torch.randn(2, 6))
    watch = [weakref.ref(model), weakref.ref(y)]
    del model, y
    gc.collect()

    assert [ref() for ref in watch] == [None, None]
