"""What can be wrong with ``lora-hub.json``; the trusted key signed it as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vectors.making.case import Case, malformed, refused
from vectors.making.published import (
    CONFIG_NAME,
    FUSED,
    MANIFEST_NAME,
    SLICES,
    Change,
    Files,
    fused_version,
    signed,
    version,
)

MANIFEST = version()[MANIFEST_NAME]
NOT_JSON = "not valid JSON"


def raw(content: bytes) -> Files:
    """Return the version with *content* for a manifest."""
    return signed({**version(), MANIFEST_NAME: content})


def saying(change: Change) -> Files:
    """Return the version with *change* made to its manifest."""
    return signed(version(manifest=change))


def said(**changes: Any) -> Files:
    """Return the version with *changes* in its manifest."""
    return saying(lambda d: d.update(changes))


def lacking(key: str) -> Files:
    """Return the version without *key* in its manifest."""
    return saying(lambda d: d.pop(key))


def of_lora(**changes: Any) -> Files:
    """Return the version with *changes* in what its manifest says of the adapter."""
    return signed(version(lora=changes))


def of_weights(**changes: Any) -> Files:
    """Return the version with *changes* in what its manifest says of the weights."""
    return saying(lambda d: d["files"][1].update(changes))


def replaced(old: bytes, new: bytes) -> Files:
    """Return the version with one text of its manifest replaced by another."""
    assert MANIFEST.count(old) == 1
    return raw(MANIFEST.replace(old, new))


def _is_no_json() -> Iterator[tuple[str, Case]]:
    yield "json_is_empty", refused(8, NOT_JSON, raw(b""))
    yield "json_is_cut_off", refused(8, NOT_JSON, raw(MANIFEST[:-3]))
    yield "json_is_an_array", refused(8, "must be a JSON object", raw(b"[" + MANIFEST + b"]"))
    yield "json_is_not_utf8", refused(8, NOT_JSON, replaced(b"org/base", b"org/b\xe4se"))
    yield "json_has_a_byte_order_mark", refused(8, NOT_JSON, raw(b"\xef\xbb\xbf" + MANIFEST))
    yield "json_is_two_documents", refused(8, NOT_JSON, raw(MANIFEST + MANIFEST))
    name = b'"name": "org/task"'
    yield "json_has_a_key_twice", refused(8, "stands twice", replaced(name, b'"name": "org/other", ' + name))
    yield (
        "json_has_an_escaped_key_twice",
        refused(8, "stands twice", replaced(name, name + b', "n\\u0061me": "org/other"')),
    )
    deep = b'"extra": ' + b'{"x": ' * 20 + b"1" + b"}" * 20
    yield "json_is_too_deep", refused(8, "nested deeper", replaced(name, name + b", " + deep))
    yield "json_is_a_bottomless_array", refused(8, NOT_JSON, raw(b"[" * 100_000))
    size = 256 * 1024 + 1
    padded = raw(MANIFEST + b" " * (size - len(MANIFEST)))
    files = {**padded, MANIFEST_NAME: MANIFEST}
    pad = {"pad": {MANIFEST_NAME: size}}
    yield "json_is_too_large", malformed("at most 262144", files, special=pad)
    yield "alpha_is_nan", refused(8, "NaN", replaced(b'"alpha": 2', b'"alpha": NaN'))
    yield "alpha_is_infinite", refused(8, "too large", replaced(b'"alpha": 2', b'"alpha": 1e999'))
    yield "alpha_has_5000_digits", refused(8, "5000 digits", replaced(b'"alpha": 2', b'"alpha": ' + b"9" * 5000))
    yield "base_is_half_a_surrogate_pair", refused(8, NOT_JSON, replaced(b"org/base", b"org/\\ud800"))


def _is_no_manifest() -> Iterator[tuple[str, Case]]:
    yield "schema_is_missing", refused(8, "schema", lacking("schema"))
    yield "schema_is_that_of_a_lock_file", refused(8, "schema", said(schema="lora-hub/lock/v1"))
    newer = said(schema="lora-hub/manifest/v2")
    yield "schema_is_newer", refused(8, "reads version 1", newer, error="UnsupportedSchemaError")
    yield "name_is_missing", refused(8, "`name`", lacking("name"))
    yield "name_has_an_escape_sequence", refused(8, "`name`", said(name="org/\x1b]0;owned\x07"))
    yield "name_is_written_backwards", refused(8, "`name`", said(name="org/\u202eksat"))
    yield "name_escapes_root", refused(8, "`name`", said(name="../../home"))
    yield "version_escapes_root", refused(8, "`version`", said(version="../../1.0.0"))
    yield "version_has_a_new_line", refused(8, "`version`", said(version="1.0.0\n"))
    yield "created_is_local_time", refused(8, "`created`", said(created="2026-01-31T12:00:00"))
    yield "base_is_a_string", refused(8, "`base`", said(base="org/base"))
    yield "lora_is_missing", refused(8, "`lora`", lacking("lora"))
    yield "r_is_zero", refused(8, "`lora.r`", of_lora(r=0))
    yield "r_is_true", refused(8, "`lora.r`", of_lora(r=True))
    yield "r_is_a_million", refused(8, "`lora.r`", of_lora(r=1_000_000))
    yield "alpha_is_a_string", refused(8, "`lora.alpha`", of_lora(alpha="2"))
    yield "parameters_are_negative", refused(8, "`lora.parameters`", of_lora(parameters=-1))
    yield "targets_are_a_pattern", refused(8, "`lora.targets`", of_lora(targets=".*"))


def _lists_no_files() -> Iterator[tuple[str, Case]]:
    yield "files_are_missing", refused(8, "`files`", lacking("files"))
    yield "files_are_one", refused(8, "`files`", saying(lambda d: d["files"].pop()))
    pickle = {"name": "adapter_model.bin", "size": 1, "sha256": "0" * 64}
    yield "files_include_a_pickle", refused(8, "files[2].name", saying(lambda d: d["files"].append(pickle)))
    yield "files_are_in_another_order", refused(8, "`files`", saying(lambda d: d["files"].reverse()))
    yield "file_stands_twice", refused(8, "`files`", of_weights(name=CONFIG_NAME))
    yield "file_escapes_root", refused(8, "files[1].name", of_weights(name="../../../home/trust.toml"))
    yield "file_is_absolute", refused(8, "files[1].name", of_weights(name="/etc/passwd"))
    yield "size_is_negative", refused(8, "files[1].size", of_weights(size=-1))
    yield "size_is_a_terabyte", refused(8, "files[1].size", of_weights(size=2**40))
    yield "sha256_is_upper_case", refused(8, "files[1].sha256", of_weights(sha256="A" * 64))
    yield "sha256_is_missing", refused(8, "files[1].sha256", saying(lambda d: d["files"][1].pop("sha256")))


def _is_of_another_adapter() -> Iterator[tuple[str, Case]]:
    tampered = "by its manifest"
    yield "name_is_another", refused(6, tampered, said(name="org/other"))
    yield "org_is_another", refused(6, tampered, said(name="evil/task"))
    yield "version_is_newer", refused(6, tampered, said(version="1.0.1"))
    yield "version_is_a_prerelease", refused(6, tampered, said(version="1.0.0-rc.1"))
    draft = saying(lambda d: [d.pop(key) for key in ("name", "version", "created")])
    yield "manifest_is_a_draft", refused(6, "is a draft", draft)
    yield "sha256_is_another", refused(6, "sha256", of_weights(sha256="0" * 64))
    yield "size_is_another", refused(6, "bytes", of_weights(size=1))


def _contradicts_the_tensors() -> Iterator[tuple[str, Case]]:
    yield "r_is_another", malformed("says r is", of_lora(r=2))
    yield "alpha_is_another", malformed("says alpha is", of_lora(alpha=4))
    yield "dtype_is_another", malformed("says dtype is", of_lora(dtype="float16"))
    yield "parameters_are_others", malformed("says parameters is", of_lora(parameters=1))
    stranger = [{**SLICES[0], "modules": ["layers.9.c_attn"]}]
    yield "slices_of_an_unknown_module", malformed("has no tensors for it", signed(fused_version(stranger)))
    yield "slices_twice", malformed("twice", signed(fused_version(SLICES * 2)))
    yield "slices_overlap", malformed("contradict", _sliced({"rows": [[2, 6]]}))
    yield "slices_go_beyond_the_module", malformed("contradict", _sliced({"rows": [[8, 13]]}))
    yield "slices_have_another_rank", malformed("contradict", _sliced({"r": 2}))
    yield "slices_have_another_scaling", malformed("contradict", _sliced({"alpha": 3}))
    yield "slices_have_a_part_twice", malformed("contradict", _sliced({"part": "q"}))
    yield "slices_have_no_rows", refused(8, "rows", _sliced({"rows": []}))
    yield "slices_have_falling_rows", refused(8, "rows", _sliced({"rows": [[10, 12], [8, 9]]}))


def _sliced(changes: dict[str, Any]) -> Files:
    """Return the fused version whose manifest says something else of its second part."""
    q, v = SLICES[0]["parts"]
    return signed(fused_version([{"modules": [FUSED], "parts": [q, {**v, **changes}]}]))


def cases() -> Iterator[tuple[str, Case]]:
    """Yield the vectors by name."""
    yield from _is_no_json()
    yield from _is_no_manifest()
    yield from _lists_no_files()
    yield from _is_of_another_adapter()
    yield from _contradicts_the_tensors()
