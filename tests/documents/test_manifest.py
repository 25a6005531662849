"""The manifest: schema and parser say the same of every vector, and of every vector with one key changed."""

import dataclasses
import json
from pathlib import Path

import jsonschema
import pytest
from json_places import places, replaced, without

from lora_hub.documents import golden, lineage, schemas
from lora_hub.documents import manifest as documents
from lora_hub.documents.manifest import MAX_MANIFEST, Manifest
from lora_hub.errors import DocumentError, UnsupportedSchemaError

VECTORS = Path(__file__).parents[1] / "vectors" / "v1" / "manifest"
VALID = sorted((VECTORS / "valid").glob("*.json"))
INVALID = sorted((VECTORS / "invalid").glob("*.json"))
SCHEMA = json.loads(schemas.schema("manifest"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

# Valid, but not the bytes that we would write: unknown keys are not kept, nor is another order or indent.
NOT_CANONICAL = {"bytes_are_not_canonical", "fingerprint_scheme_is_newer", "keys_are_unknown"}

# What JSON Schema cannot say: runs rise, a key stands once, a number is finite, a string is Unicode.
BEYOND_A_SCHEMA = {
    "alpha_is_nan",
    "fingerprint_layers_are_without_number",
    "fingerprint_layers_overlap",
    "fingerprint_module_stands_twice",
    "fingerprint_offset_is_beyond_the_inputs",
    "fingerprint_offsets_are_too_few",
    "fingerprint_values_are_cut_off",
    "fingerprint_values_are_too_few",
    "fingerprint_values_are_too_many",
    "fingerprint_values_hold_infinity",
    "fingerprint_values_hold_nan",
    "license_is_half_a_surrogate_pair",
    "lineage_id_stands_twice",
    "name_stands_twice",
    "rows_fall",
    "rows_hold_an_empty_run",
    "rows_overlap",
    "shard_stands_twice",
}

# Where the error points; "" is the document as a whole.
CONTEXTS = {
    "alpha_is_a_string": "lora.alpha",
    "alpha_is_infinite": "",
    "alpha_is_missing": "lora.alpha",
    "alpha_is_nan": "",
    "base_is_a_string": "base",
    "base_is_missing": "base",
    "base_model_type_is_a_list": "base.model_type",
    "base_repo_is_a_number": "base.repo",
    "base_revision_is_a_number": "base.revision",
    "created_is_a_number": "created",
    "created_is_local_time": "created",
    "created_is_missing": "created",
    "dtype_is_missing": "lora.dtype",
    "file_name_escapes_root": "files[0].name",
    "file_name_is_a_pickle": "files[1].name",
    "file_name_is_missing": "files[0].name",
    "files_are_in_another_order": "files",
    "files_are_missing": "files",
    "files_has_one": "files",
    "files_has_one_twice": "files",
    "files_has_three": "files",
    "files_holds_a_string": "files",
    "files_is_an_object": "files",
    "fingerprint_dtype_is_int8": "base.fingerprint.tensors[0].dtype",
    "fingerprint_is_a_string": "base.fingerprint",
    "fingerprint_layers_are_without_number": "base.fingerprint.tensors[1].layers",
    "fingerprint_layers_have_no_star": "base.fingerprint.tensors[0].module",
    "fingerprint_layers_overlap": "base.fingerprint.tensors[1].layers",
    "fingerprint_module_has_a_slash": "base.fingerprint.tensors[0].module",
    "fingerprint_module_has_two_stars": "base.fingerprint.tensors[1].module",
    "fingerprint_module_stands_twice": "base.fingerprint.tensors",
    "fingerprint_offset_is_beyond_the_inputs": "base.fingerprint.tensors[1].offsets",
    "fingerprint_offsets_are_too_few": "base.fingerprint.tensors[1].offsets",
    "fingerprint_scheme_is_missing": "base.fingerprint.scheme",
    "fingerprint_shape_is_flat": "base.fingerprint.tensors[0].shape",
    "fingerprint_shape_is_too_large": "base.fingerprint.tensors[0].shape",
    "fingerprint_star_has_no_layers": "base.fingerprint.tensors[1].module",
    "fingerprint_star_is_half_a_component": "base.fingerprint.tensors[1].module",
    "fingerprint_tensors_are_empty": "base.fingerprint.tensors",
    "fingerprint_values_are_cut_off": "base.fingerprint.tensors[0].values",
    "fingerprint_values_are_empty": "base.fingerprint.tensors[0].values",
    "fingerprint_values_are_not_base64": "base.fingerprint.tensors[0].values",
    "fingerprint_values_are_too_few": "base.fingerprint.tensors[1].values",
    "fingerprint_values_are_too_many": "base.fingerprint.tensors[0].values",
    "fingerprint_values_hold_infinity": "base.fingerprint.tensors[1].values",
    "fingerprint_values_hold_nan": "base.fingerprint.tensors[0].values",
    "golden_dtype_is_unknown": "golden.dtype",
    "golden_has_no_case": "golden.cases",
    "golden_has_too_many_cases": "golden.cases",
    "golden_has_too_many_tokens": "golden.cases[0].tokens",
    "golden_has_too_many_values": "golden.cases[0].values",
    "golden_is_a_list": "golden",
    "golden_output_is_unknown": "golden.output",
    "golden_scale_is_zero": "golden.cases[1].scale",
    "golden_token_is_a_word": "golden.cases[0].tokens",
    "golden_token_is_negative": "golden.cases[0].tokens",
    "golden_value_is_a_pair": "golden.cases[0].values",
    "golden_value_is_too_large": "golden.cases[0].values",
    "json_has_a_trailing_comma": "",
    "json_is_an_array": "",
    "json_is_cut_off": "",
    "json_is_empty": "",
    "json_is_not_utf8": "",
    "json_is_too_deep": "",
    "license_is_a_number": "license",
    "license_is_half_a_surrogate_pair": "",
    "lineage_base_digest_is_md5": "lineage.base.digest",
    "lineage_digest_has_no_prefix": "lineage.inputs[1].digest",
    "lineage_has_no_recipe": "lineage.recipe",
    "lineage_has_too_many_inputs": "lineage.inputs",
    "lineage_id_escapes_root": "lineage.inputs[2].id",
    "lineage_id_stands_twice": "lineage.inputs",
    "lineage_is_a_list": "lineage",
    "lineage_kind_is_upper_case": "lineage.kind",
    "lineage_measured_has_a_long_text": "lineage.measured.worst_module",
    "lineage_measured_is_a_list": "lineage.measured.worst_module",
    "lineage_measured_name_has_a_control_character": "lineage.measured",
    "lineage_name_has_a_control_character": "lineage.inputs[0].name",
    "lineage_reproducible_is_unknown": "lineage.reproducible",
    "lineage_signers_is_a_string": "lineage.inputs[0].signers",
    "lineage_tool_is_a_number": "lineage.tool",
    "lineage_version_has_no_name": "lineage.inputs[0].name",
    "lineage_weight_is_too_large": "lineage.inputs[0].weight",
    "lora_is_a_list": "lora",
    "lora_is_missing": "lora",
    "name_escapes_root": "name",
    "name_has_a_control_character": "name",
    "name_has_a_version": "name",
    "name_has_no_org": "name",
    "name_has_two_dots": "name",
    "name_is_hidden": "name",
    "name_is_missing": "name",
    "name_is_too_long": "name",
    "name_stands_twice": "",
    "parameters_is_too_large": "lora.parameters",
    "parameters_is_zero": "lora.parameters",
    "r_is_a_fraction": "lora.r",
    "r_is_a_string": "lora.r",
    "r_is_missing": "lora.r",
    "r_is_too_large": "lora.r",
    "r_is_true": "lora.r",
    "r_is_zero": "lora.r",
    "rows_are_empty": "lora.slices[0].parts[1].rows",
    "rows_are_flat": "lora.slices[0].parts[1].rows",
    "rows_fall": "lora.slices[0].parts[1].rows",
    "rows_hold_a_fraction": "lora.slices[0].parts[1].rows",
    "rows_hold_an_empty_run": "lora.slices[0].parts[1].rows",
    "rows_hold_three_numbers": "lora.slices[0].parts[1].rows",
    "rows_overlap": "lora.slices[0].parts[1].rows",
    "rows_start_is_negative": "lora.slices[0].parts[1].rows",
    "rows_stop_is_too_large": "lora.slices[0].parts[1].rows",
    "schema_is_foreign": "schema",
    "schema_is_missing": "schema",
    "schema_is_newer": "schema",
    "sha256_has_a_prefix": "files[1].sha256",
    "sha256_is_md5": "files[0].sha256",
    "sha256_is_missing": "files[1].sha256",
    "sha256_is_upper_case": "files[0].sha256",
    "shard_name_escapes_root": "base.shards[0].name",
    "shard_sha256_is_upper_case": "base.shards[1].sha256",
    "shard_stands_twice": "base.shards",
    "shards_are_empty": "base.shards",
    "size_is_a_fraction": "files[1].size",
    "size_is_a_string": "files[1].size",
    "size_is_missing": "files[1].size",
    "size_is_negative": "files[0].size",
    "size_is_too_large": "files[1].size",
    "slice_alpha_is_missing": "lora.slices[0].parts[0].alpha",
    "slice_modules_are_missing": "lora.slices[0].modules",
    "slice_modules_is_a_string": "lora.slices[0].modules",
    "slice_part_is_upper_case": "lora.slices[0].parts[1].part",
    "slice_parts_are_missing": "lora.slices[0].parts",
    "slice_r_is_zero": "lora.slices[0].parts[0].r",
    "slices_is_an_object": "lora.slices",
    "targets_are_missing": "lora.targets",
    "targets_hold_a_number": "lora.targets",
    "targets_is_a_string": "lora.targets",
    "version_escapes_root": "version",
    "version_has_a_leading_zero": "version",
    "version_has_build_metadata": "version",
    "version_has_two_numbers": "version",
    "version_is_a_number": "version",
    "version_is_a_range": "version",
    "version_is_missing": "version",
}

# What a value is replaced by. A number such as 4.0 is missing: to JSON Schema it is the integer 4, to us it is not.
REPLACEMENTS = [None, True, -1, 0, 1, 1.5, 2**60, "", "x", "org/task", "1.0.0", [], ["x"], [1], {}, {"x": 1}]


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def passes_schema(content: bytes) -> bool:
    try:
        return VALIDATOR.is_valid(json.loads(content.decode()))
    except ValueError:  # no JSON at all
        return False


def passes_parser(content: bytes) -> bool:
    try:
        Manifest.parse(content)
    except DocumentError:
        return False
    return True


@named(VALID)
def test_a_valid_vector_passes_the_schema(path):
    """The schema accepts every valid vector."""
    assert passes_schema(path.read_bytes())


@named(VALID)
def test_a_valid_vector_round_trips(path):
    """What is parsed prints as the same bytes, where those are canonical, and reads as the same manifest anyhow."""
    content = path.read_bytes()
    manifest = Manifest.parse(content)

    assert Manifest.parse(manifest.to_bytes()) == manifest
    assert (manifest.to_bytes() == content) == (path.stem not in NOT_CANONICAL)


@named(INVALID)
def test_an_invalid_vector_is_refused_where_its_defect_is(path):
    """The parser refuses every invalid vector and points at the offending key."""
    with pytest.raises(DocumentError) as caught:
        Manifest.parse(path.read_bytes())

    assert caught.value.context == CONTEXTS[path.stem]
    assert caught.value.exit_code == 8


@named(INVALID)
def test_an_invalid_vector_fails_the_schema(path):
    """The schema refuses every invalid vector, but for what no schema can say."""
    assert passes_schema(path.read_bytes()) == (path.stem in BEYOND_A_SCHEMA)


def test_every_vector_has_an_expectation():
    """No invalid vector is without a context here, and none here is without a vector."""
    assert {path.stem for path in INVALID} == CONTEXTS.keys()


def test_the_schema_is_a_schema():
    """The schema itself is valid under draft 2020-12, and says which major version it is of."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    assert SCHEMA["$id"].endswith(f":{schemas.VERSION}")
    assert SCHEMA["properties"]["schema"]["const"] == documents.SCHEMA


def test_a_newer_schema_says_what_to_do():
    """A manifest of the next major version is told apart from a broken one, and the hint is to upgrade."""
    with pytest.raises(UnsupportedSchemaError) as caught:
        Manifest.parse((VECTORS / "invalid" / "schema_is_newer.json").read_bytes())

    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ((), documents.Manifest),
        (("base",), documents.BaseModel),
        (("lora",), documents.LoraSummary),
        (("lora", "slices", "items"), documents.SliceGroup),
        (("lora", "slices", "items", "parts", "items"), documents.Slice),
        (("file",), documents.FileEntry),
        (("golden",), golden.Golden),
        (("golden", "cases", "items"), golden.GoldenCase),
        (("lineage",), lineage.Lineage),
        (("lineage", "base"), lineage.LineageBase),
        (("lineage", "inputs", "items"), lineage.LineageInput),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_schema_names_what_the_dataclass_has(place, kind):
    """Schema and dataclass have the same properties, and the schema describes each; what it requires has no default."""
    node = SCHEMA["$defs"]["file"] if place == ("file",) else _descend(SCHEMA, place)
    fields = {field.name for field in dataclasses.fields(kind)}
    required = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    own = {"schema", "base"} if kind is documents.Manifest else set()  # `base` may be empty, but is always written

    assert node["properties"].keys() - {"schema"} == fields
    assert set(node.get("required", ())) == required | own
    assert node["additionalProperties"] is True
    assert all("description" in entry or "$ref" in entry for entry in node["properties"].values())


def _descend(node, place):
    for step in place:
        node = node["items"] if step == "items" else node["properties"][step]
    return node


@named([path for path in VALID if path.stem != "keys_are_unknown"])
def test_schema_and_parser_agree_when_one_key_is_deleted(path):
    """With any one key or item deleted, schema and parser both accept the document or both refuse it."""
    document = json.loads(path.read_bytes())
    disagreements = [place for place in places(document) if not _agree(without(document, place))]

    assert disagreements == []


@pytest.mark.parametrize("value", REPLACEMENTS, ids=repr)
@named([path for path in VALID if path.stem in {"composed", "draft", "sliced"}])
def test_schema_and_parser_agree_when_one_value_is_replaced(path, value):
    """With any one value replaced by another kind of value, schema and parser both accept or both refuse."""
    document = json.loads(path.read_bytes())
    tried = [place for place in places(document) if not _is_inside_rows(place)]
    disagreements = [place for place in tried if not _agree(replaced(document, place, value))]

    assert disagreements == []


@pytest.mark.parametrize("value", [None, True, -1, 1.5, "x", [], {}], ids=repr)
def test_schema_and_parser_agree_about_the_runs_of_rows(value):
    """Inside `rows`, whatever is no number from 0 on is refused by both; whether runs rise, only the parser knows."""
    document = json.loads((VECTORS / "valid" / "sliced.json").read_bytes())
    tried = [place for place in places(document) if _is_inside_rows(place)]

    assert tried
    assert not any(passes_schema(_bytes(replaced(document, place, value))) for place in tried)
    assert not any(passes_parser(_bytes(replaced(document, place, value))) for place in tried)


def test_unknown_keys_change_nothing():
    """Within one major version a newer writer may add keys: the manifest reads as it would without them."""
    published = Manifest.parse((VECTORS / "valid" / "published.json").read_bytes())

    assert Manifest.parse((VECTORS / "valid" / "keys_are_unknown.json").read_bytes()) == published


def test_a_manifest_is_bounded():
    """More bytes than a manifest may have are refused before they are parsed."""
    content = (VECTORS / "valid" / "draft.json").read_bytes()
    padded = content + b" " * (MAX_MANIFEST - len(content))

    assert passes_parser(padded)
    assert not passes_parser(padded + b" ")


def test_a_draft_has_no_reference():
    """A draft is nobody's version yet; a published manifest knows its reference."""
    draft = Manifest.parse((VECTORS / "valid" / "draft.json").read_bytes())
    published = Manifest.parse((VECTORS / "valid" / "published.json").read_bytes())

    assert (draft.name, draft.reference) == (None, None)
    assert str(published.reference) == "org/task@1.2.0"


def test_size_is_the_sum_of_the_files():
    """The size of a version is the size of its files."""
    assert Manifest.parse((VECTORS / "valid" / "draft.json").read_bytes()).size == 512 + 4096


def _is_inside_rows(place):
    return "rows" in place[:-1]


def _bytes(document) -> bytes:
    return json.dumps(document).encode()


def _agree(document) -> bool:
    content = _bytes(document)
    return passes_schema(content) == passes_parser(content)
