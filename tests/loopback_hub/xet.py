"""The Xet protocol: tokens from the hub, and a content-addressed store (CAS) on the CDN.

Protocol: https://huggingface.co/docs/xet/api. What was uploaded is unpacked at once; a download packs the stored bytes
anew, without compression, so that Xet and HTTP serve the same bytes, also after tampering.
"""

import re
import time
from typing import Any

from loopback_hub.answers import Answer, HubError
from loopback_hub.blobs import Blob
from loopback_hub.downloads import pass_gate, ranged
from loopback_hub.routes import Access, Call, Router
from loopback_hub.server import PRIVATE
from loopback_hub.xet_uploads import CHUNK_HEADER, TOKEN_LIFE, files_of

hub, cdn = Router(), Router()

CHUNK = 64 * 1024  # bytes
PACKED = CHUNK_HEADER + CHUNK  # bytes
XORB_CHUNKS = 512  # 32 MiB
RANGE = re.compile(r"bytes=(\d+)-(\d+)")


@hub.route("GET", "/api/models/{repo}/xet-read-token/{rev}")
def read_token(call: Call) -> Answer:
    """Open the CAS for downloads."""
    pass_gate(call)
    return _token(call, "xet_read")


@hub.route("GET", "/api/models/{repo}/xet-write-token/{rev}", Access.WRITE)
def write_token(call: Call) -> Answer:
    """Open the CAS for uploads."""
    return _token(call, "xet_write")


def _token(call: Call, token: str) -> Answer:
    """Return the token twice: hf-xet reads the body, huggingface_hub the headers."""
    if not call.hub.has_xet:
        raise HubError(404, "This hub has no Xet")
    expiry = int(time.time()) + TOKEN_LIFE
    return Answer.json(
        {"casUrl": call.hub.cas, "accessToken": token, "exp": expiry},
        headers={
            "X-Xet-Cas-Url": call.hub.cas,
            "X-Xet-Access-Token": token,
            "X-Xet-Token-Expiration": str(expiry),
        },
    )


def _check_token(call: Call, *tokens: str) -> None:
    if call.token not in tokens:
        raise HubError(401, "Not a token of this CAS")


@cdn.route("POST", "/{cas}/v1/xorbs/default/{xorb}", Access.ANY)
def upload_xorb(call: Call) -> Answer:
    """Keep a xorb."""
    _check_token(call, "xet_write")
    known = call.params["xorb"] in call.hub.uploaded_xorbs.xorbs
    call.hub.uploaded_xorbs.xorbs[call.params["xorb"]] = call.body
    return Answer.json({"was_inserted": not known})


@cdn.route("POST", "/{cas}/v1/shards", Access.ANY)
def upload_shard(call: Call) -> Answer:
    """Put the files of a shard together."""
    _check_token(call, "xet_write")
    uploaded = call.hub.uploaded_xorbs
    for xet_hash, terms in files_of(call.body):
        if any(term.xorb not in uploaded.xorbs for term in terms):
            raise HubError(400, "The shard names a xorb that has not come")
        uploaded.files[xet_hash] = terms
        if call.hub.blobs.by_xet_hash(xet_hash) is None:
            call.hub.blobs.add(uploaded.rebuild(xet_hash), large=True, xet_hash=xet_hash)
    return Answer.json({"result": 1})


@cdn.route("GET", f"{PRIVATE}/v1/reconstructions/{{file}}", Access.ANY)
def private_reconstruction(call: Call) -> Answer:
    """Tell this hub's own hf-xet how a file was uploaded."""
    return Answer.json(call.hub.uploaded_xorbs.reconstruction(call.params["file"]))


@cdn.route("GET", f"{PRIVATE}/xorbs/{{xorb}}", Access.ANY)
def private_xorb(call: Call) -> Answer:
    """Give this hub's own hf-xet a xorb as it was uploaded."""
    return ranged(call.hub.uploaded_xorbs.xorbs[call.params["xorb"]], call.headers.get("range"), {})


@cdn.route("GET", "/{cas}/v1/reconstructions/{file}", Access.ANY)
def reconstruction(call: Call) -> Answer:
    """Say from which chunks a file, or a range of it, is put together, and where they are."""
    _check_token(call, "xet_read", "xet_write")
    blob = call.hub.blobs.by_xet_hash(call.params["file"])
    if blob is None:
        raise HubError(404, "No such file")
    wanted = RANGE.fullmatch(call.headers.get("range", ""))
    start, end = (int(wanted[1]), int(wanted[2]) + 1) if wanted else (0, blob.size)
    if start >= blob.size:
        raise HubError(416, "The range is behind the end of the file")
    return Answer.json(_reconstruction(call.hub.cdn, blob, start, min(end, blob.size)))


def _reconstruction(url: str, blob: Blob, start: int, end: int) -> dict[str, Any]:
    first, last = start // CHUNK, -(-end // CHUNK)  # chunks of the file
    terms, fetch = [], {}
    for number in range(first // XORB_CHUNKS, -(-last // XORB_CHUNKS)):
        before = number * XORB_CHUNKS
        chunks = {"start": max(first - before, 0), "end": min(last - before, XORB_CHUNKS)}
        size = min((before + chunks["end"]) * CHUNK, blob.size) - (before + chunks["start"]) * CHUNK
        packed_start = chunks["start"] * PACKED
        packed_end = packed_start + size + (chunks["end"] - chunks["start"]) * CHUNK_HEADER
        url_range = {"start": packed_start, "end": packed_end - 1}
        xorb = _xorb_name(blob, number)
        terms.append({"hash": xorb, "unpacked_length": size, "range": chunks})
        fetch[xorb] = [{"range": chunks, "url": f"{url}/xorbs/{blob.sha256}/{number}", "url_range": url_range}]
    return {"offset_into_first_range": start - first * CHUNK, "terms": terms, "fetch_info": fetch}


def _xorb_name(blob: Blob, number: int) -> str:
    """Return 64 hex digits of its own for each xorb of a file."""
    return f"{(int(blob.sha256, 16) + number) % (1 << 256):064x}"


@cdn.route("GET", "/xorbs/{sha256}/{number}", Access.ANY)
def xorb(call: Call) -> Answer:
    """Send (a range of) the bytes of a file, packed as a xorb."""
    blob = call.hub.blobs.large(call.params["sha256"])
    if blob is None:
        raise HubError(404, "No such object")
    start = int(call.params["number"]) * XORB_CHUNKS * CHUNK
    content = memoryview(blob.content)[start : start + XORB_CHUNKS * CHUNK]
    return ranged(_packed(content), call.headers.get("range"), {})


def _packed(content: memoryview) -> bytes:
    parts: list[bytes | memoryview] = []
    for start in range(0, len(content), CHUNK):
        chunk = content[start : start + CHUNK]
        size = len(chunk).to_bytes(3, "little")
        parts += [b"\0" + size + b"\0" + size, chunk]
    return b"".join(parts)
