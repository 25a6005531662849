"""The log of requests, in order of arrival."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(kw_only=True)
class Request:
    """One request and what became of it; *status* is None as long as, and if, no answer was sent."""

    host: str  # "hub" or "cdn"
    method: str
    path: str  # with the query
    headers: dict[str, str]  # names in lower case
    body_size: int  # bytes that the client sent
    status: int | None = None
    answer_size: int = 0  # bytes of the body that the hub meant to send

    def matches(self, *, host: str | None, method: str | None, path: str | None) -> bool:
        """Compare with what is given; *path* is a regular expression that is searched."""
        return (
            (host is None or host == self.host)
            and (method is None or method == self.method)
            and (path is None or re.search(path, self.path) is not None)
        )


class RequestLog:
    """A list of requests that many threads append to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[Request] = []

    def append(self, request: Request) -> None:
        """Add a request that has just arrived."""
        with self._lock:
            self._requests.append(request)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._requests.clear()

    def __iter__(self) -> Iterator[Request]:
        with self._lock:
            return iter(list(self._requests))
