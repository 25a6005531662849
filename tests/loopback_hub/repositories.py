"""Repositories: commits, branches and tags."""

import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from loopback_hub.blobs import Blob, Blobs

GITATTRIBUTES = b"*.bin filter=lfs diff=lfs merge=lfs -text\n*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
SHORTEST_ID = 7  # hex digits of a commit that name it


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One state of a repository."""

    id: str
    title: str
    description: str
    parent: str | None
    author: str
    date: datetime
    blobs: Mapping[str, Blob] = field(repr=False)

    @property
    def files(self) -> dict[str, bytes]:
        """The files as downloads see them."""
        return {path: blob.content for path, blob in self.blobs.items()}


class ConflictError(Exception):
    """The branch has moved, or the name is taken."""


class Repo:
    """A repository of a model; each change is atomic."""

    def __init__(self, repo_id: str, blobs: Blobs, *, private: bool, gated: bool) -> None:
        self.id = repo_id
        self.private = private
        self.gated = gated
        self.created = datetime.now(UTC)
        self.commits: list[Commit] = []  # all that were ever made, the newest last
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self._blobs = blobs
        self._gone: set[str] = set()
        self._lock = threading.RLock()

    @property
    def namespace(self) -> str:
        """The user or organisation that owns the repository."""
        return self.id.partition("/")[0]

    def at(self, revision: str) -> Commit:
        """Return the commit that a branch, a tag or (the start of) a commit id names.

        Raises:
            KeyError: There is none.
        """
        with self._lock:
            name = self.branches.get(revision) or self.tags.get(revision) or revision
            found = [commit for commit in self.commits if commit.id.startswith(name) and commit.id not in self._gone]
        if len(found) != 1 or len(name) < SHORTEST_ID:
            raise KeyError(revision)
        return found[0]

    def files(self, revision: str) -> dict[str, bytes]:
        """Return the files of a revision; KeyError if there is none."""
        return self.at(revision).files

    def history(self, commit: Commit) -> Iterator[Commit]:
        """Yield *commit* and its ancestors, the newest first."""
        by_id = {known.id: known for known in self.commits}
        newest: str | None = commit.id
        while newest is not None:
            yield by_id[newest]
            newest = by_id[newest].parent

    def commit(self, files: Mapping[str, bytes | None], branch: str = "main", *, title: str = "Update") -> Commit:
        """Add or replace *files* on *branch*, past the protocol; None deletes a file."""
        deleted = dict.fromkeys(path for path, content in files.items() if content is None)
        added = {path: content for path, content in files.items() if content is not None}
        return self.advance(branch, {**deleted, **self._stored(added)}, title=title)

    def _stored(self, files: Mapping[str, bytes]) -> dict[str, Blob]:
        return {path: self._blobs.add_file(path, content) for path, content in files.items()}

    def advance(
        self,
        branch: str,
        changes: Mapping[str, Blob | None],
        *,
        title: str,
        description: str = "",
        author: str = "somebody",
        parent: str | None = None,
    ) -> Commit:
        """Commit *changes* (None deletes) on *branch*.

        Raises:
            ConflictError: *parent* is given and is no longer the head of the branch.
        """
        with self._lock:
            head = self.at(self.branches[branch]) if branch in self.branches else None
            if parent is not None and (head is None or not head.id.startswith(parent)):
                raise ConflictError("A commit has happened since. Please refresh and try again.")
            merged = {**(head.blobs if head else {}), **changes}
            blobs = {path: blob for path, blob in sorted(merged.items()) if blob is not None}
            return self._append(branch, blobs, head.id if head else None, title, description, author)

    def _append(
        self, branch: str, blobs: Mapping[str, Blob], parent: str | None, title: str, description: str, author: str
    ) -> Commit:
        commit = Commit(
            id=secrets.token_hex(20),
            title=title,
            description=description,
            parent=parent,
            author=author,
            date=datetime.now(UTC),
            blobs=blobs,
        )
        self.commits.append(commit)
        self.branches[branch] = commit.id
        return commit

    def tag(self, name: str, commit_id: str) -> None:
        """Make a tag; ConflictError if there is one of this name."""
        self._add_ref(self.tags, name, commit_id)

    def branch(self, name: str, commit_id: str) -> None:
        """Make a branch; ConflictError if there is one of this name."""
        self._add_ref(self.branches, name, commit_id)

    def _add_ref(self, refs: dict[str, str], name: str, commit_id: str) -> None:
        with self._lock:
            if name in refs:
                raise ConflictError(f"Reference already exists: {name}")
            refs[name] = self.at(commit_id).id

    def move_tag(self, name: str, commit_id: str) -> None:
        """Let an existing tag point to another commit."""
        with self._lock:
            self.delete_tag(name)
            self.tag(name, commit_id)

    def delete_tag(self, name: str) -> None:
        """Remove a tag; KeyError if there is none."""
        with self._lock:
            del self.tags[name]

    def delete_branch(self, name: str) -> None:
        """Remove a branch; KeyError if there is none."""
        with self._lock:
            del self.branches[name]

    def squash(
        self,
        branch: str = "main",
        tags: Literal["keep", "move", "drop"] = "keep",
        *,
        files: Mapping[str, bytes] | None = None,
        title: str = "Super-squash",
        author: str = "somebody",
    ) -> Commit:
        """Rewrite the history of *branch* as one new commit, with the same files unless *files* are given.

        Tags into the old history stay, move to the new commit, or are dropped. An old commit that no branch and
        no tag reaches any more is gone.
        """
        with self._lock:
            head = self.at(self.branches[branch])
            old = {commit.id for commit in self.history(head)}
            blobs = head.blobs if files is None else self._stored(files)
            new = self._append(branch, blobs, None, title, "", author)
            for name in [] if tags == "keep" else [name for name, target in self.tags.items() if target in old]:
                self.delete_tag(name)
                if tags == "move":
                    self.tag(name, new.id)
            self._gone |= old - self._reachable()
            return new

    def _reachable(self) -> set[str]:
        heads = {*self.branches.values(), *self.tags.values()}
        return {commit.id for head in heads for commit in self.history(self.at(head))}
