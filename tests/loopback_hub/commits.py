"""How a push becomes a commit; the contents of large files have come before, by LFS or Xet."""

import base64
import json
from typing import Any

from loopback_hub.answers import Answer, HubError, entry_not_found, revision_not_found
from loopback_hub.blobs import Blob, is_large
from loopback_hub.cards import NO_METADATA, metadata, mistakes
from loopback_hub.repositories import Commit, ConflictError
from loopback_hub.routes import Access, Call, Router

hub = Router()

Changes = dict[str, Blob | None]


@hub.route("POST", "/api/validate-yaml", Access.ANY)
def validate_card(call: Call) -> Answer:
    """Find mistakes in the metadata of a card."""
    content = call.json()["content"]
    errors = [{"message": mistake} for mistake in mistakes(content)]
    if errors:
        return Answer.json({"errors": errors, "warnings": []}, status=400)
    return Answer.json({"errors": [], "warnings": [] if metadata(content) else [{"message": NO_METADATA}]})


@hub.route("POST", "/api/models/{repo}/preupload/{rev}", Access.WRITE)
def preupload(call: Call) -> Answer:
    """Say how each file is to be uploaded, and which content is there now."""
    return Answer.json({"files": [_upload_mode(file, call.commit) for file in call.json()["files"]]})


def _upload_mode(file: dict[str, Any], commit: Commit) -> dict[str, Any]:
    mode = "lfs" if is_large(file["path"], file["size"]) else "regular"
    blob = commit.blobs.get(file["path"])
    return {
        "path": file["path"],
        "uploadMode": mode,
        "shouldIgnore": False,
        **({"oid": blob.etag} if blob else {}),
    }


@hub.route("POST", "/api/models/{repo}/commit/{rev}", Access.WRITE)
def commit(call: Call) -> Answer:
    """Make one commit of the lines of the body."""
    branch = call.params["rev"]
    if call.flag("create_pr"):
        raise HubError(400, "This hub has no pull requests")
    if branch not in call.repo.branches:
        raise revision_not_found(branch)
    lines = [json.loads(line) for line in call.body.splitlines()]
    changes: Changes = {}
    for line in lines[1:]:
        changes |= OPERATIONS[line["key"]](call, line["value"])
    _check_card(changes)
    header = lines[0]["value"]
    try:
        made = call.repo.advance(
            branch,
            changes,
            title=header["summary"],
            description=header.get("description", ""),
            author=call.user,
            parent=header.get("parentCommit"),
        )
    except ConflictError as error:
        raise HubError(412, str(error)) from error
    url = f"{call.hub.endpoint}/{call.repo.id}/commit/{made.id}"
    return Answer.json({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})


def _regular_file(call: Call, value: dict[str, Any]) -> Changes:
    return {value["path"]: call.hub.blobs.add(base64.b64decode(value["content"]), large=False)}


def _large_file(call: Call, value: dict[str, Any]) -> Changes:
    blob = call.hub.blobs.large(value["oid"])
    if blob is None:
        raise HubError(400, f"Your push was rejected because an LFS pointer pointed to no file: {value['path']}")
    return {value["path"]: blob}


def _deleted_file(call: Call, value: dict[str, Any]) -> Changes:
    if value["path"] not in call.commit.blobs:
        raise entry_not_found(f"A file with this name doesn't exist: {value['path']}")
    return {value["path"]: None}


def _deleted_folder(call: Call, value: dict[str, Any]) -> Changes:
    folder = value["path"].rstrip("/") + "/"
    return {path: None for path in call.commit.blobs if path.startswith(folder)}


OPERATIONS = {
    "file": _regular_file,
    "lfsFile": _large_file,
    "deletedFile": _deleted_file,
    "deletedFolder": _deleted_folder,
}


def _check_card(changes: Changes) -> None:
    card = changes.get("README.md")
    found = mistakes(card.content.decode()) if card else []
    if found:
        raise HubError(400, "Invalid metadata in README.md: " + "; ".join(found))
