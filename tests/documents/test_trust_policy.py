"""The trust policy: what is understood is enforced, and what is not understood is refused."""

import json
import time
import tomllib
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_hub.documents import schemas
from lora_hub.documents.trust_entries import Pin
from lora_hub.documents.trust_policy import MAX_POLICY, NOBODY, VERSION, TrustPolicy
from lora_hub.errors import DocumentError, LoraHubError, UnsupportedSchemaError
from lora_hub.reference import AdapterRef

VECTORS = Path(__file__).parents[1] / "vectors" / "v1" / "trust"
VALID = sorted((VECTORS / "valid").glob("*.toml"))
INVALID = sorted((VECTORS / "invalid").glob("*.toml"))

DIGEST, OTHER = f"sha256:{'3c' * 32}", f"sha256:{'7e' * 32}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"

SCHEMA = json.loads(schemas.schema("trust"))
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
# What only a reader can find: more than TOML's values, or what several of them say together.
BEYOND_A_SCHEMA = {
    "key_is_a_private_one",
    "key_is_cut_off",
    "key_is_of_another_kind",
    "key_name_stands_twice",
    "key_stands_there_under_two_names",
    "key_window_has_no_offset",
    "key_window_is_a_string",
    "pin_of_a_version_contradicts_that_of_its_commit",
    "pins_of_one_commit_contradict",
    "pins_of_one_version_contradict",
    "pins_of_one_version_contradict_at_two_commits",
    "registry_is_a_date",
    "rule_names_an_unknown_key",
    "rule_scope_stands_twice",
    "rule_threshold_is_above_its_signers",
    "version_is_a_fraction",
}

# Where the error points; "" is the document as a whole.
CONTEXTS = {
    "commit_is_a_branch": "pin[0].commit",
    "commit_is_short": "pin[0].commit",
    "commit_is_upper_case": "pin[0].commit",
    "digest_has_no_prefix": "pin[0].digest",
    "digest_is_a_list": "pin[0].digest",
    "digest_is_md5": "pin[0].digest",
    "digest_is_missing": "pin[0].digest",
    "digest_is_short": "pin[0].digest",
    "digest_is_upper_case": "pin[0].digest",
    "identity_has_no_issuer": "rule[0].identities[0].issuer",
    "identity_is_a_string": "rule[0].identities",
    "identity_is_empty": "rule[0].identities[0].identity",
    "key_has_no_pem": "key[0].pem",
    "key_is_a_private_one": "key[0].pem",
    "key_is_cut_off": "key[0].pem",
    "key_is_of_another_kind": "key[0].pem",
    "key_is_unknown": "trust_everybody",
    "key_name_has_a_space": "key[0].name",
    "key_name_stands_twice": "key",
    "key_of_a_key_is_misspelt": "key[0].notafter",
    "key_of_a_pin_is_misspelt": "pin[0].comit",
    "key_of_a_pin_is_unknown": "pin[0].signer",
    "key_stands_there_under_two_names": "key",
    "key_window_has_no_offset": "key[0].not_after",
    "key_window_is_a_string": "key[0].not_before",
    "name_escapes_root": "pin[0].name",
    "name_has_a_control_character": "pin[0].name",
    "name_has_a_version": "pin[0].name",
    "name_has_a_wildcard": "pin[0].name",
    "name_has_no_org": "pin[0].name",
    "name_is_a_list": "pin[0].name",
    "name_is_empty": "pin[0].name",
    "name_is_missing": "pin[0].name",
    "pin_is_a_date": "pin",
    "pin_is_a_string": "pin",
    "pin_is_a_table": "pin",
    "pin_is_empty": "pin[0].version",
    "pin_of_a_version_contradicts_that_of_its_commit": "pin",
    "pinned_version_has_a_leading_zero": "pin[0].version",
    "pinned_version_has_two_numbers": "pin[0].version",
    "pinned_version_is_a_number": "pin[0].version",
    "pinned_version_is_a_range": "pin[0].version",
    "pinned_version_is_empty": "pin[0].version",
    "pins_hold_a_string": "pin",
    "pins_of_one_commit_contradict": "pin",
    "pins_of_one_version_contradict": "pin",
    "pins_of_one_version_contradict_at_two_commits": "pin",
    "registry_is_a_date": "pin[0].registry",
    "registry_is_a_number": "pin[0].registry",
    "registry_is_missing": "pin[0].registry",
    "revoked_digest_has_no_prefix": "revoked[0].digest",
    "revoked_key_is_a_name": "revoked[0].key",
    "revoked_names_both": "revoked[0].key",
    "revoked_names_neither": "revoked[0].key",
    "rule_has_no_signers": "rule[0].keys",
    "rule_limit_is_negative": "rule[0].max_size",
    "rule_limit_is_true": "rule[0].max_r",
    "rule_min_version_is_a_range": "rule[0].min_version",
    "rule_names_a_key_twice": "rule[0].keys",
    "rule_names_an_unknown_key": "rule",
    "rule_scope_is_a_pattern": "rule[0].scope",
    "rule_scope_is_an_org": "rule[0].scope",
    "rule_scope_is_missing": "rule[0].scope",
    "rule_scope_stands_twice": "rule",
    "rule_threshold_is_above_its_signers": "rule[0].threshold",
    "rule_threshold_is_misspelt": "rule[0].thresold",
    "rule_threshold_is_zero": "rule[0].threshold",
    "table_is_unknown": "signer",
    "toml_has_a_byte_order_mark": "",
    "toml_has_a_key_twice": "",
    "toml_has_conflict_markers": "",
    "toml_is_binary": "",
    "toml_is_cut_off": "",
    "toml_is_json": "",
    "toml_is_nested_too_deep": "",
    "toml_is_not_utf8": "",
    "version_and_commit_are_missing": "pin[0].version",
    "version_is_a_date": "version",
    "version_is_a_fraction": "version",
    "version_is_a_string": "version",
    "version_is_missing": "version",
    "version_is_newer": "version",
    "version_is_true": "version",
    "version_is_zero": "version",
}

# How many entries each valid vector has.
ENTRIES = {
    "a_key_and_a_rule": 2,
    "a_key_without_a_rule": 1,
    "comments_only": 0,
    "file_is_empty": 0,
    "identities_alone": 1,
    "key_with_a_window": 2,
    "keys_of_three_curves": 4,
    "lines_end_in_crlf": 1,
    "no_pins": 0,
    "one_name_in_two_registries": 2,
    "one_pin_stands_twice": 1,
    "pem_has_other_line_breaks": 1,
    "pin_by_commit": 1,
    "pin_by_version": 1,
    "pin_by_version_and_commit": 1,
    "pin_of_a_prerelease": 1,
    "pins_are_an_empty_array": 0,
    "pins_are_inline": 1,
    "revoked_key_and_digest": 2,
    "rule_with_limits": 2,
    "rules_of_three_widths": 4,
    "strings_are_literal": 1,
}


def named(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def a_pin(**changes) -> Pin:
    values = {"registry": "hf://", "name": "org/task", "version": "1.2.0", "commit": COMMIT, "digest": DIGEST}
    return Pin(**(values | changes))


def policy_of(*pins: Pin) -> TrustPolicy:
    return TrustPolicy.parse("\n".join(["version = 1", *(pin.to_toml() for pin in pins)]).encode())


@named(VALID)
def test_a_valid_vector_is_read(path):
    """Every valid vector is read, and has the entries that it spells."""
    assert len(TrustPolicy.parse(path.read_bytes()).entries) == ENTRIES[path.stem]


@named(INVALID)
def test_an_invalid_vector_is_refused_where_its_defect_is(path):
    """Every invalid vector is refused with exit code 8, and the error points at the offending key."""
    with pytest.raises(DocumentError) as caught:
        TrustPolicy.parse(path.read_bytes())

    assert caught.value.context == CONTEXTS[path.stem]
    assert caught.value.exit_code == 8
    assert caught.value.hint


@named(INVALID)
def test_a_refusal_is_one_line(path):
    """Nothing of a broken policy reaches the terminal but in one printable line."""
    with pytest.raises(DocumentError) as caught:
        TrustPolicy.parse(path.read_bytes())

    assert caught.value.message.isprintable()


def test_every_vector_has_an_expectation():
    """No vector is without an expectation here, and none here is without a vector."""
    assert {path.stem for path in INVALID} == CONTEXTS.keys()
    assert {path.stem for path in VALID} == ENTRIES.keys()


@pytest.mark.parametrize("content", [b"", b"\n\n", b"# nobody\n", b"version = 1\n"], ids=repr)
def test_an_empty_policy_trusts_nobody(content):
    """A file without pins is the policy that trusts nobody."""
    policy = TrustPolicy.parse(content)

    assert policy == NOBODY
    assert policy.pin("hf://", AdapterRef.parse("org/task@1.2.0")) is None


def test_a_newer_policy_says_what_to_do():
    """A policy of a later version is not understood, and so not half enforced: the hint is to upgrade."""
    with pytest.raises(UnsupportedSchemaError) as caught:
        TrustPolicy.parse(b"version = 2\n\n[[signer]]\nname = 'org/*'\n")

    assert "upgrade" in caught.value.hint


@pytest.mark.parametrize("text", ["trust = 1\n", '[[pin]]\nsigner = "me"\n'], ids=["top", "pin"])
def test_an_unknown_key_says_why_it_is_refused(text):
    """What is not understood cannot be enforced, so it is refused with that reason."""
    with pytest.raises(DocumentError, match="cannot be enforced"):
        TrustPolicy.parse(f"version = 1\n{text}".encode())


def test_contradicting_pins_name_both_digests():
    """Two digests for one version: the error names the version and both."""
    with pytest.raises(DocumentError) as caught:
        policy_of(a_pin(), a_pin(digest=OTHER))

    assert "org/task@1.2.0" in caught.value.message
    assert DIGEST in caught.value.message
    assert OTHER in caught.value.message


def test_a_policy_is_bounded():
    """More bytes than a policy may have are refused before they are parsed."""
    padded = b"version = 1\n".ljust(MAX_POLICY, b"\n")

    assert TrustPolicy.parse(padded) == NOBODY
    with pytest.raises(DocumentError, match=f"at most {MAX_POLICY}"):
        TrustPolicy.parse(padded + b"\n")


def test_many_pins_are_read_soon():
    """A policy as large as may be read, with a pin for each of many adapters, is read within a moment."""
    pins = "".join(a_pin(name=f"org/task-{number}").to_toml() for number in range(5000))
    begin = time.process_time()
    policy = TrustPolicy.parse(f"version = 1\n{pins}".encode())

    assert len(policy.pins) == 5000
    assert time.process_time() - begin < 3


@pytest.mark.parametrize(
    ("version", "commit", "asked", "is_pinned"),
    [
        ("1.2.0", None, "1.2.0", True),
        ("1.2.0", COMMIT, "1.2.0", True),
        ("1.2.0", COMMIT, COMMIT, True),
        (None, COMMIT, COMMIT, True),
        ("1.2.0", None, COMMIT, False),
        (None, COMMIT, "1.2.0", False),
        ("1.2.0", None, "1.2.1", False),
        ("1.2.0", None, "1.2", False),
        ("1.2.0", None, "^1.2", False),
        ("1.2.0-rc.1", None, "1.2.0", False),
        ("1.2.0", COMMIT, DIGEST, False),
        ("1.2.0", COMMIT, COMMIT[::-1], False),
    ],
)
def test_a_pin_is_found_by_its_version_or_its_commit(version, commit, asked, is_pinned):
    """An exact version and an exact commit are pinned; a range and a digest are not, whatever they would select."""
    pin = a_pin(version=version, commit=commit)

    assert policy_of(pin).pin("hf://", AdapterRef.parse(f"org/task@{asked}")) == (pin if is_pinned else None)


def test_a_name_alone_is_not_pinned():
    """A reference that names nothing exact has no pin."""
    assert policy_of(a_pin(), a_pin(version=None)).pin("hf://", AdapterRef.parse("org/task")) is None


@pytest.mark.parametrize(("registry", "name"), [("s3://bucket", "org/task"), ("hf://", "org/other"), ("", "org/task")])
def test_a_pin_is_of_one_adapter_in_one_registry(registry, name):
    """What is pinned in one registry is not trusted in another, nor is another adapter."""
    assert policy_of(a_pin()).pin(registry, AdapterRef.parse(f"{name}@1.2.0")) is None
    assert policy_of(a_pin()).pins_of(registry, name) == []


def test_pins_keep_the_order_of_the_file():
    """The pins of an adapter come in the order in which they stand there."""
    pins = [a_pin(version=version) for version in ("2.0.0", "1.0.0", "1.5.0")]

    assert policy_of(pins[0], a_pin(name="org/other"), *pins[1:]).pins_of("hf://", "org/task") == pins


@pytest.mark.parametrize(
    ("version", "commit", "reference"),
    [("1.2.0", COMMIT, "org/task@1.2.0"), ("1.2.0", None, "org/task@1.2.0"), (None, COMMIT, f"org/task@{COMMIT}")],
)
def test_a_pin_has_an_exact_reference(version, commit, reference):
    """A pin calls what is pinned by its version, or else by its commit."""
    assert str(a_pin(version=version, commit=commit).reference) == reference


HOSTILE = {
    "quote": 's3://bucket/"quoted"',
    "backslash": r"s3://bucket/a\b\u0041\n",
    "apostrophe": "s3://bucket/it's",
    "triple_quote": "s3://bucket/'''\"\"\"",
    "new_line": 's3://bucket/\n[[pin]]\nregistry = "hf://"',
    "comment": "s3://bucket/#prefix",
    "umlaut": "s3://bücket",
    "emoji": "s3://bucket/\N{LLAMA}",
    "nul": "s3://bucket/\x00",
    "delete": "s3://bucket/\x7f",
    "escape": "s3://bucket/\x1b[2J",
    "right_to_left": "s3://bucket/\u202egpj",
    "line_separator": "s3://bucket/\u2028\u2029\x85",
    "empty": "",
}


@pytest.mark.parametrize("url", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_registry_is_written_as_itself(url):
    """Whatever stands in the URL of a registry, the pin that is written reads as the same pin, and as that alone."""
    pin = a_pin(registry=url)

    assert policy_of(pin).pins == (pin,)


@given(url=st.text(), version=st.sampled_from([None, "1.2.0", "0.0.1-rc.1"]), has_commit=st.booleans())
def test_a_pin_round_trips(url, version, has_commit):
    """A pin that is written reads as the same pin, for every URL that is text."""
    pin = a_pin(registry=url, version=version, commit=COMMIT if has_commit or version is None else None)

    assert policy_of(pin).pins == (pin,)


# Pieces of policies, so that nonsense comes near to sense.
PIECES = st.sampled_from(
    [
        "version",
        "pin",
        "registry",
        "name",
        "digest",
        "commit",
        " = ",
        "1",
        "2026-01-31",
        "12:00:00",
        "2026-01-31T12:00:00Z",
        "inf",
        "nan",
        "true",
        "0x10",
        "\n",
        "[[pin]]\n",
        "[pin]\n",
        "[",
        "]",
        "{",
        "}",
        ",",
        ".",
        '"',
        "'",
        '"hf://"',
        '"org/task"',
        f'"{DIGEST}"',
        "version = 1\n",
        "#",
        "\\",
        "\r",
    ]
)
VALUES = st.recursive(
    st.sampled_from(["1", "1.5", "nan", "inf", "true", '""', '"x"', "2026-01-31", "12:00:00", "2026-01-31T12:00:00Z"]),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        inner.map(lambda value: f"{{a = {value}}}"),
    ),
    max_leaves=5,
)


def refuses_or_reads(content: bytes) -> bool:
    """Read *content*; only an error of ours may say that it cannot be read."""
    try:
        TrustPolicy.parse(content)
    except LoraHubError as error:
        return error.exit_code == 8
    return True


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content):
    """No bytes whatsoever raise anything but an error of ours."""
    assert refuses_or_reads(content)


@given(st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=20).map("".join))
def test_any_nonsense_is_read_or_refused(text):
    """No text that resembles a policy raises anything but an error of ours."""
    assert refuses_or_reads(text.encode())


@given(key=st.sampled_from(["registry", "name", "version", "commit", "digest"]), value=VALUES)
def test_any_value_of_a_pin_is_read_or_refused(key, value):
    """No value of any type that TOML has, at any key of a pin, raises anything but an error of ours."""
    fields = {"registry": '"hf://"', "name": '"org/task"', "version": '"1.2.0"', "digest": f'"{DIGEST}"', key: value}
    pin = "".join(f"{name} = {text}\n" for name, text in fields.items())

    assert refuses_or_reads(f"version = 1\n[[pin]]\n{pin}".encode())


@given(key=st.sampled_from(["version", "pin", "other"]), value=VALUES)
def test_any_value_at_the_top_is_read_or_refused(key, value):
    """No value of any type that TOML has, at the top of a policy, raises anything but an error of ours."""
    version = "" if key == "version" else "version = 1\n"

    assert refuses_or_reads(f"{version}{key} = {value}\n".encode())


def test_what_is_written_is_toml_that_others_read():
    """A pin is written as a plain table, in the order in which the documentation shows it, without what it lacks."""
    written = tomllib.loads(a_pin(commit=None).to_toml())

    assert json.dumps(written) == json.dumps(
        {"pin": [{"registry": "hf://", "name": "org/task", "version": "1.2.0", "digest": DIGEST}]}
    )


# The schema


def as_json(path: Path) -> object:
    """Return the values of a policy as JSON has them: a time is a string there."""
    return json.loads(
        json.dumps(tomllib.loads(path.read_text(encoding="utf-8")), default=lambda time: time.isoformat())
    )


@pytest.mark.parametrize("path", [path for path in VALID if b"=" in path.read_bytes()], ids=lambda path: path.stem)
def test_a_valid_vector_passes_the_schema(path):
    """The schema accepts every valid policy that is not empty."""
    VALIDATOR.validate(as_json(path))


@pytest.mark.parametrize(
    "path", [path for path in INVALID if not path.stem.startswith("toml_")], ids=lambda path: path.stem
)
def test_an_invalid_vector_fails_the_schema(path):
    """The schema refuses every invalid policy, but for what no schema can say."""
    assert VALIDATOR.is_valid(as_json(path)) == (path.stem in BEYOND_A_SCHEMA)


def test_the_schema_is_a_schema():
    """The schema itself is valid under draft 2020-12, and is of the version that the parser reads."""
    jsonschema.Draft202012Validator.check_schema(SCHEMA)

    assert SCHEMA["properties"]["version"]["const"] == VERSION
