"""What a registry is, and how a URL names one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from lora_hub.documents.fields import Bytes
from lora_hub.documents.verified_adapter import manifest_digest
from lora_hub.errors import NotFoundError, UsageError
from lora_hub.reference import AdapterRef
from lora_hub.version import Version, VersionRange

VARIABLE = "LORA_HUB_REGISTRY"
_HINT = f"pass `--registry DIRECTORY` (in Python `registry=`) or set `{VARIABLE}`"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishedVersion:
    """One version in a registry: its exact reference, and the bytes of its manifest."""

    reference: AdapterRef
    manifest: bytes


class Registry(Protocol):
    """A place that keeps immutable versions of adapters."""

    @property
    def url(self) -> str:
        """What names this registry everywhere, also in error messages and on other machines."""

    def names(self) -> Iterator[str]:
        """Yield ``org/task`` of every adapter, sorted."""

    def versions(self, reference: AdapterRef) -> list[Version]:
        """Return the published versions of the adapter, rising; empty if there is none."""

    def manifest(self, reference: AdapterRef) -> bytes:
        """Return the manifest bytes of an exact version; raise `NotFoundError` if it was not published."""

    def files(self, reference: AdapterRef) -> Mapping[str, Bytes]:
        """Return all files of an exact version, unproven, the manifest included."""

    def publish(self, reference: AdapterRef, files: Mapping[str, Bytes]) -> bool:
        """Make *files* an exact version, whole or not at all; return False, changing nothing, if it exists."""


def open_registry(url: str | os.PathLike[str] | None) -> Registry:
    """Return the registry that *url* names, or that the environment names if it is None.

    Raises:
        UsageError: No registry is named, or one of a kind that this version does not know.
    """
    from lora_hub.registry.directory import DirectoryRegistry

    named = os.fspath(url) if url is not None else os.environ.get(VARIABLE)
    if not named:
        raise UsageError("no registry is named", hint=_HINT)
    if "://" not in named:
        return DirectoryRegistry(Path(named))
    try:
        parts = urlsplit(named)
    except ValueError as error:
        raise UsageError(f"`{named}` is no URL: {error}", hint=_HINT) from error
    if parts.scheme == "file" and parts.netloc in {"", "localhost"}:
        return DirectoryRegistry(Path(unquote(parts.path)))
    raise UsageError(f"registries of the kind `{parts.scheme}://` are not supported by this version", hint=_HINT)


def resolve(registry: Registry, reference: AdapterRef) -> PublishedVersion:
    """Return the one version of *registry* that *reference* selects.

    Raises:
        NotFoundError: No such adapter, or none of its versions is selected; the message lists what there is.
    """
    versions = registry.versions(reference)
    if not versions:
        raise NotFoundError(
            f"`{registry.url}` has no adapter `{reference.name}`", hint="run `lora-hub list` to see what it has"
        )
    for version in sorted(_candidates(reference, versions), reverse=True):
        exact = reference.at(version)
        manifest = registry.manifest(exact)
        if reference.digest is None or reference.digest == manifest_digest(manifest):
            return PublishedVersion(reference=exact, manifest=manifest)
    raise NotFoundError(
        f"`{registry.url}` has no version of `{reference.name}` that `{reference}` selects",
        hint=f"it has {', '.join(map(str, versions))}; a pre-release must be named exactly",
    )


def _candidates(reference: AdapterRef, versions: list[Version]) -> list[Version]:
    match reference.selector:
        case None:
            return [version for version in versions if not version.is_prerelease]
        case Version() as exact:
            return [version for version in versions if version == exact]
        case VersionRange() as wanted:
            return [version for version in versions if version in wanted]
        case str() if reference.digest is not None:
            return versions
        case commit:
            raise UsageError(
                f"`{commit}` is a commit, which only a registry on the Hub has",
                hint="name a version, or a digest `sha256:…`",
            )
