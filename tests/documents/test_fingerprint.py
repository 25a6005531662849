"""The fingerprint as a document: where it looks, how large it is, what is refused, and what a comparison comes to."""

import json
import math
import random
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_hub.documents.base_verdict import Found, Outcome, compare
from lora_hub.documents.common_fingerprint import contradiction, united
from lora_hub.documents.fields import Fields, canonical_json
from lora_hub.documents.fingerprint import BUDGET, MAX_COUNT, MIN_COUNT, Fingerprint, Sampled, counts, slots, window
from lora_hub.documents.floats import FORMATS, rounded

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.v_proj"
LLAMA_8B = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}


def pack(numbers, dtype: str) -> bytes:
    """Return *numbers*, rounded to *dtype*, as bytes."""
    values = [rounded(number, dtype) for number in numbers]
    if dtype == "BF16":
        return b"".join(struct.pack("<f", value)[2:] for value in values)
    return struct.pack(f"<{len(values)}{ {'F64': 'd', 'F32': 'f', 'F16': 'e'}[dtype] }", *values)


def weight(path: str, row: int, column: int, seed: int = 0) -> float:
    """Return one weight of the base of *seed*."""
    return random.Random(f"{seed} {path} {row} {column}").gauss(0, 0.02)


def sampled(path: str = Q, shape=(64, 512), dtype: str = "F32", count: int = 16, seed: int = 0, offset: int = 3):
    """Return what is sampled of one tensor of the base of *seed*."""
    offsets = bytes([offset] * (count // 2))
    empty = Sampled(path=path, shape=shape, dtype=dtype, values=bytes(FORMATS[dtype].size * count), offsets=offsets)
    values = pack([weight(path, *place, seed) for place in empty.positions()], dtype)
    return Sampled(path=path, shape=shape, dtype=dtype, values=values, offsets=offsets)


def fingerprint(*tensors: Sampled) -> Fingerprint:
    """Return the fingerprint of *tensors*, by default of q and v."""
    return Fingerprint.of(tensors or (sampled(Q), sampled(V)))


def found_in(base: Fingerprint, dtype: str, change=lambda number: number) -> dict[str, Found]:
    """Return what is found at the positions of *base* in its very base, stored in *dtype*."""
    return {
        tensor.path: Found(
            dtype=dtype, values=pack([change(weight(tensor.path, *place)) for place in tensor.positions()], dtype)
        )
        for tensor in base.tensors
    }


def size_of(base: Fingerprint) -> int:
    """Return the bytes that it takes in a manifest."""
    return len(canonical_json({"base": {"fingerprint": base.to_json()}}))


def test_positions_are_those_of_the_scheme():
    """Whoever recorded one, years ago and elsewhere, looked at these very places."""
    expected = ((1452, 1416), (3983, 2997), (2419, 1800), (854, 2118), (3386, 160), (1821, 2759))

    assert slots(Q, (4096, 4096), 6) == expected


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(2, 256))
def test_positions_lie_inside(outputs, inputs, count):
    """Each is one of the matrix, and so is every place of its window."""
    places = slots("layer", (outputs, inputs), count)

    assert len(places) == count
    assert all(0 <= row < outputs for row, _ in places)
    assert all(0 <= column < inputs for _, column in places[::2])
    assert all(0 <= column <= inputs - window(inputs) for _, column in places[1::2])


def test_fewer_positions_are_the_first_of_more():
    """So an adapter of few modules, which has more of each, can be compared with one of many."""
    assert slots(Q, (4096, 4096), 256)[:16] == slots(Q, (4096, 4096), 16)


@pytest.mark.parametrize("count", [4, 16, 28, 100, 256])
def test_positions_are_spread_over_the_rows(count):
    """Between two neighbouring rows that are looked at, there are at most three times as many as on average."""
    rows = sorted(row for row, _ in slots(Q, (4096, 4096), count))
    gaps = [later - earlier for earlier, later in zip(rows, [*rows[1:], rows[0] + 4096], strict=True)]

    assert max(gaps) <= 3 * 4096 / count


def test_each_module_has_positions_of_its_own():
    """Two layers that changed places are seen, since nothing is looked at in the same place of both."""
    assert slots(Q, (4096, 4096), 16) != slots(Q.replace("0", "1"), (4096, 4096), 16)
    assert slots(Q, (4096, 4096), 16) != slots(Q, (4096, 4097), 16)


@pytest.mark.parametrize("projections", [2, 4, 7])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_fingerprint_of_an_8b_model_takes_24_kb(projections, dtype):
    """Whether q and v are targeted or all linear modules: 64 to 224 tensors."""
    shapes = {
        f"model.layers.{layer}.{name}": shape
        for layer in range(32)
        for name, shape in list(LLAMA_8B.items())[:projections]
    }
    wanted = counts(shapes, FORMATS[dtype].size)
    base = fingerprint(*(sampled(path, shapes[path], dtype, count) for path, count in wanted.items()))

    assert wanted.keys() == shapes.keys()
    assert size_of(base) <= 24 * 1024
    assert base.count >= BUDGET // 6


def test_many_experts_are_sampled_evenly():
    """Of more modules than there is room for, some are looked at: of all layers and all projections."""
    shapes = {
        f"model.layers.{layer}.mlp.experts.{expert}.{name}": (768, 2048)
        for layer in range(48)
        for expert in range(128)
        for name in ("gate_proj", "up_proj", "down_proj")
    }
    wanted = counts(shapes, 2)

    assert {path.split(".")[2] for path in wanted} == {str(layer) for layer in range(48)}
    assert {path.rpartition(".")[2] for path in wanted} == {"gate_proj", "up_proj", "down_proj"}
    assert min(wanted.values()) >= MIN_COUNT
    assert size_of(fingerprint(*(sampled(path, (768, 2048), "BF16", 4) for path in wanted))) < 128 * 1024


def test_small_models_have_small_fingerprints():
    """No more than a fourth of a tensor, and never more than is read again."""
    assert counts({"a": (4, 8), "b": (10_000, 10_000)}, 2) == {"a": 8, "b": MAX_COUNT}
    assert counts({}, 2) == {}


paths = st.from_regex(r"[a-z]{1,3}(\.(0|[1-9][0-9]{0,2}|[1-9][0-9]{8,11}|[a-z]{1,3}|0[0-9])){0,3}", fullmatch=True)


@given(st.dictionaries(paths, st.tuples(st.sampled_from(sorted(FORMATS)), st.integers(1, 9)), min_size=1, max_size=6))
def test_json_brings_it_back(tensors):
    """Whatever the names, dtypes and numbers of weights are."""
    base = fingerprint(*(sampled(path, (8, 8), dtype, count) for path, (dtype, count) in tensors.items()))
    document = json.loads(canonical_json(base.to_json()))

    assert Fingerprint.parse(Fields(document)) == base


def test_layers_of_one_kind_share_an_entry():
    """Names take little: layers 0 to 2 and 5 are two runs of one entry."""
    base = fingerprint(*(sampled(Q.replace("0", str(layer))) for layer in (0, 1, 2, 5)))
    (entry,) = base.to_json()["tensors"]

    assert (entry["module"], entry["layers"]) == ("model.layers.*.self_attn.q_proj", [[0, 3], [5, 6]])


def test_same_dtype_decides():
    """The very same bytes are a match; one number that differs in its last bit is another base."""
    base = fingerprint()
    same = compare(base, found_in(base, "F32"))
    changed = found_in(base, "F32")
    values = bytearray(changed[V].values)
    values[20] ^= 1
    changed[V] = Found(dtype="F32", values=bytes(values))
    other = compare(base, changed)

    assert (same.outcome, same.compared, same.recorded, same.tensors) == (Outcome.MATCH, 32, 32, (2, 2))
    assert (other.outcome, other.differing) == (Outcome.OTHER, 1)
    assert f"`{V}`" in other.reason


@pytest.mark.parametrize(
    ("recorded", "found", "expected"),
    [
        ("BF16", "F32", Outcome.MATCH),
        ("F16", "F32", Outcome.MATCH),
        ("F32", "F64", Outcome.MATCH),
        ("F32", "BF16", Outcome.UNDECIDED),
        ("F32", "F16", Outcome.UNDECIDED),
        ("F16", "BF16", Outcome.UNDECIDED),
        ("BF16", "F16", Outcome.UNDECIDED),
    ],
)
def test_another_dtype_decides_if_it_is_wider(recorded, found, expected):
    """The right base in another dtype is never refused; a narrower one says what it cannot tell."""
    base = fingerprint(*(sampled(path, dtype=recorded) for path in (Q, V)))
    verdict = compare(base, found_in(base, found))

    assert verdict.outcome is expected
    assert ("cannot tell" in verdict.reason) == (expected is Outcome.UNDECIDED)


@pytest.mark.parametrize("recorded", sorted(FORMATS))
@pytest.mark.parametrize("found", sorted(FORMATS))
def test_unrelated_weights_are_refused_in_every_dtype(recorded, found):
    """Also where it is narrower: no rounding makes one random number of another."""
    base = fingerprint(*(sampled(path, dtype=recorded) for path in (Q, V)))
    verdict = compare(base, found_in(base, found, lambda number: -number + 0.001))

    assert verdict.is_other


def test_a_step_that_rounds_away_is_not_told_in_a_narrower_dtype():
    """A sibling that one step changed by less than bfloat16 shows: undecided, never a match."""
    base = fingerprint(*(sampled(path, dtype="F16") for path in (Q, V)))
    verdict = compare(base, found_in(base, "BF16", lambda number: number * (1 + 1e-7)))

    assert verdict.outcome is Outcome.UNDECIDED


def test_what_cannot_be_read_leaves_it_undecided():
    """The part that was compared is said; a difference in it decides all the same."""
    base = fingerprint()
    found = found_in(base, "F32")
    del found[V]
    part = compare(base, found, {V: "offloaded"})
    found[Q] = Found(dtype="F32", values=pack([0.5] * 16, "F32"))
    other = compare(base, found, {V: "offloaded"})
    nothing = compare(base, {}, {Q: "offloaded", V: "offloaded"})

    assert (part.outcome, part.tensors, part.compared) == (Outcome.UNDECIDED, (1, 2), 16)
    assert "1 of 2 modules could not be read (offloaded)" in part.reason
    assert other.is_other
    assert (nothing.outcome, nothing.compared) == (Outcome.UNDECIDED, 0)


def test_some_of_the_weights_may_be_asked_for():
    """A sample over the network compares those that it brought."""
    base = fingerprint()
    which = (1, 3, 6)
    whole = found_in(base, "F32")[Q].values
    values = b"".join(whole[4 * number : 4 * number + 4] for number in which)
    verdict = compare(base, {Q: Found(dtype="F32", values=values, which=which)})

    assert (verdict.outcome, verdict.compared, verdict.recorded) == (Outcome.MATCH, 3, 32)


def int8_of(base: Fingerprint, seed: int) -> dict[str, Found]:
    """Return the codes of the base of *seed* at the positions of *base*."""
    codes = {t.path: [round(weight(t.path, *place, seed) * 127 / 0.1) for place in t.positions()] for t in base.tensors}
    return {path: Found(dtype="I8", values=struct.pack(f"<{len(own)}b", *own)) for path, own in codes.items()}


def test_quantised_weights_tell_an_altogether_different_base():
    """Codes of 8 bits go up and down with the weights; those of another base do not. Neither is a match."""
    base = fingerprint(*(sampled(path, dtype="BF16", count=128) for path in (Q, V)))
    alike, other = compare(base, int8_of(base, seed=0)), compare(base, int8_of(base, seed=1))

    assert alike.outcome is Outcome.UNDECIDED
    assert alike.correlation is not None
    assert alike.correlation > 0.98
    assert "nothing finer" in alike.reason
    assert other.is_other


def test_few_quantised_weights_decide_nothing():
    """By chance, a few may have nothing in common."""
    base = fingerprint(sampled(Q, count=8))
    verdict = compare(base, {Q: Found(dtype="I8", values=bytes(range(8)))})

    assert (verdict.outcome, verdict.correlation) == (Outcome.UNDECIDED, None)


@pytest.mark.parametrize("code", [0, 127])
def test_quantised_weights_that_are_all_one_are_another_base(code):
    """Without any variance nothing is correlated; nor is NaN, which 127 is in 8 bits of floating point."""
    base = fingerprint(*(sampled(path, count=128) for path in (Q, V)))
    verdict = compare(base, {t.path: Found(dtype="F8_E4M3", values=bytes([code] * 128)) for t in base.tensors})

    assert verdict.is_other


def test_nan_is_nobody():
    """Weights that became NaN are not those that were recorded."""
    base = fingerprint()

    assert compare(
        base, found_in(base, "F32") | {Q: Found(dtype="F32", values=struct.pack("<16f", *[math.nan] * 16))}
    ).is_other


def test_two_of_one_base_do_not_contradict():
    """Of other dtypes, other numbers of weights, and other places in the windows."""
    one = fingerprint(sampled(Q, dtype="BF16", count=8), sampled(V, dtype="BF16", count=8))
    other = fingerprint(sampled(Q, dtype="F32", count=32, offset=9))

    assert contradiction(one, other) is None
    assert contradiction(other, one) is None


def test_two_of_different_bases_contradict():
    """The first place where they differ is named."""
    found = contradiction(fingerprint(), fingerprint(sampled(V, seed=1)))
    shapes = contradiction(fingerprint(), fingerprint(sampled(V, shape=(8, 512))))

    assert found is not None
    assert f"`{V}` at" in found
    assert shapes is not None
    assert "[64, 512]" in shapes


def test_united_has_every_module_once():
    """The widest dtype of each, and what has the most weights."""
    one, other = fingerprint(sampled(Q, dtype="BF16"), sampled(V)), fingerprint(sampled(Q), sampled(V, count=32))
    both = united([one, other])

    assert both == fingerprint(sampled(Q), sampled(V, count=32))
    assert united([]) is None
    assert united([one]) == one


def test_united_of_many_stays_in_the_budget():
    """Ten adapters of different layers of one base make one fingerprint of 24 kB."""
    each = [
        fingerprint(*(sampled(f"layers.{10 * part + n}.q", (512, 512), "BF16", 256) for n in range(10)))
        for part in range(10)
    ]
    both = united(each)

    assert both is not None
    assert len(both.tensors) == 100
    assert size_of(both) <= 24 * 1024
