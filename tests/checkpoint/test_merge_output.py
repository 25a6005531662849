"""The output of a merge: left alone where it holds something else, gone on with where it is the same merge."""

import errno
import fcntl
import json
import shutil

import pytest
from adapter_files import HIDDEN, tensor
from bases import EMBEDDING, TOKENS, base_files, content

import lora_hub
from lora_hub.checkpoint.shard import write_shard
from lora_hub.errors import DocumentError, IntegrityError, MachineError, UsageError


def test_an_output_that_is_not_empty_is_left_alone(tmp_path, base, adapter, merge):
    """Without --resume nothing is written into it."""
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "precious").write_text("mine")
    with pytest.raises(UsageError, match="not empty"):
        merge(base, adapter)

    assert content(tmp_path / "merged") == {"precious": b"mine"}


def test_resume_needs_a_merge_that_was_begun(tmp_path, base, adapter, merge):
    """Else it would write among foreign files."""
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "precious").write_text("mine")

    with pytest.raises(UsageError, match="holds no merge"):
        merge(base, adapter, resume=True)


def test_resume_of_a_finished_merge_proves_it(base, adapter, merge):
    """The same recipe: all files are hashed; one that was changed since is found."""
    output = merge(base, adapter)
    before = content(output)
    merge(base, adapter, resume=True)

    assert content(output) == before
    with pytest.raises(UsageError, match="another recipe"):
        merge(base, adapter, resume=True, dtype="bfloat16")
    (output / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(IntegrityError, match=r"tokenizer\.json"):
        merge(base, adapter, resume=True)


def test_resume_of_a_finished_merge_into_another_base_is_refused(tmp_path, base, adapter, merge):
    """A sibling has the same headers and config: the recipe is the same, the weights are not."""
    sibling = base_files()
    sibling.shards["model-00001.safetensors"][EMBEDDING] = tensor(TOKENS, HIDDEN, seed=7)
    merge(base, adapter)

    with pytest.raises(UsageError, match=r"merge into another base: its `model-00001\.safetensors`"):
        merge(sibling.write(tmp_path / "sibling"), adapter, resume=True)


@pytest.mark.parametrize(
    "change",
    [lambda d: d.pop("size"), lambda d: d.pop("base"), lambda d: d["base"].update(shards={"a": 1}),
     lambda d: d["modules"].update(a={"gain": 1, "error": 0, "more": 1}), lambda d: d["realised"].update(gain="all")],
)  # fmt: skip
def test_a_provenance_that_was_changed_is_refused(base, adapter, merge, change):
    """--resume reads it."""
    path = merge(base, adapter) / "lora_hub.merge.json"
    document = json.loads(path.read_bytes())
    change(document)
    path.write_text(json.dumps(document))

    with pytest.raises(DocumentError):
        merge(base, adapter, resume=True)


def test_a_file_of_a_finished_merge_that_is_missing_is_found_out(base, adapter, merge):
    """--resume proves all of them."""
    (merge(base, adapter) / "tokenizer.json").unlink()

    with pytest.raises(IntegrityError, match=r"tokenizer\.json.*changed since the merge"):
        merge(base, adapter, resume=True)


def test_the_half_of_a_shard_counts_as_free(tmp_path, base, adapter, merge, monkeypatch):
    """A merge that filled the disk goes on as soon as there is space for what is missing."""
    _cut_off(base, adapter, tmp_path / "merged")
    (tmp_path / "merged" / "model-00002.safetensors.part").write_bytes(bytes(10_000))
    usage = shutil.disk_usage(tmp_path)._replace(free=16 * 1024 * 1024)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)

    assert (merge(base, adapter, resume=True) / "config.json").exists()


def test_a_file_system_without_locks_is_an_error_of_the_machine(base, adapter, merge, monkeypatch):
    """Two merges into one directory could not be told apart."""

    def refuse(*_arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)

    with pytest.raises(MachineError, match="No locks"):
        merge(base, adapter)


def test_a_disk_without_space_is_found_out_first(base, adapter, merge, monkeypatch, tmp_path):
    """Before a shard is begun."""
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)

    with pytest.raises(MachineError, match="1000 are free"):
        merge(base, adapter)


def test_a_link_in_the_output_is_not_written_through(tmp_path, base, adapter, merge):
    """What stands where a half-written shard goes may lead anywhere."""
    victim, output = tmp_path / "victim", tmp_path / "merged"
    victim.write_text("mine")
    _cut_off(base, adapter, output)
    (output / "model-00002.safetensors.part").symlink_to(victim)
    with pytest.raises(MachineError):
        merge(base, adapter, resume=True)

    assert victim.read_text() == "mine"


def _cut_off(base, adapter, output):
    """Leave *output* as a merge that did not come to its second shard."""

    def fail_later(plan, *args, **kwargs):
        if plan.name == "model-00002.safetensors":
            raise MachineError("cut off")
        return write_shard(plan, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_hub.checkpoint.merge.write_shard", fail_later)
        with pytest.raises(MachineError, match="cut off"):
            lora_hub.merge_checkpoint(base, {adapter: 1.0}, output)


def test_a_damaged_shard_is_written_again(tmp_path, base, adapter, merge):
    """--resume hashes what is there: a shard that is not what was written is none."""
    expected = content(merge(base, adapter, output="whole"))
    output = tmp_path / "merged"
    _cut_off(base, adapter, output)
    first = output / "model-00001.safetensors"
    first.write_bytes(first.read_bytes()[:-1] + b"\xff")

    assert content(merge(base, adapter, resume=True)) == expected


def test_a_base_that_changed_since_is_not_gone_on_with(tmp_path, base, adapter, merge):
    """Shards of two bases never become one model."""
    _cut_off(base, adapter, tmp_path / "merged")
    base_files(dtype="F32").write(base)
    (base / "model-00003.safetensors").touch()

    with pytest.raises(UsageError, match="changed since"):
        merge(base, adapter, resume=True)


def test_a_base_that_changes_between_two_shards_is_found_out(tmp_path, base, adapter, merge):
    """Though every shard is whole, and has the header that was planned with."""

    def change_the_next(plan, *args, **kwargs):
        written = write_shard(plan, *args, **kwargs)
        (base / "model-00003.safetensors").touch()
        return written

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_hub.checkpoint.merge.write_shard", change_the_next)
        with pytest.raises(IntegrityError, match=r"model-00003\.safetensors` was changed since"):
            merge(base, adapter)

    assert not (tmp_path / "merged" / "config.json").exists()
