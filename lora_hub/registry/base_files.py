"""A base model on the Hub: small ranges by request, whole files through the Hub client's own cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lora_hub.documents.fields import printable
from lora_hub.errors import NotFoundError, RegistryError
from lora_hub.reference import is_commit
from lora_hub.registry.hub_client import HubClient
from lora_hub.registry.network import check_endpoint

_MAIN = "main"


class HubBase:
    """The files of one commit of a repository. Until `fetched` is called, nothing but the asked ranges moves."""

    def __init__(self, repo: str, revision: str | None = None) -> None:
        """Ask what *revision*, a branch, a tag or a commit, of *repo* is, and what it holds. Two requests.

        Raises:
            NotFoundError: There is no such repository or revision.
            RegistryError: The Hub or the network refused.
        """
        check_endpoint()
        self._client = HubClient()
        self.repo: str | None = repo
        self.commit: str | None = self._resolve(repo, revision or _MAIN)
        self._files = self._client.files(repo, str(self.commit))
        self.name = f"{repo}@{revision or _MAIN}"

    def _resolve(self, repo: str, revision: str) -> str:
        if is_commit(revision):
            return revision
        refs = self._client.refs(repo)
        commit = refs.branches.get(revision) or refs.tags.get(revision)
        if commit is None:
            raise NotFoundError(
                f"`{repo}` has no branch and no tag {printable(revision)}", hint="check the revision, or name a commit"
            )
        return commit

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each file at the top of the repository."""
        return {name: file.size for name, file in self._files.items()}

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Return the bytes of the file *name* from *start* to *stop*: one request of exactly this range."""
        if start == stop:
            return b""
        content = b"".join(self._client.stream(str(self.repo), str(self.commit), name, self._files[name], start, stop))
        if len(content) != stop - start:
            raise RegistryError(
                f"`{self._client.host}` sent {len(content)} bytes of `{name}`, {stop - start} were asked for",
                hint="run it again",
            )
        return content

    def fetched(self, name: str) -> Path:
        """Return where the whole file lies in the cache of the Hub's client, downloaded if it was not there."""
        return self._client.download(str(self.repo), str(self.commit), name)

    def sha256(self, name: str) -> str | None:
        """Return what the Hub says of a large file; None of a small one, which it keeps in git."""
        return self._files[name].sha256

    def stamp(self, name: str) -> str:
        """Return commit and name: what a commit holds never changes."""
        return f"{self.commit} {name}"
