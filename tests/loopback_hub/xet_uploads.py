"""Uploads by Xet: files come in pieces of xorbs, with shards that say how to put them together.

Formats: https://huggingface.co/docs/xet/xorb and https://huggingface.co/docs/xet/shard
"""

import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

SHARD_HEADER = 48  # bytes, and as long is each entry behind it
LAST_FILE = b"\xff" * 32
HAS_VERIFICATION, HAS_METADATA = 1 << 31, 1 << 30
CHUNK_HEADER = 8  # bytes: version u8, packed length u24, compression u8, length u24
TOKEN_LIFE = 3600  # seconds


@dataclass(frozen=True)
class Term:
    """The chunks *start* to *end* (exclusive) of a xorb; *size* bytes when unpacked."""

    xorb: str
    size: int
    start: int
    end: int


def files_of(shard: bytes) -> Iterator[tuple[str, list[Term]]]:
    """Yield the Xet hash and the terms of each file in a shard."""
    at = SHARD_HEADER
    while shard[at : at + 32] != LAST_FILE:
        flags, count = struct.unpack_from("<II", shard, at + 32)
        terms = [_term(shard, at + SHARD_HEADER * number) for number in range(1, count + 1)]
        yield _hash(shard, at), terms
        entries = 1 + count + (count if flags & HAS_VERIFICATION else 0) + (1 if flags & HAS_METADATA else 0)
        at += SHARD_HEADER * entries


def _term(shard: bytes, at: int) -> Term:
    _, size, start, end = struct.unpack_from("<4I", shard, at + 32)
    return Term(_hash(shard, at), size, start, end)


def _hash(data: bytes, at: int) -> str:
    """Return a hash as Xet writes it: four little-endian numbers in hex."""
    return "".join(f"{number:016x}" for number in struct.unpack_from("<4Q", data, at))


def chunk_offsets(xorb: bytes) -> list[int]:
    """Return where each chunk of a xorb begins, and where the last one ends."""
    offsets = [0]
    while offsets[-1] < len(xorb) and xorb[offsets[-1]] == 0:  # the version; a footer begins with a letter
        packed = int.from_bytes(xorb[offsets[-1] + 1 : offsets[-1] + 4], "little")
        offsets.append(offsets[-1] + CHUNK_HEADER + packed)
    return offsets


@dataclass
class UploadedXorbs:
    """The xorbs of a hub as they came, packed, and the way from them to files.

    hf-xet itself unpacks them: it downloads from *url*, where the hub offers them to itself.
    """

    url: str
    xorbs: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, list[Term]] = field(default_factory=dict)

    def rebuild(self, xet_hash: str) -> bytes:
        """Return the content of a file whose shard and xorbs have come."""
        from hf_xet import XetFileInfo

        expiry = int(time.time()) + TOKEN_LIFE
        group = self._session.new_download_stream_group(
            endpoint=self.url, token="private", token_expiry_unix_secs=expiry
        )
        size = sum(term.size for term in self.files[xet_hash])
        return b"".join(group.download_stream(XetFileInfo(xet_hash, size)))

    @cached_property
    def _session(self) -> Any:
        from hf_xet import XetConfig, XetSession

        return XetSession(XetConfig().with_config({"telemetry.enabled": False}))

    def reconstruction(self, xet_hash: str) -> dict[str, Any]:
        """Say from which chunks a file is put together, and where they are."""
        terms = self.files[xet_hash]
        fetch: dict[str, list[dict[str, Any]]] = {}
        for term in dict.fromkeys(terms):
            offsets = chunk_offsets(self.xorbs[term.xorb])
            url_range = {"start": offsets[term.start], "end": offsets[term.end] - 1}
            fetch.setdefault(term.xorb, []).append(
                {"range": _chunks(term), "url": f"{self.url}/xorbs/{term.xorb}", "url_range": url_range}
            )
        listed = [{"hash": term.xorb, "unpacked_length": term.size, "range": _chunks(term)} for term in terms]
        return {"offset_into_first_range": 0, "terms": listed, "fetch_info": fetch}


def _chunks(term: Term) -> dict[str, int]:
    return {"start": term.start, "end": term.end}
