"""The files of a commit, as a tree or by their paths."""

import hashlib
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs

from loopback_hub.answers import Answer, entry_not_found
from loopback_hub.blobs import Blob
from loopback_hub.models import timestamp
from loopback_hub.repositories import Commit
from loopback_hub.routes import Call, Router

hub = Router()

PAGE = 1000
EXPANDED_PAGE = 50


@hub.route("GET", "/api/models/{repo}/tree/{rev}")
@hub.route("GET", "/api/models/{repo}/tree/{rev}/{path}")
def tree(call: Call) -> Answer:
    """List a directory, or with ``recursive=true`` everything below it."""
    root = call.params.get("path", "").rstrip("/")
    commit = call.commit
    below = [path for path in commit.blobs if not root or path.startswith(f"{root}/")]
    if root and not below:
        raise entry_not_found(root)
    entries = [entry for entry in _entries(call, below) if _is_below(entry["path"], root)]
    if not call.flag("recursive"):
        entries = [entry for entry in entries if "/" not in entry["path"][len(root) :].lstrip("/")]
    return call.page(entries, EXPANDED_PAGE if call.flag("expand") else PAGE)


@hub.route("POST", "/api/models/{repo}/paths-info/{rev}")
def paths_info(call: Call) -> Answer:
    """Describe the files and directories of this name; what does not exist is left out."""
    form = parse_qs(call.body.decode())
    call.query |= {"expand": form.get("expand", ["false"])}
    wanted = {path.rstrip("/") for path in form.get("paths", [])}
    return Answer.json([entry for entry in _entries(call, call.commit.blobs) if entry["path"] in wanted])


def _is_below(path: str, root: str) -> bool:
    return not root or path.startswith(f"{root}/")


def _entries(call: Call, paths: Iterable[str]) -> list[dict[str, Any]]:
    """Describe these files, and the directories above them."""
    commit = call.commit
    directories = {str(parent) for path in paths for parent in PurePosixPath(path).parents if str(parent) != "."}
    entries = [_directory(path) for path in directories]
    entries += [_file(path, commit.blobs[path], has_xet=call.hub.has_xet) for path in paths]
    if call.flag("expand"):
        for entry in entries:
            entry["lastCommit"] = _last_commit(commit)
    return sorted(entries, key=lambda entry: entry["path"])


def _directory(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _file(path: str, blob: Blob, *, has_xet: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.git_oid}
    if blob.large:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
    if blob.large and has_xet:
        entry["xetHash"] = blob.xet_hash
    return entry


def _last_commit(commit: Commit) -> dict[str, str]:
    return {"id": commit.id, "title": commit.title, "date": timestamp(commit.date)}
