"""Manners on the network, whatever the protocol: how long to wait, when to try again, what a refusal means."""

from __future__ import annotations

import contextlib
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from lora_hub.documents.fields import printable
from lora_hub.errors import LoraHubError, NotFoundError, RegistryError, UsageError

TIMEOUT = "LORA_HUB_TIMEOUT"
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_TRUE = {"1", "on", "yes", "true"}
RETRIED = frozenset({408, 429, 500, 502, 503, 504})  # statuses that may pass
_AHEAD = 8  # chunks that may wait for being read
_GLANCE = 0.1  # seconds between looks at whether anybody still reads
LONGEST_WISH = 60.0  # seconds of a Retry-After that are obeyed


def timeout() -> float:
    """Return how many seconds any single wait on the network may last."""
    text = os.environ.get(TIMEOUT, "60")
    try:
        seconds = float(text)
        if not 0 < seconds < 1e6:  # noqa: PLR2004
            raise ValueError(text)  # noqa: TRY301 - said below
    except ValueError as error:
        raise UsageError(f"{TIMEOUT} is {text!a}, expected seconds", hint="unset it, or mend it") from error
    return seconds


def is_offline() -> bool:
    """Whether the environment forbids the network, as the Hub's own client reads it."""
    return any(os.environ.get(name, "").lower() in _TRUE for name in _OFFLINE)


def check_endpoint() -> None:
    """Raise `UsageError` unless ``HF_ENDPOINT``, if it is set, is the URL of a host."""
    url = os.environ.get("HF_ENDPOINT")
    try:
        parts = urlsplit(url or "https://huggingface.co")
        is_host = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_host = False
    if not is_host:
        raise UsageError(
            "HF_ENDPOINT is not the URL of a host", hint="write it as https://hub.example.org, or unset it"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often to try, and how long to wait in between: exponential, with full jitter, in seconds.

    https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/
    """

    tries: int = 4
    first: float = 0.5
    longest: float = 8.0

    def waits(self) -> Iterator[float]:
        """Yield how long to wait before each further try."""
        for attempt in range(self.tries - 1):
            yield random.uniform(0, min(self.longest, self.first * 2**attempt))  # noqa: S311 - no secret


RETRY = Retry()


def pause(seconds: float, wish: str | None = None) -> None:
    """Wait before the next try, as long as the server's Retry-After asks for, within reason."""
    wished = float(wish) if wish and wish.isascii() and wish.isdigit() else 0.0
    time.sleep(min(max(seconds, wished), LONGEST_WISH))


def refusal(status: int, *, host: str, what: str, said: str = "") -> LoraHubError:
    """Return the error for an answer with *status* of *host* to a request for *what*."""
    because = f": {said}" if said else ""
    message = f"`{host}` answered {status} for {what}{because}"
    match status:
        case 401:
            return RegistryError(message, hint="log in with `hf auth login`, or set HF_TOKEN to a valid token")
        case 403:
            return RegistryError(message, hint="your token may not do this: check its scopes and your role in the org")
        case 404 | 410:
            return NotFoundError(
                message, hint="check the name; if it is private, log in with `hf auth login` or set HF_TOKEN"
            )
        case 429:
            return RegistryError(message, hint="too many requests: wait some minutes and run it again")
        case _ if status >= 500:  # noqa: PLR2004
            return RegistryError(message, hint="the registry has a problem: run it again later")
    return RegistryError(message, hint="the registry refused the request: check the name and your rights")


def unreachable(host: str, what: str, error: Exception) -> RegistryError:
    """Return the error for a *host* that gave no answer to a request for *what*."""
    return RegistryError(
        f"`{host}` gave no answer to the request for {what}: {_reasons(error)}",
        hint=f"check the network, and HF_ENDPOINT if you set it; a slow host may need a larger {TIMEOUT}",
    )


class StalledError(Exception):
    """A stream came to a halt, or broke."""


def watched(stream: Iterable[bytes], cancel: Callable[[], object]) -> Iterator[bytes]:
    """Yield what *stream*, whose waits have no limit of their own, yields; `cancel` ends it when nobody reads on.

    Raises:
        StalledError: It failed, or nothing came for as long as a wait may last.
    """
    chunks: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
    is_over = threading.Event()

    def put(chunk: bytes | BaseException | None) -> None:
        while not is_over.is_set():
            with contextlib.suppress(queue.Full):
                chunks.put(chunk, timeout=_GLANCE)
                return

    def read() -> None:
        try:
            for chunk in stream:
                put(chunk)
                if is_over.is_set():
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again by who reads the queue
            put(error)

    threading.Thread(target=read, daemon=True, name="lora-hub-stream").start()
    try:
        while (chunk := chunks.get(timeout=timeout())) is not None:
            if isinstance(chunk, BaseException):
                raise StalledError from chunk
            yield chunk
    except queue.Empty as error:
        raise StalledError from error
    finally:
        is_over.set()
        with contextlib.suppress(
            RuntimeError
        ):  # hf-xet's, while the other thread is inside of it; that one ends by itself
            cancel()


def _reasons(error: BaseException) -> str:
    """Return what *error* says and what caused it, innermost last, so that a terminal can show it."""
    text = f"{type(error).__name__} {printable(str(error))}"
    return f"{text}, from {_reasons(error.__cause__)}" if error.__cause__ else text
