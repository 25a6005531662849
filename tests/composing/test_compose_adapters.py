"""Whole adapters in, one out: exact sums, ranks, weights, heads, documents, and what is refused."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_adapters import (
    BASE,
    SHAPES,
    Q,
    V,
    adapter,
    assert_close,
    composed,
    delta,
    numbers,
    random_adapter,
    random_factors,
)

from lora_hub.composing.factors import Factors
from lora_hub.composing.inputs import Input
from lora_hub.documents import adapter_layout
from lora_hub.documents.base_model import BaseModel
from lora_hub.documents.manifest import Slice, SliceGroup
from lora_hub.documents.recipe import LayerWeights
from lora_hub.errors import CompatibilityError, MalformedError, UsageError
from lora_hub.tensors import tensor_of

ELEMENTWISE = ["ties", "dare", "dare-ties", "della", "breadcrumbs", "magnitude", "sce", "tsv", "iso"]


@st.composite
def any_adapter(draw):
    """An adapter of q, of v or of both: any ranks and alphas, rsLoRA or not."""
    paths = draw(st.sampled_from([(Q,), (V,), (Q, V)]))
    seed = draw(st.integers(0, 1000))
    factors = {path: random_factors(seed + i, SHAPES[path], draw(st.integers(1, 5))) for i, path in enumerate(paths)}
    alphas = {path: draw(st.sampled_from([1, 3, 8.5, 16])) for path in paths}
    return adapter(factors, alphas=alphas, use_rslora=draw(st.booleans()))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(any_adapter(), st.floats(-2, 2)), min_size=1, max_size=4))
def test_linear_is_the_weighted_sum(weighted):
    """Σ wᵢ ΔWᵢ to 1e-12 in float64, whatever ranks, scalings and targets the adapters have."""
    made, _ = composed({f"a{i}": pair for i, pair in enumerate(weighted)})
    for path in SHAPES:
        expected = sum(weight * delta(one, path) for one, weight in weighted)
        size = sum(abs(weight) * delta(one, path).norm() for one, weight in weighted)
        assert (delta(made, path) - expected).norm() <= 1e-12 * size + 1e-300


@pytest.mark.parametrize("method", ["linear", *ELEMENTWISE])
def test_order_of_adapters_does_not_matter(method):
    """The same delta comes out of a recipe whose inputs stand the other way round, masks included."""
    weighted = {"a": (random_adapter(1, 2), 0.7), "b": (random_adapter(2, 3), -0.4), "c": (random_adapter(3), 1.0)}
    one, _ = composed(weighted, rule=method)
    other, _ = composed(dict(reversed(weighted.items())), rule=method)

    assert_close(delta(other), delta(one), 1e-10)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("method", ["linear", *ELEMENTWISE])
def test_ranks_scalings_and_targets_may_differ(method, use_rslora):
    """rsLoRA, alpha patterns, other ranks and targets: what counts is the delta, however it is written."""
    plain = {Q: random_factors(1, SHAPES[Q], 4), V: random_factors(2, SHAPES[V], 2)}
    alphas = {Q: 24.0, V: 1.0}
    scaled = {
        path: Factors(B / (alphas[path] / (A.shape[0] ** 0.5 if use_rslora else A.shape[0])), A)
        for path, (B, A) in plain.items()
    }
    other = adapter({Q: random_factors(3, SHAPES[Q], 3)})
    recipe = {"rule": method} | ({"parameters": {"density": 1.0}} if method not in {"linear", "iso", "tsv"} else {})
    expected, _ = composed({"a": (adapter(plain), 0.6), "b": (other, 0.4)}, **recipe)
    written = adapter(scaled, alphas=alphas, use_rslora=use_rslora)
    found, report = composed({"a": (written, 0.6), "b": (other, 0.4)}, **recipe)

    for path in SHAPES:
        assert_close(delta(found, path), delta(expected, path), 1e-10)
    assert [module.ranks for module in report.modules] == [(4, 3), (2, None)]
    assert not found.config.use_rslora


def test_one_adapter_at_weight_one_is_kept_to_the_byte():
    """A and B, r, alpha, rsLoRA and patterns, dtypes, slices and license: nothing is computed."""
    factors = {Q: random_factors(1, SHAPES[Q], 4), V: random_factors(2, SHAPES[V], 2)}
    parts = (Slice(part="q", r=2, alpha=5, rows=((0, 4),)), Slice(part="v", r=2, alpha=5, rows=((8, 12),)))
    options = {"alphas": {Q: 10, V: 3}, "dtype": torch.bfloat16, "license": "mit", "targets": ("v", "q")}
    one = adapter(factors, slices=(SliceGroup(modules=(Q,), parts=parts),), **options)
    made, report = composed({"a": (one, 1.0)})

    assert made.buffer == one.buffer
    assert made.config == one.config
    assert made.manifest == one.manifest
    assert [module.r for module in report.modules] == [4, 2]


def test_exact_sum_keeps_the_factors():
    """A's stay to the bit, B's carry weight and scaling; alpha is r, and a module of another rank has a pattern."""
    one = adapter({Q: random_factors(1, SHAPES[Q], 2)}, alphas={Q: 4}, dtype=torch.float32)
    other = random_adapter(2, 3, dtype=torch.float32)
    made, report = composed({"a": (one, 0.5), "b": (other, 2.0)})
    (q, v) = made.layout.modules
    A = torch.cat([tensor_of(one, one.layout.modules[0].lora_A), tensor_of(other, other.layout.modules[0].lora_A)])

    assert (q.r, q.alpha, v.r, v.alpha) == (5, 5, 3, 3)
    assert not made.config.use_rslora
    assert torch.equal(tensor_of(made, q.lora_A), A)
    assert torch.equal(tensor_of(made, q.lora_B)[:, :2], tensor_of(one, one.layout.modules[0].lora_B))
    assert [(module.ranks, module.rank, module.r, module.kept) for module in report.modules] == [
        ((2, 3), 5, 5, 1.0), ((None, 3), 3, 3, 1.0),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("rank", ["exact", "4"])
def test_float16_holds_what_is_small_or_large_in_one_factor_only(size, rank):
    """A and B share their size, so that a weight neither drowns a small B in denormals nor lets it overflow."""
    one, other = (
        adapter({Q: Factors(numbers(i, 12, 2) * 0.1, numbers(i + 9, 2, 10))}, dtype=torch.float16) for i in range(2)
    )
    made, report = composed({"a": (one, size), "b": (other, -size)}, rank=rank)

    assert made.manifest.lora.dtype == "float16"
    assert_close(delta(made), size * (delta(one) - delta(other)), 2e-3)
    assert report.notes == ()


def test_numbers_that_the_dtype_loses_are_said_to_be_lost():
    """What is smaller than the numbers of the dtype is written as zero, and the energy that is reported is not that."""
    one = adapter({Q: Factors(numbers(1, 12, 2) * 1e-9, numbers(2, 2, 10) * 1e-9), V: random_factors(3, SHAPES[V], 2)})
    made, report = composed({"a": (one, 1.0)}, dtype="float16")

    assert not delta(made).any()
    assert [note for note in report.notes if "1 of 2 modules have numbers too small for float16" in note]


def test_what_is_computed_on_is_a_copy():
    """The bytes that were proven are never written, also where they are float64 already."""
    one = random_adapter(1)
    before, (module, _) = bytes(one.buffer), one.layout.modules
    for side in Input(name="a", adapter=one).factors(module):
        side.zero_()

    assert bytes(one.buffer) == before


def test_identical_adapters_collapse():
    """Four times the same adapter has its rank, not four times as much."""
    one = random_adapter(1, 2)
    made, report = composed(dict.fromkeys("abcd", (one, 0.25)))

    assert {module.r for module in report.modules} == {2}
    assert_close(delta(made), delta(one))


def test_zero_has_rank_one():
    """A - a is an adapter that adds nothing, of rank 1, since PEFT has none of rank 0; the report says so."""
    one = random_adapter(1)
    made, report = composed({"a": (one, 1.0), "b": (one, -1.0)})

    assert not delta(made).any()
    assert {module.r for module in report.modules} == {1}
    assert report.kept == 1.0
    assert "2 of 2 modules came out as zero" in report.notes


def test_weight_zero_is_absence():
    """An adapter of weight 0 neither votes nor widens the basis: the others come out as without it."""
    weighted = {"a": (random_adapter(1), 0.7), "b": (random_adapter(2), -0.3)}
    with_it, _ = composed({**weighted, "c": (random_adapter(3), 0.0)}, rule="sce")
    without, _ = composed(weighted, rule="sce")

    assert torch.equal(delta(with_it), delta(without))


@pytest.mark.parametrize("space", ["core", "knots", "full"])
def test_absent_adapters_do_not_vote(space):
    """Where only one adapter has a module, TIES gives that one, not its share of all."""
    one, other = adapter({Q: random_factors(1, SHAPES[Q], 2)}), random_adapter(2)
    rank = {"rank": "6"} if space == "full" else {}
    made, _ = composed(
        {"a": (one, 0.5), "b": (other, 0.5)}, rule="ties", parameters={"density": 1.0}, space=space, **rank
    )

    assert_close(delta(made, V), delta(other, V), 1e-10)


@pytest.mark.parametrize("method", ["linear", "ties"])
@pytest.mark.parametrize(("rank", "r"), [("3", 3), ("max:3", 3), ("6", 6), ("max:60", 4), ("energy:0.6", 2)])
def test_resize_is_the_best_of_its_rank(method, rank, r):
    """With one input, a composition is a resize: the truncated SVD, or zeros beside what is there."""
    one = adapter({Q: random_factors(5, SHAPES[Q], 4)})
    parameters = {} if method == "linear" else {"density": 1.0}
    made, report = composed({"a": (one, 1.0)}, rank=rank, rule=method, parameters=parameters)
    U, S, Vh = torch.linalg.svd(delta(one), full_matrices=False)
    kept = min(r, 4)

    assert made.layout.modules[0].r == report.modules[0].r == r
    assert_close(delta(made), U[:, :kept] * S[:kept] @ Vh[:kept], 1e-10)
    assert report.modules[0].kept == pytest.approx((S[:kept].square().sum() / S.square().sum()).item(), abs=1e-12)
    assert report.modules[0].norm == pytest.approx(S.norm().item())


def test_ranks_that_differ_more_than_a_config_can_say_are_refused(monkeypatch):
    """Thousands of modules with a rank of their own each need patterns that nobody would read: what to do is said."""
    weighted = {"a": (adapter({Q: random_factors(1, SHAPES[Q], 2), V: random_factors(2, SHAPES[V], 3)}), 2.0)}
    monkeypatch.setattr(adapter_layout, "_MAX_COMPARISONS", 7)
    with pytest.raises(UsageError, match="patterns") as caught:
        composed(weighted)

    assert "--rank" in str(caught.value.hint)
    assert composed(weighted, rank="3")[1].rank_out == 3


def test_report_names_the_worst_module():
    """Retained energy of all modules together, and where it is smallest."""
    made, report = composed({"a": (random_adapter(1, 4), 1.0)}, rank="2")
    lost = {path: (delta(random_adapter(1, 4), path) - delta(made, path)).norm() ** 2 for path in SHAPES}
    whole = {path: delta(random_adapter(1, 4), path).norm() ** 2 for path in SHAPES}

    assert report.kept == pytest.approx(1 - (sum(lost.values()) / sum(whole.values())).item())
    assert report.worst.path == max(SHAPES, key=lambda path: lost[path] / whole[path])
    assert (report.rank_in, report.rank_out) == (4, 2)
    assert json.loads(json.dumps(report.to_json()))["worst"] == report.worst.path


@pytest.mark.parametrize(("ranks", "r", "said"), [((2, 3), 8, "all that is there fits"), ((5, 4), 16, "fits")])
def test_rank_fits_vllm(ranks, r, said):
    """All modules get one rank that vLLM takes, no patterns, and nothing is lost."""
    weighted = {f"a{i}": (random_adapter(i, rank), 1.0) for i, rank in enumerate(ranks)}
    made, report = composed(weighted, rank="fit:vllm")

    assert {module.r for module in made.layout.modules} == {r}
    assert made.config.rank_pattern == made.config.alpha_pattern == ()
    assert said in report.notes[0]
    assert_close(delta(made), sum(delta(one) for one, _ in weighted.values()))


@pytest.mark.parametrize("space", ["core", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_nobody_adapts_stay_zero(space, dtype):
    """K of a fused q, k, v is zero in all inputs, and exactly zero in what comes out."""
    inputs = {}
    for seed in (1, 2):
        factors = random_factors(seed, SHAPES[Q], 3)
        factors.B[4:8] = 0
        inputs[f"a{seed}"] = (adapter({Q: factors}, dtype=dtype), 0.5)
    made, _ = composed(inputs, rule="ties", rank="2", space=space)
    B = tensor_of(made, made.layout.modules[0].lora_B)

    assert not B[4:8].any()
    assert B[:4].any()


def test_slices_are_said_to_be_lost():
    """The deltas of q and v in a fused projection add up as they are; that the manifest tells no parts is said."""
    parts = (Slice(part="q", r=2, alpha=2, rows=((0, 4),)), Slice(part="v", r=2, alpha=2, rows=((8, 12),)))
    one = adapter({Q: random_factors(1, SHAPES[Q], 4)}, slices=(SliceGroup(modules=(Q,), parts=parts),))
    made, report = composed({"a": (one, 0.5)})

    assert_close(delta(made), delta(one) / 2)
    assert made.manifest.lora.slices == ()
    assert any("no slices" in note for note in report.notes)


def test_equal_weights_are_one_over_n():
    """And contradict weights that were named."""
    weighted = {name: (random_adapter(i), 1.0) for i, name in enumerate("abc")}
    made, _ = composed(weighted, weights="equal")

    assert_close(delta(made), sum(delta(one) for one, _ in weighted.values()) / 3)
    with pytest.raises(UsageError, match="contradict"):
        composed({**weighted, "a": (random_adapter(0), 2.0)}, weights="equal")


def test_balanced_adapters_have_one_norm():
    """A loud adapter and a quiet one count alike, times their weights; the mean of the norms stays."""
    loud, quiet = random_adapter(1, alphas={Q: 200, V: 200}), random_adapter(2)
    norms = [sum(delta(one, path).norm() ** 2 for path in SHAPES) ** 0.5 for one in (loud, quiet)]
    made, _ = composed({"a": (loud, 0.5), "b": (quiet, -0.5)}, weights="norm")
    expected = sum(norms) / 2 * (0.5 * delta(loud) / norms[0] - 0.5 * delta(quiet) / norms[1])

    assert_close(delta(made), expected)


def test_adapter_that_is_zero_is_not_balanced():
    """Nothing is divided by a norm of 0."""
    nothing = adapter({Q: Factors(torch.zeros(12, 2), numbers(1, 2, 10))})
    made, _ = composed({"a": (random_adapter(1), 0.5), "b": (nothing, 0.5)}, weights="norm")

    assert_close(delta(made), delta(random_adapter(1)) / 2)


def test_layers_have_weights_of_their_own():
    """The first pattern that matches counts; an adapter that it does not name keeps its weight."""
    weighted = {"a": (random_adapter(1), 0.7), "b": (random_adapter(2), 0.3)}
    first = LayerWeights(match="*.q_proj", weights={"a": 0.1})
    second = LayerWeights(match="*.layers.0.*", weights={"b": 9.0})
    made, report = composed(weighted, layers=(first, second))
    (a, _), (b, _) = weighted.values()

    assert_close(delta(made, Q), 0.1 * delta(a) + 0.3 * delta(b))
    assert_close(delta(made, V), 0.7 * delta(a, V) + 9 * delta(b, V))
    assert [module.weights for module in report.modules] == [(0.1, 0.3), (0.7, 9.0)]


def test_head_that_all_share_is_kept():
    """One head, in one input or the same in several, stays as it is, under any weight; the report says so."""
    head = numbers(3, 4, 10).float()
    weighted = {
        "a": (random_adapter(1, heads={"score": head}), 0.5),
        "b": (random_adapter(2, heads={"score": head}), 0.5),
        "c": (random_adapter(3), 1.0),
    }
    made, report = composed(weighted)

    assert torch.equal(tensor_of(made, made.layout.heads["score"]["weight"]), head)
    assert made.config.modules_to_save == ("score",)
    assert "`score` (modules_to_save) is kept as it is; no weight scales it" in report.notes


def test_heads_that_differ_are_refused():
    """Two heads are no delta: the module and both adapters are named."""
    weighted = {name: (random_adapter(1, heads={"score": numbers(i, 4, 10)}), 1.0) for i, name in enumerate("ab")}
    with pytest.raises(CompatibilityError, match="`a` and `b` replace `score`"):
        composed(weighted)


def test_adapting_what_another_replaces_is_refused():
    """A delta belongs to the weight that it was trained on."""
    other = adapter({V: random_factors(1, SHAPES[V], 1)}, heads={Q: numbers(1, 12, 10)})
    weighted = {"a": (random_adapter(1), 1.0), "b": (other, 1.0)}
    with pytest.raises(CompatibilityError, match=r"`a` adapts `model.*q_proj`, `b` replaces"):
        composed(weighted)


def test_documents_say_what_the_inputs_agree_on():
    """Base, license, task type and targets of all; what they differ in is left out, and the report says so."""
    one = random_adapter(1, license="mit", targets=("q", "v"))
    other = random_adapter(2, license="apache-2.0", targets=("q", "k"), task_type="SEQ_CLS")
    same, _ = composed({"a": (one, 1.0), "b": (one, 1.0)})
    made, report = composed({"a": (one, 1.0), "b": (other, 1.0)})

    assert (same.manifest.license, same.config.task_type, same.manifest.base) == ("mit", "CAUSAL_LM", BASE)
    assert (made.manifest.license, made.config.task_type) == (None, None)
    assert made.manifest.lora.targets == ("k", "q", "v")
    assert any("license (apache-2.0, mit)" in note for note in report.notes)


def test_narrowest_dtype_holds_all():
    """float16 and bfloat16 need float32; a named dtype is what is written."""
    half, brain = random_adapter(1, dtype=torch.float16), random_adapter(2, dtype=torch.bfloat16)
    weighted = {"a": (half, 1.0), "b": (brain, 1.0)}

    assert composed(weighted)[0].manifest.lora.dtype == "float32"
    assert composed({"a": (half, 2.0)})[0].manifest.lora.dtype == "float16"
    assert composed(weighted, dtype="bfloat16")[0].manifest.lora.dtype == "bfloat16"


def test_two_bases_are_refused_unless_asked_for():
    """Deltas of different bases do not add up; siblings may be taken on purpose, other model types never."""
    sibling = random_adapter(2, base=BaseModel(repo="org/sibling", model_type="llama"))
    stranger = random_adapter(2, base=BaseModel(repo="org/base", model_type="gpt2"))
    with pytest.raises(CompatibilityError, match="org/sibling"):
        composed({"a": (random_adapter(1), 1.0), "b": (sibling, 1.0)})
    made, report = composed({"a": (random_adapter(1), 1.0), "b": (sibling, 1.0)}, allow_other_base=True)

    assert made.manifest.base.repo == "org/base"
    assert any("different bases (org/base, org/sibling)" in note for note in report.notes)
    with pytest.raises(CompatibilityError, match="gpt2"):
        composed({"a": (random_adapter(1), 1.0), "b": (stranger, 1.0)}, allow_other_base=True)


def test_base_that_contradicts_is_laid_at_the_right_door():
    """The first that knows its base is named, not simply the first."""
    unknown = random_adapter(1, base=BaseModel(model_type="llama"))
    other = random_adapter(3, base=BaseModel(repo="org/other", model_type="llama"))
    with pytest.raises(CompatibilityError, match='`c` was made for the base repo `"org/other"`, `b` for `"org/base"`'):
        composed({"a": (unknown, 1.0), "b": (random_adapter(2), 1.0), "c": (other, 1.0)})


REFUSED = {
    "no such rule": ({"rule": "tiess"}, UsageError, "no method `tiess`"),
    "no such space": ({"rule": "ties", "space": "half"}, UsageError, "no space"),
    "no such parameter": ({"parameters": {"density": 0.5}}, UsageError, "no parameter `density`"),
    "no such way to weigh": ({"weights": "best"}, UsageError, "no way to weigh"),
    "no such dtype": ({"dtype": "int8"}, UsageError, "no dtype"),
    "rank beyond any module": ({"rank": "11"}, UsageError, "more than any module has"),
    "exact rank in full space": ({"rule": "ties", "space": "full"}, UsageError, "name a rank"),
    "fit in full space": ({"rule": "ties", "space": "full", "rank": "fit:vllm"}, UsageError, "exact rank"),
    "layer of nobody": ({"layers": (LayerWeights(match="*", weights={"z": 1.0}),)}, UsageError, "`z`, which is no"),
    "layer of nothing": ({"layers": (LayerWeights(match="*.k_proj", weights={}),)}, UsageError, "no adapted module"),
    "layer of no end": ({"layers": (LayerWeights(match="*" * 600, weights={}),)}, UsageError, "no adapted module"),
    "weight of a layer": ({"layers": (LayerWeights(match="*", weights={"a": 1e9}),)}, UsageError, "1e\\+09"),
    "too large for float16": (
        {"rule": "magnitude", "parameters": {"scale": 1e6}, "dtype": "float16",
         "layers": (LayerWeights(match="*", weights={"a": 1e6}),)},
        UsageError, "float16 cannot hold",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_recipe_that_contradicts_itself_is_refused(what):
    """With a hint, before anything is computed wherever that can be known."""
    recipe, error, reason = REFUSED[what]
    with pytest.raises(error, match=reason) as caught:
        composed({"a": (random_adapter(1), 1.0)}, **recipe)

    assert caught.value.hint


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1e7])
def test_weight_that_is_no_number_is_refused(weight):
    """NaN and infinity would reach every tensor."""
    with pytest.raises(UsageError, match="the weight of `a`"):
        composed({"a": (random_adapter(1), weight)})


def test_numbers_beyond_computing_are_refused():
    """A hostile adapter whose product overflows float64 is named, not a traceback of LAPACK."""
    huge = adapter({Q: Factors(numbers(1, 12, 2) * 1e200, numbers(2, 2, 10) * 1e200)})
    with pytest.raises(MalformedError, match="`a` holds numbers beyond"):
        composed({"a": (huge, 1.0), "b": (random_adapter(1), 1.0)})


@pytest.mark.parametrize("weights", ["given", "norm"])
@pytest.mark.parametrize("size", [1e61, 1e200])
def test_hostile_sizes_are_refused_before_they_are_weighed(weights, size):
    """Also where norms are computed first."""
    huge = adapter({Q: Factors(numbers(1, 12, 2).sign() * size, numbers(2, 2, 10).sign())})
    with pytest.raises(MalformedError, match="beyond 1e"):
        composed({"a": (huge, 0.5), "b": (random_adapter(1), 0.5)}, weights=weights)


def test_zeros_that_nobody_would_read_are_not_written():
    """A small file may be of a large matrix: to fill it up to a rank takes no memory before its size is known."""
    wide = adapter({Q: Factors(numbers(1, 65_536, 1), numbers(2, 1, 65_536))}, dtype=torch.float32)
    with pytest.raises(UsageError, match="would have 31,457,280,000 bytes") as caught:
        composed({"a": (wide, 1.0)}, rank="60000")

    assert "max:64" in str(caught.value.hint)


@pytest.mark.parametrize("method", ["linear", *ELEMENTWISE])
@pytest.mark.parametrize("size", [0.0, 1e-300, 1e59])
def test_extreme_sizes_give_an_adapter(method, size):
    """Zeros, denormals and huge numbers: what comes out is finite, and so is the report."""
    one, other = (adapter({Q: Factors(numbers(i, 12, 2) * size, numbers(i + 9, 2, 10))}) for i in range(2))
    weighted = {"a": (one, 0.5), "b": (other, 0.5)}
    made, report = composed(weighted, rule=method)

    assert delta(made).isfinite().all()
    assert 0 <= report.kept <= 1
