"""Pulling from the Hub: trusted first, by commit, every byte proven, whatever the network and the Hub do meanwhile."""

import os
import socket

import pytest
from adapter_files import (
    CONFIG_NAME,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    AdapterFiles,
    adapter_files,
    large_adapter,
)

from lora_hub import api, look
from lora_hub import trust as trusts
from lora_hub.errors import (
    IntegrityError,
    LoraHubError,
    NotFoundError,
    PolicyError,
    RegistryError,
    UntrustedError,
)
from lora_hub.registry import manners, network
from lora_hub.registry.hub import HubRegistry
from lora_hub.registry.network import Retry

MIB = 1024 * 1024
PLAIN = "org/plain"
CANARY = "hf_CANARYcanary0123456789"
WITH_XET = "hub_over_xet"
MODES = [WITH_XET, "hub_over_lfs"]
SQUASHES = ["keep", "move", "drop"]
# What a request for each of these looks like, and a part of what the error calls it.
REFS, PATHS_INFO, CONFIG, WEIGHTS = "/refs", "/tree/", f"/resolve/.*{CONFIG_NAME}", f"/resolve/.*{WEIGHTS_NAME}"
KINDS = {"refs": REFS, "paths-info": PATHS_INFO, "config": CONFIG, "weights": WEIGHTS}


def many_tensors(count: int) -> AdapterFiles:
    """Return a valid adapter of *count* tensors, whose header is long."""
    return adapter_files(layers=count // 4)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """What may pass is tried again at once."""
    monkeypatch.setattr(network, "RETRY", Retry(tries=3, first=0.001, longest=0.002))


@pytest.fixture(params=MODES)
def over(request) -> HubRegistry:
    """The registry on the Hub for a client with Xet, and for one without."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def published(hub, hub_registry, push) -> str:
    """The digest of org/task@1.0.0, which is on the Hub and pinned, but not in the store; the log is empty."""
    digest = push(hub_registry, "org/task@1.0.0").digest
    hub.clear()
    return digest


@pytest.fixture
def large(hub, hub_registry, push) -> AdapterFiles:
    """org/task@1.0.0 with 9 MiB of weights, which is on the Hub and pinned, but not in the store; the log is empty."""
    adapter = large_adapter()
    push(hub_registry, "org/task@1.0.0", adapter)
    hub.clear()
    return adapter


@pytest.fixture
def medium(hub, hub_registry, push) -> AdapterFiles:
    """The same with 2 MiB, enough for Xet and too little to be resumed."""
    adapter = large_adapter(size=2 * MIB)
    push(hub_registry, "org/task@1.0.0", adapter)
    hub.clear()
    return adapter


@pytest.fixture
def plain(hub):
    """A repository that PEFT pushed: no manifest, no tag."""
    return hub.create(PLAIN, adapter_files().files())


@pytest.fixture
def forget(trust):
    """Let this user trust nobody any more."""
    return trust.path.unlink


@pytest.fixture
def fails(pull):
    """Pull what cannot be pulled and return the error, which says what to do."""

    def fails(registry, reference, **options) -> LoraHubError:
        with pytest.raises(LoraHubError) as caught:
            pull(registry, reference, **options)
        assert caught.value.hint
        return caught.value

    return fails


@pytest.fixture
def no_socket(monkeypatch):
    """From now on, who connects fails."""

    def connect(self, address):
        raise AssertionError(f"a socket was opened: {address}")

    return lambda: monkeypatch.setattr(socket.socket, "connect", connect)


def visible(store) -> list[str]:
    """What of *store* another process could use: adapters, and what registries called them."""
    roots = [store.root / "adapters", store.root / "versions"]
    return sorted(str(path.relative_to(store.root)) for root in roots for path in root.rglob("*") if path.is_file())


def weights_requests(hub) -> int:
    """How often the CDN was asked for weights, by HTTP or over Xet."""
    return hub.count("cdn", "GET", "/files/|/xorbs/")


# What comes, and in which order


@pytest.mark.parametrize("adapter", [adapter_files(), large_adapter()], ids=["small", "large"])
def test_what_was_pushed_comes_back(over, push, pull, adapter):
    """Config and weights are pulled byte for byte, over Xet and over plain HTTP."""
    push(over, "org/task@1.0.0", adapter)
    path = pull(over, "org/task").path

    assert {name: (path / name).read_bytes() for name in (CONFIG_NAME, WEIGHTS_NAME)} == adapter.files()
    assert {file.name for file in path.iterdir()} == {CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME}


@pytest.mark.parametrize(("mode", "path"), [(WITH_XET, "/xorbs/"), ("hub_over_lfs", "/files/")])
def test_large_weights_take_the_way_of_the_client(request, hub, medium, pull, mode, path):
    """Xet is used where the client has it, and only there."""
    pull(request.getfixturevalue(mode), "org/task@1.0.0")

    assert hub.count("cdn", "GET", path) == weights_requests(hub) > 0


def test_small_files_come_before_the_weights(hub, over, medium, pull):
    """Manifest and config are there, and were checked, before the first byte of the weights is asked for."""
    pull(over, "org/task@1.0.0")
    paths = [request.path for request in hub.requests]
    is_weights = [WEIGHTS_NAME in path or "xet" in path or "/reconstructions/" in path for path in paths]

    assert [path.rpartition("/")[2] for path in paths[2:4]] == [MANIFEST_NAME, CONFIG_NAME]
    assert is_weights.index(True) == 4


def test_everything_is_read_by_commit(hub, over, medium, pull):
    """After the tags were resolved, no request names a tag or a branch, which could move meanwhile."""
    commit = pull(over, "org/task@1.0.0").commit
    asked = [request.path for request in hub.requests if request.host == "hub"]

    assert commit == hub.repo("org/task").tags["v1.0.0"]
    assert asked[0].endswith("/refs?include_prs=1") or "/refs" in asked[0]
    assert all(commit in path for path in asked[1:])


@pytest.mark.parametrize("at", ["1.0.0", "digest", "commit"])
def test_what_is_pinned_and_in_the_store_needs_no_request(hub, hub_registry, push, pull, no_socket, at):
    """An exact version, a digest or a commit that is pinned and in the store opens no socket, and is proven again."""
    pushed = push(hub_registry, "org/task@1.0.0")
    first = pull(hub_registry, "org/task@1.0.0")
    hub.clear()
    no_socket()
    again = pull(HubRegistry(), f"org/task@{getattr(pushed, at, at)}")

    assert (again.digest, again.path) == (first.digest, first.path)
    assert hub.requests == []


def test_applying_what_is_in_the_store_needs_no_request(hub, hub_registry, published, no_socket):
    """`apply_adapter` of a pinned version opens no socket once the version is in the store."""
    api.pull("org/task@1.0.0")
    hub.clear()
    no_socket()
    applied = api.apply_adapter(tiny_model(), "org/task@1.0.0")

    assert applied.name == "task"
    assert hub.requests == []


def tiny_model():
    """Return modules with the paths and shapes that `adapter_files` is for."""
    from torch import nn

    def attention():
        return nn.ModuleDict({"q_proj": nn.Linear(8, 8), "v_proj": nn.Linear(8, 4)})

    layers = nn.ModuleList(nn.ModuleDict({"self_attn": attention()}) for _ in range(2))
    return nn.ModuleDict({"model": nn.ModuleDict({"layers": layers})})


def test_the_newest_pinned_version_is_meant(hub_registry, push, pull, trust):
    """Of several versions the newest pinned one is taken, and the newer one that is not pinned is named."""
    for seed, version in enumerate(("1.0.0", "1.1.0", "1.2.0")):
        push(hub_registry, f"org/task@{version}", seed=seed)
    trust.remove("hf://", pull(hub_registry, "org/task@1.2.0").reference)
    pulled = pull(hub_registry, "org/task@^1.0")

    assert str(pulled.reference) == "org/task@1.1.0"
    assert str(pulled.skipped) == "org/task@1.2.0"


# Trust


def test_the_first_use_is_never_silent(hub, hub_registry, published, forget, fails, store):
    """What nobody vouched for is refused (5) with who, what and the digest, and with the line that pins it."""
    forget()
    error = fails(hub_registry, "org/task")

    assert isinstance(error, UntrustedError)
    for told in ("org/task@1.0.0", "hf://", "org/base", "r 2", published):
        assert told in error.message
    assert f"`lora-hub trust pin org/task@1.0.0 --digest {published}`" in error.hint
    assert f'`digest="{published}"`' in error.hint
    assert weights_requests(hub) == 0
    assert visible(store) == []


def test_a_named_digest_is_trust_enough(hub_registry, published, forget, pull):
    """Who names the digest needs no pin, and nothing is pinned by that."""
    forget()
    first, second = (
        pull(hub_registry, "org/task@1.0.0", digest=published),
        pull(hub_registry, f"org/task@{published}"),
    )

    assert first.digest == second.digest == published
    with pytest.raises(UntrustedError):
        pull(hub_registry, "org/task@1.0.0")


def test_another_digest_than_the_named_one_is_refused(hub_registry, published, fails, store):
    """A digest that the version does not have is refused (7), and both are named."""
    other = f"sha256:{'0' * 64}"
    error = fails(hub_registry, "org/task@1.0.0", digest=other)

    assert isinstance(error, PolicyError)
    assert published in error.message
    assert other in error.message
    assert visible(store) == []


def test_a_digest_beside_a_name_finds_an_older_version(hub_registry, push, pull, forget):
    """What was pinned by its digest in a program stays usable when a newer version is published."""
    old = push(hub_registry, "org/task@1.0.0", seed=1).digest
    push(hub_registry, "org/task@1.1.0", seed=2)
    forget()

    assert pull(hub_registry, "org/task", digest=old).digest == old


@pytest.mark.parametrize(
    ("at", "adapter"),
    [("", adapter_files()), ("@1.2.0", adapter_files()), ("@commit", adapter_files()), ("", large_adapter())],
    ids=["main", "version", "commit", "large"],
)
def test_a_repository_that_lora_hub_never_saw(hub, over, adapter, at, fails, pull):
    """What PEFT pushed is refused (5) until its digest is named; then its files come as they are."""
    repo = hub.create(PLAIN, adapter.files(), tags=["v1.2.0"] if at == "@1.2.0" else [])
    reference = PLAIN + at.replace("commit", repo.branches["main"])
    error = fails(over, reference)
    digest = error.hint.partition("--digest ")[2].partition("`")[0]
    pulled = pull(over, reference, digest=digest)

    assert isinstance(error, UntrustedError)
    assert (pulled.digest, pulled.commit) == (digest, repo.branches["main"])
    assert {name: (pulled.path / name).read_bytes() for name in adapter.files()} == adapter.files()


@pytest.mark.parametrize("at", ["", "@1.2.0", "@commit"])
def test_a_foreign_repository_is_applied(hub, plain, at):
    """`apply_adapter` refuses what PEFT pushed until it is pinned; in the store, an exact one needs no request."""
    if at == "@1.2.0":
        plain.tag("v1.2.0", plain.branches["main"])
    reference = PLAIN + at.replace("commit", plain.branches["main"])
    with pytest.raises(UntrustedError):
        api.apply_adapter(tiny_model(), reference)
    (pin,) = trusts.pin([reference])
    first = api.apply_adapter(tiny_model(), reference)
    hub.clear()
    api.apply_adapter(tiny_model(), pin.reference)

    assert first.name
    assert hub.requests == []


def test_the_pinned_commit_of_a_foreign_repository_stays(hub_registry, plain, pull, store):
    """When main goes on, the pinned commit is still what is meant, and the newer one is named."""
    (pin,) = trusts.pin([PLAIN])
    newer = plain.commit(adapter_files(seed=1).files())
    pulled = pull(hub_registry, PLAIN)

    assert (pulled.commit, pulled.digest) == (pin.commit, pin.digest)
    assert str(pulled.skipped) == f"{PLAIN}@{newer.id}"


def test_weights_as_a_pickle_are_never_read(hub, hub_registry, fails):
    """A repository with pickled weights only is refused, and the hint says why."""
    hub.create(PLAIN, {CONFIG_NAME: adapter_files().files()[CONFIG_NAME], "adapter_model.bin": b"\x80\x04"})
    error = fails(hub_registry, PLAIN)

    assert isinstance(error, NotFoundError)
    assert "pickles are never read" in error.hint
    assert hub.count(path="adapter_model.bin") == 0


def test_a_hub_that_lies_about_a_foreign_repository(hub, over, pull, fails, store):
    """The digest of what has no manifest rests on what the Hub says of its weights: a lie is noticed (6)."""
    hub.create(PLAIN, large_adapter(size=2 * MIB).files())
    (pin,) = trusts.pin([PLAIN])
    hub.tamper(PLAIN, "main", WEIGHTS_NAME, MIB)

    assert isinstance(fails(over, f"{PLAIN}@{pin.commit}"), IntegrityError)
    assert visible(store) == []


# Looking without weights


@pytest.mark.parametrize("at", ["", "@1.0.0", "@^1.0", "@commit"])
def test_info_of_what_lora_hub_published(hub, published, at):
    """At most four small requests tell what it is, whether it is trusted, and its digest."""
    commit = hub.repo("org/task").tags["v1.0.0"]
    found = look.info("org/task" + at.replace("commit", commit))

    assert (found.digest, found.commit, found.is_trusted) == (published, commit, True)
    assert hub.count("hub") <= 4
    assert hub.count("cdn") == 0


@pytest.mark.parametrize(
    "adapter",
    [adapter_files(), large_adapter(), many_tensors(400), many_tensors(2000)],
    ids=["small", "large", "many tensors", "thousands of tensors"],
)
@pytest.mark.parametrize("at", ["", "@commit"])
def test_info_of_a_foreign_repository(hub, hub_registry, pull, adapter, at):
    """Four requests to the Hub and one to its CDN at most; the digest is the one that a pull finds."""
    repo = hub.create(PLAIN, adapter.files())
    reference = PLAIN + at.replace("commit", repo.branches["main"])
    found = look.info(reference)
    asked = hub.count("hub"), hub.count("cdn")

    assert asked[0] <= 4
    assert asked[1] <= 1
    assert not found.is_trusted
    assert pull(hub_registry, reference, digest=found.digest).digest == found.digest


def test_info_reads_no_weights(hub):
    """Of large weights, no more than the header and what came with it is read."""
    hub.create(PLAIN, large_adapter().files())
    look.info(PLAIN)

    assert sum(request.answer_size for request in hub.requests) < MIB


def test_info_of_what_is_in_the_store_needs_no_request(hub, published):
    """What is pinned and in the store is described from there."""
    api.pull("org/task@1.0.0")
    hub.clear()

    assert look.info("org/task@1.0.0").digest == published
    assert hub.requests == []


def test_a_server_that_ignores_ranges(hub, pull, hub_over_lfs):
    """A server may send everything where a range was asked for: no more of it is taken than was asked for."""
    content = large_adapter().files()
    hub.create(PLAIN, content)
    expected = look.info(PLAIN).digest
    hub.fault("/files/", host="cdn", status=200, body=content[WEIGHTS_NAME])

    assert look.info(PLAIN).digest == expected


def test_a_search_is_one_request(hub):
    """Adapters of a base are found by their tags, whoever published them."""
    card = b"---\nlibrary_name: peft\nbase_model: org/base\n---\n"
    hub.create(PLAIN, {**adapter_files().files(), "README.md": card})
    hub.create("org/other", {**adapter_files().files(), "README.md": card.replace(b"org/base", b"org/b")})
    found = look.search(base="org/base")

    assert [(one.name, one.base) for one in found] == [(PLAIN, "org/base")]
    assert len(hub.requests) == 1


# Versions that change


def test_a_moved_tag_is_noticed(hub, over, plain, fails, store):
    """A tag that points to other content is refused (7); the pinned digest and the new one are named."""
    plain.tag("v1.0.0", plain.branches["main"])
    (pin,) = trusts.pin([f"{PLAIN}@1.0.0"])
    plain.move_tag("v1.0.0", plain.commit(adapter_files(seed=1).files()).id)
    new = look.info(f"{PLAIN}@{plain.tags['v1.0.0']}").digest
    hub.clear()
    error = fails(over, f"{PLAIN}@1.0.0")

    assert isinstance(error, PolicyError)
    assert pin.digest in error.message
    assert new in error.message
    assert weights_requests(hub) == 1  # the header
    assert visible(store) == []


def test_a_tag_that_moved_to_another_version_is_noticed(hub, hub_registry, push, fails):
    """So is a tag that points to another published version, whose manifest says so."""
    old, new = (push(hub_registry, f"org/task@1.{minor}.0", seed=minor).digest for minor in (0, 1))
    repo = hub.repo("org/task")
    repo.move_tag("v1.0.0", repo.tags["v1.1.0"])
    error = fails(hub_registry, "org/task@1.0.0")

    assert isinstance(error, PolicyError)
    assert old in error.message
    assert new in error.message


def test_what_was_used_by_its_digest_says_nothing_of_the_tag(hub_registry, plain, pull, fails):
    """Who named a digest vouched for that alone: the version is neither trusted nor remembered, moved or not (5)."""
    plain.tag("v1.0.0", plain.branches["main"])
    pull(hub_registry, f"{PLAIN}@1.0.0", digest=look.info(f"{PLAIN}@1.0.0").digest)
    plain.move_tag("v1.0.0", plain.commit(adapter_files(seed=1).files()).id)
    new = look.info(f"{PLAIN}@1.0.0").digest
    error = fails(hub_registry, f"{PLAIN}@1.0.0")

    assert isinstance(error, UntrustedError)
    assert new in error.message


def test_a_tag_that_moved_away_does_not_matter_to_who_has_the_version(hub, hub_registry, published, pull):
    """What is pinned and in the store stays what it was."""
    first = pull(hub_registry, "org/task@1.0.0")
    repo = hub.repo("org/task")
    repo.move_tag("v1.0.0", repo.commits[0].id)

    assert pull(hub_registry, "org/task@1.0.0").path == first.path


@pytest.mark.parametrize("tags", SQUASHES)
@pytest.mark.parametrize("at", ["1.0.0", "commit"])
@pytest.mark.parametrize("is_foreign", [False, True], ids=["published", "foreign"])
def test_a_rewritten_history_is_noticed(hub, hub_registry, push, pull, fails, tags, at, is_foreign):
    """Where a squash left the old commit, it is used; else it ends with 7, the old digest and the new one."""
    if is_foreign:
        repo = hub.create("org/task", adapter_files(seed=1).files(), tags=["v1.0.0"])
        (pin,) = trusts.pin(["org/task@1.0.0"])
        old, commit = pin.digest, pin.commit
        files = adapter_files(seed=2).files()
    else:
        pushed = push(hub_registry, "org/task@1.0.0", seed=1)
        old, commit, repo = pushed.digest, pushed.commit, hub.repo("org/task")
        hub_files = push(hub_registry, "org/other@1.0.0", seed=2)
        files = dict(hub.repo("org/other").files(hub_files.commit))
        files[MANIFEST_NAME] = files[MANIFEST_NAME].replace(b"org/other", b"org/task")
    reference = f"org/task@{commit if at == 'commit' else at}"
    head = repo.squash(tags=tags, files=files)
    if tags == "keep":
        assert pull(hub_registry, reference).digest == old
        return
    error = fails(hub_registry, reference)

    assert isinstance(error, PolicyError)
    assert old in error.message
    assert look.info(f"org/task@{head.id}").digest in error.message


@pytest.mark.parametrize("tags", ["keep", "move"])
def test_a_squash_that_changes_no_byte_is_no_matter(hub, hub_registry, published, pull, tags):
    """The digest is what counts: the same bytes under another commit are the same version."""
    hub.repo("org/task").squash(tags=tags)

    assert pull(hub_registry, "org/task@1.0.0").digest == published


def test_a_commit_that_nobody_pinned_is_not_found(hub_registry, published, fails):
    """A commit that is not there, and of which nothing is known, is simply not found (3)."""
    error = fails(hub_registry, f"org/task@{'a' * 40}")

    assert isinstance(error, NotFoundError)


# Faults, each with a next try that has none


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("status", "code"), [(401, 4), (403, 4), (404, 3), (429, 4), (503, 4)])
def test_a_refusal(hub, hub_over_lfs, published, fails, pull, store, kind, status, code):
    """Every refusal ends with its exit code, whichever request meets it; the next try finds nothing in its way."""
    fault = hub.fault(KINDS[kind], status=status, times=3)
    error = fails(hub_over_lfs, "org/task@1.0.0")
    fault.times = fault.hits

    assert error.exit_code == code
    assert hub.endpoint.removeprefix("http://") in error.message or (kind, status) == ("refs", 404)
    assert fault.hits == (3 if status in network.RETRIED else 1)
    assert visible(store) == []
    assert pull(hub_over_lfs, "org/task@1.0.0").digest == published


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_refusal_of_the_cdn(hub, over, medium, fails, pull, status):
    """So does a refusal of the host that large files come from."""
    fault = hub.fault("/files/|/reconstructions/|/xorbs/", host="cdn", status=status, times=None)
    error = fails(over, "org/task@1.0.0")
    fault.times = fault.hits

    assert error.exit_code == (3 if status == 404 else 4)
    assert pull(over, "org/task@1.0.0").path.is_dir()


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("kind", KINDS)
def test_what_passes_is_tried_again(hub, hub_over_lfs, published, pull, kind, status):
    """A refusal that passes within the tries is not even noticed."""
    fault = hub.fault(KINDS[kind], status=status, times=2)

    assert pull(hub_over_lfs, "org/task@1.0.0").digest == published
    assert fault.hits == 2


@pytest.mark.parametrize("verb", ["pull", "search", "token of Xet"])
@pytest.mark.parametrize("fault", [{"status": 503}, {"refuse": True}], ids=["refused", "cut off"])
def test_tries_are_counted_once(hub, medium, hub_over_xet, monkeypatch, verb, fault):
    """A request that keeps failing is made as often as `RETRY` says; the client's own retries do not multiply that."""
    monkeypatch.setattr("time.sleep", lambda _: None)
    path = {"pull": REFS, "search": r"/api/models\?", "token of Xet": "/xet-read-token/"}[verb]
    hub.fault(path, host="hub", times=None, **fault)
    if verb == "token of Xet":
        api.pull("org/task@1.0.0")  # plain HTTP has the same bytes
    else:
        with pytest.raises(RegistryError):
            look.search("x") if verb == "search" else api.pull("org/task@1.0.0")

    assert hub.count("hub", path=path) <= network.RETRY.tries


@pytest.mark.parametrize("kind", KINDS)
def test_a_host_that_does_not_answer(hub, hub_over_lfs, published, fails, pull, monkeypatch, kind):
    """Every wait ends: no answer in LORA_HUB_TIMEOUT seconds is exit code 4, with the host and the variable."""
    monkeypatch.setenv("LORA_HUB_TIMEOUT", "0.3")
    monkeypatch.setattr(network, "RETRY", Retry(tries=1))
    fault = hub.fault(KINDS[kind], hang=True)
    error = fails(hub_over_lfs, "org/task@1.0.0")

    assert isinstance(error, RegistryError)
    assert hub.endpoint.removeprefix("http://") in error.message
    assert "LORA_HUB_TIMEOUT" in error.hint
    assert fault.hits == 1
    assert pull(hub_over_lfs, "org/task@1.0.0").digest == published


@pytest.mark.parametrize("length", [0, 1, MIB])
def test_xet_that_ends_early_in_silence_gives_way(hub, hub_over_xet, medium, pull, monkeypatch, length):
    """hf-xet may end a stream that failed as if it were whole: what is missing comes by plain HTTP."""
    content = medium.files()[WEIGHTS_NAME]
    monkeypatch.setattr("lora_hub.registry.xet.chunks", lambda *_: iter([content[:length]]))
    pulled = pull(hub_over_xet, "org/task@1.0.0")

    assert (pulled.path / WEIGHTS_NAME).read_bytes() == content
    assert ranges(hub)[-1].startswith(f"{length}-")


@pytest.mark.parametrize("path", ["/xet-read-token/", "/reconstructions/", "/xorbs/"])
def test_xet_that_does_not_answer_gives_way(hub, hub_over_xet, medium, pull, monkeypatch, path):
    """Where a part of Xet hangs, the weights come by plain HTTP."""
    monkeypatch.setenv("LORA_HUB_TIMEOUT", "0.3")
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.fault(path, times=None, hang=True)
    pulled = pull(hub_over_xet, "org/task@1.0.0")

    assert (pulled.path / WEIGHTS_NAME).read_bytes() == medium.files()[WEIGHTS_NAME]
    assert hub.count("cdn", "GET", "/files/") == 1


@pytest.mark.parametrize("path", ["/xet-read-token/", "/reconstructions/", "/xorbs/"])
def test_xet_that_is_missing_gives_way(hub, hub_over_xet, medium, pull, path):
    """Where a part of Xet is not there, the weights come by plain HTTP."""
    hub.fault(path, times=None, status=404)
    pulled = pull(hub_over_xet, "org/task@1.0.0")

    assert (pulled.path / WEIGHTS_NAME).read_bytes() == medium.files()[WEIGHTS_NAME]


def test_a_hub_that_is_down(hub, over, published, fails, pull):
    """No connection is exit code 4, with the host; what is missing comes when it is up again."""
    hub.stop()
    error = fails(over, "org/task@1.0.0")
    hub.start()

    assert isinstance(error, RegistryError)
    assert hub.endpoint.removeprefix("http://") in error.message
    assert pull(over, "org/task@1.0.0").digest == published


@pytest.mark.parametrize("name", [CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME])
def test_a_cut_answer_is_gone_on_with(hub, hub_over_lfs, medium, pull, name):
    """A body that breaks off is asked for from there, and the file is whole."""
    fault = hub.fault(name, method="GET", cut=100)
    pulled = pull(hub_over_lfs, "org/task@1.0.0")

    assert fault.hits == 1
    assert {part.headers.get("range", "").partition("-")[0] for part in hub.requests if name in part.path} >= {
        "bytes=0",
        "bytes=100",
    }
    assert (pulled.path / WEIGHTS_NAME).read_bytes() == medium.files()[WEIGHTS_NAME]


def test_answers_that_are_always_cut(hub, hub_over_lfs, medium, fails, pull):
    """A body that never has more than nothing is exit code 4."""
    fault = hub.fault("/files/", times=None, cut=0)
    error = fails(hub_over_lfs, "org/task@1.0.0")
    fault.times = fault.hits

    assert isinstance(error, RegistryError)
    assert fault.hits == 3
    assert pull(hub_over_lfs, "org/task@1.0.0").path.is_dir()


@pytest.mark.parametrize("size", [2 * MIB, 9 * MIB], ids=["small", "large"])
def test_a_flipped_bit_is_noticed(hub, hub_registry, over, push, pull, fails, store, size):
    """One other bit in the weights, over HTTP or over Xet, is exit code 6; nothing of it is kept."""
    push(hub_registry, "org/task@1.0.0", large_adapter(size=size))
    hub.tamper("org/task", "v1.0.0", WEIGHTS_NAME, MIB + 1)
    error = fails(over, "org/task@1.0.0")
    seen = visible(store), list(store.partials.glob("*"))
    hub.tamper("org/task", "v1.0.0", WEIGHTS_NAME, MIB + 1)  # and back

    assert isinstance(error, IntegrityError)
    assert WEIGHTS_NAME in error.message
    assert seen == ([], [])
    assert pull(over, "org/task@1.0.0").path.is_dir()


@pytest.mark.parametrize(("name", "code"), [(CONFIG_NAME, 6), (MANIFEST_NAME, 7)])
def test_a_flipped_bit_in_a_small_file_is_noticed(hub, over, medium, fails, pull, store, name, code):
    """Another config is not what the manifest says (6); another manifest is not what was pinned (7)."""
    hub.fault(f"{name}$", flip=20 if name == CONFIG_NAME else -3 % len(hub.repo("org/task").files("main")[name]))
    error = fails(over, "org/task@1.0.0")

    assert error.exit_code in {code, 8}  # what is no JSON any more is malformed
    assert weights_requests(hub) == 0 or error.exit_code != 7
    assert visible(store) == []
    assert pull(over, "org/task@1.0.0").path.is_dir()


def test_a_flipped_bit_on_the_way_is_noticed(hub, hub_over_lfs, large, fails, pull):
    """A bit that changes in one answer only is noticed as well, and the next one is right."""
    hub.fault("/files/", flip=8 * MIB)

    assert isinstance(fails(hub_over_lfs, "org/task@1.0.0"), IntegrityError)
    assert pull(hub_over_lfs, "org/task@1.0.0").path.is_dir()


@pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("difference", [-1, 1, 3 * MIB])
def test_a_file_of_another_size_than_announced(hub, hub_over_lfs, medium, fails, pull, store, name, difference):
    """No byte more than was announced is taken, and none less is enough."""
    content = medium.files()[name]
    body = content[:difference] if difference < 0 else content + bytes(difference)
    host = "hub" if name == CONFIG_NAME else "cdn"
    fault = hub.fault(f"/{name}$", host=host, status=200, body=body, times=None)
    error = fails(hub_over_lfs, "org/task@1.0.0")
    fault.times = fault.hits

    assert error.exit_code in ({6} if difference > 0 else {4})
    assert visible(store) == []
    assert pull(hub_over_lfs, "org/task@1.0.0").path.is_dir()


def test_an_announced_size_that_is_not_the_manifests(hub, hub_over_lfs, published, fails, pull):
    """What cannot be the file of the manifest is refused before a byte of it is asked for."""
    blob = hub.repo("org/task").at("v1.0.0").blobs[WEIGHTS_NAME]
    blob.size += 1
    error = fails(hub_over_lfs, "org/task@1.0.0")
    blob.size -= 1

    assert isinstance(error, IntegrityError)
    assert weights_requests(hub) == 0
    assert pull(hub_over_lfs, "org/task@1.0.0").digest == published


ANSWERS = {
    "HTML": b"<!doctype html><title>A proxy</title>",
    "nothing": b"",
    "null": b"null",
    "a list": b'["a"]',
    "an object": b'{"a": 1}',
    "a number": b"1",
    "a deep list": b"[" * 100_000,
    "no Unicode": b"\xff\xfe",
}


@pytest.mark.parametrize("kind", ["refs", "paths-info"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_that_is_none(hub, hub_registry, published, fails, pull, kind, answer):
    """What is no answer of a Hub is exit code 4, and the hint is to look at HF_ENDPOINT; nothing is taken for empty."""
    hub.fault(KINDS[kind], status=200, body=ANSWERS[answer])
    error = fails(hub_registry, "org/task@1.0.0")

    assert isinstance(error, RegistryError)
    assert hub.endpoint.removeprefix("http://") in error.message
    assert pull(hub_registry, "org/task@1.0.0").digest == published


@pytest.mark.parametrize("answer", ["HTML", "null", "a number"])
def test_a_search_that_is_none(hub, hub_registry, answer):
    """So is what is no answer to a search."""
    hub.fault("/api/models", status=200, body=ANSWERS[answer])

    with pytest.raises(RegistryError):
        look.search("x")


@pytest.mark.parametrize(
    "refs",
    [
        {"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": "../../evil"}], "tags": []},
        {"branches": [], "tags": [{"name": "v1.0.0", "ref": "refs/tags/v1.0.0", "targetCommit": "A" * 40}]},
        {"branches": [], "tags": [{"name": "v1.0.0", "ref": "refs/tags/v1.0.0", "targetCommit": None}]},
    ],
)
def test_a_commit_that_is_none(hub, hub_registry, published, fails, refs):
    """What is not 40 hex digits is no commit, and becomes part of no path."""
    hub.fault(REFS, status=200, body={"converts": [], **refs})

    assert isinstance(fails(hub_registry, "org/task@1.0.0"), RegistryError)
    assert len(hub.requests) == 1


@pytest.mark.parametrize("kind", ["refs", "paths-info"])
def test_an_answer_that_is_too_long(hub, hub_registry, published, fails, pull, monkeypatch, kind):
    """An answer of the API beyond the limit is exit code 4, and is not read to its end."""
    monkeypatch.setattr(manners, "MAX_ANSWER", 4096)
    fault = hub.fault(KINDS[kind], status=200, body=b"[" + b" " * 10_000 + b"]", times=None)
    error = fails(hub_registry, "org/task@1.0.0")
    fault.times = fault.hits

    assert isinstance(error, RegistryError)
    assert "4096 bytes" in error.message
    assert pull(hub_registry, "org/task@1.0.0").digest == published


def test_a_long_refusal_is_not_printed(hub, hub_registry, published, fails):
    """What a server says is shown in one short line, and cannot move the cursor of a terminal."""
    hub.fault(REFS, status=403, body={"error": "\x1b[2J no\r\n" + "x" * 5000})
    error = fails(hub_registry, "org/task@1.0.0")

    assert str(error).isprintable()
    assert len(error.message) < 2000


# Who may read


def test_a_gated_repository_that_must_be_asked_for(hub, hub_registry, fails, monkeypatch):
    """Who is logged in and not on the list is told to ask for access (4)."""
    hub.create(PLAIN, adapter_files().files(), gated=True)
    hub.add_token(CANARY, "stranger")
    monkeypatch.setenv("HF_TOKEN", CANARY)
    error = fails(hub_registry, PLAIN)

    assert isinstance(error, RegistryError)
    assert PLAIN in error.message
    assert "ask for it" in error.hint


def test_a_gated_repository_without_a_token(hub, hub_registry, fails, monkeypatch):
    """Who is not logged in is told to do that first (4)."""
    hub.create(PLAIN, adapter_files().files(), gated=True)
    monkeypatch.delenv("HF_TOKEN")
    error = fails(hub_registry, PLAIN)

    assert error.exit_code == 4
    assert "hf auth login" in error.hint


@pytest.mark.parametrize("at", ["", "@1.0.0", "@commit"])
@pytest.mark.parametrize("is_pinned", [False, True], ids=["new", "pinned"])
def test_a_private_repository_without_a_token(hub, hub_registry, fails, pull, monkeypatch, at, is_pinned):
    """A private repository looks like a missing one: the error (3 or 4) says how to log in, pinned or not."""
    repo = hub.create(PLAIN, adapter_files().files(), private=True, tags=["v1.0.0"])
    reference = PLAIN + at.replace("commit", repo.branches["main"])
    if is_pinned:
        trusts.pin([reference])
    monkeypatch.delenv("HF_TOKEN")
    error = fails(hub_registry, reference)

    assert error.exit_code in {3, 4}
    assert "hf auth login" in error.hint


def test_a_private_repository_with_a_token(hub, hub_registry, pull):
    """With a token that opens it, a private repository is like any other."""
    hub.create(PLAIN, adapter_files().files(), private=True)

    assert pull(hub_registry, PLAIN, digest=look.info(PLAIN).digest).path.is_dir()


def test_an_invalid_token(hub, hub_registry, published, fails, monkeypatch):
    """A token that is none is exit code 4, with the way to log in; the token is not repeated."""
    monkeypatch.setenv("HF_TOKEN", CANARY)
    error = fails(hub_registry, "org/task@1.0.0")

    assert isinstance(error, RegistryError)
    assert "hf auth login" in error.hint
    assert CANARY not in str(error)


@pytest.mark.parametrize("end", ["\x7f", "\x01", "é", " x"])
def test_a_token_that_no_header_can_hold(hub, hub_registry, published, fails, monkeypatch, end):
    """A token with a stray character, as from a bad paste, is refused without being printed."""
    monkeypatch.setenv("HF_TOKEN", CANARY + end)
    error = fails(hub_registry, "org/task@1.0.0")

    assert error.exit_code in {2, 4}
    assert CANARY not in str(error)


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_repeats_the_token(hub, hub_over_lfs, published, fails, kind):
    """What a server says is shown without the token."""
    hub.fault(KINDS[kind], status=403, body={"error": f"Bearer {hub.token} may not"})
    error = fails(hub_over_lfs, "org/task@1.0.0")

    assert "may not" in error.message
    assert hub.token not in str(error)


def test_the_token_stays_with_the_hub(hub, over, push, pull, store, monkeypatch, home, tmp_path):
    """Neither the CDN nor any file of ours ever sees the token."""
    hub.add_token(CANARY, "org", orgs=None)
    monkeypatch.setenv("HF_TOKEN", CANARY)
    push(over, "org/task@1.0.0", large_adapter())
    pull(over, "org/task@1.0.0")
    api.lock(["org/task@1.0.0"], lock=tmp_path / "lora-hub.lock")
    told = [request for request in hub.requests if CANARY in f"{request.path} {request.headers}"]
    files = [path for root in (home, tmp_path / "lora-hub.lock") for path in (root, *root.rglob("*")) if path.is_file()]

    assert {request.host for request in told} == {"hub"}
    assert hub.count("cdn") > 0
    assert len(files) > 4
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []


# Large downloads that break off


@pytest.fixture
def broken_off(hub, hub_over_lfs, large, fails, store, monkeypatch):
    """The partial file of a pull that ended after 4 MiB; the log is empty."""
    with monkeypatch.context() as patch:
        patch.setattr(network, "RETRY", Retry(tries=1))
        hub.fault("/files/", cut=4 * MIB)
        assert isinstance(fails(hub_over_lfs, "org/task@1.0.0"), RegistryError)
    (path,) = store.partials.iterdir()
    hub.clear()
    return path


def ranges(hub) -> list[str]:
    """Which ranges of the weights were asked for."""
    return [request.headers["range"].removeprefix("bytes=") for request in hub.requests if request.host == "cdn"]


def test_the_next_run_goes_on_where_the_last_one_ended(hub, hub_over_lfs, large, broken_off, pull, store):
    """What came of a large file is kept by its digest, and only the rest is asked for."""
    kept = broken_off.stat().st_size
    seen = visible(store)
    pulled = pull(hub_over_lfs, "org/task@1.0.0")
    (entry,) = (entry for entry in pulled.adapter.manifest.files if entry.name == WEIGHTS_NAME)

    assert seen == []
    assert broken_off.name == entry.sha256
    assert 0 < kept <= 4 * MIB
    assert ranges(hub) == [f"{kept}-{entry.size - 1}"]
    assert (pulled.path / WEIGHTS_NAME).read_bytes() == large.files()[WEIGHTS_NAME]
    assert not broken_off.exists()


def test_xet_goes_on_as_well(hub, hub_registry, large, broken_off, pull, monkeypatch):
    """What came by HTTP is gone on with over Xet."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    pulled = pull(hub_registry, "org/task@1.0.0")

    assert hub.count("cdn", "GET", "/files/") == 0
    assert sum(r.answer_size for r in hub.requests if "/xorbs/" in r.path) < 6 * MIB
    assert (pulled.path / WEIGHTS_NAME).read_bytes() == large.files()[WEIGHTS_NAME]


def test_a_whole_partial_file_is_not_fetched_again(hub, hub_over_lfs, large, broken_off, pull):
    """Where only the last step was missing, no weights are asked for."""
    broken_off.write_bytes(large.files()[WEIGHTS_NAME])
    pulled = pull(hub_over_lfs, "org/task@1.0.0")

    assert weights_requests(hub) == 0
    assert (pulled.path / WEIGHTS_NAME).read_bytes() == large.files()[WEIGHTS_NAME]


def test_a_damaged_partial_file_is_begun_again(hub, hub_over_lfs, large, broken_off, pull):
    """What was changed on the disk is noticed, and the same pull begins again."""
    content = bytearray(broken_off.read_bytes())
    content[1000] ^= 1
    broken_off.write_bytes(content)
    pulled = pull(hub_over_lfs, "org/task@1.0.0")

    assert ranges(hub)[-1].startswith("0-")
    assert (pulled.path / WEIGHTS_NAME).read_bytes() == large.files()[WEIGHTS_NAME]


def test_a_partial_file_that_is_too_long_is_begun_again(hub, hub_over_lfs, large, broken_off, pull):
    """What is longer than the whole file can be is thrown away."""
    broken_off.write_bytes(bytes(10 * MIB))
    pulled = pull(hub_over_lfs, "org/task@1.0.0")

    assert (pulled.path / WEIGHTS_NAME).read_bytes() == large.files()[WEIGHTS_NAME]


def test_the_rest_of_a_server_that_ignores_ranges(hub, hub_over_lfs, large, broken_off, pull):
    """A server that begins at the beginning again is read from where the file goes on."""
    content = large.files()[WEIGHTS_NAME]
    hub.fault("/files/", host="cdn", status=200, body=content)
    pulled = pull(hub_over_lfs, "org/task@1.0.0")

    assert len(ranges(hub)) == 1
    assert (pulled.path / WEIGHTS_NAME).read_bytes() == content


def test_small_weights_leave_no_partial_file(hub, hub_over_lfs, published, fails, pull, store, monkeypatch):
    """What is there again at once is not kept."""
    fault = hub.fault("/files/", times=None, cut=0)
    fails(hub_over_lfs, "org/task@1.0.0")
    fault.times = fault.hits

    assert not list(store.partials.glob("*"))
    assert pull(hub_over_lfs, "org/task@1.0.0").digest == published


def test_a_cut_over_xet_is_gone_on_with(hub, hub_over_xet, large, pull):
    """What Xet cannot bring to an end comes by plain HTTP, from there."""
    fault = hub.fault("/xorbs/", times=None, cut=MIB)
    pulled = pull(hub_over_xet, "org/task@1.0.0")

    assert fault.hits > 0
    assert (pulled.path / WEIGHTS_NAME).read_bytes() == large.files()[WEIGHTS_NAME]


def test_a_disk_that_is_full(hub, over, large, fails, pull, store, monkeypatch):
    """No space left is exit code 11 with what to do, nothing is visible, and with space again the version comes."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        error = fails(over, "org/task@1.0.0")

    assert error.exit_code == 11
    assert "free some space" in error.hint
    assert visible(store) == []
    assert pull(over, "org/task@1.0.0").path.is_dir()


def full(_descriptor):
    """Fail as a full disk does."""
    import errno

    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# Offline


@pytest.fixture
def offline(monkeypatch, no_socket):
    """Forbid the network, by the variable of the Hub's client, and make sure."""

    def offline():
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        no_socket()

    return offline


@pytest.mark.parametrize("at", ["", "@1", "@^1.0", "@1.0.0", "@digest", "@commit"])
def test_offline_what_is_pinned_and_in_the_store_is_enough(hub, hub_registry, push, offline, at):
    """Every reference finds the newest of the pinned versions that are in the store, without a request."""
    pushed = push(hub_registry, "org/task@1.0.0", seed=1)
    push(hub_registry, "org/task@1.1.0", seed=2)  # pinned, but not in the store
    api.pull("org/task@1.0.0")
    hub.clear()
    offline()
    pulled = api.pull("org/task" + at.replace("digest", pushed.digest).replace("commit", str(pushed.commit)))

    assert pulled.digest == pushed.digest
    assert hub.requests == []


@pytest.mark.parametrize("at", ["", "@1.0.0", "@commit"])
def test_offline_a_foreign_repository_is_there_as_well(hub, plain, offline, at):
    """What PEFT pushed is found offline by every reference that found it online."""
    if at == "@1.0.0":
        plain.tag("v1.0.0", plain.branches["main"])
    reference = PLAIN + at.replace("commit", plain.branches["main"])
    trusts.pin([reference])
    first = api.pull(reference)
    hub.clear()
    offline()

    assert api.pull(reference).path == first.path
    assert hub.requests == []


@pytest.mark.parametrize("at", ["", "@^1.0", "@1.0.0", f"@sha256:{'0' * 64}", f"@{'a' * 40}"])
def test_offline_what_is_not_in_the_store_is_refused(hub, published, offline, at):
    """What would need the network is exit code 4, and the hint says how to allow it."""
    offline()
    with pytest.raises(RegistryError) as caught:
        api.pull("org/task" + at)

    assert "HF_HUB_OFFLINE" in caught.value.hint
    assert hub.requests == []


def test_offline_what_is_not_pinned_any_more_is_refused(hub, published, forget, offline):
    """What is in the store is no more trusted offline than online."""
    api.pull("org/task@1.0.0")
    forget()
    offline()

    with pytest.raises((RegistryError, UntrustedError)):
        api.pull("org/task@1.0.0")


@pytest.mark.parametrize(
    "verb",
    [
        lambda path: look.info("org/task"),
        lambda path: look.search("task"),
        lambda path: look.list_adapters("org/"),
        lambda path: trusts.pin(["org/task@1.0.0"]),
        lambda path: api.lock(["org/task"], lock=path / "lora-hub.lock"),
        lambda path: api.push(adapter_files().write(path / "adapter"), "org/task@2.0.0"),
    ],
    ids=["info", "search", "list", "pin", "lock", "push"],
)
def test_offline_no_verb_opens_a_socket(hub, published, offline, tmp_path, verb):
    """Whatever needs the Hub says so (4) instead of asking it."""
    offline()
    with pytest.raises(RegistryError) as caught:
        verb(tmp_path)

    assert "HF_HUB_OFFLINE" in caught.value.hint
    assert hub.requests == []


def test_offline_a_client_that_is_told_so_opens_no_socket(hub, published, monkeypatch, no_socket):
    """So does `offline=True`."""
    no_socket()
    with pytest.raises(RegistryError, match="network is not to be used"):
        api.pull("org/task@1.0.0", offline=True)

    assert hub.requests == []
