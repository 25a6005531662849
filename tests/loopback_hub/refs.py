"""Branches, tags and the history behind them."""

from collections.abc import Iterable

from loopback_hub.answers import Answer, HubError, revision_not_found
from loopback_hub.models import timestamp
from loopback_hub.repositories import ConflictError
from loopback_hub.routes import Access, Call, Router

hub = Router()

PAGE = 50


@hub.route("GET", "/api/models/{repo}/refs")
def list_refs(call: Call) -> Answer:
    """List branches and tags with their commits."""
    repo = call.repo
    return Answer.json(
        {
            "branches": _refs("refs/heads", repo.branches.copy().items()),
            "converts": [],
            "tags": _refs("refs/tags", repo.tags.copy().items()),
            "pullRequests": [],
        }
    )


def _refs(kind: str, refs: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, "ref": f"{kind}/{name}", "targetCommit": target} for name, target in refs]


@hub.route("POST", "/api/models/{repo}/tag/{rev}", Access.WRITE)
def create_tag(call: Call) -> Answer:
    """Tag a revision."""
    name = call.json()["tag"]
    try:
        call.repo.tag(name, call.commit.id)
    except ConflictError as error:
        raise HubError(409, f"Tag reference exists already: {name}") from error
    return Answer.json({})


@hub.route("DELETE", "/api/models/{repo}/tag/{tag}", Access.WRITE)
def delete_tag(call: Call) -> Answer:
    """Remove a tag."""
    try:
        call.repo.delete_tag(call.params["tag"])
    except KeyError:
        raise revision_not_found(call.params["tag"]) from None
    return Answer.json({})


@hub.route("POST", "/api/models/{repo}/branch/{branch}", Access.WRITE)
def create_branch(call: Call) -> Answer:
    """Start a branch, from the head of main unless the body says from where."""
    start = call.at(call.json().get("startingPoint") or "main")
    try:
        call.repo.branch(call.params["branch"], start.id)
    except ConflictError as error:
        raise HubError(409, str(error)) from error
    return Answer.json({})


@hub.route("DELETE", "/api/models/{repo}/branch/{branch}", Access.WRITE)
def delete_branch(call: Call) -> Answer:
    """Remove a branch other than main."""
    if call.params["branch"] == "main":
        raise HubError(403, "Cannot delete the default branch")
    try:
        call.repo.delete_branch(call.params["branch"])
    except KeyError:
        raise revision_not_found(call.params["branch"]) from None
    return Answer.json({})


@hub.route("GET", "/api/models/{repo}/commits/{rev}")
def list_commits(call: Call) -> Answer:
    """List a commit and its ancestors."""
    commits = [
        {
            "id": commit.id,
            "title": commit.title,
            "message": commit.description,
            "date": timestamp(commit.date),
            "authors": [{"user": commit.author}],
        }
        for commit in call.repo.history(call.commit)
    ]
    return call.page(commits, PAGE)


@hub.route("POST", "/api/models/{repo}/super-squash/{branch}", Access.WRITE)
def super_squash(call: Call) -> Answer:
    """Rewrite the history of a branch as one commit; tags, and what they reach, stay."""
    if call.params["branch"] not in call.repo.branches:
        raise revision_not_found(call.params["branch"])
    call.repo.squash(call.params["branch"], title=call.json()["message"], author=call.user)
    return Answer.json({})
