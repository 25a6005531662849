"""What a registry, a lock file or a policy may not change behind the user's back."""

import pytest
from adapter_files import adapter_files

from lora_hub import api, look
from lora_hub import trust as trusts
from lora_hub.documents.manifest import MANIFEST_NAME
from lora_hub.errors import LoraHubError, PolicyError, UsageError
from lora_hub.registry.locate import open_registry


@pytest.fixture
def rewritten(directory_registry, tmp_path, push):
    """The path of a registry in which org/task@1.0.0 was pulled, and is another one now."""
    push(directory_registry, "org/task@1.0.0", seed=1)
    api.pull("org/task@1.0.0", registry=tmp_path / "registry")
    push(directory_registry, "org/task@1.0.1", seed=2)
    old, new = (tmp_path / "registry" / "org" / "task" / version for version in ("1.0.0", "1.0.1"))
    for file in new.iterdir():
        content = file.read_bytes()
        if file.name == MANIFEST_NAME:
            content = content.replace(b'"1.0.1"', b'"1.0.0"')
        (old / file.name).write_bytes(content)
    return tmp_path / "registry"


def test_a_rewritten_version_is_not_locked(rewritten, tmp_path):
    """What was pulled before is not locked as something else (7), and no lock file is written."""
    with pytest.raises(PolicyError, match=r"was sha256:.* and is now sha256:"):
        api.lock(["org/task@1.0.0"], lock=tmp_path / "x.lock", registry=rewritten)

    assert not (tmp_path / "x.lock").exists()


def test_a_rewritten_version_is_not_pinned(rewritten):
    """Nor is it pinned, unless its digest is named."""
    with pytest.raises(PolicyError, match=r"was sha256:.* and is now sha256:"):
        trusts.pin(["org/task@1.0.0"], registry=rewritten)
    (pin,) = trusts.pin(["org/task@1.0.0"], registry=rewritten, digest=_digest_now(rewritten))

    assert trusts.trust().read().pins == (pin,)


def _digest_now(root) -> str:
    from lora_hub.documents.verified_adapter import manifest_digest

    return manifest_digest((root / "org" / "task" / "1.0.0" / MANIFEST_NAME).read_bytes())


def test_a_hidden_version_leads_nobody_back(hub, hub_registry, push, pull):
    """If the newest pinned version is gone, an older one does not take its place in silence (7)."""
    push(hub_registry, "org/task@1.0.0", seed=1)
    newest = push(hub_registry, "org/task@1.1.0", seed=2).digest
    hub.repo("org/task").delete_tag("v1.1.0")

    with pytest.raises(PolicyError, match=newest):
        pull(hub_registry, "org/task")
    assert str(pull(hub_registry, "org/task@1.0.0").reference) == "org/task@1.0.0"


def test_a_lock_file_does_not_overrule_a_pin(hub, hub_registry, push, tmp_path):
    """Who pinned a version is not given another one by a lock file (7); both digests are named."""
    pinned = push(hub_registry, "org/task@1.0.0", seed=1).digest
    lock = tmp_path / "x.lock"
    api.lock(["org/task@1.0.0"], lock=lock)
    lock.write_bytes(lock.read_bytes().replace(pinned.encode(), f"sha256:{'0' * 64}".encode()))

    with pytest.raises(PolicyError, match="you pinned") as caught:
        list(api.pull_locked(lock=lock))
    assert pinned in caught.value.message


@pytest.mark.parametrize("text", ["version = 1\npin = []\n", "version = 1\nrule = 3\n", "version ="])
def test_a_policy_that_cannot_be_extended_stops_a_push(hub, home, tmp_path, text):
    """What would fail after the publication fails before it: nothing is published, and the policy stays as it is."""
    home.mkdir(exist_ok=True)
    (home / "trust.toml").write_text(text)
    (home / "trust.toml").chmod(0o600)
    with pytest.raises(LoraHubError) as caught:
        api.push(adapter_files().write(tmp_path / "adapter"), "org/task@1.0.0")

    assert caught.value.exit_code in {7, 8}
    assert hub.requests == []
    assert (home / "trust.toml").read_text() == text


@pytest.mark.parametrize("url", ["HF://org", "simplecache::hf://org/task", "hf://org", "zip://x::HF://org"])
def test_there_is_one_way_to_the_hub(url):
    """The file system that fsspec has for the Hub knows no pins and no limits, and is not used."""
    with pytest.raises(UsageError, match="names no registry"):
        open_registry(url)


def test_a_long_wish_is_cut_short(hub, hub_registry, push, monkeypatch):
    """Whoever asks to be left alone for a day is not obeyed, by the client's own waits either."""
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    hub.fault("/preupload/", status=429, headers={"Retry-After": "86400"})
    push(hub_registry, "org/task@1.0.0")

    assert waits
    assert max(waits) <= 61


def test_a_newer_version_that_is_not_pinned_is_named(hub, hub_registry, push, caplog, tmp_path):
    """An older pinned version is used, and the log says that there is a newer one; so does `lock`."""
    push(hub_registry, "org/task@1.0.0", seed=1)
    push(hub_registry, "org/task@1.1.0", seed=2)
    trusts.untrust("org/task@1.1.0")
    adapter = api.load("org/task")
    locked = api.lock(["org/task"], lock=tmp_path / "x.lock")

    assert str(adapter.manifest.reference) == "org/task@1.0.0"
    assert "org/task@1.1.0 is newer" in caplog.text
    assert [str(choice.skipped) for choice in locked.choices] == ["org/task@1.1.0"]
    assert look.info("org/task@1.0.0").is_trusted
