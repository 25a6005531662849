"""Other tools and ours, over the same files: what one signs, the other verifies, and each refuses what was changed.

The other tool is `model-signing`, the reference implementation of OpenSSF Model Signing, through its public API.
"""

import base64
import hashlib
import json

import pytest
from adapter_files import adapter_files
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing import hashing, signing, verifying

from lora_hub import api, trust, vouch
from lora_hub.documents.bundle import SIGNATURE_NAME, Bundle, signature_names
from lora_hub.documents.manifest import CARD_NAME, VERSION_FILES
from lora_hub.documents.signers import PublicKey, Signer
from lora_hub.documents.statement import SignedFiles
from lora_hub.errors import DocumentError, IntegrityError, UntrustedError
from lora_hub.files import write_files
from lora_hub.signing.keys import CURVES
from lora_hub.signing.verify import verify_signature

REFERENCE = "org/task@1.0.0"
_EC = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}


@pytest.fixture
def adapter(tmp_path):
    """The directory of an adapter that nobody signed, with a model card."""
    directory = adapter_files().write(tmp_path / "adapter")
    (directory / CARD_NAME).write_text("# A card\n")
    return directory


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """The root of a registry, which the environment names."""
    monkeypatch.setenv("LORA_HUB_REGISTRY", str(tmp_path / "registry"))
    return tmp_path / "registry"


@pytest.fixture
def version(registry):
    """Where org/task@1.0.0 lies in the registry once it is pushed."""
    return registry / "org" / "task" / "1.0.0"


@pytest.fixture(params=CURVES)
def key(request, tmp_path):
    """A key that OpenSSL might have made: the files of its two halves, PKCS#8 and SPKI."""
    return key_files(tmp_path, ec.generate_private_key(_EC[request.param]))


def key_files(folder, private):
    """Write the two halves of *private* into *folder*, and return the paths of both."""
    own, public = folder / "private.pem", folder / "public.pem"
    own.touch(mode=0o600)
    own.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public.write_bytes(spki(private))
    return own, public


def spki(private) -> bytes:
    """Return what `openssl pkey -pubout` prints for *private*."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(serialization.Encoding.PEM, form)


def verify_theirs(directory, public, *, ignored=(), only_signed=False):
    """Verify *directory* with model-signing; it returns nothing, or raises whatever comes to its mind."""
    config = verifying.Config().use_elliptic_key_verifier(public_key=public).set_ignore_unsigned_files(only_signed)
    if ignored:
        config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[directory / name for name in ignored]))
    config.verify(directory, directory / SIGNATURE_NAME)


def sign_theirs(directory, private, *, ignored=()):
    """Sign *directory* with model-signing."""
    ignoring = hashing.Config().set_ignored_paths(paths=[directory / name for name in (SIGNATURE_NAME, *ignored)])
    config = signing.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(ignoring)
    config.sign(directory, directory / SIGNATURE_NAME)


def changed(path):
    """Change one bit in the middle of the file *path*."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class TestOfOurs:
    """What `push` signs, model-signing verifies."""

    def test_what_is_pushed(self, adapter, version, key):
        """A version as `push` publishes it verifies as it lies there, with each kind of key."""
        private, public = key
        pushed = api.push(adapter, REFERENCE, key=private)
        verify_theirs(version, public)

        assert pushed.signers == (hashlib.sha256(public.read_bytes()).hexdigest(),)

    @pytest.mark.parametrize("name", [*VERSION_FILES, SIGNATURE_NAME])
    def test_what_was_changed(self, adapter, version, key, name):
        """One changed bit in any of its files, and it does not verify, there as here."""
        private, public = key
        api.push(adapter, REFERENCE, key=private)
        changed(version / name)

        with pytest.raises(Exception) as caught:  # noqa: PT011 - they raise many kinds
            verify_theirs(version, public)
        assert not isinstance(caught.value, AssertionError)
        with pytest.raises((IntegrityError, DocumentError, UntrustedError)):
            vouch.verify(version, key=public)

    def test_of_another_key(self, adapter, version, key, tmp_path):
        """It does not verify with the key of somebody else."""
        api.push(adapter, REFERENCE, key=key[0])
        (tmp_path / "other").mkdir()
        _, other = key_files(tmp_path / "other", ec.generate_private_key(ec.SECP256R1()))

        with pytest.raises(ValueError, match="Key mismatch"):
            verify_theirs(version, other)

    def test_a_card_beside_it(self, adapter, version, key):
        """A model card that lies there later is not a part of what is signed."""
        private, public = key
        api.push(adapter, REFERENCE, key=private)
        (version / CARD_NAME).write_text("# Another card\n")

        verify_theirs(version, public)

    @pytest.mark.parametrize("how", ["ignored", "only_signed"])
    def test_further_signers(self, adapter, version, key, tmp_path, how):
        """Beside further signatures it verifies for whoever ignores them, or all that is not signed."""
        private, public = key
        (tmp_path / "second").mkdir()
        second, second_public = key_files(tmp_path / "second", ec.generate_private_key(ec.SECP256R1()))
        vouch.sign(adapter, REFERENCE, key=private)
        vouch.sign(adapter, key=second, add=True)
        pushed = api.push(adapter, REFERENCE)
        (version / CARD_NAME).write_text("# A card\n")
        names = signature_names(path.name for path in version.iterdir())
        verify_theirs(
            version, public, **({"ignored": [*names, CARD_NAME]} if how == "ignored" else {"only_signed": True})
        )

        assert len(names) == len(pushed.signers) == 2
        assert vouch.verify(version, key=second_public).adapter.digest == pushed.digest

    def test_the_second_signature(self, adapter, version, key, tmp_path):
        """The bundle of a further signer is one like the first."""
        (tmp_path / "second").mkdir()
        second, second_public = key_files(tmp_path / "second", ec.generate_private_key(ec.SECP256R1()))
        vouch.sign(adapter, REFERENCE, key=key[0])
        further = vouch.sign(adapter, key=second, add=True).path
        config = verifying.Config().use_elliptic_key_verifier(public_key=second_public)

        config.set_ignore_unsigned_files(True).verify(adapter, further)


class TestOfTheirs:
    """What model-signing signs, we verify, if it is the three files of a version."""

    @pytest.fixture
    def published(self, adapter, version, key):
        """A version that was pushed unsigned and then signed by model-signing."""
        api.push(adapter, REFERENCE)
        sign_theirs(version, key[0])
        return version

    def test_verify(self, published, key):
        """`verify` accepts it, and says who signed."""
        verified = vouch.verify(published, key=key[1])

        assert verified.adapter.signers == (Signer(hashlib.sha256(key[1].read_bytes()).hexdigest()),)
        assert str(verified.adapter.manifest.reference) == REFERENCE

    def test_pull_under_a_rule(self, published, key):
        """`pull` accepts it under a rule that names the key, and again from the store, with the signature."""
        trust.trust_key(trust.read_public_key(key[1]), scope="org/task")
        pulled = [api.pull(REFERENCE) for _ in range(2)]

        assert {p.adapter.signers for p in pulled} == {(Signer(hashlib.sha256(key[1].read_bytes()).hexdigest()),)}
        assert (pulled[0].path / SIGNATURE_NAME).read_bytes() == (published / SIGNATURE_NAME).read_bytes()

    def test_pull_under_a_rule_for_others(self, published, tmp_path):
        """`pull` refuses it under a rule that names somebody else."""
        trust.trust_key(PublicKey.parse(spki(ec.generate_private_key(ec.SECP256R1())).decode()), scope="org/*")

        with pytest.raises(UntrustedError, match="is signed by key"):
            api.pull(REFERENCE)

    @pytest.mark.parametrize("name", VERSION_FILES)
    def test_what_was_changed(self, published, key, name):
        """One changed bit, and it is refused."""
        changed(published / name)

        with pytest.raises((IntegrityError, DocumentError)):
            vouch.verify(published, key=key[1])

    @pytest.mark.parametrize("ignored", [(), (CARD_NAME,)], ids=["signed", "ignored"])
    def test_with_a_card(self, adapter, version, key, ignored):
        """A card may be ignored by whoever signs; a signature over it is one over other files than a version has."""
        api.push(adapter, REFERENCE)
        (version / CARD_NAME).write_text("# A card\n")
        sign_theirs(version, key[0], ignored=ignored)

        if ignored:
            assert vouch.verify(version, key=key[1]).adapter.signers
        else:
            with pytest.raises(DocumentError, match=CARD_NAME):
                vouch.verify(version, key=key[1])

    def test_with_the_weights_left_out(self, published, key):
        """A signer that ignores the weights vouches for nothing."""
        (published / SIGNATURE_NAME).unlink()
        sign_theirs(published, key[0], ignored=["adapter_model.safetensors"])

        with pytest.raises(DocumentError, match=r"ignore_paths|adapter_model"):
            vouch.verify(published, key=key[1])

    @pytest.mark.parametrize("method", ["blake2", "blake3", "shards"])
    def test_hashed_in_another_way(self, published, key, method):
        """Other digests than SHA-256 of whole files are refused: ours are the only ones that are compared."""
        config = hashing.Config().set_ignored_paths(paths=[published / SIGNATURE_NAME])
        if method == "shards":
            config.use_shard_serialization(shard_size=512)
        else:
            config.use_file_serialization(hashing_algorithm=method)
        signer = signing.Config().use_elliptic_key_signer(private_key=key[0]).set_hashing_config(config)
        signer.sign(published, published / SIGNATURE_NAME)

        with pytest.raises(DocumentError):
            vouch.verify(published, key=key[1])


# scripts/tests/v1.1.0-elliptic-key/model.sig of https://github.com/sigstore/model-transparency (Apache-2.0), as commit
# b0e839c65a5784843a51d67438898d095d7f1d6d has it, taken apart; and the key, `keys/certificate/signing-key-pub.pem`.
STATEMENT = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [
        {
            "name": "v1.1.0-elliptic-key",
            "digest": {"sha256": "92745110b1ab4368471cbe31664e10174e954b113a3df333db860317b2c6dec4"},
        }
    ],
    "predicateType": "https://model_signing/signature/v1.0",
    "predicate": {
        "resources": [
            {
                "algorithm": "sha256",
                "name": "signme-1",
                "digest": "bc9a717db6064a32cbe9eae6fc40651dd6d36ef1757183f590eff2b1765d7ebc",
            },
            {
                "algorithm": "sha256",
                "name": "signme-2",
                "digest": "32dcb1f8e1ae52d5963e56a6ba06ab58b424c15ed2a6b70d2feca1d089370028",
            },
        ],
        "serialization": {
            "allow_symlinks": False,
            "method": "files",
            "hash_type": "sha256",
            "ignore_paths": [".git", "model.sig", "ignore-me", ".gitattributes", ".gitignore", ".github"],
        },
    },
}
FINGERPRINT = "e8450dec4eb99dae995da9af1bc2cc9f76ed669ee2e744f57abba763df3e3f8e"
PUBLIC = """-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAEsu6rZGBTjxtvRWPMixT+3HyndV0J0Ybt
aHZUcO4DEK+OJHO/4e32bb/fbJKSpRgcBsIpKLcVijUomyFOERbd7u+BTPSUjGZD
Qq6J7lTvp/EAXQGOKxW9RP0MGX3qAkvi
-----END PUBLIC KEY-----
"""
SIGNATURE = (
    "MGUCMQCVqSw64cBnPHqbyadq+OIgwQSg7WW8Mztp3dJ++atQsxzbtwafJJ164u7WEXmx5hECMBSiShuN7OTLec6wLXpHUjFIQA/hhiBCjSzM9Q2c"
    "IUZpDmv+tWs1AkNxstJDbNl0lQ=="
)


def bundle_of_model_signing() -> bytes:
    """Return the bundle that model-signing 1.1.0 wrote, byte for byte."""
    document = {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": FINGERPRINT}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(json.dumps(STATEMENT, indent=2).encode()).decode(),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": SIGNATURE, "keyid": ""}],
        },
    }
    return json.dumps(document, separators=(",", ":")).encode()


class TestOfARelease:
    """The bundle that model-signing 1.1.0 keeps for its own tests: P-384, over two files that are none of ours."""

    def test_it_parses_and_verifies(self):
        """It is read, the key that it names is ours by fingerprint, and the signature is that key's."""
        bundle, public = Bundle.parse(bundle_of_model_signing()), PublicKey.parse(PUBLIC)
        verify_signature(public, bundle)

        assert bundle.hint == public.fingerprint == FINGERPRINT

    def test_it_verifies_there(self, tmp_path):
        """model-signing 1.1.1 agrees: its complaint is about the two files, which are not here."""
        (tmp_path / "public.pem").write_text(PUBLIC)
        (tmp_path / "v1.1.0-elliptic-key").mkdir()
        (tmp_path / "v1.1.0-elliptic-key" / SIGNATURE_NAME).write_bytes(bundle_of_model_signing())

        with pytest.raises(ValueError, match=r"Missing files in model .* signme-1, signme-2"):
            verify_theirs(tmp_path / "v1.1.0-elliptic-key", tmp_path / "public.pem")

    def test_one_changed_bit(self):
        """With one bit of the statement changed, the signature is not one over it."""
        bundle = Bundle.parse(bundle_of_model_signing())
        payload = bundle.payload.replace(b"signme-1", b"signme-3")

        with pytest.raises(IntegrityError, match="not one of the key"):
            verify_signature(
                PublicKey.parse(PUBLIC), Bundle(hint=FINGERPRINT, payload=payload, signature=bundle.signature)
            )

    def test_it_vouches_for_no_adapter(self, adapter, tmp_path):
        """Beside an adapter it is refused, although the signature is good and the key is trusted."""
        (tmp_path / "public.pem").write_text(PUBLIC)
        api.push(adapter, REFERENCE, registry=tmp_path / "registry")
        version = tmp_path / "registry" / "org" / "task" / "1.0.0"
        write_files(version, {SIGNATURE_NAME: bundle_of_model_signing()})

        with pytest.raises(DocumentError, match=r"expected one of adapter_config.json|expected nothing but"):
            vouch.verify(version, key=tmp_path / "public.pem")


@pytest.mark.parametrize("curve", CURVES)
def test_the_fingerprint_is_that_of_openssl(tmp_path, curve):
    """A fingerprint is what `openssl pkey -pubin -pubout | sha256sum` prints, and what model-signing writes as hint."""
    public = vouch.generate_key("org", curve=curve)
    loaded = serialization.load_pem_public_key(public.pem.encode())
    pem = loaded.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    assert public.pem.encode() == pem
    assert public.fingerprint == hashlib.sha256(pem).hexdigest()
    assert PublicKey.parse(public.pem.replace("\n", "\r\n")).fingerprint == public.fingerprint


@pytest.mark.parametrize("curve", CURVES)
def test_the_hint_is_that_of_model_signing(adapter, tmp_path, curve):
    """Both tools give one key the same name in their bundles, and say the same about the same files."""
    private, public = key_files(tmp_path, ec.generate_private_key(_EC[curve]))
    vouch.sign(adapter, REFERENCE, key=private)
    ours = Bundle.parse((adapter / SIGNATURE_NAME).read_bytes())
    sign_theirs(adapter, private, ignored=[CARD_NAME])
    theirs = Bundle.parse((adapter / SIGNATURE_NAME).read_bytes())

    assert ours.hint == theirs.hint == trust.read_public_key(public).fingerprint
    assert SignedFiles.parse(ours.payload).digests == SignedFiles.parse(theirs.payload).digests
