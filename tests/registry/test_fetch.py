"""What is read from a registry: exactly as large as it must be, and from where the last run was cut off."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator, Mapping

import pytest
from adapter_files import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, adapter_files, fused_adapter_files, safetensors

from lora_hub import files
from lora_hub.documents.manifest import FileEntry
from lora_hub.documents.verified_adapter import verify
from lora_hub.errors import IntegrityError, MachineError, MalformedError, NotFoundError
from lora_hub.files import partial_file, publish_directory
from lora_hub.reference import AdapterRef
from lora_hub.registry import fetch
from lora_hub.registry.fetch import Content, read_header, read_small, read_weights
from lora_hub.registry.published import Published
from lora_hub.registry.registry import RemoteFile, Snapshot

BODY = bytes(range(256)) * 16


class Served:
    """A registry's files, and everything that was read of them.

    ``announced`` is the size that it states, where that is not the true one; ``failing_after`` cuts a reading off.
    """

    def __init__(self, content: Mapping[str, bytes], *, chunk: int = 1000, announced: Mapping[str, int] | None = None):
        self.content = dict(content)
        self.reads: list[tuple[str, int, int | None]] = []
        self.failing_after: int | None = None
        self._chunk = chunk
        sizes = {name: len(body) for name, body in content.items()} | dict(announced or {})
        known = {name: RemoteFile(size=size) for name, size in sizes.items()}
        self.snapshot = Snapshot(commit=None, files=known, read=self._read)

    def _read(self, name: str, start: int, stop: int | None) -> Iterator[bytes]:
        self.reads.append((name, start, stop))
        body = self.content[name][start:stop]
        for position in range(0, len(body), self._chunk):
            if self.failing_after is not None and position >= self.failing_after:
                raise ConnectionError("cut off")
            yield body[position : position + self._chunk]


def entry(body: bytes = BODY) -> FileEntry:
    return FileEntry.of(WEIGHTS_NAME, body)


@pytest.fixture(autouse=True)
def small_files_are_large(monkeypatch):
    """What these tests serve is small; it is treated like what is large."""
    monkeypatch.setattr(fetch, "RESUMABLE", 1024)


@pytest.fixture
def partials(tmp_path):
    """Where large downloads are kept until they are whole."""
    return tmp_path / "partials"


def weights(served: Served, partials=None, described: FileEntry | None = None, **options) -> Content:
    return read_weights(served.snapshot, described or entry(), source="here", partials=partials, **options)


def kept(partials) -> dict[str, bytes]:
    """Return what lies in *partials*, by the beginning of its name."""
    return {path.name[:64]: path.read_bytes() for path in partials.iterdir()} if partials.is_dir() else {}


# Exact sizes


@pytest.mark.parametrize("has_partials", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize("chunk", [1, 999, 1024, 10_000])
def test_weights_are_what_was_served(partials, chunk, has_partials):
    """However the bytes come, they arrive as they are, and so does what they are found to be."""
    content = weights(Served({WEIGHTS_NAME: BODY}, chunk=chunk), partials if has_partials else None)

    assert content.buffer == BODY
    assert content.found == entry()
    assert (content.path is not None) == has_partials


@pytest.mark.parametrize("has_partials", [False, True], ids=["memory", "disk"])
@pytest.mark.parametrize(
    ("served", "found"), [(BODY[:-1], str(len(BODY) - 1)), (BODY + b"x", f"more than {len(BODY)}"), (b"", "0")]
)
def test_other_than_the_announced_bytes_are_refused(partials, served, found, has_partials):
    """A server that sends more or fewer bytes than it announced is refused with exit code 6 and both numbers."""
    serving = Served({WEIGHTS_NAME: served}, announced={WEIGHTS_NAME: len(BODY)})
    with pytest.raises(IntegrityError, match=f"has {found} bytes, expected {len(BODY)}") as caught:
        weights(serving, partials if has_partials else None)

    assert caught.value.exit_code == 6


@pytest.mark.parametrize("size", [0, len(BODY) - 1, len(BODY) + 1, 2**60])
def test_another_announced_size_is_refused_unread(partials, size):
    """A server that announces another size than the manifest says is refused before a byte is read or kept."""
    served = Served({WEIGHTS_NAME: BODY}, announced={WEIGHTS_NAME: size})
    with pytest.raises(IntegrityError, match=f"has {size} bytes, expected {len(BODY)}"):
        weights(served, partials)

    assert served.reads == []
    assert kept(partials) == {}


def test_an_endless_answer_is_cut_off():
    """A server that never stops sending is refused at the first byte too many."""
    sent = []

    def read(*_) -> Iterator[bytes]:
        while True:
            sent.append(1000)
            yield bytes(1000)

    snapshot = Snapshot(commit=None, files={WEIGHTS_NAME: RemoteFile(size=len(BODY))}, read=read)
    with pytest.raises(IntegrityError, match="more than"):
        read_weights(snapshot, entry(), source="here", partials=None)

    assert sum(sent) <= len(BODY) + 1000


def test_weights_beyond_the_memory_are_this_machines_fault():
    """A file that no memory holds has exit code 11, and is not asked for."""
    size = 2**62
    served = Served({WEIGHTS_NAME: BODY}, announced={WEIGHTS_NAME: size})
    with pytest.raises(MachineError, match="more than the memory"):
        weights(served, described=FileEntry(name=WEIGHTS_NAME, size=size, sha256="a" * 64))

    assert served.reads == []


def test_a_small_file_is_read_up_to_its_limit():
    """Exactly the limit is read; one byte more is refused before it is asked for."""
    served = Served({CONFIG_NAME: BODY})

    assert read_small(served.snapshot, CONFIG_NAME, limit=len(BODY), source="here") == BODY
    served.reads.clear()
    with pytest.raises(MalformedError, match=f"at most {len(BODY) - 1} are read"):
        read_small(served.snapshot, CONFIG_NAME, limit=len(BODY) - 1, source="here")
    assert served.reads == []


@pytest.mark.parametrize("served", [BODY[:-1], BODY + b"x"], ids=["less", "more"])
def test_a_small_file_has_the_size_that_was_announced(served):
    """A small file, too, is exactly as large as the server said."""
    serving = Served({CONFIG_NAME: served}, announced={CONFIG_NAME: len(BODY)})

    with pytest.raises(IntegrityError, match=f"`{CONFIG_NAME}` of `here`"):
        read_small(serving.snapshot, CONFIG_NAME, limit=len(BODY) * 2, source="here")


def test_an_empty_file_is_not_asked_for():
    """A file without bytes needs no request."""
    served = Served({CONFIG_NAME: b""})

    assert read_small(served.snapshot, CONFIG_NAME, limit=10, source="here") == b""
    assert served.reads == []


@pytest.mark.parametrize(
    ("present", "missing", "hint"),
    [
        ({CONFIG_NAME: b"{}"}, WEIGHTS_NAME, "pickles are never read"),
        ({WEIGHTS_NAME: BODY}, CONFIG_NAME, f"it has {WEIGHTS_NAME}"),
        ({}, CONFIG_NAME, "it has no file of an adapter"),
        ({}, WEIGHTS_NAME, "it has no file of an adapter"),
    ],
)
def test_a_missing_file_is_named(present, missing, hint):
    """What is not there has exit code 3; where only the weights are missing, they are most often a pickle."""
    with pytest.raises(NotFoundError, match=f"`here` has no `{missing}`") as caught:
        read_small(Served(present).snapshot, missing, limit=10, source="here")

    assert hint in caught.value.hint


@pytest.mark.parametrize("read", [read_header, weights], ids=["header", "weights"])
def test_missing_weights_are_most_often_a_pickle(read):
    """An adapter with nothing but `adapter_model.bin` gets the hint that helps, from every function."""
    served = Served({CONFIG_NAME: b"{}"})
    with pytest.raises(NotFoundError) as caught:
        read(served.snapshot, source="here") if read is read_header else read(served)

    assert "safetensors" in caught.value.hint


# Going on


@pytest.mark.parametrize("have", [0, 1, 1000, len(BODY) - 1])
def test_what_is_there_is_not_read_again(partials, have):
    """A download goes on at the first byte that is missing."""
    partials.mkdir()
    (partials / entry().sha256).write_bytes(BODY[:have])
    served = Served({WEIGHTS_NAME: BODY})
    content = weights(served, partials)

    assert served.reads == [(WEIGHTS_NAME, have, None)]
    assert (content.buffer, content.found) == (BODY, entry())
    assert content.path.read_bytes() == BODY


def test_what_is_whole_is_not_read_at_all(partials):
    """A download that was complete when the process died needs no request."""
    partials.mkdir()
    (partials / entry().sha256).write_bytes(BODY)
    served = Served({WEIGHTS_NAME: BODY})

    assert weights(served, partials).found == entry()
    assert served.reads == []


def test_a_partial_that_is_too_long_is_discarded(partials):
    """More bytes than the file has cannot be its beginning: all of it is read again."""
    partials.mkdir()
    (partials / entry().sha256).write_bytes(BODY + b"x")
    served = Served({WEIGHTS_NAME: BODY})
    content = weights(served, partials)

    assert served.reads == [(WEIGHTS_NAME, 0, None)]
    assert content.found == entry()
    assert content.path.read_bytes() == BODY


@pytest.mark.parametrize("cut", [1000, 3000])
def test_a_download_that_was_cut_off_goes_on(partials, cut):
    """What came before the connection broke stays on disk, and the next run begins behind it."""
    served = Served({WEIGHTS_NAME: BODY})
    served.failing_after = cut
    with pytest.raises(MachineError):
        weights(served, partials)
    before = kept(partials)
    served.failing_after = None
    served.reads.clear()

    assert before == {entry().sha256: BODY[:cut]}
    assert weights(served, partials).found == entry()
    assert served.reads == [(WEIGHTS_NAME, cut, None)]


def test_a_small_download_is_not_kept(partials):
    """A file that is read within a moment is not written twice."""
    body = BODY[: fetch.RESUMABLE - 1]

    assert weights(Served({WEIGHTS_NAME: body}), partials, entry(body)).path is None
    assert kept(partials) == {}


def test_where_nothing_is_to_be_kept_nothing_is(tmp_path):
    """Without a directory for it, nothing is written anywhere."""
    assert weights(Served({WEIGHTS_NAME: BODY})).path is None
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_two_downloads_of_one_file_do_not_mix(partials):
    """Of two processes that want the same file, the second reads all of it into a file of its own."""
    partials.mkdir()
    (partials / entry().sha256).write_bytes(BODY[:1000])
    served = Served({WEIGHTS_NAME: BODY})
    with partial_file(partials, entry().sha256):
        content = weights(served, partials)

    assert served.reads == [(WEIGHTS_NAME, 0, None)]
    assert content.path.read_bytes() == BODY
    assert (partials / entry().sha256).read_bytes() == BODY[:1000]


# Proof


def published(served: Served, manifest: bytes) -> Published:
    reference = AdapterRef.parse("org/task@1.0.0")
    return Published(reference=reference, snapshot=served.snapshot, manifest=manifest, source="here")


@pytest.fixture
def adapter() -> dict[str, bytes]:
    """The files of an adapter whose weights are treated like large ones."""
    content = adapter_files(r=4, layers=4).files()
    return {**content, MANIFEST_NAME: verify(content, source="here").manifest.to_bytes()}


@pytest.mark.parametrize("have", [1, 2000, None], ids=["one_byte", "some", "all"])
def test_a_wrong_partial_is_found_out_and_removed(adapter, partials, have):
    """A partial file with other bytes fails the proof once; then it is gone, and the next run succeeds."""
    served, body = Served(adapter), adapter[WEIGHTS_NAME]
    name = FileEntry.of(WEIGHTS_NAME, body).sha256
    wrong = bytes(byte ^ 1 for byte in body[:have])
    partials.mkdir()
    (partials / name).write_bytes(wrong)
    with pytest.raises(IntegrityError, match=WEIGHTS_NAME):
        published(served, adapter[MANIFEST_NAME]).read(partials=partials).verify(source="here")
    after = kept(partials)
    download = published(served, adapter[MANIFEST_NAME]).read(partials=partials)

    assert after == {}
    assert download.verify(source="here").buffer == body
    assert download.written[WEIGHTS_NAME].read_bytes() == body


def test_what_is_on_disk_is_what_was_proven(adapter, partials):
    """The file that a download leaves holds the very bytes that were proven, and nothing is hashed twice."""
    download = published(Served(adapter), adapter[MANIFEST_NAME]).read(partials=partials)

    assert download.verify(source="here").buffer == download.written[WEIGHTS_NAME].read_bytes()
    assert download.hashed == (FileEntry.of(WEIGHTS_NAME, adapter[WEIGHTS_NAME]),)


STRIDE = 2048


@pytest.fixture
def short_stride(monkeypatch):
    """What follows a download hashes it in small pieces."""
    monkeypatch.setattr(fetch, "_STRIDE", STRIDE)


@pytest.mark.parametrize("chunk", [1, 100, 1024, 2047, 2048, 2049, 50_000])
@pytest.mark.parametrize("size", [STRIDE - 1, STRIDE, STRIDE + 1, 2 * STRIDE - 1, 2 * STRIDE, 2 * STRIDE + 1, 9_999])
def test_the_digest_is_that_of_the_bytes(partials, short_stride, size, chunk):
    """Whatever the size of file, chunks and pieces, the digest is the one that hashlib finds."""
    body = bytes(number * 31 % 251 for number in range(size))
    found = weights(Served({WEIGHTS_NAME: body}, chunk=chunk), partials, entry(body)).found

    assert found.sha256 == hashlib.sha256(body).hexdigest()


@pytest.mark.parametrize("have", [1, STRIDE, STRIDE + 1, 9_998, 9_999])
def test_the_digest_covers_what_was_there_before(partials, short_stride, have):
    """The bytes of an earlier run are hashed as they are on disk, not as they should be."""
    body = bytes(number * 31 % 251 for number in range(9_999))
    partials.mkdir()
    (partials / entry(body).sha256).write_bytes(bytes(have))
    found = weights(Served({WEIGHTS_NAME: body}), partials, entry(body)).found

    assert found.sha256 == hashlib.sha256(bytes(have) + body[have:]).hexdigest()


@pytest.mark.parametrize("fails", [False, True], ids=["whole", "cut_off"])
def test_no_thread_stays(partials, short_stride, fails):
    """The threads that hash and sync end with the download, also with one that fails."""
    served = Served({WEIGHTS_NAME: BODY})
    served.failing_after = 3000 if fails else None
    with contextlib.suppress(MachineError):
        weights(served, partials)
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("lora-hub-")]
    for thread in ours:
        thread.join(5)

    assert not any(thread.is_alive() for thread in ours)


# Progress


class Bar:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, int]] = []
        self.advances: list[int] = []
        self.is_closed = False

    @contextlib.contextmanager
    def __call__(self, label: str, total: int):
        """Open the bar."""
        self.opened.append((label, total))
        yield self.advances.append
        self.is_closed = True


@pytest.mark.parametrize("have", [0, 1000, len(BODY)])
@pytest.mark.parametrize("has_partials", [False, True], ids=["memory", "disk"])
def test_progress_adds_up_to_the_size(partials, have, has_partials):
    """What a progress bar is told adds up to the size of the file, what was there before included."""
    bar = Bar()
    partials.mkdir()
    (partials / entry().sha256).write_bytes(BODY[:have])
    weights(Served({WEIGHTS_NAME: BODY}), partials if has_partials else None, progress=bar)

    assert bar.opened == [(WEIGHTS_NAME, len(BODY))]
    assert sum(bar.advances) == len(BODY)
    assert bar.advances[0] == (have if has_partials else 0)
    assert bar.is_closed


# Headers


@pytest.mark.parametrize("first", [8, 64, 500, 10**6])
def test_a_header_is_read_as_far_as_it_goes(monkeypatch, first):
    """A header that ends within the first bytes takes one request, a longer one a second for exactly the rest."""
    monkeypatch.setattr(fetch, "_FIRST", first)
    body = adapter_files().files()[WEIGHTS_NAME]
    end = 8 + int.from_bytes(body[:8], "little")
    served = Served({WEIGHTS_NAME: body})
    start, file = read_header(served.snapshot, source="here")

    assert body.startswith(start)
    assert len(start) >= end
    assert file.size == len(body)
    assert served.reads == [(WEIGHTS_NAME, 0, min(first, len(body)))] + ([(WEIGHTS_NAME, first, end)] * (first < end))


def test_a_header_beyond_the_first_read_is_read_in_two_requests(monkeypatch):
    """The header of an adapter with many tensors is read whole, and no byte of its tensors."""
    monkeypatch.setattr(fetch, "_FIRST", 2**17)
    body = safetensors(adapter_files(r=1, layers=300).tensors, {"note": "x" * 2**17})
    end = 8 + int.from_bytes(body[:8], "little")
    served = Served({WEIGHTS_NAME: body})
    start, _ = read_header(served.snapshot, source="here")

    assert start == body[:end]
    assert served.reads == [(WEIGHTS_NAME, 0, 2**17), (WEIGHTS_NAME, 2**17, end)]


@pytest.mark.parametrize("length", [2**17, 2**40, 2**64 - 1])
def test_a_header_that_claims_too_much_is_not_read(length):
    """A length that the file cannot hold is refused; nothing is asked for on its word."""
    served = Served({WEIGHTS_NAME: length.to_bytes(8, "little") + BODY})
    with pytest.raises(MalformedError, match="header claims"):
        read_header(served.snapshot, source="here")

    assert len(served.reads) == 1


@pytest.mark.parametrize("body", [b"", b"1234567"], ids=["empty", "short"])
def test_weights_without_a_header_are_malformed(body):
    """A file that is too short for the length of its header is malformed."""
    with pytest.raises(MalformedError, match="truncated"):
        read_header(Served({WEIGHTS_NAME: body}).snapshot, source="here")


@pytest.mark.parametrize("announced", [100, 10**6])
def test_a_header_that_comes_short_is_refused(announced):
    """A server that sends less of the header than was asked for, or more, is refused."""
    body = fused_adapter_files().files()[WEIGHTS_NAME][:1000]
    served = Served({WEIGHTS_NAME: body}, announced={WEIGHTS_NAME: announced})
    sent = Snapshot(commit=None, files=served.snapshot.files, read=lambda *_: iter([body]))

    with pytest.raises(IntegrityError, match="expected"):
        read_header(sent, source="here")


# Files that are kept between runs


def test_a_partial_file_stays(partials):
    """What was written is there at the next run, from its beginning; what comes then is added behind it."""
    for part in (b"one ", b"two"):
        with partial_file(partials, "name") as (file, path):
            before = file.read()
            file.write(part)

    assert before == b"one "
    assert path.read_bytes() == b"one two"


def test_a_second_process_gets_a_file_of_its_own(partials):
    """While one has the partial file, another gets an empty one, which is not in the way of the first."""
    with partial_file(partials, "name") as (first, path):
        first.write(b"first")
        first.flush()
        with partial_file(partials, "name") as (second, own):
            second.write(b"second")
        read = own.read_bytes()

    assert own != path
    assert read == b"second"
    assert path.read_bytes() == b"first"


def test_a_file_of_ones_own_does_not_outlive_an_error(partials):
    """What a second process wrote is removed when it fails: nobody would go on with it."""
    with (
        partial_file(partials, "name"),
        pytest.raises(ConnectionError),
        partial_file(partials, "name"),
    ):
        raise ConnectionError

    assert [path.name for path in partials.iterdir()] == ["name"]


def test_a_file_that_was_moved_away_is_noticed(partials, monkeypatch):
    """A partial file that another process finishes and moves between opening and locking is not written into."""
    lock, finished = files._lock, partials / "finished"
    partials.mkdir()
    (partials / "name").write_bytes(b"whole")

    def finish_first(file) -> bool:
        if not finished.exists():
            (partials / "name").rename(finished)
        return lock(file)

    monkeypatch.setattr(files, "_lock", finish_first)
    with partial_file(partials, "name") as (file, path):
        before = file.read()
        file.write(b"new")

    assert before == b""
    assert path.read_bytes() == b"new"
    assert finished.read_bytes() == b"whole"


def publish(tmp_path, written) -> bool:
    content = {"one": b"content", "two": b"other"}
    return publish_directory(tmp_path / "a" / "b", content, staging=tmp_path / "staging", written=written)


def test_what_was_written_already_is_moved(tmp_path):
    """A file that lies on disk becomes part of the directory without being written again."""
    (tmp_path / "partial").write_bytes(b"content")
    inode = (tmp_path / "partial").stat().st_ino

    assert publish(tmp_path, {"one": tmp_path / "partial"})
    assert (tmp_path / "a" / "b" / "one").stat().st_ino == inode
    assert (tmp_path / "a" / "b" / "two").read_bytes() == b"other"
    assert not (tmp_path / "partial").exists()


def test_what_was_written_and_is_gone_is_written_again(tmp_path):
    """Where another process moved the file away, its bytes are written instead."""
    assert publish(tmp_path, {"one": tmp_path / "gone"})
    assert (tmp_path / "a" / "b" / "one").read_bytes() == b"content"


def test_what_was_written_for_a_directory_that_exists_changes_nothing(tmp_path):
    """Who comes second changes nothing, though its file was written; nothing is left over."""
    (tmp_path / "partial").write_bytes(b"other content")
    first, second = publish(tmp_path, {}), publish(tmp_path, {"one": tmp_path / "partial"})

    assert (first, second) == (True, False)
    assert (tmp_path / "a" / "b" / "one").read_bytes() == b"content"
    assert list((tmp_path / "staging").iterdir()) == []
