"""A registry in an object store: S3 and its likes, Google Cloud Storage; to read from, whatever fsspec opens.

The layout is that of a directory registry, ``<root>/org/task/1.2.0/``, and a version exists if and only if its manifest
does. An object store has no rename, only "create unless it exists". So a publisher first claims the version: it creates
``<root>/.claims/org/task/1.2.0.json`` with the manifest; then it writes the payload, creates the manifest and removes
the claim. Why that is safe:

- Who finds a claim goes on only if it names the same files by the same SHA-256, so all who write a payload write the
  same bytes: files of two publishers never mix, and what a crash left is completed by the next push of its content.
- The manifest comes last and is never replaced: before it there is no version, after it no other one.
- A claim is removed only when the manifest is there, and whoever claims looks for the manifest again before writing. So
  it does not matter whose claim is removed, and one that is left beside a published version means nothing.

Login and region come from where a store's own tools look for them; ``AWS_ENDPOINT_URL`` names an S3 not Amazon's.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import cached_property
from typing import Any

import fsspec
from fsspec.implementations.dirfs import DirFileSystem

from lora_hub.documents.bundle import MAX_BUNDLE, MAX_SIGNATURES, SIGNATURE_NAME, Bundle, further_name, signature_names
from lora_hub.documents.fields import Bytes, sha256
from lora_hub.documents.manifest import MANIFEST_NAME, MAX_MANIFEST, PAYLOAD_NAMES, VERSION_FILES, Manifest, differs
from lora_hub.documents.statement import YANKED, SignedFiles, is_yank_name
from lora_hub.errors import (
    IntegrityError,
    MalformedError,
    NotFoundError,
    RegistryError,
    UsageError,
    VersionConflictError,
)
from lora_hub.reference import AdapterRef, exact_version
from lora_hub.registry.network import timeout
from lora_hub.registry.object_errors import CHECK, LOG_IN, package_of, store_errors
from lora_hub.registry.registry import Found, Listing, Publication, RemoteFile, Sign, Snapshot, readable, unsigned
from lora_hub.registry.search import search_manifests
from lora_hub.version import Version

_WEB = {"http", "https"}
_CLAIMS = ".claims"  # no org starts with a dot
_RANGE = 16 * 1024 * 1024  # bytes of one read
_ATTEMPTS = 4
_NOBODY = ""  # who signs nothing that counts
_ALIASES = {"s3a": "s3", "gcs": "gs"}
_CREATES = ("s3", "gs", "memory")  # the protocols with which an object can be created only where there is none
_AT_IS_NO_LOGIN = {"github", "abfs", "abfss"}  # github://org:repo@branch, abfs://container@account
_MEMORY = threading.Lock()  # in memory, fsspec looks and writes in two steps
_NOT_CREATED = {"PreconditionFailed", "412", "ConditionalRequestConflict"}  # the last: it is just being removed


class ObjectStoreRegistry:
    """Versions of adapters under one URL of an object store."""

    is_remote = True

    def __init__(self, url: str) -> None:
        self._protocol, self._url = _normalise(url)
        with self._errors():
            fsspec.get_filesystem_class(self._protocol)  # known, and installed?

    @property
    def url(self) -> str:
        """``s3://bucket/prefix``, without a slash at its end."""
        return self._url

    def names(self, prefix: str = "") -> Iterator[str]:
        """Yield ``org/task`` of every adapter whose name begins with *prefix*, sorted."""
        org, slash, _ = prefix.partition("/")
        names = {name for name, _ in self._published(org if slash and AdapterRef.is_name(f"{org}/x") else "")}
        yield from sorted(name for name in names if name.startswith(prefix))

    def search(self, text: str, *, base: str | None, limit: int) -> Iterator[Found]:
        """Yield the adapters whose name holds *text* and whose newest version was trained on *base*."""
        return search_manifests(self, text, base=base, limit=limit)

    def listing(self, reference: AdapterRef) -> Listing:
        """Return the published versions of the adapter."""
        versions = sorted(Version.parse(version) for _, version in self._published(reference.name))
        return Listing(versions={version: str(version) for version in versions})

    def snapshot(self, reference: AdapterRef, revision: str) -> Snapshot:
        """Return the files of a version."""
        folder = f"{reference.name}/{revision}"
        with self._errors():
            names = (*VERSION_FILES, SIGNATURE_NAME) if Version.is_version(revision) else ()
            sizes = {name: self._size(f"{folder}/{name}") for name in names}
            if sizes.get(SIGNATURE_NAME) is not None:  # then perhaps of more than one signer
                for name in signature_names(self._list(folder)):
                    sizes[name] = self._size(f"{folder}/{name}")
        if sizes.get(MANIFEST_NAME) is None:
            message = f"`{self._url}` has no version `{revision}` of `{reference.name}`"
            raise NotFoundError(message, hint=f"run `lora-hub list {reference.name}` to see what it has")
        files = {name: RemoteFile(size=size) for name, size in sizes.items() if size is not None}

        def read(name: str, start: int, stop: int | None) -> Iterator[Bytes]:
            return self._read(f"{folder}/{name}", start, files[name].size if stop is None else stop)

        return Snapshot(commit=None, files=files, read=read)

    def publish(self, reference: AdapterRef, files: Mapping[str, Bytes], sign: Sign = unsigned) -> Publication:
        """Make *files* an exact version; change nothing if it exists. The module's docstring says why this is safe.

        Raises:
            UsageError: The store cannot create an object only where there is none.
            VersionConflictError: Somebody is publishing other content under this version, or died of it.
        """
        self._check_writable()
        folder = f"{reference.name}/{reference.version}"
        claim = f"{_CLAIMS}/{folder}.json"
        manifest, mine = f"{folder}/{MANIFEST_NAME}", bytes(files[MANIFEST_NAME])
        with self._errors():
            if self._size(manifest) is not None:
                return Publication(is_new=False)
            self._check_creates()
            agreed = self._claim(claim, mine)
            is_new = self._size(manifest) is None  # if it is there since, no claim means anything any more
            if is_new:
                self._check_same(agreed, mine, reference)
                for name in PAYLOAD_NAMES:
                    self._fs.pipe_file(f"{folder}/{name}", bytes(files[name]))
                self._add_signatures(folder, agreed, sign(agreed))
                is_new = self._create(manifest, agreed)
                if not is_new and self._size(manifest) is None:
                    raise RegistryError(f"`{self._url}` is busy with `{reference}`", hint="push the same again")
            with suppress(FileNotFoundError, PermissionError):  # to whom the store forbids it, the claim stays
                self._fs.rm_file(claim)
        return Publication(is_new=is_new and agreed == mine)

    def _add_signatures(self, folder: str, agreed: bytes, bundles: Mapping[str, Bytes]) -> None:
        """Write *bundles*, beside those that others wrote over the *agreed* manifest; what is over another one goes."""
        there: dict[str, str | None] = {}
        for name in signature_names(self._list(folder)):
            hint = self._signer_of(f"{folder}/{name}", agreed)
            if hint == _NOBODY:
                self._fs.rm_file(f"{folder}/{name}")
            else:
                there[name] = hint
        for name, content in bundles.items():
            hint = Bundle.parse(content).hint
            if hint is None or hint not in there.values():
                free = name if name not in there else further_name(sha256(content))
                self._create(f"{folder}/{free}", bytes(content))

    def _signer_of(self, path: str, agreed: bytes) -> str | None:
        """Return the fingerprint that the bundle at *path* names, or `_NOBODY` if it does not sign *agreed*."""
        try:
            bundle = Bundle.parse(self._read_small(path))
            is_over = SignedFiles.parse(bundle.payload).digests[MANIFEST_NAME] == sha256(agreed)
        except (MalformedError, IntegrityError):
            return _NOBODY
        return bundle.hint if is_over else _NOBODY

    def yanks(self, reference: AdapterRef, listing: Listing) -> list[Bytes]:  # noqa: ARG002 - one look is enough
        """Return the bundles that are said to yank the exact version *reference*."""
        folder, version = f"{reference.name}/{YANKED}", exact_version(reference)
        with self._errors():
            names = sorted(name for name in self._list(folder) if is_yank_name(name, version))[:MAX_SIGNATURES]
        return readable(names, lambda name: self._read_small(f"{folder}/{name}"))

    def _read_small(self, path: str) -> bytes:
        with self._errors():
            size = self._size(path)
        if not size or size > MAX_BUNDLE:
            raise MalformedError(f"`{path}` is no bundle", hint="it is not read")
        return b"".join(self._read(path, 0, size))

    def publish_yank(self, reference: AdapterRef, name: str, bundle: Bytes) -> None:
        """Put a bundle among those that yank versions of the adapter."""
        self._check_writable()
        with self._errors():
            self._fs.pipe_file(f"{reference.name}/{YANKED}/{name}", bytes(bundle))

    def _list(self, folder: str) -> list[str]:
        """Return the names of the files in *folder*; none where it is missing, or nothing can be listed."""
        try:
            return [e["name"].rpartition("/")[2] for e in self._fs.ls(folder, detail=True) if e["type"] == "file"]
        except FileNotFoundError:
            return []

    def _claim(self, claim: str, mine: bytes) -> bytes:
        """Claim a version; return the manifest that the claim on it holds, whoever made that."""
        for attempt in range(_ATTEMPTS):
            if self._create(claim, mine):
                return mine
            with suppress(FileNotFoundError):  # removed since, as its version is published
                return bytes(self._fs.cat_file(claim, start=0, end=MAX_MANIFEST + 1))
            time.sleep(0.1 * 2**attempt)
        raise RegistryError(f"`{claim}` comes and goes in `{self._url}`", hint="push the same again")

    def _check_writable(self) -> None:
        if self._protocol not in _CREATES:
            raise UsageError(
                f"a registry of the kind `{self._protocol}:` is only read from, `{self._url}` cannot be published to",
                hint=f"publish to a directory, or to a URL of the kind {', '.join(f'`{name}:`' for name in _CREATES)}",
            )

    def _check_same(self, agreed: bytes, mine: bytes, reference: AdapterRef) -> None:
        try:
            if not differs(agreed, mine):
                return
            since = Manifest.parse(agreed).created
        except MalformedError as error:
            raise RegistryError(
                f"the claim on `{reference}` in `{self._url}` is no manifest: {error.message}",
                hint="lora-hub did not write it: ask who runs the registry",
            ) from error
        raise VersionConflictError(
            f"`{reference}` is being published in `{self._url}` with other content since {since}",
            hint="publish the next version; or, if that push died, push the same content again from where it ran, or "
            f"remove `{_CLAIMS}/{reference.name}/{reference.version}.json`",
        )

    def _check_creates(self) -> None:
        """Create an object twice: some stores that speak S3, and old clients, replace it the second time."""
        probe = f"{_CLAIMS}/.probe-{uuid.uuid4().hex}"
        self._create(probe, b"")
        is_replaced = self._create(probe, b"")
        with suppress(PermissionError):
            self._fs.rm_file(probe)
        if is_replaced:
            raise UsageError(
                f"`{self._url}` cannot be published to: the store replaces what it is only to create",
                hint="use a store that has S3's conditional writes (`If-None-Match: *`)",
            )

    def _create(self, path: str, content: bytes) -> bool:
        """Create an object unless it exists; return whether this call did."""
        try:
            with _MEMORY if self._protocol == "memory" else nullcontext():
                self._fs.pipe_file(path, content, mode="create")
        except OSError as error:
            code = getattr(error.__cause__, "response", {}).get("Error", {}).get("Code")  # S3's, which s3fs translates
            if isinstance(error, FileExistsError) or code in _NOT_CREATED:
                return False
            raise
        return True

    def _read(self, path: str, start: int, stop: int) -> Iterator[Bytes]:
        if self._protocol in _WEB:
            yield from self._stream(path, start, stop)
            return
        while start < stop:
            end = min(start + _RANGE, stop)
            with self._errors(f"`{path}` is gone"):
                chunk: bytes = self._fs.cat_file(path, start=start, end=end)
            yield chunk
            start = end if chunk else stop  # who reads sees that something is missing

    def _stream(self, path: str, start: int, stop: int) -> Iterator[Bytes]:
        """Read from a web server, which may have no ranges and may never end: from the beginning, and no more."""
        position = 0
        with self._errors(f"`{path}` is gone"), self._fs.open(path, "rb", block_size=0) as file:
            while position < stop:
                chunk: bytes = file.read(min(_RANGE, stop - position))
                if not chunk:
                    return
                if position + len(chunk) > start:
                    yield chunk[max(0, start - position) :]
                position += len(chunk)

    def _size(self, path: str) -> int | None:
        """Return the size of a file in bytes, or None if there is no such file."""
        try:
            info = self._fs.info(path)
        except FileNotFoundError as error:
            # Over HTTP, this is fsspec's word for everything that goes wrong.
            cause = error.__cause__
            if cause and package_of(cause) == "aiohttp" and getattr(cause, "status", None) != 404:  # noqa: PLR2004
                raise cause from None
            return None
        if info["type"] == "file" and info["size"] is None:
            raise RegistryError(f"`{path}` has no size", hint="use a server that sends Content-Length")
        return int(info["size"]) if info["type"] == "file" else None

    def _published(self, folder: str) -> list[list[str]]:
        """Return ``[org/task, version]`` of everything that has a manifest below *folder*."""
        with self._errors():
            try:
                # Object stores list without folders; elsewhere fsspec's `find` would be silent about errors.
                found = self._fs.find(folder) if self._protocol in _CREATES else list(self._walk(folder))
            except FileNotFoundError:
                self._fs.ls("")  # raised again if it is the registry that is missing
                return []
        paths = [path.strip("/").rsplit("/", 2) for path in found if path.endswith(f"/{MANIFEST_NAME}")]
        return [path[:2] for path in paths if AdapterRef.is_name(path[0]) and Version.is_version(path[1])]

    def _walk(self, folder: str) -> Iterator[str]:
        for entry in self._fs.ls(folder, detail=True):
            if entry["type"] != "directory":
                yield entry["name"]
            elif entry["name"].strip("/").count("/") < 3:  # noqa: PLR2004 - org/task/version
                yield from self._walk(entry["name"])

    @cached_property
    def _fs(self) -> Any:  # noqa: ANN401 - fsspec has no types
        """The file system whose root is the registry's."""
        # Neither listings nor connections are shared: what another process publishes is seen at once.
        options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
        if self._protocol == "s3":
            limits = {"connect_timeout": min(10.0, timeout()), "read_timeout": timeout()}
            options["config_kwargs"] = {**limits, "retries": {"total_max_attempts": _ATTEMPTS, "mode": "standard"}}
        if self._protocol in _WEB:
            from aiohttp import ClientTimeout

            waits = ClientTimeout(total=None, sock_connect=timeout(), sock_read=timeout())
            options["client_kwargs"] = {"timeout": waits}
        with self._errors():
            store, root = fsspec.url_to_fs(self._url, **options)
        store.retries = 2  # of s3fs, around those of botocore: only s3fs sees an answer that was cut off
        return DirFileSystem(root, store, skip_instance_cache=True) if root else store

    def _errors(self, missing: str = "") -> AbstractContextManager[None]:
        return store_errors(self._url, self._protocol, missing)


def _normalise(url: str) -> tuple[str, str]:
    """Return the protocol of *url*, and the one spelling of it under which its versions are remembered."""
    protocol, separator, rest = url.partition("://")
    protocol, chain, inner = protocol.partition("::")
    protocol = _ALIASES.get(protocol.lower(), protocol.lower())
    # Such a URL may hold a secret, and is not repeated.
    if "?" in url or "#" in url or ("@" in url and protocol not in _AT_IS_NO_LOGIN):
        raise UsageError("the URL of a registry has no login, `@`, `?` or `#`", hint=LOG_IN.get(protocol, CHECK))
    if not protocol or not separator or (protocol in LOG_IN and not rest.strip("/")):
        raise UsageError(f"{url!a} names no registry", hint="write `s3://bucket/prefix`")
    return protocol, f"{protocol}{chain}{inner}{separator}{rest}".rstrip("/")
