"""May an adapter be used? The decision as a table, and what no policy and no claim may ever make of it."""

import dataclasses
import datetime as dt

import pytest
from adapter_files import adapter_files
from hypothesis import given
from hypothesis import strategies as st

from lora_hub.documents.authorization import Claim, authorize, counted, narrow, pin_command, summary
from lora_hub.documents.manifest import Manifest, publish
from lora_hub.documents.signers import Identity, PublicKey, Signer
from lora_hub.documents.trust_entries import Key, Pin, Revocation, Rule
from lora_hub.documents.trust_policy import NOBODY, TrustPolicy
from lora_hub.documents.verified_adapter import manifest_digest, verify
from lora_hub.errors import PolicyError, UntrustedError
from lora_hub.reference import AdapterRef
from lora_hub.version import Version

HUB, MIRROR = "hf://", "file:///srv/adapters"
EXACT = AdapterRef.parse("org/task@1.2.0")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DRAFT = verify(adapter_files().files(), source="test").manifest.to_bytes()
MANIFEST = publish(DRAFT, reference=EXACT, created="2026-01-31T12:00:00Z")
DOCUMENT, DIGEST, OTHER = Manifest.parse(MANIFEST), manifest_digest(MANIFEST), f"sha256:{'7e' * 32}"
NOW = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
SECOND = dt.timedelta(seconds=1)

# Nothing here looks into a key: its text is enough to tell it from others.
KEYS = {name: Key(name=name, public=PublicKey(f"the key of {name}")) for name in ("alice", "bob", "carol")}
CI = Identity(identity="ci@org.example", issuer="https://accounts.example")
ALICE, BOB, CAROL = (Signer(key.fingerprint) for key in KEYS.values())
KEYLESS = Signer(CI)


def claim(**changes) -> Claim:
    """What is known of org/task@1.2.0 on the Hub, which nobody signed."""
    values = {"registry": HUB, "is_remote": True, "reference": EXACT, "digest": DIGEST, "manifest": DOCUMENT}
    return Claim(**(values | changes))


def policy(*entries, keys=None) -> TrustPolicy:
    """A policy that knows three keys, or *keys*, and has *entries*."""
    of = {kind: tuple(entry for entry in entries if isinstance(entry, kind)) for kind in (Rule, Revocation, Pin)}
    return TrustPolicy(keys=keys or tuple(KEYS.values()), rules=of[Rule], revoked=of[Revocation], pins=of[Pin])


def rule(scope="org/task", *, keys=("alice",), **changes) -> Rule:
    return Rule(scope=scope, keys=keys, **changes)


def pin(**changes) -> Pin:
    return Pin(**({"registry": HUB, "name": "org/task", "version": "1.2.0", "digest": DIGEST} | changes))


def until(**window) -> tuple[Key, ...]:
    """The keys, of which that of alice has a window."""
    return (dataclasses.replace(KEYS["alice"], **window), KEYS["bob"])


def allows(decision) -> bool:
    return decision.refusal is None


ACCEPTED = None
REVOKED_ALICE = Revocation(key=KEYS["alice"].fingerprint)
HERE = {"registry": MIRROR, "is_remote": False}
TWO = rule(keys=("alice", "bob"), identities=(CI,), threshold=2)

# What the policy says, what is claimed, and which refusal that gives, if one.
TABLE = {
    # Nobody is trusted but a directory of this machine.
    "no rule, remote": (policy(), {}, UntrustedError),
    "no rule, remote, signed": (policy(), {"signers": (ALICE,)}, UntrustedError),
    "no rule, remote, signed by somebody": (policy(), {"strangers": (ALICE,)}, UntrustedError),
    "no rule, a directory": (policy(), HERE, ACCEPTED),
    "a rule for others, remote": (policy(rule("org/other")), {"signers": (ALICE,)}, UntrustedError),
    "a rule for others, a directory": (policy(rule("org/other")), HERE, ACCEPTED),
    # Where a rule covers the name, it decides, in a directory as well.
    "a rule, unsigned": (policy(rule()), {}, UntrustedError),
    "a rule, unsigned in a directory": (policy(rule()), HERE, UntrustedError),
    "a rule, signed": (policy(rule()), {"signers": (ALICE,)}, ACCEPTED),
    "a rule, signed in a directory": (policy(rule()), {**HERE, "signers": (ALICE,)}, ACCEPTED),
    "a rule, signed by another key": (policy(rule()), {"signers": (BOB,)}, UntrustedError),
    "a rule, said to be signed": (policy(rule()), {"strangers": (ALICE,)}, UntrustedError),
    "a rule for the org": (policy(rule("org/*")), {"signers": (ALICE,)}, ACCEPTED),
    "a rule for all": (policy(rule("*")), {"signers": (ALICE,)}, ACCEPTED),
    "a rule, signed by a commit": (policy(rule()), {"reference": EXACT.at(COMMIT), "signers": (ALICE,)}, ACCEPTED),
    # Keyless signers.
    "an identity": (policy(rule(keys=(), identities=(CI,))), {"signers": (KEYLESS,)}, ACCEPTED),
    "an identity of another issuer": (
        policy(rule(keys=(), identities=(dataclasses.replace(CI, issuer="https://evil.example"),))),
        {"signers": (KEYLESS,)},
        UntrustedError,
    ),
    "another identity": (
        policy(rule(keys=(), identities=(dataclasses.replace(CI, identity="ci@org.example.evil"),))),
        {"signers": (KEYLESS,)},
        UntrustedError,
    ),
    # Thresholds.
    "one of two": (policy(TWO), {"signers": (ALICE,)}, UntrustedError),
    "one of two, twice": (policy(TWO), {"signers": (ALICE, ALICE)}, UntrustedError),
    "one of two, and a stranger": (policy(TWO), {"signers": (ALICE, CAROL)}, UntrustedError),
    "two of two": (policy(TWO), {"signers": (ALICE, BOB)}, ACCEPTED),
    "a key and an identity": (policy(TWO), {"signers": (KEYLESS, BOB)}, ACCEPTED),
    "two of two, one of them revoked": (policy(TWO, REVOKED_ALICE), {"signers": (ALICE, BOB)}, PolicyError),
    "three, one of them revoked": (policy(TWO, REVOKED_ALICE), {"signers": (ALICE, BOB, KEYLESS)}, ACCEPTED),
    # Keys that are revoked, and their windows.
    "a revoked key": (policy(rule(), REVOKED_ALICE), {"signers": (ALICE,)}, PolicyError),
    "a revoked key beside a good one": (
        policy(rule(keys=("alice", "bob")), REVOKED_ALICE),
        {"signers": (ALICE, BOB)},
        ACCEPTED,
    ),
    "a revoked key of no rule": (
        policy(rule(), Revocation(key=KEYS["bob"].fingerprint)),
        {"signers": (ALICE, BOB)},
        ACCEPTED,
    ),
    "not valid yet": (policy(rule(), keys=until(not_before=NOW + SECOND)), {"signers": (ALICE,)}, PolicyError),
    "valid from now on": (policy(rule(), keys=until(not_before=NOW)), {"signers": (ALICE,)}, ACCEPTED),
    "valid up to now": (policy(rule(), keys=until(not_after=NOW)), {"signers": (ALICE,)}, ACCEPTED),
    "not valid any more": (policy(rule(), keys=until(not_after=NOW - SECOND)), {"signers": (ALICE,)}, PolicyError),
    "not valid any more beside a good one": (
        policy(rule(keys=("alice", "bob")), keys=until(not_after=NOW - SECOND)),
        {"signers": (ALICE, BOB)},
        ACCEPTED,
    ),
    # Digests.
    "a named digest": (policy(), {"named": DIGEST}, ACCEPTED),
    "another digest is named": (policy(), {"named": OTHER}, PolicyError),
    "a named digest under a rule": (policy(rule()), {"named": DIGEST}, ACCEPTED),
    "another digest is named under a rule": (policy(rule()), {"named": OTHER, "signers": (ALICE,)}, PolicyError),
    "another digest is named in a directory": (policy(), {**HERE, "named": OTHER}, PolicyError),
    "pinned": (policy(pin()), {}, ACCEPTED),
    "pinned under a rule": (policy(pin(), rule()), {}, ACCEPTED),
    "pinned as another digest": (policy(pin(digest=OTHER)), {}, PolicyError),
    "pinned as another digest, and signed": (
        policy(pin(digest=OTHER), rule()),
        {"signers": (ALICE,)},
        PolicyError,
    ),
    "pinned as another digest in a directory": (policy(pin(digest=OTHER, registry=MIRROR)), HERE, PolicyError),
    "pinned as another digest, which is named": (policy(pin(digest=OTHER)), {"named": DIGEST}, ACCEPTED),
    "pinned in another registry": (policy(pin(registry=MIRROR)), {}, UntrustedError),
    "another version is pinned": (policy(pin(version="1.2.1")), {}, UntrustedError),
    "another adapter is pinned": (policy(pin(name="org/other")), {}, UntrustedError),
    "pinned by its commit": (
        policy(pin(version=None, commit=COMMIT)),
        {"reference": EXACT.at(COMMIT)},
        ACCEPTED,
    ),
    "another commit is pinned": (policy(pin(version=None, commit=COMMIT)), {}, UntrustedError),
    # What is revoked is refused whatever speaks for it.
    "a revoked digest": (policy(Revocation(digest=DIGEST)), {}, PolicyError),
    "a revoked digest in a directory": (policy(Revocation(digest=DIGEST)), HERE, PolicyError),
    "a revoked digest that is signed": (
        policy(rule(), Revocation(digest=DIGEST)),
        {"signers": (ALICE,)},
        PolicyError,
    ),
    "a revoked digest that is named": (policy(Revocation(digest=DIGEST)), {"named": DIGEST}, PolicyError),
    "a revoked digest that is pinned": (policy(pin(), Revocation(digest=DIGEST)), {}, PolicyError),
    "another digest is revoked": (policy(rule(), Revocation(digest=OTHER)), {"signers": (ALICE,)}, ACCEPTED),
    # Limits hold whoever signed.
    "the least version": (
        policy(rule(min_version=Version(1, 2, 0))),
        {"signers": (ALICE,)},
        ACCEPTED,
    ),
    "below the least version": (policy(rule(min_version=Version(1, 2, 1))), {"signers": (ALICE,)}, PolicyError),
    "a pre-release of the least version": (
        policy(rule(min_version=Version(1, 2, 0))),
        {"reference": AdapterRef.parse("org/task@1.2.0-rc.1"), "signers": (ALICE,)},
        PolicyError,
    ),
    "pinned below the least version": (policy(pin(), rule(min_version=Version(2, 0, 0))), {}, PolicyError),
    "named below the least version": (
        policy(rule(min_version=Version(2, 0, 0))),
        {"named": DIGEST},
        PolicyError,
    ),
    "a commit of a version below the least": (
        policy(rule(min_version=Version(1, 2, 1))),
        {"reference": EXACT.at(COMMIT), "signers": (ALICE,)},
        PolicyError,
    ),
    "the largest rank": (policy(rule(max_r=DOCUMENT.lora.r)), {"signers": (ALICE,)}, ACCEPTED),
    "above the largest rank": (policy(rule(max_r=DOCUMENT.lora.r - 1)), {"signers": (ALICE,)}, PolicyError),
    "the largest size": (policy(rule(max_size=DOCUMENT.size)), {"signers": (ALICE,)}, ACCEPTED),
    "above the largest size": (policy(rule(max_size=DOCUMENT.size - 1)), {"signers": (ALICE,)}, PolicyError),
    "the limits of another rule": (
        policy(rule(), rule("org/*", max_r=1, min_version=Version(9, 0, 0))),
        {"signers": (ALICE,)},
        ACCEPTED,
    ),
}


@pytest.mark.parametrize("case", TABLE)
def test_the_decision(case):
    """Each row of the table is decided as it says, and the decision says why."""
    entries, changes, expected = TABLE[case]
    decision = authorize(entries, claim(**changes), NOW)

    assert (type(decision.refusal) if decision.refusal else None) is expected
    assert decision.reason
    assert decision.reason.isprintable()


@pytest.mark.parametrize("case", [case for case, (*_, expected) in TABLE.items() if expected])
def test_a_refusal_is_raised_and_says_what_to_do(case):
    """A refused decision raises its error, which names the adapter and has a hint."""
    entries, changes, expected = TABLE[case]
    with pytest.raises(expected) as caught:
        authorize(entries, claim(**changes), NOW).require()

    assert "org/task" in caught.value.message
    assert caught.value.hint


def test_an_accepted_decision_raises_nothing():
    """Where nothing is refused, nothing is raised."""
    authorize(policy(rule()), claim(signers=(ALICE,)), NOW).require()


@pytest.mark.parametrize(
    ("scopes", "applies"),
    [
        (["*", "org/*", "org/task"], "org/task"),
        (["org/task", "org/*", "*"], "org/task"),
        (["*", "org/*"], "org/*"),
        (["org/*", "*"], "org/*"),
        (["*", "other/task", "other/*"], "*"),
        (["other/task", "other/*"], None),
        ([], None),
    ],
)
def test_the_narrowest_rule_alone_applies(scopes, applies):
    """Of several rules that cover a name, in whatever order they stand, the narrowest decides, and it alone."""
    rules = [rule(scope, keys=("alice",) if scope == applies else ("bob",)) for scope in scopes]
    decision = authorize(policy(*rules), claim(signers=(ALICE,)), NOW)

    assert (decision.rule.scope if decision.rule else None) == applies
    assert allows(decision) == (applies is not None)


def test_a_broader_rule_does_not_help():
    """Who may sign everything of the org may not sign the one adapter that has a rule of its own."""
    decision = authorize(policy(rule(), rule("org/*", keys=("bob",))), claim(signers=(BOB,)), NOW)

    assert isinstance(decision.refusal, UntrustedError)


@pytest.mark.parametrize("changes", [{"named": OTHER}, {}], ids=["named", "pinned"])
def test_only_another_digest_is_an_alarm(changes):
    """That a version is another one now is more than a refusal: no older version may stand in for it."""
    entries = policy() if changes else policy(pin(digest=OTHER))

    assert authorize(entries, claim(**changes), NOW).is_alarm
    assert not authorize(policy(Revocation(digest=DIGEST)), claim(**changes), NOW).is_alarm
    assert not authorize(policy(), claim(), NOW).is_alarm


@pytest.mark.parametrize(("entries", "changes"), [(policy(pin()), {}), (policy(), {"named": DIGEST})])
def test_a_digest_speaks_for_itself(entries, changes):
    """What is accepted by its digest is said to be pinned, whoever signed it besides."""
    decision = authorize(entries, claim(signers=(ALICE,), **changes), NOW)

    assert decision.is_pinned
    assert "digest" in decision.reason


def test_a_decision_names_the_signers_that_count():
    """Those whom the rule names are named, and nobody else who signed as well."""
    decision = authorize(policy(TWO), claim(signers=(CAROL, BOB, ALICE)), NOW)

    assert decision.signers == (BOB, ALICE)
    assert str(BOB) in decision.reason
    assert str(CAROL) not in decision.reason


# What a refusal tells


def test_an_unsigned_version_can_be_pinned():
    """The refusal says what it is, its digest, and the line that pins exactly that."""
    refusal = authorize(policy(), claim(), NOW).refusal

    for told in ("org/task@1.2.0", HUB, "unsigned", "org/base", "r 2", DIGEST):
        assert told in refusal.message
    assert f"`lora-hub trust pin org/task@1.2.0 --digest {DIGEST}`" in refusal.hint
    assert "trust add" not in refusal.hint


@pytest.mark.parametrize("who", ["signers", "strangers"])
def test_a_signed_version_can_be_trusted_by_its_key(who):
    """The refusal says whose key it is said to be, and the line that trusts that key for this name."""
    refusal = authorize(policy(), claim(**{who: (ALICE,)}, carried=frozenset({ALICE.who})), NOW).refusal
    line = f"`lora-hub trust add {ALICE.who} --from org/task@1.2.0 --scope org/task`"

    assert f"signed by key {ALICE.who}" in refusal.message
    assert line in refusal.hint
    assert DIGEST in refusal.hint


def test_a_key_that_did_not_come_along_must_be_fetched():
    """Where the signature does not bring its key along, no line is shown that could not work."""
    refusal = authorize(policy(), claim(strangers=(ALICE,)), NOW).refusal

    assert f"signed by key {ALICE.who}" in refusal.message
    assert "trust add" not in refusal.hint
    assert "get the public key" in refusal.hint


def test_a_signed_version_can_be_trusted_by_its_identity():
    """The same for a keyless signer, whose identity is quoted for a shell."""
    odd = Signer(Identity(identity="it's me", issuer="https://accounts.example/$HOME"))
    refusal = authorize(policy(), claim(signers=(odd,)), NOW).refusal

    assert """--identity 'it'"'"'s me' --issuer 'https://accounts.example/$HOME' --scope org/task`""" in refusal.hint


def test_a_line_names_the_registry():
    """For another registry than the Hub, the lines say which, quoted for a shell."""
    url = "file:///srv/my adapters"
    refusal = authorize(
        policy(rule()), claim(registry=url, strangers=(BOB,), carried=frozenset({BOB.who})), NOW
    ).refusal

    assert refusal.hint.count("--registry 'file:///srv/my adapters'") == 2
    assert "--registry" not in pin_command(HUB, EXACT, DIGEST)


def test_the_line_for_a_directory_is_quoted():
    """The path of a directory may have spaces: the line that names it can be pasted all the same."""
    place = {"registry": "/my adapter", "is_directory": True}
    refusal = authorize(policy(), claim(**place, strangers=(BOB,), carried=frozenset({BOB.who})), NOW).refusal

    assert "--from '/my adapter' " in refusal.hint


def test_a_missing_signer_is_told():
    """Where too few have signed, the refusal says who has, how many must, and how the others can."""
    refusal = authorize(policy(TWO), claim(signers=(ALICE,)), NOW).refusal

    assert str(ALICE) in refusal.message
    assert "2 of its 3 signers" in refusal.message
    assert "sign --add" in refusal.hint


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (policy(rule(), REVOKED_ALICE), "is revoked"),
        (policy(rule(), keys=until(not_after=NOW - SECOND)), "is not valid now"),
        (policy(rule(), Revocation(digest=DIGEST, reason="it leaks\x1b[2J")), r"is revoked (`\"it leaks\u001b[2J\"`)"),
        (policy(rule(max_r=1)), "has r 2, the rule for `org/task` allows at most 1"),
        (
            policy(rule(min_version=Version(2, 0, 0))),
            "has version 1.2.0, the rule for `org/task` allows at least 2.0.0",
        ),
    ],
    ids=["key", "window", "digest", "r", "version"],
)
def test_a_refusal_says_why(entries, told):
    """What the policy forbids is named, with what was found and what was allowed."""
    refusal = authorize(entries, claim(signers=(ALICE,)), NOW).refusal

    assert told.replace('\\"', '"') in refusal.message
    assert refusal.message.isprintable()


def test_a_summary_is_one_line():
    """What an adapter says of itself cannot move the cursor."""
    manifest = dataclasses.replace(DOCUMENT, base=dataclasses.replace(DOCUMENT.base, repo="x\x1b[2J\n"))

    assert summary(manifest).isprintable()
    assert "an unnamed base" in summary(
        dataclasses.replace(DOCUMENT, base=dataclasses.replace(DOCUMENT.base, repo=None))
    )


# The policy of a project

SIGNED = {"signers": (ALICE,)}
NARROWED = {
    "nothing": (NOBODY, SIGNED, ACCEPTED),
    "a rule that trusts the signer": (policy(rule()), SIGNED, ACCEPTED),
    "a rule that trusts another one": (policy(rule(keys=("bob",))), SIGNED, UntrustedError),
    "a rule for another adapter": (policy(rule("org/other")), SIGNED, PolicyError),
    "a rule for another adapter, in a directory": (policy(rule("org/other")), HERE, PolicyError),
    "a higher threshold": (policy(TWO), SIGNED, UntrustedError),
    "a least version": (policy(rule(min_version=Version(2, 0, 0))), SIGNED, PolicyError),
    "a largest rank": (policy(rule(max_r=1)), SIGNED, PolicyError),
    "a largest size": (policy(rule(max_size=1)), SIGNED, PolicyError),
    "the signer is revoked": (policy(rule(), REVOKED_ALICE), SIGNED, PolicyError),
    "the digest is revoked": (policy(Revocation(digest=DIGEST)), SIGNED, PolicyError),
    "the digest is revoked, and named": (policy(Revocation(digest=DIGEST)), {"named": DIGEST}, PolicyError),
    "another digest is revoked": (policy(Revocation(digest=OTHER)), SIGNED, ACCEPTED),
    "pinned": (policy(pin()), SIGNED, ACCEPTED),
    "pinned beside other rules": (policy(pin(), rule("org/other")), SIGNED, ACCEPTED),
    "pinned as another digest": (policy(pin(digest=OTHER)), SIGNED, PolicyError),
    "another version is pinned": (policy(pin(version="1.2.1")), SIGNED, ACCEPTED),
    "a named digest under a rule": (policy(rule(keys=("bob",))), {"named": DIGEST}, ACCEPTED),
    "a named digest without a rule for it": (policy(rule("org/other")), {"named": DIGEST}, PolicyError),
}


@pytest.mark.parametrize("case", NARROWED)
def test_a_project_can_refuse(case):
    """A project that forbids what the user accepts is obeyed; one that says nothing of it changes nothing."""
    project, changes, expected = NARROWED[case]
    refusal = narrow(project, claim(**changes), NOW).refusal

    assert (type(refusal) if refusal else None) is expected


# What never happens

SIGNERS = [ALICE, BOB, CAROL, KEYLESS]
LIMITS = {
    "min_version": st.sampled_from([None, Version(1, 0, 0), Version(2, 0, 0)]),
    "max_r": st.sampled_from([None, 1, 2]),
}


@st.composite
def rules(draw) -> Rule:
    keys = draw(st.lists(st.sampled_from(sorted(KEYS)), unique=True, min_size=1))
    identities = draw(st.sampled_from([(), (CI,)]))
    return Rule(
        scope=draw(st.sampled_from(["org/task", "org/*", "*", "org/other"])),
        keys=tuple(keys),
        identities=identities,
        threshold=draw(st.integers(1, len(keys) + len(identities))),
        **{name: draw(limit) for name, limit in LIMITS.items()},
    )


MOMENTS = st.sampled_from([None, NOW - SECOND, NOW, NOW + SECOND])
REVOCATIONS = st.sampled_from(
    [*(Revocation(key=key.fingerprint) for key in KEYS.values()), Revocation(digest=DIGEST), Revocation(digest=OTHER)]
)


@st.composite
def policies(draw) -> TrustPolicy:
    keys = [dataclasses.replace(key, not_before=draw(MOMENTS), not_after=draw(MOMENTS)) for key in KEYS.values()]
    return TrustPolicy(
        keys=tuple(keys),
        rules=tuple(draw(st.lists(rules(), max_size=3, unique_by=lambda one: one.scope))),
        revoked=tuple(draw(st.lists(REVOCATIONS, max_size=2))),
        pins=draw(st.sampled_from([(), (pin(),), (pin(digest=OTHER),), (pin(registry=MIRROR),)])),
    )


CLAIMS = st.builds(
    claim,
    is_remote=st.booleans(),
    named=st.sampled_from([None, None, DIGEST, OTHER]),
    signers=st.lists(st.sampled_from(SIGNERS), max_size=4).map(tuple),
    strangers=st.lists(st.sampled_from(SIGNERS), max_size=2).map(tuple),
)


@given(entries=policies(), what=CLAIMS, more=st.lists(st.sampled_from(SIGNERS)))
def test_more_signers_never_take_an_acceptance_back(entries, what, more):
    """Whoever signs besides cannot spoil what is accepted already."""
    signed = dataclasses.replace(what, signers=(*what.signers, *more))

    assert allows(authorize(entries, signed, NOW)) >= allows(authorize(entries, what, NOW))


@given(entries=policies(), what=CLAIMS, who=st.lists(st.sampled_from(SIGNERS)))
def test_who_is_only_said_to_have_signed_changes_nothing(entries, what, who):
    """Signatures that were not verified are told, and count for nothing."""
    told = dataclasses.replace(what, strangers=tuple(who))

    assert allows(authorize(entries, told, NOW)) == allows(authorize(entries, what, NOW))


@given(entries=policies(), what=CLAIMS, more=REVOCATIONS)
def test_a_revocation_never_turns_a_refusal_into_an_acceptance(entries, what, more):
    """Whoever revokes something can only lose adapters by it."""
    revoked = dataclasses.replace(entries, revoked=(*entries.revoked, more))

    assert allows(authorize(revoked, what, NOW)) <= allows(authorize(entries, what, NOW))


@given(entries=policies(), what=CLAIMS, moment=st.sampled_from([NOW - SECOND, NOW, NOW + SECOND]))
def test_a_revoked_digest_is_never_accepted(entries, what, moment):
    """No signer, no pin, no named digest and no moment saves it."""
    revoked = dataclasses.replace(entries, revoked=(*entries.revoked, Revocation(digest=DIGEST)))

    assert not allows(authorize(revoked, what, moment))


@given(entries=policies(), what=CLAIMS)
def test_what_is_accepted_has_its_reason(entries, what):
    """It is in a directory that no rule covers, or has the digest that was expected, or enough different signers."""
    decision = authorize(entries, what, NOW)
    if not allows(decision):
        return

    applied = entries.rule("org/task")
    expected = entries.expected(what.registry, what.reference, what.named)
    if expected is not None:
        assert (expected, decision.is_pinned) == (DIGEST, True)
    elif applied is None:
        assert not what.is_remote
    else:
        revoked = {one.key for one in entries.revoked}
        valid = {key.fingerprint for key in entries.keys_of(applied)} - revoked
        counting = {signer for signer in what.signers if signer.who in valid | set(applied.identities)}
        assert len(set(decision.signers)) == len(decision.signers) >= applied.threshold
        assert set(decision.signers) <= counting


@given(entries=policies(), applied=rules(), signers=st.lists(st.sampled_from(SIGNERS)))
def test_a_signer_counts_once(entries, applied, signers):
    """However often somebody signed, it is one signer; and nobody counts whom the rule does not name."""
    counting, _ = counted(entries, applied, signers, NOW)

    assert len(counting) == len(set(counting))
    assert set(counting) <= set(signers)
    assert counting == counted(entries, applied, signers * 2, NOW)[0]


@given(project=policies(), what=CLAIMS)
def test_a_project_accepts_nothing_that_its_own_policy_refuses(project, what):
    """Where a project has something to say, it is as strict as if its policy were that of the user."""
    speaks = project.rule("org/task") or project.pin(what.registry, what.reference)
    if speaks or project.revocation(digest=DIGEST):
        assert allows(narrow(project, what, NOW)) <= allows(authorize(project, what, NOW))
    else:
        assert allows(narrow(project, what, NOW)) == (not project.rules)


@given(project=policies(), what=CLAIMS, more=REVOCATIONS)
def test_a_revocation_of_a_project_never_widens(project, what, more):
    """A project that revokes more accepts no more."""
    revoked = dataclasses.replace(project, revoked=(*project.revoked, more))

    assert allows(narrow(revoked, what, NOW)) <= allows(narrow(project, what, NOW))
