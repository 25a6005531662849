"""`route`: each row of a batch runs its own adapters, and gets what `use` alone would give it."""

import asyncio
import copy
import gc
import io
import pickle
import threading
import weakref

import models
import pytest
import torch
from models import logits
from safetensors.torch import load_file, save_file
from torch.utils.checkpoint import checkpoint

import lora_hub
from lora_hub.errors import StateError, UsageError
from lora_hub.patch import table

WEIGHTS, MANIFEST = "adapter_model.safetensors", "lora-hub.json"

# Ranks, targets and scalings that differ, so that stacks cannot be uniform.
ADAPTERS = {
    "one": {"r": 1, "targets": ("q", "v")},
    "three": {"r": 3, "targets": ("q",)},
    "four": {"r": 4, "targets": ("q", "k", "v", "o")},
    "eight": {"r": 8, "targets": ("q", "v"), "use_rslora": True},
    "sixteen": {"r": 16, "targets": ("v",), "lora_alpha": 5},
}
SUM = {"four": 0.5, "eight": -1.5}
MIXED = [None, "one", "three", SUM, "sixteen", "eight", "four"]


def write(model, directory, *, seed, dtype=None, **options):
    """Save a random adapter of *model*, in *dtype* if one is given, and leave the model as it was."""
    handle = lora_hub.add_adapter(model, "written", **options)
    models.randomise(models.adapter_parameters(model), seed=seed)
    lora_hub.save_adapter(handle, directory)
    handle.remove()
    if dtype is not None:
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(directory / WEIGHTS).items()}
        save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})
        (directory / MANIFEST).unlink()
    return directory


@pytest.fixture
def residents(model, tmp_path):
    """The model, with all of `ADAPTERS` on it, none of them active."""
    return with_adapters(model, tmp_path)


def with_adapters(model, directory, adapters=ADAPTERS):
    paths = {n: write(model, directory / n, seed=seed, **o) for seed, (n, o) in enumerate(adapters.items())}
    for name, path in paths.items():
        lora_hub.apply_adapter(model, path, name=name, active=False)
    return model


@pytest.fixture
def small(tmp_path):
    """A tiny LLaMA with `ADAPTERS`, for what is the same in every family."""
    return with_adapters(models.llama(), tmp_path)


def alone(model, choices, ids):
    """What `use` gives each row, in a batch of its own."""
    rows = []
    for row, choice in enumerate(choices):
        with lora_hub.use(model, choice):
            rows.append(logits(model, ids[row : row + 1]))
    return torch.cat(rows)


def routed(model, choices, ids, **kwargs):
    """What `route` gives all rows in one batch."""
    with lora_hub.route(model, choices):
        return logits(model, ids, **kwargs)


def close(found, expected, tolerance=1e-5):
    """Whether the two differ by no more than *tolerance* of the largest value, in every row."""
    distance = (found - expected).abs().flatten(1).amax(1)
    return bool((distance <= tolerance * expected.abs().flatten(1).amax(1)).all())


# Every row gets its own


@pytest.mark.parametrize("length", [1, 2, 3, 17, 31])
def test_each_row_gets_what_use_gives_it(residents, length):
    """None, names and a sum, of five ranks and different targets: every row equals `use` alone on that row."""
    ids = models.tokens(len(MIXED), length)

    assert close(routed(residents, MIXED, ids), alone(residents, MIXED, ids))


@pytest.mark.parametrize("length", [1, 5, 20])
@pytest.mark.parametrize(
    "choices",
    [
        ["eight"] * 7 + ["one"],
        ["one"] + ["four"] * 7,
        [None] * 3 + ["sixteen"],
        ["three", None],
        ["eight", "one", "eight", "one"],
        ["one", "one", "eight", "eight"],
        ["sixteen", "one", None, "three", "one", None],
        [{"one": 2.0}, {"one": -2.0}, {"one": 1.0, "three": 1.0}],
    ],
    ids=str,
)
def test_uneven_rows(small, choices, length):
    """However the rows are divided among the choices, and in whatever order, each gets its own."""
    ids = models.tokens(len(choices), length)

    assert close(routed(small, choices, ids), alone(small, choices, ids))


@pytest.mark.parametrize("length", [2, 25])
def test_permuted_rows(residents, length):
    """Permuting rows and choices alike permutes the outputs."""
    ids = models.tokens(len(MIXED), length)
    expected = routed(residents, MIXED, ids)
    for seed in range(4):
        order = torch.randperm(len(MIXED), generator=torch.Generator().manual_seed(seed))
        found = routed(residents, [MIXED[i] for i in order], ids[order])

        assert close(found, expected[order])


@pytest.mark.parametrize("rows", [1, 4])
def test_all_rows_the_same_are_use(residents, rows):
    """A route in which all rows run the same gives the bits of `use`."""
    ids = models.tokens(rows)
    with lora_hub.use(residents, "four"):
        expected = logits(residents, ids)

    assert torch.equal(routed(residents, ["four"] * rows, ids), expected)


@pytest.mark.parametrize("length", [2, 25])
def test_bare_rows_are_the_base(residents, length):
    """The rows of None get the bits that the same batch gets without adapters."""
    ids = models.tokens(4, length)
    with lora_hub.use(residents, None):
        expected = logits(residents, ids)
    found = routed(residents, [None, "four", None, SUM], ids)

    assert torch.equal(found[[0, 2]], expected[[0, 2]])


def test_scale_and_weights_multiply(small, tmp_path):
    """The factor of a row is weight x scale x scaling."""
    lora_hub.apply_adapter(small, tmp_path / "four", name="scaled", scale=-2.0, active=False)
    ids = models.tokens(3)
    found = routed(small, [{"scaled": 0.25}, {"four": -0.5}, None], ids)

    assert close(found, alone(small, [{"four": -0.5}, {"four": -0.5}, None], ids))


def test_weight_zero_is_off(small):
    """A row whose only weight is 0 is a bare row."""
    ids = models.tokens(3)

    assert close(
        routed(small, [{"four": 0}, "one", {"one": 1, "four": 0}], ids), alone(small, [None, "one", "one"], ids)
    )


def test_handles_are_choices(small):
    """A handle chooses as its name does."""
    ids, handles = models.tokens(3), lora_hub.adapters(small)
    found = routed(small, [handles["four"], None, handles["one"]], ids)

    assert torch.equal(found, routed(small, ["four", None, "one"], ids))


def test_rank_pattern(tmp_path):
    """Ranks and alphas that differ per module, as PEFT writes them, are each row's own."""
    model = models.llama()
    for name, seed in (("a", 5), ("b", 6)):
        models.peft_directory(
            model, tmp_path / name, seed=seed, r=4 if name == "a" else 9,
            target_modules=["q_proj", "v_proj", "down_proj"],
            rank_pattern={"layers.0.self_attn.q_proj": 13, "down_proj": 2}, alpha_pattern={"v_proj": 3},
            use_rslora=name == "b",
        )  # fmt: skip
        lora_hub.apply_adapter(model, tmp_path / name, name=name, active=False)
    choices = ["a", "b", None, {"a": 0.5, "b": 0.5}]
    for length in (3, 30):
        ids = models.tokens(4, length)

        assert close(routed(model, choices, ids), alone(model, choices, ids))


def test_fused_parts(tmp_path):
    """In a fused c_attn, rows that adapt q and v, only v, or k leave the other parts as they are."""
    adapters = {"qv": {"targets": ("q", "v")}, "v": {"targets": ("v",), "r": 2}, "k": {"targets": ("k",), "r": 5}}
    model = with_adapters(models.gpt2(), tmp_path, adapters)
    choices, outputs = ["qv", "v", None, "k", {"qv": 0.5, "k": 2}], []
    hook = model.transformer.h[0].attn.c_attn.register_forward_hook(lambda _m, _a, y: outputs.append(y.split(48, -1)))
    ids = models.tokens(5)
    found = routed(model, choices, ids)
    with lora_hub.use(model, None):
        logits(model, ids)
    hook.remove()
    changed = [[not torch.equal(a[i], b[i]) for a, b in zip(*outputs, strict=True)] for i in range(5)]

    assert close(found, alone(model, choices, ids))
    assert changed == [
        [True, False, True], [False, False, True], [False, False, False], [False, True, False], [True, True, True],
    ]  # fmt: skip


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("length", [2, 25])
def test_dtypes_of_files_and_base(tmp_path, base, length):
    """Files of three dtypes on bases of four: no worse against float64 than `use` is, by 2% and the last place."""
    model, dtypes = models.llama(), {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
    for seed, (name, dtype) in enumerate(dtypes.items()):
        path = write(model, tmp_path / name, seed=seed, dtype=dtype, r=3 + seed, lora_alpha=7)
        lora_hub.apply_adapter(model, path, name=name, active=False)
    model.to(base)
    choices = ["f32", "bf16", "f16", None, {"f32": 0.3, "f16": 0.6}]
    ids = models.tokens(5, length)
    found, single = routed(model, choices, ids), alone(model, choices, ids)
    exact = alone(model.to(torch.float64), choices, ids)

    def error(some):
        return (some.double() - exact).square().mean().sqrt()

    assert found.dtype is base
    # A few values of a tiny model scatter: 15% here, where whole distributions would allow 2%.
    assert error(found) <= 1.15 * error(single) + 1e-6 * exact.abs().max()


@pytest.mark.parametrize("length", [2, 25])
def test_autocast(residents, length):
    """Under autocast each row is as close to its own float32 output as `use` under autocast is."""
    ids = models.tokens(len(MIXED), length)
    exact = alone(residents, MIXED, ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, single = routed(residents, MIXED, ids), alone(residents, MIXED, ids)

    assert (found.float() - exact).norm() <= 1.2 * (single.float() - exact).norm()


def test_autocast_leaves_nothing_behind(small):
    """Routes under autocast and without it alternate, and each computes in its own dtype."""
    ids = models.tokens(len(MIXED))
    expected, route = alone(small, MIXED, ids), lora_hub.route(small, MIXED)
    for enabled in (False, True, False, True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled), route:
            found = logits(small, ids)

    assert close(found, expected)


def test_with_gradients_enabled_nothing_differs(residents):
    """Where gradients are enabled other code runs, and gives the same rows."""
    for length in (2, 25):
        ids = models.tokens(len(MIXED), length)
        with lora_hub.route(residents, MIXED):
            found = residents(input_ids=ids).logits.detach()

        assert close(found, alone(residents, MIXED, ids))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_inference_mode_and_gradients_alternate(small, mode):
    """What is kept under `inference_mode` serves calls with gradients, and the other way round."""
    ids, route = models.tokens(len(MIXED)), lora_hub.route(small, MIXED)
    expected = alone(small, MIXED, ids)
    embeds = small.get_input_embeddings()(ids).detach()
    with route:
        for _ in range(3):
            with mode():
                assert close(small(input_ids=ids).logits.clone(), expected)
            leaf = embeds.clone().requires_grad_()
            y = small(inputs_embeds=leaf).logits
            y.sum().backward()

            assert close(y.detach(), expected)


# Batches that change


@pytest.mark.parametrize("length", [2, 25])
def test_route_that_changes_at_every_call(small, length):
    """Forty random routes, one after the other, each right: sizes, choices and order differ."""
    generator = torch.Generator().manual_seed(7)
    pool = [*MIXED, {"one": 0.3, "three": 0.3, "sixteen": 1.0}, {"four": 1e-3}]
    for _ in range(40):
        rows = int(torch.randint(1, 9, (), generator=generator))
        choices = [pool[i] for i in torch.randint(len(pool), (rows,), generator=generator)]
        ids = torch.randint(3, models.VOCABULARY, (rows, length), generator=generator)

        assert close(routed(small, choices, ids), alone(small, choices, ids)), choices


def test_routes_share_what_they_need(small):
    """Routes over subsets of one another's choices, entered in turn, stay right."""
    routes = [["one", "four"], ["four", "one"], ["one", None], MIXED, ["eight", "one", "four"], ["four", "four", None]]
    kept = [lora_hub.route(small, choices) for choices in routes]
    for _ in range(3):
        for choices, route in zip(routes, kept, strict=True):
            ids = models.tokens(len(choices))
            with route:
                found = logits(small, ids)

            assert close(found, alone(small, choices, ids))


def test_one_route_over_many_lengths(small):
    """One entered route takes every path of the arithmetic in turn."""
    with lora_hub.route(small, MIXED):
        found = {n: logits(small, models.tokens(len(MIXED), n)) for n in (1, 30, 2, 17, 16, 3, 30, 1)}

    assert all(close(y, alone(small, MIXED, models.tokens(len(MIXED), n))) for n, y in found.items())


@pytest.mark.parametrize("length", [1, 20])
def test_a_hundred_residents(tmp_path, length):
    """Of 120 adapters any few, or all of them, can be in one batch."""
    model = models.llama(num_hidden_layers=1)
    files = [write(model, tmp_path / str(r), seed=r, r=r) for r in (1, 3, 4, 8, 16, 5)]
    for n in range(120):
        lora_hub.apply_adapter(model, files[n % 6], name=f"a{n}", scale=(n + 1) / 60, active=False)
    few, everyone = ["a119", "a0", None, "a57"], [f"a{n}" for n in range(119, -1, -1)]

    for choices in (few, everyone, few):
        ids = models.tokens(len(choices), length)
        assert close(routed(model, choices, ids), alone(model, choices, ids))


def test_replaced_between_two_entries(small, tmp_path):
    """A route by name runs whoever has the name when it is entered."""
    route, ids = lora_hub.route(small, ["one", "four", None]), models.tokens(3)
    with route:
        before = logits(small, ids)
    lora_hub.apply_adapter(small, tmp_path / "eight", name="four", active=False, replace=True)
    with route:
        after = logits(small, ids)

    assert close(after, alone(small, ["one", "eight", None], ids))
    assert not close(after[1:2], before[1:2])


def test_replaced_while_entered(small, tmp_path):
    """A replacement counts from the next call on, as it does under `use`."""
    ids = models.tokens(3)
    with lora_hub.route(small, ["one", "four", None]):
        logits(small, ids)
        lora_hub.apply_adapter(small, tmp_path / "eight", name="four", active=False, replace=True)
        after = logits(small, ids)

    assert close(after, alone(small, ["one", "eight", None], ids))


def test_replaced_handle_is_refused(small, tmp_path):
    """A route by handle does not pass to another adapter of its name."""
    route = lora_hub.route(small, [lora_hub.adapters(small)["four"], None])
    lora_hub.apply_adapter(small, tmp_path / "eight", name="four", active=False, replace=True)

    with pytest.raises(StateError, match="removed"), route:
        pass


def test_removed_while_entered(small):
    """Running on with an adapter that was removed is an error, not a bare row."""
    with lora_hub.route(small, ["one", "four", None]):
        logits(small, models.tokens(3))
        lora_hub.adapters(small)["four"].remove()
        with pytest.raises(StateError, match="removed"):
            logits(small, models.tokens(3))


def test_removed_before_entry(small):
    """Entering a route whose adapter was removed is an error that says which."""
    route = lora_hub.route(small, ["one", "four"])
    lora_hub.adapters(small)["four"].remove()

    with pytest.raises(UsageError, match="four"), route:
        pass


def test_added_while_entered(small, tmp_path):
    """An adapter that comes while a route runs changes nothing in it, also if it is active by default."""
    ids = models.tokens(3)
    with lora_hub.route(small, ["one", "four", None]):
        before = logits(small, ids)
        lora_hub.apply_adapter(small, tmp_path / "eight", name="late")
        after = logits(small, ids)

    assert torch.equal(after, before)


def test_model_moves_to_another_dtype(small):
    """A route that is entered again after `.to(dtype)` computes in the new dtype."""
    ids, route = models.tokens(len(MIXED)), lora_hub.route(small, MIXED)
    with route:
        logits(small, ids)
    small.double()
    with route:
        found = logits(small, ids)

    assert close(found, alone(small, MIXED, ids), tolerance=1e-12)


# Choices that cannot be


@pytest.mark.parametrize("choices", ["task", {"one": 1}, [], (), None, 3], ids=str)
def test_what_is_no_list_is_refused(small, choices):
    """A route is a list of one choice for each row, and never empty."""
    with pytest.raises(UsageError, match="no list"):
        lora_hub.route(small, choices)


@pytest.mark.parametrize("choices", [["one", 3], ["one", ["four"]], [None, ("one",)]], ids=str)
def test_what_is_no_choice_is_refused(small, choices):
    """Each entry is what `use` takes."""
    with pytest.raises(UsageError, match="no choice"):
        lora_hub.route(small, choices)


def test_unknown_name_in_one_row(small):
    """An unknown name in any row is an error that lists what there is."""
    with pytest.raises(UsageError, match="eight, four"), lora_hub.route(small, [None, "one", "nobody"]):
        pass


@pytest.mark.parametrize("weight", [float("nan"), float("-inf"), "1", True])
def test_weight_in_one_row_must_be_finite(small, weight):
    """A weight that is no finite number is refused before anything runs."""
    with pytest.raises(UsageError, match="finite"):
        lora_hub.route(small, [None, {"one": weight}])


# Whose rows these are


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 7])
def test_wrong_batch_names_the_module(residents, rows):
    """A batch that is no multiple of the route's rows is refused, by the name of the module and both numbers."""
    with pytest.raises(UsageError, match=rf"shape \[{rows}, .*3 rows") as caught:
        routed(residents, ["four", None, "one"], models.tokens(rows))

    assert any(str(caught.value).startswith(f"`{path}`") for path in lora_hub.adapters(residents)["four"].modules)


def test_wrong_batch_with_gradients(residents):
    """The same is refused where gradients are enabled."""
    with pytest.raises(UsageError, match="3 rows"), lora_hub.route(residents, ["four", None, "one"]):
        residents(input_ids=models.tokens(4))


def test_wrong_batch_leaves_the_model_usable(small):
    """After a refusal the next batch is right."""
    route, ids = lora_hub.route(small, ["four", None, "one"]), models.tokens(3)
    with pytest.raises(UsageError), route:
        logits(small, models.tokens(5))
    with route:
        found = logits(small, ids)

    assert close(found, alone(small, ["four", None, "one"], ids))


def linears():
    """A model of one linear layer `0`, with two adapters `a` and `b`."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 6))
    for name in ("a", "b"):
        lora_hub.add_adapter(model, name, targets=("0",))
    models.randomise(models.adapter_parameters(model))
    return model


@pytest.mark.parametrize("rows", [1, 2, 4, 6, 9])
@pytest.mark.parametrize("gradients", [True, False])
def test_flat_inputs_must_be_exactly_the_batch(rows, gradients):
    """Rows without a sequence axis may be tokens in any order, so a multiple of the batch proves nothing."""
    model = linears()
    message = rf"`0` gets an input of shape \[{rows}, 6\]"
    with (
        torch.set_grad_enabled(gradients),
        lora_hub.route(model, ["a", "b", None]),
        pytest.raises(UsageError, match=message),
    ):
        model(torch.randn(rows, 6))


def test_flat_inputs_of_the_batch():
    """Rows without a sequence axis, one for each choice, each run their own."""
    model, x = linears(), torch.randn(3, 6)
    with torch.no_grad():
        with lora_hub.route(model, ["a", "b", None]):
            found = model(x)
        for row, choice in enumerate(["a", "b", None]):
            with lora_hub.use(model, choice):
                assert torch.allclose(found[row], model(x[row]), atol=1e-6)


def test_vector_is_no_batch():
    """An input without any axis for rows is refused."""
    model = linears()
    with pytest.raises(UsageError, match=r"`0` gets"), lora_hub.route(model, ["a", None]):
        model(torch.randn(6))


def test_empty_batch_is_refused():
    """No rows are not the rows of a route."""
    model = linears()
    with pytest.raises(UsageError, match=r"`0` gets"), torch.no_grad(), lora_hub.route(model, ["a", None]):
        model(torch.randn(0, 4, 6))


@pytest.mark.parametrize("shape", [(2, 0, 6), (2, 3, 5, 6), (2, 1, 1, 1, 6)], ids=str)
@pytest.mark.parametrize("gradients", [True, False])
def test_shapes_with_the_batch_in_front(shape, gradients):
    """Whatever lies between the rows and the features belongs to the row."""
    model, x = linears(), torch.randn(shape)
    with torch.set_grad_enabled(gradients):
        with lora_hub.route(model, ["a", "b"]):
            found = model(x)
        for row, choice in enumerate(["a", "b"]):
            with lora_hub.use(model, choice):
                assert torch.allclose(found[row], model(x)[row], atol=1e-6)


@pytest.mark.parametrize("gradients", [True, False])
def test_inputs_that_are_not_contiguous(gradients):
    """A transposed or expanded input has the same rows as its copy."""
    model = linears()
    inputs = [
        torch.randn(5, 3, 6).transpose(0, 1),
        torch.randn(1, 5, 6).expand(3, 5, 6),
        torch.randn(3, 5, 12)[..., ::2],
    ]
    with torch.set_grad_enabled(gradients), lora_hub.route(model, ["a", "b", None]):
        for x in inputs:
            assert torch.allclose(model(x), model(x.contiguous()), atol=1e-6)


def test_packed_sequences_are_refused(residents):
    """All sequences in one row: whose tokens these are cannot be seen."""
    with pytest.raises(UsageError, match=r"\[1, 21, 48\].*3 rows"):
        routed(residents, ["four", None, "one"], models.tokens(1, 21))


@pytest.mark.parametrize("choice", ["four", None, SUM], ids=str)
@pytest.mark.parametrize("shape", [(1, 21), (2, 5), (7, 3)], ids=str)
def test_rows_that_all_choose_the_same_are_never_refused(residents, choice, shape):
    """If all rows choose the same, no shape matters."""
    ids = models.tokens(*shape)
    with lora_hub.use(residents, choice):
        expected = logits(residents, ids)

    assert torch.equal(routed(residents, [choice] * 3, ids), expected)


def test_rows_that_mean_the_same_are_never_refused(small):
    """Different words for one choice are one choice: a handle, a weight 1, a weight 0 beside it, another order."""
    same = [
        ["four", lora_hub.adapters(small)["four"], {"four": 1}, {"four": 1.0, "one": 0}],
        [{"one": 0.5, "four": 2}, {"four": 2, "one": 0.5}],
        [None, {}, {"one": 0}],
    ]
    for choices in same:
        ids = models.tokens(7)
        found = routed(small, choices, ids)

        assert close(found, alone(small, [choices[0]] * 7, ids))


@pytest.mark.parametrize("times", [2, 3])
@pytest.mark.parametrize("length", [2, 20])
def test_rows_that_repeat_side_by_side(residents, times, length):
    """A batch in which each row stands several times keeps the choice of each."""
    choices = ["four", None, "one", "sixteen"]
    ids = models.tokens(4 * times, length)
    repeated = [choice for choice in choices for _ in range(times)]

    assert close(routed(residents, choices, ids), alone(residents, repeated, ids))


def test_experts_are_refused_by_name():
    """A module inside of `experts` gets the tokens that were sent to it, even if they are as many as the rows."""
    model = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"experts": torch.nn.ModuleList([torch.nn.Linear(6, 6)])})})
    for name in ("a", "b"):
        lora_hub.add_adapter(model, name, targets=("mlp.experts.0",))
    models.randomise(models.adapter_parameters(model))
    expert = model["mlp"]["experts"][0]
    message = r"`mlp\.experts\.0` is in `mlp\.experts`"
    for enabled in (True, False):
        with (
            torch.set_grad_enabled(enabled),
            lora_hub.route(model, ["a", "b"]),
            pytest.raises(UsageError, match=message),
        ):
            expert(torch.randn(2, 6))
    with lora_hub.route(model, ["a", "a"]):
        expert(torch.randn(5, 6))


@pytest.fixture(scope="module")
def llava():
    """A tiny LLaVA: a tower of CLIP whose images are not the rows of the batch, and a LLaMA."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4,
        projection_dim=32,
    )  # fmt: skip
    text = models._llama_config()
    torch.manual_seed(1)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=-1)
    return LlavaForConditionalGeneration(config).eval()


def pictures(count, ids):
    """Arguments for *count* images of four patches, all in the rows of *ids*."""
    return {"input_ids": ids, "pixel_values": torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(4))}


def test_tower_of_images_is_refused_by_name(llava):
    """Two images in two rows may both be the first row's: a tower of its own inputs is refused, by its name."""
    model = copy.deepcopy(llava)
    vision = [n for n, m in model.named_modules() if "vision" in n and n.endswith("q_proj")]
    for name in ("a", "b"):
        lora_hub.add_adapter(model, name, targets=vision)
    models.randomise(models.adapter_parameters(model))
    ids = models.tokens(2, 12).clamp(min=4)
    ids[0, :8] = 3

    with torch.no_grad():
        with pytest.raises(UsageError, match=r"q_proj` is in `.*vision"), lora_hub.route(model, ["a", "b"]):
            model(**pictures(2, ids))
        with lora_hub.route(model, ["a", "a"]):
            model(**pictures(2, ids))


def test_language_of_a_model_with_a_tower(llava):
    """Beside a tower that is not adapted, the language model is routed by the rows of its batch."""
    model = copy.deepcopy(llava)
    language = [n for n, m in model.named_modules() if "language" in n and n.endswith(("q_proj", "v_proj"))]
    for name in ("a", "b"):
        lora_hub.add_adapter(model, name, targets=language)
    models.randomise(models.adapter_parameters(model))
    ids = models.tokens(2, 12).clamp(min=4)
    ids[:, 2:6] = 3
    batch = pictures(2, ids)
    with torch.no_grad():
        with lora_hub.route(model, ["a", "b"]):
            found = model(**batch).logits
        expected = []
        for choice in ("a", "b"):
            with lora_hub.use(model, choice):
                expected.append(model(**batch).logits)

    assert close(found, torch.stack([expected[0][0], expected[1][1]]))


def test_sequences_in_front_of_rows_are_not_mixed_up():
    """XLNet computes in [length, batch, features]: a length that is a multiple of the batch does not pass for rows."""
    from transformers import XLNetConfig, XLNetModel

    torch.manual_seed(1)
    model = XLNetModel(XLNetConfig(vocab_size=61, d_model=48, n_layer=1, n_head=4, d_inner=96, dropout=0.0)).eval()
    for name in ("a", "b"):
        lora_hub.add_adapter(model, name, targets=("layer_1",))
    models.randomise(models.adapter_parameters(model))
    choices, ids = ["a", "b", None], models.tokens(3, 6)
    with torch.no_grad():
        try:
            with lora_hub.route(model, choices):
                found = model(ids)[0]
        except UsageError:  # which is as good
            return
        for row, choice in enumerate(choices):
            with lora_hub.use(model, choice):
                assert close(found[row], model(ids)[0][row])


# Generation


@pytest.fixture(params=["gpt2", "llama"])
def generator(request, tmp_path):
    """A language model with `ADAPTERS`, strong enough to change what it writes."""
    model = models.FAMILIES[request.param].build()
    for seed, (name, options) in enumerate(ADAPTERS.items()):
        path = write(model, tmp_path / name, seed=seed, **options)
        lora_hub.apply_adapter(model, path, name=name, scale=8.0, active=False)
    return model


WRITERS = ["four", None, "eight", "sixteen"]


def generated(model, ids, choices=None, **options):
    """What is generated with a route, or row for row under `use` over the same batch."""
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False} | options
    if choices is not None:
        with lora_hub.route(model, choices):
            return model.generate(ids, **options)
    return model.generate(ids, **options)


def generated_alone(model, ids, choices, returned=1, **options):
    """The rows of each choice, from a batch that runs all of it under that choice."""
    rows = []
    for row, choice in enumerate(choices):
        with lora_hub.use(model, choice):
            rows.append(generated(model, ids, **options)[row * returned : (row + 1) * returned])
    return torch.cat(rows)


@pytest.mark.parametrize("cache", [True, False])
def test_generate(generator, cache):
    """Greedy: each row writes what its adapter would, with a cache and without, and the rows differ."""
    ids = models.tokens(1, 5).expand(4, 5).contiguous()
    found = generated(generator, ids, WRITERS, use_cache=cache)

    assert torch.equal(found, generated_alone(generator, ids, WRITERS, use_cache=cache))
    assert len({tuple(row) for row in found.tolist()}) > 1


@pytest.mark.parametrize("returned", [1, 3])
def test_beams(generator, returned):
    """Three beams for each row, of which one or all are returned, each by the row's own adapter."""
    ids, options = models.tokens(4, 5), {"num_beams": 3, "num_return_sequences": returned}
    found = generated(generator, ids, WRITERS, **options)

    assert torch.equal(found, generated_alone(generator, ids, WRITERS, returned, **options))


def test_left_padding(generator):
    """Rows of different lengths, padded on the left, write what they would alone."""
    ids, mask = models.tokens(4, 7), torch.ones(4, 7, dtype=torch.long)
    for row, padding in enumerate((0, 3, 1, 5)):
        ids[row, :padding], mask[row, :padding] = 0, 0

    found = generated(generator, ids, WRITERS, attention_mask=mask)
    assert torch.equal(found, generated_alone(generator, ids, WRITERS, attention_mask=mask))


def test_sampling(generator):
    """Under one seed, each row draws what it draws if the whole batch runs its adapter."""
    ids = models.tokens(4, 5)

    def seeded(function, *args):
        torch.manual_seed(11)
        return function(generator, ids, *args, do_sample=True, top_k=0, temperature=1.5)

    expected = []
    for row, choice in enumerate(WRITERS):
        with lora_hub.use(generator, choice):
            expected.append(seeded(generated)[row])

    assert torch.equal(seeded(generated, WRITERS), torch.stack(expected))


def test_sequences_per_row(generator):
    """Several samples for each row stand side by side and keep its choice."""
    ids, options = models.tokens(4, 5), {"do_sample": True, "num_return_sequences": 3, "top_k": 0}
    torch.manual_seed(3)
    found = generated(generator, ids, WRITERS, **options)
    expected = []
    for row, choice in enumerate(WRITERS):
        torch.manual_seed(3)
        with lora_hub.use(generator, choice):
            expected.append(generated(generator, ids, **options)[row * 3 : row * 3 + 3])

    assert torch.equal(found, torch.cat(expected))


def test_prompt_lookup_for_one_row(generator):
    """Speculating from the prompt gives the same text as plain greedy decoding, under a route of one row."""
    ids = models.tokens(1, 3).repeat(1, 4)
    found = generated(generator, ids, ["four"], prompt_lookup_num_tokens=3)

    assert torch.equal(found, generated_alone(generator, ids, ["four"]))


def test_assistant_runs_without_the_choice(generator):
    """An assistant is another model: the choice is not its own, and the text is that of greedy decoding."""
    ids, assistant = models.tokens(1, 5), copy.deepcopy(generator)
    found = generated(generator, ids, ["eight"], assistant_model=assistant)

    assert torch.equal(found, generated_alone(generator, ids, ["eight"]))


def test_streaming_from_a_thread(generator):
    """`bind` carries a route into the thread in which `generate` streams."""
    from transformers.generation.streamers import BaseStreamer

    class Collect(BaseStreamer):
        def __init__(self):
            self.tokens = []

        def put(self, value):
            self.tokens += value.flatten().tolist()

        def end(self):
            pass

    collect, ids = Collect(), models.tokens(1, 5)
    bound = lora_hub.route(generator, ["eight"]).bind(lambda: generated(generator, ids, streamer=collect))
    thread = threading.Thread(target=bound)
    thread.start()
    thread.join()

    assert collect.tokens == generated_alone(generator, ids, ["eight"])[0].tolist()


# Heads


@pytest.fixture(params=[models.bert, models.llama_classifier])
def classifiers(request, tmp_path):
    """A classifier with adapters `x` and `y` that replace its head, and `z` that has none."""
    model = request.param()
    head = "classifier" if request.param is models.bert else "score"
    for seed, name in enumerate("xyz"):
        options = {"modules_to_save": (head,)} if name != "z" else {"targets": ("k",)}
        path = write(model, tmp_path / name, seed=seed, r=2 + seed, **options)
        lora_hub.apply_adapter(model, path, name=name, active=False)
    return model


def test_heads_differ_per_row(classifiers):
    """Each row is classified by the head of its adapter, or by the base's."""
    choices = ["y", None, "x", "z", "x", {"z": 0.5, "y": 1}, {"x": 0}]
    ids = models.tokens(len(choices))

    assert close(routed(classifiers, choices, ids), alone(classifiers, choices, ids))


def test_heads_of_repeated_rows(classifiers):
    """Heads keep to their rows if these are repeated, as far as the head sees a sequence."""
    choices, ids = ["y", None, "x"], models.tokens(6)
    repeated = ["y", "y", None, None, "x", "x"]
    if hasattr(classifiers, "score"):
        assert close(routed(classifiers, choices, ids), alone(classifiers, repeated, ids))
    else:
        with pytest.raises(UsageError, match="6, 48"):
            routed(classifiers, choices, ids)


def test_heads_of_the_same_rows_are_never_refused(classifiers):
    """One head for all rows of a batch of another size is no question of rows."""
    ids = models.tokens(5)

    assert close(routed(classifiers, ["x", "x"], ids), alone(classifiers, ["x"] * 5, ids))


def test_delta_in_what_another_row_replaces(tmp_path):
    """One row's adapter replaces the classifier, another row's adds to it: each gets its own."""
    model = models.bert()
    head = write(model, tmp_path / "head", seed=1, modules_to_save=("classifier",))
    delta = write(model, tmp_path / "delta", seed=2, targets=("classifier",))
    lora_hub.apply_adapter(model, head, name="head", active=False)
    lora_hub.apply_adapter(model, delta, name="delta", active=False)
    choices, ids = ["head", "delta", None, {"delta": 0.5}], models.tokens(4)

    assert close(routed(model, choices, ids), alone(model, choices, ids))


def test_gradients_of_heads(tmp_path):
    """Trained heads get gradients from their own rows only."""
    model = models.bert().double()
    for name in "xy":
        lora_hub.add_adapter(model, name, modules_to_save=("classifier",)).active = False
    models.randomise(models.adapter_parameters(model))

    assert_gradients_add_up(model, ["x", "y", "x", None])


@pytest.mark.parametrize("replaced", ["layer.1.attention", "pooler"])
def test_replaced_blocks(tmp_path, replaced):
    """What is replaced may be a whole block, whatever it returns."""
    model = models.bert()
    for seed, name in enumerate("xy"):
        path = write(model, tmp_path / name, seed=seed, targets=("intermediate.dense",), modules_to_save=(replaced,))
        lora_hub.apply_adapter(model, path, name=name, active=False)
    choices, ids = ["x", None, "y"], models.tokens(3)

    assert close(routed(model, choices, ids), alone(model, choices, ids))


# Merged adapters


@pytest.mark.parametrize("length", [2, 25])
def test_merged_adapter_in_every_row(small, length):
    """A merged adapter that every row chooses runs in the weights, and the others on top."""
    small.double()
    lora_hub.adapters(small)["four"].merge()
    choices = [{"four": 1, "one": 0.5}, {"four": 1}, {"four": 1, "eight": 1}]
    ids = models.tokens(3, length)
    found = routed(small, choices, ids)
    lora_hub.adapters(small)["four"].unmerge()

    assert close(found, alone(small, choices, ids), tolerance=1e-6)


@pytest.mark.parametrize("choice", [None, "one", {"four": 0.5}], ids=str)
def test_merged_adapter_that_one_row_lacks(small, choice):
    """A row that would need a merged adapter off, or weaker, is refused."""
    lora_hub.adapters(small)["four"].merge()

    with pytest.raises(StateError, match=r"four.*merged"), lora_hub.route(small, ["four", choice]):
        pass


def test_merge_between_two_entries(small):
    """One route object, before and after a merge and an unmerge, is right each time."""
    choices = ["four", {"four": 1, "one": 1}]
    route, ids, handle = lora_hub.route(small, choices), models.tokens(2), lora_hub.adapters(small)["four"]
    small.double()
    expected = alone(small, choices, ids)
    for change in (handle.merge, handle.unmerge, handle.merge):
        with route:
            assert close(logits(small, ids), expected, tolerance=1e-6)
        change()
    with route:
        assert close(logits(small, ids), expected, tolerance=1e-6)


def test_merge_while_entered(small):
    """A merge inside of a route that lacks the adapter in one row is refused."""
    with lora_hub.route(small, ["four", None]), pytest.raises(StateError, match="without"):
        lora_hub.adapters(small)["four"].merge()


# Contexts


def test_nesting(small):
    """`use` in `route` and `route` in `use`: the innermost counts, and each gives back what was before it."""
    ids = models.tokens(2)
    by_row, by_name = alone(small, ["one", "four"], ids), alone(small, ["eight", "eight"], ids)
    with lora_hub.route(small, ["one", "four"]):
        with lora_hub.use(small, "eight"):
            inner = logits(small, ids)
            with lora_hub.route(small, ["one", "four"]):
                innermost = logits(small, ids)
            again = logits(small, ids)
        outer = logits(small, ids)

    assert close(inner, by_name)
    assert close(innermost, by_row)
    assert torch.equal(again, inner)
    assert torch.equal(outer, innermost)


def test_exception_inside(small):
    """An exception leaves the block, and what was before holds again."""
    ids = models.tokens(2)
    before = logits(small, ids)
    with pytest.raises(ZeroDivisionError), lora_hub.route(small, ["one", "four"]):
        assert 1 / len(logits(small, ids)[:0])

    assert torch.equal(logits(small, ids), before)


def test_route_of_another_model(small):
    """A route belongs to its model: another of the same kind runs its default."""
    other = copy.deepcopy(small)
    lora_hub.adapters(other)["four"].active = True
    ids = models.tokens(2)
    expected = logits(other, ids)
    with lora_hub.route(small, ["one", None, "eight"]):
        found = logits(other, ids)

    assert torch.equal(found, expected)


def run_in_threads(*functions):
    """Run the functions at once, and return what they raised."""
    raised = []

    def guarded(function):
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - a test reports it
            raised.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_threads_in_lockstep(small):
    """Three threads with routes of their own, and one with `use`, in lockstep, each get their own rows."""
    routes = [["one", "four", None], ["four", "one", "eight"], [None, SUM, "sixteen"], ["three"] * 3]
    ids, barrier, wrong = models.tokens(3), threading.Barrier(4, timeout=60), []
    expected = [alone(small, choices, ids) for choices in routes]

    def run(number):
        for _ in range(15):
            with lora_hub.route(small, routes[number]):
                barrier.wait()
                if not close(logits(small, ids), expected[number]):
                    wrong.append(number)

    raised = run_in_threads(*(lambda n=n: run(n) for n in range(4)))

    assert raised == []
    assert wrong == []


def test_one_route_in_threads_at_once(small):
    """One route object, entered by four threads at once, the first call included."""
    route, ids, barrier, wrong = lora_hub.route(small, MIXED), models.tokens(len(MIXED)), threading.Barrier(4), []
    expected = alone(small, MIXED, ids)

    def run():
        with route:
            barrier.wait(60)
            found = [logits(small, ids) for _ in range(10)]
        wrong.extend(y for y in found if not close(y, expected))

    raised = run_in_threads(run, run, run, run)

    assert raised == []
    assert wrong == []


def test_adapters_come_and_go_while_threads_route(small, tmp_path):
    """Adapters that others do not use come, go and are replaced while a thread runs its route, unharmed."""
    ids, stop, wrong = models.tokens(3), threading.Event(), []
    choices = ["one", "four", None]
    expected = alone(small, choices, ids)

    def run():
        while not stop.is_set():
            if not close(routed(small, choices, ids), expected):
                wrong.append(1)

    def change():
        try:
            for _ in range(10):
                lora_hub.apply_adapter(small, tmp_path / "eight", name="guest", active=False)
                lora_hub.apply_adapter(small, tmp_path / "sixteen", name="guest", active=False, replace=True)
                lora_hub.adapters(small)["guest"].remove()
        finally:
            stop.set()

    raised = run_in_threads(run, run, change)

    assert raised == []
    assert wrong == []


def test_asyncio_tasks(small):
    """Tasks that interleave inside of their routes each get their own rows."""
    ids, routes = models.tokens(2), [["one", "four"], ["four", None], [SUM, "one"]]
    expected = [alone(small, choices, ids) for choices in routes]

    async def run(choices):
        with lora_hub.route(small, choices):
            return [await asyncio.sleep(0, logits(small, ids)) for _ in range(4)]

    async def main():
        return await asyncio.gather(*map(run, routes))

    found = asyncio.run(main())

    assert all(close(y, e) for ys, e in zip(found, expected, strict=True) for y in ys)


def test_bind(small):
    """A bound function runs under its route in another thread; a plain one does not."""
    found, ids = {}, models.tokens(2)
    default = logits(small, ids)

    def run(key):
        found[key] = logits(small, ids)

    with lora_hub.route(small, ["one", "four"]) as route:
        raised = run_in_threads(lambda: route.bind(run)("bound"), lambda: run("plain"))

    assert raised == []
    assert close(found["bound"], alone(small, ["one", "four"], ids))
    assert torch.equal(found["plain"], default)


# Training


def assert_gradients_add_up(model, choices, ids=None, run=None):
    """Assert that the gradients under a route are the sums of those of each row under `use`, and None elsewhere."""
    ids = models.tokens(len(choices)) if ids is None else ids

    def loss(rows):
        return model(input_ids=rows).logits.square().sum()

    for row, choice in enumerate(choices):
        with lora_hub.use(model, choice):
            value = loss(ids[row : row + 1])
            if value.requires_grad:
                value.backward()
    expected = gradients(model)
    if run is None:
        with lora_hub.route(model, choices):
            loss(ids).backward()
    else:
        run(lambda: loss(ids))
    found = gradients(model)

    assert {n for n, g in found.items() if g is not None} == {n for n, g in expected.items() if g is not None}
    for name, gradient in expected.items():
        if gradient is not None:
            assert (found[name] - gradient).abs().max() <= 1e-9 * gradient.abs().max(), name


def gradients(model):
    """The gradients of all adapter parameters; then none are left."""
    found = {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


def trained(model):
    """The model in float64, with trainable adapters: `a` of rank 3, `b` of rank 8, `c` on k and o."""
    options = {"a": {"r": 3}, "b": {"r": 8, "use_rslora": True}, "c": {"r": 5, "targets": ("k", "o"), "lora_alpha": 3}}
    model.double()
    for name, of_name in options.items():
        lora_hub.add_adapter(model, name, **of_name)
    models.randomise(models.adapter_parameters(model))
    return model


LEARNERS = ["b", "a", {"a": 0.5, "c": -2.0}, None, "a", {"b": 1.0, "a": 1.0}]


@pytest.mark.parametrize("length", [3, 20])
def test_gradients_are_those_of_each_row(model, length):
    """One backward of a route gives every adapter the sum of what `use` gives it, row by row."""
    assert_gradients_add_up(trained(model), LEARNERS, models.tokens(len(LEARNERS), length))


def test_each_adapter_learns_from_its_rows_only(model):
    """An adapter that no row chose has no gradient, not a zero one."""
    trained(model)
    with lora_hub.route(model, ["a", None, "a"]):
        model(input_ids=models.tokens(3)).logits.sum().backward()
    touched = {name.rpartition("__")[2].partition("%")[0] for name, g in gradients(model).items() if g is not None}

    assert touched == {"a"}


def test_trained_and_frozen_in_one_batch(model, tmp_path):
    """Rows of a frozen adapter beside rows of trained ones: outputs and gradients are each row's own."""
    path = write(model, tmp_path / "frozen", seed=9, r=4, targets=("q", "k"))
    lora_hub.apply_adapter(model, path, name="frozen", active=False)
    trained(model)

    assert_gradients_add_up(model, ["a", "frozen", {"frozen": 0.5, "b": 1}, None])


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing(model, reentrant):
    """Gradient checkpointing recomputes every row with its own adapter, after the block was left, and in another."""
    trained(model)
    model.train()

    def outside(loss):
        with lora_hub.route(model, LEARNERS):
            value = loss()
        with lora_hub.use(model, "c"):
            value.backward()

    def checkpointed(loss):
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        outside(loss)

    assert_gradients_add_up(model, LEARNERS, run=checkpointed)


@pytest.mark.parametrize("where", ["after", "in another use", "in another route", "in a thread"])
def test_backward_elsewhere(model, where):
    """The choice of the forward holds for its backward, wherever that runs."""
    trained(model)

    def run(loss):
        with lora_hub.route(model, LEARNERS):
            value = loss()
        if where == "after":
            value.backward()
        elif where == "in another use":
            with lora_hub.use(model, "a"):
                value.backward()
        elif where == "in another route":
            with lora_hub.route(model, ["c", "a"]):
                value.backward()
        else:
            assert run_in_threads(value.backward) == []

    assert_gradients_add_up(model, LEARNERS, run=run)


def test_one_backward_over_several_routes(model):
    """One backward over forwards of two routes and a `use` gives each its own."""
    trained(model)

    def run(loss):
        total = 0
        for choices in (LEARNERS, LEARNERS[::-1]):
            with lora_hub.route(model, choices):
                total = total + loss()
        total.backward()

    both = [*LEARNERS, *LEARNERS[::-1]]
    ids = models.tokens(len(LEARNERS))

    def expect():
        for row, choice in enumerate(both):
            with lora_hub.use(model, choice):
                value = model(input_ids=ids[row % 6 : row % 6 + 1]).logits.square().sum()
                if value.requires_grad:
                    value.backward()
        return gradients(model)

    expected = expect()
    run(lambda: model(input_ids=ids).logits.square().sum())
    found = gradients(model)

    assert all((found[n] - g).abs().max() <= 1e-9 * g.abs().max() for n, g in expected.items())


def test_gradient_of_the_input(small):
    """Frozen adapters pass each row's gradient on to the input."""
    ids = models.tokens(len(MIXED), 9)
    embeds = small.get_input_embeddings()(ids).detach()
    expected = []
    for row, choice in enumerate(MIXED):
        leaf = embeds[row : row + 1].clone().requires_grad_()
        with lora_hub.use(small, choice):
            small(inputs_embeds=leaf).logits.square().sum().backward()
        expected.append(leaf.grad)
    leaf = embeds.clone().requires_grad_()
    with lora_hub.route(small, MIXED):
        small(inputs_embeds=leaf).logits.square().sum().backward()

    assert close(leaf.grad, torch.cat(expected), tolerance=2e-5)


def test_gradcheck():
    """Finite differences agree with the backward of a route, first and second order, with dropout drawn from a seed."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5)).double()
    lora_hub.add_adapter(model, "a", r=2, targets=("0",))
    lora_hub.add_adapter(model, "b", r=3, targets=("0",), lora_dropout=0.4)
    models.randomise(models.adapter_parameters(model))
    model.train()
    parameters = models.adapter_parameters(model)
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)

    def run(value, *_):
        torch.manual_seed(5)
        with lora_hub.route(model, ["a", {"a": 0.5, "b": 2}, None]):
            return model(value)

    assert torch.autograd.gradcheck(run, (x, *parameters))
    assert torch.autograd.gradgradcheck(run, (x, *parameters))


def test_dropout_only_where_it_is_asked_for():
    """Dropout of one row's adapter leaves the other rows as they are in evaluation."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 8))
    for name, p in (("dry", 0.0), ("wet", 0.5)):
        lora_hub.add_adapter(model, name, targets=("0",), lora_dropout=p)
    models.randomise(models.adapter_parameters(model))
    x = torch.randn(4, 3, 64)
    with lora_hub.route(model, ["dry", "wet", None, "wet"]):
        trained, evaluated = model.train()(x).detach(), model.eval()(x).detach()

    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(trained, evaluated, strict=True)]
    assert same == [True, False, True, False]


def test_training_step_changes_only_who_ran(model):
    """An optimizer's step after a route leaves adapters that no row chose as they were."""
    trained(model)
    optimizer = torch.optim.AdamW(models.adapter_parameters(model), lr=0.1, weight_decay=0.5)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with lora_hub.route(model, ["a", None]):
        model(input_ids=models.tokens(2)).logits.sum().backward()
    optimizer.step()
    changed = {
        n.rpartition("__")[2].partition("%")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])
    }

    assert changed == {"a"}


# Copies


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_route_on_their_own(residents, how):
    """A copy of a model whose routes were run routes as the original, and no longer depends on it."""
    ids = models.tokens(len(MIXED))
    expected = routed(residents, MIXED, ids)
    routed(residents, MIXED, ids)
    if how == "deepcopy":
        twin = copy.deepcopy(residents)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(residents))
    else:
        buffer = io.BytesIO()
        torch.save(residents, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    lora_hub.adapters(residents)["four"].remove()

    assert torch.equal(routed(twin, MIXED, ids), expected)
    assert lora_hub.adapters(twin).keys() == ADAPTERS.keys()


def test_pickles_hold_no_stacks(small):
    """What is kept for speed is not written down: a model that ran many routes pickles as small as before."""
    before = len(pickle.dumps(small))
    for choices in (MIXED, MIXED[::-1], ["one", "eight", "four"]):
        for _ in range(3):
            routed(small, choices, models.tokens(len(choices)))

    assert len(pickle.dumps(small)) <= 1.02 * before


# Memory


def alive_with(*sizes):
    """How many tensors that are alive have a dimension of each of the *sizes*."""
    gc.collect()
    shapes = [tensor.shape for tensor in gc.get_objects() if type(tensor) is torch.Tensor]
    return {size: sum(size in shape for shape in shapes) for size in sizes}


@pytest.mark.parametrize("how", ["route", "use", "sum"])
@pytest.mark.parametrize("leaves", ["removed", "replaced"])
def test_removed_adapters_are_freed(small, tmp_path, how, leaves):
    """What was kept for a removed adapter does not keep its memory: caches hold nobody who left."""
    path = write(small, tmp_path / "odd", seed=1, r=70)
    sizes = (70, 71, 128)  # of the adapter, of a sum with another one, and of a route, where ranks are padded
    before = alive_with(*sizes)
    lora_hub.apply_adapter(small, path, name="odd", active=False)
    for _ in range(3):
        if how == "route":
            routed(small, ["odd", None, "one"], models.tokens(3))
        else:
            with lora_hub.use(small, "odd" if how == "use" else {"odd": 1, "one": 1}):
                logits(small)
    assert alive_with(70)[70] > before[70]
    if leaves == "removed":
        lora_hub.adapters(small)["odd"].remove()
    else:
        lora_hub.apply_adapter(small, tmp_path / "one", name="odd", active=False, replace=True)

    assert alive_with(*sizes) == before


def stacked(model):
    """The bytes of all stacks that the model's routes keep."""
    patch = next(iter(lora_hub.adapters(model).values())).patch
    return sum(segments.nbytes for made in patch._plans._tables for segments in made._segments.values())


@pytest.mark.parametrize("limit", [0, 12_000, 1 << 30])
def test_stacks_keep_to_their_limit(small, monkeypatch, limit):
    """A table keeps no more bytes than it may, and computes the same without any."""
    monkeypatch.setattr(table, "_MAX_BYTES", limit)
    ids = models.tokens(len(MIXED))
    found = [routed(small, MIXED, ids) for _ in range(3)]

    assert stacked(small) <= limit
    assert bool(stacked(small)) == bool(limit)
    assert all(close(one, alone(small, MIXED, ids)) for one in found)


def test_stacks_are_kept_from_the_second_call_on(small):
    """A route that is run once fills no memory."""
    ids, kept = models.tokens(len(MIXED)), []
    for _ in range(2):
        routed(small, MIXED, ids)
        kept.append(stacked(small))

    assert kept[0] == 0
    assert kept[1] > 0


def test_routes_over_nearly_the_same_choices_share_a_table(small):
    """A route that changes at every call does not stack its choices anew at every call."""
    for choices in (["one", "four"], ["one", "eight"], ["four", "one"], ["eight", "one"]):
        routed(small, choices, models.tokens(2))
    patch = lora_hub.adapters(small)["one"].patch
    newest, *_ = patch._plans._tables
    routed(small, ["one", "four"], models.tokens(2))

    assert patch._plans._tables[0] is newest
    assert {handle.name for handle in newest.handles} == {"one", "four", "eight"}


def test_stacks_are_kept_however_often_the_dtype_changes(small, monkeypatch):
    """What gives way to stacks of another dtype counts no more against the limit."""
    ids = models.tokens(len(MIXED))
    for _ in range(3):
        routed(small, MIXED, ids)
    whole = stacked(small)
    lora_hub.adapters(small)["one"].patch._plans._tables[0]._bytes_left = 0
    for _ in range(4):
        for dtype in (torch.bfloat16, torch.float32):
            small.to(dtype)
            for _ in range(3):
                routed(small, MIXED, ids)

    assert stacked(small) == whole


def test_routes_keep_no_model_alive(tmp_path):
    """After the blocks and the backward, nothing of ours holds a model that was routed."""
    model = with_adapters(models.llama(num_hidden_layers=1), tmp_path)
    routed(model, MIXED, models.tokens(len(MIXED)))
    with lora_hub.route(model, MIXED):
        leaf = model.get_input_embeddings()(models.tokens(len(MIXED))).detach().requires_grad_()
        y = torch.tanh(checkpoint(model, inputs_embeds=leaf, use_reentrant=False).logits)
    y.sum().backward()
    watch = [weakref.ref(model), weakref.ref(y)]
    del model, y
    gc.collect()

    assert [ref() for ref in watch] == [None, None]


def test_many_routes_do_not_pile_up(small):
    """A thousand different routes leave no more tensors than a few."""
    generator = torch.Generator().manual_seed(7)

    def run(times):
        for _ in range(times):
            weights = torch.rand(3, generator=generator).tolist()
            routed(small, [{"one": w} for w in weights], models.tokens(3, 1))
        gc.collect()
        return sum(type(o) is torch.Tensor for o in gc.get_objects())

    run(5)
    few = run(10)

    assert run(60) <= few + 20


def test_last_adapter_leaves_no_trace(small):
    """After routes, removing every adapter gives back the bits of the base and the objects it had."""
    ids = models.tokens(len(MIXED))
    with lora_hub.use(small, None):
        before = logits(small, ids)
    routed(small, MIXED, ids)
    for handle in list(lora_hub.adapters(small).values()):
        handle.remove()

    assert torch.equal(logits(small, ids), before)
    assert not any("lora" in key for m in small.modules() for key in m.__dict__)
