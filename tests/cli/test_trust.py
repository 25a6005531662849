"""`lora-hub trust`: what is pinned may be used, nothing else is, and the line that is shown pins what was shown."""

import json
import re
import shlex
import stat
import threading

import pytest
from adapter_files import adapter_files

from lora_hub import api, look
from lora_hub import trust as trusts
from lora_hub.errors import UntrustedError

PLAIN = "org/plain"
OTHER = f"sha256:{'0' * 64}"


@pytest.fixture
def plain(hub):
    """A repository that PEFT pushed."""
    return hub.create(PLAIN, adapter_files().files())


@pytest.fixture
def published(hub, tmp_path, monkeypatch, home) -> str:
    """The digest of org/task@1.0.0, which somebody else published on the Hub; the log is empty."""
    return publish(hub, monkeypatch, home, tmp_path / "task", "org/task@1.0.0")


def publish(hub, monkeypatch, home, directory, reference, *, seed=0) -> str:
    """Publish an adapter as somebody else, who has a home of their own, and return its digest."""
    with monkeypatch.context() as patch:
        patch.setenv("LORA_HUB_HOME", str(home.with_name("publisher")))
        digest = api.push(adapter_files(seed=seed).write(directory), reference).digest
    hub.clear()
    return digest


def pins() -> list[tuple[str, str]]:
    """What is pinned, and to what."""
    return [(str(pin.reference), pin.digest) for pin in trusts.trust().read().pins]


@pytest.mark.parametrize("at", ["", "@1.2.0", "@commit"])
def test_the_line_that_is_shown_pins_what_was_shown(cli, plain, at):
    """The refusal says who, what and which digest; the line in its hint, pasted as it is, makes the pull work."""
    if at == "@1.2.0":
        plain.tag("v1.2.0", plain.branches["main"])
    reference = PLAIN + at.replace("commit", plain.branches["main"])
    refused = cli("pull", reference, "--json")
    line = re.search(r"`lora-hub (trust pin [^`]*)`", refused.error["hint"])[1]
    pinned = cli(*shlex.split(line))
    pulled = cli("pull", reference, "--json")

    assert (refused.code, pinned.code, pulled.code) == (5, 0, 0)
    assert f"--digest {pulled.data[0]['digest']}" in line
    for told in (PLAIN, "org/base", pulled.data[0]["digest"]):
        assert told in refused.error["message"]


def test_the_line_stands_alone_for_people(cli, published):
    """Without --json, the refusal is two lines on stderr, and stdout is empty."""
    done = cli("pull", "org/task")
    error, hint = done.err.splitlines()

    assert (done.code, done.out) == (5, "")
    assert error.startswith("error: `org/task@1.0.0` in `hf://` is unsigned, and no rule covers its name")
    assert hint.startswith(f"hint: if you trust it, run `lora-hub trust pin org/task@1.0.0 --digest {published}`")


def test_the_error_in_python_carries_the_argument(published):
    """What the error in Python shows, pasted into the call, makes it work."""
    with pytest.raises(UntrustedError) as caught:
        api.pull("org/task")
    argument = re.search(r'`digest="([^"]*)"`', str(caught.value))[1]

    assert api.pull("org/task", digest=argument).digest == published
    assert pins() == []


def test_a_line_that_is_pasted_too_late_pins_nothing(cli, plain):
    """If the content changed since it was shown, pinning is refused (7), and both digests are named."""
    plain.tag("v1.0.0", plain.branches["main"])
    shown = look.info(f"{PLAIN}@1.0.0").digest
    plain.move_tag("v1.0.0", plain.commit(adapter_files(seed=1).files()).id)
    done = cli("trust", "pin", f"{PLAIN}@1.0.0", "--digest", shown, "--json")

    assert done.code == 7
    assert shown in done.error["message"]
    assert look.info(f"{PLAIN}@1.0.0").digest in done.error["message"]
    assert pins() == []


@pytest.mark.parametrize("at", ["", "@1.0.0", "@^1.0", "@commit", "@digest"])
def test_a_pin_names_commit_and_digest(cli, hub, published, at):
    """Every reference is pinned as the exact version or commit that it means now."""
    commit = hub.repo("org/task").tags["v1.0.0"]
    done = cli("trust", "pin", "org/task" + at.replace("commit", commit).replace("digest", published), "--json")

    assert done.code == 0
    assert done.data == [
        {
            "kind": "pin",
            "registry": "hf://",
            "name": "org/task",
            "digest": published,
            "version": None if at == "@commit" else "1.0.0",
            "commit": commit,
        }
    ]


@pytest.mark.parametrize("reference", ["org/task", PLAIN])
def test_pinning_moves_no_weights(cli, hub, published, plain, reference):
    """A pin costs headers and metadata only."""
    done = cli("trust", "pin", reference)

    assert done.code == 0
    assert hub.count("hub") <= 4
    assert hub.count("cdn") <= 1


def test_the_file_is_the_users_own(cli, published, home):
    """`trust.toml` may be read and written by its owner only, and says in TOML what is pinned."""
    cli("trust", "pin", "org/task")
    path = home / "trust.toml"

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert f'digest = "{published}"' in path.read_text()


@pytest.mark.parametrize("reference", ["org/task", "org/plain"])
def test_a_pin_without_a_version_is_of_what_is_there_now(
    cli, hub, published, plain, monkeypatch, home, tmp_path, reference
):
    """`trust pin REF` pins the newest there is, also where an older one is pinned already."""
    cli("trust", "pin", reference)
    if reference == PLAIN:
        plain.commit(adapter_files(seed=1).files())
        newest = look.info(f"{PLAIN}@{plain.branches['main']}").digest
    else:
        newest = publish(hub, monkeypatch, home, tmp_path / "next", "org/task@1.1.0", seed=1)
    done = cli("trust", "pin", reference, "--json")

    assert [pin["digest"] for pin in done.data] == [newest]
    assert len(pins()) == 2


def test_many_are_pinned_at_once(cli, hub, published, plain, tmp_path):
    """A file names a reference on each line; comments and empty lines are none."""
    (tmp_path / "refs").write_text(f"# ours\norg/task@1.0.0\n\n  {PLAIN}  # theirs\n")
    done = cli("trust", "pin", "-r", tmp_path / "refs", "--json")

    assert done.code == 0
    assert [pin["name"] for pin in done.data] == ["org/task", PLAIN]
    assert [name for name, _ in pins()] == ["org/task@1.0.0", f"{PLAIN}@{plain.branches['main']}"]


@pytest.mark.parametrize(("last", "code"), [("org/missing", 3), ("not a reference", 2), ("org/task@9.0.0", 3)])
def test_all_are_pinned_or_none(cli, published, tmp_path, home, last, code):
    """One reference that cannot be pinned leaves the policy as it was."""
    (tmp_path / "refs").write_text(f"org/task@1.0.0\n{last}\n")
    done = cli("trust", "pin", "-r", tmp_path / "refs")

    assert done.code == code
    assert pins() == []
    assert not (home / "trust.toml").exists()


def test_a_contradiction_among_many_pins_none(cli, plain, published, home, tmp_path):
    """A tag that moved since it was pinned is refused (7) with both digests, and nothing else is pinned beside it."""
    plain.tag("v1.0.0", plain.branches["main"])
    old = cli("trust", "pin", f"{PLAIN}@1.0.0", "--json").data[0]["digest"]
    before = (home / "trust.toml").read_bytes()
    plain.move_tag("v1.0.0", plain.commit(adapter_files(seed=1).files()).id)
    done = cli("trust", "pin", "org/task", f"{PLAIN}@1.0.0", "--json")

    assert done.code == 7
    assert old in done.error["message"]
    assert look.info(f"{PLAIN}@1.0.0").digest in done.error["message"]
    assert (home / "trust.toml").read_bytes() == before


def test_a_pin_again_changes_nothing(cli, published, home):
    """The same pin twice is one pin."""
    cli("trust", "pin", "org/task")
    before = (home / "trust.toml").read_bytes()

    assert cli("trust", "pin", "org/task@1.0.0").code == 0
    assert (home / "trust.toml").read_bytes() == before


def test_what_the_user_wrote_stays(cli, plain, published, home):
    """Comments and pins of others survive a pin and its removal."""
    cli("trust", "pin", "org/task")
    path = home / "trust.toml"
    path.write_text("# mine\n" + path.read_text())
    before = path.read_text()
    (pin,) = cli("trust", "pin", PLAIN, "--json").data
    between = path.read_text()
    cli("trust", "remove", f"{PLAIN}@{pin['commit']}")

    assert between.startswith(before)
    assert path.read_text().split() == before.split()


def test_pins_are_listed_and_removed(cli, published):
    """`list` shows what is pinned, also as JSON; what was removed is refused again (5), also from the store."""
    cli("trust", "pin", "org/task")
    cli("pull", "org/task")
    listed, as_json = cli("trust", "list"), cli("trust", "list", "--json")
    removed = cli("trust", "remove", "org/task@1.0.0", "--json")

    assert "org/task@1.0.0" in listed.out
    assert as_json.data == removed.data
    assert as_json.data[0]["digest"] == published
    assert cli("trust", "list", "--json").data == []
    assert cli("pull", "org/task@1.0.0").code == 5


def test_what_is_not_pinned_cannot_be_removed(cli, hub):
    """There is nothing to remove (3), and the hint says how to see what there is."""
    done = cli("trust", "remove", "org/task@1.0.0", "--json")

    assert done.code == 3
    assert "trust list" in done.error["hint"]


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["org/task", "org/other", "--digest", OTHER],
        ["not a reference"],
        ["-r", "missing"],
    ],
    ids=["nothing", "one digest for two", "no reference", "no file"],
)
def test_a_wrong_call_is_refused(cli, published, words):
    """A call that cannot be meant so is exit code 2, and nothing is pinned."""
    done = cli("trust", "pin", *words, "--json")

    assert done.code == 2
    assert done.error["hint"]
    assert pins() == []


def test_two_digests_contradict_each_other(cli, published):
    """A digest in the reference and another one beside it cannot both be meant (2)."""
    done = cli("trust", "pin", f"org/task@{published}", "--digest", OTHER, "--json")

    assert done.code == 2
    assert pins() == []


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_policy_that_others_may_write_is_not_read(cli, published, home, mode):
    """A policy that somebody else could have written trusts nobody (7), and the hint mends it."""
    cli("trust", "pin", "org/task")
    (home / "trust.toml").chmod(mode)
    done = cli("pull", "org/task", "--json")

    assert done.code == 7
    assert "chmod go-w" in done.error["hint"]


@pytest.mark.parametrize(
    "text",
    [
        "version = 2\n",
        "version = 1\nanyone = true\n",
        "version = 1\n[[pin]]\nname = 'org/task'\n",
        "[[pin]]\n",
        "no TOML",
        "version = 1\n[[pin]]\nregistry = 'hf://'\nname = 'org/task'\nversion = '1.0.0'\ndigest = 'sha256:0'\n",
    ],
)
@pytest.mark.parametrize("words", [["pull", "org/task"], ["trust", "pin", "org/task"], ["trust", "list"]], ids=" ".join)
def test_a_policy_that_is_not_understood_trusts_nobody(cli, published, home, words, text):
    """What cannot be enforced is refused (8) by every command, and left as it is."""
    home.mkdir()
    (home / "trust.toml").write_text(text)
    done = cli(*words)

    assert done.code == 8
    assert (home / "trust.toml").read_text() == text


def test_who_publishes_trusts_what_they_published(cli, hub, adapter):
    """A push pins what it published, by commit and digest."""
    pushed = cli("push", adapter, "org/task@1.0.0", "--json").data
    (pin,) = cli("trust", "list", "--json").data

    assert (pin["digest"], pin["commit"]) == (pushed["digest"], pushed["commit"])
    assert cli("pull", "org/task@1.0.0").code == 0


def test_of_two_who_pin_at_once_none_is_lost(hub):
    """Several processes may extend the policy at the same moment."""
    names = [f"org/plain-{number}" for number in range(8)]
    for seed, name in enumerate(names):
        hub.create(name, adapter_files(seed=seed).files())
    threads = [threading.Thread(target=trusts.pin, args=([name],)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(name.partition("@")[0] for name, _ in pins()) == names


def test_a_pin_in_a_process_of_its_own(process, hub, published):
    """From the shell: refused, pinned by the line that was shown, pulled."""
    refused = process("pull", "org/task")
    line = re.search(r"`lora-hub (trust pin [^`]*)`", refused.err)[1]
    pinned, pulled = process(*shlex.split(line)), process("pull", "org/task", "--json")

    assert (refused.code, pinned.code, pulled.code) == (5, 0, 0), pulled.err
    assert json.loads(pulled.out)[0]["digest"] == published
