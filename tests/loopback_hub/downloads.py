"""Files by their path: regular ones from the hub, large ones from the CDN, whole or in ranges."""

import re
from urllib.parse import quote

from loopback_hub.answers import Answer, HubError, entry_not_found
from loopback_hub.blobs import Blob
from loopback_hub.routes import Access, Call, Router

hub, cdn = Router(), Router()

RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@hub.route("HEAD", "/{repo}/resolve/{rev}/{path}")
@hub.route("GET", "/{repo}/resolve/{rev}/{path}")
def resolve(call: Call) -> Answer:
    """Send a regular file; send the client of a large one to the CDN, and tell where Xet has it."""
    pass_gate(call)
    commit, path = call.commit, call.params["path"]
    headers = {"X-Repo-Commit": commit.id}
    blob = commit.blobs.get(path)
    if blob is None:
        error = entry_not_found(path)
        error.headers = headers
        raise error
    answer = _redirect(call, blob, commit.id) if blob.large else content(call, blob)
    answer.headers.update(headers)
    return answer


def pass_gate(call: Call) -> None:
    """Refuse the files of a gated repository to those who are not on its list: the members of the organisation."""
    if call.repo.gated and not call.hub.reads(call.token, call.repo.namespace):
        message = f"Access to model {call.repo.id} is restricted and you are not in the authorized list."
        raise HubError(401 if call.token is None else 403, message, code="GatedRepo")


def _redirect(call: Call, blob: Blob, commit_id: str) -> Answer:
    repo_id, path = call.repo.id, quote(call.params["path"])
    headers = {
        "Location": f"{call.hub.cdn}/files/{repo_id}/{blob.sha256}/{path}",
        "Accept-Ranges": "bytes",
        "X-Linked-Etag": f'"{blob.etag}"',
        "X-Linked-Size": str(blob.size),
    }
    if call.hub.has_xet:
        auth = f"{call.hub.endpoint}/api/models/{repo_id}/xet-read-token/{commit_id}"
        headers |= {"X-Xet-Hash": blob.xet_hash, "Link": f'<{auth}>; rel="xet-auth"'}
    return Answer(status=302, headers=headers)


@cdn.route("HEAD", "/files/{repo}/{sha256}/{path}", Access.ANY)
@cdn.route("GET", "/files/{repo}/{sha256}/{path}", Access.ANY)
def large_file(call: Call) -> Answer:
    """Send a large file."""
    blob = call.hub.blobs.large(call.params["sha256"])
    if blob is None:
        raise HubError(404, "No such object")
    return content(call, blob)


def content(call: Call, blob: Blob) -> Answer:
    """Send what the headers Range, If-Range and If-Match ask for."""
    etag = f'"{blob.etag}"'
    if call.headers.get("if-match", etag) not in {etag, "*"}:
        raise HubError(412, "The file has another ETag")
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    wanted = call.headers.get("range") if call.headers.get("if-range", etag) == etag else None
    return ranged(blob.content, wanted, headers)


def ranged(body: bytes, wanted: str | None, headers: dict[str, str]) -> Answer:
    """Send all of *body* or the one range *wanted*; 416 if it begins behind the end."""
    found = RANGE.fullmatch(wanted or "")
    if found is None or not (found[1] or found[2]):
        return Answer(body, headers=headers)
    first, last = found[1], found[2]
    start = int(first) if first else max(0, len(body) - int(last))
    stop = min(len(body), int(last) + 1) if first and last else len(body)
    if start >= stop:
        error = HubError(416, "The range is behind the end of the file")
        error.headers = {"Content-Range": f"bytes */{len(body)}"}
        raise error
    headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(body)}"}
    return Answer(memoryview(body)[start:stop], 206, headers)
