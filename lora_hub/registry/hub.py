"""The registry on the Hugging Face Hub: a repository for each adapter, a tag ``vX.Y.Z`` for each version.

``main`` holds the highest release, so that whoever loads the repository as PEFT does never goes backwards. Older lines
and pre-releases are committed to a side branch. A version is one commit, made onto the head that was read (so that of
several publishers one wins), and then its tag. Whoever publishes next tags what a crash left without its tag, before
anything is committed on top: so only the head of a branch can ever lack one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.bundle import MAX_BUNDLE, MAX_SIGNATURES, is_signature_name, signature_names
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import (
    CARD_NAME,
    CONFIG_NAME,
    MANIFEST_NAME,
    MAX_CARD,
    MAX_MANIFEST,
    VERSION_FILES,
    Manifest,
)
from lora_hub.documents.statement import YANKED, is_yank_name
from lora_hub.documents.verified_adapter import manifest_digest
from lora_hub.errors import MalformedError, NotFoundError, RegistryError, UsageError
from lora_hub.reference import AdapterRef, exact_version
from lora_hub.registry import network
from lora_hub.registry.fetch import read_small
from lora_hub.registry.hub_answers import BranchMovedError, NoAnswerError, Refs
from lora_hub.registry.network import Retry, pause
from lora_hub.registry.registry import Found, Listing, Publication, RemoteFile, Sign, Snapshot, readable, unsigned
from lora_hub.version import Version

if TYPE_CHECKING:
    from lora_hub.registry.hub_client import HubClient

URL = "hf://"
TAG = "lora-hub"  # what cards of published adapters are tagged with
MAIN = "main"
SIDE = "lora-hub-versions"
RACES = Retry(tries=30, first=0.1, longest=2.0)  # how often another publisher may be faster
_LIST_LIMIT = 1000
_ADAPTER_OF = "base_model:adapter:"


class HubRegistry:
    """Versions of adapters on the Hub that ``HF_ENDPOINT`` names."""

    url = URL
    is_remote = True

    def __init__(self, *, private: bool = False) -> None:
        self._private = private

    @cached_property
    def _client(self) -> HubClient:
        # What is in the store already needs no client, which takes a while to load.
        network.check_endpoint()
        from lora_hub.registry.hub_client import HubClient

        return HubClient()

    # Reading

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield the adapters of one organisation that were published by lora-hub: *prefix* begins with ``org/``."""
        org, slash, _ = prefix.partition("/")
        if not slash:
            raise UsageError(
                "the Hub has too many adapters to list", hint="name an organisation, such as `org/`, or search"
            )
        found = self._client.search(author=org, tags=(TAG,), limit=_LIST_LIMIT)
        yield from sorted(m.name for m in found if m.name.startswith(prefix) and AdapterRef.is_name(m.name))

    def search(self, text: str, *, base: str | None, limit: int) -> Iterator[Found]:
        """Yield adapters in PEFT's format, whoever published them, the most downloaded first. One request."""
        tags = ("peft",) if base is None else ("peft", f"{_ADAPTER_OF}{base}")
        for model in self._client.search(text=text or None, tags=tags, limit=limit):
            bases = [tag.removeprefix(_ADAPTER_OF) for tag in model.tags if tag.startswith(_ADAPTER_OF)]
            yield Found(name=model.name, base=base or (bases[0] if bases else None), downloads=model.downloads)

    def listing(self, reference: AdapterRef) -> Listing:
        """Return the tagged versions and the head of ``main``. One request."""
        try:
            refs = self._client.refs(reference.name)
        except NotFoundError:
            return Listing()
        return Listing(versions=_versions(refs), head=refs.branches.get(MAIN))

    def snapshot(self, reference: AdapterRef, revision: str) -> Snapshot:
        """Return the files of a commit. One request, and one for each file that is read."""
        return self._snapshot(reference.name, revision)

    def _snapshot(self, repo: str, commit: str, folder: str = "") -> Snapshot:
        files = self._client.files(repo, commit, folder)

        def read(name: str, start: int, stop: int | None) -> Iterator[Bytes]:
            path = f"{folder}/{name}" if folder else name
            return self._client.stream(repo, commit, path, files[name], start, stop)

        known = {name: RemoteFile(size=file.size, sha256=file.sha256) for name, file in files.items()}
        return Snapshot(commit=commit, files=known, read=read)

    def yanks(self, reference: AdapterRef, listing: Listing) -> list[Bytes]:
        """Return the bundles on ``main`` that are said to yank *reference*. One request, and one for each."""
        version = exact_version(reference)
        if listing.head is None:
            return []
        try:
            snapshot = self._snapshot(reference.name, listing.head, YANKED)
        except NotFoundError:
            return []
        names = sorted(name for name in snapshot.files if is_yank_name(name, version))[:MAX_SIGNATURES]
        source = f"{reference} in {self.url}"
        return readable(names, lambda name: read_small(snapshot, name, limit=MAX_BUNDLE, source=source))

    # Publishing

    def publish(self, reference: AdapterRef, files: Mapping[str, Bytes], sign: Sign = unsigned) -> Publication:
        """Commit *files* and tag the commit; change nothing if the version exists.

        Raises:
            RegistryError: The Hub refused, or did not answer, or others were faster again and again.
        """
        from lora_hub.documents.model_card import check_card

        version = exact_version(reference)
        check_card(bytes(files.get(CARD_NAME, b"")))  # before anything is made
        mine = manifest_digest(bytes(files[MANIFEST_NAME]))
        files = {**files, **sign(bytes(files[MANIFEST_NAME]))}
        may_be_mine = False
        races, silences = RACES.waits(), network.RETRY.waits()
        while True:
            refs = self._settle(reference.name)
            published = _versions(refs).get(version)
            if published is not None:
                is_new = may_be_mine and self._digest(reference.name, published) == mine
                return Publication(is_new=is_new, commit=published)
            try:
                commit = self._commit(reference, version, files, refs)
                if self._client.create_tag(reference.name, f"v{version}", commit):
                    return Publication(is_new=True, commit=commit)
                may_be_mine = True
            except BranchMovedError as error:
                _wait_or_raise(error, races)
            except NoAnswerError as error:
                # It may have arrived all the same: what is there now says so.
                may_be_mine = True
                _wait_or_raise(error, silences, error.retry_after)

    def publish_yank(self, reference: AdapterRef, name: str, bundle: Bytes) -> None:
        """Commit a bundle onto ``main``, among those that yank versions."""
        races, silences = RACES.waits(), network.RETRY.waits()
        while True:
            refs = self._settle(reference.name)  # a version without its tag is found at a head only
            try:
                self._client.commit(
                    reference.name,
                    MAIN,
                    self._main(reference.name, refs),
                    {f"{YANKED}/{name}": bundle},
                    title=f"Yank {reference.version}",
                )
            except BranchMovedError as error:
                _wait_or_raise(error, races)
            except NoAnswerError as error:
                _wait_or_raise(error, silences, error.retry_after)
            else:
                return

    def _settle(self, repo: str) -> Refs:
        """Return the refs of *repo*, made if need be, once every version that was committed has its tag."""
        refs = self._open(repo)
        for _ in range(RACES.tries):
            missing = self._missing_tags(repo, refs)
            if not missing:
                return refs
            for tag, head in missing.items():
                self._client.create_tag(repo, tag, head)
            # Meanwhile another publisher may have come, and crashed as well.
            refs = self._client.refs(repo)
        raise RegistryError(
            f"`{repo}` on `{self._client.host}` does not keep the tags that it is given", hint="run it again later"
        )

    def _main(self, repo: str, refs: Refs) -> str:
        """Return the head of ``main``."""
        if MAIN not in refs.branches:
            raise RegistryError(f"`{repo}` on `{self._client.host}` has no branch `{MAIN}`", hint="make one")
        return refs.branches[MAIN]

    def _open(self, repo: str) -> Refs:
        try:
            refs = self._client.refs(repo)
        except NotFoundError:
            self._client.create_repo(repo, private=self._private)  # or another publisher did, just now
            refs = self._client.refs(repo)
        if self._private and not self._client.is_private(repo):
            raise UsageError(
                f"`{repo}` on `{self._client.host}` exists and is public",
                hint="make it private there, or leave out --private",
            )
        return refs

    def _missing_tags(self, repo: str, refs: Refs) -> dict[str, str]:
        """Return the tags that heads of our branches lack, and those heads."""
        heads = {refs.branches[branch] for branch in (MAIN, SIDE) if branch in refs.branches}
        untagged = {head: self._version_at(repo, head) for head in heads - set(refs.tags.values())}
        tags = {f"v{version}": head for head, version in untagged.items() if version is not None}
        return {tag: head for tag, head in tags.items() if tag not in refs.tags}

    def _version_at(self, repo: str, commit: str) -> Version | None:
        """Return the version that *commit* is: its manifest speaks for this repository and for the files beside it."""
        snapshot = self._snapshot(repo, commit)
        with contextlib.suppress(NotFoundError, MalformedError):
            manifest = Manifest.parse(bytes(read_small(snapshot, MANIFEST_NAME, limit=MAX_MANIFEST, source=repo)))
            is_whole = all(
                file.name in snapshot.files
                and snapshot.files[file.name] in {RemoteFile(size=file.size, sha256=s) for s in (file.sha256, None)}
                for file in manifest.files
            )
            reference = manifest.reference
            return reference.version if is_whole and reference and reference.name == repo else None
        return None

    def _digest(self, repo: str, commit: str) -> str:
        return manifest_digest(self._manifest(repo, commit))

    def _manifest(self, repo: str, commit: str) -> bytes:
        snapshot = self._snapshot(repo, commit)
        return bytes(read_small(snapshot, MANIFEST_NAME, limit=MAX_MANIFEST, source=repo))

    def _commit(self, reference: AdapterRef, version: Version, files: Mapping[str, Bytes], refs: Refs) -> str:
        """Commit *files* onto the branch that this version belongs to, and return the id of the commit."""
        repo = reference.name
        main = self._main(repo, refs)
        versions = _versions(refs)
        is_highest = all(version > other for other in versions if not other.is_prerelease)
        branch = MAIN if is_highest and not version.is_prerelease else SIDE
        if branch not in refs.branches:
            self._client.create_branch(repo, branch, main)
        parent = refs.branches.get(branch, main)
        content = {name: files[name] for name in (*VERSION_FILES, *signature_names(files))}
        before = self._snapshot(repo, parent)
        content[CARD_NAME] = _card(repo, before, files, [*versions, version])
        return self._client.commit(
            repo,
            branch,
            parent,
            content,
            # Signatures of the version before are none of this one.
            removed=[name for name in before.files if is_signature_name(name) and name not in content],
            title=f"Publish {version}",
            description=manifest_digest(bytes(files[MANIFEST_NAME])),
        )


def _card(repo: str, before: Snapshot, files: Mapping[str, Bytes], versions: list[Version]) -> bytes:
    """Return the card to publish: what stands there *before*, brought up to date."""
    from lora_hub.documents.model_card import update_card  # what only publishers need

    has_card = CARD_NAME in before.files
    current = bytes(read_small(before, CARD_NAME, limit=MAX_CARD, source=repo)) if has_card else b""
    return update_card(
        current,
        bytes(files.get(CARD_NAME, b"")),
        manifest=Manifest.parse(bytes(files[MANIFEST_NAME])),
        config=AdapterConfig.parse(bytes(files[CONFIG_NAME])),
        digest=manifest_digest(bytes(files[MANIFEST_NAME])),
        versions=versions,
    )


def _wait_or_raise(error: Exception, waits: Iterator[float], wish: str | None = None) -> None:
    wait = next(waits, None)
    if wait is None:
        raise error
    pause(wait, wish)


def _versions(refs: Refs) -> dict[Version, str]:
    """Return the commits of the tags ``vX.Y.Z``, rising."""
    tags = {name.removeprefix("v"): commit for name, commit in refs.tags.items() if name.startswith("v")}
    return dict(sorted((Version.parse(name), commit) for name, commit in tags.items() if Version.is_version(name)))
