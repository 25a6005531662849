"""What can be wrong with the statement in ``model.sig``; the trusted key signed it as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from vectors.making.bundles import FILES, PAYLOAD, raw, twice, without
from vectors.making.case import Case, refused
from vectors.making.published import (
    MANIFEST_NAME,
    SIGNATURE_NAME,
    WEIGHTS_NAME,
    Change,
    Document,
    Files,
    adapter,
    bundle_of,
    dump,
    sha256,
    signed,
    statement_of,
    version,
)


def saying(change: Change) -> Files:
    """Return the version with *change* made to its statement, which the trusted key then signed."""
    return signed(FILES, statement=change)


def saying_of_files(**changes: object) -> Files:
    """Return the version with *changes* in what its statement says about how the files were hashed."""
    return saying(lambda d: d["predicate"]["serialization"].update(changes))


def saying_of_config(**changes: object) -> Files:
    """Return the version with *changes* in what its statement says about the config."""
    return saying(lambda d: d["predicate"]["resources"][0].update(changes))


def stating(payload: bytes) -> Files:
    """Return the version with the statement *payload*, signed by the trusted key."""
    return raw(dump(bundle_of(payload)))


def _is_no_statement() -> Iterator[tuple[str, Case]]:
    yield "statement_is_no_json", refused(8, "not valid JSON", stating(b"statement"))
    kind = b'"_type": "https://in-toto.io/Statement/v1"'
    yield "statement_has_a_key_twice", refused(8, "stands twice", stating(twice(PAYLOAD, kind)))
    yield (
        "statement_type_is_older",
        refused(8, "_type", saying(lambda d: d.update(_type="https://in-toto.io/Statement/v0.1"))),
    )
    yield "statement_field_is_unknown", refused(8, "unknown key", saying(lambda d: d.update(extra=None)))
    yield (
        "statement_is_about_provenance",
        refused(8, "predicateType", saying(lambda d: d.update(predicateType="https://slsa.dev/provenance/v1"))),
    )
    yank = {
        **statement_of(FILES),
        "subject": [{"name": "org/task@1.0.0", "digest": {"sha256": sha256(FILES[MANIFEST_NAME])}}],
        "predicateType": "urn:lora-hub:yank:v1",
        "predicate": {"created": "2026-01-31T12:00:00Z", "reason": "it is broken"},
    }
    yield "statement_is_a_yank", refused(8, "predicateType", stating(dump(yank)))
    yield "subject_is_missing", refused(8, "subject", saying(lambda d: without(d, "subject")))
    yield "subjects_are_two", refused(8, "one subject", saying(lambda d: d["subject"].append(d["subject"][0])))
    yield (
        "subject_has_another_hash",
        refused(8, "sha256", saying(lambda d: d["subject"][0].update(digest={"sha1": "0"}))),
    )
    yield "resources_are_missing", refused(8, "resources", saying(lambda d: without(d["predicate"], "resources")))
    yield "resources_are_two", refused(8, "not among the signed", saying(lambda d: d["predicate"]["resources"].pop()))
    extra = {"name": "adapter_model.bin", "algorithm": "sha256", "digest": "0" * 64}
    yield "resources_are_four", refused(8, "one of", saying(lambda d: d["predicate"]["resources"].append(extra)))
    yield (
        "resource_stands_twice",
        refused(8, "once", saying(lambda d: d["predicate"]["resources"].append(d["predicate"]["resources"][0]))),
    )
    yield "resource_escapes_root", refused(8, "one of", saying_of_config(name="../adapter_config.json"))
    yield "resource_is_hashed_by_blake2", refused(8, "`sha256`", saying_of_config(algorithm="blake2b"))
    yield "resource_digest_is_upper_case", refused(8, "hex digits", saying_of_config(digest="A" * 64))
    yield (
        "serialization_is_missing",
        refused(8, "serialization", saying(lambda d: without(d["predicate"], "serialization"))),
    )
    yield "files_are_hashed_in_shards", refused(8, "`files`", saying_of_files(method="shards"))
    yield "files_are_hashed_by_blake3", refused(8, "`sha256`", saying_of_files(hash_type="blake3"))
    yield "symlinks_are_allowed", refused(8, "false", saying_of_files(allow_symlinks=True))
    yield "weights_are_ignored", refused(8, "ignore_paths", saying_of_files(ignore_paths=[".git", WEIGHTS_NAME]))
    yield "another_file_is_ignored", refused(8, "ignore_paths", saying_of_files(ignore_paths=["adapter_model.bin"]))
    yield "directory_is_ignored", refused(8, "ignore_paths", saying_of_files(ignore_paths=["."]))


def _is_about_other_files() -> Iterator[tuple[str, Case]]:
    yield "manifest_is_another", refused(6, "was signed", saying(lambda d: _claim(d, 2)))
    yield "weights_are_others", refused(6, "was signed", saying(lambda d: _claim(d, 1)))
    yield "config_is_another", refused(6, "was signed", saying(lambda d: _claim(d, 0)))
    root = {"sha256": "0" * 64}
    yield "root_is_another", refused(6, "own digest", saying(lambda d: d["subject"][0].update(digest=root)))
    newer = signed(version(adapter(lora_alpha=4), lora={"alpha": 4}, manifest=lambda d: d.update(version="1.1.0")))
    yield "bundle_is_of_another_version", refused(6, "was signed", raw(newer[SIGNATURE_NAME]))
    other = signed(version(manifest=lambda d: d.update(name="org/other")))
    yield "bundle_is_of_another_adapter", refused(6, "was signed", raw(other[SIGNATURE_NAME]))


def _claim(document: Document, position: int) -> None:
    """Put another digest in place of a file's, and let the digest of the digests be right."""
    resources = document["predicate"]["resources"]
    resources[position]["digest"] = "0" * 64
    joined = b"".join(bytes.fromhex(resource["digest"]) for resource in resources)
    document["subject"][0]["digest"]["sha256"] = hashlib.sha256(joined).hexdigest()


def cases() -> Iterator[tuple[str, Case]]:
    """Yield the vectors by name."""
    yield from _is_no_statement()
    yield from _is_about_other_files()
