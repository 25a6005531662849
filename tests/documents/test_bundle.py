"""The bundle: one signature over one statement, of which nothing goes unread."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_hub.documents.bundle import (
    MAX_BUNDLE,
    MAX_SIGNATURES,
    MEDIA_TYPE,
    PAYLOAD_TYPE,
    SIGNATURE_NAME,
    Bundle,
    further_name,
    is_signature_name,
    signature_names,
)
from lora_hub.errors import DocumentError

HINT = "3c" * 32
BUNDLE = Bundle(hint=HINT, payload=b'{"_type": "x"}', signature=b"0\x45signature")
MISSING = object()  # takes a key away

# Where each defect is, what stands there instead, and where the error points.
DEFECTS = {
    "the media type is older": ("mediaType", MEDIA_TYPE.replace("v0.3", "v0.2"), "mediaType"),
    "the media type is missing": ("mediaType", MISSING, "mediaType"),
    "an unknown key": ("extra", 1, "extra"),
    "no verification material": ("verificationMaterial", MISSING, "verificationMaterial"),
    "the material is empty": ("verificationMaterial", {}, "verificationMaterial.publicKey"),
    "the material is a chain": (
        "verificationMaterial",
        {"x509CertificateChain": {"certificates": []}},
        "verificationMaterial.x509CertificateChain",
    ),
    "an unknown key in the material": ("verificationMaterial.extra", 1, "verificationMaterial.extra"),
    "an unknown key beside the hint": (
        "verificationMaterial.publicKey.rawBytes",
        "QQ==",
        "verificationMaterial.publicKey.rawBytes",
    ),
    "the hint is missing": ("verificationMaterial.publicKey.hint", MISSING, "verificationMaterial.publicKey.hint"),
    "the hint is empty": ("verificationMaterial.publicKey.hint", "", "verificationMaterial.publicKey.hint"),
    "the hint is short": ("verificationMaterial.publicKey.hint", "3c" * 31, "verificationMaterial.publicKey.hint"),
    "the hint is upper case": ("verificationMaterial.publicKey.hint", "3C" * 32, "verificationMaterial.publicKey.hint"),
    "the hint is a path": ("verificationMaterial.publicKey.hint", "../" * 21, "verificationMaterial.publicKey.hint"),
    "a log entry beside a key": (
        "verificationMaterial.tlogEntries",
        [{"logIndex": 1}],
        "verificationMaterial.tlogEntries",
    ),
    "a timestamp beside a key": (
        "verificationMaterial.timestampVerificationData",
        {"rfc3161Timestamps": [{}]},
        "verificationMaterial.timestampVerificationData",
    ),
    "no envelope": ("dsseEnvelope", MISSING, "dsseEnvelope"),
    "the envelope is a list": ("dsseEnvelope", [], "dsseEnvelope"),
    "an unknown key in the envelope": ("dsseEnvelope.extra", 1, "dsseEnvelope.extra"),
    "another payload type": ("dsseEnvelope.payloadType", "text/plain", "dsseEnvelope.payloadType"),
    "no payload": ("dsseEnvelope.payload", MISSING, "dsseEnvelope.payload"),
    "the payload is empty": ("dsseEnvelope.payload", "", "dsseEnvelope.payload"),
    "the payload is no base64": ("dsseEnvelope.payload", "e30?", "dsseEnvelope.payload"),
    "the payload is URL-safe base64": ("dsseEnvelope.payload", "-_8=", "dsseEnvelope.payload"),
    "the payload has a space": ("dsseEnvelope.payload", "e 30=", "dsseEnvelope.payload"),
    "the payload has a line break": ("dsseEnvelope.payload", "e30=\n", "dsseEnvelope.payload"),
    "the payload is not padded": ("dsseEnvelope.payload", "e30", "dsseEnvelope.payload"),
    "the payload is padded too far": ("dsseEnvelope.payload", "e30==", "dsseEnvelope.payload"),
    "a bit of the payload is unused": ("dsseEnvelope.payload", "e31=", "dsseEnvelope.payload"),
    "the payload is no text": ("dsseEnvelope.payload", 7, "dsseEnvelope.payload"),
    "the payload is not ASCII": ("dsseEnvelope.payload", "é30=", "dsseEnvelope.payload"),
    "no signatures": ("dsseEnvelope.signatures", MISSING, "dsseEnvelope.signatures"),
    "the signatures are empty": ("dsseEnvelope.signatures", [], "dsseEnvelope.signatures"),
    "two signatures": (
        "dsseEnvelope.signatures",
        [{"sig": "QQ==", "keyid": ""}, {"sig": "Qg==", "keyid": ""}],
        "dsseEnvelope.signatures",
    ),
    "a signature is a text": ("dsseEnvelope.signatures", ["QQ=="], "dsseEnvelope.signatures"),
    "the signature is empty": (
        "dsseEnvelope.signatures",
        [{"sig": "", "keyid": ""}],
        "dsseEnvelope.signatures[0].sig",
    ),
    "the signature is missing": ("dsseEnvelope.signatures", [{"keyid": ""}], "dsseEnvelope.signatures[0].sig"),
    "a bit of the signature is unused": (
        "dsseEnvelope.signatures",
        [{"sig": "QR==", "keyid": ""}],
        "dsseEnvelope.signatures[0].sig",
    ),
    "an unknown key beside the signature": (
        "dsseEnvelope.signatures",
        [{"sig": "QQ==", "keyid": "", "cert": ""}],
        "dsseEnvelope.signatures[0].cert",
    ),
    "the key id is null": (
        "dsseEnvelope.signatures",
        [{"sig": "QQ==", "keyid": None}],
        "dsseEnvelope.signatures[0].keyid",
    ),
}

BROKEN = {
    "empty": b"",
    "no JSON": b"-----BEGIN",
    "an array": b"[]",
    "cut off": BUNDLE.to_bytes()[:-10],
    "a key twice": BUNDLE.to_bytes().replace(b'"hint"', b'"hint": "x", "hint"'),
    "deep": b'{"mediaType":' * 2000,
    "a number that is none": b'{"mediaType": NaN}',
    "not UTF-8": b'{"mediaType": "\xff"}',
    "half a surrogate pair": rb'{"mediaType": "\ud800"}',
}


def changed(place: str, value: object) -> bytes:
    """The bundle with *value* at *place*."""
    document = json.loads(BUNDLE.to_bytes())
    *path, last = place.split(".")
    inner = document
    for key in path:
        inner = inner[key]
    inner.pop(last, None)
    if value is not MISSING:
        inner[last] = value
    return json.dumps(document).encode()


@given(
    payload=st.binary(min_size=1, max_size=200),
    signature=st.binary(min_size=1, max_size=150),
    hint=st.binary(min_size=32, max_size=32),
)
def test_what_is_written_is_read(payload, signature, hint):
    """Every payload and every signature comes back as it was written."""
    bundle = Bundle(hint=hint.hex(), payload=payload, signature=signature)

    assert Bundle.parse(bundle.to_bytes()) == bundle


def test_the_same_bundle_makes_the_same_bytes():
    """Two bundles of the same content are the same file."""
    assert Bundle.parse(BUNDLE.to_bytes()).to_bytes() == BUNDLE.to_bytes()


def test_the_format_is_that_of_model_signing():
    """Media type, payload type, hint and one signature stand where OpenSSF Model Signing has them."""
    document = json.loads(BUNDLE.to_bytes())

    assert document["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert document["verificationMaterial"]["publicKey"] == {"hint": HINT}
    assert document["dsseEnvelope"]["payloadType"] == "application/vnd.in-toto+json"
    assert base64.b64decode(document["dsseEnvelope"]["payload"]) == BUNDLE.payload
    assert [base64.b64decode(one["sig"]) for one in document["dsseEnvelope"]["signatures"]] == [BUNDLE.signature]


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_refused_where_it_is(defect):
    """What is no bundle of one signature is refused (8), and the error points at the offending key."""
    place, value, context = DEFECTS[defect]
    with pytest.raises(DocumentError) as caught:
        Bundle.parse(changed(place, value))

    assert caught.value.context == context
    assert caught.value.exit_code == 8
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_document_is_refused(content):
    """What is not one JSON object, each key once, is refused in one printable line."""
    with pytest.raises(DocumentError, match="bundle") as caught:
        Bundle.parse(content)

    assert caught.value.message.isprintable()


@pytest.mark.parametrize(
    "place", ["verificationMaterial.tlogEntries", "verificationMaterial.timestampVerificationData"]
)
@pytest.mark.parametrize("nothing", [MISSING, None, [], {}], ids=["missing", "null", "[]", "{}"])
def test_what_is_empty_beside_a_key_is_nothing(place, nothing):
    """A log entry or a timestamp that is not there may be spelt as other tools spell it."""
    assert Bundle.parse(changed(place, nothing)) == BUNDLE


@pytest.mark.parametrize("keyid", [MISSING, "", "anything", HINT], ids=["missing", "empty", "any", "the hint"])
def test_the_key_id_means_nothing(keyid):
    """The key id of the envelope may be there or not: only the hint names the key."""
    signature = {"sig": base64.b64encode(BUNDLE.signature).decode(), "keyid": keyid}
    content = changed("dsseEnvelope.signatures", [{k: v for k, v in signature.items() if v is not MISSING}])

    assert Bundle.parse(content) == BUNDLE


def test_a_certificate_makes_a_keyless_signer():
    """A bundle with a certificate has no hint: who signed it is for sigstore to prove."""
    content = changed("verificationMaterial", {"certificate": {"rawBytes": "QQ=="}, "tlogEntries": [{"logIndex": "1"}]})
    bundle = Bundle.parse(content)

    assert (bundle.hint, bundle.signature) == (None, b"")
    assert bundle.payload == BUNDLE.payload


def test_every_flipped_bit_is_noticed():
    """A bundle with one bit flipped is refused, or says something else than the whole one."""
    content, same = BUNDLE.to_bytes(), []
    for position in range(len(content) * 8):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        try:
            same += [position] if Bundle.parse(flipped) == BUNDLE else []
        except DocumentError:
            continue

    assert same == []


def test_a_bundle_is_bounded():
    """A bundle has at most 64 KiB; a byte more is refused before it is parsed."""
    content = BUNDLE.to_bytes()

    assert Bundle.parse(content.ljust(MAX_BUNDLE)) == BUNDLE
    with pytest.raises(DocumentError, match=f"at most {MAX_BUNDLE}"):
        Bundle.parse(content.ljust(MAX_BUNDLE + 1))
    with pytest.raises(DocumentError, match=f"at most {MAX_BUNDLE}"):
        Bundle.parse(b"{" * (MAX_BUNDLE + 1))


def test_bytes_may_lie_in_a_buffer():
    """What was read into a buffer is read like bytes."""
    assert Bundle.parse(bytearray(BUNDLE.to_bytes())) == BUNDLE


@pytest.mark.parametrize("name", ["model.sig", "model.0123abcd.sig", further_name(HINT)])
def test_these_names_are_those_of_signatures(name):
    """`model.sig`, and `model.<8 hex digits>.sig`."""
    assert is_signature_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "model",
        "Model.sig",
        "model.sig\n",
        "model.sig.bak",
        "xmodel.sig",
        "model..sig",
        "model.0123abc.sig",
        "model.0123abcde.sig",
        "model.0123ABCD.sig",
        "model.٠١٢٣٤٥٦٧.sig",
        "../model.sig",
        "model.0123abcd/sig",
        "model.0123abcdXsig",
        "modelXsig",
    ],
)
def test_no_other_name_is_that_of_a_signature(name):
    """Anything else is none, also what only resembles one."""
    assert not is_signature_name(name)


def test_the_first_signature_comes_first():
    """Of many files the signatures are picked: `model.sig` first, the others by name."""
    names = ["model.ffffffff.sig", "README.md", "model.00000000.sig", SIGNATURE_NAME, "model.sig.bak"]

    assert signature_names(names) == [SIGNATURE_NAME, "model.00000000.sig", "model.ffffffff.sig"]


def test_a_version_has_a_limited_number_of_signatures():
    """More than nine are not looked at, however many a registry has."""
    names = [f"model.{number:08x}.sig" for number in range(1000)]

    assert signature_names([*names, SIGNATURE_NAME]) == [SIGNATURE_NAME, *names[: MAX_SIGNATURES - 1]]
    assert signature_names([]) == []


def test_a_further_signature_is_called_after_its_key():
    """Its name has the first eight digits of the fingerprint."""
    assert further_name(HINT) == "model.3c3c3c3c.sig"


@pytest.mark.parametrize("content", [b"", b"{}", PAYLOAD_TYPE.encode(), HINT.encode()])
def test_a_refusal_says_what_to_do(content):
    """Whoever meets a broken bundle is told to ask for a new signature."""
    with pytest.raises(DocumentError) as caught:
        Bundle.parse(content)

    assert "sign it again" in caught.value.hint
