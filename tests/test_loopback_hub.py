"""The hub that stands in for the real one: the real client finds what it needs, and every fault reaches it."""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from loopback_hub import LoopbackHub

# The client passes bytes to httpx2 in a way that httpx2 is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "org/task"
WEIGHTS = "adapter_model.safetensors"
BASE = "org/base"
CARD = f"---\nlibrary_name: peft\nbase_model: {BASE}\ntags: [lora]\n---\nA task.\n".encode()
CONTENT = hashlib.shake_256(b"weights").digest(3 * 1024 * 1024)
FILES = {"README.md": CARD, "adapter_config.json": b'{"r": 8}', WEIGHTS: CONTENT}


@pytest.fixture(autouse=True)
def _online(monkeypatch):
    """The client may talk to the hub, without progress bars."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)


@pytest.fixture(params=["xet", "lfs"])
def mode(request, monkeypatch):
    """How the client moves large files."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    return request.param


@pytest.fixture
def lfs(monkeypatch):
    """The client moves large files by LFS and HTTP."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture
def download(hub, tmp_path):
    """Download one file into a cache of its own and return its bytes."""

    def download(path, revision="main", *, token=hub.token):
        cache = tmp_path / f"cache-{len(list(tmp_path.iterdir()))}"
        return Path(
            hf_hub_download(REPO, path, revision=revision, cache_dir=cache, endpoint=hub.endpoint, token=token)
        ).read_bytes()

    return download


def push(api, files=None, **options):
    operations = [CommitOperationAdd(path, content) for path, content in (files or FILES).items()]
    return api.create_commit(REPO, operations, commit_message="push", **options)


def status_of(function, *args, **kwargs):
    """Return the status that the client reports as an error."""
    with pytest.raises(HfHubHTTPError) as caught:
        function(*args, **kwargs)
    return caught.value.response.status_code


def test_a_push_arrives_and_comes_back(hub, api, mode, tmp_path):
    """One commit brings regular and large files, and a snapshot by tag and by commit gives them back."""
    api.create_repo(REPO, private=True)
    made = push(api, commit_description="digest", parent_commit=api.model_info(REPO).sha)
    api.create_tag(REPO, tag="v1.0.0", revision=made.oid)
    hub.clear()
    for revision in "v1.0.0", made.oid:
        options = {"endpoint": hub.endpoint, "token": hub.token, "cache_dir": tmp_path / revision}
        snapshot = Path(snapshot_download(REPO, revision=revision, **options))

        assert {path: (snapshot / path).read_bytes() for path in FILES} == FILES

    repo = hub.repo(REPO)
    assert repo.private
    assert [commit.title for commit in repo.commits] == ["initial commit", "push"]
    assert (repo.commits[-1].id, repo.commits[-1].description) == (made.oid, "digest")
    assert repo.files("v1.0.0") == {**repo.files(repo.commits[0].id), **FILES}
    assert (hub.count("cdn", path="/xorbs/") > 0) == (mode == "xet")
    assert (hub.count("cdn", path="/files/") > 0) == (mode == "lfs")


def test_a_push_of_the_same_files_makes_no_commit(hub, api, mode):
    """The client sees in the preupload that nothing has changed."""
    api.create_repo(REPO)

    assert push(api).oid == push(api).oid
    assert len(hub.repo(REPO).commits) == 2


def test_what_came_one_way_goes_the_other(hub, api, download, monkeypatch, mode):
    """A file that was uploaded by Xet is downloaded by LFS, and the other way round."""
    api.create_repo(REPO)
    push(api)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", mode == "xet")

    assert download(WEIGHTS) == CONTENT
    assert hub.count("cdn", path="/files/" if mode == "xet" else "/xorbs/") == 1


def test_a_large_file_is_uploaded_in_parts(lfs, download):
    """The parts of an LFS upload become one file."""
    with LoopbackHub(lfs_part_size=1024 * 1024, xet=False) as hub:
        api = HfApi(endpoint=hub.endpoint, token=hub.token)
        api.create_repo(REPO)
        push(api)

        assert hub.count("cdn", "PUT") == 3
        assert hub.repo(REPO).files("main")[WEIGHTS] == CONTENT


def test_a_compressed_upload_is_unpacked(hub, api, download):
    """Xet packs what is regular; the hub keeps the plain bytes."""
    plain = bytes(range(256)) * 4096
    api.create_repo(REPO)
    push(api, {WEIGHTS: plain})

    assert sum(request.body_size for request in hub.requests if "/v1/xorbs/" in request.path) < len(plain)
    assert hub.repo(REPO).files("main")[WEIGHTS] == download(WEIGHTS) == plain


def test_of_two_commits_on_one_parent_one_is_refused(hub, api):
    """A parent that is not the head any more is a 412."""
    head = hub.create(REPO).branches["main"]
    push(api, {"a": b"1"}, parent_commit=head)

    assert status_of(push, api, {"a": b"2"}, parent_commit=head) == 412


def test_of_many_commits_at_once_one_wins(hub, api):
    """The check of the parent and the commit are one step."""
    head = hub.create(REPO).branches["main"]
    start = threading.Barrier(8)

    def race(number):
        start.wait()
        try:
            return push(api, {"winner": b"%d" % number}, parent_commit=head).oid
        except HfHubHTTPError as error:
            return error.response.status_code

    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(race, range(8)))

    assert results.count(412) == 7
    assert hub.repo(REPO).branches["main"] in results


def test_tags_and_branches(hub, api):
    """References are listed with their commits; a second one of the same name is a conflict."""
    first = hub.create(REPO, tags=["v1.0.0"]).branches["main"]
    api.create_branch(REPO, branch="dev/x")
    api.create_tag(REPO, tag="v1.1.0", revision="dev/x")
    api.delete_tag(REPO, tag="v1.0.0")

    refs = api.list_repo_refs(REPO)
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1.1.0", first)]
    assert [branch.name for branch in refs.branches] == ["main", "dev/x"]
    assert status_of(api.create_tag, REPO, tag="v1.1.0") == 409
    assert status_of(api.create_branch, REPO, branch="dev/x") == 409
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(REPO, tag="v1.0.0")
    api.delete_branch(REPO, branch="dev/x")
    assert hub.repo(REPO).branches == {"main": first}


def test_models_are_found_by_base(hub, api):
    """The card gives the tags that a search filters by; what is private is not found by strangers."""
    hub.create(REPO, FILES)
    hub.create("org/other", {"README.md": CARD.replace(BASE.encode(), b"org/other-base")})
    hub.create("org/private", FILES, private=True)
    anonymous = HfApi(endpoint=hub.endpoint, token=False)
    wanted = ["peft", f"base_model:adapter:{BASE}"]

    assert [model.id for model in anonymous.list_models(filter=wanted)] == [REPO]
    assert {model.id for model in api.list_models(filter=wanted)} == {REPO, "org/private"}
    assert [model.id for model in api.list_models(search="OTHER", author="org")] == ["org/other"]
    assert len(list(api.list_models(limit=2))) == 2
    info = api.model_info(REPO, files_metadata=True)
    assert info.card_data.base_model == BASE
    assert {f"base_model:{BASE}", f"base_model:adapter:{BASE}", "lora", "safetensors"} <= set(info.tags)
    assert {file.rfilename: file.size for file in info.siblings}[WEIGHTS] == len(CONTENT)


def test_paths_and_trees(hub, api):
    """Sizes and hashes of files are known without a download."""
    hub.create(REPO, {**FILES, "sub/empty.safetensors": b""})
    weights, folder = api.get_paths_info(REPO, [WEIGHTS, "sub", "missing"])

    assert (weights.size, weights.lfs.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
    assert folder.path == "sub"
    assert {entry.path for entry in api.list_repo_tree(REPO)} == {*FILES, "sub", ".gitattributes"}
    assert "sub/empty.safetensors" in api.list_repo_files(REPO)


def test_history_is_listed_in_pages(hub, api):
    """More commits than a page holds are all listed, the newest first."""
    repo = hub.create(REPO)
    for number in range(60):
        repo.commit({"number": b"%d" % number}, title=str(number))

    assert [commit.commit_id for commit in api.list_repo_commits(REPO)] == [made.id for made in repo.commits][::-1]
    assert hub.count(path="/commits/") == 2


def test_a_range_is_a_part_of_the_file(hub):
    """Ranges are served by the CDN, to whom they are redirected; one behind the end is a 416."""
    hub.create(REPO, FILES)
    url = f"{hub.endpoint}/{REPO}/resolve/main/{WEIGHTS}"

    def get(**headers):
        return httpx2.get(url, headers=headers, follow_redirects=True)

    part = get(Range="bytes=10-19")
    assert (part.status_code, part.content) == (206, CONTENT[10:20])
    assert part.headers["Content-Range"] == f"bytes 10-19/{len(CONTENT)}"
    assert get(Range="bytes=-5").content == CONTENT[-5:]
    assert get(Range=f"bytes={len(CONTENT)}-").status_code == 416
    assert get(**{"Range": "bytes=5-", "If-Range": part.headers["ETag"]}).content == CONTENT[5:]
    assert get(**{"Range": "bytes=5-", "If-Range": '"other"'}).status_code == 200
    assert get(**{"If-Match": '"other"'}).status_code == 412


def test_what_is_missing_has_its_own_error(hub, api, download):
    """The client tells a missing repository, revision and file apart."""
    hub.create(REPO, FILES)

    with pytest.raises(RemoteEntryNotFoundError):
        download("missing.txt")
    with pytest.raises(RevisionNotFoundError):
        download("README.md", "v9.9.9")
    with pytest.raises(RepositoryNotFoundError):
        api.model_info("org/missing")


def test_who_may_read_and_write(hub):
    """Strangers see public repositories only; a token writes to its own organisations."""
    hub.create(REPO, FILES)
    hub.create("org/private", private=True)
    hub.add_token("hf_other", "other", orgs=["elsewhere"])
    hub.add_token("hf_reader", "reader", orgs=["org"], role="read")
    anonymous, other, reader, unknown = (
        HfApi(endpoint=hub.endpoint, token=token) for token in (False, "hf_other", "hf_reader", "hf_unknown")
    )

    assert anonymous.model_info(REPO).id == REPO
    assert status_of(anonymous.model_info, "org/private") == 401
    with pytest.raises(RepositoryNotFoundError):
        other.model_info("org/private")
    assert reader.model_info("org/private").private
    assert status_of(anonymous.create_tag, REPO, tag="x") == 401
    assert status_of(other.create_tag, REPO, tag="x") == 403
    assert status_of(reader.create_repo, "org/new") == 403
    assert status_of(unknown.model_info, REPO) == 401
    assert other.whoami()["orgs"] == [{"name": "elsewhere"}]
    assert other.create_repo("elsewhere/new").repo_id == "elsewhere/new"


def test_a_repository_is_made_once_and_deleted(hub, api):
    """The second time is a conflict, which `exist_ok` forgives."""
    api.create_repo(REPO)

    assert status_of(api.create_repo, REPO) == 409
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    assert set(hub.repo(REPO).files("main")) == {".gitattributes"}
    api.delete_repo(REPO)
    with pytest.raises(KeyError):
        hub.repo(REPO)


def test_a_gated_repository_shows_itself_but_not_its_files(hub, download):
    """Who is not on the list may look, and not download."""
    hub.create(REPO, FILES, gated=True)

    assert HfApi(endpoint=hub.endpoint, token=False).model_info(REPO).gated == "auto"
    with pytest.raises(GatedRepoError):
        download("README.md", token=False)
    assert download("README.md") == CARD


def test_a_broken_card_is_refused(hub, api):
    """The client asks before it pushes."""
    hub.create(REPO)

    with pytest.raises(ValueError, match="base_model"):
        push(api, {"README.md": b"---\nbase_model: /local/path\n---\n"})


def test_the_token_stays_with_the_hub(hub, api, mode, download):
    """No request to the CDN, another origin, carries the token."""
    api.create_repo(REPO)
    push(api)
    download(WEIGHTS)

    seen = {(request.host, hub.token in request.headers.get("authorization", "")) for request in hub.requests}
    assert {host for host, has_token in seen if has_token} == {"hub"}
    assert ("cdn", False) in seen


def test_tampering_reaches_the_client(hub, mode, download):
    """A flipped bit is downloaded by HTTP and by Xet, and nothing that describes the file tells."""
    hub.create(REPO, FILES, tags=["v1.0.0"])
    hub.tamper(REPO, "v1.0.0", WEIGHTS, 2_000_000)
    hub.tamper(REPO, "v1.0.0", "README.md", 5)
    weights = download(WEIGHTS, "v1.0.0")

    assert (hub.count("cdn", path="/xorbs/") > 0) == (mode == "xet")
    assert [at for at in range(0, len(CONTENT), 1000) if weights[at] != CONTENT[at]] == [2_000_000]
    assert len(weights) == len(CONTENT)
    assert download("README.md", "v1.0.0") == CARD[:5] + bytes([CARD[5] ^ 1]) + CARD[6:]


def test_tampering_with_an_upload_by_xet_reaches_the_client(hub, api, download):
    """The bytes are flipped, however they came."""
    api.create_repo(REPO)
    push(api)
    hub.tamper(REPO, "main", WEIGHTS, 1)

    assert download(WEIGHTS)[:3] == bytes([CONTENT[0], CONTENT[1] ^ 1, CONTENT[2]])


@pytest.mark.parametrize("tags", ["keep", "move", "drop"])
def test_a_squash_rewrites_history(hub, api, download, tags):
    """One commit is left of the branch; the old ones are gone unless a tag keeps them."""
    repo = hub.create(REPO, {"a.txt": b"1"}, tags=["v1.0.0"])
    old = repo.branches["main"]
    repo.commit({"a.txt": b"2"})
    new = repo.squash(tags=tags)

    assert [commit.commit_id for commit in api.list_repo_commits(REPO)] == [new.id]
    assert download("a.txt") == b"2"
    assert repo.tags == {"keep": {"v1.0.0": old}, "move": {"v1.0.0": new.id}, "drop": {}}[tags]
    if tags == "keep":
        assert download("a.txt", old) == b"1"
    else:
        with pytest.raises(RevisionNotFoundError):
            download("a.txt", old)


def test_a_client_squashes(hub, api):
    """The squash of the client keeps the tags."""
    repo = hub.create(REPO, tags=["v1.0.0"])
    old = repo.commit({"a.txt": b"2"}).parent
    api.super_squash_history(REPO)

    assert repo.at("main").parent is None
    assert repo.tags == {"v1.0.0": old}


def test_a_status_instead_of_the_work(hub, api):
    """As often as asked, with headers and body."""
    hub.create(REPO)
    fault = hub.fault("/api/models/", status=429, times=2, headers={"Retry-After": "7"}, body={"error": "slow down"})

    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="slow down") as caught:
            api.model_info(REPO)
        assert caught.value.response.headers["Retry-After"] == "7"
    assert api.model_info(REPO).id == REPO
    assert fault.hits == 2


def test_an_error_code_makes_the_exception(hub, api):
    """What the client makes of a status depends on the code."""
    hub.create(REPO)
    hub.fault("/api/models/", status=403, headers={"X-Error-Code": "GatedRepo"})

    with pytest.raises(GatedRepoError):
        api.model_info(REPO)


def test_a_cut_body_is_resumed(hub, lfs, download, monkeypatch):
    """The fault waits for a body that is long enough; the client asks for the rest of the chunks that it has."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.create(REPO, FILES)
    fault = hub.fault(WEIGHTS, cut=1_000_000)

    assert download(WEIGHTS) == CONTENT
    assert fault.hits == 1
    assert hub.requests[-1].headers["range"] == "bytes=1000000-"


def test_a_flipped_bit_of_one_answer(hub, lfs, download):
    """Only the answer is damaged, not what is stored."""
    hub.create(REPO, FILES)
    hub.fault(WEIGHTS, flip=7)

    assert download(WEIGHTS) == CONTENT[:7] + bytes([CONTENT[7] ^ 1]) + CONTENT[8:]
    assert download(WEIGHTS) == CONTENT


def test_a_delayed_answer(hub, api):
    """The answer comes, later."""
    hub.create(REPO)
    hub.fault("/api/", delay=0.2)
    start = time.monotonic()

    assert api.model_info(REPO).id == REPO
    assert time.monotonic() - start >= 0.2


def test_a_dropped_answer(hub, api):
    """The commit is made, and the client does not learn it."""
    hub.create(REPO)
    hub.fault("/commit/", method="POST", drop_answer=True)

    with pytest.raises(httpx2.RemoteProtocolError):
        push(api, {"a.txt": b"1"})
    assert hub.repo(REPO).files("main")["a.txt"] == b"1"
    assert hub.requests[-1].status is None


def test_a_hanging_host(hub):
    """Who waits, waits until they give up or the host goes down."""
    hub.fault("/api/models", hang=True, times=None)
    with pytest.raises(httpx2.ReadTimeout):
        httpx2.get(f"{hub.endpoint}/api/models", timeout=0.1)

    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(httpx2.get, f"{hub.endpoint}/api/models", timeout=None)
        while hub.count(path="/api/models") < 2:
            os.sched_yield()
        hub.stop()
    assert isinstance(waiting.exception(), httpx2.TransportError)


def test_a_refused_connection(hub):
    """The connection is reset, and no work is done."""
    hub.fault("/api/models", host="hub", refuse=True)

    with pytest.raises(httpx2.ReadError):
        httpx2.get(f"{hub.endpoint}/api/models")
    assert httpx2.get(f"{hub.endpoint}/api/models").status_code == 200


def test_a_client_that_leaves_changes_nothing(hub):
    """A commit whose body breaks off, even between two lines, is not made."""
    hub.create(REPO)
    lines = b'{"key": "header", "value": {"summary": "half"}}\n'
    head = f"POST /api/models/{REPO}/commit/main HTTP/1.1\r\nAuthorization: Bearer {hub.token}\r\nContent-Length: 999"
    with socket.create_connection(("127.0.0.1", int(hub.endpoint.rpartition(":")[2]))) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + lines)
        connection.shutdown(socket.SHUT_WR)

        assert connection.recv(1) == b""
    assert hub.requests == []
    assert len(hub.repo(REPO).commits) == 1


def test_a_hub_goes_down_and_comes_back(hub, api):
    """The ports stay the same and nothing is forgotten."""
    hub.create(REPO)
    hub.stop()

    with pytest.raises(httpx2.ConnectError):
        api.model_info(REPO)
    hub.start()
    assert api.model_info(REPO).id == REPO


def test_a_hub_in_a_process_of_its_own(tmp_path):
    """It says where it is, and leaves as its input closes."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-m", "loopback_hub", "--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        place = json.loads(process.stdout.readline())
        api = HfApi(endpoint=place["endpoint"], token=place["token"])

        assert api.whoami()["name"] == "org"
        process.stdin.close()
        assert process.wait(10) == 0
