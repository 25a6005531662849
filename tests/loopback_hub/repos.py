"""Who am I; repositories come and go."""

from loopback_hub.answers import Answer, HubError, repo_not_found
from loopback_hub.repositories import ConflictError
from loopback_hub.routes import Access, Call, Router, may_write

hub = Router()


@hub.route("GET", "/api/whoami-v2", Access.ANY)
def whoami(call: Call) -> Answer:
    """Name the user of a token, and the organisations that it opens."""
    account = call.hub.accounts.get(call.token or "")
    if account is None:
        raise HubError(401, "Invalid credentials in Authorization header")
    token = {"displayName": "loopback", "role": account.role}
    return Answer.json(
        {
            "name": account.user,
            "type": "user",
            "orgs": [{"name": org} for org in sorted(account.orgs or ())],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


@hub.route("GET", "/api/agent-harnesses", Access.ANY)
def agent_harnesses(call: Call) -> Answer:
    """Know no coding agents."""
    return Answer.json({"standardEnvVars": [], "harnesses": {}})


@hub.route("GET", "/api/models/{repo}/auth-check")
@hub.route("GET", "/api/models/{repo}/auth-check/write", Access.WRITE)
def auth_check(call: Call) -> Answer:
    """Say yes: the access was checked on the way here."""
    return Answer.json({})


@hub.route("POST", "/api/repos/create")
def create(call: Call) -> Answer:
    """Make a repository with one commit; a conflict carries the URL, for `exist_ok`."""
    repo_id = _named_repo(call)
    described = {"url": f"{call.hub.endpoint}/{repo_id}", "name": repo_id}
    try:
        repo = call.hub.create(repo_id, private=call.json().get("visibility") == "private")
    except ConflictError as error:
        raise HubError(409, str(error), **described) from error
    return Answer.json({**described, "id": repo.commits[0].id[:24]})


@hub.route("DELETE", "/api/repos/delete")
def delete(call: Call) -> Answer:
    """Forget a repository."""
    if call.hub.repos.pop(_named_repo(call), None) is None:
        raise repo_not_found(anonymous=False)
    return Answer.json({})


def _named_repo(call: Call) -> str:
    """Return the id of the repository in the body, where the one who calls may write."""
    document = call.json()
    if document.get("type", "model") != "model":
        raise HubError(400, "This hub keeps models only")
    namespace = document.get("organization") or call.user
    may_write(call, namespace)
    return f"{namespace}/{document['name']}"
