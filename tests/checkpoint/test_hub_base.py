"""A base model on the Hub: a plan moves headers only; a merge moves the shards one by one."""

import pytest
from adapter_files import adapter_files
from bases import base_files, content

import lora_hub
from lora_hub import merging
from lora_hub.errors import CompatibilityError, IntegrityError, NotFoundError
from lora_hub.registry import network
from lora_hub.registry.network import Retry

SHARD = "model-00002.safetensors"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch, tmp_path):
    """What may pass is tried again at once; the client's cache lies in the directory of the test."""
    monkeypatch.setattr(network, "RETRY", Retry(tries=2, first=0.001, longest=0.002))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))


@pytest.fixture
def published(hub) -> str:
    """A base of three shards on the Hub, tagged v1; its name is that which the adapter says."""
    hub.create("org/base", base_files().files(), tags=["v1"])
    return "org/base"


@pytest.mark.parametrize("revision", ["", "@main", "@v1", "@commit"])
def test_a_base_on_the_hub_is_merged_as_one_on_disk(hub, published, base, adapter, merge, tmp_path, revision):
    """The same weights, and the commit in the provenance."""
    commit = hub.repo(published).at("main").id
    name = published + revision.replace("commit", commit)
    lora_hub.merge_checkpoint(name, {adapter: 1.0}, tmp_path / "from the hub")
    local, remote = content(merge(base, adapter)), content(tmp_path / "from the hub")

    assert {name for name in local if local[name] != remote.get(name)} == {"lora_hub.merge.json"}
    assert local.keys() == remote.keys()
    assert commit in remote["lora_hub.merge.json"].decode()
    assert (tmp_path / "hub-cache").exists()


def test_a_plan_downloads_no_weights(hub, adapter, tmp_path):
    """Headers are read by range requests, whatever the shards' sizes are."""
    files = base_files().files()
    hub.create("org/base", files)
    hub.clear()
    planned = merging.plan_checkpoint("org/base", {adapter: 1.0}, tmp_path / "out")

    assert len(planned.shards) == 3
    assert planned.commit == hub.repo("org/base").at("main").id
    assert not (tmp_path / "hub-cache").exists()


def test_a_base_of_another_repository_needs_a_word(hub, adapter, tmp_path):
    """The adapter names its base; a sibling of it may be meant, if one says so."""
    hub.create("org/sibling", base_files().files())
    with pytest.raises(CompatibilityError, match=r"org/base.*org/sibling"):
        lora_hub.merge_checkpoint("org/sibling", {adapter: 1.0}, tmp_path / "out")

    assert lora_hub.merge_checkpoint("org/sibling", {adapter: 1.0}, tmp_path / "out", allow_other_base=True).modules


@pytest.mark.parametrize("name", ["org/nothing", "org/base@v9"])
def test_what_is_not_there(published, adapter, tmp_path, name):
    """No such repository, no such revision."""
    with pytest.raises(NotFoundError):
        lora_hub.merge_checkpoint(name, {adapter: 1.0}, tmp_path / "out")


def test_a_directory_that_looks_like_a_repository(published, base, adapter, tmp_path, monkeypatch):
    """Where there is no such repository, the hint says how a directory is named."""
    monkeypatch.chdir(tmp_path)
    base.rename(tmp_path / "llama")

    with pytest.raises(NotFoundError, match=r"write `\./llama`"):
        lora_hub.merge_checkpoint("llama", {adapter: 1.0}, tmp_path / "out")


def test_a_shard_that_was_damaged_on_the_way_is_found_out(hub, published, tmp_path):
    """Its SHA-256 is not the one that the Hub says; what was made of it is not kept."""
    adapter = adapter_files().write(tmp_path / "adapter")
    size = len(base_files().files()[SHARD])
    hub.tamper(published, "main", SHARD, size - 1)

    with pytest.raises(IntegrityError, match=SHARD):
        lora_hub.merge_checkpoint(published, {adapter: 1.0}, tmp_path / "out")
    assert not (tmp_path / "out" / SHARD).exists()
