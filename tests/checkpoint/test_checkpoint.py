"""Reading a base: what is malformed, hostile, missing or contradicts itself is refused with a word on what to do."""

import json
import os
import struct

import pytest
from adapter_files import Tensor, join_header, tensor
from bases import EMBEDDING, INDEX_NAME, base_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_hub.checkpoint.base_files import LocalBase
from lora_hub.checkpoint.checkpoint import Checkpoint, read_checkpoint
from lora_hub.documents.checkpoint_index import CheckpointIndex
from lora_hub.documents.safetensors_header import CHECKPOINT, read_header, read_header_and_metadata, write_header
from lora_hub.errors import DocumentError, IntegrityError, LoraHubError, MalformedError, NotFoundError


def read(directory) -> Checkpoint:
    """Return the checkpoint in *directory*."""
    return read_checkpoint(LocalBase(directory))


def test_a_checkpoint_is_read_from_its_headers(base):
    """Config, index, and where each tensor lies, empty ones and integers as well."""
    checkpoint = read(base)

    assert checkpoint.model_type == "llama"
    assert [shard.name for shard in checkpoint.shards] == [f"model-0000{number}.safetensors" for number in (1, 2, 3)]
    assert checkpoint.shard_of["model.nothing"].tensors["model.nothing"].shape == (0, 4)
    assert checkpoint.shard_of["model.position_ids"].tensors["model.position_ids"].dtype == "I64"
    assert checkpoint.main_dtype == "F32"


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", ".hidden.safetensors", "x.bin", "",
     "a\\b.safetensors", "x.safetensors\n", "\u202ex.safetensors", None, 3, "x" * 300 + ".safetensors"],
)  # fmt: skip
def test_an_index_that_names_no_plain_file_is_refused(tmp_path, shard):
    """Its names become names of files that are written."""
    files = base_files()
    files.weight_map = {EMBEDDING: shard}

    with pytest.raises(DocumentError, match="no plain name"):
        read(files.write(tmp_path / "base"))


@pytest.mark.parametrize(
    "document", [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": {"a": "a.safetensors"}, "metadata": 1}]
)
def test_an_index_of_another_form_is_refused(document):
    """Nothing is guessed."""
    with pytest.raises(DocumentError):
        CheckpointIndex.parse(json.dumps(document).encode())


def test_a_missing_shard_is_named(base):
    """The hint says what happened."""
    (base / "model-00002.safetensors").unlink()

    with pytest.raises(NotFoundError, match=r"model-00002\.safetensors.*index names is missing"):
        read(base)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    """Which of the two would count?"""
    files = base_files()
    files.shards["model-00002.safetensors"][EMBEDDING] = tensor(2)

    with pytest.raises(MalformedError, match=r"lies in `model-00001\.safetensors` and in `model-00002\.safetensors`"):
        read(files.write(tmp_path / "base"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop(EMBEDDING), "does not name it"),
        (lambda index: index.update({EMBEDDING: "model-00002.safetensors"}), "says it is in"),
        (lambda index: index.update({"ghost": "model-00002.safetensors"}), "is not in"),
    ],
)
def test_an_index_that_contradicts_the_shards_is_refused(tmp_path, change, message):
    """A tensor is where the index says, and nowhere else."""
    files = base_files()
    files.weight_map = {name: shard for shard, tensors in files.shards.items() for name in tensors}
    change(files.weight_map)

    with pytest.raises(MalformedError, match=message):
        read(files.write(tmp_path / "base"))


def test_pickles_are_refused(tmp_path):
    """With a word on how to get rid of them."""
    files = base_files(single=True)
    files.shards = {}
    directory = files.write(tmp_path / "base")
    (directory / INDEX_NAME).unlink()

    with pytest.raises(NotFoundError, match="pickles are never read"):
        read(directory)


def test_two_layouts_at_once_are_refused(base):
    """A single file beside an index that does not name it."""
    (base / "model.safetensors").write_bytes(b"")

    with pytest.raises(MalformedError, match="has both"):
        read(base)


@pytest.mark.parametrize("name", ["config.json", "model-00002.safetensors"])
def test_what_is_no_regular_file_is_not_there(base, name):
    """A FIFO would block for ever."""
    (base / name).unlink()
    os.mkfifo(base / name)

    with pytest.raises(NotFoundError):
        read(base)


def test_a_config_that_is_huge_is_refused(base):
    """Before it is read."""
    with (base / "config.json").open("ab") as file:
        file.truncate(1 << 30)

    with pytest.raises(MalformedError, match="at most"):
        read(base)


HOSTILE = {
    "no header": b"",
    "a length beyond the file": struct.pack("<Q", 1 << 60) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"nope",
    "unknown dtype": join_header({"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 1]}}, b"x"),
    "a gap": join_header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"xx"),
    "an overlap": join_header(
        {n: {"dtype": "U8", "shape": [2], "data_offsets": o} for n, o in (("a", [0, 2]), ("b", [1, 3]))}, b"xxx"
    ),
    "bytes of nobody": join_header({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}, b"xx"),
    "a size that is no size": join_header({"a": {"dtype": "U8", "shape": [-1], "data_offsets": [0, 1]}}, b"x"),
    "a shape that overflows": join_header(
        {"a": {"dtype": "F32", "shape": [2**40] * 3, "data_offsets": [0, 4]}}, b"xxxx"
    ),
    "half a byte": join_header({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"xx"),
    "metadata of numbers": join_header({"__metadata__": {"a": 1}}, b""),
    "a key twice": struct.pack("<Q", 21) + b'{"a":{},"a":{}}      ',
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_is_refused(base, what):
    """The error names the shard; none of it takes memory or time."""
    (base / "model-00002.safetensors").write_bytes(HOSTILE[what])

    with pytest.raises(MalformedError, match="model-00002"):
        read(base)


@given(position=st.integers(0, 400), value=st.integers(0, 255))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_damaged_header_is_read_or_refused(base, position, value):
    """One byte of a header is another one: it is either still a header, or an error of ours."""
    path = base / "model-00003.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
    hint: str | None = "it is still a header"
    try:
        read(base)
    except LoraHubError as error:
        hint = error.hint
    finally:
        path.write_bytes(whole)

    assert hint


def test_every_dtype_of_the_format_is_read():
    """Also those that no adapter may have, half bytes included."""
    tensors = {dtype: (dtype, (4, 2)) for dtype in sorted(CHECKPOINT.bits)}
    header = write_header(tensors, None)
    size = len(header) + sum(8 * bits // 8 for bits in CHECKPOINT.bits.values())
    found = read_header(header, size=size, rules=CHECKPOINT)

    assert {name: (info.dtype, info.shape) for name, info in found.items()} == tensors
    with pytest.raises(MalformedError):
        read_header(header, size=size)


def test_a_header_comes_back_as_it_was_written():
    """Names beyond ASCII, metadata, and a beginning whose tensors are aligned."""
    tensors = {"ä.weight": ("BF16", (3, 2)), "b": ("F32", ()), "empty": ("F16", (0, 5))}
    header = write_header(tensors, {"format": "pt"})
    found, metadata = read_header_and_metadata(header, size=len(header) + 16, rules=CHECKPOINT)

    assert {name: (info.dtype, info.shape) for name, info in found.items()} == tensors
    assert metadata == {"format": "pt"}
    assert len(header) % 8 == 0


def test_a_file_that_changes_while_it_is_read_is_found_out(base):
    """What was read of it may be of two files."""
    from lora_hub.checkpoint.base_files import opened

    with pytest.raises(IntegrityError, match="changed while"), opened(base / "config.json"):
        (base / "config.json").write_bytes(b"{}")


def test_the_identity_is_that_of_the_content(base, tmp_path):
    """A copy elsewhere is the same base; another header is another."""
    copy = base_files().write(tmp_path / "copy")
    files = base_files()
    files.shards["model-00002.safetensors"]["more"] = Tensor(dtype="U8", shape=(1,), content=b"x")
    other = files.write(tmp_path / "other")

    assert read(base).identity() == read(copy).identity()
    assert read(base).identity() != read(other).identity()
