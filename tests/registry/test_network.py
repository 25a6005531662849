"""Manners on the network: bounded waits, few tries, and refusals that say what to do."""

import itertools
import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_hub.errors import NotFoundError, RegistryError, UsageError
from lora_hub.registry import network
from lora_hub.registry.network import (
    RETRIED,
    RETRY,
    TIMEOUT,
    Retry,
    StalledError,
    is_offline,
    pause,
    refusal,
    timeout,
    unreachable,
    watched,
)

# How long to wait, and when to try again


def test_a_wait_lasts_a_minute_by_default(monkeypatch):
    """Without a word of the user, no wait lasts longer than a minute."""
    monkeypatch.delenv(TIMEOUT, raising=False)

    assert timeout() == 60


@pytest.mark.parametrize(("text", "seconds"), [("1", 1), ("0.5", 0.5), ("300", 300), ("1e3", 1000)])
def test_the_user_says_how_long_a_wait_lasts(monkeypatch, text, seconds):
    """The environment says how many seconds a wait may last, a fraction included."""
    monkeypatch.setenv(TIMEOUT, text)

    assert timeout() == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "nan", "inf", "-inf", "1e6", "60s", "1,5", "none", "0x10", "\x1b[2J"])
def test_a_wait_that_is_none_is_refused(monkeypatch, text):
    """What is no positive number of seconds is a mistake of the user, and is shown without what moves a cursor."""
    monkeypatch.setenv(TIMEOUT, text)
    with pytest.raises(UsageError) as caught:
        timeout()

    assert caught.value.exit_code == 2
    assert TIMEOUT in caught.value.message
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
@pytest.mark.parametrize(
    ("text", "is_true"), [("1", True), ("true", True), ("YES", True), ("On", True), ("0", False), ("", False)]
)
def test_the_environment_forbids_the_network(monkeypatch, name, text, is_true):
    """The variables that the Hub's client obeys are obeyed, in any of their spellings."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv(name, text)

    assert is_offline() is is_true


@given(
    tries=st.integers(1, 20),
    first=st.floats(0, 10, allow_nan=False),
    longest=st.floats(0, 100, allow_nan=False),
    seed=st.integers(),
)
def test_waits_are_few_and_bounded(tries, first, longest, seed):
    """There is one wait less than tries; none is negative, longer than the longest or longer than doubling allows."""
    random.seed(seed)
    waits = list(Retry(tries=tries, first=first, longest=longest).waits())

    assert len(waits) == tries - 1
    assert all(0 <= wait <= min(longest, first * 2**position) for position, wait in enumerate(waits))


def test_waits_have_full_jitter():
    """Clients that failed together do not come back together: waits are spread from nothing to their bound."""
    random.seed(0)
    thirds = [next(itertools.islice(RETRY.waits(), 2, None)) for _ in range(200)]
    bound = RETRY.first * 4

    assert min(thirds) < bound / 10
    assert max(thirds) > bound * 9 / 10
    assert len(set(thirds)) > 100


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    """How long it was slept; nobody sleeps."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.mark.parametrize(
    ("wish", "seconds"),
    [
        (None, 0.25),
        ("", 0.25),
        ("0", 0.25),
        ("7", 7),
        ("60", 60),
        ("61", 60),
        ("86400", 60),
        ("9" * 5000, 60),
        ("-5", 0.25),
        ("1.5", 0.25),
        ("1e9", 0.25),
        ("nan", 0.25),
        ("٣", 0.25),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0.25),
    ],
)
def test_a_pause_lasts_as_long_as_the_server_wishes(slept, wish, seconds):
    """A Retry-After in seconds is obeyed up to a minute; anything else changes nothing."""
    pause(0.25, wish)

    assert slept == [seconds]


def test_a_pause_is_never_shorter_than_ours(slept):
    """A server that asks for less than we would wait anyway does not make us faster."""
    pause(8.0, "1")

    assert slept == [8.0]


# What a refusal means


@pytest.mark.parametrize(
    ("status", "kind", "exit_code", "hint"),
    [
        (400, RegistryError, 4, "check the name and your rights"),
        (401, RegistryError, 4, "hf auth login"),
        (403, RegistryError, 4, "scopes"),
        (404, NotFoundError, 3, "check the name"),
        (409, RegistryError, 4, "check the name and your rights"),
        (410, NotFoundError, 3, "check the name"),
        (418, RegistryError, 4, "check the name and your rights"),
        (429, RegistryError, 4, "too many requests"),
        (500, RegistryError, 4, "later"),
        (502, RegistryError, 4, "later"),
        (503, RegistryError, 4, "later"),
        (599, RegistryError, 4, "later"),
    ],
)
def test_a_refusal_says_what_to_do(status, kind, exit_code, hint):
    """Each status has an exit code and a hint; the message names the host, what was asked for, and the answer."""
    error = refusal(status, host="hub.example", what="`org/task`", said="`no`")

    assert type(error) is kind
    assert error.exit_code == exit_code
    assert hint in error.hint
    assert error.message == f"`hub.example` answered {status} for `org/task`: `no`"


def test_a_refusal_without_words_has_none():
    """Where the server gave no reason, the message ends with what was asked for."""
    assert refusal(500, host="hub.example", what="`org/task`").message == "`hub.example` answered 500 for `org/task`"


def test_what_may_pass_is_no_refusal_of_this_user():
    """Only statuses that can pass by themselves are tried again: never a login, a right or a name."""
    assert RETRIED.isdisjoint({400, 401, 403, 404, 409, 410, 412})
    assert {429, 503} <= RETRIED


def test_no_answer_names_every_cause():
    """A host that gave no answer is named, with the causes from the outside to the inside, and what to look at."""
    cause = OSError("\x1b[2J certificate \u202e")
    outer = ConnectionError("refused")
    outer.__cause__ = cause
    error = unreachable("hub.example", "`org/task`", outer)

    assert error.exit_code == 4
    assert "`hub.example` gave no answer to the request for `org/task`" in error.message
    assert error.message.index("refused") < error.message.index("certificate")
    assert error.message.isprintable()
    assert TIMEOUT in error.hint


# Streams whose waits have no limit of their own


class Stream:
    """Chunks that come at once, then perhaps a halt; `cancel` ends it, as that of Xet does.

    ``after`` chunks still come once it was cancelled, as out of a buffer.
    """

    def __init__(self, chunks, *, then=None, after: int = 0) -> None:
        self._chunks = iter(chunks)
        self._then = then
        self._after = after
        self._cancelled = threading.Event()
        self.cancels = 0
        self.reader: threading.Thread | None = None

    def __iter__(self):
        self.reader = threading.current_thread()
        for chunk in self._chunks:
            if self._cancelled.is_set():
                break
            yield chunk
        if isinstance(self._then, BaseException):
            raise self._then
        if self._then == "halt":
            self._cancelled.wait(30)
        yield from [b"late"] * self._after

    def cancel(self) -> None:
        """End the stream."""
        self.cancels += 1
        self._cancelled.set()


def ends(stream: Stream) -> bool:
    """Whether the thread that reads *stream* ends soon."""
    stream.reader.join(2)
    return not stream.reader.is_alive()


@pytest.fixture
def impatient(monkeypatch):
    """No wait lasts longer than a moment."""
    monkeypatch.setenv(TIMEOUT, "0.1")


@pytest.mark.parametrize("count", [0, 1, network._AHEAD, network._AHEAD + 1, 1000])
def test_a_watched_stream_is_the_stream(count):
    """All chunks come, in their order, and then the end; the stream is told that nobody reads on."""
    chunks = [str(number).encode() for number in range(count)]
    stream = Stream(chunks)

    assert list(watched(stream, stream.cancel)) == chunks
    assert stream.cancels == 1
    assert ends(stream)


def test_an_empty_chunk_is_no_end():
    """A chunk without bytes is not taken for the end of the stream."""
    stream = Stream([b"one", b"", b"two"])

    assert b"".join(watched(stream, stream.cancel)) == b"onetwo"


@pytest.mark.parametrize("count", [0, 1, 100])
def test_a_stream_that_comes_to_a_halt_is_given_up(impatient, count):
    """What came before the halt is handed out; then the wait ends, the stream is cancelled and its thread ends."""
    stream, got = Stream([b"x"] * count, then="halt"), []
    begin = time.monotonic()
    with pytest.raises(StalledError):
        got.extend(watched(stream, stream.cancel)) if count == 0 else _collect(got, stream)

    assert got == [b"x"] * count
    assert time.monotonic() - begin < 5
    assert stream.cancels == 1
    assert ends(stream)


def _collect(got: list[bytes], stream: Stream) -> None:
    for chunk in watched(stream, stream.cancel):
        got.append(chunk)  # noqa: PERF402 - what came before the error counts


def test_a_slow_reader_is_no_stall(impatient):
    """Who takes time over each chunk is not taken for a stream that came to a halt."""
    stream = Stream([b"x"] * 20)
    got = 0
    for _ in watched(stream, stream.cancel):
        got += 1
        time.sleep(0.02)

    assert got == 20


@pytest.mark.parametrize("error", [RuntimeError("broke"), OSError("reset"), KeyboardInterrupt()], ids=repr)
def test_a_stream_that_breaks_is_given_up(error):
    """Whatever a stream raises, its reader gets one kind of error, with the cause."""
    stream = Stream([b"x"], then=error)
    got = []
    with pytest.raises(StalledError) as caught:
        _collect(got, stream)

    assert got == [b"x"]
    assert caught.value.__cause__ is error
    assert stream.cancels == 1


@pytest.mark.parametrize("after", [0, 1, network._AHEAD + 1, 200])
@pytest.mark.parametrize("read", [1, 5, 50])
def test_who_stops_reading_leaves_no_thread(read, after):
    """When nobody reads on, the stream is cancelled and its thread ends, however much was still to come."""
    stream = Stream([b"x"] * 1000, after=after)
    reading = watched(stream, stream.cancel)
    for _ in range(read):
        next(reading)
    reading.close()

    assert stream.cancels == 1
    assert ends(stream)


def test_a_stream_that_nobody_reads_is_not_begun():
    """Nothing is read ahead before the first chunk is asked for."""
    stream = Stream([b"x"])
    watched(stream, stream.cancel)

    assert stream.reader is None


def test_a_stream_is_not_read_far_ahead():
    """A reader that takes its time does not fill the memory with what it has not asked for yet."""
    taken = []
    stream = Stream(taken.append(number) or b"x" for number in range(10_000))
    reading = watched(stream, stream.cancel)
    next(reading)
    time.sleep(0.05)
    ahead = len(taken)
    reading.close()

    assert ahead <= network._AHEAD + 2
    assert ends(stream)
