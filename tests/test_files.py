"""Files that a crash cannot tear."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from adapter_files import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, adapter_files

from lora_hub import files
from lora_hub.adapter_directory import read_adapter, read_with_files, write_adapter
from lora_hub.documents.verified_adapter import verify
from lora_hub.errors import IntegrityError, LoraHubError, MachineError, MalformedError, NotFoundError


def listing(directory) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@pytest.fixture
def full_disk(monkeypatch):
    """Every file can be opened and written, but never be made durable: the disk is full."""

    def refuse(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", refuse)


def test_a_file_is_read_up_to_the_limit(tmp_path):
    """Exactly the limit is read, one byte more is refused before it is read."""
    (tmp_path / "file").write_bytes(b"12345")

    assert files.read_file(tmp_path / "file", limit=5) == b"12345"
    with pytest.raises(MalformedError, match="at most 4"):
        files.read_file(tmp_path / "file", limit=4)


def test_an_empty_file_is_empty(tmp_path):
    """No bytes are no error."""
    (tmp_path / "file").touch()

    assert files.read_file(tmp_path / "file", limit=5) == b""


@pytest.mark.parametrize("name", ["missing", "missing/file", "file/inside"])
def test_a_missing_file_is_not_found(tmp_path, name):
    """A file that is not there, or whose directory is a file, is not found."""
    (tmp_path / "file").touch()

    with pytest.raises(NotFoundError, match="there is no file"):
        files.read_file(tmp_path / name, limit=5)


def test_a_fifo_blocks_nobody(tmp_path):
    """A FIFO without a writer is refused at once."""
    os.mkfifo(tmp_path / "fifo")

    with pytest.raises(MalformedError, match="regular file"):
        files.read_file(tmp_path / "fifo", limit=5)


def test_a_device_is_refused(tmp_path):
    """A device, which might never end, is refused also behind a link."""
    (tmp_path / "link").symlink_to("/dev/zero")

    with pytest.raises(MalformedError, match="regular file"):
        files.read_file(tmp_path / "link", limit=5)


def test_a_directory_is_no_file(tmp_path):
    """A directory where a file should be is malformed, as everything else that is no regular file."""
    with pytest.raises(MalformedError, match="regular file"):
        files.read_file(tmp_path, limit=5)


def test_a_link_that_leads_in_a_circle_is_this_machines_fault(tmp_path):
    """What the operating system refuses is a `MachineError`."""
    (tmp_path / "link").symlink_to(tmp_path / "link")

    with pytest.raises(MachineError):
        files.read_file(tmp_path / "link", limit=5)


def test_a_file_is_replaced(tmp_path):
    """Writing replaces the file and leaves nothing else behind."""
    for content in (b"old", b"new"):
        files.write_files(tmp_path, {"file": content})

    assert (tmp_path / "file").read_bytes() == b"new"
    assert listing(tmp_path) == {"file"}


def test_a_file_that_cannot_be_written_stays_what_it_was(tmp_path, full_disk):
    """When the disk is full, the old file is still there, and no part of the new one."""
    (tmp_path / "file").write_bytes(b"old")

    with pytest.raises(OSError, match="No space"):
        files.write_files(tmp_path, {"file": b"new"})
    assert (tmp_path / "file").read_bytes() == b"old"
    assert listing(tmp_path) == {"file"}


def publish(tmp_path, content: bytes) -> bool:
    return files.publish_directory(tmp_path / "a" / "b", {"file": content}, staging=tmp_path / "staging")


def test_a_directory_is_published_once(tmp_path):
    """The first directory of a name stays; the second changes nothing and says so."""
    assert publish(tmp_path, b"first") is True
    assert publish(tmp_path, b"second") is False
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"first"
    assert listing(tmp_path / "staging") == set()


def test_a_directory_that_cannot_be_written_does_not_appear(tmp_path, full_disk):
    """When the disk is full, neither the directory nor a leftover of it is there."""
    with pytest.raises(OSError, match="No space"):
        publish(tmp_path, b"first")

    assert not (tmp_path / "a" / "b").exists()
    assert listing(tmp_path / "staging") == set()


def test_a_file_in_the_way_is_no_published_directory(tmp_path):
    """Something that is no directory is not taken for a version that was published."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_bytes(b"in the way")

    with pytest.raises(OSError, match="directory"):
        publish(tmp_path, b"first")
    assert (tmp_path / "a" / "b").read_bytes() == b"in the way"


def test_of_many_publishers_one_wins(tmp_path):
    """Of many threads that publish one directory at once, one succeeds, and its files are the ones that stay."""
    barrier, won = threading.Barrier(8), []

    def run(number: int) -> None:
        barrier.wait()
        if publish(tmp_path, str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(won) == 1
    assert (tmp_path / "a" / "b" / "file").read_bytes() == str(won[0]).encode()


def test_a_removed_directory_is_gone(tmp_path):
    """Removing leaves neither the directory nor a leftover."""
    publish(tmp_path, b"first")
    files.remove_directory(tmp_path / "a" / "b", staging=tmp_path / "staging")

    assert listing(tmp_path) == {"a", "staging"}


def test_only_old_leftovers_are_removed(tmp_path):
    """What a killed process left is removed once it is old enough to belong to nobody."""
    for name, age in (("old", 100), ("new", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        os.utime(tmp_path / name, (0, time.time() - age))

    assert files.remove_leftovers(tmp_path, older_than=50) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"new"}
    assert files.remove_leftovers(tmp_path / "missing", older_than=0) == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_says_so(number):
    """Each way in which a disk is full has exit code 11 and says what to do."""
    error = files.machine_error(OSError(number, os.strerror(number), "file"))

    assert error.exit_code == 11
    assert "no space left at `file`" in error.message
    assert "free" in error.hint


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EIO, errno.ENAMETOOLONG])
def test_another_error_of_the_machine_is_named(number):
    """Any other refusal of the operating system has exit code 11 and names the file."""
    error = files.machine_error(OSError(number, os.strerror(number), "file"))

    assert (error.exit_code, error.message) == (11, f"{os.strerror(number)} at `file`")


def test_an_error_without_a_file_has_a_message():
    """An error that the operating system did not number still says something."""
    assert files.machine_error(OSError("odd")).message == "odd"


class TestAdapterDirectory:
    """An adapter as a directory."""

    def test_what_is_written_is_read(self, tmp_path):
        """The files of an adapter come back as they were."""
        written = adapter_files().files()
        write_adapter(tmp_path / "new" / "adapter", written)

        assert read_with_files(tmp_path / "new" / "adapter")[1] == written

    def test_the_manifest_beside_the_files_counts(self, tmp_path):
        """Where a manifest lies beside the files, they must match it."""
        adapter = adapter_files()
        adapter.manifest = verify(adapter.files(), source="here").manifest.to_bytes()
        adapter.config["lora_alpha"] = 5

        with pytest.raises(IntegrityError):
            read_adapter(adapter.write(tmp_path))

    @pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME])
    def test_a_missing_file_is_named(self, tmp_path, name):
        """A directory without one of the two files is not an adapter; the file is named."""
        (adapter_files().write(tmp_path) / name).unlink()

        with pytest.raises(NotFoundError, match=name):
            read_with_files(tmp_path)

    def test_a_pickle_is_not_read(self, tmp_path):
        """An adapter that is stored as a pickle is refused, and the hint says how to convert it."""
        (adapter_files().write(tmp_path) / WEIGHTS_NAME).rename(tmp_path / "adapter_model.bin")

        with pytest.raises(NotFoundError) as caught:
            read_with_files(tmp_path)
        assert "pickles are never read" in caught.value.hint

    def test_a_missing_directory_is_not_found(self, tmp_path):
        """A directory that is not there is not found."""
        with pytest.raises(NotFoundError, match="no directory"):
            read_with_files(tmp_path / "missing")

    @pytest.mark.parametrize("name", [CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME])
    def test_a_directory_in_place_of_a_file_is_malformed(self, tmp_path, name):
        """A directory where a file of the adapter should be makes the adapter malformed."""
        (adapter_files().write(tmp_path) / name).unlink(missing_ok=True)
        (tmp_path / name).mkdir()

        with pytest.raises(MalformedError, match=name):
            read_with_files(tmp_path)

    @pytest.mark.parametrize("has_manifest", [True, False], ids=["over_ours", "over_peft's"])
    @pytest.mark.parametrize("written", [1, 2])
    def test_an_interrupted_write_never_mixes_two_adapters(self, tmp_path, monkeypatch, written, has_manifest):
        """When writing over an older adapter stops half-way, no config of one passes with the weights of the other."""
        old, new = adapter_files(seed=1, lora_alpha=4), adapter_files(seed=2, lora_alpha=16)
        new.manifest = verify(new.files(), source="here").manifest.to_bytes()
        old.manifest = verify(old.files(), source="here").manifest.to_bytes() if has_manifest else None
        old.write(tmp_path)
        self._stop_after(monkeypatch, written)
        with pytest.raises(KeyboardInterrupt):
            write_adapter(tmp_path, new.files())

        try:
            found = read_adapter(tmp_path)
        except LoraHubError:
            return
        owner = old if found.buffer == old.files()[WEIGHTS_NAME] else new
        assert found.config.lora_alpha == owner.config["lora_alpha"]

    @staticmethod
    def _stop_after(monkeypatch, count: int) -> None:
        move, left = Path.replace, iter(range(count))

        def stop(path, target) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            move(path, target)

        monkeypatch.setattr(Path, "replace", stop)

    def test_a_full_disk_is_this_machines_fault(self, tmp_path, full_disk):
        """A full disk while saving has exit code 11."""
        with pytest.raises(MachineError, match="no space left"):
            write_adapter(tmp_path / "adapter", adapter_files().files())


def test_what_is_published_is_durable_before_it_is_visible(tmp_path, monkeypatch):
    """Files and their directory are synced before the rename that shows them, the place of the name after it."""
    events, fsync, rename = [], os.fsync, Path.rename

    def record_sync(descriptor):
        events.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    def record_rename(source, target):
        events.append("renamed")
        return rename(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    publish(tmp_path, b"content")
    before, after = events[: events.index("renamed")], events[events.index("renamed") + 1 :]
    temporary = next(Path(path).parent for path in before if path.endswith("/file"))

    assert before.index(str(temporary / "file")) < before.index(str(temporary))
    assert after == [str(tmp_path / "a")]
