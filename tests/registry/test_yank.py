"""Yanked versions in every registry: passed over by whoever floats, told to whoever stays, and never by strangers."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import threading
from pathlib import Path

import pytest
from adapter_files import adapter_files

from lora_hub import api, vouch
from lora_hub import trust as trusts
from lora_hub.documents.bundle import SIGNATURE_NAME
from lora_hub.documents.fields import sha256
from lora_hub.documents.signers import PublicKey
from lora_hub.documents.statement import MAX_REASON, YANKED, Yank, yank_name
from lora_hub.errors import LoraHubError, MalformedError, NotFoundError, PolicyError, UsageError
from lora_hub.reference import AdapterRef
from lora_hub.registry.find import find
from lora_hub.registry.memory import default_memory
from lora_hub.registry.network import Retry
from lora_hub.registry.registry import Registry
from lora_hub.signing.keys import PrivateKey
from lora_hub.signing.sign import sign
from lora_hub.version import Version

OLD, NEW = "org/task@1.0.0", "org/task@1.1.0"
REASON = "it forgets its base"
OVER_XET = "hub_over_xet"
FLOATING = ["org/task", "org/task@1", "org/task@^1.0"]
NOTHING = f"sha256:{'0' * 64}"

pytestmark = pytest.mark.usefixtures("impatient")


@pytest.fixture
def push(tmp_path):
    """Publish an adapter, as whoever one is; its numbers depend on *reference*."""

    def push(registry: Registry, reference: str) -> str:
        seed = int(sha256(reference.encode())[:6], 16)
        return api.push(
            adapter_files(seed=seed).write(tmp_path / f"adapter-{seed}"), reference, registry=registry
        ).digest

    return push


@pytest.fixture
def publish(key_of, push, become):
    """Publish both versions as alice, and be a reader who trusts her; return her key."""

    def publish(registry: Registry) -> PublicKey:
        key = key_of("alice")
        push(registry, OLD)
        push(registry, NEW)
        become("reader")
        trusts.trust_key(key, scope="org/*")
        return key

    return publish


@pytest.fixture
def yank(become):
    """Yank a version as somebody else; the reader stays who they are."""

    def yank(registry: Registry, reference: str = NEW, *, by: str = "alice", reason: str = REASON) -> Yank:
        become(by)
        done = vouch.yank(reference, reason=reason, registry=registry)
        become("reader")
        return done

    return yank


@pytest.fixture
def yanked(registry, publish, yank) -> PublicKey:
    """Both versions are published, and the newer one is yanked; the key of alice, whom the reader trusts."""
    key = publish(registry)
    yank(registry)
    return key


def means(reference: str, registry: Registry, **options) -> str:
    """Return what a reference means, and that it is no yanked version."""
    pulled = api.pull(reference, registry=registry, **options)

    assert pulled.yanked is None
    return str(pulled.reference)


# Who floats


@pytest.mark.parametrize("reference", FLOATING)
def test_a_floating_reference_passes_a_yanked_version_over(registry, yanked, reference):
    """Whoever names no exact version gets the one before, and is told which was passed over and why."""
    pulled = api.pull(reference, registry=registry)

    assert (str(pulled.reference), pulled.yanked) == (OLD, None)
    assert str(pulled.skipped) == NEW
    assert "was yanked" in pulled.skipped_because
    assert REASON in pulled.skipped_because


def test_a_lock_passes_a_yanked_version_over(registry, yanked, tmp_path):
    """A new lock file has the version before."""
    locked = api.lock(["org/task"], lock=tmp_path / "x.lock", registry=registry)

    assert [str(entry.exact) for entry in locked.file.entries] == [OLD]
    assert [str(choice.skipped) for choice in locked.choices] == [NEW]


@pytest.mark.parametrize("reference", FLOATING)
def test_who_had_a_yanked_version_goes_back(registry, publish, yank, reference):
    """Its publisher took it back, so the version before is no rollback, also for whoever had it already."""
    publish(registry)
    assert means(reference, registry) == NEW
    yank(registry)

    assert means(reference, registry) == OLD


@pytest.mark.parametrize("reference", FLOATING)
def test_where_all_are_yanked_there_is_none(registry, yanked, yank, reference):
    """If nothing else is left, the reference is refused (7), and the hint says how to have it all the same."""
    yank(registry, OLD)
    with pytest.raises(PolicyError, match="was yanked") as caught:
        api.pull(reference, registry=registry)

    assert "exactly" in caught.value.hint


def test_a_next_version_is_meant_again(registry, yanked, push, become):
    """What is published after a yank is the newest, and the statement stays where it is."""
    become("alice")
    push(registry, "org/task@1.2.0")
    become("reader")

    assert means("org/task", registry) == "org/task@1.2.0"
    assert api.pull(NEW, registry=registry).yanked


@pytest.mark.parametrize("version", ["0.9.0", "1.2.0-rc.1"])
def test_publishing_beside_main_keeps_the_statement(registry, yanked, push, become, version):
    """So does an older version or a pre-release, published after a yank."""
    become("alice")
    push(registry, f"org/task@{version}")
    become("reader")

    assert means("org/task", registry) == OLD
    assert api.pull(NEW, registry=registry).yanked
    assert means(f"org/task@{version}", registry) == f"org/task@{version}"


def test_only_the_named_version_is_yanked(registry, publish, yank):
    """The other versions are not: an older one is yanked, and the newest is meant as before."""
    publish(registry)
    yank(registry, OLD)

    assert means("org/task", registry) == NEW
    assert api.pull(OLD, registry=registry).yanked


def test_a_pre_release_can_be_yanked(registry, publish, push, become, yank):
    """It is told to whoever names it."""
    publish(registry)
    become("alice")
    push(registry, "org/task@2.0.0-rc.1")
    yank(registry, "org/task@2.0.0-rc.1")

    assert REASON in api.pull("org/task@2.0.0-rc.1", registry=registry).yanked
    assert means("org/task", registry) == NEW


# Who stays


def test_who_names_it_exactly_is_warned(registry, yanked):
    """The exact version comes all the same, with the reason why its publisher asks not to use it."""
    pulled = api.pull(NEW, registry=registry)

    assert str(pulled.reference) == NEW
    assert REASON in pulled.yanked


def test_who_names_its_digest_is_warned(registry, yanked):
    """So does whoever names the digest."""
    digest = api.pull(NEW, registry=registry).digest
    api.store().remove(digest)

    assert REASON in api.pull(f"org/task@{digest}", registry=registry).yanked


@pytest.mark.parametrize("reference", [NEW, *FLOATING])
def test_who_pinned_it_goes_on_and_is_warned(registry, publish, yank, reference):
    """A pin says what is meant: the pinned version is used, with a warning, also by a floating reference."""
    publish(registry)
    trusts.pin([NEW], registry=registry)
    yank(registry)
    pulled = api.pull(reference, registry=registry)

    assert str(pulled.reference) == NEW
    assert REASON in (pulled.yanked or "")


def test_who_locked_it_goes_on_and_is_warned(registry, publish, yank, become, tmp_path):
    """A lock file says what is meant, on another machine as well."""
    key = publish(registry)
    api.lock(["org/task"], lock=tmp_path / "x.lock", registry=registry)
    yank(registry)
    become("another reader")
    trusts.trust_key(key, scope="org/*")
    (pulled,) = api.pull_locked(lock=tmp_path / "x.lock")

    assert str(pulled.reference) == NEW
    assert REASON in pulled.yanked


def test_whoever_trusts_nobody_cannot_be_told(hub, hub_over_xet, publish, yank, become, tmp_path):
    """Who has no rule for the name pulls what is pinned or locked; nobody's word about it is asked for."""
    publish(hub_over_xet)
    api.lock(["org/task"], lock=tmp_path / "x.lock", registry=hub_over_xet)
    yank(hub_over_xet)
    become("another reader")
    trusts.pin([NEW], registry=hub_over_xet)
    hub.clear()
    pulled = [api.pull(NEW, registry=hub_over_xet), *api.pull_locked(lock=tmp_path / "x.lock")]

    assert [one.yanked for one in pulled] == [None, None]
    assert hub.count(path=YANKED) == 0


@pytest.mark.parametrize("is_pinned", [False, True], ids=["exact", "pinned"])
def test_what_is_in_the_store_asks_nobody(hub, hub_over_xet, publish, yank, is_pinned):
    """What is named exactly or pinned, and is in the store, needs no request to be used, yanked or not."""
    publish(hub_over_xet)
    api.pull(NEW, registry=hub_over_xet)
    if is_pinned:
        trusts.pin([NEW], registry=hub_over_xet)
    yank(hub_over_xet)
    hub.clear()

    assert str(api.pull(NEW, registry=hub_over_xet).reference) == NEW
    assert hub.requests == []


def test_applying_a_yanked_version_logs_it(registry, yanked, caplog):
    """In Python, a warning in the log says which version was yanked, and why."""
    api.load(NEW, registry=registry)

    assert f"{NEW} was yanked" in caplog.text
    assert REASON in caplog.text


# What is remembered


def test_a_yank_is_remembered_offline(registry, publish, yank):
    """Once it was seen, nobody floats onto the yanked version without the network either."""
    publish(registry)
    assert means(OLD, registry) == OLD
    assert means("org/task", registry) == NEW
    yank(registry)
    assert means("org/task", registry) == OLD

    assert means("org/task", registry, offline=True) == OLD


@pytest.mark.parametrize("reference", FLOATING)
def test_a_yank_that_is_taken_away_is_remembered(registry, place, yanked, reference):
    """Whoever takes the statement out of the registry does not lead anybody onto the version again."""
    assert means(reference, registry) == OLD
    place.put_yank("org/task", yank_name(Version(1, 1, 0), yanked.fingerprint), None)
    pulled = api.pull(reference, registry=registry)

    assert str(pulled.reference) == OLD
    assert "when it was last seen" in pulled.skipped_because


def test_a_yank_that_is_taken_away_is_told(registry, place, yanked):
    """Whoever names the version exactly is warned also then."""
    api.pull("org/task", registry=registry)
    place.put_yank("org/task", yank_name(Version(1, 1, 0), yanked.fingerprint), None)

    assert "when it was last seen" in api.pull(NEW, registry=registry).yanked


def test_without_its_tag_a_yanked_version_is_not_meant_either(hub, hub_over_xet, key_of, push, become, yank):
    """Whoever takes the tag away does not lead a reader, who knows better, onto the yanked head of main (7)."""
    key = key_of("alice")
    push(hub_over_xet, NEW)
    become("reader")
    trusts.trust_key(key, scope="org/*")
    yank(hub_over_xet)
    with pytest.raises(PolicyError, match="was yanked"):
        api.pull("org/task", registry=hub_over_xet)
    hub.repo("org/task").delete_tag("v1.1.0")

    with pytest.raises(PolicyError):
        api.pull("org/task", registry=hub_over_xet)


def test_a_forged_yank_is_not_remembered(registry, place, publish, become, yank, key_of):
    """What had no effect has none later either."""
    publish(registry)
    key_of("mallory")
    yank(registry, by="mallory")
    api.pull(NEW, registry=registry)

    assert not any(sight.is_yanked for sight in memory().values())


def memory() -> dict:
    """What the reader has seen."""
    return dict(default_memory().read().sights)


# What is no yank


def statement(key: PrivateKey, reference: str = NEW, digest: str = NOTHING) -> bytes:
    """The bundle in which *key* yanks a version."""
    yank = Yank(reference=AdapterRef.parse(reference), digest=digest, created="2026-01-31T12:00:00Z", reason="x")
    return sign(yank.to_bytes(), key)


def alices_key(tmp_path: Path) -> PrivateKey:
    return PrivateKey.parse((tmp_path / "alice" / "keys" / "org.key").read_bytes(), what="the key")


def with_bad_signature(bundle: bytes, other: bytes) -> bytes:
    """A bundle with the signature of another one."""
    document = json.loads(bundle)
    document["dsseEnvelope"]["signatures"] = json.loads(other)["dsseEnvelope"]["signatures"]
    return json.dumps(document).encode()


def by_another_key(bundle: bytes, hint: str) -> bytes:
    """A bundle that names another key than the one that signed it."""
    document = json.loads(bundle)
    document["verificationMaterial"]["publicKey"]["hint"] = hint
    return json.dumps(document).encode()


# Each makes, from the key of alice, the digest of 1.1.0 and its signature, what is put among the statements.
FORGERIES = {
    "of a stranger": lambda key, digest, _: statement(PrivateKey.generate(), NEW, digest),
    "of a stranger in her name": lambda key, digest, _: by_another_key(
        statement(PrivateKey.generate(), NEW, digest), key.public.fingerprint
    ),
    "of another version": lambda key, digest, _: statement(key, OLD, digest),
    "of another digest": lambda key, digest, _: statement(key, NEW, NOTHING),
    "of another name": lambda key, digest, _: statement(key, "org/other@1.1.0", digest),
    "with another signature": lambda key, digest, _: with_bad_signature(
        statement(key, NEW, digest), statement(key, OLD, digest)
    ),
    "that is a signature of the version": lambda key, digest, signature: signature,
    "that is empty": lambda key, digest, _: b"",
    "that is no bundle": lambda key, digest, _: b"yanked!",
    "that is a list": lambda key, digest, _: b"[]",
    "that is nested deep": lambda key, digest, _: b"[" * 10_000,
    "of 65 KiB": lambda key, digest, _: statement(key, NEW, digest).ljust(65 * 1024),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_is_no_yank_has_no_effect(registry, place, publish, tmp_path, forgery):
    """Whatever else lies among the statements, the version is meant as before, without a warning."""
    key = publish(registry)
    digest = digest_of(NEW, registry)
    signature = place.signatures(NEW)[SIGNATURE_NAME]
    content = FORGERIES[forgery](alices_key(tmp_path), digest, signature)
    place.put_yank("org/task", yank_name(Version(1, 1, 0), key.fingerprint), content)

    assert [means(reference, registry) for reference in ("org/task", NEW)] == [NEW] * 2


def digest_of(reference: str, registry: Registry) -> str:
    """Return the digest of what is published."""
    return find(registry, AdapterRef.parse(reference)).digest


def test_what_is_no_yank_does_not_hide_one(registry, place, yanked):
    """A good statement counts, whatever lies beside it."""
    for number, content in enumerate((b"", b"[]", b"\xff" * 100)):
        place.put_yank("org/task", f"1.1.0.0000000{number}.sig", content)

    assert means("org/task", registry) == OLD


@pytest.mark.parametrize("registry", ["directory_registry", OVER_XET], indirect=True)
@pytest.mark.parametrize("name", ["1.1.0", "1.1.0.sig.bak", "1.1.0.0123ABCD.sig", "1.1.00.0123abcd.sig", "README.md"])
def test_a_statement_is_found_by_its_name(registry, place, publish, tmp_path, name):
    """A file of another name is none of this version, and is not read."""
    publish(registry)
    place.put_yank("org/task", name, statement(alices_key(tmp_path), NEW, digest_of(NEW, registry)))

    assert means("org/task", registry) == NEW


@pytest.mark.parametrize("by", ["mallory", "bob"])
def test_a_yank_by_somebody_who_may_not_sign_has_no_effect(registry, publish, key_of, become, yank, by):
    """Whoever may not sign a version for the reader cannot take it back for them."""
    publish(registry)
    key = key_of(by)
    become("reader")
    if by == "bob":  # whom the reader trusts for another adapter only
        trusts.trust_key(key, scope="org/other")
    yank(registry, by=by)

    assert means("org/task", registry) == NEW
    assert means(NEW, registry) == NEW


def test_a_yank_by_a_revoked_key_has_no_effect(registry, publish, key_of, become, yank):
    """A key that is revoked takes nothing back any more."""
    publish(registry)
    bob = key_of("bob")
    become("reader")
    trusts.trust_key(bob, scope="org/*")
    yank(registry, by="bob")
    trusts.revoke(bob.fingerprint)

    assert means("org/task", registry) == NEW


def test_another_signer_of_the_rule_can_yank(registry, publish, key_of, become, yank):
    """Whoever may sign the adapter may take it back, whoever signed it."""
    publish(registry)
    bob = key_of("bob")
    become("reader")
    trusts.trust_key(bob, scope="org/*")
    yank(registry, by="bob")

    assert means("org/task", registry) == OLD


def test_a_yank_is_no_signature(registry, place, publish, tmp_path):
    """A yank that lies where a signature should lie is refused, and a good signature beside it does not help it."""
    publish(registry)
    digest = digest_of(NEW, registry)
    place.change(NEW, {SIGNATURE_NAME: statement(alices_key(tmp_path), NEW, digest)})
    with pytest.raises(MalformedError, match="predicateType"):
        api.pull(NEW, registry=registry)

    assert not api.store().has(digest)


# Several signers


def test_where_two_must_sign_two_must_yank(registry, key_of, become, yank, tmp_path):
    """Where a threshold of two holds, one alone cannot take a version back; two can."""
    alice, bob = sign_by_two(registry, key_of, tmp_path)
    become("reader")
    trusts.trust_key(alice, scope="org/*")
    trusts.trust_key(bob, scope="org/*", threshold=2)
    yank(registry)
    by_one = means("org/task", registry)
    yank(registry, by="bob")

    assert (by_one, means("org/task", registry)) == (NEW, OLD)


def sign_by_two(registry: Registry, key_of, tmp_path: Path) -> tuple[PublicKey, PublicKey]:
    """Publish both versions, each signed by alice and bob, and return their keys."""
    for reference in (OLD, NEW):
        directory = adapter_files(seed=len(reference)).write(tmp_path / reference.rpartition("@")[2])
        key_of("alice")
        vouch.sign(directory, reference)
        key_of("bob")
        vouch.sign(directory, add=True)
        api.push(directory, reference, registry=registry)
    return key_of("alice"), key_of("bob")


def test_one_who_yanks_twice_is_one(registry, place, key_of, become, yank, tmp_path):
    """Two statements of one key are those of one signer, whatever their files are called."""
    alice, bob = sign_by_two(registry, key_of, tmp_path)
    become("reader")
    trusts.trust_key(alice, scope="org/*")
    trusts.trust_key(bob, scope="org/*", threshold=2)
    yank(registry)
    place.put_yank(
        "org/task",
        yank_name(Version(1, 1, 0), bob.fingerprint),
        statement(alices_key(tmp_path), NEW, digest_of(NEW, registry)),
    )

    assert means("org/task", registry) == NEW


# How it is yanked


def test_a_yank_again_is_a_success(registry, yanked, yank):
    """The same key may yank again, with a better reason: the newer statement holds."""
    yank(registry, reason="it forgets, and how")

    assert "and how" in api.pull(NEW, registry=registry).yanked
    assert means("org/task", registry) == OLD


@pytest.mark.parametrize("registry", ["directory_registry", OVER_XET], indirect=True)
@pytest.mark.parametrize("reason", ["", "ünïcode", "x" * MAX_REASON, 'a "quote"\n\x1b[2J'])
def test_a_reason_is_told_as_it_is(registry, publish, yank, reason):
    """Whatever the reason is, it is told without moving a cursor; none is told as none."""
    publish(registry)
    yank(registry, reason=reason)
    told = api.pull(NEW, registry=registry).yanked

    assert told
    assert told.isprintable()
    assert means("org/task", registry) == OLD


def test_a_yank_names_what_it_takes_back(registry, publish, yank):
    """What was yanked is the version by name and digest, with its time."""
    publish(registry)
    done = yank(registry)

    assert (str(done.reference), done.digest, done.reason) == (NEW, digest_of(NEW, registry), REASON)
    assert done.created.endswith("Z")


@pytest.mark.parametrize("registry", ["directory_registry", OVER_XET], indirect=True)
@pytest.mark.parametrize("reference", ["org/task", "org/task@1", "org/task@^1.0", f"org/task@{NOTHING}"])
def test_only_an_exact_version_is_yanked(registry, publish, yank, reference):
    """Nobody yanks what floats (2)."""
    publish(registry)
    with pytest.raises(UsageError):
        yank(registry, reference)


@pytest.mark.parametrize("registry", ["directory_registry", OVER_XET], indirect=True)
@pytest.mark.parametrize("reference", ["org/task@9.0.0", "org/other@1.0.0"])
def test_what_is_not_published_is_not_yanked(registry, publish, yank, reference):
    """A version that is not there is not found (3)."""
    publish(registry)
    with pytest.raises(NotFoundError):
        yank(registry, reference)


def test_who_has_no_key_yanks_nothing(registry, publish):
    """Without a key there is nobody whose word it would be (2)."""
    publish(registry)
    with pytest.raises(UsageError, match="no key") as caught:
        vouch.yank(NEW, registry=registry)

    assert "key generate org" in caught.value.hint
    assert means("org/task", registry) == NEW


@pytest.mark.parametrize("registry", ["directory_registry", OVER_XET], indirect=True)
@pytest.mark.parametrize("reason", ["x" * (MAX_REASON + 1), "\udcff"], ids=["too long", "no text"])
def test_a_reason_that_nobody_could_read_is_refused(registry, publish, yank, reason):
    """What would be a malformed statement is a mistake of whoever writes it (2), and nothing is published."""
    publish(registry)
    with pytest.raises(UsageError):
        yank(registry, reason=reason)

    assert means("org/task", registry) == NEW


def test_in_a_directory_without_rules_every_statement_counts(directory_registry, key_of, push, become, yank):
    """In one's own directory, where nobody must sign, anybody may take a version back."""
    key_of("alice")
    push(directory_registry, OLD)
    push(directory_registry, NEW)
    yank(directory_registry)
    become("another reader")

    assert means("org/task", directory_registry) == OLD


# The Hub


def test_a_yank_is_one_commit_onto_main(hub, hub_over_xet, publish, yank):
    """It adds one file, and moves no tag."""
    key = publish(hub_over_xet)
    repo = hub.repo("org/task")
    before, tags = repo.commits[-1], dict(repo.tags)
    yank(hub_over_xet)
    after = repo.at("main")

    assert after.parent == before.id
    assert after.files.keys() - before.files.keys() == {f"{YANKED}/{yank_name(Version(1, 1, 0), key.fingerprint)}"}
    assert repo.tags == tags


def test_a_yank_finds_its_place_beside_another_commit(hub, hub_over_xet, publish, yank):
    """If somebody commits in between, it is committed onto that: neither is lost."""
    publish(hub_over_xet)
    repo = hub.repo("org/task")
    once = iter([1])

    def commit_first(request):
        if request.method == "POST" and "/commit/" in request.path and next(once, None):
            repo.commit({"notes.txt": b"meanwhile"})

    watch(hub, commit_first)
    yank(hub_over_xet)

    assert repo.files("main")["notes.txt"] == b"meanwhile"
    assert means("org/task", hub_over_xet) == OLD


def watch(hub, action) -> None:
    """Run *action* for each request that arrives, before it is worked on."""
    append = hub.log.append

    def appended(request) -> None:
        append(request)
        action(request)

    hub.log.append = appended


def test_a_yank_beside_a_push(hub, hub_over_xet, publish, push, become, monkeypatch):
    """Who yanks and who publishes at the same moment both succeed."""
    publish(hub_over_xet)
    become("alice")
    monkeypatch.setattr("lora_hub.registry.hub.RACES", Retry(tries=30, first=0.01, longest=0.1))
    errors = []

    def run(action) -> None:
        try:
            action()
        except LoraHubError as error:
            errors.append(error)

    actions = [
        lambda: vouch.yank(NEW, registry=hub_over_xet),
        lambda: push(hub_over_xet, "org/task@1.2.0"),
        lambda: vouch.yank(OLD, registry=hub_over_xet),
    ]
    threads = [threading.Thread(target=run, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    become("reader")

    assert errors == []
    assert means("org/task", hub_over_xet) == "org/task@1.2.0"
    assert all(api.pull(reference, registry=hub_over_xet).yanked for reference in (OLD, NEW))


@pytest.mark.parametrize("fault", [{"drop_answer": True}, {"status": 503}, {"status": 429}, {"refuse": True}], ids=str)
def test_an_answer_that_is_lost(hub, hub_over_xet, publish, yank, fault):
    """If the answer to the commit is lost, it is done again until it is known to be there."""
    publish(hub_over_xet)
    lost = hub.fault("/commit/", **fault)
    yank(hub_over_xet)

    assert lost.hits == 1
    assert means("org/task", hub_over_xet) == OLD


def test_a_hub_that_refuses_is_told(hub, hub_over_xet, publish, yank):
    """Without the right to write, nothing is yanked (4)."""
    publish(hub_over_xet)
    hub.fault("/commit/", times=None, status=403)
    with pytest.raises(LoraHubError) as caught:
        yank(hub_over_xet)

    assert caught.value.exit_code == 4


def test_a_version_without_its_tag_gets_it_before_a_yank(hub, hub_over_xet, publish, yank):
    """What a crashed publisher left without its tag is tagged first, so that no version gets lost below the yank."""
    publish(hub_over_xet)
    repo = hub.repo("org/task")
    newest = repo.tags["v1.1.0"]
    repo.delete_tag("v1.1.0")
    yank(hub_over_xet, OLD)

    assert repo.tags["v1.1.0"] == newest


def test_a_repository_without_main_is_told(hub, hub_over_xet, publish, yank):
    """Where there is no branch to commit onto, that is said (4)."""
    publish(hub_over_xet)
    repo = hub.repo("org/task")
    repo.branch("trunk", repo.branches["main"])
    repo.delete_branch("main")
    with pytest.raises(LoraHubError, match="main") as caught:
        yank(hub_over_xet)

    assert caught.value.exit_code == 4


def test_nothing_yanked_costs_one_request(hub, hub_over_xet, publish):
    """Whoever resolves a signed version asks once whether something is yanked."""
    publish(hub_over_xet)
    hub.clear()
    api.pull("org/task", registry=hub_over_xet)

    assert hub.count("hub", "GET", f"/{YANKED}") == 1


# Registries that are only read from


@contextlib.contextmanager
def served(directory: Path):
    """Serve a directory over HTTP on loopback, in a thread of this process."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A web server that says nothing."""

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


def test_a_web_server_is_only_read_from(directory_registry, publish, yank, tmp_path):
    """A mirror on a web server shows what was yanked in the directory behind it, and takes no yank itself (2)."""
    publish(directory_registry)
    with served(tmp_path / "registry") as url:
        before = means("org/task", url)
        with pytest.raises(UsageError, match="only read from"):
            yank(url)
        meanwhile = means("org/task", url)
        yank(directory_registry)
        after = means("org/task", url)

    assert (before, meanwhile, after) == (NEW, NEW, OLD)
