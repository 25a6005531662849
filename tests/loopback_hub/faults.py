"""What goes wrong on purpose."""

import threading
from dataclasses import dataclass, field
from typing import Any

from loopback_hub.answers import Answer
from loopback_hub.blobs import flipped
from loopback_hub.log import Request


@dataclass(eq=False, kw_only=True)
class Fault:
    """One way to fail, for the next *times* requests that match (None: all of them); *hits* counts them.

    A fault of the body (*cut*, *flip*) waits for an answer that has so many bytes: a HEAD or a redirect is no hit.
    """

    path: str
    method: str | None = None
    host: str | None = None
    times: int | None = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None
    cut: int | None = None
    delay: float | None = None  # seconds
    drop_answer: bool = False
    flip: int | None = None
    hang: bool = False
    refuse: bool = False
    hits: int = 0

    @property
    def answer(self) -> Answer | None:
        """The answer that stands in for the work."""
        if self.status is None:
            return None
        body = {"error": f"fault {self.status}"} if self.body is None else self.body
        answer = Answer(body, status=self.status) if isinstance(body, bytes) else Answer.json(body, status=self.status)
        answer.headers.update(self.headers)
        return answer

    @property
    def least_body(self) -> int | None:
        """How many bytes the body of an answer needs to be damaged by this fault; None if that is not its kind."""
        if self.flip is not None:
            return self.flip + 1
        return None if self.cut is None else self.cut + 1

    def damaged(self, body: bytes | memoryview) -> bytes | memoryview:
        """Return what is sent of *body*."""
        if self.flip is not None:
            body = flipped(bytes(body), self.flip)
        return body if self.cut is None else memoryview(body)[: self.cut]


class Faults:
    """The faults of a hub, the oldest first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        """Wait for requests that match *fault*."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def before_work(self, request: Request) -> Fault | None:
        """Take the fault that meets this request before it is worked on."""
        return self._take(request, None)

    def before_answer(self, request: Request) -> Fault | None:
        """Take the fault that damages the body of the answer."""
        return self._take(request, request.answer_size)

    def _take(self, request: Request, body_size: int | None) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if (
                    fault.hits != fault.times
                    and request.matches(host=fault.host, method=fault.method, path=fault.path)
                    and _is_due(fault, body_size)
                ):
                    fault.hits += 1
                    return fault
        return None


def _is_due(fault: Fault, body_size: int | None) -> bool:
    if body_size is None or fault.least_body is None:
        return body_size is None and fault.least_body is None
    return fault.least_body <= body_size
