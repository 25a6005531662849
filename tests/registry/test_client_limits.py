"""Limits for an HTTP client that has none, seen by a client and a server that are real."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from lora_hub.errors import UsageError
from lora_hub.registry import manners as module
from lora_hub.registry.manners import manners
from lora_hub.registry.network import TIMEOUT

LIMIT = 1000  # bytes of an answer of the API, in these tests
REFUSAL_LIMIT = 500  # bytes of a refusal
WAITS = ("connect", "read", "write", "pool")


class Handler(BaseHTTPRequestHandler):
    """Answers with as many bytes as the path ends in, below what else the path names."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer."""
        *words, size = self.path.strip("/").split("/")
        if "redirect" in words:
            self.send_response(302)
            self.send_header("location", f"/elsewhere/{size}")
            self.send_header("content-length", "0")
            self.end_headers()
            return
        if "silence" in words:
            self.server.silence.wait(30)
        body = b"x" * int(size)
        self.send_response(404 if "missing" in words else 200)
        if "gzip" in words:  # whether the client accepts it or not
            body = gzip.compress(body)
            self.send_header("content-encoding", "gzip")
        if "chunked" in words:
            self.send_header("transfer-encoding", "chunked")
            body = b"".join(b"64\r\n%b\r\n" % body[at : at + 100] for at in range(0, len(body), 100)) + b"0\r\n\r\n"
        else:
            self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A server whose answers at `silence` come only when the test is over; a client that hangs up is no error."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.silence = threading.Event()

    def handle_error(self, *_) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def server():
    """The URL of a server on this machine."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.silence.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def small_limits(monkeypatch):
    """Answers are small here, and so are their limits."""
    monkeypatch.setattr(module, "MAX_ANSWER", LIMIT)
    monkeypatch.setattr(module, "MAX_REFUSAL", REFUSAL_LIMIT)
    monkeypatch.setenv(TIMEOUT, "7")


@pytest.fixture
def make_client(monkeypatch):
    """Make clients that ask this machine only, whatever proxy the environment names."""
    clients = []

    def make_client(**options) -> httpx2.Client:
        clients.append(httpx2.Client(trust_env=False, **options))
        return clients[-1]

    yield make_client
    for client in clients:
        client.close()


@pytest.fixture
def client(make_client) -> httpx2.Client:
    """A client without any limit, as the Hub's own is."""
    return make_client(timeout=None)


class Requests:
    """What a client is about to send, once all other hooks have run."""

    def __init__(self, client: httpx2.Client) -> None:
        self.seen: list[httpx2.Request] = []
        send = client._transport.handle_request

        def handle_request(request):
            self.seen.append(request)
            return send(request)

        client._transport.handle_request = handle_request

    @property
    def last(self) -> httpx2.Request:
        """The last request."""
        return self.seen[-1]


# Waits


def test_a_wait_without_a_limit_gets_one(server, client):
    """A client that would wait for ever waits as long as the user allows, in each phase of a request."""
    requests = Requests(client)
    with manners(client):
        client.get(f"{server}/api/1")

    assert requests.last.extensions["timeout"] == dict.fromkeys(WAITS, 7)


def test_a_silent_server_is_given_up(server, client, monkeypatch):
    """A server that accepts a request and never answers raises the client's own error, soon."""
    monkeypatch.setenv(TIMEOUT, "0.1")

    with manners(client), pytest.raises(httpx2.ReadTimeout):
        client.get(f"{server}/api/silence/1")


def test_the_limit_of_the_client_is_kept(server, make_client):
    """A client that was set up with a limit keeps it."""
    client = make_client(timeout=3)
    requests = Requests(client)
    with manners(client):
        client.get(f"{server}/api/1")

    assert requests.last.extensions["timeout"] == dict.fromkeys(WAITS, 3)


def test_the_limit_of_a_request_is_kept(server, client):
    """A request that has a limit of its own keeps it."""
    requests = Requests(client)
    with manners(client):
        client.get(f"{server}/api/1", timeout=2)

    assert requests.last.extensions["timeout"] == dict.fromkeys(WAITS, 2)


def test_waits_are_limited_from_then_on(server, client):
    """A client that once had our manners never waits for ever again: a wait is not the size of an answer."""
    requests = Requests(client)
    with manners(client):
        pass
    client.get(f"{server}/api/1")

    assert requests.last.extensions["timeout"] == dict.fromkeys(WAITS, 7)


def test_a_limit_that_is_none_is_the_users_mistake(server, client, monkeypatch):
    """A wait that the user spelt wrongly is said as such, not as a failure of the network."""
    monkeypatch.setenv(TIMEOUT, "soon")

    with manners(client), pytest.raises(UsageError, match=TIMEOUT):
        client.get(f"{server}/api/1")


# Sizes


@pytest.mark.parametrize("kind", ["plain", "chunked"])
def test_an_answer_of_the_api_is_bounded(server, client, kind):
    """An answer of exactly the limit is read, a larger one raises an error of the client, announced or not."""
    with manners(client):
        assert len(client.get(f"{server}/api/{kind}/{LIMIT}").content) == LIMIT
        with pytest.raises(httpx2.DecodingError, match=f"more than {LIMIT} bytes"):
            client.get(f"{server}/api/{kind}/{LIMIT + 1}")


def test_a_refusal_is_bounded(server, client):
    """The body of a refusal is bounded wherever it comes from: it is read into memory for its message."""
    with manners(client):
        assert client.get(f"{server}/missing/{REFUSAL_LIMIT}").status_code == 404
        with pytest.raises(httpx2.DecodingError, match=f"more than {REFUSAL_LIMIT} bytes"):
            client.get(f"{server}/missing/{REFUSAL_LIMIT + 1}")


def test_a_download_is_not_bounded(server, client):
    """Files are larger than answers; whoever reads them counts for himself."""
    with manners(client):
        assert len(client.get(f"{server}/org/task/resolve/{LIMIT * 50}").content) == LIMIT * 50


def test_a_bounded_answer_can_be_read_piece_by_piece(server, client):
    """The limit holds for an answer that is streamed as well, and what came before it is handed out."""
    got = []
    with manners(client), client.stream("GET", f"{server}/api/chunked/{LIMIT * 50}") as response:
        chunks = map(got.append, response.iter_raw())
        with pytest.raises(httpx2.DecodingError):
            list(chunks)

    assert 0 < sum(map(len, got)) <= LIMIT


def test_nothing_compressed_is_asked_for(server, client):
    """What is compressed grows when it is read, so nothing compressed is accepted."""
    requests = Requests(client)
    with manners(client):
        client.get(f"{server}/api/1")

    assert requests.last.headers["accept-encoding"] == "identity"


def test_a_compressed_answer_does_not_grow_beyond_the_limit(server, client):
    """A server that compresses all the same cannot get around the limit with a few bytes that become many."""
    size = LIMIT * 500
    assert len(gzip.compress(b"x" * size)) < LIMIT

    with manners(client), pytest.raises(httpx2.HTTPError):
        client.get(f"{server}/api/gzip/{size}")


def test_a_redirected_answer_is_bounded(server, make_client):
    """An answer of the API is bounded wherever the server sends the client for it."""
    client = make_client(timeout=None, follow_redirects=True)

    with manners(client), pytest.raises(httpx2.DecodingError, match=f"more than {LIMIT} bytes"):
        client.get(f"{server}/api/redirect/{LIMIT + 1}")


def test_nothing_else_is_bounded(server, client):
    """What others ask with the same client, before and after us, is as large and as compressed as they like."""
    requests = Requests(client)
    with manners(client):
        client.get(f"{server}/api/1")

    assert len(client.get(f"{server}/api/{LIMIT * 2}").content) == LIMIT * 2
    assert client.get(f"{server}/missing/{LIMIT * 2}").status_code == 404
    assert "gzip" in requests.last.headers["accept-encoding"]


def test_what_another_thread_asks_is_not_bounded(server, client):
    """What somebody else asks in another thread at the same time is not ours to limit."""
    got = []
    with manners(client):
        thread = threading.Thread(target=lambda: got.append(client.get(f"{server}/api/{LIMIT * 2}")))
        thread.start()
        thread.join()

    assert len(got[0].content) == LIMIT * 2


def test_an_error_ends_our_manners_as_well(server, client):
    """After an exception inside them, answers are as large as they are again."""
    with pytest.raises(KeyError), manners(client):
        raise KeyError

    assert len(client.get(f"{server}/api/{LIMIT * 2}").content) == LIMIT * 2


def test_manners_within_manners_are_manners(server, client):
    """Leaving the inner ones leaves the outer ones in force."""
    with manners(client):
        with manners(client):
            pass
        with pytest.raises(httpx2.DecodingError):
            client.get(f"{server}/api/{LIMIT + 1}")


# Hooks


def test_hooks_are_installed_once(server, client):
    """However often a client is borrowed, each of our hooks runs once."""
    for _ in range(3):
        with manners(client):
            client.get(f"{server}/api/1")

    assert {kind: len(hooks) for kind, hooks in client.event_hooks.items()} == {"request": 1, "response": 1}


def test_the_users_own_hooks_are_kept(server, make_client):
    """Hooks that the user set up still run, before ours and in their order."""
    calls = []
    client = make_client(
        timeout=None,
        event_hooks={
            "request": [lambda _: calls.append("first"), lambda _: calls.append("second")],
            "response": [lambda _: calls.append("answered")],
        },
    )
    with manners(client) as borrowed:
        borrowed.get(f"{server}/api/1")

    assert borrowed is client
    assert calls == ["first", "second", "answered"]


def test_hooks_that_the_user_adds_later_are_kept(server, client):
    """Replacing all hooks between two uses costs neither theirs nor ours."""
    calls = []
    with manners(client):
        pass
    client.event_hooks = {"request": [lambda _: calls.append("theirs")]}
    requests = Requests(client)
    with manners(client):
        client.get(f"{server}/api/1")

    assert calls == ["theirs"]
    assert requests.last.extensions["timeout"] == dict.fromkeys(WAITS, 7)


def test_many_threads_install_hooks_once(client):
    """Threads that borrow one client at the same time do not add hooks twice, and do not lose any."""
    barrier = threading.Barrier(8)

    def borrow() -> None:
        barrier.wait()
        for _ in range(50):
            with manners(client):
                pass

    threads = [threading.Thread(target=borrow) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {kind: len(hooks) for kind, hooks in client.event_hooks.items()} == {"request": 1, "response": 1}
