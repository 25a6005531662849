"""Object stores for tests: fsspec's in memory, moto's S3 on loopback in a process of its own, and publishers for it."""

import contextlib
import http.client
import json
import logging
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from adapter_files import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, adapter_files

from lora_hub.documents.manifest import differs, publish
from lora_hub.documents.verified_adapter import verify
from lora_hub.errors import VersionConflictError
from lora_hub.reference import AdapterRef
from lora_hub.registry.object_store import ObjectStoreRegistry

ADDRESS = "127.0.0.1"
REFERENCE = AdapterRef.parse("org/task@1.0.0")
CREATED = "2026-01-31T12:00:00Z"


@dataclass(frozen=True)
class S3:
    """A server that speaks S3 and forgets everything when it stops."""

    port: int

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which every S3 client talks to this server, and to nobody else."""
        return {
            "AWS_ENDPOINT_URL": f"http://{ADDRESS}:{self.port}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def new_bucket(self) -> str:
        """Make an empty bucket and return its name."""
        name = f"test-{uuid.uuid4().hex}"
        with contextlib.closing(http.client.HTTPConnection(ADDRESS, self.port)) as connection:
            connection.request("PUT", f"/{name}")
            assert connection.getresponse().status == 200
        return name


@contextlib.contextmanager
def run_s3() -> Iterator[S3]:
    """Run a server in a process that ends when this one closes its standard input, or dies."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    with _start("serve", environment) as process:
        try:
            yield S3(int(process.stdout.readline()))
        finally:
            process.stdin.close()
            process.wait(timeout=10)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3]:
    """One S3 for all tests of a session."""
    with run_s3() as server:
        yield server


@pytest.fixture
def s3(s3_server, monkeypatch) -> S3:
    """An S3 that the environment names, as it would name a user's."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def memory_registry() -> ObjectStoreRegistry:
    """An empty registry in the memory of this process."""
    return ObjectStoreRegistry(f"memory://{uuid.uuid4().hex}")


@pytest.fixture
def s3_registry(s3) -> ObjectStoreRegistry:
    """An empty registry in a bucket of its own."""
    return ObjectStoreRegistry(f"s3://{s3.new_bucket()}/some/prefix")


def version_files(seed: int = 0, *, reference: AdapterRef = REFERENCE, created: str = CREATED) -> dict[str, bytes]:
    """Return the files of a version as a push publishes them; *seed* chooses the content."""
    files = adapter_files(seed=seed).files()
    draft = verify(files, source="test").manifest.to_bytes()
    return {**files, MANIFEST_NAME: publish(draft, reference=reference, created=created)}


def read_version(registry: ObjectStoreRegistry, reference: AdapterRef = REFERENCE) -> dict[str, bytes]:
    """Return the files of a published version, by name."""
    snapshot = registry.snapshot(reference, str(reference.version))
    return {name: b"".join(snapshot.read(name, 0, None)) for name in (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME)}


def outcome(registry: ObjectStoreRegistry, files: dict[str, bytes]) -> str:
    """Publish *files* as a push does; return ``new``, ``adopted`` or ``conflict``."""
    try:
        if registry.publish(REFERENCE, files).is_new:
            return "new"
    except VersionConflictError:
        return "conflict"
    return "conflict" if differs(read_version(registry)[MANIFEST_NAME], files[MANIFEST_NAME]) else "adopted"


def race(server: S3, registry: ObjectStoreRegistry, publishers: list[tuple[int, str]]) -> list[str]:
    """Return the outcome of each of *publishers*, a seed and a time, which are processes that start together."""
    environment = {**os.environ, **server.environment}
    with contextlib.ExitStack() as stack:
        arguments = [json.dumps([registry.url, *publisher]) for publisher in publishers]
        processes = [stack.enter_context(_start("publish", environment, text)) for text in arguments]
        for process in processes:
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            process.stdin.close()
        return [process.stdout.read().decode().strip() for process in processes]


def _start(command: str, environment: dict[str, str], *arguments: str) -> subprocess.Popen[bytes]:
    here = Path(__file__)
    paths = os.pathsep.join(map(str, [here.parents[2], here.parents[1]]))
    return subprocess.Popen(
        [sys.executable, str(here), command, *arguments],
        env={**environment, "PYTHONPATH": paths},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _publish(text: str) -> None:
    url, seed, created = json.loads(text)
    registry, files = ObjectStoreRegistry(url), version_files(seed, created=created)
    registry.listing(REFERENCE)  # connected
    _say("ready")
    sys.stdin.read()
    _say(outcome(registry, files))


def _serve() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = _one_at_a_time(DomainDispatcherApplication(create_backend_app))
    server = make_server(ADDRESS, 0, application, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _say(server.server_port)
    sys.stdin.read()


def _say(something: object) -> None:
    sys.stdout.write(f"{something}\n")
    sys.stdout.flush()


def _one_at_a_time(application: Callable) -> Callable:
    """S3 looks whether an object exists and writes it in one step, moto in two: let requests take turns."""
    turn = threading.Lock()

    def take_turns(environ, start_response):
        with turn:
            return list(application(environ, start_response))

    return take_turns


if __name__ == "__main__":
    {"serve": _serve, "publish": _publish}[sys.argv[1]](*sys.argv[2:])
