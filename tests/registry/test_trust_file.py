"""The trust policy on this machine: what its owner wrote stays, nobody else writes it, and it decides."""

import dataclasses
import datetime as dt
import os
import shlex
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from adapter_files import adapter_files
from filelock import FileLock

from lora_hub import locked as module
from lora_hub.documents import authorization
from lora_hub.documents.authorization import Claim, Decision
from lora_hub.documents.fields import sha256
from lora_hub.documents.manifest import publish
from lora_hub.documents.trust_entries import Pin
from lora_hub.documents.trust_policy import MAX_POLICY, NOBODY, TrustPolicy
from lora_hub.documents.verified_adapter import verify
from lora_hub.errors import DocumentError, LoraHubError, MachineError, NotFoundError, PolicyError, UntrustedError
from lora_hub.reference import AdapterRef
from lora_hub.registry.published import Published
from lora_hub.registry.registry import Snapshot
from lora_hub.registry.trust_file import TrustFile, default_trust
from lora_hub.trust import pin_of

DIGEST, OTHER = f"sha256:{'3c' * 32}", f"sha256:{'7e' * 32}"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFERENCE = AdapterRef.parse("org/task@1.2.0")
COMMENTED = """\
# Whom I trust, and why.
version   =   1   # the only one there is

# by hand, in my own style:
[[pin]]
name     = 'org/by-hand'
registry = 'hf://'
version  = '1.0.0'
digest   = 'sha256:{}'  # checked by me


# the end
""".format("00" * 32)


def a_pin(version: str | None = "1.2.0", **changes) -> Pin:
    """Return the pin of a version, or else of `COMMIT`; each version has a commit of its own."""
    commit = COMMIT if version in {None, "1.2.0"} else sha256(version.encode())[:40]
    values = {"registry": "hf://", "name": "org/task", "version": version, "commit": commit, "digest": DIGEST}
    return Pin(**(values | changes))


@pytest.fixture
def written(trust):
    """Write the policy as its owner does, with an editor."""

    def written(text: str | bytes) -> None:
        trust.path.parent.mkdir(parents=True, exist_ok=True)
        trust.path.write_bytes(text.encode() if isinstance(text, str) else text)
        trust.path.chmod(0o600)

    return written


# Adding


def test_without_a_file_nobody_is_trusted(trust):
    """No file is the policy that trusts nobody, and reading makes none."""
    assert trust.read() == NOBODY
    assert not trust.path.exists()


def test_the_policy_of_this_user_lies_in_the_home(home):
    """The default policy is the one that the command line uses."""
    assert default_trust().path == home / "trust.toml"


def test_what_is_added_is_read(trust):
    """Pins that were added are there, in their order, also after others."""
    pins = [a_pin(), a_pin("1.3.0"), a_pin(None, commit=COMMIT[::-1], digest=OTHER)]
    trust.add(pins[:2])
    trust.add(pins[2:])

    assert trust.read().pins == tuple(pins)


def test_what_the_user_wrote_stays(trust, written):
    """Adding leaves comments, order and formatting of the file as they are: it grows at its end."""
    written(COMMENTED)
    trust.add([a_pin()])
    text = trust.path.read_text()

    assert text == f"{COMMENTED}\n{a_pin().to_toml()}"
    assert trust.read().pin("hf://", REFERENCE) == a_pin()


@pytest.mark.parametrize("text", ["# nobody yet\n", "\n\n", " "], ids=["comment", "blank_lines", "space"])
def test_a_file_without_pins_can_be_added_to(trust, written, text):
    """A file in which nothing but comments stands trusts nobody, and a pin can be added to it."""
    written(text)
    trust.add([a_pin()])

    assert trust.read().pins == (a_pin(),)
    assert text.strip() in trust.path.read_text()


@pytest.mark.parametrize("ending", ["", "\n", "\n\n\n", " # no line end"], ids=repr)
def test_a_file_may_end_as_it_likes(trust, written, ending):
    """Whatever the file ends in, the new pin is a table of its own."""
    written(f"version = 1{ending}")
    trust.add([a_pin()])

    assert trust.read().pins == (a_pin(),)


def test_lines_may_end_in_crlf(trust, written):
    """A file from another system stays what it was, and its pins are found."""
    written(COMMENTED.replace("\n", "\r\n"))
    trust.add([a_pin()])

    assert trust.path.read_bytes().startswith(COMMENTED.replace("\n", "\r\n").rstrip().encode())
    assert len(trust.read().pins) == 2


def test_a_pin_that_is_there_is_not_added_again(trust):
    """Pinning the same twice changes nothing."""
    trust.add([a_pin()])
    before = trust.path.read_bytes()
    trust.add([a_pin(), a_pin()])

    assert trust.path.read_bytes() == before


@pytest.mark.parametrize("url", ['s3://b/"q"', r"s3://b/a\u0041", "s3://b/ü", "s3://b/\n[[pin]]", "s3://b/\N{LLAMA}"])
def test_a_hostile_registry_can_be_pinned_and_removed(trust, url):
    """Whatever stands in the URL of a registry, its pin can be added, found and removed."""
    pin = a_pin(registry=url)
    trust.add([a_pin(), pin])
    found = trust.read().pin(url, REFERENCE)
    trust.remove(url, REFERENCE)

    assert found == pin
    assert trust.read().pins == (a_pin(),)


# All or nothing


def test_a_contradicting_pin_is_refused(trust):
    """A version that is pinned already cannot become another one: exit code 7, and both digests."""
    trust.add([a_pin()])
    with pytest.raises(PolicyError) as caught:
        trust.add([a_pin(digest=OTHER)])

    assert caught.value.exit_code == 7
    assert DIGEST in caught.value.message
    assert OTHER in caught.value.message
    assert "`org/task@1.2.0` in `hf://`" in caught.value.message
    assert "lora-hub trust remove org/task@1.2.0" in caught.value.hint


def test_all_pins_are_added_or_none(trust):
    """One contradicting pin among several: none is added."""
    trust.add([a_pin()])
    before = trust.path.read_bytes()
    with pytest.raises(PolicyError):
        trust.add([a_pin("1.3.0"), a_pin(digest=OTHER), a_pin("1.4.0")])

    assert trust.path.read_bytes() == before


def test_pins_that_contradict_each_other_are_refused(trust):
    """Two new pins of one version with two digests: none is added."""
    with pytest.raises(PolicyError):
        trust.add([a_pin(), a_pin(digest=OTHER)])

    assert trust.read() == NOBODY


def test_a_pin_can_be_replaced(trust):
    """Who says so replaces a pin; the old digest is trusted no more, other pins stay."""
    trust.add([a_pin("1.0.0"), a_pin(), a_pin("1.3.0")])
    trust.add([a_pin(digest=OTHER)], replace=True)

    assert trust.read().pins == (a_pin("1.0.0"), a_pin("1.3.0"), a_pin(digest=OTHER))
    assert DIGEST not in trust.path.read_text().partition(OTHER)[2]


def test_a_pin_that_was_written_by_hand_is_not_replaced(trust, written):
    """What a program did not write it does not change: the error says so, and nothing is changed."""
    written(COMMENTED)
    with pytest.raises(PolicyError, match="by hand"):
        trust.add([a_pin("1.0.0", name="org/by-hand", commit=None)], replace=True)

    assert trust.path.read_text() == COMMENTED


def test_a_policy_does_not_grow_beyond_what_is_read(trust, written):
    """A pin that would make the file larger than what is ever read again is not added."""
    text = "version = 1\n".ljust(MAX_POLICY - 10, "#")
    written(text)
    with pytest.raises(PolicyError, match=f"at most {MAX_POLICY}"):
        trust.add([a_pin()])

    assert trust.path.read_text() == text


def test_a_file_that_is_too_large_is_refused(trust, written):
    """More than a policy may have is refused before it is read."""
    written(b"#" * (MAX_POLICY + 1))

    with pytest.raises(LoraHubError, match=f"at most {MAX_POLICY}"):
        trust.read()


BROKEN = {
    "no_toml": b"version = ",
    "no_text": b"version = 1 # \xff\n",
    "unknown_key": b"version = 1\ntrust = true\n",
    "newer": b"version = 2\n",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.parametrize("verb", ["read", "add", "remove"])
def test_a_broken_policy_stops_everything(trust, written, content, verb):
    """What is not understood is neither enforced nor rewritten: every use has exit code 8, and the file stays."""
    written(content)
    calls = {
        "read": trust.read,
        "add": lambda: trust.add([a_pin()]),
        "remove": lambda: trust.remove("hf://", REFERENCE),
    }
    with pytest.raises(DocumentError) as caught:
        calls[verb]()

    assert caught.value.exit_code == 8
    assert trust.path.read_bytes() == content


def test_a_full_disk_changes_nothing(trust, monkeypatch):
    """When the new policy cannot be written, the old one is still there: exit code 11."""
    trust.add([a_pin()])
    before = trust.path.read_bytes()

    def refuse(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(MachineError, match="no space left"):
        trust.add([a_pin("1.3.0")])

    assert trust.path.read_bytes() == before


# Removing


def test_a_pin_is_removed_by_its_version(trust):
    """The pin of a version is removed and returned; others stay."""
    trust.add([a_pin("1.0.0"), a_pin(), a_pin("1.3.0")])

    assert trust.remove("hf://", REFERENCE) == a_pin()
    assert trust.read().pins == (a_pin("1.0.0"), a_pin("1.3.0"))


def test_a_pin_is_removed_by_its_commit(trust):
    """The pin of a commit is removed under the name that `trust list` shows."""
    pin = a_pin(None)
    trust.add([pin])

    assert trust.remove("hf://", pin.reference) == pin
    assert trust.read() == NOBODY


def test_adding_and_removing_leaves_what_the_user_wrote(trust, written):
    """After a pin came and went, the file says what it said, to the letter, but for empty lines at its end."""
    written(COMMENTED)
    trust.add([a_pin()])
    trust.remove("hf://", REFERENCE)

    assert trust.path.read_text().rstrip() == COMMENTED.rstrip()


def test_comments_around_a_pin_stay(trust):
    """What the user noted above and below a pin of ours stays when the pin goes."""
    trust.add([a_pin(), a_pin("1.3.0")])
    above = trust.path.read_text().replace(a_pin().to_toml(), f"# above\n{a_pin().to_toml()}# below\n")
    trust.path.write_text(above)
    trust.remove("hf://", REFERENCE)

    assert "# above\n# below\n" in trust.path.read_text()
    assert trust.read().pins == (a_pin("1.3.0"),)


def test_a_pin_that_was_written_by_hand_is_not_removed(trust, written):
    """What a program did not write it does not remove: exit code 7, the file's path, and what to do."""
    written(COMMENTED)
    with pytest.raises(PolicyError) as caught:
        trust.remove("hf://", AdapterRef.parse("org/by-hand@1.0.0"))

    assert caught.value.exit_code == 7
    assert f"the pin of `org/by-hand@1.0.0` in `{trust.path}` was written by hand" in caught.value.message
    assert "by hand" in caught.value.hint
    assert trust.path.read_text() == COMMENTED


def test_a_pin_that_is_there_by_hand_as_well_is_not_called_removed(trust):
    """Where the user wrote the same pin once more, removing ours leaves it trusted, and so must not succeed."""
    trust.add([a_pin()])
    twice = trust.path.read_text() + f"\n[[pin]]\nname='org/task'\nregistry='hf://'\nversion='1.2.0'\ndigest='{DIGEST}'"
    trust.path.write_text(twice)
    try:
        trust.remove("hf://", REFERENCE)
    except PolicyError:
        return

    assert trust.read().pin("hf://", REFERENCE) is None


@pytest.mark.parametrize(
    ("url", "reference"),
    [
        ("hf://", "org/task@1.2.1"),
        ("hf://", "org/other@1.2.0"),
        ("s3://bucket", "org/task@1.2.0"),
        ("hf://", "org/task"),
        ("hf://", "org/task@^1.2"),
        ("hf://", f"org/task@{DIGEST}"),
    ],
)
def test_what_is_not_pinned_cannot_be_removed(trust, url, reference):
    """Only an exact version or commit in its registry is pinned; anything else has exit code 3, and changes nothing."""
    trust.add([a_pin()])
    with pytest.raises(NotFoundError) as caught:
        trust.remove(url, AdapterRef.parse(reference))

    assert "is not pinned" in caught.value.message
    assert "lora-hub trust list" in caught.value.hint
    assert trust.read().pins == (a_pin(),)


def test_nothing_can_be_removed_from_no_file(trust):
    """Without a policy nothing is pinned, and none is made."""
    with pytest.raises(NotFoundError):
        trust.remove("hf://", REFERENCE)

    assert not trust.path.exists()


# Whose file it is


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_may_read_or_write_it(trust, umask):
    """The file is the user's own, whatever the umask."""
    before = os.umask(umask)
    try:
        trust.add([a_pin()])
    finally:
        os.umask(before)

    assert stat.S_IMODE(trust.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o622, 0o666, 0o777])
@pytest.mark.parametrize("verb", ["read", "add", "remove"])
def test_a_file_that_others_may_write_is_refused(trust, mode, verb):
    """Nobody else may say whom this user trusts: exit code 7, and the command that mends it."""
    trust.add([a_pin()])
    trust.path.chmod(mode)
    before = trust.path.read_bytes()
    calls = {
        "read": trust.read,
        "add": lambda: trust.add([a_pin("1.3.0")]),
        "remove": lambda: trust.remove("hf://", REFERENCE),
    }
    with pytest.raises(PolicyError) as caught:
        calls[verb]()

    assert caught.value.exit_code == 7
    assert f"`{trust.path}` may be written by others" in caught.value.message
    assert "chmod go-w" in caught.value.hint
    assert trust.path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o444, 0o400])
def test_a_file_that_others_may_read_is_fine(trust, mode):
    """Whom somebody trusts is no secret."""
    trust.add([a_pin()])
    trust.path.chmod(mode)

    assert trust.read().pins == (a_pin(),)


def test_a_file_of_somebody_else_is_refused(trust, monkeypatch):
    """A file of another user, who is not root either, is refused whatever its mode."""
    trust.add([a_pin()])
    if os.geteuid() == 0:
        os.chown(trust.path, 12345, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: trust.path.stat().st_uid + 1)

    with pytest.raises(PolicyError, match="belongs to another user"):
        trust.read()


def test_a_directory_in_its_place_is_refused(trust):
    """What is no file is no policy; it does not read as one that trusts nobody."""
    trust.path.mkdir(parents=True)

    with pytest.raises(LoraHubError):
        trust.read()


# Many at once


def test_many_threads_lose_no_pin(trust):
    """Threads that add different pins at the same time all find theirs there afterwards."""
    barrier, failed = threading.Barrier(8), []

    def add(number: int) -> None:
        barrier.wait()
        try:
            for patch in range(3):
                TrustFile(trust.path).add([a_pin(f"{number}.0.{patch}")])
        except Exception as error:  # noqa: BLE001 - asserted below
            failed.append(error)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert {pin.version for pin in trust.read().pins} == {f"{n}.0.{patch}" for n in range(8) for patch in range(3)}


ADDING = """
import sys
from pathlib import Path
from lora_hub.documents.trust_entries import Pin
from lora_hub.registry.trust_file import TrustFile
for patch in range(5):
    TrustFile(Path(sys.argv[1])).add(
        [Pin(registry="hf://", name="org/task", version=f"{sys.argv[2]}.0.{patch}", digest="sha256:" + "a" * 64)]
    )
"""


def test_many_processes_lose_no_pin(trust):
    """Processes that add different pins at the same time all find theirs there afterwards."""
    commands = [[sys.executable, "-c", ADDING, str(trust.path), str(number)] for number in range(8)]
    processes = [subprocess.Popen(command) for command in commands]
    codes = [process.wait(60) for process in processes]

    assert codes == [0] * 8
    assert len(trust.read().pins) == 40


def test_readers_never_see_a_half(trust):
    """While pins are added, whoever reads gets a policy that was whole at some moment; it only ever grows."""
    trust.add([a_pin("0.0.0")])
    sizes, is_over = [], threading.Event()

    def read() -> None:
        while not is_over.is_set():
            sizes.append(len(trust.read().pins))

    thread = threading.Thread(target=read)
    thread.start()
    for patch in range(1, 20):
        trust.add([a_pin(f"0.0.{patch}")])
    is_over.set()
    thread.join()

    assert sizes == sorted(sizes)


@pytest.mark.parametrize("verb", ["add", "remove"])
def test_a_lock_that_is_held_is_not_waited_for_for_ever(trust, monkeypatch, verb):
    """While another process holds the lock, patience ends with exit code 11, and nothing is changed."""
    trust.add([a_pin()])
    before = trust.path.read_bytes()
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    calls = {"add": lambda: trust.add([a_pin("1.3.0")]), "remove": lambda: trust.remove("hf://", REFERENCE)}
    with FileLock(trust.path.with_name(".trust.toml.lock")), pytest.raises(MachineError) as caught:
        calls[verb]()

    assert caught.value.exit_code == 11
    assert "another process holds" in caught.value.message
    assert trust.path.read_bytes() == before


def test_reading_waits_for_nobody(trust):
    """Reading needs no lock."""
    trust.add([a_pin()])

    with FileLock(trust.path.with_name(".trust.toml.lock")):
        assert trust.read().pins == (a_pin(),)


def test_the_lock_is_free_after_a_refusal(trust, monkeypatch):
    """A pin that is refused does not keep the next one waiting."""
    trust.add([a_pin()])
    monkeypatch.setattr(module, "_PATIENCE", 0.05)
    with pytest.raises(PolicyError):
        trust.add([a_pin(digest=OTHER)])
    trust.add([a_pin("1.3.0")])

    assert len(trust.read().pins) == 2


# Whether something may be used


@dataclasses.dataclass(frozen=True)
class Place:
    """A registry of which only the name matters here."""

    url: str = "hf://"
    is_remote: bool = True


REMOTE, LOCAL = Place(), Place(url="file:///srv/adapters", is_remote=False)


def published(
    base: str | None = "org/base", reference: AdapterRef = REFERENCE, commit: str | None = COMMIT
) -> Published:
    """Return what a registry has under *reference*."""
    draft = verify(adapter_files().files(), source="here").manifest
    draft = dataclasses.replace(draft, base=dataclasses.replace(draft.base, repo=base))
    content = publish(draft.to_bytes(), reference=REFERENCE, created="2026-01-31T12:00:00Z")
    snapshot = Snapshot(commit=commit, files={}, read=lambda *_: iter(()))
    return Published(reference=reference, snapshot=snapshot, manifest=content, source="here")


def decide(policy: TrustPolicy, place: Place, it: Published, digest: str | None) -> Decision:
    """Return what is decided of something unsigned."""
    claim = Claim(
        registry=place.url,
        is_remote=place.is_remote,
        reference=it.reference,
        digest=it.digest,
        manifest=it.document,
        named=digest,
    )
    return authorization.authorize(policy, claim, dt.datetime(2026, 11, 24, tzinfo=dt.UTC))


def authorize(policy: TrustPolicy, place: Place, it: Published, *, digest: str | None) -> None:
    decide(policy, place, it, digest).require()


def is_trusted(policy: TrustPolicy, place: Place, it: Published, *, digest: str | None) -> bool:
    return decide(policy, place, it, digest).refusal is None


def policy(**pin) -> TrustPolicy:
    return TrustPolicy(pins=(a_pin(**pin),))


IT = published()


@pytest.mark.parametrize("place", [REMOTE, LOCAL], ids=["remote", "local"])
@pytest.mark.parametrize("known", [NOBODY, policy(digest=OTHER), policy(digest=IT.digest)], ids=["", "other", "pinned"])
def test_a_digest_that_is_named_is_trust_enough(place, known):
    """Who names the digest of what is there may use it, whatever is pinned, from wherever it comes."""
    authorize(known, place, IT, digest=IT.digest)

    assert is_trusted(known, place, IT, digest=IT.digest)


@pytest.mark.parametrize("place", [REMOTE, LOCAL], ids=["remote", "local"])
@pytest.mark.parametrize("known", [NOBODY, policy(digest=IT.digest)], ids=["unpinned", "pinned"])
def test_another_digest_than_the_named_one_is_refused(place, known):
    """Who names a digest gets that or nothing, also where what is there is pinned: exit code 7, both digests."""
    with pytest.raises(PolicyError) as caught:
        authorize(known, place, IT, digest=OTHER)

    assert caught.value.exit_code == 7
    assert OTHER in caught.value.message
    assert IT.digest in caught.value.message
    assert f"`org/task@1.2.0` in `{place.url}`" in caught.value.message
    assert not is_trusted(known, place, IT, digest=OTHER)


@pytest.mark.parametrize("place", [REMOTE, LOCAL], ids=["remote", "local"])
def test_what_is_pinned_may_be_used(place):
    """A pin of this version with this digest in this registry is trust enough."""
    known = policy(registry=place.url, digest=IT.digest)
    authorize(known, place, IT, digest=None)

    assert is_trusted(known, place, IT, digest=None)


@pytest.mark.parametrize("place", [REMOTE, LOCAL], ids=["remote", "local"])
def test_another_digest_than_the_pinned_one_is_refused(place):
    """A version that was rewritten after it was pinned is refused, from a directory as well: exit code 7."""
    known = policy(registry=place.url)
    with pytest.raises(PolicyError) as caught:
        authorize(known, place, IT, digest=None)

    assert f"was pinned as {DIGEST} and is now {IT.digest}" in caught.value.message
    assert not is_trusted(known, place, IT, digest=None)


@pytest.mark.parametrize(
    "known", [NOBODY, policy(registry="s3://b"), policy(name="org/other"), policy(version="1.2.1", commit=None)]
)
def test_what_is_not_pinned_is_not_trusted(known):
    """From a registry that others may write into, nothing unpinned is used: exit code 5, and what it is."""
    with pytest.raises(UntrustedError) as caught:
        authorize(known, REMOTE, IT, digest=None)

    assert caught.value.exit_code == 5
    assert 'a LoRA adapter of `"org/base"`, r 2, 112 parameters' in caught.value.message
    assert IT.digest in caught.value.message
    assert not is_trusted(known, REMOTE, IT, digest=None)


def test_what_is_not_pinned_here_is_trusted():
    """In a directory of this machine, nothing needs a pin."""
    authorize(NOBODY, LOCAL, IT, digest=None)

    assert is_trusted(NOBODY, LOCAL, IT, digest=None)


def pasted(place: Place) -> str:
    """Return the command that the refusal tells the user to paste."""
    with pytest.raises(UntrustedError) as caught:
        authorize(NOBODY, place, IT, digest=None)
    return caught.value.hint.split("`")[1]


PASTED = ["lora-hub", "trust", "pin", "org/task@1.2.0", "--digest", IT.digest]


def test_the_line_to_paste_pins_exactly_what_was_shown():
    """The hint is the one command that pins this version with this digest; the Hub need not be named."""
    assert pasted(REMOTE) == shlex.join(PASTED)


def test_the_line_to_paste_names_the_registry():
    """For any other registry than the Hub, the command says which."""
    assert pasted(Place(url="s3://bucket/prefix")) == shlex.join([*PASTED, "--registry", "s3://bucket/prefix"])


@pytest.mark.parametrize(
    "url", ["s3://b/two words", "s3://b/$(id)", "s3://b/;id", "s3://b/'", "s3://b/&id", "s3://b/*"]
)
def test_the_line_to_paste_is_one_command(url):
    """Whatever the URL of the registry, which may come from a lock file, a shell takes it for one word."""
    assert pasted(Place(url=url)) == shlex.join([*PASTED, "--registry", url])


def test_the_hint_has_the_digest_for_python():
    """Who calls from Python gets the argument to pass."""
    with pytest.raises(UntrustedError) as caught:
        authorize(NOBODY, REMOTE, IT, digest=None)

    assert f'digest="{IT.digest}"' in caught.value.hint


HOSTILE = [
    "\x1b[2Jorg/base",
    "org/\u202ebase",
    "org/base\nerror: all is well",
    "org/b\x00\x7f\x9b",
    "\u2066org/base",
    "x" * 9999,
]


@pytest.mark.parametrize("base", HOSTILE, ids=["escape", "override", "new_line", "control", "isolate", "long"])
def test_a_foreign_name_does_not_move_the_cursor(base):
    """The base model is named by a stranger: what a terminal would act on is escaped, and what is long is cut."""
    with pytest.raises(UntrustedError) as caught:
        authorize(NOBODY, REMOTE, published(base), digest=None)

    assert caught.value.message.isprintable()
    assert caught.value.hint.isprintable()
    assert len(caught.value.message) < 1000


def test_a_base_that_is_not_named_is_called_so():
    """An adapter that does not say what it was trained on is described without that."""
    with pytest.raises(UntrustedError, match="an unnamed base"):
        authorize(NOBODY, REMOTE, published(None), digest=None)


@pytest.mark.parametrize(
    ("reference", "commit", "version"),
    [
        (REFERENCE, COMMIT, "1.2.0"),
        (REFERENCE, None, "1.2.0"),
        (AdapterRef.parse(f"org/task@{COMMIT}"), COMMIT, None),
    ],
)
def test_what_is_pinned_is_what_was_found(reference, commit, version):
    """The pin of what a registry has makes it trusted, there and nowhere else."""
    it = published(reference=reference, commit=commit)
    pin = pin_of(REMOTE, it)

    assert pin == a_pin(version, commit=commit, digest=it.digest)
    assert is_trusted(TrustPolicy(pins=(pin,)), REMOTE, it, digest=None)
    assert not is_trusted(TrustPolicy(pins=(pin,)), Place(url="s3://bucket"), it, digest=None)


VALID = sorted((Path(__file__).parents[1] / "vectors" / "v1" / "trust" / "valid").glob("*.toml"))


@pytest.mark.parametrize("vector", VALID, ids=lambda path: path.stem)
def test_every_valid_policy_is_extended_or_left_alone(trust, written, vector):
    """A policy that can be read can be extended, or the error says how to write it (7) and the file stays as it is."""
    text = vector.read_text()
    written(text)
    pin = Pin(registry="hf://", name="some/other", version="9.9.9", digest=f"sha256:{'9' * 64}")
    if "pin = [" in text:
        with pytest.raises(PolicyError) as caught:
            trust.add([pin])
        assert "[[pin]]" in caught.value.hint
        assert trust.path.read_text() == text
        return
    trust.add([pin])

    assert pin in trust.read().pins
