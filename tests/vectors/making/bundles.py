"""What can be wrong with ``model.sig``; everything else about the version is right."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from vectors.making.case import Case, refused
from vectors.making.published import (
    CONFIG_NAME,
    KEY,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    STRANGER,
    Change,
    Document,
    Files,
    base64_of,
    bundle_of,
    dump,
    fingerprint,
    further_name,
    pre_authentication,
    public_pem,
    sha256,
    sign,
    signed,
    statement_of,
    version,
)

FILES = version()
BUNDLE = signed(FILES)[SIGNATURE_NAME]
PAYLOAD = dump(statement_of(FILES))
SIGNED = sign(pre_authentication(PAYLOAD), KEY)


def raw(content: bytes) -> Files:
    """Return the version with *content* for a bundle."""
    return {**FILES, SIGNATURE_NAME: content}


def around(change: Change) -> Files:
    """Return the version with *change* made to its bundle, whose signature is still right."""
    return signed(FILES, bundle=change)


def material(**changes: object) -> Files:
    """Return the version with *changes* in what its bundle is verified with."""
    return around(lambda d: d["verificationMaterial"].update(changes))


def envelope(**changes: object) -> Files:
    """Return the version with *changes* in the envelope of its bundle."""
    return around(lambda d: d["dsseEnvelope"].update(changes))


def signature(**changes: object) -> Files:
    """Return the version with *changes* in the one signature of its bundle."""
    return around(lambda d: d["dsseEnvelope"]["signatures"][0].update(changes))


def without(document: Document, *path: str) -> None:
    """Remove what stands at *path*."""
    *outer, last = path
    for key in outer:
        document = document[key]
    del document[last]


def lacking(*path: str) -> Files:
    """Return the version without what stands at *path* of its bundle."""
    return around(lambda d: without(d, *path))


def signing(content: bytes) -> Files:
    """Return the version with *content* for a signature."""
    return raw(dump(bundle_of(PAYLOAD, signature=content)))


def twice(text: bytes, line: bytes) -> bytes:
    """Return *text* with its one *line* standing there twice."""
    assert text.count(line) == 1
    return text.replace(line, line + b", " + line)


def _is_no_json() -> Iterator[tuple[str, Case]]:
    not_json = "not valid JSON"
    yield "json_is_empty", refused(8, not_json, raw(b""))
    yield "json_is_cut_off", refused(8, not_json, raw(BUNDLE[:-20]))
    yield "json_is_an_array", refused(8, "must be a JSON object", raw(b"[]"))
    yield "json_is_not_utf8", refused(8, not_json, raw(BUNDLE.replace(b"keyid", b"key\xff")))
    yield "json_has_a_byte_order_mark", refused(8, not_json, raw(b"\xef\xbb\xbf" + BUNDLE))
    media_type = b'"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"'
    yield "json_has_a_key_twice", refused(8, "stands twice", raw(twice(BUNDLE, media_type)))
    yield "json_holds_a_nan", refused(8, "NaN", raw(BUNDLE.replace(b'"keyid": ""', b'"keyid": NaN')))
    deep = b'"keyid": ' + b"[" * 20 + b"]" * 20
    yield "json_is_too_deep", refused(8, "nested deeper", raw(BUNDLE.replace(b'"keyid": ""', deep)))
    half = BUNDLE.replace(b'"keyid": ""', b'"keyid": "\\ud800"')
    yield "json_has_half_a_surrogate_pair", refused(8, not_json, raw(half))
    pad = {"pad": {SIGNATURE_NAME: 64 * 1024 + 1}}
    yield "json_is_too_large", refused(8, "at most 65536", raw(BUNDLE), error="MalformedError", special=pad)
    yield "pickle_for_a_bundle", refused(8, not_json, raw(b"\x80\x04cos\nsystem\n\x8c\x04true\x85R."))


def _is_no_bundle() -> Iterator[tuple[str, Case]]:
    old = "application/vnd.dev.sigstore.bundle+json;version=0.2"
    yield "media_type_is_older", refused(8, "mediaType", around(lambda d: d.update(mediaType=old)))
    yield "media_type_is_missing", refused(8, "mediaType", lacking("mediaType"))
    yield "field_is_unknown", refused(8, "unknown key", around(lambda d: d.update(messageSignature={})))
    yield (
        "field_name_has_an_escape_sequence",
        refused(8, "\\u001b[2J", around(lambda d: d.update({"\x1b[2J\x07\u202e": 1}))),
    )
    yield "material_is_missing", refused(8, "verificationMaterial", lacking("verificationMaterial"))
    yield "material_field_is_unknown", refused(8, "unknown key", material(x509CertificateChain={"certificates": []}))
    yield "material_has_a_key_and_a_certificate", refused(8, "unknown key", material(certificate={"rawBytes": "MAA="}))
    yield "key_is_missing", refused(8, "publicKey", lacking("verificationMaterial", "publicKey"))
    yield "key_has_bytes_of_its_own", refused(8, "unknown key", material(publicKey={"hint": "0" * 64, "rawBytes": ""}))
    yield "hint_is_missing", refused(8, "hint", material(publicKey={}))
    yield "hint_is_upper_case", refused(8, "hint", material(publicKey={"hint": fingerprint(KEY).upper()}))
    yield "hint_is_short", refused(8, "hint", material(publicKey={"hint": fingerprint(KEY)[:16]}))
    yield "hint_escapes_root", refused(8, "hint", material(publicKey={"hint": "../../../etc/passwd"}))
    yield "log_entry_beside_a_key", refused(8, "tlogEntries", material(tlogEntries=[{"logIndex": "1"}]))
    yield "timestamp_beside_a_key", refused(8, "timestamp", material(timestampVerificationData={"rfc3161": [1]}))


def _is_no_envelope() -> Iterator[tuple[str, Case]]:
    yield "envelope_is_missing", refused(8, "dsseEnvelope", lacking("dsseEnvelope"))
    yield "envelope_field_is_unknown", refused(8, "unknown key", envelope(payload2=""))
    yield "payload_type_is_another", refused(8, "payloadType", envelope(payloadType="application/json"))
    yield "payload_is_missing", refused(8, "payload", lacking("dsseEnvelope", "payload"))
    yield "payload_is_empty", refused(8, "base64", envelope(payload=""))
    yield "payload_has_a_line_break", refused(8, "base64", envelope(payload=base64.encodebytes(PAYLOAD).decode()))
    yield "payload_has_unread_bits", refused(8, "base64", _with_unread_bits())
    yield "payload_has_padding_too_much", refused(8, "base64", envelope(payload=base64_of(PAYLOAD).rstrip("=") + "==="))
    yield "signatures_are_missing", refused(8, "signatures", lacking("dsseEnvelope", "signatures"))
    yield "signatures_are_none", refused(8, "one signature", envelope(signatures=[]))
    one = {"sig": base64_of(SIGNED), "keyid": ""}
    yield "signatures_are_two", refused(8, "one signature", envelope(signatures=[one, one]))
    yield "signatures_is_an_object", refused(8, "signatures", envelope(signatures=one))
    yield "signature_field_is_unknown", refused(8, "unknown key", signature(cert="x"))
    yield (
        "signature_is_missing",
        refused(8, "base64", around(lambda d: without(d["dsseEnvelope"]["signatures"][0], "sig"))),
    )
    yield "signature_is_empty", refused(8, "base64", signature(sig=""))
    url_safe = base64.urlsafe_b64encode(b"\xff\xfe" + SIGNED).decode()
    yield "signature_is_in_another_alphabet", refused(8, "base64", signature(sig=url_safe))
    yield "signature_is_a_number", refused(8, "base64", signature(sig=1))
    yield "keyid_is_a_number", refused(8, "keyid", signature(keyid=1))


def _with_unread_bits() -> Files:
    payload = PAYLOAD + b"\n" * ((1 - len(PAYLOAD)) % 3)  # so its base64 ends with `xy==`, and 4 bits of y mean nothing
    text = base64_of(payload)
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    loose = f"{text[:-3]}{alphabet[alphabet.index(text[-3]) + 1]}=="
    assert base64.b64decode(loose) == payload
    document = bundle_of(payload)
    document["dsseEnvelope"]["payload"] = loose
    return raw(dump(document))


def _does_not_verify() -> Iterator[tuple[str, Case]]:
    bad = "the signature is not one of the key"
    yield "signature_has_a_flipped_bit", refused(6, bad, signing(SIGNED[:-1] + bytes([SIGNED[-1] ^ 1])))
    yield "signature_has_a_byte_more", refused(6, bad, signing(SIGNED + b"\0"))
    yield "signature_is_cut_off", refused(6, bad, signing(SIGNED[:-1]))
    r, s = decode_dss_signature(SIGNED)
    yield "signature_is_not_der", refused(6, bad, signing(r.to_bytes(32) + s.to_bytes(32)))
    yield "signature_is_zero", refused(6, bad, signing(encode_dss_signature(0, 0)))
    yield "signature_is_swapped", refused(6, bad, signing(encode_dss_signature(s, r)))
    yield (
        "signature_is_of_another_hash",
        refused(6, bad, signing(sign(pre_authentication(PAYLOAD), KEY, hashes.SHA512()))),
    )
    yield "signature_is_of_the_payload_alone", refused(6, bad, signing(sign(PAYLOAD, KEY)))
    other_type = pre_authentication(PAYLOAD, "application/json")
    yield "signature_is_of_another_payload_type", refused(6, bad, signing(sign(other_type, KEY)))
    yield "signature_is_of_the_manifest", refused(6, bad, signing(sign(FILES[MANIFEST_NAME], KEY)))
    yield "signature_is_of_a_stranger", refused(6, bad, signing(sign(pre_authentication(PAYLOAD), STRANGER)))
    text = json.dumps(json.loads(PAYLOAD)).encode()
    yield "payload_is_formatted_anew", refused(6, bad, raw(dump(bundle_of(text, signature=SIGNED))))
    digest = sha256(FILES[CONFIG_NAME]).encode()
    changed = PAYLOAD.replace(digest, b"0" * 64)
    yield "payload_is_changed", refused(6, bad, raw(dump(bundle_of(changed, signature=SIGNED))))
    yield "hint_is_that_of_the_trusted_key", refused(6, bad, signed(FILES, STRANGER, bundle=_claims_trusted_key))
    both = {**FILES, further_name(KEY): signing(SIGNED[:-1] + bytes([SIGNED[-1] ^ 1]))[SIGNATURE_NAME]}
    yield "second_bundle_does_not_verify", refused(6, bad, {**both, SIGNATURE_NAME: BUNDLE})
    junk = {**FILES, SIGNATURE_NAME: BUNDLE, "model.00000000.sig": b"{}"}
    yield "second_bundle_is_none", refused(8, "mediaType", junk)


def _claims_trusted_key(document: Document) -> None:
    document["verificationMaterial"]["publicKey"]["hint"] = fingerprint(KEY)


def _is_of_nobody() -> Iterator[tuple[str, Case]]:
    yield "signer_is_a_stranger", refused(5, f"signed by key {fingerprint(STRANGER)}", signed(FILES, STRANGER))
    yield "bundle_is_missing", refused(5, "unsigned", FILES)
    yield "bundle_has_another_name", refused(5, "unsigned", {**FILES, "lora-hub.sig": BUNDLE, "model.sig.bak": BUNDLE})
    yield "key_is_brought_along", refused(5, "signed by key", signed(FILES, STRANGER, statement=_brings_its_key))


def _brings_its_key(statement: Document) -> None:
    statement["predicate"]["signer"] = {"public_key": public_pem(STRANGER).decode()}


def cases() -> Iterator[tuple[str, Case]]:
    """Yield the vectors by name."""
    yield from _is_no_json()
    yield from _is_no_bundle()
    yield from _is_no_envelope()
    yield from _does_not_verify()
    yield from _is_of_nobody()
