"""Damage of any kind: a check reports it, and never ends with an exception."""

import json

from adapter_files import CONFIG_NAME, MANIFEST_NAME, WEIGHTS_NAME, adapter_files
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_hub.checking.catalogue import catalogue
from lora_hub.checking.finding import Severity
from lora_hub.checking.reading import subject_of
from lora_hub.checking.run import run_checks
from lora_hub.documents.verified_adapter import verify
from lora_hub.errors import LoraHubError

SOUND = adapter_files().files()
SOUND |= {MANIFEST_NAME: verify(SOUND, source="x").manifest.to_bytes()}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = [*json.loads(SOUND[CONFIG_NAME]), "layers_to_transform", "layers_pattern", "exclude_modules", "eva_config", "x"]


def report_of(files):
    """Return what a check finds, and whether `verify` accepts the files."""
    try:
        verify(files, source="x")
        is_whole = True
    except LoraHubError:
        is_whole = False
    return run_checks(subject_of("x", files), catalogue()), is_whole


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SOUND)), st.integers(0, 10_000), st.binary(min_size=0, max_size=9), st.integers(0, 40))
def test_bytes_are_exchanged(name, position, put, removed):
    """Anywhere in any of the three files."""
    content = SOUND[name]
    start = position % (len(content) + 1)
    report, is_whole = report_of({**SOUND, name: content[:start] + put + content[start + removed :]})

    assert (report.worst is Severity.ERROR) is not is_whole


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_the_config_says_anything(changes):
    """Any JSON at any key; the weights stay as they are, and no manifest speaks for them."""
    config = json.dumps(json.loads(SOUND[CONFIG_NAME]) | changes).encode()
    report, is_whole = report_of({CONFIG_NAME: config, WEIGHTS_NAME: SOUND[WEIGHTS_NAME]})

    assert is_whole or report.worst is Severity.ERROR
    assert all(finding.message and finding.hint for finding in report.findings)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["base_model.model.", "module.", "q_proj", ".lora_A", ".lora_B", ".weight", "x", "."])))
def test_a_tensor_is_called_anything(words):
    """Whatever a key is made of, it has a purpose or a finding."""
    files = adapter_files()
    key, *_ = files.tensors
    files.tensors["".join(words)] = files.tensors.pop(key)
    report, is_whole = report_of(files.files())

    assert is_whole or report.worst is Severity.ERROR
