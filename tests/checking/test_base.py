"""What is asked of a base: on the Hub at most six requests and two megabytes, on this machine every header."""

import json

import pytest
from adapter_files import Tensor, adapter_files, join_header, lora_key, module_paths, to_json
from base_models import INDEX_NAME, BaseModel, adapter_of, llama, llama_adapter

import lora_hub
from lora_hub.checking.base import MAX_BYTES, MAX_REQUESTS, kind_of
from lora_hub.errors import MalformedError, NotFoundError, UsageError


def codes(report, severity=lora_hub.Severity.NOTE):
    return {finding.rule.code for finding in report.findings if finding.severity >= severity}


def asked(hub):
    """Return how often and for how many bytes the Hub was asked; a redirect to its storage is one request with it."""
    log = hub.requests
    return len([request for request in log if request.host == "hub"]), sum(request.answer_size for request in log)


def padded(files, size):
    """Put *size* bytes into every shard, which are never read."""
    for name in [name for name in files if name.endswith(".safetensors")]:
        header = json.loads(files[name][8 : 8 + int.from_bytes(files[name][:8], "little")])
        header.pop("__metadata__")
        end = max(entry["data_offsets"][1] for entry in header.values())
        header["padding"] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        files[name] = join_header(header, bytes(end + size))
    return files


@pytest.mark.parametrize("shards", [1, 2, 40])
@pytest.mark.parametrize("revision", ["", "@main"])
def test_the_hub_is_asked_for_little(hub, tmp_path, shards, revision):
    """Whatever the number of shards: six requests at most, less than two megabytes, and the same verdict."""
    base = llama(16)
    base.shards = shards
    hub.create("org/base", padded(base.files(), 200_000))
    adapter = llama_adapter("q_proj", "v_proj", layers=16).write(tmp_path / "adapter")
    hub.clear()
    report = lora_hub.check(adapter, f"org/base{revision}")
    requests, size = asked(hub)

    assert codes(report, lora_hub.Severity.WARNING) == set()
    assert requests <= MAX_REQUESTS
    assert size < MAX_BYTES
    assert report.facts["coverage"] == {"q": [16, 16], "v": [16, 16]}


def test_it_is_said_which_shapes_were_not_read(hub, tmp_path):
    """Of a base in many shards the shapes of most layers are those of others; a note says of how many."""
    base = llama(16)
    base.shards = 40
    hub.create("org/base", base.files())
    report = lora_hub.check(llama_adapter("q_proj", layers=16).write(tmp_path / "a"), "org/base")
    (note,) = (finding for finding in report.findings if finding.rule.code == "LH211")

    assert note.message.startswith("of 16 weights of the base, the headers of ")
    assert report.exit_code() == 0


def test_a_shape_that_differs_is_found_in_a_layer_that_was_not_read(hub, tmp_path):
    """An adapter of a wider sibling does not fit, although most headers of the base were not read."""
    base = llama(16)
    base.shards = 40
    hub.create("org/base", base.files())
    adapter = adapter_files(layers=16)
    for path in module_paths(16):
        adapter.tensors[lora_key(path, "A")] = Tensor(dtype="F32", shape=(2, 16), content=b"\x01" * 128)

    assert "LH202" in codes(lora_hub.check(adapter.write(tmp_path / "a"), "org/base"))


@pytest.mark.parametrize(("model_type", "severity"), [("vit", "NOTE"), ("bert", "ERROR")])
def test_files_of_the_family_may_have_other_names_than_the_model(tmp_path, model_type, severity):
    """A sound adapter of a vision model of transformers 5 is on its base a matter of names, not of another base."""
    names = {f"vit.encoder.layer.0.attention.attention.{name}.weight": (8, 8) for name in ("query", "key", "value")}
    base = BaseModel(config={"model_type": model_type}, shapes=names).write(tmp_path / "base")
    adapter = adapter_of({"vit.layers.0.attention.q_proj": (8, 8)}).write(tmp_path / "adapter")
    found = {finding.rule.code: finding.severity for finding in lora_hub.check(adapter, base).findings}
    required = {
        finding.rule.code: finding.severity for finding in lora_hub.check(adapter, base, require_base=True).findings
    }

    assert found["LH201"] is lora_hub.Severity[severity]
    assert required["LH201"] is lora_hub.Severity.ERROR


def test_an_index_that_is_too_large_is_not_read(hub, tmp_path):
    """Then the layers are those that the config counts, and the rest is said to be unknown."""
    base = llama(16)
    base.shards = 40
    files = base.files()
    files[INDEX_NAME] = files[INDEX_NAME].ljust(MAX_BYTES, b" ")
    hub.create("org/base", files)
    hub.clear()
    good = lora_hub.check(llama_adapter("q_proj", layers=16).write(tmp_path / "good"), "org/base")
    requests, size = asked(hub)
    deeper = lora_hub.check(llama_adapter("q_proj", layers=17).write(tmp_path / "deeper"), "org/base")

    assert codes(good, lora_hub.Severity.WARNING) == set()
    assert "LH211" in codes(good)
    assert (requests <= MAX_REQUESTS, size < MAX_BYTES) == (True, True)
    assert "LH201" in codes(deeper)


def test_many_adapters_ask_for_the_base_once(hub, tmp_path):
    """The base of a run is read once, however many adapters there are."""
    from lora_hub import checked_sources, checkup

    hub.create("org/base", llama().files())
    for number in range(5):
        adapter_files(seed=number).write(tmp_path / "adapters" / str(number))
    hub.clear()
    reports = list(checkup.check_all(checked_sources.find_sources([f"{tmp_path}/adapters/*"]), "org/base"))

    assert [report.exit_code() for report in reports] == [0] * 5
    assert asked(hub)[0] <= MAX_REQUESTS


def test_a_required_base_wants_every_shape(hub, tmp_path):
    """With `require_base`, a shape that is not known is an error."""
    base = llama(1)
    base.shapes = {name: shape for name, shape in base.shapes.items() if "q_proj" not in name}
    base.shapes |= {"model.layers.0.self_attn.q_proj.weight": (8, 8)}
    base.shards = len(base.shapes)
    files = base.files()
    hub.create("org/base", files)
    adapter = llama_adapter("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", layers=1).write(tmp_path / "a")

    assert lora_hub.check(adapter, "org/base").exit_code() == 0
    assert lora_hub.check(adapter, "org/base", require_base=True).exit_code() == 9


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda files: files.pop("config.json"), NotFoundError),
        (lambda files: files.pop("model.safetensors"), NotFoundError),
        (lambda files: files.update({"config.json": b"[]"}), MalformedError),
        (lambda files: files.update({"model.safetensors": b"no"}), MalformedError),
        (lambda files: files.update({INDEX_NAME: to_json({"weight_map": {"x": "../x.safetensors"}})}), MalformedError),
        (lambda files: files.update({INDEX_NAME: to_json({"weight_map": {"x": "x.safetensors"}})}), NotFoundError),
    ],
)
@pytest.mark.parametrize("is_remote", [False, True])
def test_a_broken_base_is_an_error_of_its_own(hub, tmp_path, spoil, error, is_remote):
    """What is wrong with the base is no finding about the adapter."""
    files = llama().files()
    spoil(files)
    (tmp_path / "base").mkdir()
    for name, content in files.items():
        (tmp_path / "base" / name).write_bytes(content)
    hub.create("org/base", files)

    with pytest.raises(error):
        lora_hub.check(adapter_files().write(tmp_path / "a"), "org/base" if is_remote else tmp_path / "base")


def test_a_base_that_is_no_name(tmp_path):
    """What is neither a directory nor a repository is said to be none."""
    with pytest.raises(UsageError):
        lora_hub.check(adapter_files().write(tmp_path / "a"), "what is this?")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.12.self_attn.q_proj", "model.layers.*.self_attn.q_proj"),
        ("h.0.mlp.experts.7.w1.weight", "h.*.mlp.experts.*.w1.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("layers.1.2.x", "layers.*.*.x"),
    ],
)
def test_a_kind_is_a_name_without_numbers(name, kind):
    """What is alike in all layers has one kind."""
    assert kind_of(name) == kind
