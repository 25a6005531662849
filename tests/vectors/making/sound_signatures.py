"""Signatures and policies that must be accepted: of other writers, of several signers, unusual and sound."""

from __future__ import annotations

import json
from collections.abc import Iterator

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from vectors.making.case import Case, accepted
from vectors.making.published import (
    KEY,
    P384,
    P521,
    SECOND,
    SIGNATURE_NAME,
    STRANGER,
    Change,
    Files,
    PrivateKey,
    bundle_of,
    dump,
    fingerprint,
    further_name,
    pre_authentication,
    sign,
    signed,
    statement_of,
    version,
)
from vectors.making.trust import (
    ANOTHER,
    FAR_AWAY,
    LONG_AGO,
    TEST_KEY,
    TEST_RULE,
    TWO,
    digest,
    home,
    key,
    pin,
    policy,
    revoked,
    rule,
    seen,
    yank,
)

FILES = version()
SIGNED = signed(FILES)


def _is_written_by_others() -> Iterator[tuple[str, Case]]:
    yield "as_lora_hub_writes_it", accepted(SIGNED)
    yield "as_model_signing_writes_it_for_p256", accepted(_by_model_signing(KEY))
    for word, private in (("p384", P384), ("p521", P521)):
        trusted = home(key("test", private), TEST_RULE)
        yield f"as_model_signing_writes_it_for_{word}", accepted(_by_model_signing(private), home=trusted)
    document = json.loads(SIGNED[SIGNATURE_NAME])
    compact = json.dumps(document, separators=(",", ":")).encode()
    yield "bundle_is_compact", accepted({**FILES, SIGNATURE_NAME: compact})
    tabs = json.dumps(document, indent="\t").replace("\n", "\r\n").encode()
    yield "bundle_is_indented_by_tabs", accepted({**FILES, SIGNATURE_NAME: tabs})
    statement = json.dumps(statement_of(FILES), separators=(",", ":")).encode()
    yield "statement_is_compact", accepted({**FILES, SIGNATURE_NAME: dump(bundle_of(statement))})


def _by_model_signing(private: PrivateKey) -> Files:
    """Return the version, signed as the package ``model-signing`` 1.1.1 does it: its order, its white space."""
    said = statement_of(FILES)
    names = ("digest", "algorithm", "name")
    resources = [{name: resource[name] for name in names} for resource in said["predicate"]["resources"]]
    serialization = {
        "ignore_paths": [".gitignore", ".git", ".gitattributes", ".github"],
        "method": "files",
        "hash_type": "sha256",
        "allow_symlinks": False,
    }
    said["subject"][0]["name"] = "1.0.0"
    said["predicate"] = {"serialization": serialization, "resources": resources}
    bundle = bundle_of(json.dumps(said, indent=2).encode(), private)
    return {**FILES, SIGNATURE_NAME: json.dumps(bundle, separators=(",", ":")).encode()}


def _is_said_in_other_ways() -> Iterator[tuple[str, Case]]:
    def saying(change: Change) -> Case:
        return accepted(signed(FILES, statement=change))

    def around(change: Change) -> Case:
        return accepted(signed(FILES, bundle=change))

    yield "predicate_has_unknown_fields", saying(lambda d: d["predicate"].update(tool={"name": "x", "list": [1, None]}))
    yield "resource_has_unknown_fields", saying(lambda d: d["predicate"]["resources"][0].update(size=1, mode="0644"))
    yield "serialization_has_unknown_fields", saying(lambda d: d["predicate"]["serialization"].update(shard_size=None))
    yield "allow_symlinks_is_missing", saying(lambda d: d["predicate"]["serialization"].pop("allow_symlinks"))
    yield "ignore_paths_are_missing", saying(lambda d: d["predicate"]["serialization"].pop("ignore_paths"))
    yield "model_card_is_ignored", saying(lambda d: d["predicate"]["serialization"]["ignore_paths"].append("README.md"))
    yield "subject_has_another_name", saying(lambda d: d["subject"][0].update(name="C:\\Users\\me\\adapter"))
    yield "keyid_is_not_empty", around(lambda d: d["dsseEnvelope"]["signatures"][0].update(keyid="whatever"))
    yield "keyid_is_missing", around(lambda d: d["dsseEnvelope"]["signatures"][0].pop("keyid"))
    yield "log_entries_are_missing", around(lambda d: d["verificationMaterial"].pop("tlogEntries"))
    yield "signature_has_the_other_s", accepted({**FILES, SIGNATURE_NAME: _with_the_other_s()})
    yield "timestamps_are_none", around(lambda d: d["verificationMaterial"].update(timestampVerificationData={}))


def _with_the_other_s() -> bytes:
    """Return a bundle with the second signature that anybody can compute from one of ECDSA: (r, n - s)."""
    payload = dump(statement_of(FILES))
    r, s = decode_dss_signature(sign(pre_authentication(payload), KEY))
    return dump(bundle_of(payload, signature=encode_dss_signature(r, _ORDER_OF_P256 - s)))


_ORDER_OF_P256 = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def _is_trusted_in_other_ways() -> Iterator[tuple[str, Case]]:
    one, two, test = *TWO, TEST_KEY
    both = signed(SIGNED, SECOND, name=further_name(SECOND))
    yield "two_signers_are_needed", accepted(both, home=home(one, two, rule("org/*", "one", "two", threshold=2)))
    expired = key("two", SECOND, not_after=LONG_AGO)
    yield "one_of_two_keys_has_expired", accepted(both, home=home(one, expired, rule("org/*", "one", "two")))
    gone = home(one, two, rule("org/*", "one", "two"), revoked(key=fingerprint(SECOND)))
    yield "one_of_two_keys_is_revoked", accepted(both, home=gone)
    yield "stranger_signed_as_well", accepted(signed(SIGNED, STRANGER, name=further_name(STRANGER)))
    stranger_first = {**signed(FILES, STRANGER), further_name(KEY): SIGNED[SIGNATURE_NAME]}
    yield "stranger_signed_first", accepted(stranger_first)
    window = key("test", KEY, not_before=LONG_AGO, not_after=FAR_AWAY)
    yield "key_is_valid_now", accepted(SIGNED, home=home(window, TEST_RULE))
    other = key("other", STRANGER)
    narrow = home(test, other, rule("*", "other"), rule("org/*", "other"), rule("org/task", "test"))
    yield "narrower_rule_wins", accepted(SIGNED, home=narrow)
    yield "rule_for_everything", accepted(SIGNED, home=home(test, rule("*", "test")))
    limits = rule("org/*", "test", min_version="1.0.0", max_r=1, max_size=10_000)
    yield "limits_are_just_met", accepted(SIGNED, home=home(test, limits))
    another = revoked(digest=ANOTHER, reason="x")
    yield "another_digest_is_revoked", accepted(SIGNED, home=home(test, TEST_RULE, another))
    yield "unsigned_and_pinned", accepted(FILES, home=home(test, TEST_RULE, pin(digest(FILES))))
    yield "unsigned_and_named_by_digest", accepted(FILES, reference=f"org/task@{digest(FILES)}")
    yield "unsigned_and_covered_by_no_rule", accepted(FILES, home=home(test, rule("another/*", "test")))
    yield "seen_before", accepted(SIGNED, home=seen("1.0.0", digest(SIGNED)))
    broken = {**FILES, SIGNATURE_NAME: b"{}"}
    pinned = home(test, TEST_RULE, pin(digest(FILES)))
    yield "unsigned_and_pinned_beside_a_broken_bundle", accepted(broken, home=pinned)
    yield "older_version_is_named", accepted(SIGNED, home=seen("1.1.0", ANOTHER))
    newer = {f"1.1.0/{n}": c for n, c in version(manifest=lambda d: d.update(version="1.1.0")).items()}
    yield "newest_version_is_not_trusted", accepted(SIGNED, beside=newer, reference="org/task")
    agrees = {"lora-hub.trust.toml": policy(test, TEST_RULE, pin(digest(FILES)))}
    yield "project_agrees", accepted(SIGNED, project=agrees)
    yield "project_says_nothing", accepted(SIGNED, project={"lora-hub.trust.toml": b"version = 1\n"})
    yield "newest_version_is_meant", accepted(SIGNED, reference="org/task")
    yield "range_is_meant", accepted(SIGNED, reference="org/task@^1.0")
    prerelease = signed(version(manifest=lambda d: d.update(version="1.0.0-rc.1")))
    yield (
        "prerelease_is_named",
        accepted(prerelease, reference="org/task@1.0.0-rc.1", special={"version": "1.0.0-rc.1"}),
    )
    forged = yank(STRANGER, digest(SIGNED))
    yield "stranger_yanks_it", accepted(SIGNED, beside=forged, reference="org/task")
    yield "something_else_is_yanked", accepted(SIGNED, beside=yank(KEY, ANOTHER), reference="org/task")
    yield "yanked_and_named_exactly", accepted(SIGNED, beside=yank(KEY, digest(SIGNED)))


def cases() -> Iterator[tuple[str, Case]]:
    """Yield the vectors by name."""
    yield from _is_written_by_others()
    yield from _is_said_in_other_ways()
    yield from _is_trusted_in_other_ways()
