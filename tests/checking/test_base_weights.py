"""Is the base the one that the adapter was trained on: by the digests of its files, or by some of its weights."""

import dataclasses
import hashlib
import struct

import pytest
from adapter_files import HIDDEN, adapter_files, safetensors, tensor, to_json

import lora_hub
from lora_hub.checking.base import MAX_REQUESTS
from lora_hub.documents.base_model import BaseModel, ShardEntry
from lora_hub.documents.fingerprint import Fingerprint, Sampled
from lora_hub.documents.verified_adapter import verify

SHAPES = {"q_proj": (HIDDEN, HIDDEN), "v_proj": (4, HIDDEN)}
PATHS = {f"model.layers.{layer}.self_attn.{name}": shape for layer in range(2) for name, shape in SHAPES.items()}
COUNT = 8


def base(seed: int = 1) -> dict[str, bytes]:
    """Return the files of a base whose weights *seed* chooses."""
    tensors = {f"{path}.weight": tensor(*shape, seed=seed * 100 + i) for i, (path, shape) in enumerate(PATHS.items())}
    config = {"model_type": "llama", "tie_word_embeddings": False}
    return {"config.json": to_json(config), "model.safetensors": safetensors(tensors)}


def sampled(path: str, seed: int) -> Sampled:
    """Return the fingerprint of one tensor of `base`, by the positions that its path decides."""
    (rows, columns), number = PATHS[path], list(PATHS).index(path)
    weights = struct.unpack(f"<{rows * columns}f", tensor(rows, columns, seed=seed * 100 + number).content)
    empty = Sampled(path=path, shape=(rows, columns), dtype="F32", values=bytes(4 * COUNT), offsets=bytes(COUNT // 2))
    values = struct.pack(f"<{COUNT}f", *(weights[row * columns + column] for row, column in empty.positions()))
    return dataclasses.replace(empty, values=values)


def write_adapter(directory, known: BaseModel):
    """Write an adapter whose manifest knows this of its base."""
    files = adapter_files()
    manifest = dataclasses.replace(verify(files.files(), source="x").manifest, base=known)
    files.manifest = manifest.to_bytes()
    return files.write(directory)


@pytest.fixture
def adapter(tmp_path):
    """An adapter with the fingerprint of the base of seed 1."""
    print_ = Fingerprint.of(sampled(path, 1) for path in PATHS)
    return write_adapter(tmp_path / "adapter", BaseModel(repo="org/base", model_type="llama", fingerprint=print_))


@pytest.fixture
def published(hub):
    """Put the base of a seed on the Hub, under the name that the adapter says."""

    def published(seed: int) -> str:
        hub.create("org/base", base(seed))
        return "org/base"

    return published


def written(directory, seed):
    directory.mkdir()
    for name, content in base(seed).items():
        (directory / name).write_bytes(content)
    return directory


def codes(report):
    return {finding.rule.code: finding.severity for finding in report.findings if finding.rule.code[:4] == "LH22"}


def test_the_right_base_is_known_by_its_weights(adapter, tmp_path):
    """On this machine the recorded weights are read, and nothing is found."""
    assert codes(lora_hub.check(adapter, written(tmp_path / "base", 1), require_base=True)) == {}


def test_another_base_of_the_same_shapes_is_an_error(adapter, tmp_path):
    """PEFT loads onto it without a word; here it is exit code 9, with both names."""
    report = lora_hub.check(adapter, written(tmp_path / "base", 2))
    (finding,) = (finding for finding in report.findings if finding.rule.code == "LH220")

    assert report.exit_code() == 9
    assert "org/base" in finding.message
    assert str(tmp_path / "base") in finding.message


def test_on_the_hub_weights_are_read_only_if_one_asks_for_it(hub, published, adapter):
    """Undecided is a note; with `sample` some weights are asked for."""
    name = published(2)
    hub.clear()
    without = lora_hub.check(adapter, name)
    requests = hub.count(host="hub")

    assert codes(without) == {"LH221": lora_hub.Severity.NOTE}
    assert requests <= MAX_REQUESTS
    assert codes(lora_hub.check(adapter, name, sample=True)) == {"LH220": lora_hub.Severity.ERROR}


def test_the_right_base_on_the_hub_is_known_by_a_sample(published, adapter):
    """Nothing is found then."""
    assert codes(lora_hub.check(adapter, published(1), sample=True, require_base=True)) == {}


def test_a_required_base_must_be_decided(published, adapter):
    """What is a note otherwise is an error."""
    report = lora_hub.check(adapter, published(1), require_base=True)

    assert codes(report) == {"LH221": lora_hub.Severity.ERROR}
    assert report.exit_code() == 9


def test_digests_of_its_files_decide_without_reading_weights(published, tmp_path):
    """The Hub says the digest of a large file; if it is the recorded one, it is the base."""
    files = base(1)
    shard = ShardEntry(name="model.safetensors", sha256=hashlib.sha256(files["model.safetensors"]).hexdigest())
    adapter = write_adapter(tmp_path / "adapter", BaseModel(repo="org/base", shards=(shard,)))

    assert codes(lora_hub.check(adapter, published(1), require_base=True)) == {}


def test_an_adapter_without_a_fingerprint_is_a_note(tmp_path):
    """Nothing was recorded: an error only if the base is required."""
    adapter = adapter_files().write(tmp_path / "adapter")
    directory = written(tmp_path / "base", 1)

    assert codes(lora_hub.check(adapter, directory)) == {"LH222": lora_hub.Severity.NOTE}
    assert codes(lora_hub.check(adapter, directory, require_base=True)) == {"LH222": lora_hub.Severity.ERROR}


def test_a_fingerprint_of_other_shapes_contradicts_the_adapter(tmp_path):
    """What the manifest says of the base must be about the tensors that are there."""
    tensors = (Sampled(path=next(iter(PATHS)), shape=(16, 16), dtype="F32", values=bytes(32), offsets=bytes(4)),)
    adapter = write_adapter(tmp_path / "adapter", BaseModel(fingerprint=Fingerprint(tensors=tensors)))

    assert "LH016" in {finding.rule.code for finding in lora_hub.check(adapter).findings}
