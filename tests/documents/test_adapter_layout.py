"""Every tensor has exactly one purpose, or the error names the tensor."""

import re

import pytest
from adapter_files import (
    HIDDEN,
    adapter_files,
    fused_adapter_files,
    lora_key,
    module_paths,
    peft_config,
    tensor,
    to_json,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.adapter_layout import AdapterLayout, _sort_keys, plain_path, read_layout
from lora_hub.documents.manifest import Slice, SliceGroup
from lora_hub.documents.safetensors_header import TensorInfo, read_header
from lora_hub.errors import MalformedError

Q = "model.layers.0.self_attn.q_proj"
V = "model.layers.0.self_attn.v_proj"
FUSED = "transformer.h.0.attn.c_attn"
PREFIX = "base_model.model."


def layout(adapter, groups=()) -> AdapterLayout:
    files = adapter.files()
    config = AdapterConfig.parse(files["adapter_config.json"])
    return read_layout(config, read_header(files["adapter_model.safetensors"]), tuple(groups))


def refused(adapter, groups=()) -> str:
    """Return the message with which *adapter* is refused."""
    with pytest.raises(MalformedError) as caught:
        layout(adapter, groups)

    assert caught.value.exit_code == 8
    assert caught.value.hint
    assert str(caught.value).isprintable()
    return caught.value.message


def test_every_module_is_found():
    """Each pair of A and B is one module, with rank, alpha and shapes."""
    found = layout(adapter_files(lora_alpha=5))
    first = found.modules[0]

    assert [module.path for module in found.modules] == sorted(module_paths())
    assert (first.r, first.alpha) == (2, 5)
    assert (first.in_features, first.out_features) == (8, 8)
    assert (first.lora_A, first.lora_B) == (lora_key(Q, "A"), lora_key(Q, "B"))
    assert found.heads == {}


@pytest.mark.parametrize("side", "AB")
def test_a_missing_tensor_is_named(side):
    """A without B, or B without A, is refused by its name."""
    adapter = adapter_files()
    del adapter.tensors[lora_key(Q, side)]

    assert f"{Q}.lora_{side}.weight" in refused(adapter)


def test_a_target_without_tensors_is_named():
    """A target of the config that no tensor serves is refused by its name."""
    adapter = adapter_files(target_modules=["q_proj", "v_proj", "o_proj"])

    assert "o_proj" in refused(adapter)


def test_a_module_that_is_no_target_is_named():
    """Tensors of a module that the config does not target are refused by the module's path."""
    assert V in refused(adapter_files(target_modules=["q_proj"]))


def test_an_excluded_module_is_no_target():
    """Tensors of a module that the config excludes are refused by the module's path."""
    adapter = adapter_files(exclude_modules=["layers.0.self_attn.v_proj"])

    assert V in refused(adapter)


def test_an_adapter_without_lora_is_refused():
    """A file without any pair of A and B is no adapter."""
    adapter = adapter_files()
    adapter.tensors.clear()

    assert "no LoRA tensors" in refused(adapter)


@pytest.mark.parametrize(
    ("key", "meaning"),
    [
        pytest.param(f"{PREFIX}{Q}.weight", "modules_to_save", id="base_key"),
        pytest.param(f"{Q}.weight", "modules_to_save", id="base_key_without_prefix"),
        pytest.param(f"{PREFIX}{Q}.base_layer.weight", "base model", id="base_layer"),
        pytest.param(f"{PREFIX}{Q}.base_layer.bias", "base model", id="base_layer_bias"),
        pytest.param(f"{PREFIX}{Q}.bias", "modules_to_save", id="trained_bias"),
        pytest.param(f"{PREFIX}{Q}.lora_B.bias", "modules_to_save", id="bias_of_B"),
        pytest.param(f"{PREFIX}{Q}.lora_magnitude_vector", "DoRA", id="dora"),
        pytest.param(f"{PREFIX}{Q}.lora_magnitude_vector.weight", "DoRA", id="dora_as_in_memory"),
        pytest.param(f"{PREFIX}model.embed_tokens.lora_embedding_A", "embeddings", id="embedding"),
        pytest.param(f"{PREFIX}{Q}.lora_diag", "KaSA", id="kasa"),
        pytest.param(f"{PREFIX}{Q}.lora_velora_embed", "VeLoRA", id="velora"),
        pytest.param(f"{PREFIX}{Q}.lora_monteclora_sampler.x", "MonteCLoRA", id="monteclora"),
        pytest.param(
            f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta", "token indices", id="trainable_tokens"
        ),
        pytest.param(f"{PREFIX}classifier.weight", "modules_to_save", id="head_that_is_not_listed"),
        pytest.param("extra", "modules_to_save", id="bare_name"),
        pytest.param("", "modules_to_save", id="empty_name"),
        pytest.param(f"{PREFIX}{Q}.lora_C.weight", "modules_to_save", id="third_matrix"),
        pytest.param(f"{PREFIX}{Q}.lora_A.weight\x1b[2J", "modules_to_save", id="control_character"),
        pytest.param(f"{PREFIX}{Q}.lora_A.wéight", "modules_to_save", id="not_ascii"),
        pytest.param("lora_A.weight", "modules_to_save", id="lora_of_nothing"),
        pytest.param(f"{PREFIX}..{Q}.lora_A.weight", "modules_to_save", id="empty_component"),
        pytest.param(f"{PREFIX}../{Q}.lora_A.weight", "modules_to_save", id="escapes_root"),
        pytest.param(f"{Q}..lora_A.weight", "modules_to_save", id="empty_last_component"),
        pytest.param(f"{'a.' * 40}lora_A.weight", "modules_to_save", id="too_deep"),
    ],
)
def test_an_extra_tensor_is_named(key, meaning):
    """A tensor without a purpose is refused by its name, with what it is where that is known."""
    adapter = adapter_files()
    adapter.tensors[key] = tensor(4)
    message = refused(adapter)

    assert meaning in message
    assert key.removeprefix(PREFIX).partition("\x1b")[0].partition("é")[0] in message


COMPONENTS = st.sampled_from(["lora_A", "lora_B", "weight", "a", "0", "", "é", "x\n"])


@given(st.lists(COMPONENTS, max_size=6) | st.lists(COMPONENTS, min_size=30, max_size=35), st.sampled_from("AB"))
@settings(deadline=None, max_examples=500)
def test_a_lora_key_is_read_as_it_is_written(components, side):
    """Of names that end like A or B, those are LoRA that one strict expression matches as a whole, with that path."""
    name = r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+){0,31}"
    strict = re.compile(rf"(?P<path>{name})\.lora_(?P<side>[AB])(?:\.[A-Za-z0-9_-]+)?\.weight", re.ASCII)
    for end in ([], [f"lora_{side}", "weight"], [f"lora_{side}", "default", "weight"]):
        key = ".".join([*components, *end])
        expected = strict.fullmatch(key) if re.fullmatch(name, key, re.ASCII) else None

        assert purpose_of(key) == (expected and (expected["path"], expected["side"]))


def purpose_of(key: str) -> tuple[str, str] | None:
    """Return what module the tensor at *key* adapts, and whether it is A or B, or None if it is no LoRA."""
    try:
        pairs, _ = _sort_keys(AdapterConfig(r=2, lora_alpha=4), {key: None})
    except MalformedError:
        return None
    ((path, keys),) = pairs.items()
    return path, *keys


def test_of_two_foreign_parts_the_better_known_is_named():
    """A tensor that is foreign twice is called by the first that we know, not by the first in its name."""
    adapter = adapter_files()
    adapter.tensors[f"{PREFIX}{Q}.base_layer.lora_magnitude_vector"] = tensor(4)

    assert "is DoRA" in refused(adapter)


@pytest.mark.parametrize(
    ("r", "a", "b"),
    [
        pytest.param(4, (2, 8), (8, 2), id="config_says_another_rank"),
        pytest.param(2, (3, 8), (8, 2), id="A_has_another_rank"),
        pytest.param(2, (2, 8), (8, 3), id="B_has_another_rank"),
        pytest.param(2, (8, 2), (2, 8), id="transposed"),
        pytest.param(2, (16,), (16,), id="flat"),
        pytest.param(2, (0,), (0,), id="empty"),
        pytest.param(2, (2, 0), (8, 2), id="A_is_empty"),
        pytest.param(2, (2, 8), (0, 2), id="B_is_empty"),
        pytest.param(2, (), (), id="scalars"),
        pytest.param(2, (2, 8), (8, 2, 1), id="B_is_a_convolution"),
    ],
)
def test_shapes_that_contradict_the_config_are_refused(r, a, b):
    """A and B must be matrices of the rank that the config says; the module is named."""
    adapter = adapter_files(r=2)
    adapter.config["r"] = r
    if r == 2:
        adapter.tensors |= {lora_key(Q, "A"): tensor(*a), lora_key(Q, "B"): tensor(*b)}

    assert Q in refused(adapter)


@pytest.mark.parametrize(("alpha", "use_rslora"), [(2e6 + 2, False), (-3e6, False), (1e30, False), (2e6, True)])
def test_an_absurd_scaling_is_refused(alpha, use_rslora):
    """An alpha that would drown the base model is refused, and the module is named; a large one is not."""
    assert layout(adapter_files(lora_alpha=2048)).modules[0].alpha == 2048
    assert Q in refused(adapter_files(lora_alpha=alpha, use_rslora=use_rslora))


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern", "modules_to_save"])
def test_work_is_bounded(key):
    """Thousands of patterns or heads for thousands of tensors are refused at once, not compared for hours."""
    tensors = {
        lora_key(f"layers.{i}.q_proj", side): TensorInfo(dtype="F32", shape=shape, start=0, stop=0)
        for i in range(10_000)
        for side, shape in (("A", (2, 8)), ("B", (8, 2)))
    }
    names = [f"x{i}" for i in range(1000)]
    config = peft_config(target_modules=["q_proj"], **{key: names if key[0] == "m" else dict.fromkeys(names, 2)})

    with pytest.raises(MalformedError, match="1000 patterns and heads for 20000 tensors"):
        read_layout(AdapterConfig.parse(to_json(config)), tensors)


def test_a_pattern_changes_the_rank_that_is_expected():
    """A module that `rank_pattern` names has that rank, and alpha after `alpha_pattern`."""
    adapter = adapter_files(rank_pattern={r"0\.self_attn\.q_proj": 3}, alpha_pattern={r"0\.self_attn\.q_proj": 6})
    adapter.tensors |= {lora_key(Q, "A"): tensor(3, 8), lora_key(Q, "B"): tensor(8, 3)}
    by_path = {module.path: module for module in layout(adapter).modules}

    assert (by_path[Q].r, by_path[Q].alpha) == (3, 6)
    assert (by_path[V].r, by_path[V].alpha) == (2, 4)


@pytest.mark.parametrize(
    "prefix",
    [
        "base_model.model.",
        "",
        "module.",
        "_orig_mod.",
        "base_model.model.module.",
        "base_model.model._orig_mod.",
        "base_model.model._fsdp_wrapped_module.",
        "base_model.model._fsdp_wrapped_module._orig_mod.",
        "module.base_model.model.",
        "_orig_mod.base_model.model.",
        "_fsdp_wrapped_module.base_model.model.",
        "_orig_mod.module.base_model.model.",
    ],
)
def test_what_a_wrapper_adds_is_no_part_of_the_path(prefix):
    """Keys saved from a compiled, distributed or sharded model name the modules of the bare model."""
    adapter = adapter_files()
    adapter.tensors = {prefix + key.removeprefix(PREFIX): value for key, value in adapter.tensors.items()}

    assert [module.path for module in layout(adapter).modules] == sorted(module_paths())


def test_a_wrapper_in_the_middle_of_a_path_is_stripped():
    """A layer that was compiled on its own leaves its mark inside the path."""
    assert plain_path("model.layers.0._orig_mod.self_attn.q_proj") == Q
    assert plain_path("model.layers.0.self_attn.q_proj._orig_mod") == Q


@given(st.lists(st.sampled_from(["_orig_mod", "_fsdp_wrapped_module", "x_orig_mod", "a", ""]), max_size=6))
def test_only_whole_components_are_stripped(components):
    """Whatever stands around them, the components of wrappers go and all others stay."""
    kept = [component for component in components if component not in {"_orig_mod", "_fsdp_wrapped_module"}]

    assert plain_path(".".join(components)) == ".".join(kept)


def test_a_component_that_only_looks_like_a_wrapper_stays():
    """A module whose own name ends like a wrapper's keeps it."""
    assert plain_path("my_orig_mod.q") == "my_orig_mod.q"
    assert plain_path("encoder.module.q") == "encoder.module.q"


def test_a_module_that_is_called_module_keeps_its_name():
    """If the config names full paths that begin with `module.`, that is a part of the model and no wrapper."""
    paths = [f"module.{path}" for path in module_paths()]
    adapter = adapter_files(target_modules=paths)
    adapter.tensors = {f"{PREFIX}module.{key.removeprefix(PREFIX)}": value for key, value in adapter.tensors.items()}

    assert [module.path for module in layout(adapter).modules] == sorted(paths)


def test_the_name_of_the_adapter_in_a_key_is_read_over():
    """A key in which PEFT's adapter name was left names the same tensor."""
    adapter = adapter_files()
    adapter.tensors = {key.replace(".weight", ".default.weight"): value for key, value in adapter.tensors.items()}

    assert [module.path for module in layout(adapter).modules] == sorted(module_paths())


def test_one_parameter_under_two_keys_is_refused():
    """Two keys of the same parameter are refused, both named: which of them counts would be a guess."""
    adapter = adapter_files()
    adapter.tensors[f"{Q}.lora_A.weight"] = tensor(2, 8)
    message = refused(adapter)

    assert f"`{lora_key(Q, 'A')}`".replace("`", '"') in message
    assert f'"{Q}.lora_A.weight"' in message


HEAD = {f"{PREFIX}classifier.weight": tensor(3, 8), f"{PREFIX}classifier.bias": tensor(3)}


def test_heads_are_found():
    """The tensors of `modules_to_save` are the parameters that they replace."""
    adapter = adapter_files(modules_to_save=["classifier"])
    adapter.tensors |= HEAD

    assert layout(adapter).heads == {
        "classifier": {"weight": f"{PREFIX}classifier.weight", "bias": f"{PREFIX}classifier.bias"}
    }


def test_a_head_with_children_is_found():
    """A head that is a module of modules is named by its outermost module."""
    adapter = adapter_files(modules_to_save=["classifier"])
    adapter.tensors[f"{PREFIX}classifier.out_proj.weight"] = tensor(3, 8)

    assert layout(adapter).heads == {"classifier": {"out_proj.weight": f"{PREFIX}classifier.out_proj.weight"}}


def test_the_head_that_peft_lists_and_the_model_lacks_may_be_missing():
    """PEFT lists `classifier` and `score` for every classifier; a model has one of them."""
    adapter = adapter_files(modules_to_save=["classifier", "score"])
    adapter.tensors |= HEAD

    assert layout(adapter).heads.keys() == {"classifier"}


def test_a_head_without_tensors_is_named():
    """Any other entry of `modules_to_save` without a tensor is refused by its name."""
    adapter = adapter_files(modules_to_save=["classifier", "lm_head"])
    adapter.tensors |= HEAD

    assert "lm_head" in refused(adapter)


def test_lora_inside_a_head_is_refused():
    """A module is either replaced or adapted, never both."""
    adapter = adapter_files(modules_to_save=["v_proj"])

    assert "v_proj" in refused(adapter)


def parts(*rows, r=2, alpha=4, names=("q", "v")):
    return tuple(Slice(part=name, r=r, alpha=alpha, rows=run) for name, run in zip(names, rows, strict=True))


Q_ROWS, V_ROWS = ((0, HIDDEN),), ((2 * HIDDEN, 3 * HIDDEN),)


def test_slices_are_read():
    """The slices of the manifest cut the stacked matrices of a fused module into their parts."""
    group = SliceGroup(modules=(FUSED,), parts=parts(Q_ROWS, V_ROWS))
    (module,) = layout(fused_adapter_files(), [group]).modules

    assert [part.part for part in module.slices] == ["q", "v"]
    assert sum(part.out_features for part in module.slices) == 2 * HIDDEN


@pytest.mark.parametrize(
    "group",
    [
        pytest.param(SliceGroup(modules=(FUSED,), parts=parts(Q_ROWS, V_ROWS, r=3)), id="ranks_do_not_add_up"),
        pytest.param(SliceGroup(modules=(FUSED,), parts=parts(Q_ROWS, V_ROWS, alpha=5)), id="scaling_differs"),
        pytest.param(
            SliceGroup(modules=(FUSED,), parts=parts(Q_ROWS, V_ROWS, alpha=4.0001)), id="scaling_differs_a_little"
        ),
        pytest.param(SliceGroup(modules=(FUSED,), parts=parts(Q_ROWS, ((4, 12),))), id="rows_overlap"),
        pytest.param(SliceGroup(modules=(FUSED,), parts=parts(Q_ROWS, Q_ROWS)), id="rows_twice"),
        pytest.param(SliceGroup(modules=(FUSED,), parts=parts(Q_ROWS, ((16, 25),))), id="rows_beyond_the_module"),
        pytest.param(SliceGroup(modules=(FUSED,), parts=parts(Q_ROWS, names="q")), id="part_is_missing"),
        pytest.param(SliceGroup(modules=(FUSED,), parts=parts(Q_ROWS, V_ROWS, names="qq")), id="part_twice"),
        pytest.param(SliceGroup(modules=(FUSED, FUSED), parts=parts(Q_ROWS, V_ROWS)), id="module_twice"),
        pytest.param(SliceGroup(modules=(Q,), parts=parts(Q_ROWS, V_ROWS)), id="module_without_tensors"),
    ],
)
def test_slices_that_contradict_the_tensors_are_refused(group):
    """Slices that are not one reading of the matrices are refused, and the module is named."""
    assert group.modules[0] in refused(fused_adapter_files(), [group])


def test_runs_of_rows_are_bounded():
    """A manifest that slices many modules into many runs is refused before it is worked through."""
    runs = tuple((2 * i, 2 * i + 1) for i in range(1000))
    group = SliceGroup(modules=tuple(f"x{i}" for i in range(300)), parts=parts(runs, names="q"))

    assert "300000 runs" in refused(fused_adapter_files(), [group])


def test_a_module_in_two_groups_is_refused():
    """A module is sliced in one way."""
    group = SliceGroup(modules=(FUSED,), parts=parts(Q_ROWS, V_ROWS))

    assert "twice" in refused(fused_adapter_files(), [group, group])


def test_slices_scale_like_peft_with_rank_stabilised_lora():
    """With `use_rslora` the parts' own alpha over the root of their own rank must be the scaling that PEFT computes."""
    adapter = fused_adapter_files()
    adapter.config |= {"use_rslora": True, "r": 4, "lora_alpha": 8}
    right = SliceGroup(modules=(FUSED,), parts=parts(Q_ROWS, V_ROWS, alpha=8 / 2**0.5))
    wrong = SliceGroup(modules=(FUSED,), parts=parts(Q_ROWS, V_ROWS, alpha=4))

    assert layout(adapter, [right]).modules[0].slices == right.parts
    assert FUSED in refused(adapter, [wrong])
