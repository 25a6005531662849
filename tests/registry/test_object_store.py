"""The registry in an object store: its layout, its claims, its races and its errors."""

import contextlib
import functools
import http.server
import socket
import sys
import threading
import time
import zipfile

import fsspec
import pytest
from adapter_files import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME
from fsspec.registry import _registry as IMPORTED
from object_stores import ADDRESS, CREATED, REFERENCE, outcome, race, read_version, version_files

from lora_hub.documents.fields import sha256
from lora_hub.documents.manifest import CARD_NAME, MAX_MANIFEST, Manifest
from lora_hub.errors import (
    MissingExtraError,
    NotFoundError,
    RegistryError,
    UsageError,
    VersionConflictError,
)
from lora_hub.reference import AdapterRef
from lora_hub.registry import object_store
from lora_hub.registry.directory import DirectoryRegistry
from lora_hub.registry.object_store import ObjectStoreRegistry

FOLDER = "org/task/1.0.0"
CLAIM = f".claims/{FOLDER}.json"
MANIFEST = f"{FOLDER}/{MANIFEST_NAME}"
LATER = "2026-01-31T12:00:01Z"
WRITES = ["probe", "proof", "claim", "config", "weights", "manifest"]
CLAIMED = WRITES.index("claim") + 1  # the first write under a claim


@pytest.fixture(params=["memory_registry", "s3_registry"])
def registry(request):
    """An empty registry in each kind of store."""
    return request.getfixturevalue(request.param)


@contextlib.contextmanager
def serve(handler):
    """Serve HTTP on loopback, in a thread of this process."""
    server = http.server.ThreadingHTTPServer((ADDRESS, 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://{ADDRESS}:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def before_write(registry, number, action):
    """Run *action* before the write of that *number*, from 0; what it raises is raised."""
    write, count = registry._fs.pipe_file, iter(range(100))

    def pipe_file(*args, **kwargs):
        if next(count) == number:
            action()
        return write(*args, **kwargs)

    registry._fs.pipe_file = pipe_file


class Crash(BaseException):
    """What no code of ours catches, as if the process were gone."""


def crash(registry, files, write):
    """Let a publisher of *files* die before a write."""

    def die():
        raise Crash

    dying = ObjectStoreRegistry(registry.url)
    before_write(dying, WRITES.index(write), die)
    with pytest.raises(Crash):
        dying.publish(REFERENCE, files)


def objects(registry):
    return set(registry._fs.find(""))


class TestLayout:
    """What lies where."""

    def test_a_version_is_a_folder_that_peft_loads(self, registry):
        """The files of a version lie in `org/task/1.0.0`, byte for byte, and nothing else is left."""
        files = version_files()
        registry.publish(REFERENCE, {**files, CARD_NAME: b"# A card"})

        assert objects(registry) == {f"{FOLDER}/{name}" for name in (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME)}
        assert read_version(registry) == files

    def test_a_payload_without_a_manifest_is_no_version(self, registry):
        """Files without a manifest are neither listed nor handed out."""
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            registry._fs.pipe_file(f"{FOLDER}/{name}", b"{}")

        assert list(registry.names()) == []
        assert registry.listing(REFERENCE).versions == {}
        with pytest.raises(NotFoundError):
            registry.snapshot(REFERENCE, "1.0.0")

    @pytest.mark.parametrize(
        "stray",
        [
            "org/task/latest",
            "org/task/v1.0.0",
            "org/task/x/2.0.0",
            "org/ta sk/1.0.0",
            "org/1.0.0",
            ".x/task/1.0.0",
            "x",
        ],
    )
    def test_what_is_no_version_is_not_listed(self, memory_registry, stray):
        """Objects that no push made are not taken for adapters or versions."""
        memory_registry.publish(REFERENCE, version_files())
        memory_registry._fs.pipe_file(f"{stray}/{MANIFEST_NAME}", b"{}")

        assert list(memory_registry.names()) == ["org/task"]
        assert list(memory_registry.listing(REFERENCE).versions.values()) == ["1.0.0"]

    def test_names_are_found_by_their_beginning(self, registry):
        """Names come sorted, also where the beginning ends in the middle of a word."""
        for name in ("org/task", "org/tab", "other/task", "a/b"):
            reference = AdapterRef.parse(f"{name}@1.0.0")
            registry.publish(reference, version_files(reference=reference))

        assert list(registry.names()) == ["a/b", "org/tab", "org/task", "other/task"]
        assert list(registry.names("o")) == ["org/tab", "org/task", "other/task"]
        assert list(registry.names("org/task")) == ["org/task"]
        assert list(registry.names("/")) == list(registry.names("org/x")) == []

    def test_what_another_process_publishes_is_seen_at_once(self, registry):
        """Nothing is remembered of an earlier listing."""
        before = registry.listing(REFERENCE).versions
        ObjectStoreRegistry(registry.url).publish(REFERENCE, version_files())

        assert before == {}
        assert list(registry.listing(REFERENCE).versions.values()) == ["1.0.0"]

    def test_a_range_is_read(self, registry, monkeypatch):
        """A download goes on where it was cut off, in requests of a bounded size."""
        files = version_files()
        registry.publish(REFERENCE, files)
        monkeypatch.setattr(object_store, "_RANGE", 100)
        snapshot = registry.snapshot(REFERENCE, "1.0.0")
        chunks = list(snapshot.read(WEIGHTS_NAME, 50, None))

        assert {len(chunk) for chunk in chunks[:-1]} == {100}
        assert b"".join(chunks) == files[WEIGHTS_NAME][50:]
        assert b"".join(snapshot.read(WEIGHTS_NAME, 10, 25)) == files[WEIGHTS_NAME][10:25]
        assert list(snapshot.read(WEIGHTS_NAME, 10, 10)) == []
        assert snapshot.files[WEIGHTS_NAME].size == len(files[WEIGHTS_NAME])

    # aiohttp warns of every body of more than 1 MiB that is not a file.
    @pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
    def test_large_weights_arrive_whole(self, s3_registry):
        """What is too large for one request is written in parts and read in parts."""
        files = {**version_files(), WEIGHTS_NAME: bytearray(range(256)) * (110 * 4096)}
        s3_registry.publish(REFERENCE, files)
        chunks = list(s3_registry.snapshot(REFERENCE, "1.0.0").read(WEIGHTS_NAME, 0, None))

        assert len(chunks) == 7
        assert sha256(b"".join(chunks)) == sha256(files[WEIGHTS_NAME])

    def test_a_file_that_is_gone_is_not_found(self, memory_registry):
        """A file that vanishes between its announcement and its download is named."""
        memory_registry.publish(REFERENCE, version_files())
        snapshot = memory_registry.snapshot(REFERENCE, "1.0.0")
        memory_registry._fs.rm_file(f"{FOLDER}/{WEIGHTS_NAME}")

        with pytest.raises(NotFoundError, match=WEIGHTS_NAME):
            list(snapshot.read(WEIGHTS_NAME, 0, None))


class TestClaims:
    """Publishers that die, and publishers that meet."""

    @pytest.mark.parametrize("write", WRITES[CLAIMED:])
    def test_a_crash_is_completed_by_the_same_content(self, registry, write):
        """The next push of what a dead publisher was publishing makes it whole, with the time of the dead one."""
        files = version_files()
        crash(registry, files, write)
        left = list(registry.names())
        publication = registry.publish(REFERENCE, version_files(created=LATER))

        assert left == []
        assert not publication.is_new  # the manifest that is published is not the one that was handed in
        assert read_version(registry) == files
        assert CLAIM not in objects(registry)

    @pytest.mark.parametrize("write", WRITES[CLAIMED:])
    def test_a_crash_is_not_mixed_with_other_content(self, registry, write):
        """Other content under a version that a dead publisher claims is refused, and nothing becomes visible."""
        crash(registry, version_files(1), write)
        before = objects(registry)
        with pytest.raises(VersionConflictError, match=f"other content since {CREATED}") as caught:
            registry.publish(REFERENCE, version_files(2))

        assert caught.value.exit_code == 10
        assert objects(registry) == before
        assert list(registry.names()) == []
        with pytest.raises(NotFoundError):
            registry.snapshot(REFERENCE, "1.0.0")

    def test_a_crash_before_the_claim_leaves_nothing(self, registry):
        """Who dies before the claim is in nobody's way."""
        crash(registry, version_files(1), "claim")

        assert objects(registry) == set()
        assert registry.publish(REFERENCE, version_files(2)).is_new

    def test_a_claim_on_a_published_version_means_nothing(self, registry):
        """Who dies with the version published, but the claim still there, has published it."""
        files = version_files(1)
        registry.publish(REFERENCE, files)
        registry._fs.pipe_file(CLAIM, version_files(2)[MANIFEST_NAME])

        assert outcome(registry, files) == "adopted"
        assert outcome(registry, version_files(2)) == "conflict"
        assert read_version(registry) == files

    @pytest.mark.parametrize("write", WRITES)
    def test_a_publisher_of_the_same_content_may_overtake(self, s3_registry, write):
        """Whenever another one publishes the same, both succeed, and one of them was first."""
        outcomes = []
        overtaking = ObjectStoreRegistry(s3_registry.url)
        before_write(s3_registry, WRITES.index(write), lambda: outcomes.append(outcome(overtaking, version_files())))
        outcomes.append(outcome(s3_registry, version_files()))

        assert sorted(outcomes) == ["adopted", "new"]
        assert read_version(s3_registry) == version_files()
        assert CLAIM not in objects(s3_registry)

    @pytest.mark.parametrize("write", WRITES)
    def test_a_publisher_of_other_content_may_not_overtake(self, s3_registry, write):
        """Whenever another one publishes something else, exactly one of both succeeds, and its files are whole."""
        outcomes = []
        overtaking = ObjectStoreRegistry(s3_registry.url)
        before_write(s3_registry, WRITES.index(write), lambda: outcomes.append(outcome(overtaking, version_files(2))))
        outcomes.append(outcome(s3_registry, version_files(1)))

        assert outcomes == (["conflict", "new"] if write in WRITES[CLAIMED:] else ["new", "conflict"])
        assert read_version(s3_registry) == version_files(1 if write in WRITES[CLAIMED:] else 2)
        assert CLAIM not in objects(s3_registry)

    @pytest.mark.parametrize("write", WRITES[CLAIMED:])
    def test_a_claim_that_others_have_settled_means_nothing(self, s3_registry, write):
        """Behind the back of a slow publisher its twin completes the version, and a third one claims it again."""
        twin, third = ObjectStoreRegistry(s3_registry.url), ObjectStoreRegistry(s3_registry.url)
        outcomes = []

        def settle():
            outcomes.append(outcome(twin, version_files(1)))
            third._fs.pipe_file(CLAIM, version_files(2)[MANIFEST_NAME])  # and dies before it looks again

        before_write(s3_registry, WRITES.index(write), settle)
        outcomes.append(outcome(s3_registry, version_files(1)))
        outcomes.append(outcome(third, version_files(2)))

        assert outcomes == ["new", "adopted", "conflict"]
        assert read_version(s3_registry) == version_files(1)

    def test_a_claim_made_too_late_is_withdrawn(self, s3_registry):
        """Who claims a version just after its publisher is done finds it published, and writes nothing."""
        late = ObjectStoreRegistry(s3_registry.url)
        before_write(late, WRITES.index("claim"), lambda: s3_registry.publish(REFERENCE, version_files(1)))

        assert outcome(late, version_files(2)) == "conflict"
        assert read_version(s3_registry) == version_files(1)
        assert CLAIM not in objects(s3_registry)

    @pytest.mark.parametrize("content", [b"", b"{}", b"[" * 10, b" " * (2 * MAX_MANIFEST), b'{"schema": "other"}'])
    def test_a_claim_that_is_no_manifest_is_refused(self, memory_registry, content):
        """What somebody else left in place of a claim stops a push, and stays."""
        memory_registry._fs.pipe_file(CLAIM, content)
        with pytest.raises(RegistryError, match="claim"):
            memory_registry.publish(REFERENCE, version_files())

        assert objects(memory_registry) == {CLAIM}

    def test_a_claim_that_may_not_be_removed_stays(self, memory_registry, monkeypatch):
        """Where a publisher may not delete, the version is published all the same."""

        def refuse(_path):
            raise PermissionError

        monkeypatch.setattr(memory_registry._fs, "rm_file", refuse)

        assert memory_registry.publish(REFERENCE, version_files(1)).is_new
        assert outcome(memory_registry, version_files(2)) == "conflict"

    def test_a_store_that_replaces_is_refused(self, memory_registry):
        """Some stores speak S3, but ignore the condition of a write: they are found out before anything is visible."""
        write = memory_registry._fs.pipe_file
        memory_registry._fs.pipe_file = lambda path, content, mode=None: write(path, content)
        with pytest.raises(UsageError, match="replaces"):
            memory_registry.publish(REFERENCE, version_files())

        assert objects(memory_registry) == set()

    @pytest.mark.parametrize("code", ["ConditionalRequestConflict", "PreconditionFailed", "412"])
    def test_a_claim_that_is_just_being_removed_is_waited_for(self, memory_registry, code):
        """S3 may say that an object is busy, and stores word it differently that there is one."""
        said = type("ClientError", (Exception,), {"response": {"Error": {"Code": code}}})

        def fail():
            raise OSError(5, "busy") from said()

        before_write(memory_registry, WRITES.index("claim"), fail)

        assert memory_registry.publish(REFERENCE, version_files()).is_new

    def test_a_busy_manifest_is_pushed_again(self, memory_registry):
        """If the store says neither that the manifest was written nor that there is one, the claim stays."""

        def fail():
            raise FileExistsError

        before_write(memory_registry, WRITES.index("manifest"), fail)
        with pytest.raises(RegistryError, match="busy"):
            memory_registry.publish(REFERENCE, version_files())

        assert CLAIM in objects(memory_registry)
        assert memory_registry.publish(REFERENCE, version_files()).is_new


class TestRaces:
    """Publishers in processes of their own."""

    @pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.full)])
    def test_of_several_publishers_one_wins(self, s3, s3_registry, count):
        """Exactly one publishes, all others learn that the version has other content, and its files are whole."""
        outcomes = race(s3, s3_registry, [(seed, CREATED) for seed in range(count)])
        winner = outcomes.index("new")

        assert sorted(outcomes) == ["conflict"] * (count - 1) + ["new"]
        assert read_version(s3_registry) == version_files(winner)
        assert objects(s3_registry) == {f"{FOLDER}/{name}" for name in (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME)}
        for entry in Manifest.parse(read_version(s3_registry)[MANIFEST_NAME]).files:
            assert sha256(read_version(s3_registry)[entry.name]) == entry.sha256

    def test_publishers_of_the_same_content_all_succeed(self, s3, s3_registry):
        """All succeed, whatever their clocks say; the manifest that is published is one of theirs."""
        times = [f"2026-01-31T12:00:{second:02}Z" for second in range(6)]
        outcomes = race(s3, s3_registry, [(0, created) for created in times])
        published = read_version(s3_registry)

        assert set(outcomes) <= {"new", "adopted"}
        assert outcomes.count("new") <= 1
        assert published in [version_files(created=created) for created in times]
        assert CLAIM not in objects(s3_registry)


class TestUrls:
    """Which URLs name a registry."""

    @pytest.mark.parametrize(
        ("url", "expected"),
        [
            ("s3://bucket/a/prefix/", "s3://bucket/a/prefix"),
            ("S3A://bucket", "s3://bucket"),
            ("memory_registry://name//", "memory_registry://name"),
            ("abfs://container@account/x", "abfs://container@account/x"),
        ],
    )
    def test_a_registry_has_one_url(self, url, expected, monkeypatch):
        """However a URL is spelt, one registry is remembered under one."""
        monkeypatch.setattr(fsspec, "get_filesystem_class", lambda _protocol: None)

        assert ObjectStoreRegistry(url).url == expected

    @pytest.mark.parametrize(
        "url",
        [
            "s3://AKIA:secret@bucket/prefix",
            "s3://AKIA:se/secret@bucket/prefix",
            "https://user:secret@host/x",
            "https://secret@host/x",
            "https://host/x?token=secret",
            "s3://bucket/x#secret",
            "AKIA:secret@bucket",
            "zip://::https://user:secret@host/x.zip",
        ],
    )
    def test_a_login_in_a_url_is_refused_and_not_repeated(self, url):
        """A URL is printed and stands in lock files, so it holds no secret."""
        with pytest.raises(UsageError, match="login") as caught:
            ObjectStoreRegistry(url)

        assert "secret" not in str(caught.value).replace("AWS_SECRET", "")
        assert caught.value.hint

    @pytest.mark.parametrize(
        "url", ["", "s3", "s3:bucket", "s3://", "://x", "gs:///", "nonsense://x", "::x://y", "http"]
    )
    def test_what_names_no_registry_is_a_usage_error(self, url):
        """An unknown protocol, and a URL without a bucket, are refused before anything is asked of anybody."""
        with pytest.raises(UsageError):
            ObjectStoreRegistry(url)

    @pytest.mark.parametrize(
        "url",
        ["http://127.0.0.1:9/x", "https://host/x", "github://org:repo@main/x", "zip://::file:///x.zip", "local:///x"],
    )
    def test_only_stores_that_can_create_are_published_to(self, url):
        """Every other protocol is refused by its name before anything is asked of the server."""
        with pytest.raises(UsageError, match=f"`{url.partition(':')[0]}:`") as caught:
            ObjectStoreRegistry(url).publish(REFERENCE, version_files())

        assert caught.value.exit_code == 2
        assert "`s3:`" in caught.value.hint

    @pytest.mark.parametrize(
        ("protocol", "package", "needed"),
        [("s3", "s3fs", "lora-hub[s3]"), ("gs", "gcsfs", "lora-hub[gs]"), ("wandb", "wandbfs", "wandbfs")],
    )
    def test_a_missing_package_is_named(self, protocol, package, needed, monkeypatch):
        """Where fsspec lacks the package for a protocol, the hint installs it."""
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(IMPORTED, protocol, raising=False)
        with pytest.raises(MissingExtraError) as caught:
            ObjectStoreRegistry(f"{protocol}://bucket/prefix")

        assert caught.value.exit_code == 2
        assert f"`{package}`" in caught.value.message
        assert caught.value.hint == f"pip install '{needed}'"


def every_call(registry):
    return {
        "names": lambda: list(registry.names()),
        "listing": lambda: registry.listing(REFERENCE),
        "snapshot": lambda: registry.snapshot(REFERENCE, "1.0.0"),
        "publish": lambda: registry.publish(REFERENCE, version_files()),
    }


CALLS = ["names", "listing", "snapshot", "publish"]


class TestErrors:
    """What a user is told."""

    @pytest.mark.parametrize("call", CALLS)
    def test_a_bucket_that_is_not_there_is_not_found(self, s3, call):
        """A mistyped bucket is not found, and not made: it must not look like an empty one."""
        with pytest.raises(NotFoundError) as caught:
            every_call(ObjectStoreRegistry("s3://no-such-bucket/x"))[call]()

        assert "s3://no-such-bucket/x" in caught.value.message

    def test_a_version_that_is_not_there_is_not_found(self, registry):
        """The hint lists what there is."""
        with pytest.raises(NotFoundError, match=r"no version `1\.0\.0` of `org/task`") as caught:
            registry.snapshot(REFERENCE, "1.0.0")

        assert "lora-hub list org/task" in caught.value.hint

    @pytest.mark.parametrize("revision", ["../1.0.0", "latest", "", "0" * 40])
    def test_a_revision_that_is_no_version_is_not_found(self, memory_registry, revision):
        """Only a version is a folder."""
        with pytest.raises(NotFoundError):
            memory_registry.snapshot(REFERENCE, revision)

    @pytest.mark.parametrize("call", CALLS)
    def test_a_server_that_does_not_listen_is_named(self, s3, monkeypatch, call):
        """A refused connection is exit code 4 within seconds, and names the bucket and the endpoint."""
        monkeypatch.setattr(object_store, "_ATTEMPTS", 1)
        with socket.socket() as bound:
            bound.bind((ADDRESS, 0))
            endpoint = f"http://{ADDRESS}:{bound.getsockname()[1]}"
            monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
            with pytest.raises(RegistryError) as caught:
                every_call(ObjectStoreRegistry("s3://bucket/x"))[call]()

        assert caught.value.exit_code == 4
        assert "s3://bucket/x" in caught.value.message
        assert endpoint in caught.value.message
        assert "AWS_ENDPOINT_URL" in caught.value.hint

    def test_a_server_that_does_not_answer_is_given_up(self, s3, monkeypatch):
        """A server that accepts and says nothing is given up after LORA_HUB_TIMEOUT and bounded retries."""
        monkeypatch.setattr(object_store, "_ATTEMPTS", 1)
        monkeypatch.setenv("LORA_HUB_TIMEOUT", "0.2")
        started = time.monotonic()
        with socket.create_server((ADDRESS, 0)) as silent:
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{ADDRESS}:{silent.getsockname()[1]}")
            with pytest.raises(RegistryError):
                ObjectStoreRegistry("s3://bucket/x").listing(REFERENCE)

        assert time.monotonic() - started < 5

    @pytest.mark.parametrize("call", CALLS)
    def test_no_login_says_how_to_log_in(self, s3, monkeypatch, call):
        """Without any credentials, the hint names the variables."""
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(RegistryError, match="NoCredentials") as caught:
            every_call(ObjectStoreRegistry("s3://bucket/x"))[call]()

        assert "AWS_PROFILE" in caught.value.hint

    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize(("status", "expected"), [(403, "AWS_PROFILE"), (500, "AWS_ENDPOINT_URL")])
    def test_a_refusal_says_what_to_do(self, s3, monkeypatch, call, status, expected):
        """Where the login may not read, and where the server fails, the error is exit code 4."""
        monkeypatch.setattr(object_store, "_ATTEMPTS", 1)
        with serve(functools.partial(_Refusing, status)) as url:
            monkeypatch.setenv("AWS_ENDPOINT_URL", url)
            with pytest.raises(RegistryError) as caught:
                every_call(ObjectStoreRegistry("s3://bucket/x"))[call]()

        assert caught.value.exit_code == 4
        assert expected in caught.value.hint

    def test_a_bug_is_not_hidden(self, memory_registry, monkeypatch):
        """An error that is neither the store's nor ours stays what it is."""
        monkeypatch.setattr(memory_registry._fs, "find", lambda _folder: 1 / 0)

        with pytest.raises(ZeroDivisionError):
            memory_registry.listing(REFERENCE)

    def test_what_a_server_says_moves_no_cursor(self, memory_registry, monkeypatch):
        """An error is printed without the control characters in it."""

        def fail(_folder):
            raise OSError("\x1b[2Jgone\n" + "x" * 10_000)

        monkeypatch.setattr(memory_registry._fs, "find", fail)
        with pytest.raises(RegistryError) as caught:
            memory_registry.listing(REFERENCE)

        assert caught.value.message.isprintable()
        assert len(caught.value.message) < 500


class _Refusing(http.server.BaseHTTPRequestHandler):
    def __init__(self, status, *args):
        self.status = status
        super().__init__(*args)

    def refuse(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = refuse

    def log_message(self, *args):
        """Keep quiet."""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Keep quiet."""


class TestReading:
    """Registries that are only read: a directory behind a web server, an archive."""

    @pytest.fixture
    def directory(self, tmp_path):
        """A directory registry with two versions."""
        registry = DirectoryRegistry(tmp_path / "registry")
        for version in ("1.0.0", "1.2.0"):
            reference = AdapterRef.parse(f"org/task@{version}")
            registry.publish(reference, version_files(reference=reference))
        return tmp_path / "registry"

    @pytest.fixture
    def web(self, directory):
        """The URL of a web server for the parent of that directory."""
        with serve(functools.partial(_Quiet, directory=directory.parent)) as url:
            yield url

    @pytest.fixture
    def archive(self, directory, tmp_path):
        """The URL of a copy of that directory in a zip file."""
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            for path in sorted(directory.rglob("*")):
                file.write(path, path.relative_to(directory))
        return f"zip://::file://{tmp_path}/a.zip"

    def test_a_server_that_never_ends_is_left(self, monkeypatch):
        """No more is read from a web server than it announced, however much it sends."""
        sent = []

        class Endless(http.server.BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()

            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    while len(sent) < 1000:
                        self.wfile.write(bytes(2**20))
                        sent.append(1)

            def log_message(self, *_args):
                """Keep quiet."""

        with serve(Endless) as url:
            chunks = list(ObjectStoreRegistry(url)._read("x", 0, 1000))

        assert sum(map(len, chunks)) == 1000
        assert len(sent) < 100

    def test_a_server_that_hangs_is_left(self, monkeypatch):
        """A web server that does not answer is waited for as long as a single wait may last, and named (4)."""
        monkeypatch.setenv("LORA_HUB_TIMEOUT", "0.3")
        with socket.create_server((ADDRESS, 0)) as silent, pytest.raises(RegistryError) as caught:
            ObjectStoreRegistry(f"http://{ADDRESS}:{silent.getsockname()[1]}").listing(REFERENCE)

        assert caught.value.exit_code == 4
        assert "http://" in caught.value.message

    @pytest.mark.parametrize("kind", ["web", "archive"])
    def test_a_directory_registry_is_read(self, request, kind):
        """The same layout is read from wherever fsspec can list it."""
        url = request.getfixturevalue(kind) + ("/registry" if kind == "web" else "")
        registry = ObjectStoreRegistry(url)

        assert list(registry.names()) == ["org/task"]
        assert list(registry.listing(REFERENCE).versions.values()) == ["1.0.0", "1.2.0"]
        assert registry.listing(AdapterRef("org", "other")).versions == {}
        assert read_version(registry) == version_files()
        assert (
            b"".join(registry.snapshot(REFERENCE, "1.0.0").read(WEIGHTS_NAME, 10, 25))
            == version_files()[WEIGHTS_NAME][10:25]
        )

    def test_a_web_page_that_is_not_there_is_not_found(self, web):
        """A mistyped registry is not found: it must not look like an empty one."""
        registry = ObjectStoreRegistry(f"{web}/mistyped")
        for call in CALLS[:3]:
            with pytest.raises(NotFoundError):
                every_call(registry)[call]()

    @pytest.mark.parametrize("call", CALLS[:3])
    @pytest.mark.parametrize(("status", "expected"), [(403, "login"), (500, "network")])
    def test_a_web_server_that_refuses_is_no_empty_registry(self, call, status, expected):
        """A web server that fails is exit code 4, and not a registry without adapters."""
        with serve(functools.partial(_Refusing, status)) as url, pytest.raises(RegistryError) as caught:
            every_call(ObjectStoreRegistry(url))[call]()

        assert expected in caught.value.hint

    @pytest.mark.parametrize("call", CALLS[:3])
    def test_a_web_server_that_does_not_listen_is_no_empty_registry(self, call):
        """A refused connection is exit code 4."""
        with socket.socket() as bound:
            bound.bind((ADDRESS, 0))
            with pytest.raises(RegistryError):
                every_call(ObjectStoreRegistry(f"http://{ADDRESS}:{bound.getsockname()[1]}/x"))[call]()
