"""One published version of a tiny adapter, made and signed from the formats' descriptions alone: lora-hub is not asked.

Signatures follow the OpenSSF Model Signing specification: ECDSA over the DSSE envelope of an in-toto statement.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from typing import Any

from adapter_files import (
    CONFIG_NAME,
    MANIFEST_NAME,
    WEIGHTS_NAME,
    AdapterFiles,
    Tensor,
    lora_key,
    pack,
    peft_config,
    safetensors,
    to_json,
)
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SIGNATURE_NAME = "model.sig"
VERSION_FILES = (CONFIG_NAME, WEIGHTS_NAME, MANIFEST_NAME)
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
SIGNATURE_TYPE = "https://model_signing/signature/v1.0"

Files = dict[str, bytes]
Document = dict[str, Any]
Change = Callable[[Document], object]
PrivateKey = ec.EllipticCurvePrivateKey

# Keys that everybody knows: nothing but these vectors may ever be signed with them.
KEY, SECOND, STRANGER = (ec.derive_private_key(number, ec.SECP256R1()) for number in (0x10A1, 0x10A2, 0x10A3))
P384 = ec.derive_private_key(0x10A4, ec.SECP384R1())
P521 = ec.derive_private_key(0x10A5, ec.SECP521R1())
_HASHES = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}

Q, V, FUSED = "layers.0.q_proj", "layers.0.v_proj", "layers.0.c_attn"
HIDDEN = 4
WIDTHS = {Q: 4, V: 2, FUSED: 12}  # outputs


def sha256(content: bytes) -> str:
    """Return the SHA-256 of *content* in hex."""
    return hashlib.sha256(content).hexdigest()


def dump(document: object) -> bytes:
    """Return *document* as JSON for people."""
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False).encode() + b"\n"


def private_pem(key: PrivateKey) -> bytes:
    """Return *key* as PKCS#8."""
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain)


def public_pem(key: PrivateKey) -> bytes:
    """Return the public half of *key* as SubjectPublicKeyInfo."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


def fingerprint(key: PrivateKey) -> str:
    """Return what bundles call *key*: the SHA-256 of its public PEM."""
    return sha256(public_pem(key))


# The adapter


def tensor(*shape: int, dtype: str = "F32", number: float | None = None) -> Tensor:
    """Return a tensor of small numbers that every dtype holds exactly, or of *number* alone."""
    count = 1
    for size in shape:
        count *= size
    numbers = [(i * 7 % 13 - 6) / 16 if number is None else number for i in range(count)]
    return Tensor(dtype=dtype, shape=shape, content=pack(numbers, dtype))


def pair(path: str, r: int = 1, dtype: str = "F32") -> dict[str, Tensor]:
    """Return A and B of the module at *path*."""
    a, b = tensor(r, HIDDEN, dtype=dtype), tensor(WIDTHS[path], r, dtype=dtype)
    return {lora_key(path, "A"): a, lora_key(path, "B"): b}


def adapter(*, r: int = 1, dtype: str = "F32", **config: Any) -> AdapterFiles:
    """Return an adapter of q and v, with *config* in its config."""
    tensors = {**pair(Q, r, dtype), **pair(V, r, dtype)}
    return AdapterFiles(config=peft_config(**{"r": r, "lora_alpha": 2, **config}), tensors=tensors)


def fused_adapter() -> AdapterFiles:
    """Return an adapter of q and v in one module that holds q, k and v: rank 1 each, stacked, and k left out."""
    rows = [[1, 0]] * 4 + [[0, 0]] * 4 + [[0, 1]] * 4
    b = Tensor(dtype="F32", shape=(12, 2), content=pack([float(n) for row in rows for n in row], "F32"))
    tensors = {lora_key(FUSED, "A"): tensor(2, HIDDEN), lora_key(FUSED, "B"): b}
    return AdapterFiles(config=peft_config(r=2, lora_alpha=4, target_modules=["c_attn"]), tensors=tensors)


SLICES = [
    {
        "modules": [FUSED],
        "parts": [
            {"part": "q", "r": 1, "alpha": 2, "rows": [[0, 4]]},
            {"part": "v", "r": 1, "alpha": 2, "rows": [[8, 12]]},
        ],
    }
]


# The files of a version


def unchanged(document: Document) -> None:
    """Change nothing."""


def version(
    made: AdapterFiles | None = None,
    *,
    config: bytes | None = None,
    weights: bytes | None = None,
    manifest: Change = unchanged,
    lora: Document | None = None,
) -> Files:
    """Return the three files of ``org/task@1.0.0``, unsigned.

    Args:
        made: The adapter.
        config: In place of its config.
        weights: In place of its weights.
        manifest: Changes the manifest, which describes what is there.
        lora: What is other than usual in the manifest's summary.
    """
    made = made or adapter()
    files = {
        CONFIG_NAME: config if config is not None else to_json(made.config),
        WEIGHTS_NAME: weights if weights is not None else safetensors(made.tensors, {"format": "pt"}),
    }
    document = {
        "schema": "lora-hub/manifest/v1",
        "name": "org/task",
        "version": "1.0.0",
        "created": "2026-01-31T12:00:00Z",
        "base": {"repo": "org/base"},
        "lora": {"r": 1, "alpha": 2, "targets": ["q_proj", "v_proj"], "dtype": "float32", "parameters": 14},
        "files": [{"name": n, "size": len(content), "sha256": sha256(content)} for n, content in files.items()],
    }
    document["lora"] |= lora or {}
    manifest(document)
    return {**files, MANIFEST_NAME: dump(document)}


def fused_version(slices: list[Document]) -> Files:
    """Return the three files of the fused adapter, whose manifest cuts it up by *slices*."""
    lora = {"r": 1, "alpha": 2, "targets": ["q", "v"], "parameters": 16, "slices": slices}
    return version(fused_adapter(), lora=lora)


# Its signature


def statement_of(files: Files) -> Document:
    """Return the in-toto statement about the three files."""
    digests = {name: sha256(files[name]) for name in VERSION_FILES}
    root = hashlib.sha256(b"".join(map(bytes.fromhex, digests.values()))).hexdigest()
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": "org/task@1.0.0", "digest": {"sha256": root}}],
        "predicateType": SIGNATURE_TYPE,
        "predicate": {
            "resources": [{"name": n, "algorithm": "sha256", "digest": digest} for n, digest in digests.items()],
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [".git", ".gitattributes", ".github", ".gitignore", "model.sig"],
            },
        },
    }


def pre_authentication(payload: bytes, kind: str = PAYLOAD_TYPE) -> bytes:
    """Return what a DSSE envelope signs (https://github.com/secure-systems-lab/dsse, "PAE")."""
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind.encode(), len(payload), payload)


def sign(message: bytes, key: PrivateKey, algorithm: hashes.HashAlgorithm | None = None) -> bytes:
    """Return the signature of *message*, the same for the same message (RFC 6979)."""
    return key.sign(message, ec.ECDSA(algorithm or _HASHES[key.curve.name], deterministic_signing=True))


def base64_of(content: bytes) -> str:
    """Return *content* in base64."""
    return base64.b64encode(content).decode()


def bundle_of(payload: bytes, key: PrivateKey = KEY, *, signature: bytes | None = None) -> Document:
    """Return the bundle of *payload*, signed by *key*, or with another *signature* in it."""
    return {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": fingerprint(key)}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64_of(payload),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64_of(signature or sign(pre_authentication(payload), key)), "keyid": ""}],
        },
    }


def signed(
    files: Files,
    key: PrivateKey = KEY,
    *,
    statement: Change = unchanged,
    bundle: Change = unchanged,
    name: str = SIGNATURE_NAME,
) -> Files:
    """Return *files* and a bundle beside them: *statement* changes what is signed, *bundle* what is around it."""
    said = statement_of(files)
    statement(said)
    document = bundle_of(dump(said), key)
    bundle(document)
    return {**files, name: dump(document)}


def further_name(key: PrivateKey) -> str:
    """Return the name of the bundle of one more signer."""
    return f"model.{fingerprint(key)[:8]}.sig"
