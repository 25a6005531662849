"""The Hugging Face Hub as its own client speaks it, with the manners that the client lacks.

The only module that knows huggingface_hub. To what the client does it adds a limit to every wait, bounded answers,
retries of what may be repeated, downloads that go on at any byte, and errors that say what to do.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils._http import get_session, hf_raise_for_status
from huggingface_hub.utils._runtime import is_xet_available
from huggingface_hub.utils._xet import (
    XetConnectionInfo,
    XetTokenType,
    get_xet_session,
    parse_xet_connection_info_from_headers,
    xet_connection_info_refresh_url,
    xet_headers_without_auth,
)
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from lora_hub.documents.fields import Bytes, printable
from lora_hub.errors import LoraHubError, RegistryError, UsageError
from lora_hub.registry import network, xet
from lora_hub.registry.hub_answers import BranchMovedError, HubFile, Model, NoAnswerError, Refs
from lora_hub.registry.manners import manners
from lora_hub.registry.network import pause, refusal, unreachable

T = TypeVar("T")

_PROGRESS = 1024 * 1024  # bytes after which failures are counted anew
_WORTH_XET = 1024 * 1024  # bytes; a smaller file is there before Xet has said where its parts are
# What the client raises on an answer that is none.
_MALFORMED = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)


class HubClient:
    """What the registry asks of the Hub. Token and endpoint are those of `hf`: HF_TOKEN, HF_ENDPOINT."""

    def __init__(self) -> None:
        xet.limit()
        self._endpoint = (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
        self._api = HfApi(endpoint=self._endpoint, library_name="lora-hub", library_version=version("lora-hub"))

    @property
    def host(self) -> str:
        """The host of the Hub, for messages."""
        return urlsplit(self._endpoint).netloc.rpartition("@")[2]

    # Reading

    def refs(self, repo: str) -> Refs:
        """Return the branches and version tags of *repo*. One request."""

        def ask() -> Refs:
            refs = self._api.list_repo_refs(repo)
            return Refs(
                branches={ref.name: ref.target_commit for ref in refs.branches},
                tags={ref.name: ref.target_commit for ref in refs.tags},
            )

        return self._ask(f"the tags of `{repo}`", ask)

    def files(self, repo: str, commit: str, folder: str = "") -> dict[str, HubFile]:
        """Return the files that *commit* has in *folder*, the first thousand, by name. One request."""
        place = f"{commit}/{folder}" if folder else commit

        # A GET of our own, as in `search`.
        def ask() -> dict[str, HubFile]:
            url = f"{self._endpoint}/api/models/{repo}/tree/{place}"
            response = get_session().get(url, headers=self._headers(), timeout=None)
            hf_raise_for_status(response)
            files = [RepoFile(**entry) for entry in response.json() if entry["type"] == "file"]
            return {
                f.path.rpartition("/")[2]: HubFile(
                    size=int(f.size), sha256=f.lfs.sha256 if f.lfs else None, xet_hash=f.xet_hash
                )
                for f in files
            }

        return self._ask(f"`{repo}` at {place}", ask)

    def search(
        self, *, text: str | None = None, author: str | None = None, tags: tuple[str, ...], limit: int
    ) -> list[Model]:
        """Return at most *limit* models that have all *tags*, the most downloaded first. One request."""

        # A GET of our own: the client's would try six times for each of our tries.
        def ask() -> list[Model]:
            query = {"search": text, "author": author, "filter": list(tags), "limit": limit, "sort": "downloads"}
            parameters = {key: value for key, value in query.items() if value is not None}
            response = get_session().get(
                f"{self._endpoint}/api/models", params=parameters, headers=self._headers(), timeout=None
            )
            hf_raise_for_status(response)
            return [
                Model(name=str(m["id"]), tags=tuple(map(str, m.get("tags") or ())), downloads=m.get("downloads"))
                for m in response.json()
            ]

        return self._ask("a search", ask)[:limit]

    def stream(self, repo: str, commit: str, name: str, file: HubFile, start: int, stop: int | None) -> Iterator[bytes]:
        """Yield the bytes of *name* from *start* to *stop*, going on after a cut, over Xet where that is faster."""
        what = f"`{name}` of `{repo}`"
        end = file.size if stop is None else stop
        position = start
        if stop is None and file.xet_hash and end - start >= _WORTH_XET and is_xet_available():
            # Where Xet fails, or ends too early in silence, plain HTTP goes on.
            with contextlib.suppress(xet.XetFailedError):
                for chunk in self._xet_chunks(repo, commit, file, start):
                    position += len(chunk)
                    yield chunk
        url = hf_hub_url(repo, name, revision=commit, endpoint=self._endpoint)
        waits, mark = network.RETRY.waits(), position
        while position < end:
            try:
                for chunk in self._http_chunks(url, position, end, is_exact=stop is not None):
                    position += len(chunk)
                    yield chunk
                    if position - mark >= _PROGRESS:  # it moves
                        waits, mark = network.RETRY.waits(), position
                if position < end:
                    raise httpx2.RemoteProtocolError("the answer was cut off")
            except (HfHubHTTPError, httpx2.HTTPError, OfflineModeIsEnabled) as error:
                self._wait_or_raise(error, what, waits)

    def download(self, repo: str, commit: str, name: str) -> Path:
        """Return where the file *name* lies in the client's cache, brought there if need be."""

        def bring() -> str:
            return hf_hub_download(repo, name, revision=commit, endpoint=self._endpoint, library_name="lora-hub")

        with _bars_on_terminals_only():
            return Path(self._ask(f"`{name}` of `{repo}`", bring))

    def _http_chunks(self, url: str, start: int, stop: int, *, is_exact: bool) -> Iterator[bytes]:
        """Yield the bytes from *start* to *stop*; only if it *is_exact* is what comes beyond kept from the reader."""
        headers = self._headers() | {"range": f"bytes={start}-{stop - 1}", "accept-encoding": "identity"}
        with manners(get_session()) as session, session.stream("GET", url, headers=headers) as response:
            hf_raise_for_status(response)
            # A server may ignore the range and begin at the beginning.
            position = start if response.status_code == httpx2.codes.PARTIAL_CONTENT else 0
            for chunk in response.iter_raw():
                wanted = chunk[max(0, start - position) : stop - position if is_exact else None]
                position += len(chunk)
                if wanted:
                    yield wanted
                if is_exact and position >= stop:
                    return

    def _xet_chunks(self, repo: str, commit: str, file: HubFile, start: int) -> Iterator[bytes]:
        headers = self._headers()
        route = xet_connection_info_refresh_url(
            token_type=XetTokenType.READ, repo_id=repo, repo_type="model", revision=commit, endpoint=self._endpoint
        )
        try:
            place = self._xet_place(route, headers)
        except (OSError, httpx2.HTTPError, *_MALFORMED) as error:
            raise xet.XetFailedError from error
        group = {
            "endpoint": place.endpoint,
            "token": place.access_token,
            "token_expiry_unix_secs": place.expiration_unix_epoch,
            "token_refresh_url": route,
            "token_refresh_headers": headers,
            "custom_headers": xet_headers_without_auth(headers),
        }
        yield from xet.chunks(get_xet_session(), group, str(file.xet_hash), file.size, start)

    @staticmethod
    def _xet_place(route: str, headers: dict[str, str]) -> XetConnectionInfo:
        with manners(get_session()) as session:
            response = session.get(route, headers=headers, timeout=None)
            hf_raise_for_status(response)
        place = parse_xet_connection_info_from_headers(response.headers)
        if place is None:
            raise ValueError("no token for Xet was given")
        return place

    # Writing

    def is_private(self, repo: str) -> bool:
        """Whether only those who may read *repo* can see it."""
        return bool(self._ask(f"`{repo}`", lambda: self._api.model_info(repo, expand=["private"]).private))

    def create_repo(self, repo: str, *, private: bool) -> None:
        """Make *repo*, unless it exists."""
        self._ask(
            f"creating `{repo}`", lambda: self._api.create_repo(repo, private=private, exist_ok=True), is_write=True
        )

    def create_branch(self, repo: str, branch: str, commit: str) -> None:
        """Make *branch* at *commit*, unless it exists."""
        self._ask(
            f"a branch of `{repo}`",
            lambda: self._api.create_branch(repo, branch=branch, revision=commit, exist_ok=True),
            is_write=True,
        )

    def create_tag(self, repo: str, tag: str, commit: str) -> bool:
        """Make *tag* at *commit*; return False, changing nothing, if there is one of that name."""

        def create() -> bool:
            try:
                self._api.create_tag(repo, tag=tag, revision=commit)
            except HfHubHTTPError as error:
                if error.response.status_code != httpx2.codes.CONFLICT:
                    raise
                return False
            return True

        return self._ask(f"tagging `{repo}`", create, is_write=True)

    def commit(
        self,
        repo: str,
        branch: str,
        parent: str,
        files: Mapping[str, Bytes],
        *,
        removed: Iterable[str] = (),
        title: str,
        description: str = "",
    ) -> str:
        """Commit *files*, without those *removed*, onto *branch*, whose head must be *parent*; return the commit's id.

        Raises:
            BranchMovedError: The head is another one.
            NoAnswerError: It may have been done, or not.
        """
        operations: list[CommitOperationAdd | CommitOperationDelete] = [
            *(CommitOperationAdd(name, bytes(content)) for name, content in files.items()),
            *(CommitOperationDelete(name) for name in removed),
        ]
        what = f"committing to `{repo}`"
        try:
            with manners(get_session()), _bars_on_terminals_only():
                done = self._api.create_commit(
                    repo,
                    operations,
                    commit_message=title,
                    commit_description=description,
                    revision=branch,
                    parent_commit=parent,
                )
        except HfHubHTTPError as error:
            status = error.response.status_code
            refused = self._refusal(error, what, is_write=True)
            if status == httpx2.codes.PRECONDITION_FAILED:
                raise BranchMovedError(refused.message, hint="run it again") from error
            if status in network.RETRIED:
                wish = error.response.headers.get("retry-after")
                raise NoAnswerError(refused.message, hint=str(refused.hint), retry_after=wish) from error
            raise refused from error
        except OfflineModeIsEnabled as error:
            raise self._refusal(error, what) from error
        # RuntimeError and OSError are hf-xet's own; no JSON comes from a gateway before the Hub.
        except (OSError, RuntimeError, httpx2.HTTPError, json.JSONDecodeError) as error:
            lost = unreachable(self.host, what, error)
            raise NoAnswerError(
                lost.message, hint=f"{lost.hint}; where the server has no Xet, set HF_HUB_DISABLE_XET=1"
            ) from error
        except _MALFORMED as error:
            raise RegistryError(
                f"{what} on `{self.host}` failed: {self._shown(error)}",
                hint="if it is about README.md, mend the card beside the adapter; else check HF_ENDPOINT",
            ) from error
        return str(done.oid)

    # How to ask

    def _headers(self) -> dict[str, str]:
        return self._api._build_hf_headers()  # noqa: SLF001 - the client has no public name for its own headers

    def _ask(self, what: str, call: Callable[[], T], *, is_write: bool = False) -> T:
        """Return what *call*, which may be repeated, returns; try again where that can help."""
        waits = network.RETRY.waits()
        while True:
            try:
                with manners(get_session()):
                    return call()
            except (HfHubHTTPError, httpx2.HTTPError, OfflineModeIsEnabled) as error:
                self._wait_or_raise(error, what, waits, is_write=is_write)
            except HFValidationError as error:
                raise UsageError(f"the Hub has no such names: {error}", hint="check the name") from error
            except _MALFORMED as error:
                raise RegistryError(
                    f"`{self.host}` answered the request for {what} with something else: {self._shown(error)}",
                    hint="check HF_ENDPOINT: is there a Hub?",
                ) from error

    def _shown(self, said: object) -> str:
        """Return what a server said so that a terminal can show it, without the token that it may repeat."""
        token = self._headers().get("authorization", "").removeprefix("Bearer ")
        return printable(str(said).replace(token, "***") if token else str(said))

    def _wait_or_raise(self, error: Exception, what: str, waits: Iterator[float], *, is_write: bool = False) -> None:
        response = error.response if isinstance(error, HfHubHTTPError) else None
        may_pass = isinstance(error, httpx2.TransportError) or (
            response is not None and response.status_code in network.RETRIED
        )
        wait = next(waits, None) if may_pass else None
        if wait is None:
            raise self._refusal(error, what, is_write=is_write) from error
        pause(wait, response.headers.get("retry-after") if response is not None else None)

    def _refusal(self, error: Exception, what: str, *, is_write: bool = False) -> LoraHubError:
        if isinstance(error, OfflineModeIsEnabled):
            return RegistryError(f"the network is needed for {what}, and HF_HUB_OFFLINE forbids it", hint="unset it")
        if not isinstance(error, HfHubHTTPError):
            return unreachable(self.host, what, error)
        said = self._shown(error.server_message) if error.server_message else ""
        if isinstance(error, GatedRepoError):
            return RegistryError(
                f"`{self.host}` wants you to ask for access before {what}: {said}",
                hint="log in with `hf auth login` or HF_TOKEN, and ask for it on its page",
            )
        # To the anonymous the Hub answers 401 for what is missing and for what is private alike.
        is_missing = isinstance(error, RepositoryNotFoundError | RevisionNotFoundError | RemoteEntryNotFoundError)
        status = int(httpx2.codes.NOT_FOUND) if is_missing and not is_write else error.response.status_code
        return refusal(status, host=self.host, what=what, said=said)


@contextlib.contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Let the client show its progress where a person looks."""
    if sys.stderr.isatty() or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
