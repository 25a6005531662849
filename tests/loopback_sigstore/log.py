"""The transparency log (Rekor v1): a Merkle tree of what was signed, with a promise and a proof for each entry."""

import base64
import hashlib
import json
import time
from typing import Any

from loopback_sigstore.keys import Key, b64

ORIGIN = "loopback"


class TransparencyLog:
    """A log that others have written to before; its clock is *slow* (or fast, below zero) by so many seconds."""

    def __init__(self) -> None:
        self.key = Key()
        self.slow = 0
        self._entries = [f"entry {number}".encode() for number in range(4)]

    def add(self, proposed: dict[str, Any]) -> dict[str, Any]:
        """Append the entry that a client *proposed* for a DSSE envelope, and return the answer to it."""
        body = _canonical(_dsse_entry(proposed["spec"]["proposedContent"]))
        index = len(self._entries)
        self._entries.append(body)
        promised = {
            "body": b64(body),
            "integratedTime": int(time.time()) - self.slow,
            "logID": self.key.id.hex(),
            "logIndex": index,
        }
        verification = {
            "signedEntryTimestamp": b64(self.key.sign(_canonical(promised))),
            "inclusionProof": self._proof(index),
        }
        return {_leaf(body).hex(): promised | {"verification": verification}}

    def _proof(self, index: int) -> dict[str, Any]:
        root = _root(self._entries)
        return {
            "logIndex": index,
            "treeSize": len(self._entries),
            "rootHash": root.hex(),
            "hashes": [node.hex() for node in _path(index, self._entries)],
            "checkpoint": self._checkpoint(root),
        }

    def _checkpoint(self, root: bytes) -> str:
        """Return the signed note of the present tree: https://github.com/transparency-dev/formats/tree/main/log."""
        note = f"{ORIGIN}\n{len(self._entries)}\n{b64(root)}\n"
        signature = b64(self.key.id[:4] + self.key.sign(note.encode()))
        return f"{note}\n\N{EM DASH} {ORIGIN} {signature}\n"


def _dsse_entry(content: dict[str, Any]) -> dict[str, Any]:
    """Return what the log keeps of an envelope: https://github.com/sigstore/rekor/tree/main/pkg/types/dsse."""
    envelope = json.loads(content["envelope"])
    (verifier,) = content["verifiers"]
    return {
        "apiVersion": "0.0.1",
        "kind": "dsse",
        "spec": {
            "envelopeHash": _sha256(content["envelope"].encode()),
            "payloadHash": _sha256(base64.b64decode(envelope["payload"])),
            "signatures": [
                {"signature": signature["sig"], "verifier": verifier} for signature in envelope["signatures"]
            ],
        },
    }


def _sha256(content: bytes) -> dict[str, str]:
    return {"algorithm": "sha256", "value": hashlib.sha256(content).hexdigest()}


def _canonical(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


# The tree: https://www.rfc-editor.org/rfc/rfc6962#section-2.1


def _leaf(entry: bytes) -> bytes:
    return hashlib.sha256(b"\0" + entry).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\1" + left + right).digest()


def _half(entries: list[bytes]) -> int:
    return 1 << (len(entries) - 1).bit_length() - 1


def _root(entries: list[bytes]) -> bytes:
    if len(entries) == 1:
        return _leaf(entries[0])
    half = _half(entries)
    return _node(_root(entries[:half]), _root(entries[half:]))


def _path(index: int, entries: list[bytes]) -> list[bytes]:
    """Return the nodes that lead from the entry at *index* to the root, the lowest first."""
    if len(entries) == 1:
        return []
    half = _half(entries)
    if index < half:
        return [*_path(index, entries[:half]), _root(entries[half:])]
    return [*_path(index - half, entries[half:]), _root(entries[:half])]
