"""`adapter_config.json`: every key is implemented, known to be inert, or refused by name."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
from adapter_files import peft_config, to_json
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_hub.documents.adapter_config import (
    IMPLEMENTED,
    INERT,
    MAX_CONFIG,
    MAX_ENTRIES,
    REQUIRED,
    AdapterConfig,
    scaling,
)
from lora_hub.documents.module_names import ModulePattern
from lora_hub.errors import DocumentError, MalformedError

# For each key that changes the mathematics, values that PEFT knows and we do not implement.
FOREIGN = {
    "bias": ["all", "lora_only", 1],
    "use_dora": [True, 1, "true"],
    "use_qalora": [True],
    "lora_bias": [True],
    "ensure_weight_tying": [True],
    "target_parameters": [["experts.gate_up_proj"], "experts"],
    "trainable_token_indices": [[1, 2], {"embed_tokens": [0]}],
    "layer_replication": [[[0, 4], [2, 5]]],
    "alora_invocation_tokens": [[1, 2, 3]],
    "arrow_config": [{"top_k": 3}],
    "use_bdlora": [{"target_modules_bd_a": ["q_proj"]}, True],
    "kasa_config": [{"beta": 0.1}],
    "velora_config": [{"rank": 1}],
    "monteclora_config": [{"samples": 2}],
    "megatron_config": [{"tensor_model_parallel_size": 2}],
    "megatron_core": ["os", "subprocess", ["megatron.core"]],
    "enable_lora": [[True, False, True]],
    "init_lora_weights": ["pissa", "pissa_niter_16", "olora", "corda", "loftq", "lora_ga", 1],
}
PATH = "model.layers.1.self_attn.q_proj"


def parse(**changes) -> AdapterConfig:
    return AdapterConfig.parse(to_json(peft_config(**changes)))


def test_what_peft_writes_is_read():
    """A plain LoRA config reads as rank, alpha, targets and base."""
    config = parse()

    assert (config.r, config.lora_alpha, config.target_modules) == (2, 4, ("q_proj", "v_proj"))
    assert (config.base_model_name_or_path, config.task_type) == ("org/base", "CAUSAL_LM")
    assert config.accepted_unknown == ()


def test_every_key_has_one_meaning():
    """No key is both implemented and inert, or both inert and required."""
    assert not IMPLEMENTED & INERT
    assert not (IMPLEMENTED | INERT) & REQUIRED.keys()


def test_every_required_key_is_tried():
    """Each key that changes the mathematics has a refused value in this file."""
    assert FOREIGN.keys() == REQUIRED.keys()


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in FOREIGN.items() for value in values])
def test_foreign_mathematics_is_refused_by_name(key, value):
    """A key that changes the mathematics is refused at any value that lora-hub does not implement, and named."""
    with pytest.raises(MalformedError, match=f'"{key}"') as caught:
        parse(**{key: value})

    assert caught.value.exit_code == 8
    assert caught.value.hint


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REQUIRED.items() for value in values])
def test_the_implemented_value_of_a_required_key_is_accepted(key, value):
    """The value at which a key changes nothing is accepted."""
    assert parse(**{key: value}).accepted_unknown == ()


@pytest.mark.parametrize("value", [None, False, 16, "x", {"a": [1]}], ids=repr)
@pytest.mark.parametrize("key", sorted(INERT))
def test_an_inert_key_is_accepted_at_any_value(key, value):
    """A key that changes nothing at inference is accepted, and changes nothing."""
    assert parse(**{key: value}) == parse()


@pytest.mark.parametrize(
    ("key", "inner"),
    [
        ("corda_config", {"cache_file": "/home/user/.ssh/id_rsa"}),
        ("corda_config", {"covariance_file": "x.pt", "use_float16_for_covariance": False}),
        ("lora_ga_config", {"some_new_file": "\x1b[2J"}),
    ],
)
def test_a_file_that_is_named_is_refused(key, inner):
    """The parameters of an initialisation may name a file that PEFT unpickles: refused, and said which."""
    with pytest.raises(MalformedError, match=key) as caught:
        parse(**{key: inner})

    assert str(caught.value).isprintable()


def test_an_initialisation_without_files_is_inert():
    """The same parameters without a file change nothing."""
    assert parse(corda_config={"cache_file": None, "covariance_file": "", "corda_method": "ipm"}) == parse()


@pytest.mark.parametrize("value", [None, False, "", [], {}], ids=repr)
def test_an_unknown_empty_key_is_accepted_and_listed(value):
    """A key of a newer PEFT at its empty default is accepted, and never silently."""
    assert parse(lora_gain=value, another=value).accepted_unknown == ("another", "lora_gain")


@pytest.mark.parametrize("value", [True, 0, 1, 0.0, "x", [0], {"a": None}], ids=repr)
def test_an_unknown_key_with_a_value_is_refused_by_name(value):
    """A key of a newer PEFT that is set might change the mathematics, so it is refused."""
    with pytest.raises(DocumentError, match="lora_gain") as caught:
        parse(lora_gain=value)

    assert caught.value.context == "lora_gain"


def test_an_unknown_key_cannot_move_the_cursor():
    """The name of an unknown key is shown escaped."""
    with pytest.raises(DocumentError) as caught:
        parse(**{"\x1b[2Jx": 1})

    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("peft_type", "IA3"),
        ("peft_type", None),
        ("peft_type", ["LORA"]),
        ("r", 0),
        ("r", -8),
        ("r", "8"),
        ("r", 8.5),
        ("r", True),
        ("r", 65_537),
        ("lora_alpha", "16"),
        ("lora_alpha", True),
        ("lora_alpha", [16]),
        ("use_rslora", 1),
        ("use_rslora", "false"),
        ("lora_dropout", 1.5),
        ("lora_dropout", -0.1),
        ("lora_dropout", "0"),
        ("target_modules", 3),
        ("target_modules", ["q_proj", 3]),
        ("target_modules", {"q_proj": True}),
        ("exclude_modules", 3),
        ("modules_to_save", "classifier"),
        ("modules_to_save", [None]),
        ("modules_to_save", ["x"] * (MAX_ENTRIES + 1)),
        ("layers_to_transform", [0] * (MAX_ENTRIES + 1)),
        ("layers_to_transform", [0, True]),
        ("layers_to_transform", -1),
        ("layers_pattern", ["layers"] * 17),
        ("rank_pattern", ["q_proj"]),
        ("alpha_pattern", "q_proj"),
        ("task_type", 1),
        ("base_model_name_or_path", ["gpt2"]),
        ("revision", 7),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_where_it_stands(key, value):
    """A key of the wrong type or out of range is refused, and the error points at it."""
    with pytest.raises(DocumentError) as caught:
        parse(**{key: value})

    assert caught.value.context == key


@pytest.mark.parametrize(
    ("pattern", "entry", "context"),
    [
        ("rank_pattern", {"q_proj": 0}, "rank_pattern.q_proj"),
        ("rank_pattern", {"q_proj": "8"}, "rank_pattern.q_proj"),
        ("rank_pattern", {"q_proj": None}, "rank_pattern.q_proj"),
        ("alpha_pattern", {"q_proj": "8"}, "alpha_pattern.q_proj"),
        ("alpha_pattern", {"q_proj": False}, "alpha_pattern.q_proj"),
    ],
)
def test_a_pattern_maps_to_numbers(pattern, entry, context):
    """A pattern with anything but a rank or an alpha is refused, and the error names the key."""
    with pytest.raises(DocumentError) as caught:
        parse(**{pattern: entry})

    assert caught.value.context == context


@pytest.mark.parametrize("key", ["lora_alpha", "r", "base_model_name_or_path"])
@pytest.mark.parametrize(
    "number", ["9" * 5000, "NaN", "-Infinity", "1e999"], ids=["5000 digits", "nan", "inf", "1e999"]
)
def test_a_number_that_is_none_is_refused(key, number):
    """What Python would read as a number, and no other reader would, is refused wherever it stands."""
    with pytest.raises(DocumentError):
        AdapterConfig.parse(b'{"peft_type": "LORA", "%s": %s}' % (key.encode(), number.encode()))


def test_a_library_in_the_config_is_not_imported():
    """PEFT's `auto_mapping` names a library and a class; here nothing is imported because a file says so."""
    parse(auto_mapping={"parent_library": "antigravity", "base_model_class": "x"})

    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("number", [10**400, -(10**400), 10**309], ids=["huge", "negative", "309 digits"])
@pytest.mark.parametrize("key", ["lora_alpha", "alpha_pattern"])
def test_an_alpha_beyond_every_float_is_refused(key, number):
    """An integer that no float can hold is refused as malformed, before anything is divided by it."""
    with pytest.raises(DocumentError, match=key):
        parse(**{key: {"q_proj": number} if key == "alpha_pattern" else number})


@pytest.mark.parametrize(
    "key",
    sorted(IMPLEMENTED - {"peft_type", "r", "lora_alpha", "target_modules", "base_model_name_or_path", "task_type"}),
)
def test_a_null_reads_as_the_default(key):
    """Older writers leave null where newer ones write the default."""
    written = parse()

    assert parse(**{key: None}) == written


def test_r_and_alpha_default_to_those_of_peft():
    """Where r and alpha are null or missing, both are 8."""
    config = AdapterConfig.parse(b'{"peft_type": "LORA", "lora_alpha": null}')

    assert (config.r, config.lora_alpha) == (8, 8)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"peft_type": "LORA", "r": 1, "r": 2}', b'{"r": 8}'], ids=repr)
def test_what_is_no_config_is_refused(content):
    """Anything but a JSON object of the type LORA is refused."""
    with pytest.raises(DocumentError):
        AdapterConfig.parse(content)


def test_a_config_is_bounded():
    """More bytes than a config may have are refused before they are parsed."""
    with pytest.raises(DocumentError, match="at most"):
        AdapterConfig.parse(b" " * (MAX_CONFIG + 1))


def test_the_first_matching_pattern_wins():
    """Of several patterns that match a module, the first in the file decides, as in PEFT."""
    content = b'{"peft_type": "LORA", "r": 2, "rank_pattern": {"self_attn.q_proj": 4, "q_proj": 8, "v_proj": 16}}'
    config = AdapterConfig.parse(content)

    assert config.rank_of(PATH) == 4
    assert config.rank_of("x.q_proj") == 8
    assert config.rank_of("x.k_proj") == 2


def test_alpha_has_patterns_of_its_own():
    """A pattern for alpha changes alpha and nothing else."""
    config = parse(alpha_pattern={"q_proj": 32.5})

    assert (config.alpha_of(PATH), config.rank_of(PATH)) == (32.5, 2)
    assert config.alpha_of("x.v_proj") == 4


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"target_modules": ["q_proj"]}, {"a.q_proj", "b.q_proj", "q_proj"}),
        ({"target_modules": ["a.q_proj"]}, {"a.q_proj"}),
        ({"target_modules": ["q_proj"], "exclude_modules": ["b.q_proj"]}, {"a.q_proj", "q_proj"}),
        ({"target_modules": ["q_proj", "score"], "modules_to_save": ["score"]}, {"a.q_proj", "b.q_proj", "q_proj"}),
        ({"target_modules": []}, set()),
        ({"target_modules": "all-linear"}, None),
        ({"target_modules": r".*\.q_proj"}, None),
        ({"target_modules": None}, None),
        ({"target_modules": ["q_proj"], "exclude_modules": "b.*"}, None),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0]}, {"q_proj"}),
        ({"target_modules": ["q_proj"], "layers_to_transform": 0}, {"q_proj"}),
        ({"target_modules": ["q_proj"], "layers_pattern": "layers"}, {"a.q_proj", "b.q_proj", "q_proj"}),
        ({"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": "(layers|h)"}, None),
    ],
)
def test_targets(changes, expected):
    """A list of names says which modules are targeted; where a rule decides, only the tensors can tell."""
    found = parse(**changes).targets(["a.q_proj", "b.q_proj", "q_proj", "xq_proj", "v_proj", "score"])

    assert found == expected


@pytest.mark.parametrize(
    ("r", "alpha", "use_rslora", "expected"),
    [(8, 16, False, 2), (8, 4, False, 0.5), (16, 16, True, 4), (2, 3, True, 3 / math.sqrt(2)), (3, 1, False, 1 / 3)],
)
def test_scaling(r, alpha, use_rslora, expected):
    """Scaling is alpha/r, or alpha over the root of r with rank-stabilised LoRA."""
    assert scaling(r, alpha, use_rslora=use_rslora) == expected


NAMES = st.lists(st.text("abc_", min_size=1, max_size=4), unique=True, max_size=4)


@st.composite
def configs(draw):
    """A config as `save_adapter` makes them: full names, one pattern for each."""
    names = draw(NAMES)
    patterns = [ModulePattern.exactly(f"x.{name}") for name in sorted(names)]
    alphas = st.integers(1, 99) | st.floats(0.5, 99)
    return AdapterConfig(
        r=draw(st.integers(1, 64)),
        lora_alpha=draw(alphas),
        use_rslora=draw(st.booleans()),
        lora_dropout=draw(st.sampled_from([0, 0.1, 1])),
        rank_pattern=tuple((pattern, draw(st.integers(1, 64))) for pattern in patterns),
        alpha_pattern=tuple((pattern, draw(alphas)) for pattern in patterns[:1]),
        target_modules=tuple(sorted(names)),
        exclude_modules=draw(st.sampled_from([None, ("x.a",), "x.*"])),
        modules_to_save=draw(st.sampled_from([(), ("classifier", "score")])),
        task_type=draw(st.sampled_from([None, "SEQ_CLS"])),
        base_model_name_or_path=draw(st.sampled_from([None, "org/base", "/somewhere/models"])),
        revision=draw(st.sampled_from([None, "main"])),
    )


@given(configs())
@settings(deadline=None)
def test_what_is_written_reads_as_it_was(config):
    """A config that is printed and parsed again is the same config, and prints as the same bytes."""
    again = AdapterConfig.parse(config.to_bytes())

    assert again == config
    assert again.to_bytes() == config.to_bytes()


def test_the_order_of_names_changes_no_byte():
    """Targets and heads are written sorted, whatever order a set gave them."""
    one, two = (
        parse(target_modules=names, modules_to_save=names) for names in (["q_proj", "v_proj"], ["v_proj", "q_proj"])
    )

    assert one.to_bytes() == two.to_bytes()


def test_a_pattern_for_one_path_leaves_longer_paths_alone():
    """Where one adapted path is the end of another, each keeps its own alpha and rank after writing and reading."""
    paths = ("model.layers.0.q_proj", "vision.model.layers.0.q_proj")
    config = AdapterConfig(
        r=2,
        lora_alpha=4,
        target_modules=paths,
        alpha_pattern=tuple((ModulePattern.exactly(path), alpha) for path, alpha in zip(paths, (16, 8), strict=True)),
        rank_pattern=tuple((ModulePattern.exactly(path), r) for path, r in zip(paths, (5, 3), strict=True)),
    )
    again = AdapterConfig.parse(config.to_bytes())

    assert [again.alpha_of(path) for path in paths] == [16, 8]
    assert [again.rank_of(path) for path in paths] == [5, 3]


def test_we_write_no_key_of_our_own():
    """PEFT before 0.14 fails on keys that it does not know, so we write none but PEFT's, and no base but a name."""
    document = json.loads(parse().to_bytes())

    assert document.keys() <= IMPLEMENTED | INERT | REQUIRED.keys()
    assert document["peft_type"] == "LORA"


ENTRIES = st.lists(st.text("ab.", max_size=4), max_size=3)


@given(st.lists(st.text("ab.", max_size=8), max_size=6), ENTRIES, ENTRIES, ENTRIES)
@settings(deadline=None, max_examples=300)
def test_a_target_is_named_and_neither_excluded_nor_in_a_head(paths, targeted, excluded, heads):
    """Whatever the dots, the targets are the paths that an entry names, outside of what is excluded or replaced."""
    config = AdapterConfig(
        r=2,
        lora_alpha=4,
        target_modules=tuple(targeted),
        exclude_modules=tuple(excluded),
        modules_to_save=tuple(heads),
    )
    expected = {
        path
        for path in paths
        if any(f".{path}".endswith(f".{entry}") for entry in targeted)
        and not any(f".{path}".endswith(f".{entry}") for entry in excluded)
        and not any(f".{head}." in f".{path}." for head in heads)
    }

    assert config.targets(paths) == expected


@pytest.fixture(scope="module")
def peft():
    """The installed PEFT, which is the oracle."""
    import peft

    return peft


def test_every_field_of_peft_is_classified(peft):
    """A field of PEFT's LoraConfig that is on none of our lists would be a field that nobody thought about."""
    fields = peft.LoraConfig.__dataclass_fields__.keys() | peft.LoraConfig().to_dict().keys()

    assert fields - IMPLEMENTED - INERT - REQUIRED.keys() == set()


def test_the_defaults_of_peft_are_accepted(peft, tmp_path):
    """What PEFT's own defaults write is read without an unknown key."""
    written = peft.LoraConfig(target_modules=["q_proj", "v_proj"])
    written.save_pretrained(tmp_path)
    config = AdapterConfig.parse((tmp_path / "adapter_config.json").read_bytes())

    assert config.accepted_unknown == ()
    assert (config.r, config.lora_alpha) == (written.r, written.lora_alpha)
    assert config.use_rslora is written.use_rslora


def test_peft_reads_what_we_write(peft, tmp_path):
    """PEFT's LoraConfig loads our bytes, with the same meaning and no warning."""
    config = parse(rank_pattern={r"0\.q_proj": 4}, alpha_pattern={"v_proj": 9.5}, use_rslora=True)
    (tmp_path / "adapter_config.json").write_bytes(config.to_bytes())
    loaded = peft.LoraConfig.from_pretrained(tmp_path)

    assert (loaded.r, loaded.lora_alpha, loaded.use_rslora) == (config.r, config.lora_alpha, True)
    assert (loaded.rank_pattern, loaded.alpha_pattern) == ({r"0\.q_proj": 4}, {"v_proj": 9.5})
    assert loaded.target_modules == {"q_proj", "v_proj"}


LLAMA_PATHS = [
    f"{prefix}layers.{layer}.{name}"
    for prefix in ("model.", "", "x.0.")
    for layer in (0, 1, 11)
    for name in ("self_attn.q_proj", "mlp.experts.1.q_proj", "score.q_proj", "score", "pre_score")
]


@pytest.mark.parametrize("layers", [None, [], [1], 1, [0, 11], [7]])
@pytest.mark.parametrize("pattern", [None, [], "layers", ["experts", "layers"], ["h"]])
@pytest.mark.parametrize(
    "names",
    [
        {"target_modules": ["q_proj"]},
        {"target_modules": ["self_attn.q_proj", "model.layers.0.score.q_proj"]},
        {"target_modules": ["q_proj", "score"], "modules_to_save": ["score"]},
        {"target_modules": ["q_proj"], "exclude_modules": ["experts.1.q_proj", "layers.1.self_attn.q_proj"]},
    ],
    ids=str,
)
def test_targets_are_those_of_peft(layers, pattern, names):
    """What a list of names targets, with layers, exclusions and heads, is what PEFT's own rule says."""
    from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

    changes = {**names, "layers_to_transform": layers, "layers_pattern": pattern}
    theirs = SimpleNamespace(**{"exclude_modules": None, "modules_to_save": None, **changes})
    found = {path: check_target_module_exists(theirs, path) for path in LLAMA_PATHS}
    expected = {path for path, match in found.items() if match and not isinstance(match, _ExcludedModule)}

    assert parse(**changes).targets(LLAMA_PATHS) == expected
