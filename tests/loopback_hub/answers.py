"""Answers, and the errors that the client of the Hub tells apart."""

import json
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass
class Answer:
    """Status, headers and body of an answer."""

    body: bytes | memoryview = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, document: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> Self:
        """Return an answer with a JSON body."""
        return cls(json.dumps(document).encode(), status, {"Content-Type": "application/json", **(headers or {})})


class HubError(Exception):
    """An answer other than success; *code* becomes the header that the client derives its exception from."""

    def __init__(self, status: int, message: str, *, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers: dict[str, str] = {}
        self.body = {"error": message, **more}

    @property
    def answer(self) -> Answer:
        """What the client sees."""
        message = " ".join(str(self).split()).encode("ascii", "replace").decode()  # fit for a header
        code = {"X-Error-Code": self.code} if self.code else {}
        return Answer.json(self.body, status=self.status, headers={"X-Error-Message": message, **code, **self.headers})


def repo_not_found(*, anonymous: bool) -> HubError:
    """A repository that is missing, or must look so: the Hub asks strangers to log in."""
    return HubError(401 if anonymous else 404, "Repository not found", code="RepoNotFound")


def revision_not_found(revision: str) -> HubError:
    """No branch, tag or commit has this name."""
    return HubError(404, f"Invalid rev id: {revision}", code="RevisionNotFound")


def entry_not_found(path: str) -> HubError:
    """The commit has no such file."""
    return HubError(404, f"Entry not found: {path}", code="EntryNotFound")
