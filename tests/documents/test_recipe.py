"""The recipe: schema and parser say the same of every vector, and of every vector with one key changed."""

import dataclasses
import json
import time
import tomllib
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from json_places import places, replaced, without

from lora_hub.documents import recipe as documents
from lora_hub.documents import schemas
from lora_hub.documents.recipe import MAX_RECIPE, LayerWeights, Recipe, RecipeInput, default_id, is_id
from lora_hub.errors import DocumentError, UnsupportedSchemaError

VECTORS = Path(__file__).parents[1] / "vectors" / "v1" / "recipe"
VALID = sorted((VECTORS / "valid").glob("*.toml"))
INVALID = sorted((VECTORS / "invalid").glob("*.toml"))
SCHEMA = json.loads(schemas.schema("recipe"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

# What JSON Schema cannot say: an id stands once and is one of the inputs, a selector is one, a text can be printed.
BEYOND_A_SCHEMA = {
    "id_stands_twice",
    "layer_names_an_unknown_input",
    "match_has_a_control_character",
    "reference_has_a_control_character",
    "reference_selector_is_no_version",
    "weight_is_nan",
}

# Where the error points; "" is the document as a whole.
CONTEXTS = {
    "dtype_is_unknown": "output.dtype",
    "id_has_a_space": "inputs[0].id",
    "id_stands_twice": "inputs[1].id",
    "input_is_a_string": "inputs",
    "inputs_are_empty": "inputs",
    "inputs_are_missing": "inputs",
    "inputs_are_too_many": "inputs",
    "key_is_unknown": "base",
    "key_of_an_input_is_misspelt": "inputs[0].wieght",
    "key_of_the_output_is_unknown": "output.format",
    "layer_has_no_weights": "layers[1].weights",
    "layer_names_an_unknown_input": "layers[0].weights.code",
    "layer_weight_is_a_string": "layers[0].weights.chat",
    "layers_are_a_table": "layers",
    "layers_are_too_many": "layers",
    "match_has_a_control_character": "layers[1].match",
    "match_is_empty": "layers[1].match",
    "match_is_too_long": "layers[1].match",
    "parameter_is_a_string": "method.density",
    "parameter_is_upper_case": "method.Density",
    "parameters_are_too_many": "method.p9",
    "rank_has_no_share": "output.rank",
    "rank_is_unknown": "output.rank",
    "rank_is_zero": "output.rank",
    "reference_has_a_control_character": "inputs[1].reference",
    "reference_has_no_org": "inputs[0].reference",
    "reference_is_missing": "inputs[0].reference",
    "reference_is_too_long": "inputs[1].reference",
    "reference_selector_is_no_version": "inputs[0].reference",
    "rule_has_a_space": "method.rule",
    "rule_is_a_list": "method.rule",
    "schema_is_missing": "schema",
    "schema_is_newer": "schema",
    "schema_is_that_of_a_lock_file": "schema",
    "seed_is_a_fraction": "method.seed",
    "seed_is_negative": "method.seed",
    "seed_is_too_large": "method.seed",
    "space_is_unknown": "method.space",
    "toml_is_cut_off": "",
    "weight_is_a_string": "inputs[0].weight",
    "weight_is_infinite": "inputs[0].weight",
    "weight_is_nan": "inputs[0].weight",
    "weight_is_too_large": "inputs[0].weight",
    "weight_is_true": "inputs[0].weight",
    "weights_are_unknown": "output.weights",
}

REPLACEMENTS = [None, True, -1, 0, 1, 1.5, 2**70, "", "x", "org/task", "1.0.0", [], ["x"], [1], {}, {"x": 1}]


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def values(path):
    return tomllib.loads(path.read_text(encoding="utf-8"))


def passes_parser(document) -> bool:
    try:
        Recipe.from_json(document)
    except DocumentError:
        return False
    return True


def agree(document) -> bool:
    return VALIDATOR.is_valid(document) == passes_parser(document)


@named(VALID)
def test_a_valid_vector_passes_the_schema(path):
    """The schema accepts every valid vector."""
    assert VALIDATOR.is_valid(values(path))


@named(VALID)
def test_a_valid_vector_round_trips(path):
    """A recipe reads the same from what it is recorded as, and that passes the schema as well."""
    recipe = Recipe.parse(path.read_bytes())
    recorded = json.loads(json.dumps(recipe.to_json()))

    assert Recipe.from_json(recorded) == recipe
    assert Recipe.from_json(recorded).to_json() == recorded
    assert VALIDATOR.is_valid(recorded)


@named(INVALID)
def test_an_invalid_vector_is_refused_where_its_defect_is(path):
    """The parser refuses every invalid vector, points at the offending key, and says where to look."""
    with pytest.raises(DocumentError) as caught:
        Recipe.parse(path.read_bytes())

    assert caught.value.context == CONTEXTS[path.stem]
    assert caught.value.exit_code == 8
    assert "lora-hub schema recipe" in caught.value.hint or isinstance(caught.value, UnsupportedSchemaError)


@named([path for path in INVALID if path.stem != "toml_is_cut_off"])
def test_an_invalid_vector_fails_the_schema(path):
    """The schema refuses every invalid vector, but for what no schema can say."""
    assert VALIDATOR.is_valid(values(path)) == (path.stem in BEYOND_A_SCHEMA)


def test_every_vector_has_an_expectation():
    """No invalid vector is without a context here, and none here is without a vector."""
    assert {path.stem for path in INVALID} == CONTEXTS.keys()


def test_the_schema_is_a_schema():
    """The schema itself is valid under draft 2020-12, and says which major version it is of."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    assert SCHEMA["properties"]["schema"]["const"] == documents.SCHEMA


def test_the_schema_describes_everything():
    """Whatever a recipe may hold has a description."""
    undescribed = [
        place
        for place in places(SCHEMA)
        if len(place) > 1 and place[-2] == "properties" and "description" not in _at(SCHEMA, place)
    ]

    assert undescribed == []


def test_the_schema_names_what_the_recipe_has():
    """What the dataclasses hold is what the schema has places for."""
    properties = SCHEMA["properties"]
    spread = properties["method"]["properties"].keys() | properties["output"]["properties"].keys()

    assert spread | {"inputs", "layers", "parameters"} == {field.name for field in dataclasses.fields(Recipe)}
    assert properties["inputs"]["items"]["properties"].keys() == {f.name for f in dataclasses.fields(RecipeInput)}
    assert properties["layers"]["items"]["properties"].keys() == {f.name for f in dataclasses.fields(LayerWeights)}


@named(VALID)
def test_schema_and_parser_agree_when_one_key_is_deleted(path):
    """With any one key or item deleted, schema and parser both accept the document or both refuse it."""
    document = values(path)
    tried = [place for place in places(document) if not _names_an_input(place)]
    disagreements = [place for place in tried if not agree(without(document, place))]

    assert disagreements == []


@pytest.mark.parametrize("value", REPLACEMENTS, ids=repr)
@named([path for path in VALID if path.stem in {"full", "rank_is_a_number"}])
def test_schema_and_parser_agree_when_one_value_is_replaced(path, value):
    """With any one value replaced by another kind of value, schema and parser both accept or both refuse."""
    document = values(path)
    tried = [place for place in places(document) if not _names_an_input(place)]
    disagreements = [place for place in tried if not agree(replaced(document, place, value))]

    assert disagreements == []


def test_what_is_left_out_is_written_down():
    """What a recipe leaves out is recorded all the same: it must not change with a default of a later version."""
    recorded = Recipe.parse((VECTORS / "valid" / "least.toml").read_bytes()).to_json()

    assert recorded["inputs"] == [{"reference": "org/sql@1", "id": "sql", "weight": 1.0}]
    assert recorded["method"] == {"rule": "linear", "seed": 0}
    assert recorded["output"] == {"rank": "exact", "weights": "given"}


def test_an_integer_is_the_same_weight():
    """1 and 1.0, 0 and -0.0 are one weight: they make one recipe."""
    content = (VECTORS / "valid" / "weights_are_integers.toml").read_bytes()
    zeros = content.replace(b"= -2", b"= -0.0")

    assert json.dumps(Recipe.parse(content).to_json()) == json.dumps(
        Recipe.parse(content.replace(b"= 1\n", b"= 1.0\n")).to_json()
    )
    assert b"-0.0" in zeros
    assert "-0.0" not in json.dumps(Recipe.parse(zeros).to_json())


def test_a_recipe_is_bounded():
    """More bytes than a recipe may have are refused before they are parsed."""
    content = (VECTORS / "valid" / "least.toml").read_bytes().ljust(MAX_RECIPE)
    Recipe.parse(content)

    with pytest.raises(DocumentError, match="bytes"):
        Recipe.parse(content + b" ")


def test_what_no_manifest_could_hold_is_refused():
    """A small file may say more than a manifest can record: that is said before anything is composed."""
    inputs = "".join(f'[[inputs]]\nreference="org/i{i}"\n' for i in range(60))
    layer = '[[layers]]\nmatch="*"\nweights={' + ",".join(f"i{i}=1" for i in range(60)) + "}\n"
    content = f'schema = "lora-hub/recipe/v1"\n{inputs}{layer * 140}'.encode()

    assert len(content) < MAX_RECIPE
    with pytest.raises(DocumentError) as caught:
        Recipe.parse(content)
    assert caught.value.context == "layers"


def test_a_key_of_very_many_parts_takes_no_time():
    """What would take the parser of TOML for ever is refused before."""
    started = time.process_time()
    with pytest.raises(DocumentError):
        Recipe.parse(b"a." * 30_000 + b"a = 1")

    assert time.process_time() - started < 5


@given(st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_read_or_refused(content):
    """No bytes whatsoever raise anything but an error of ours."""
    with pytest.raises(DocumentError):
        Recipe.parse(content)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("org/sql@^1", "sql"),
        ("./sql", "sql"),
        ("../my adapters/sql v2/", "sql-v2"),
        ("/srv/.hidden", "hidden"),
        ("/", "adapter"),
        (f"./{'x' * 100}", "x" * 60),
    ],
)
def test_an_input_has_a_name_anyhow(reference, expected):
    """What has no id is called after its task or its directory, as far as an id may be so."""
    assert default_id(reference) == expected
    assert is_id(default_id(reference))


def test_of_two_that_are_called_alike_the_second_has_a_number():
    """Where ids are left out, no two inputs get the same one, and those that are given stay."""
    inputs = "".join(f'[[inputs]]\nreference = "{one}/sql"\n' for one in ("org", "other", "./third"))
    recipe = Recipe.parse(f'schema = "lora-hub/recipe/v1"\n{inputs}'.encode())

    assert [one.id for one in recipe.inputs] == ["sql", "sql-2", "sql-3"]


@given(st.text(min_size=1).map("./{}".format))
def test_every_directory_has_an_id(reference):
    """Whatever a directory is called, an id can be made of it."""
    assert is_id(default_id(reference))


def test_layers_are_chosen_by_their_path():
    """An entry of the layers covers the modules whose whole path its pattern matches."""
    layer = LayerWeights(match="*.layers.[0-3].*", weights={"sql": 0.9})

    assert layer.covers("model.layers.3.self_attn.q_proj")
    assert not layer.covers("model.layers.13.self_attn.q_proj")


def _names_an_input(place):
    """Whether what stands there says who is meant by an id, or who there is: only the parser knows all of them."""
    match place:
        case ("inputs", _) | ("inputs", _, "id") | ("layers", _, "match") | ("layers", _, "weights", *_):
            return True
    return False


def _at(node, place):
    for key in place:
        node = node[key]
    return node
