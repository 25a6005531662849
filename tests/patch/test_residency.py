"""Thousands of adapters applied, few in memory: who gives way, who stays, and what comes back."""

import copy
import gc
import pickle
import threading

import models
import pytest
import torch
from models import logits

import lora_hub
from lora_hub import api
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import IntegrityError, NotFoundError, UsageError

MANY = 12


@pytest.fixture(autouse=True)
def unlimited():
    """Limits are those of the process: no test leaves one behind, nor models of others that would count."""
    gc.collect()
    yield
    lora_hub.limit_memory()


@pytest.fixture
def family():
    """One is enough: who leaves memory does not depend on the architecture."""
    return models.FAMILIES["llama"]


@pytest.fixture
def crowd(model, saved):
    """A model with many adapters of which none is active, and how many bytes each of them holds."""
    handles = [lora_hub.apply_adapter(model, saved, name=f"a{n}", scale=1.0 + n, active=False) for n in range(MANY)]
    return model, handles, handles[0].deltas.nbytes


def here(handles):
    """The numbers of the adapters in memory."""
    return [number for number, handle in enumerate(handles) if handle.deltas.are_here]


def test_without_a_limit_all_stay(crowd):
    """Nothing leaves memory unless a limit is set."""
    _, handles, _ = crowd

    assert here(handles) == list(range(MANY))


def test_least_recently_used_give_way(crowd):
    """A limit keeps those that were used last; a choice counts as use."""
    model, handles, size = crowd
    with lora_hub.use(model, "a2"):
        lora_hub.limit_memory(host=4 * size)
    with lora_hub.use(model, "a9"):
        pass
    with lora_hub.use(model, "a0"):
        pass
    with lora_hub.use(model, "a1"):
        pass

    assert here(handles) == [0, 1, 9, 11]


def test_what_comes_back_computes_the_same(crowd):
    """An adapter that left and came back gives the same bits."""
    model, handles, _ = crowd
    with lora_hub.use(model, "a3"):
        expected = logits(model)
    lora_hub.limit_memory(host=0)
    assert here(handles) == []
    with lora_hub.use(model, "a3"):
        found = logits(model)

    assert torch.equal(found, expected)


def test_route_over_what_left(crowd):
    """A route brings in all that its rows need, also beyond the limit, and gives way afterwards."""
    model, handles, size = crowd
    names = [f"a{n}" for n in range(3)]
    alone = []
    for name, ids in zip(names, models.tokens(3), strict=True):
        with lora_hub.use(model, name):
            alone.append(logits(model, ids[None]))
    lora_hub.limit_memory(host=size)
    with lora_hub.route(model, names):
        found = logits(model, models.tokens(3))
        assert here(handles) == [0, 1, 2]
    with lora_hub.use(model, "a7"):
        pass

    assert torch.allclose(found, torch.cat(alone), rtol=1e-5, atol=1e-4)
    assert here(handles) == [7]


def test_attaching_beyond_the_limit(model, saved):
    """With a limit, more can be applied than fits."""
    first = lora_hub.apply_adapter(model, saved, name="first", active=False)
    lora_hub.limit_memory(host=2 * first.deltas.nbytes)
    handles = [lora_hub.apply_adapter(model, saved, name=f"a{n}", active=False) for n in range(MANY)]

    assert here([first, *handles]) == [MANY - 1, MANY]


@pytest.mark.parametrize("why", ["active", "merged", "trained", "given"])
def test_who_is_needed_stays(model, saved, why):
    """What is active, merged or trained stays, and what nobody could read again."""
    if why == "trained":
        handle = lora_hub.add_adapter(model, "task")
    else:
        source = api.load(str(saved)) if why == "given" else saved
        handle = lora_hub.apply_adapter(model, source, name="task", active=why == "active")
    if why == "merged":
        handle.merge()
    lora_hub.limit_memory(host=0)

    assert handle.deltas.are_here


def test_becoming_active_brings_it_back(crowd):
    """An adapter that left is read again when it is made active, and runs."""
    model, handles, _ = crowd
    with lora_hub.use(model, "a5"):
        expected = logits(model)
    lora_hub.limit_memory(host=0)
    handles[5].active = True

    assert torch.equal(logits(model), expected)
    assert here(handles) == [5]


@pytest.mark.parametrize("verb", ["merge", "weights", "save"])
def test_other_verbs_bring_it_back(crowd, tmp_path, verb):
    """Merging, reading the weights and saving work on an adapter that left."""
    _, handles, _ = crowd
    expected = {name: tensor.clone() for name, tensor in handles[4].weights().tensors()}
    lora_hub.limit_memory(host=0)
    match verb:
        case "merge":
            handles[4].merge()
            handles[4].unmerge()
        case "save":
            lora_hub.save_adapter(handles[4], tmp_path / "again")
    found = dict(handles[4].weights().tensors())

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_files_that_changed_are_refused(crowd, saved, family, tmp_path):
    """What comes back must be what was applied: other files in its place are refused by `use`, and nothing runs."""
    model, handles, _ = crowd
    lora_hub.limit_memory(host=0)
    other = lora_hub.add_adapter(family.build(), "task", r=3)
    models.randomise(models.adapter_parameters(other.patch.model), seed=8)
    lora_hub.save_adapter(other, saved)

    with pytest.raises(IntegrityError, match="digest"), lora_hub.use(model, "a1"):
        pass
    assert here(handles) == []


def test_files_that_are_gone_are_missed(crowd, saved):
    """A directory that is gone is an error at `use`; the model runs on without it."""
    model, _, _ = crowd
    expected = logits(model)
    lora_hub.limit_memory(host=0)
    saved.rename(saved.with_name("moved"))

    with pytest.raises(NotFoundError), lora_hub.use(model, "a1"):
        pass
    assert torch.equal(logits(model), expected)


def test_directory_is_found_from_elsewhere(model, saved, tmp_path, monkeypatch):
    """A relative path means what it meant when the adapter was applied."""
    monkeypatch.chdir(saved.parent)
    lora_hub.apply_adapter(model, f"./{saved.name}", name="task", active=False)
    lora_hub.limit_memory(host=0)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with lora_hub.use(model, "task"):
        found = logits(model)

    assert not torch.equal(found, logits(model))


def test_published_adapter_comes_back_from_the_store(model, saved, tmp_path, monkeypatch):
    """What was applied by reference is read from the local store, without the registry."""
    monkeypatch.setenv("LORA_HUB_HOME", str(tmp_path / "home"))
    lora_hub.push(saved, "org/task@1.0.0", registry=tmp_path / "registry")
    handle = lora_hub.apply_adapter(model, "org/task", registry=tmp_path / "registry", active=False)
    lora_hub.limit_memory(host=0)
    (tmp_path / "registry").rename(tmp_path / "gone")
    with lora_hub.use(model, "task"):
        assert handle.deltas.are_here

    assert isinstance(api.store().read(handle.info.digest), VerifiedAdapter)


def test_copies_on_the_device_give_way_first(crowd):
    """A limit for the device drops copies in the base's dtype; what was read stays on the host."""
    model, handles, _ = crowd
    model.bfloat16()
    for handle in handles:
        with lora_hub.use(model, handle):
            logits(model)
    copies = handles[0].deltas.nbytes_placed
    lora_hub.limit_memory(device=2 * copies)
    placed = [handle.deltas.nbytes_placed for handle in handles]

    assert copies
    assert placed == [0] * (MANY - 2) + [copies] * 2
    assert here(handles) == list(range(MANY))


def test_copies_of_who_is_active_stay(crowd):
    """What runs whenever nothing is chosen keeps its copies: they would only be made again."""
    model, handles, _ = crowd
    model.bfloat16()
    handles[0].active = True
    logits(model)
    lora_hub.limit_memory(device=0)

    assert handles[0].deltas.nbytes_placed


def test_copies_of_one_dtype_are_none(tmp_path):
    """What computes in the dtype that was read takes no second copy."""
    model = models.llama()
    models.peft_directory(model, tmp_path, target_modules=["q_proj"])
    handle = lora_hub.apply_adapter(model, tmp_path, name="task")
    logits(model)

    assert handle.deltas.nbytes_placed == 0


def test_removed_adapter_counts_no_more(crowd):
    """An adapter that was removed frees its share of the limit."""
    model, handles, size = crowd
    lora_hub.limit_memory(host=3 * size)
    handles[11].remove()
    with lora_hub.use(model, "a0"):
        pass

    assert here(handles[:11]) == [0, 9, 10]


@pytest.mark.parametrize("how", ["copy", "pickle"])
def test_copies_of_a_model_bring_theirs_back(crowd, how):
    """A copy of the model has adapters that left as well, and reads them when it needs them."""
    model, _, _ = crowd
    with lora_hub.use(model, "a3"):
        expected = logits(model)
    lora_hub.limit_memory(host=0)
    twin = copy.deepcopy(model) if how == "copy" else pickle.loads(pickle.dumps(model))
    with lora_hub.use(twin, "a3"):
        found = logits(twin)

    assert torch.equal(found, expected)


def test_threads_that_push_each_other_out(crowd):
    """Threads whose adapters do not fit together each compute right."""
    model, _, size = crowd
    expected = []
    for number in range(4):
        with lora_hub.use(model, f"a{number}"):
            expected.append(logits(model))
    lora_hub.limit_memory(host=size)
    wrong = []

    def run(number):
        for _ in range(15):
            with lora_hub.use(model, f"a{number}"):
                if not torch.equal(logits(model), expected[number]):
                    wrong.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


@pytest.mark.parametrize("limit", [-1, 1.5, True, "1"])
@pytest.mark.parametrize("which", ["host", "device"])
def test_limit_must_be_a_number_of_bytes(which, limit):
    """Anything but a number of bytes, or None, is refused."""
    with pytest.raises(UsageError, match=which):
        lora_hub.limit_memory(**{which: limit})
