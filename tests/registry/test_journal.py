"""The journal of pushes: the bytes of the first try are sent until the outcome is known."""

import json
import subprocess
import sys

import pytest
from adapter_files import adapter_files

from lora_hub.documents.manifest import Manifest, publish
from lora_hub.documents.verified_adapter import verify
from lora_hub.errors import MachineError
from lora_hub.reference import AdapterRef
from lora_hub.registry.journal import Journal

HUB = "hf://"
REFERENCE = AdapterRef.parse("org/task@1.0.0")
DRAFT = verify(adapter_files().files(), source="a test").manifest.to_bytes()


def manifest(minute: int, *, of: AdapterRef = REFERENCE, draft: bytes = DRAFT) -> bytes:
    """Return a manifest that was created at this minute."""
    return publish(draft, reference=of, created=f"2026-01-01T00:{minute:02}:00Z")


@pytest.fixture
def journal(tmp_path) -> Journal:
    """An empty journal, whose directory does not exist yet."""
    return Journal(tmp_path / "store" / "pushes")


def files(tmp_path) -> list[bytes]:
    """Return what lies in the directory of the journal."""
    return [file.read_bytes() for file in (tmp_path / "store" / "pushes").iterdir()]


def test_the_first_manifest_is_written_down(journal, tmp_path):
    """Before anything is sent, the bytes lie on disk, and they are the ones to send."""
    assert journal.open(HUB, REFERENCE, manifest(1)) == manifest(1)
    assert files(tmp_path) == [manifest(1)]


def test_a_retry_gets_the_bytes_of_the_first_try(journal, tmp_path):
    """Later, in another process as well, the same content is published with the time of the first try."""
    journal.open(HUB, REFERENCE, manifest(1))
    again = Journal(tmp_path / "store" / "pushes").open(HUB, REFERENCE, manifest(2))

    assert again == manifest(1)
    assert journal.open(HUB, REFERENCE, manifest(3)) == manifest(1)


def test_other_content_is_another_push(journal, tmp_path):
    """A manifest that says anything else than the one written down takes its place."""
    journal.open(HUB, REFERENCE, manifest(1))
    other = manifest(2, draft=verify(adapter_files(seed=1).files(), source="a test").manifest.to_bytes())

    assert journal.open(HUB, REFERENCE, other) == other
    assert files(tmp_path) == [other]


@pytest.mark.parametrize(
    ("registry", "reference"),
    [
        ("s3://bucket/a", "org/task@1.0.0"),
        (HUB, "org/task@1.0.1"),
        (HUB, "org/task@1.0.0-rc.1"),
        (HUB, "org/other@1.0.0"),
        (HUB, "other/task@1.0.0"),
    ],
)
def test_each_version_in_each_registry_is_a_push_of_its_own(journal, registry, reference):
    """What is under way to one place says nothing of another, and is not forgotten with it."""
    other = AdapterRef.parse(reference)
    journal.open(HUB, REFERENCE, manifest(1))
    opened = journal.open(registry, other, manifest(2, of=other))
    journal.close(registry, other)

    assert opened == manifest(2, of=other)
    assert journal.open(HUB, REFERENCE, manifest(3)) == manifest(1)


def test_what_is_done_is_forgotten(journal, tmp_path):
    """After its end a push leaves nothing; the next one begins anew."""
    journal.open(HUB, REFERENCE, manifest(1))
    journal.close(HUB, REFERENCE)

    assert files(tmp_path) == []
    assert journal.open(HUB, REFERENCE, manifest(2)) == manifest(2)


def test_what_never_began_can_be_closed(journal):
    """Closing twice, or what another process closed, is no error."""
    journal.close(HUB, REFERENCE)
    journal.open(HUB, REFERENCE, manifest(1))
    journal.close(HUB, REFERENCE)
    journal.close(HUB, REFERENCE)


def _without(key: str) -> bytes:
    return json.dumps({k: v for k, v in json.loads(manifest(1)).items() if k != key}).encode()


DAMAGES = [
    pytest.param(b"", id="empty"),
    pytest.param(b"{", id="torn"),
    pytest.param(b"\xff\xfe", id="no_text"),
    pytest.param(b"[]", id="no_object"),
    pytest.param(b"x" * (300 * 1024), id="too_large"),
    pytest.param(b"[" * 100_000, id="too_deep"),
    pytest.param(manifest(1).replace(b"2026-01-01T00:01:00Z", b"yesterday"), id="no_time"),
    pytest.param(_without("created"), id="without_time"),
    pytest.param(_without("files"), id="without_files"),
]


@pytest.mark.parametrize("content", DAMAGES)
def test_a_damaged_entry_is_replaced(journal, tmp_path, content):
    """What nobody could publish is never handed out: the manifest of this push takes its place."""
    journal.open(HUB, REFERENCE, manifest(1))
    (file,) = (tmp_path / "store" / "pushes").iterdir()
    file.write_bytes(content)
    opened = journal.open(HUB, REFERENCE, manifest(2))

    assert opened == manifest(2)
    assert Manifest.parse(opened).created == "2026-01-01T00:02:00Z"
    assert files(tmp_path) == [manifest(2)]


def test_a_file_in_the_place_of_the_directory_is_an_error_of_the_machine(journal, tmp_path):
    """A push that cannot be written down does not begin, and says what to do (11); root is no exception."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "pushes").write_bytes(b"")
    with pytest.raises(MachineError) as caught:
        journal.open(HUB, REFERENCE, manifest(1))

    assert caught.value.exit_code == 11
    assert caught.value.hint


def test_entries_have_names_that_fit_every_disk(journal, tmp_path):
    """The longest names and strange URLs make short file names, in this directory and in no other."""
    reference = AdapterRef.parse(f"{'o' * 39}/{'t' * 90}@{'1' * 9}.{'2' * 9}.{'3' * 9}")
    journal.open("s3://bucket/../../x" * 20, reference, manifest(1, of=reference))
    (entry,) = (tmp_path / "store" / "pushes").iterdir()

    assert len(entry.name) <= 64
    assert set(entry.stem) <= set("0123456789abcdef")


def test_processes_that_begin_at_once_each_get_a_whole_manifest(tmp_path):
    """Several processes that open one push at the same moment get whole manifests of it, and leave one file."""
    script = (
        "import sys; from pathlib import Path; from lora_hub.reference import AdapterRef;"
        "from lora_hub.registry.journal import Journal; sys.stdin.readline();"
        f"journal = Journal(Path({str(tmp_path / 'store' / 'pushes')!r}));"
        f"sys.stdout.buffer.write(journal.open('hf://', AdapterRef.parse('org/task@1.0.0'), sys.argv[1].encode()))"
    )
    pipe = subprocess.PIPE
    running = [
        subprocess.Popen([sys.executable, "-c", script, manifest(minute).decode()], stdin=pipe, stdout=pipe)
        for minute in range(4)
    ]
    said = [process.communicate(b"go\n")[0] for process in running]

    assert set(said) <= {manifest(minute) for minute in range(4)}
    assert len(files(tmp_path)) == 1
    assert files(tmp_path)[0] in said
