"""The hub itself: two origins, the repositories behind them, and what a test can do to them."""

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Self

from loopback_hub import commits, downloads, lfs, models, refs, repos, trees, xet
from loopback_hub.blobs import Blobs
from loopback_hub.faults import Fault, Faults
from loopback_hub.log import Request, RequestLog
from loopback_hub.repositories import GITATTRIBUTES, ConflictError, Repo
from loopback_hub.routes import Router
from loopback_hub.server import PRIVATE, Origin
from loopback_hub.xet_uploads import UploadedXorbs

HUB_ROUTES = Router.of(repos.hub, models.hub, trees.hub, refs.hub, commits.hub, lfs.hub, xet.hub, downloads.hub)
CDN_ROUTES = Router.of(lfs.cdn, xet.cdn, downloads.cdn)


@dataclass(frozen=True)
class Account:
    """Whose token it is, and what it opens: these organisations (None: all), to read or also to write."""

    user: str
    orgs: frozenset[str] | None
    role: Literal["read", "write"]

    def belongs_to(self, org: str) -> bool:
        """Return whether *org* is the user, or an organisation that this token opens."""
        return self.orgs is None or org == self.user or org in self.orgs


class LoopbackHub:
    """A Hub for models on two loopback ports; everything is in memory and ends with the ``with`` block.

    Without *xet* it is a hub that knows LFS only. An LFS file above *lfs_part_size* bytes is uploaded in parts.
    """

    def __init__(
        self,
        *,
        token: str = "hf_test",
        xet: bool = True,
        lfs_part_size: int | None = None,
        port: int = 0,
        rate: float | None = None,
    ) -> None:
        self.token = token
        self.has_xet = xet
        self.lfs_part_size = lfs_part_size
        self.accounts: dict[str, Account] = {}
        self.repos: dict[str, Repo] = {}
        self.blobs = Blobs()
        self.log = RequestLog()
        self.faults = Faults()
        self._hub = Origin("hub", partial(HUB_ROUTES.answer, self), self.log, self.faults, port)
        self._cdn = Origin("cdn", partial(CDN_ROUTES.answer, self), self.log, self.faults, rate=rate)
        self.endpoint = self._hub.url
        self.cdn = self._cdn.url
        # hf-xet remembers on disk which xorbs it gave to a CAS: the URL must not come back when a port does.
        self.cas = f"{self.cdn}/cas-{secrets.token_hex(8)}"
        self.uploaded_parts = lfs.UploadedParts()
        self.uploaded_xorbs = UploadedXorbs(f"{self.cdn}{PRIVATE}")
        self.add_token(token, "org", orgs=None)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._hub.close()
        self._cdn.close()

    def start(self) -> None:
        """Bring both hosts up (again)."""
        self._hub.up()
        self._cdn.up()

    def stop(self) -> None:
        """Take both hosts down; their ports refuse connections until `start`, and nothing is forgotten."""
        self._hub.down()
        self._cdn.down()

    def add_token(
        self, token: str, user: str, *, orgs: Iterable[str] | None = (), role: Literal["read", "write"] = "write"
    ) -> None:
        """Let *token* act as *user*, who is a member of *orgs* (None: of every one)."""
        self.accounts[token] = Account(user, None if orgs is None else frozenset(orgs), role)

    def reads(self, token: str | None, org: str) -> bool:
        """Return whether *token* opens what is private in *org*."""
        account = self.accounts.get(token or "")
        return account is not None and account.belongs_to(org)

    def writes(self, token: str | None, org: str) -> bool:
        """Return whether *token* may write to *org*."""
        return self.reads(token, org) and self.accounts[token or ""].role == "write"

    @property
    def requests(self) -> list[Request]:
        """The log, in order of arrival."""
        return list(self.log)

    def clear(self) -> None:
        """Empty the log."""
        self.log.clear()

    def count(self, host: str | None = None, method: str | None = None, path: str | None = None) -> int:
        """Return how many requests match; *path* is a regular expression that is searched."""
        return sum(request.matches(host=host, method=method, path=path) for request in self.log)

    def repo(self, repo_id: str) -> Repo:
        """Return a repository; KeyError if there is none."""
        return self.repos[repo_id]

    def create(
        self,
        repo_id: str,
        files: Mapping[str, bytes] | None = None,
        *,
        private: bool = False,
        gated: bool = False,
        tags: Iterable[str] = (),
    ) -> Repo:
        """Make a repository past the protocol, with one commit of *files* and .gitattributes, and *tags* at it.

        Raises:
            ConflictError: The repository exists.
        """
        repo = Repo(repo_id, self.blobs, private=private, gated=gated)
        first = repo.commit({".gitattributes": GITATTRIBUTES, **(files or {})}, title="initial commit")
        for tag in tags:
            repo.tag(tag, first.id)
        if self.repos.setdefault(repo_id, repo) is not repo:
            raise ConflictError(f"You already created this model repo: {repo_id}")
        return repo

    def fault(self, path: str, **what: Any) -> Fault:
        """Let the next requests whose path (with query) has the regular expression *path* fail as `Fault` says."""
        return self.faults.add(Fault(path=path, **what))

    def tamper(self, repo_id: str, revision: str, path: str, offset: int) -> None:
        """Flip a bit of a stored file, wherever this content is stored; what describes it stays as it was."""
        self.repo(repo_id).at(revision).blobs[path].flip(offset)
