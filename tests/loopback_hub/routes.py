"""Which function answers which request, and who may ask."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

from loopback_hub.answers import Answer, HubError, repo_not_found, revision_not_found
from loopback_hub.repositories import Commit, Repo

if TYPE_CHECKING:
    from loopback_hub.hub import LoopbackHub

PARTS = {"repo": "[^/]+/[^/]+", "path": ".+"}  # any other part of a pattern is one segment


class Access(Enum):
    """What a route asks of the one who calls."""

    ANY = "any"
    READ = "read"
    WRITE = "write"


@dataclass(kw_only=True)
class Call:
    """A request on its way to the function that answers it."""

    hub: "LoopbackHub"
    path: str  # as it came, percent-encoded
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    params: dict[str, str] = field(default_factory=dict)

    @property
    def token(self) -> str | None:
        """The token of the one who calls."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    @property
    def user(self) -> str:
        """The name of the one who calls."""
        account = self.hub.accounts.get(self.token or "")
        return account.user if account else "anonymous"

    @property
    def repo(self) -> Repo:
        """The repository of this call."""
        try:
            return self.hub.repo(self.params["repo"])
        except KeyError:
            raise repo_not_found(anonymous=self.token is None) from None

    @property
    def commit(self) -> Commit:
        """The commit that the revision of this call names, or the head of main."""
        return self.at(self.params.get("rev", "main"))

    def at(self, revision: str) -> Commit:
        """Return the commit of a revision."""
        try:
            return self.repo.at(revision)
        except KeyError:
            raise revision_not_found(revision) from None

    def json(self) -> Any:
        """Return the document that was sent."""
        return json.loads(self.body)

    def flag(self, name: str) -> bool:
        """Return whether the query has ``name=true``."""
        return self.query.get(name, [""])[-1].lower() in {"true", "1"}

    def page(self, items: list[Any], size: int) -> Answer:
        """Answer with one page of *items*, and a link to the next one."""
        start = int(self.query.get("cursor", ["0"])[-1])
        headers = {}
        if start + size < len(items):
            query = urlencode({**self.query, "cursor": start + size}, doseq=True)
            headers["Link"] = f'<{self.hub.endpoint}{self.path}?{query}>; rel="next"'
        return Answer.json(items[start : start + size], headers=headers)


Route = Callable[[Call], Answer]


class Router:
    """The routes of an origin, in the order in which they are tried."""

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Access, Route]] = []

    def route(self, method: str, pattern: str, access: Access = Access.READ) -> Callable[[Route], Route]:
        """Let the decorated function answer; ``{name}`` in *pattern* becomes ``call.params["name"]``."""
        regex = re.sub(r"\{(\w+)\}", lambda part: f"(?P<{part[1]}>{PARTS.get(part[1], '[^/]+')})", pattern)

        def register(function: Route) -> Route:
            self._routes.append((method, re.compile(regex), access, function))
            return function

        return register

    @classmethod
    def of(cls, *routers: "Router") -> "Router":
        """Return all routes of *routers* in one."""
        whole = cls()
        for router in routers:
            whole._routes += router._routes
        return whole

    def answer(self, hub: "LoopbackHub", method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """Find the route, check the access, and answer."""
        url = urlsplit(target)
        call = Call(hub=hub, path=url.path, query=parse_qs(url.query), headers=headers, body=body)
        try:
            return self._follow(method, call)
        except HubError as error:
            return error.answer

    def _follow(self, method: str, call: Call) -> Answer:
        for route_method, regex, access, function in self._routes:
            match = regex.fullmatch(call.path)
            if match and route_method == method:
                call.params = {name: unquote(value) for name, value in match.groupdict().items()}
                _admit(call, access)
                return function(call)
        raise HubError(404, f"No route for {method} {call.path}")


def _admit(call: Call, access: Access) -> None:
    """Refuse what the token, or its absence, does not allow."""
    if access is Access.ANY:
        return
    if call.token is not None and call.token not in call.hub.accounts:
        raise HubError(401, "Invalid credentials in Authorization header")
    if "repo" not in call.params:
        return
    if call.repo.private and not call.hub.reads(call.token, call.repo.namespace):
        raise repo_not_found(anonymous=call.token is None)
    if access is Access.WRITE:
        may_write(call, call.repo.namespace)


def may_write(call: Call, namespace: str) -> None:
    """Refuse who may not write to *namespace*."""
    if call.token is None:
        # On https the client takes any 401 of a repository for RepoNotFound; on loopback only the code tells it so.
        raise HubError(401, "Invalid username or password.", code="RepoNotFound")
    if not call.hub.writes(call.token, namespace):
        raise HubError(403, f"You don't have the rights to write to {namespace}")
