"""`lora_hub.compose`: sources in directories and registries, and what can be done with what comes out."""

import subprocess
import sys
from types import ModuleType

import pytest
import torch
from adapter_files import adapter_files
from made_adapters import assert_close, delta

import lora_hub
from lora_hub.adapter_directory import read_adapter
from lora_hub.documents.recipe import LayerWeights
from lora_hub.errors import MissingExtraError, UsageError

PATH = "model.layers.0.self_attn.q_proj"


@pytest.fixture
def sources(tmp_path):
    """The directories of two adapters."""
    return [adapter_files(seed=seed, r=2).write(tmp_path / f"task{seed}") for seed in (1, 2)]


def test_name_is_the_function():
    """`lora_hub.compose` is what composes, also once all modules are loaded: no package of that name hides it."""
    import lora_hub.composing.compose
    import lora_hub.composition

    assert not isinstance(lora_hub.compose, ModuleType)
    assert lora_hub.compose is lora_hub.composition.compose


def test_mapping_has_the_weights(sources):
    """Sources and weights; the deltas add up."""
    one, other = sources
    made = lora_hub.compose({one: 0.7, str(other): -0.3}, dtype="float64")

    assert_close(
        delta(made.adapter, PATH), 0.7 * delta(read_adapter(one), PATH) - 0.3 * delta(read_adapter(other), PATH)
    )
    assert [adapter.digest for adapter in made.inputs] == [read_adapter(source).digest for source in sources]
    assert [one.id for one in made.recipe.inputs] == ["task1", "task2"]


def test_sources_may_stand_alone_or_in_pairs(sources):
    """One path, several of weight 1, or pairs: what may be named twice."""
    one, other = sources
    alone = lora_hub.compose(one, rank=1)
    pairs = lora_hub.compose([(one, 0.5), other, (one, 0.5)], dtype="float64")

    assert alone.report.rank_out == 1
    assert [one.id for one in pairs.recipe.inputs] == ["task1", "task2", "task1-2"]
    assert_close(delta(pairs.adapter, PATH), delta(read_adapter(one), PATH) + delta(read_adapter(other), PATH))


def test_what_comes_out_is_saved_and_read_again(sources, tmp_path):
    """What `save` wrote is the adapter, to the byte; a directory that is not empty is left alone."""
    made = lora_hub.compose(sources, method="ties", density=0.5, output=tmp_path / "new")

    assert read_adapter(tmp_path / "new").digest == made.adapter.digest
    with pytest.raises(UsageError, match="not empty"):
        made.save(tmp_path / "new")
    assert made.save(tmp_path / "new", force=True) == tmp_path / "new"


def test_what_comes_out_can_be_applied(sources):
    """On a model it adds what both of its inputs add together."""
    model, x = Attentions(), torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    q_proj, base = model.get_submodule(PATH), model.get_submodule(PATH)(x)
    made = lora_hub.compose(dict.fromkeys(sources, 0.5), rank="exact")
    with torch.no_grad():
        lora_hub.apply_adapter(model, made.adapter)
        added = q_proj(x) - base
    expected = x.double() @ sum(0.5 * delta(read_adapter(source), PATH) for source in sources).T

    assert_close(added.double(), expected, 1e-5)


class Attentions(torch.nn.Module):
    """Modules of the paths and shapes that `adapter_files` adapts."""

    def __init__(self):
        super().__init__()
        blocks = []
        for _ in range(2):
            attention = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(8, 8), "v_proj": torch.nn.Linear(8, 4)})
            blocks.append(torch.nn.ModuleDict({"self_attn": attention}))
        self.model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(blocks)})


def test_layers_are_named_by_id(sources):
    """Ids are the last part of each source's name."""
    made = lora_hub.compose(sources, layers=[LayerWeights(match="*.layers.1.*", weights={"task2": 0.0})])

    assert made.report.modules[0].weights == (1.0, 1.0)
    assert made.report.modules[-1].weights == (1.0, 0.0)


@pytest.mark.parametrize("weight", [float("nan"), float("inf")])
def test_weight_that_is_no_number_is_refused(sources, weight):
    """Before anything is read."""
    with pytest.raises(UsageError, match="the weight of"):
        lora_hub.compose({sources[0]: weight})


def test_nothing_to_compose_is_refused():
    """An empty recipe is a wrong call."""
    with pytest.raises(UsageError, match="names no adapter"):
        lora_hub.compose([])


def test_plugins_and_rules_load_no_torch():
    """To list rules, or to find one, takes no torch: it is loaded by who merges."""
    script = (
        "import sys; from lora_hub.plugin_manager import plugins; plugins().rule('tsv'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"


def test_without_torch_the_extra_is_named(sources, monkeypatch):
    """What to install, not a traceback."""
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("lora_hub.composing.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(MissingExtraError, match="composing adapters needs the package `torch`"):
        lora_hub.compose(sources)
