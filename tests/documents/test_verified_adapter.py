"""What `verify` proves: bytes against the manifest, and a manifest that nobody wrote derived from the bytes."""

import hashlib
import json
import math
import re

import pytest
from adapter_files import Tensor, adapter_files, fused_adapter_files, lora_key, pack, tensor, to_json
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_hub.documents.manifest import CONFIG_NAME, MANIFEST_NAME, PAYLOAD_NAMES, WEIGHTS_NAME, Manifest
from lora_hub.documents.safetensors_header import read_header
from lora_hub.documents.verified_adapter import hub_name, most_common, verify
from lora_hub.errors import DocumentError, IntegrityError, MalformedError, NotFoundError

FUSED = "transformer.h.0.attn.c_attn"


def described(adapter) -> dict[str, bytes]:
    """Return the files of *adapter*, with the manifest that describes them."""
    files = adapter.files()
    return {**files, MANIFEST_NAME: verify(files, source="here").manifest.to_bytes()}


def changed(files, change) -> dict[str, bytes]:
    """Return *files* with *change* made to the manifest."""
    document = json.loads(files[MANIFEST_NAME])
    change(document)
    return {**files, MANIFEST_NAME: to_json(document)}


DESCRIBED = described(adapter_files())


def test_an_adapter_that_matches_its_manifest_is_verified():
    """Bytes that match give the parsed documents, and the very bytes that were hashed."""
    adapter = verify(DESCRIBED, source="here")

    assert adapter.buffer is DESCRIBED[WEIGHTS_NAME]
    assert adapter.config.r == 2
    assert len(adapter.layout.modules) == 4
    assert adapter.tensors.keys() == adapter_files().tensors.keys()


def test_the_digest_is_that_of_the_manifest_bytes():
    """The identity of a version is the SHA-256 of its manifest, byte for byte."""
    reformatted = DESCRIBED | {MANIFEST_NAME: to_json(json.loads(DESCRIBED[MANIFEST_NAME]))}
    digests = {verify(files, source="here").digest for files in (DESCRIBED, reformatted)}

    assert f"sha256:{hashlib.sha256(DESCRIBED[MANIFEST_NAME]).hexdigest()}" in digests
    assert len(digests) == 2


@pytest.mark.parametrize("name", PAYLOAD_NAMES)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_flipped_byte_is_found(name, data):
    """One flipped bit anywhere in a payload file is found before that file is parsed, and the file is named."""
    content = bytearray(DESCRIBED[name])
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] ^= 1 << data.draw(st.integers(0, 7))

    with pytest.raises(IntegrityError, match=name) as caught:
        verify({**DESCRIBED, name: content}, source="here")

    assert caught.value.exit_code == 6
    assert caught.value.hint


@pytest.mark.parametrize("name", PAYLOAD_NAMES)
@pytest.mark.parametrize("change", [lambda content: content[:-1], lambda content: content + b"\0", lambda _: b""])
def test_a_file_of_another_size_is_found(name, change):
    """A file that was cut off or grew is found."""
    with pytest.raises(IntegrityError, match=name):
        verify({**DESCRIBED, name: change(DESCRIBED[name])}, source="here")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: d["files"][0].update(sha256="0" * 64), id="digest_of_the_config"),
        pytest.param(lambda d: d["files"][1].update(size=d["files"][1]["size"] + 1), id="size_of_the_weights"),
        pytest.param(lambda d: d["files"][1].update(sha256=d["files"][0]["sha256"]), id="digest_of_the_other_file"),
    ],
)
def test_a_manifest_of_other_files_is_refused(change):
    """A manifest that describes other bytes is refused, although the adapter by itself is fine."""
    with pytest.raises(IntegrityError):
        verify(changed(DESCRIBED, change), source="here")


@pytest.mark.parametrize("name", PAYLOAD_NAMES)
def test_a_missing_file_is_named(name):
    """An adapter without one of its two files is not found."""
    with pytest.raises(NotFoundError, match=name):
        verify({key: content for key, content in DESCRIBED.items() if key != name}, source="here")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16", "F64"])
def test_a_value_that_is_no_number_is_refused(dtype, number):
    """One value that is NaN or infinite makes the adapter malformed, and its tensor is named."""
    adapter = adapter_files(dtype=dtype)
    key = lora_key("model.layers.1.self_attn.v_proj", "B")
    adapter.tensors[key] = Tensor(dtype=dtype, shape=(4, 2), content=pack([0.5] * 7 + [number], dtype))

    with pytest.raises(MalformedError, match=r"layers\.1\.self_attn\.v_proj\.lora_B"):
        verify(adapter.files(), source="here")


def test_of_several_tensors_that_are_no_numbers_the_first_in_the_header_is_named():
    """The order of the header decides, not that of the bytes in the file."""
    files = adapter_files().files()
    content = bytearray(files[WEIGHTS_NAME])
    tensors = read_header(content)
    for info in tensors.values():
        content[info.stop - 4 : info.stop] = pack([math.nan], "F32")
    length = int.from_bytes(content[:8], "little")
    header = json.loads(bytes(content[8 : 8 + length]))
    first = max(tensors, key=lambda key: tensors[key].start)
    text = json.dumps({first: header[first], **header}).encode()
    files[WEIGHTS_NAME] = len(text).to_bytes(8, "little") + text + bytes(content[8 + length :])

    with pytest.raises(MalformedError, match=re.escape(first)):
        verify(files, source="here")


def test_a_malformed_manifest_is_refused():
    """A manifest that is no manifest is malformed, not ignored."""
    with pytest.raises(DocumentError):
        verify({**DESCRIBED, MANIFEST_NAME: b"{}"}, source="here")


def test_slices_that_contradict_the_tensors_are_refused():
    """A manifest whose slices do not fit the tensors is malformed."""
    slices = [{"modules": [FUSED], "parts": [{"part": "q", "r": 2, "alpha": 4, "rows": [[0, 8]]}]}]
    files = described(fused_adapter_files())

    with pytest.raises(MalformedError, match="slices"):
        verify(changed(files, lambda d: d["lora"].update(slices=slices)), source="here")


class TestDerivedManifest:
    """A PEFT directory has no manifest; its identity is that of the manifest that its bytes give."""

    def test_it_describes_the_adapter(self):
        """Rank, alpha, targets, dtype and the number of parameters come from config and tensors."""
        manifest = verify(adapter_files(r=2, lora_alpha=5).files(), source="here").manifest

        assert (manifest.lora.r, manifest.lora.alpha) == (2, 5)
        assert manifest.lora.targets == ("q_proj", "v_proj")
        assert manifest.lora.dtype == "float32"
        assert manifest.lora.parameters == 2 * (2 * (8 + 8) + 2 * (8 + 4))
        assert manifest.name is None

    def test_it_is_a_function_of_the_bytes(self):
        """The same bytes give the same digest, other bytes another one."""
        digests = [verify(adapter_files(seed=seed).files(), source=str(seed)).digest for seed in (0, 0, 1)]

        assert digests[0] == digests[1] != digests[2]

    def test_it_verifies_what_it_was_derived_from(self):
        """Written beside the files, the derived manifest is the manifest of these files."""
        derived = verify(adapter_files().files(), source="here")
        again = verify(DESCRIBED, source="here")

        assert again.digest == derived.digest
        assert again.manifest == derived.manifest

    def test_it_counts_heads_and_dtypes(self):
        """Replaced heads count as parameters, and each dtype is named."""
        adapter = adapter_files(modules_to_save=["classifier"])
        adapter.tensors["base_model.model.classifier.weight"] = tensor(3, 8, dtype="BF16")
        manifest = verify(adapter.files(), source="here").manifest

        assert manifest.lora.parameters == 2 * (2 * (8 + 8) + 2 * (8 + 4)) + 24
        assert manifest.lora.dtype == "bfloat16+float32"

    def test_it_says_the_most_common_rank(self):
        """With several ranks, the summary is the rank that most modules have."""
        adapter = adapter_files(rank_pattern={r"0\.self_attn\.q_proj": 3})
        path = "model.layers.0.self_attn.q_proj"
        adapter.tensors |= {lora_key(path, "A"): tensor(3, 8), lora_key(path, "B"): tensor(8, 3)}

        assert verify(adapter.files(), source="here").manifest.lora.r == 2

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            ("org/base", "org/base"),
            ("gpt2", "gpt2"),
            ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
            ("/somewhere/models/base", None),
            ("./base", None),
            ("../base", None),
            ("~/models/base", None),
            ("C:\\models\\base", None),
            ("C:/models", None),
            ("file:///somewhere/base", None),
            ("outputs/run/checkpoint-100", None),
            ("", None),
            (None, None),
            ("org/base\n", None),
            ("org/\x1b[2J", None),
            ("\\\\server\\share", None),
        ],
    )
    def test_no_path_of_a_machine_ever_stands_in_it(self, written, expected):
        """A base that can be a name on the Hub is kept; a path of somebody's machine is not published."""
        files = adapter_files(base_model_name_or_path=written).files()
        manifest = verify(files, source="here").manifest

        assert manifest.base.repo == expected
        assert hub_name(written) == expected
        assert Manifest.parse(manifest.to_bytes()) == manifest

    def test_a_revision_that_is_no_text_of_its_own_is_refused(self):
        """Half a surrogate pair in the config cannot be written into a manifest, so the config is malformed."""
        files = adapter_files().files()
        files[CONFIG_NAME] = files[CONFIG_NAME].replace(b'"revision": null', b'"revision": "\\ud800"')

        with pytest.raises(MalformedError):
            verify(files, source="here")


def test_an_alpha_beyond_every_float_is_refused():
    """An integer that no float holds is malformed, in the config and in the slices of the manifest."""
    with pytest.raises(MalformedError):
        verify(adapter_files(lora_alpha=10**400).files(), source="here")

    parts = [{"part": "q", "r": 4, "alpha": 10**400, "rows": [[0, 8]]}]
    files = described(fused_adapter_files())
    with pytest.raises(MalformedError):
        verify(changed(files, lambda d: d["lora"].update(slices=[{"modules": [FUSED], "parts": parts}])), source="here")


@pytest.mark.parametrize(("key", "value"), [("r", 3), ("alpha", 5), ("dtype", "float16"), ("parameters", 7)])
def test_a_manifest_that_contradicts_the_tensors_is_refused(key, value):
    """What people read in the manifest is what config and tensors say."""
    manifest = json.loads(DESCRIBED[MANIFEST_NAME])
    manifest["lora"][key] = value

    with pytest.raises(MalformedError, match=f"says {key} is"):
        verify({**DESCRIBED, MANIFEST_NAME: json.dumps(manifest).encode()}, source="here")


def test_of_equally_common_ranks_the_smallest_is_named():
    """The summary of an adapter with as many modules of one rank as of another depends on nothing but the ranks."""
    assert most_common([8, 4, 4, 8]) == most_common([4, 8, 8, 4]) == 4


def test_a_verified_adapter_cannot_be_changed():
    """What was proven cannot be exchanged afterwards."""
    adapter = verify(DESCRIBED, source="here")

    with pytest.raises(TypeError):
        adapter.tensors["x"] = None
    with pytest.raises(TypeError):
        adapter.layout.heads["x"] = {}
    with pytest.raises(AttributeError):
        adapter.buffer = b""
