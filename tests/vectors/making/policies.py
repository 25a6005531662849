"""What a trust policy or the memory refuses of a version that is sound; and policies that are no policies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vectors.making.case import Case, malformed, refused
from vectors.making.published import (
    CONFIG_NAME,
    KEY,
    SECOND,
    SIGNATURE_NAME,
    STRANGER,
    Files,
    adapter,
    fingerprint,
    further_name,
    private_pem,
    public_pem,
    signed,
    version,
)
from vectors.making.trust import (
    ANOTHER,
    FAR_AWAY,
    LAST_YEAR,
    LONG_AGO,
    TEST_KEY,
    TEST_RULE,
    TWO,
    USUAL,
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

FILES = signed(version())
DIGEST = digest(FILES)


def _trusts_somebody_else() -> Iterator[tuple[str, Case]]:
    other = key("other", STRANGER)
    narrower = home(TEST_KEY, other, TEST_RULE, rule("org/task", "other"))
    yield "narrower_rule_names_another_key", refused(5, "the rule for `org/task`", FILES, home=narrower)
    wider = home(TEST_KEY, other, rule("*", "test"), rule("org/*", "other"))
    yield "rule_of_the_organisation_names_another_key", refused(5, "the rule for `org/*`", FILES, home=wider)
    yield (
        "rule_for_everything_names_another_key",
        refused(5, "the rule for `*`", FILES, home=home(other, rule("*", "other"))),
    )
    identity = (
        '[[rule]]\nscope = "org/*"\nidentities = [{ identity = "ci@org.example", issuer = "https://issuer.example" }]\n'
    )
    yield "rule_names_an_identity", refused(5, "signed by key", FILES, home=home(TEST_KEY, identity))
    unsigned = version()
    yield (
        "rule_for_everything_covers_the_unsigned",
        refused(5, "unsigned", unsigned, home=home(TEST_KEY, rule("*", "test"))),
    )


def _needs_more_signers() -> Iterator[tuple[str, Case]]:
    both = home(*TWO, rule("org/*", "one", "two", threshold=2))
    yield "threshold_is_not_met", refused(5, "alone", FILES, home=both)
    again = {**FILES, further_name(KEY): FILES[SIGNATURE_NAME]}
    yield "one_signer_signs_twice", refused(5, "alone", again, home=both)
    with_stranger = signed(FILES, STRANGER, name=further_name(STRANGER))
    yield "second_signer_is_a_stranger", refused(5, "alone", with_stranger, home=both)
    with_second = signed(FILES, SECOND, name=further_name(SECOND))
    gone = home(*TWO, rule("org/*", "one", "two", threshold=2), revoked(key=fingerprint(SECOND)))
    yield "second_signer_is_revoked", refused(7, "is revoked", with_second, home=gone)
    old = home(key("one", KEY), key("two", SECOND, not_after=LONG_AGO), rule("org/*", "one", "two", threshold=2))
    yield "second_signer_has_expired", refused(7, "is not valid now", with_second, home=old)


def _withdraws_trust() -> Iterator[tuple[str, Case]]:
    gone = home(TEST_KEY, TEST_RULE, revoked(key=fingerprint(KEY), reason="stolen \u001b[2J\u202e"))
    yield "key_is_revoked", refused(7, "is revoked", FILES, home=gone)
    reason = "a back door \u001b]0;owned\u0007"
    yield (
        "digest_is_revoked",
        refused(7, "is revoked", FILES, home=home(TEST_KEY, TEST_RULE, revoked(digest=DIGEST, reason=reason))),
    )
    pinned = home(TEST_KEY, TEST_RULE, pin(DIGEST), revoked(digest=DIGEST))
    yield "pinned_digest_is_revoked", refused(7, "is revoked", FILES, home=pinned)
    named = home(TEST_KEY, TEST_RULE, revoked(digest=DIGEST))
    yield "named_digest_is_revoked", refused(7, "is revoked", FILES, home=named, reference=f"org/task@{DIGEST}")
    old = home(key("test", KEY, not_after=LAST_YEAR), TEST_RULE)
    yield "key_has_expired", refused(7, "is not valid now", FILES, home=old)
    new = home(key("test", KEY, not_before=FAR_AWAY), TEST_RULE)
    yield "key_is_not_valid_yet", refused(7, "is not valid now", FILES, home=new)
    yield (
        "version_is_too_old",
        refused(7, "at least 1.0.1", FILES, home=home(TEST_KEY, rule("org/*", "test", min_version="1.0.1"))),
    )
    early_version = signed(version(manifest=lambda d: d.update(version="1.0.0-rc.1")))
    early = {"version": "1.0.0-rc.1"}
    since = home(TEST_KEY, rule("org/*", "test", min_version="1.0.0"))
    yield (
        "prerelease_is_too_old",
        refused(7, "at least 1.0.0", early_version, home=since, reference="org/task@1.0.0-rc.1", special=early),
    )
    yield (
        "size_is_too_large",
        refused(7, "at most 100", FILES, home=home(TEST_KEY, rule("org/*", "test", max_size=100))),
    )
    pinned = home(TEST_KEY, rule("org/*", "test", min_version="1.0.1"), pin(DIGEST))
    yield "pinned_version_is_too_old", refused(7, "at least 1.0.1", FILES, home=pinned)
    other = version(manifest=lambda d: d.update(name="org/other"))
    by_digest = f"org/task@{digest(other)}"
    yield "named_digest_is_of_another_adapter", refused(6, "by its manifest", other, reference=by_digest)
    large = signed(version(adapter(r=4), lora={"r": 4, "parameters": 56}))
    yield "rank_is_too_large", refused(7, "at most 2", large, home=home(TEST_KEY, rule("org/*", "test", max_r=2)))


def _remembers() -> Iterator[tuple[str, Case]]:
    yield "version_was_rewritten", refused(7, "never changes", FILES, home=seen("1.0.0", ANOTHER))
    yield "newer_version_is_hidden", refused(7, "1.1.0", FILES, home=seen("1.1.0", ANOTHER), reference="org/task")
    yield (
        "newer_version_is_hidden_from_a_range",
        refused(7, "1.1.0", FILES, home=seen("1.1.0", ANOTHER), reference="org/task@^1"),
    )
    yield "pin_has_another_digest", refused(7, "was pinned as", FILES, home=home(TEST_KEY, TEST_RULE, pin(ANOTHER)))
    unsigned = home(pin(ANOTHER))
    yield "pin_of_the_unsigned_has_another_digest", refused(7, "was pinned as", version(), home=unsigned)
    yield (
        "pinned_version_is_hidden",
        refused(7, "1.1.0", FILES, home=home(TEST_KEY, TEST_RULE, pin(ANOTHER, version="1.1.0")), reference="org/task"),
    )
    yanked = yank(KEY, DIGEST)
    yield "newest_version_is_yanked", refused(7, "was yanked", FILES, beside=yanked, reference="org/task")
    yield "memory_is_damaged", refused(8, "the memory", FILES, home={"seen.json": b"{"})
    links = {"links": {"home/seen.json": "elsewhere.json"}}
    elsewhere = {"elsewhere.json": seen("1.0.0", DIGEST)["seen.json"]}
    yield "memory_is_a_link", refused(7, "symbolic link", FILES, home=elsewhere, special=links)


def _has_a_newer_version() -> Iterator[tuple[str, Case]]:
    made = version(manifest=lambda d: d.update(version="1.1.0"))
    newer = signed(made)

    def beside(files: Files) -> Files:
        return {f"1.1.0/{name}": content for name, content in files.items()}

    lost = refused(
        7, "is refused now", FILES, home=seen("1.1.0", digest(made)), beside=beside(made), reference="org/task"
    )
    yield "newer_version_lost_its_signature", lost
    broken = {**newer, SIGNATURE_NAME: FILES[SIGNATURE_NAME]}
    yield "newer_version_does_not_verify", refused(6, "was signed", FILES, beside=beside(broken), reference="org/task")
    spoilt = {**newer, SIGNATURE_NAME: b"{}"}
    yield "newer_version_has_no_bundle", refused(8, "mediaType", FILES, beside=beside(spoilt), reference="org/task")
    other = {**newer, CONFIG_NAME: newer[CONFIG_NAME] + b" "}
    yield "newer_version_is_changed", refused(6, "the manifest says", FILES, beside=beside(other), reference="org/task")


def _is_in_a_project() -> Iterator[tuple[str, Case]]:
    def project(*tables: str) -> Files:
        return {"lora-hub.trust.toml": policy(*tables)}

    other = key("other", STRANGER)
    mine = project(other, rule("org/*", "other"))
    yield "project_trusts_a_stranger", refused(5, "signed by key", signed(version(), STRANGER), project=mine)
    yield "project_pins_the_unsigned", refused(5, "unsigned", version(), project=project(pin(DIGEST)))
    yield "project_trusts_somebody_else", refused(5, "signed by key", FILES, project=mine)
    nobody = home(TEST_KEY, rule("another/*", "test"))
    yield "project_wants_it_signed", refused(5, "unsigned", version(), home=nobody, project=mine)
    yield "project_does_not_know_it", refused(7, "no rule", FILES, project=project(other, rule("another/*", "other")))
    yield "project_revokes_it", refused(7, "is revoked", FILES, project=project(revoked(digest=DIGEST)))
    yield "project_pins_another_digest", refused(7, "was pinned as", FILES, project=project(pin(ANOTHER)))
    early = project(TEST_KEY, rule("org/*", "test", min_version="1.0.1"))
    yield "project_wants_a_newer_version", refused(7, "at least 1.0.1", FILES, project=early)
    yield "project_has_no_policy", refused(8, "not valid TOML", FILES, project={"lora-hub.trust.toml": b"version"})


def _is_no_policy() -> Iterator[tuple[str, Case]]:
    def of(contains: str, content: bytes, **more: Any) -> Case:
        return refused(8, contains, FILES, home={"trust.toml": content}, **more)

    yield "policy_is_no_toml", of("not valid TOML", USUAL + b"[[rule\n")
    yield "policy_is_not_utf8", of("not valid TOML", USUAL + b"# \xe4\n")
    yield "policy_has_an_escape_sequence", of("not valid TOML", USUAL + b"\x1b[2J = 1\n")
    yield "policy_has_no_version", of("version", USUAL.removeprefix(b"version = 1\n"))
    yield (
        "policy_is_newer",
        of("newer", b"version = 2\n" + USUAL.removeprefix(b"version = 1\n"), error="UnsupportedSchemaError"),
    )
    yield "policy_has_an_unknown_key", of("unknown key", b'default = "accept"\n' + USUAL)
    yield "policy_has_an_unknown_table", of("unknown key", policy(TEST_KEY, TEST_RULE, "[allow]\n"))
    yield "rule_has_an_unknown_key", of("unknown key", policy(TEST_KEY, rule("org/*", "test", max_rank=8)))
    yield "rule_names_an_unknown_key", of("unknown key", policy(TEST_KEY, rule("org/*", "test", "bob")))
    yield "rule_names_nobody", of("`keys` or `identities`", policy(TEST_KEY, rule("org/*")))
    yield "rule_names_a_key_twice", of("each once", policy(TEST_KEY, rule("org/*", "test", "test", threshold=2)))
    yield "rule_stands_twice", of("stands there twice", policy(TEST_KEY, TEST_RULE, TEST_RULE))
    yield "scope_is_a_pattern", of("scope", policy(TEST_KEY, rule("org/ta*", "test")))
    yield "threshold_is_zero", of("threshold", policy(TEST_KEY, rule("org/*", "test", threshold=0)))
    yield "threshold_is_beyond_the_signers", of("threshold", policy(TEST_KEY, rule("org/*", "test", threshold=2)))
    yield "key_has_two_names", of("stands there twice", policy(TEST_KEY, key("bob", KEY), TEST_RULE))
    yield (
        "key_is_private",
        of('found `"-----BEGIN PRIVATE KEY-----"`', USUAL.replace(public_pem(KEY), private_pem(KEY))),
    )
    short = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEAAAAA\n-----END PUBLIC KEY-----\n"
    yield "key_is_of_another_kind", of("a public key", USUAL.replace(public_pem(KEY), short.encode()))
    yield "time_has_no_offset", of("offset", policy(key("test", KEY, not_after="2030-01-01T00:00:00"), TEST_RULE))
    yield "revocation_is_of_nothing", of("`key` or a `digest`", policy(TEST_KEY, TEST_RULE, revoked(reason="x")))
    yield "pins_contradict_each_other", of("pinned twice", policy(pin(DIGEST), pin(ANOTHER)))
    yield "pin_has_a_signer", of("unknown key", policy(pin(DIGEST, signer="test")))


def _belongs_to_others() -> Iterator[tuple[str, Case]]:
    usual = {"trust.toml": USUAL}
    open_to_all = {"modes": {"home/trust.toml": "0666"}}
    yield "policy_may_be_written_by_all", refused(7, "may be written by others", FILES, home=usual, special=open_to_all)
    open_to_group = {"modes": {"home/trust.toml": "0660"}}
    yield (
        "policy_may_be_written_by_a_group",
        refused(7, "may be written by others", FILES, home=usual, special=open_to_group),
    )
    links = {"links": {"home/trust.toml": "elsewhere.toml"}}
    yield "policy_is_a_link", refused(7, "symbolic link", FILES, home={"elsewhere.toml": USUAL}, special=links)
    yield "policy_is_a_fifo", malformed("not a regular file", FILES, special={"fifo": ["home/trust.toml"]})
    yield "policy_is_a_directory", malformed("directory", FILES, special={"directory": ["home/trust.toml"]})
    memory = {"modes": {"home/seen.json": "0666"}}
    yield (
        "memory_may_be_written_by_all",
        refused(7, "may be written by others", FILES, home=seen("1.0.0", DIGEST), special=memory),
    )


def cases() -> Iterator[tuple[str, Case]]:
    """Yield the vectors by name."""
    yield from _trusts_somebody_else()
    yield from _needs_more_signers()
    yield from _withdraws_trust()
    yield from _remembers()
    yield from _has_a_newer_version()
    yield from _is_in_a_project()
    yield from _is_no_policy()
    yield from _belongs_to_others()
