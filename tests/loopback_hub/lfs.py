"""Uploads by Git LFS: one PUT per file, or one per part.

Protocol: https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md
"""

import hashlib
import threading
from typing import Any

from loopback_hub.answers import Answer, HubError
from loopback_hub.routes import Access, Call, Router

hub, cdn = Router(), Router()


class UploadedParts:
    """Parts of files whose upload is not complete."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._parts: dict[str, dict[int, bytes]] = {}

    def add(self, oid: str, number: int, content: bytes) -> None:
        """Keep one part."""
        with self._lock:
            self._parts.setdefault(oid, {})[number] = content

    def pop(self, oid: str) -> bytes:
        """Return the file whose parts have all come."""
        with self._lock:
            parts = self._parts.pop(oid, {})
        return b"".join(parts[number] for number in sorted(parts))


@hub.route("POST", "/{repo}.git/info/lfs/objects/batch", Access.WRITE)
def batch(call: Call) -> Answer:
    """Say where each file is to be uploaded; nowhere if it is known."""
    objects = [_upload(call, file["oid"], file["size"]) for file in call.json()["objects"]]
    return Answer.json({"transfer": "basic", "objects": objects})


def _upload(call: Call, oid: str, size: int) -> dict[str, Any]:
    described: dict[str, Any] = {"oid": oid, "size": size}
    if call.hub.blobs.large(oid) is None:
        verify = {"href": f"{call.hub.endpoint}/{call.repo.id}.git/info/lfs/objects/verify"}
        described["actions"] = {"upload": _target(call, oid, size), "verify": verify}
    return described


def _target(call: Call, oid: str, size: int) -> dict[str, Any]:
    url, part_size = f"{call.hub.cdn}/lfs/{oid}", call.hub.lfs_part_size
    if part_size is None or size <= part_size:
        return {"href": url}
    parts = {f"{number:05}": f"{url}/{number}" for number in range(1, -(-size // part_size) + 1)}
    return {"href": url, "header": {"chunk_size": str(part_size), **parts}}


@hub.route("POST", "/{repo}.git/info/lfs/objects/verify", Access.WRITE)
def verify(call: Call) -> Answer:
    """Check that the file has come, with this size."""
    blob = call.hub.blobs.large(call.json()["oid"])
    if blob is None or blob.size != call.json()["size"]:
        raise HubError(404, "Object not found, or of another size")
    return Answer.json({})


@cdn.route("PUT", "/lfs/{oid}", Access.ANY)
def put(call: Call) -> Answer:
    """Keep a file."""
    return _keep(call, call.body)


@cdn.route("PUT", "/lfs/{oid}/{part}", Access.ANY)
def put_part(call: Call) -> Answer:
    """Keep a part of a file."""
    call.hub.uploaded_parts.add(call.params["oid"], int(call.params["part"]), call.body)
    return Answer(headers={"ETag": f'"{hashlib.md5(call.body, usedforsecurity=False).hexdigest()}"'})


@cdn.route("POST", "/lfs/{oid}", Access.ANY)
def complete(call: Call) -> Answer:
    """Put a file together from its parts."""
    return _keep(call, call.hub.uploaded_parts.pop(call.params["oid"]))


def _keep(call: Call, content: bytes) -> Answer:
    if call.hub.blobs.add(content, large=True).sha256 != call.params["oid"]:
        raise HubError(400, "The content does not have this sha256")
    return Answer.json({})
