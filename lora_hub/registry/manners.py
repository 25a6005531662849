"""Limits for an HTTP client that has none: on every wait, and on the size of what is answered.

By event hooks, https://www.python-httpx.org/advanced/event-hooks, so that a client which the user set up, with a proxy
or certificates, stays as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import httpx2

from lora_hub.registry.network import LONGEST_WISH, timeout

MAX_ANSWER = 32 * 1024 * 1024  # bytes of an answer of the API
MAX_REFUSAL = 1024 * 1024  # bytes of the body of a refusal
_WISHES = {"retry-after", "ratelimit"}  # what the client obeys
_IS_API = "lora_hub.is_api"

_is_ours: ContextVar[bool] = ContextVar("_is_ours", default=False)


@contextlib.contextmanager
def manners(client: httpx2.Client) -> Iterator[httpx2.Client]:
    """Have *client* limit every wait from now on, and the size of the answers to what is asked meanwhile."""
    hooks = client.event_hooks
    if _limit_wait not in hooks["request"]:
        client.event_hooks = {
            "request": [*hooks["request"], _limit_wait],
            "response": [*hooks["response"], _limit_size],
        }
    token = _is_ours.set(True)
    try:
        yield client
    finally:
        _is_ours.reset(token)


def _limit_wait(request: httpx2.Request) -> None:
    waits = request.extensions.get("timeout", {})
    if all(seconds is None for seconds in waits.values()):
        request.extensions["timeout"] = httpx2.Timeout(timeout()).as_dict()
    if _is_ours.get():
        request.headers["accept-encoding"] = "identity"
        # Redirects inherit what was asked for.
        request.extensions.setdefault(_IS_API, request.url.path.startswith("/api/"))


def _limit_size(response: httpx2.Response) -> None:
    if not _is_ours.get():
        return
    for name in _WISHES & response.headers.keys():
        # The client waits as long as it is told, be it a day.
        if name != "retry-after" or not response.headers[name].isdigit() or int(response.headers[name]) > LONGEST_WISH:
            response.headers[name] = f"{LONGEST_WISH:.0f}"
    if response.headers.get("content-encoding", "identity") != "identity":
        raise httpx2.DecodingError("the answer is compressed, which was not asked for")
    is_api = response.request.extensions.get(_IS_API, False)
    if is_api or response.is_error:
        response.stream = _Bounded(response.stream, MAX_ANSWER if is_api else MAX_REFUSAL)


class _Bounded(httpx2.SyncByteStream):
    """A stream of bytes that ends with an error beyond *limit* bytes."""

    def __init__(self, stream: Any, limit: int) -> None:  # noqa: ANN401 - any of the client's streams
        self._stream = stream
        self._limit = limit

    def __iter__(self) -> Iterator[bytes]:
        count = 0
        for chunk in self._stream:
            count += len(chunk)
            if count > self._limit:
                raise httpx2.DecodingError(f"the answer has more than {self._limit} bytes")
            yield chunk

    def close(self) -> None:
        self._stream.close()
