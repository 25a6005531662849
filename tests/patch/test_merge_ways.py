"""Both ways to keep what a merge changes, switches in one pass, what of a delta is realised, interruptions."""

import sys
from pathlib import Path

import models
import pytest
import torch
from models import logits, same_bits, state
from test_merge import Interrupted, exact_sum
from transformers.pytorch_utils import Conv1D

import lora_hub
from lora_hub.errors import StateError, UsageError
from lora_hub.patch import correction, low_rank
from lora_hub.patch.correction import correction_of, restored
from lora_hub.patch.factors import Part, PartWeights
from lora_hub.patch.low_rank import Scratch, add_low_rank, plain_arithmetic
from lora_hub.patch.realised import realised

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
KEEPS = ["originals", "corrections"]
in_dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
in_both_ways = pytest.mark.parametrize("keep", KEEPS)


@pytest.fixture
def three(model, tmp_path):
    """Adapters a and b, loaded, and c, to train: on other targets, of other ranks, of which some are parts."""
    settings = {"a": {"r": 4, "targets": ("q", "v")}, "b": {"r": 2, "targets": ("q", "k", "v", "o")}}
    for seed, (name, options) in enumerate(settings.items()):
        handle = lora_hub.add_adapter(model, name, **options)
        models.randomise(models.adapter_parameters(model), seed=seed)
        lora_hub.save_adapter(handle, tmp_path / name)
        handle.remove()
        lora_hub.apply_adapter(model, tmp_path / name, scale=1 + seed / 2)
    lora_hub.add_adapter(model, "c", r=8, targets=("v",))
    models.randomise(models.adapter_parameters(model), seed=7)
    return model


def handles(model):
    return [lora_hub.adapters(model)[name] for name in "abc"]


def addresses(model):
    return [(id(p), p.data_ptr(), p.dtype) for p in model.parameters()]


def small(dtype=torch.bfloat16):
    """A plain model of two layers and two adapters, a on both of them and b on the second."""
    torch.manual_seed(4)
    model = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Linear(40, 24)).to(dtype)
    a = lora_hub.add_adapter(model, "a", r=4, targets=("0", "1"))
    b = lora_hub.add_adapter(model, "b", r=2, targets=("1",))
    models.randomise(models.adapter_parameters(model))
    return model, a, b


# Both ways


@pytest.mark.parametrize("cycles", [4, pytest.param(100, marks=pytest.mark.full)])
@in_both_ways
@in_dtypes
def test_unmerge_gives_back_the_bits(three, dtype, keep, cycles):
    """Merges, unmerges and switches in varying order: no bit differs, no address changes."""
    three.to(dtype)
    before, places = state(three), addresses(three)
    for cycle in range(cycles):
        order = sorted(handles(three), key=lambda h: (cycle * 7 + ord(h.name) * 3) % 5)
        for handle in order:
            handle.merge(keep=keep)
        order[cycle % 3].merge(keep=keep, only=True)
        order[cycle % 3 - 1].merge(keep=keep)
        assert addresses(three) == places
        for handle in order[:: 1 if cycle % 2 else -1]:
            if handle.merged:
                handle.unmerge()

    assert same_bits(state(three), before)
    assert addresses(three) == places
    assert not any(handle.kept_bytes() for handle in handles(three))


@in_dtypes
def test_both_ways_merge_the_same(three, dtype):
    """How the way back is kept does not change what is merged, alone or together, in any order."""
    three.to(dtype)
    found = {}
    for keep in KEEPS:
        for order in ("abc", "cba", "bac"):
            for name in order:
                lora_hub.adapters(three)[name].merge(keep=keep)
            found[keep, order] = state(three)
            lora_hub.adapters(three)["c"].merge(keep=keep, only=True)
            lora_hub.adapters(three)["c"].unmerge()

    assert all(same_bits(other, found["originals", "abc"]) for other in found.values())


@in_both_ways
@in_dtypes
def test_merge_is_the_exact_sum(three, dtype, keep):
    """Every merged weight is the exact sum of all three in float64, up to half a unit and the float32 accumulation."""
    three.to(dtype)
    all_three = handles(three)
    exact = {path: exact_sum(module, *all_three) for path, module in all_three[1].modules.items()}
    for handle in all_three:
        handle.merge(keep=keep)
    info = torch.finfo(dtype)
    slack = 16 * torch.finfo(torch.promote_types(dtype, torch.float32)).eps

    for path, module in all_three[1].modules.items():
        error = (module.weight.detach().double() - exact[path]).abs()
        assert (error <= 0.5 * info.eps * exact[path].abs().clamp(min=info.tiny) + slack).all(), path


@in_both_ways
@in_dtypes
def test_one_of_two_taken_back_is_the_other_alone(three, dtype, keep):
    """`a.merge(); b.merge(); a.unmerge()` equals W0 + delta of b, rounded once."""
    three.to(dtype)
    a, b, _ = handles(three)
    b.merge()
    expected = state(three)
    b.unmerge()
    a.merge(keep=keep)
    b.merge(keep=keep)
    a.unmerge()

    assert same_bits(state(three), expected)


def test_one_model_keeps_one_way(three):
    """What is merged together is kept in one way: another one is refused, until only=True takes the others out."""
    a, b, _ = handles(three)
    a.merge(keep="corrections")
    before = state(three)
    with pytest.raises(StateError, match=r'`a` is merged with keep="corrections".*merge `b` with keep="corrections"'):
        b.merge()
    assert same_bits(state(three), before)
    b.merge(only=True)

    assert b.kept_bytes() == sum(module.weight.nbytes for module in b.modules.values())


def test_unknown_way_is_refused(three):
    """A misspelt `keep` is an error of usage."""
    with pytest.raises(UsageError, match="correction"):
        handles(three)[0].merge(keep="correction")


def test_kept_bytes(three):
    """Originals are the size of the weights; A and B of an adapter that is trained are copied; unmerged it is 0."""
    a, _, c = handles(three)
    assert a.kept_bytes() == c.kept_bytes() == 0
    a.merge()
    assert a.kept_bytes() == sum(module.weight.nbytes for module in a.modules.values())
    c.merge(only=True)
    own = sum(tensor.nbytes for _, tensor in c.weights().tensors())

    assert a.kept_bytes() == c.kept_bytes() - own == sum(module.weight.nbytes for module in c.modules.values())


@pytest.mark.parametrize("share", [0.01, 0.03, 0.1])
def test_corrections_are_small(share):
    """In bfloat16 a correction takes 2.6%, 6%, 15% of W for deltas of 1%, 3%, 10%."""
    weight, delta = product(512, 512, torch.bfloat16, share)
    merged = weight.clone()
    add_low_rank(merged, weight, delta, Scratch())
    found = correction_of(weight, merged, delta, Scratch()).nbytes / weight.nbytes

    assert found < {0.01: 0.03, 0.03: 0.07, 0.1: 0.17}[share]


@in_both_ways
def test_changed_weight_is_refused(three, keep):
    """What was changed while merged is not overwritten silently; corrections cannot bring it back, so they never do."""
    before = state(three)
    a, b, _ = handles(three)
    a.merge(keep=keep)
    path, module = next(iter(a.modules.items()))
    hint = r"force=True" if keep == "originals" else "load the base model again"
    with torch.no_grad():
        module.weight[0] += 0.5
    changed = state(three)
    for action in (a.unmerge, lambda: b.merge(keep=keep), lambda: b.merge(keep=keep, only=True), a.realised, a.remove):
        with pytest.raises(StateError, match=f"`{path}.weight` was changed.*{hint}"):
            action()
        assert same_bits(state(three), changed)
    if keep == "originals":
        a.unmerge(force=True)
        assert same_bits(state(three), before)
    else:
        with pytest.raises(StateError, match=rf"`{path}.weight` cannot be computed back.*load the base model again"):
            a.unmerge(force=True)
        assert same_bits(state(three), changed)
        assert a.merged


@in_both_ways
def test_adapter_that_is_changed_while_merged(keep):
    """Training A and B while they are merged does not touch what is merged: it comes out as it went in."""
    model, a, b = small()
    before = state(model)
    a.merge(keep=keep)
    models.randomise(models.adapter_parameters(model), seed=11)
    b.merge(keep=keep, only=True)
    models.randomise(models.adapter_parameters(model), seed=12)
    b.unmerge()

    assert same_bits(state(model), before)


def test_lost_way_back_changes_nothing(monkeypatch):
    """If a correction does not lead back, in whichever module, all stays merged and the error says what to do."""
    model, a, _ = small()
    a.merge(keep="corrections")
    before, real, calls = state(model), correction.checksum, []

    def other_at_the_second(tensor):
        calls.append(tensor)
        return b"other" if len(calls) == 2 else real(tensor)

    monkeypatch.setattr(correction, "checksum", other_at_the_second)
    with pytest.raises(StateError, match=r"`1.weight` cannot be computed back.*load the base model again"):
        a.unmerge()

    assert same_bits(state(model), before)
    assert a.merged


@pytest.mark.parametrize("threads", [2, 3])
def test_other_number_of_threads(three, threads):
    """Corrections hold if the number of threads was changed since the merge, which stays as it is afterwards."""
    three.to(torch.bfloat16)
    before, number = state(three), torch.get_num_threads()
    for handle in handles(three):
        handle.merge(keep="corrections")
    torch.set_num_threads(threads)
    try:
        for handle in handles(three):
            handle.unmerge()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(number)

    assert same_bits(state(three), before)


@in_both_ways
def test_inference_mode_and_autocast(three, keep):
    """Merged under inference mode and autocast, taken out elsewhere; and the other way round."""
    before = state(three)
    a, b, _ = handles(three)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        a.merge(keep=keep)
    b.merge(keep=keep)
    a.unmerge()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        b.unmerge()

    assert same_bits(state(three), before)


def test_low_matmul_precision_does_not_reach_the_merge(three):
    """TF32 and bfloat16 products that the process allows are not used, and stay allowed."""
    a, _, _ = handles(three)
    a.merge()
    expected = state(three)
    a.unmerge()
    torch.set_float32_matmul_precision("medium")
    try:
        a.merge()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")

    assert same_bits(state(three), expected)


@in_both_ways
def test_copies_of_a_merged_model_unmerge(three, keep):
    """A deep copy of a merged model has a way back of its own."""
    import copy

    before = state(three)
    a, _, c = handles(three)
    a.merge(keep=keep)
    c.merge(keep=keep)
    twin = copy.deepcopy(three)
    for model in (three, twin):
        for name in "ac":
            lora_hub.adapters(model)[name].unmerge()

    assert same_bits(state(three), before)
    assert same_bits(state(twin), before)


def test_heads_keep_their_originals():
    """A head is replaced whole: its original is kept in either way, and comes back."""
    model = models.bert().bfloat16()
    before = state(model)
    handle = lora_hub.add_adapter(model, "task", modules_to_save=("classifier",))
    models.randomise(models.adapter_parameters(model))
    handle.merge(keep="corrections")
    head = model.classifier.weight.clone()

    assert handle.kept_bytes() > model.classifier.weight.nbytes
    assert not torch.equal(head, before["classifier.weight"])
    assert "classifier" not in handle.realised()
    handle.unmerge()
    assert same_bits(state(model), before)


@in_both_ways
def test_replaced_while_merged(three, tmp_path, keep, monkeypatch):
    """An exchange of a merged adapter that fails puts it back merged, in the way it was kept."""
    from lora_hub.patch import attach

    a, _, _ = handles(three)
    before = state(three)
    a.merge(keep=keep)
    merged, kept = state(three), a.kept_bytes()
    monkeypatch.setattr(attach.ModelPatch, "join", lambda *args, **kwargs: (_ for _ in ()).throw(Interrupted))
    with pytest.raises(Interrupted):
        lora_hub.apply_adapter(three, tmp_path / "a", replace=True)
    monkeypatch.undo()

    assert same_bits(state(three), merged)
    assert (a.merged, a.kept_bytes()) == (True, kept)
    a.remove()
    assert same_bits(state(three), before)


# Switches


@in_both_ways
@in_dtypes
def test_switch_is_the_other_alone(three, dtype, keep, monkeypatch):
    """`only=True` takes out what else is merged and writes each module once; the weights are those of a fresh merge."""
    from lora_hub.patch import model_patch

    three.to(dtype)
    base = state(three)
    a, b, c = handles(three)
    expected = {}
    for handle in (a, b, c):
        handle.merge()
        expected[handle.name] = state(three)
        handle.unmerge()
    written, real = [], model_patch.remerge
    monkeypatch.setattr(model_patch, "remerge", lambda module, *args: written.append(module) or real(module, *args))
    a.merge(keep=keep)
    c.merge(keep=keep)
    for handle in (b, a, c, b):
        written.clear()
        handle.merge(keep=keep, only=True)
        assert same_bits(state(three), expected[handle.name])
        assert [other.name for other in (a, b, c) if other.merged] == [handle.name]
        assert len(written) == len(set(written))
    b.unmerge()

    assert same_bits(state(three), base)


def test_switched_outputs(three):
    """After a switch the others, which are active still, run on top: the outputs stay those of all three."""
    expected = logits(three)
    a, b, _ = handles(three)
    a.merge()
    b.merge(only=True)

    assert torch.allclose(logits(three), expected, atol=1e-4)


def test_switch_to_what_is_merged(three):
    """`only=True` of what is merged takes out the others, and may change the way; alone, it changes nothing."""
    base = state(three)
    a, b, _ = handles(three)
    a.merge()
    expected = state(three)
    b.merge()
    a.merge(only=True)
    assert same_bits(state(three), expected)
    whole = a.kept_bytes()
    a.merge(only=True, keep="corrections")
    assert same_bits(state(three), expected)
    assert a.kept_bytes() != whole
    a.merge(only=True, keep="corrections")
    a.unmerge()

    assert same_bits(state(three), base)


def test_switch_inside_of_a_block_without_it_is_refused(three):
    """A context that chose other adapters forbids a switch as it forbids a merge."""
    a, b, _ = handles(three)
    a.merge()
    before = state(three)
    with lora_hub.use(three, "a"), pytest.raises(StateError, match="leave the `use` block"):
        b.merge(only=True)

    assert same_bits(state(three), before)
    assert a.merged


# Interruptions

MERGING = [str(Path(low_rank.__file__).with_name(name)) for name in ("merge.py", "correction.py", "low_rank.py")]


def interrupted_at(step, action):
    """Run *action*, interrupted before the line number *step* of a merge; return whether it came that far."""
    count = 0

    def trace(frame, event, _arg):
        nonlocal count
        code = frame.f_code
        if code.co_filename not in MERGING and code.co_name != "_set_merged":
            return None
        if code.co_name in {"plain_arithmetic", "threads"}:  # the settings of the process, which are put back there
            return None
        if event == "line":
            count += 1
            if count == step:
                sys.settrace(None)
                raise Interrupted
        return trace

    sys.settrace(trace)
    try:
        action()
    except Interrupted:
        return True
    finally:
        sys.settrace(None)
    return False


ACTIONS = {
    "merge": (lambda a, b, keep: None, lambda a, b, keep: a.merge(keep=keep)),
    "merge another": (lambda a, b, keep: b.merge(keep=keep), lambda a, b, keep: a.merge(keep=keep)),
    "unmerge": (lambda a, b, keep: a.merge(keep=keep), lambda a, b, keep: a.unmerge()),
    "unmerge one": (
        lambda a, b, keep: (a.merge(keep=keep), b.merge(keep=keep)),
        lambda a, b, keep: a.unmerge(),
    ),
    "switch": (lambda a, b, keep: a.merge(keep=keep), lambda a, b, keep: b.merge(keep=keep, only=True)),
    "other way": (
        lambda a, b, keep: a.merge(keep=keep),
        lambda a, b, keep: a.merge(only=True, keep=next(k for k in KEEPS if k != keep)),
    ),
}


@pytest.mark.parametrize("action", ACTIONS)
@in_both_ways
def test_interruption_at_every_line(keep, action):
    """Wherever an interruption lands, nothing is changed (or, after the last step, all of it), and nothing is lost."""
    prepare, act = ACTIONS[action]
    model, a, b = small()
    base = state(model)
    prepare(a, b, keep)
    before = state(model), a.merged, b.merged
    act(a, b, keep)
    after = state(model), a.merged, b.merged
    step = 0
    while True:
        step += 1
        for handle in (a, b):
            if handle.merged:
                handle.unmerge()
        assert same_bits(state(model), base), step
        prepare(a, b, keep)
        if not interrupted_at(step, lambda: act(a, b, keep)):
            break
        found = state(model), a.merged, b.merged
        expected = before if found[1:] == before[1:] else after

        assert found[1:] == expected[1:], step
        assert same_bits(found[0], expected[0]), step
    assert step > 50


# What is realised


@in_both_ways
@in_dtypes
def test_realised(three, dtype, keep):
    """Gain and error of everything that is merged are those that float64 arithmetic on the whole weights gives."""
    three.to(dtype)
    a, b, c = handles(three)
    original = {path: module.weight.detach().double().clone() for path, module in b.modules.items()}
    exact = {path: exact_sum(module, a, b, c) - original[path] for path, module in b.modules.items()}
    for handle in (a, b, c):
        handle.merge(keep=keep)
    before = state(three)
    found = b.realised()

    assert same_bits(state(three), before)
    assert found.keys() == b.modules.keys()
    for path, module in b.modules.items():
        D, merged = exact[path], module.weight.detach().double() - original[path]
        assert found[path].gain == pytest.approx(((merged * D).sum() / (D * D).sum()).item(), rel=1e-6)
        assert found[path].error == pytest.approx(((merged - D).norm() / D.norm()).item(), rel=1e-2, abs=1e-12)
    assert a.realised() == {path: found[path] for path in a.modules}


def test_bfloat16_loses_small_deltas(monkeypatch):
    """A delta of 1% of W loses 17% to bfloat16, one of 0.1% most of it; the blocks do not matter."""
    errors = []
    for share in (0.001, 0.01, 0.1):
        weight, delta = product(256, 512, torch.bfloat16, share)
        merged = weight.clone()
        add_low_rank(merged, weight, delta, Scratch())
        whole = realised(merged, weight, low_rank.LowRank(delta.left.double(), delta.right.double()))
        monkeypatch.setattr(low_rank, "_BLOCK", 512 * 7)
        found = realised(merged, weight, low_rank.LowRank(delta.left.double(), delta.right.double()))
        monkeypatch.undo()
        errors.append(found.error)
        assert (found.gain, found.error) == pytest.approx((whole.gain, whole.error))

    assert errors == pytest.approx([0.79, 0.17, 0.016], rel=0.15)


def test_zero_delta_is_realised():
    """An adapter as it is made, B = 0, is there in full."""
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    handle = lora_hub.add_adapter(model, "task", targets=("0",))
    handle.merge()

    assert (handle.realised()["0"].gain, handle.realised()["0"].error) == (1.0, 0.0)


def test_realised_needs_a_merge(three):
    """Unmerged, all of the delta runs: there is nothing to report."""
    with pytest.raises(StateError, match=r"`a` is not merged.*merge\(\)"):
        handles(three)[0].realised()


# The arithmetic by itself


def product(rows, columns, dtype, share, *, r=16):
    """A weight of std 0.02 and the product of an A and a B that is *share* of it."""
    generator = torch.Generator().manual_seed(rows + columns)
    weight = (torch.randn(rows, columns, generator=generator) * 0.02).to(dtype)
    A = torch.randn(r, columns, generator=generator)
    B = torch.randn(rows, r, generator=generator) * 0.02 * share / r**0.5
    parts = [(PartWeights(Part(r=r, alpha=r), A, B), 1.0)]
    return weight, low_rank.low_rank(parts, weight, transposed=False)


@pytest.mark.parametrize("block", [1, 100, 1 << 19])
@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (700, 3), (257, 300), (300, 1024)])
@in_dtypes
def test_corrections_restore(dtype, shape, block, monkeypatch):
    """Whatever the shape and the blocks, in every dtype, for small and large deltas: the original bits."""
    monkeypatch.setattr(low_rank, "_BLOCK", block)
    for share in (1e-4, 0.05, 1.0, 100.0):
        weight, delta = product(*shape, dtype, share, r=3)
        with plain_arithmetic():
            merged = weight.clone()
            add_low_rank(merged, weight, delta, Scratch())
            found = restored(merged, delta, correction_of(weight, merged, delta, Scratch()), Scratch())

        assert found is not None
        assert same_bits({"": found}, {"": weight})


def test_odd_values_are_restored():
    """Negative zero, subnormal numbers, infinities and NaN with their payload come back bit for bit."""
    for dtype in DTYPES:
        weight, delta = product(8, 16, dtype, 1.0)
        info = torch.finfo(dtype)
        weight[0, :6] = torch.tensor([-0.0, info.tiny / 4, torch.inf, -torch.inf, torch.nan, info.max], dtype=dtype)
        merged = weight.clone()
        add_low_rank(merged, weight, delta, Scratch())
        found = restored(merged, delta, correction_of(weight, merged, delta, Scratch()), Scratch())

        assert same_bits({"": found}, {"": weight})


@pytest.mark.parametrize("change", ["weight", "delta", "dtype"])
def test_corrections_are_never_wrong(change):
    """What does not lead back to the original gives nothing instead."""
    weight, delta = product(64, 64, torch.bfloat16, 0.1)
    merged = weight.clone()
    add_low_rank(merged, weight, delta, Scratch())
    kept = correction_of(weight, merged, delta, Scratch())
    if change == "weight":
        merged[3, 5] += 1
    elif change == "delta":
        delta.left[3] *= 1.01
    else:
        merged = merged.half()

    assert restored(merged, delta, kept, Scratch()) is None


@pytest.mark.parametrize("transposed", [False, True])
def test_product_of_parts(transposed):
    """Several adapters, whole and of parts whose rows are apart, are one product, in the layout of the weight."""
    out, columns = 12, 5
    parts = [
        (PartWeights(Part(r=2, alpha=4), torch.randn(2, columns), torch.randn(out, 2)), 0.5),
        (PartWeights(Part(r=3, alpha=1, rows=((0, 2), (8, 11))), torch.randn(3, columns), torch.randn(5, 3)), 2.0),
        (PartWeights(Part(r=1, alpha=1, rows=((4, 8),)), torch.randn(1, columns).half(), torch.randn(4, 1)), -1.0),
    ]
    expected = torch.zeros(out, columns, dtype=torch.float64)
    for (part, A, B), factor in parts:
        rows = [row for start, stop in part.rows or ((0, out),) for row in range(start, stop)]
        expected[rows] += factor * part.scaling * (B.double() @ A.double())
    weight = torch.zeros(columns, out) if transposed else torch.zeros(out, columns)
    found = low_rank.low_rank(parts, weight, transposed=transposed)

    assert torch.allclose((found.left @ found.right).double(), expected.T if transposed else expected, atol=1e-5)


@in_both_ways
@in_dtypes
def test_conv1d(dtype, keep):
    """Weights that are stored ``[in, out]`` are merged, realised and restored as others are."""
    torch.manual_seed(2)
    model = torch.nn.Sequential(Conv1D(40, 24)).to(dtype)
    handle = lora_hub.add_adapter(model, "task", r=4, targets=("0",))
    models.randomise(models.adapter_parameters(model))
    before, exact = state(model), exact_sum(model[0], handle)
    handle.merge(keep=keep)
    merged = model[0].weight.detach().double()

    assert torch.allclose(merged, exact, rtol=torch.finfo(dtype).eps, atol=1e-5)
    assert handle.realised()["0"].gain == pytest.approx(1, abs=1e-2)
    handle.unmerge()
    assert same_bits(state(model), before)


# Tied weights


@pytest.mark.parametrize("target", ["lm_head", "embedding"])
def test_tied_embeddings_are_refused(target):
    """Neither side of a tied pair is merged into: the head by its adapter, the embedding by a replacement of it."""
    model = models.gpt2()
    options = {"targets": ("lm_head",)} if target == "lm_head" else {"modules_to_save": ("wte",)}
    handle = lora_hub.add_adapter(model, "task", **options)
    models.randomise(models.adapter_parameters(model))
    before = state(model)
    pair = [
        "`lm_head.weight` is tied to `transformer.wte.weight`",
        "`transformer.wte.weight` is tied to `lm_head.weight`",
    ]

    for keep in KEEPS:
        with pytest.raises(StateError, match=pair[target == "embedding"]):
            handle.merge(keep=keep)
    assert same_bits(state(model), before)


@pytest.mark.parametrize("how", ["parameter", "memory"])
@pytest.mark.parametrize("target", ["0", "1"])
def test_tied_linear_modules_are_refused(target, how):
    """Two linear modules with one parameter, or with two parameters in one memory, are tied."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 6))
    if how == "parameter":
        model[1].weight = model[0].weight
    else:
        model[1].weight.data = model[0].weight.data
    handle = lora_hub.add_adapter(model, "task", targets=(target,))

    with pytest.raises(StateError, match=rf"`{target}.weight` is tied to `{1 - int(target)}.weight`"):
        handle.merge()


def test_shared_module_is_merged_once():
    """One module at two places is one weight: merged once, and restored."""
    shared = torch.nn.Linear(6, 6)
    model = torch.nn.Sequential(shared, torch.nn.Sequential(shared))
    handle = lora_hub.add_adapter(model, "task", targets=("0",))
    models.randomise(models.adapter_parameters(model))
    before, exact = shared.weight.detach().clone(), exact_sum(shared, handle)
    handle.merge()

    assert torch.allclose(shared.weight.double(), exact, atol=1e-5)
    handle.unmerge()
    assert torch.equal(shared.weight, before)
