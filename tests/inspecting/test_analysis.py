"""Whole adapters: what is summed over modules, and what happens at the edges."""

import json
from itertools import combinations

import jsonschema
import torch
from adapter_files import adapter_files
from inspected import QUERY, adapter, close, dense, dense_cosine, draw, inspect, module

from lora_hub.composing.inputs import Input
from lora_hub.documents import schemas
from lora_hub.documents.manifest import Slice, SliceGroup
from lora_hub.documents.verified_adapter import verify
from lora_hub.inspecting.analysis import analyse
from lora_hub.inspecting.document import document

SCHEMA = json.loads(schemas.schema("inspection"))


def layers(count, *, seed=0, first=0, **shape):
    """Return an adapter of so many layers."""
    return {QUERY.format(first + n): module(seed=seed + n, **shape) for n in range(count)}


def concatenated(modules):
    """Return all deltas as one vector."""
    return torch.cat([dense(*modules[path]).flatten() for path in sorted(modules)])


def written(inspection):
    """Return the JSON of *inspection*, which is valid."""
    found = json.loads(document(inspection))
    jsonschema.validate(found, SCHEMA)
    return found


def test_norm_and_cosine_are_over_all_modules():
    """Over modules, norm and cosine are those of all entries as one vector."""
    one, other = layers(3), layers(3, seed=7)
    found = inspect(one, other)

    assert close(found.adapters[0].norm, concatenated(one).norm().item())
    assert close(found.pairs[0].cosine, dense_cosine(concatenated(one), concatenated(other)))


def test_one_thread_computes():
    """Sums are split by threads, and the last bits of what comes out decide what is written."""
    seen, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        analyse([adapter("a", layers(1))], lambda modules: seen.append(torch.get_num_threads()) or modules)
        seen.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(before)

    assert seen == [1, 2]


def test_interference_counts_modules_that_are_not_shared():
    """What a single adapter changes adds to the sum and to its parts alike."""
    one, other = layers(3), {**layers(1, seed=7), **layers(2, seed=9, first=5)}
    zero = torch.zeros(8, 6, dtype=torch.float64)
    total = sum(
        (sum(dense(*modules[path]) if path in modules else zero for modules in (one, other))).norm() ** 2
        for path in {**one, **other}
    )
    parts = concatenated(one).norm() ** 2 + concatenated(other).norm() ** 2

    assert close(inspect(one, other).interference, (total / parts).item())


def test_energy_outside_of_shared_modules_is_not_inside_of_the_other():
    """An adapter that is the other one and a second module has all of the other's energy, not the reverse."""
    one = layers(2)
    other = {QUERY.format(0): one[QUERY.format(0)]}
    outputs = inspect(one, other).pairs[0].outputs
    inside = dense(*other[QUERY.format(0)]).norm() ** 2 / concatenated(one).norm() ** 2

    assert close(outputs.one_in_other, inside.item())
    assert close(outputs.other_in_one, 1.0)
    assert close(outputs.shared, 1.0)


def test_retained_energy_is_that_of_truncations():
    """The curve says what is left when every module is truncated to the same rank."""
    modules = {**layers(2, r=3), QUERY.format(2): module(r=1, seed=5)}
    spectra = [torch.linalg.svdvals(dense(*factors)) for factors in modules.values()]
    whole = sum((S**2).sum() for S in spectra)
    expected = [(sum((S[:n] ** 2).sum() for S in spectra) / whole).item() for n in (1, 2, 3)]
    found = inspect(modules).adapters[0]

    assert close(found.retained(), expected)
    assert found.rank_for(expected[1] - 1e-6) == 2
    assert found.rank_for(1.0) == 3


def test_one_adapter_has_no_pairs():
    """Of a single adapter there is nothing to compare."""
    found = written(inspect(layers(2)))

    assert (found["pairs"], found["modules"], found["interference"], found["conflict"]) == ([], [], None, None)


def test_five_adapters_have_ten_pairs():
    """Every two adapters are compared, once."""
    found = written(inspect(*(layers(2, seed=10 * n) for n in range(5))))

    assert [(pair["one"], pair["other"]) for pair in found["pairs"]] == list(combinations(range(5), 2))
    assert {len(shared["pairs"]) for shared in found["modules"]} == {10}


def test_the_same_adapter_twice_is_a_copy():
    """An adapter beside itself: cosine 1, everything shared, and twice the energy of its parts."""
    found = inspect(layers(2), layers(2))
    (copy,) = found.copies

    assert close([copy.cosine, copy.scale, copy.outputs.shared, copy.inputs.shared], [1.0, 1.0, 1.0, 1.0])
    assert close(found.interference, 2.0)


def test_an_adapter_and_its_opposite_cancel():
    """Of an adapter and its opposite nothing is left."""
    found = written(inspect(layers(2), {path: (-B, A) for path, (B, A) in layers(2).items()}))

    assert found["interference"] == 0
    assert found["pairs"][0]["scale"] == -1


def test_disjoint_modules_have_nothing_in_common():
    """Adapters without a common module have cosine 0, no conflict, and do not interfere."""
    found = written(inspect(layers(2), layers(2, first=2)))

    assert found["pairs"][0]["modules"] == found["pairs"][0]["cosine"] == 0
    assert (found["modules"], found["conflict"], found["interference"]) == ([], None, 1)


def test_zero_adapters_are_valid():
    """Adapters that were never trained, B = 0, have rank 0 and norm 0, alone, beside others, and all of them."""
    untrained = {path: (torch.zeros_like(B), A) for path, (B, A) in layers(2).items()}
    several = ((untrained,), (untrained, layers(2)), (untrained, untrained))
    alone, beside, both = (written(inspect(*adapters)) for adapters in several)

    assert alone["adapters"][0]["retained"] == []
    assert alone["adapters"][0]["rank_for"] == {"0.9": 0, "0.99": 0, "0.999": 0}
    assert (beside["pairs"][0]["cosine"], beside["interference"]) == (0, 1)
    assert (both["pairs"][0]["scale"], both["interference"], both["conflict"]["rate"]) == (None, None, 0)


def test_rank_one_of_one_entry_is_valid():
    """The smallest delta there is: one number."""
    found = written(inspect({"head": (torch.tensor([[2.0]]), torch.tensor([[-3.0]]))}))

    assert found["adapters"][0]["modules"][0]["singular_values"] == [6]


def test_heads_are_listed_only():
    """A module that is replaced has no delta: it is named, and nothing else."""
    with_head = adapter("a", layers(1), heads={"classifier": draw(2, 8)})
    found = written(analyse([with_head, adapter("b", layers(1))]))

    assert [one["heads"] for one in found["adapters"]] == [["classifier"], []]
    assert [module["path"] for module in found["adapters"][0]["modules"]] == [QUERY.format(0)]


def test_a_sliced_projection_is_one_delta():
    """Slices of a fused module are one delta: its rank is the sum of theirs, and what they leave alone stays zero."""
    B, A = torch.zeros(24, 4, dtype=torch.float64), draw(4, 8)
    B[:8, :2], B[16:, 2:] = draw(8, 2, seed=1), draw(8, 2, seed=2)
    parts = tuple(Slice(part=part, r=2, alpha=2.0, rows=((n, n + 8),)) for part, n in (("q", 0), ("v", 16)))
    path = "transformer.h.0.attn.c_attn"
    sliced = adapter("a", {path: (B, A)}, slices=(SliceGroup(modules=(path,), parts=parts),))
    (found,) = analyse([sliced]).adapters

    assert sliced.modules[path].slices == parts
    assert (found.modules[0].r, found.modules[0].numerical_rank, found.dead) == (4, 4, 0)
    assert close(found.norm, dense(B, A).norm().item())


def test_rslora_and_alpha_are_in_the_norm():
    """The scaling is part of the delta, alpha / r or alpha over the root of r."""
    plain, rooted = (
        analyse([Input(name="a", adapter=verify(adapter_files(r=4, use_rslora=is_rooted).files(), source="a"))])
        for is_rooted in (False, True)
    )

    assert close(rooted.adapters[0].norm, 2 * plain.adapters[0].norm)


def test_the_same_adapters_have_the_same_bytes():
    """The JSON depends on nothing but the adapters."""
    assert document(inspect(layers(3), layers(3, seed=4))) == document(inspect(layers(3), layers(3, seed=4)))


def test_progress_is_told_of_every_module():
    """What shows progress is given all modules once."""
    seen = []

    def progress(modules):
        for item in modules:
            seen.append(item[0])
            yield item

    analyse([adapter("a", layers(3))], progress)

    assert seen == [QUERY.format(n) for n in range(3)]
