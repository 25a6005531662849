"""One changed bit, in any of the files of a signed version, and it is refused: every bit of bundle and manifest."""

import random

import pytest
from adapter_files import WEIGHTS_NAME
from fuzz import specimens
from fuzz.mutations import flipped
from fuzz.specimens import POLICY, accept

from lora_hub import vouch
from lora_hub.documents.bundle import Bundle
from lora_hub.errors import IntegrityError, LoraHubError, MalformedError, UntrustedError
from lora_hub.registry.trust_file import default_trust

VERSIONS = {"plain": specimens.version(), "sliced": specimens.sliced_version()}
STEP = 19  # coprime to 8: in the quick suite each of the eight bits of a byte has its turn
EVERY = pytest.param(1, id="every_bit", marks=pytest.mark.full)
SOME = pytest.param(STEP, id="some_bits")


def bits(content: bytes, step: int) -> range:
    """Return every *step*-th bit of *content*."""
    return range(0, 8 * len(content), step)


def refusal(manifest: bytes, bundle: bytes) -> LoraHubError | None:
    """Return why a version is refused, or None if it is accepted."""
    try:
        accept(manifest, bundle)
    except LoraHubError as error:
        return error
    return None


@pytest.mark.parametrize("name", VERSIONS)
def test_what_nobody_changed_is_accepted(name):
    """Both versions are accepted as they are, so that what follows is due to the changed bit."""
    assert refusal(VERSIONS[name].manifest, VERSIONS[name].bundle) is None


def test_there_are_as_many_bits_as_were_promised():
    """Bundles and manifests have 29,000 bits and more."""
    signed = [content for version in VERSIONS.values() for content in (version.manifest, version.bundle)]

    assert 8 * sum(map(len, signed)) > 29_000


@pytest.mark.parametrize("step", [SOME, EVERY])
@pytest.mark.parametrize("name", VERSIONS)
def test_one_bit_of_the_bundle(name, step):
    """A bundle with one changed bit is refused, or is the same statement of the same signer, spelled differently."""
    version = VERSIONS[name]
    signed = Bundle.parse(version.bundle)
    for bit in bits(version.bundle, step):
        changed = flipped(version.bundle, bit)
        error = refusal(version.manifest, changed)

        if error is None:
            same = Bundle.parse(changed)
            assert (same.payload, same.hint) == (signed.payload, signed.hint), f"bit {bit}"
        else:
            assert isinstance(error, UntrustedError | IntegrityError | MalformedError), f"bit {bit}"
            assert 5 <= error.exit_code <= 8, f"bit {bit}"


@pytest.mark.parametrize("step", [SOME, EVERY])
@pytest.mark.parametrize("name", VERSIONS)
def test_one_bit_of_the_manifest(name, step):
    """A manifest with one changed bit is refused before it is read: its digest is not the one that was signed."""
    version = VERSIONS[name]
    for bit in bits(version.manifest, step):
        error = refusal(flipped(version.manifest, bit), version.bundle)

        assert isinstance(error, IntegrityError), f"bit {bit}"
        assert "was signed" in error.message, f"bit {bit}"


@pytest.fixture
def directory(tmp_path):
    """The directory of a signed version, whose signer the policy of this user trusts."""
    default_trust().path.parent.mkdir(parents=True)
    default_trust().path.write_text("version = 1\n\n" + "\n".join(entry.to_toml() for entry in POLICY.entries))
    for name, content in specimens.version().files.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.full)])
def test_one_bit_of_the_weights(directory, count):
    """Weights with one changed bit are refused by `verify`, wherever it is: in the length, the header or a number."""
    weights = specimens.version().weights
    reason = vouch.verify(directory).reason
    numbers = random.Random(count)
    for bit in (numbers.randrange(8 * len(weights)) for _ in range(count)):
        (directory / WEIGHTS_NAME).write_bytes(flipped(weights, bit))
        with pytest.raises(IntegrityError, match=f"`{WEIGHTS_NAME}` of .* has .* bytes and sha256"):
            vouch.verify(directory)

    (directory / WEIGHTS_NAME).write_bytes(weights)
    assert vouch.verify(directory).reason == reason


@pytest.mark.parametrize("name", sorted(specimens.version().unsigned))
def test_one_byte_more_or_less(directory, name):
    """A signed file that is one byte longer or shorter is refused by `verify`."""
    content = specimens.version().files[name]
    for changed in (content + b"\n", content[:-1], content[1:], b""):
        (directory / name).write_bytes(changed)
        with pytest.raises((IntegrityError, MalformedError)):
            vouch.verify(directory)
