"""The HTTP machinery: one origin (host and port) with its log and its faults; what to answer is decided elsewhere."""

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from loopback_hub.answers import Answer
from loopback_hub.faults import Fault, Faults
from loopback_hub.log import Request, RequestLog

ADDRESS = "127.0.0.1"
POLL_INTERVAL = 0.01  # seconds that closing a server may take
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER: on, for 0 seconds
PRIVATE = "/-"  # what the hub asks of itself: not logged, and no faults

Work = Callable[[str, str, dict[str, str], bytes], Answer]  # method, target, headers, body


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_Server"

    def answer_request(self) -> None:
        """Read a request, answer it and let a fault spoil that."""
        origin = self.server.origin
        body = self._read_body()
        headers = {name.lower(): value for name, value in self.headers.items()}
        if self.path.startswith(f"{PRIVATE}/"):
            self._send(origin.work(self.command, self.path, headers, body))
            return
        request = Request(host=origin.name, method=self.command, path=self.path, headers=headers, body_size=len(body))
        origin.log.append(request)
        fault = origin.faults.before_work(request)
        if fault is not None and self._is_left_alone(fault):
            return
        answer = (fault and fault.answer) or origin.work(self.command, self.path, headers, body)
        if fault is not None and fault.drop_answer:
            self.close_connection = True
            return
        request.status = answer.status
        request.answer_size = 0 if self.command == "HEAD" else len(answer.body)
        self._send(answer, origin.faults.before_answer(request))

    def _read_body(self) -> bytes:
        """Drain the body in any case: the next request on this connection starts behind it."""
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionAbortedError("the client left in the middle of a body")
        return body

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer_request

    def _is_left_alone(self, fault: Fault) -> bool:
        """Wait as the fault says; return whether that is all that happens."""
        if fault.delay is not None:
            self.server.closing.wait(fault.delay)
        if fault.hang:
            self.connection.recv(1)  # until the client leaves or the origin goes down
        if fault.refuse:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            os.close(self.connection.detach())
        self.close_connection = self.close_connection or fault.hang or fault.refuse
        return fault.hang or fault.refuse

    def _send(self, answer: Answer, fault: Fault | None = None) -> None:
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        body = b"" if self.command == "HEAD" else answer.body
        if fault is not None:
            body = fault.damaged(body)
            self.close_connection = self.close_connection or fault.cut is not None
        if body:
            self.server.origin.link.send(self.connection, body)

    def log_message(self, *args: object) -> None:
        """Keep quiet: the log is a list."""


class _Server(ThreadingHTTPServer):
    """A listening socket and its connections."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, origin: "Origin", bound: socket.socket) -> None:
        super().__init__((ADDRESS, origin.port), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = bound
        self.server_activate()
        self.origin = origin
        self.closing = threading.Event()
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client that leaves, or is cut off as this origin goes down, is daily business.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Stop listening and cut all connections."""
        self.closing.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class Link:
    """The way to the clients, which all connections share: as fast as the machine, or *rate* bytes a second."""

    _PIECE = 256 * 1024  # bytes

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def send(self, connection: socket.socket, body: bytes) -> None:
        """Send *body*, in its time."""
        if self._rate is None:
            connection.sendall(body)
            return
        for start in range(0, len(body), self._PIECE):
            piece = memoryview(body)[start : start + self._PIECE]
            with self._lock:
                now = time.monotonic()
                self._free_at = max(now, self._free_at) + len(piece) / self._rate
                pause = self._free_at - now
            time.sleep(pause)
            connection.sendall(piece)


class Origin:
    """A host and port that can be up or down; while it is down, the port stays reserved and refuses connections."""

    def __init__(
        self, name: str, work: Work, log: RequestLog, faults: Faults, port: int = 0, rate: float | None = None
    ) -> None:
        self.name = name
        self.link = Link(rate)
        self.work = work
        self.log = log
        self.faults = faults
        self._bound = _bound_socket(port)
        self._server: _Server | None = None
        self.port: int = self._bound.getsockname()[1]
        self.url = f"http://{ADDRESS}:{self.port}"

    def up(self) -> None:
        """Listen, unless that is the case already."""
        if self._server is None:
            self._server = _Server(self, self._bound)
            threading.Thread(target=self._server.serve_forever, args=(POLL_INTERVAL,), daemon=True).start()

    def down(self) -> None:
        """Refuse connections from now on, and cut those that are open."""
        if self._server is not None:
            self._server.close()
            self._server = None
            self._bound = _bound_socket(self.port)

    def close(self) -> None:
        """Go down for good."""
        self.down()
        self._bound.close()


def _bound_socket(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((ADDRESS, port))
    return bound
