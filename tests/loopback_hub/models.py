"""Models described: one of them, or those that a search finds."""

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from loopback_hub.answers import Answer
from loopback_hub.blobs import Blob
from loopback_hub.cards import card_of, tags_of
from loopback_hub.repositories import Commit, Repo
from loopback_hub.routes import Call, Router

hub = Router()

PAGE = 1000
SORTED_BY = {"createdAt": lambda repo: repo.created}  # by any other name: the latest commit first

FIELDS: dict[str, Callable[[Repo, Commit], Any]] = {
    "author": lambda repo, commit: repo.namespace,
    "cardData": lambda repo, commit: card_of(commit.blobs),
    "config": lambda repo, commit: _config(commit.blobs),
    "createdAt": lambda repo, commit: timestamp(repo.created),
    "disabled": lambda repo, commit: False,
    "downloads": lambda repo, commit: 0,
    "gated": lambda repo, commit: "auto" if repo.gated else False,
    "lastModified": lambda repo, commit: timestamp(commit.date),
    "library_name": lambda repo, commit: card_of(commit.blobs).get("library_name"),
    "likes": lambda repo, commit: 0,
    "pipeline_tag": lambda repo, commit: card_of(commit.blobs).get("pipeline_tag"),
    "private": lambda repo, commit: repo.private,
    "sha": lambda repo, commit: commit.id,
    "siblings": lambda repo, commit: [{"rfilename": path} for path in commit.blobs],
    "tags": lambda repo, commit: tags_of(commit.blobs),
    "usedStorage": lambda repo, commit: sum({blob: blob.size for blob in commit.blobs.values()}.values()),
}
LISTED = ("createdAt", "downloads", "library_name", "likes", "pipeline_tag", "private", "tags")
LISTED_IN_FULL = (*LISTED, "author", "gated", "lastModified", "sha", "siblings")


def timestamp(moment: datetime) -> str:
    """Write a point in time as the Hub does."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


@hub.route("GET", "/api/models/{repo}")
@hub.route("GET", "/api/models/{repo}/revision/{rev}")
def model_info(call: Call) -> Answer:
    """Describe a model at a revision."""
    model = _described(call.repo, call.commit, call.query.get("expand", list(FIELDS)))
    if call.flag("blobs"):
        model["siblings"] = [_sibling(path, blob) for path, blob in call.commit.blobs.items()]
    return Answer.json(model)


@hub.route("GET", "/api/models")
def list_models(call: Call) -> Answer:
    """Describe the models that the search finds and the token opens."""
    fields = list(LISTED_IN_FULL if call.flag("full") else LISTED)
    fields += [name for name in ("cardData", "config") if call.flag(name)]
    fields = call.query.get("expand", fields)
    found = [repo for repo in call.hub.repos.copy().values() if _is_found(call, repo)]
    order = SORTED_BY.get(call.query.get("sort", [""])[0], lambda repo: repo.at("main").date)
    models = [_described(repo, repo.at("main"), fields) for repo in sorted(found, key=order, reverse=True)]
    return call.page(models, min(PAGE, int(call.query.get("limit", [PAGE])[0])))


def _is_found(call: Call, repo: Repo) -> bool:
    if repo.private and not call.hub.reads(call.token, repo.namespace):
        return False
    if call.query.get("author", [repo.namespace])[0] != repo.namespace:
        return False
    if call.query.get("search", [""])[0].lower() not in repo.id.lower():
        return False
    wanted = {*call.query.get("filter", []), *call.query.get("pipeline_tag", [])}
    return wanted <= set(tags_of(repo.at("main").blobs))


def _described(repo: Repo, commit: Commit, fields: list[str]) -> dict[str, Any]:
    described = {name: FIELDS[name](repo, commit) for name in fields if name in FIELDS}
    return {"id": repo.id, "modelId": repo.id, **described}


def _config(blobs: Mapping[str, Blob]) -> dict[str, Any]:
    """Return the excerpt of the configuration that the Hub shows of an adapter."""
    try:
        config = json.loads(blobs["adapter_config.json"].content)
        return {"peft": {name: config.get(name) for name in ("base_model_name_or_path", "task_type")}}
    except (KeyError, ValueError, AttributeError):
        return {}


def _sibling(path: str, blob: Blob) -> dict[str, Any]:
    lfs = {"lfs": {"sha256": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}} if blob.large else {}
    return {"rfilename": path, "size": blob.size, "blobId": blob.git_oid, **lfs}
