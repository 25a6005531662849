"""What a registry is, and which of its versions a reference means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from lora_hub.documents.fields import Bytes
from lora_hub.documents.verified_adapter import manifest_digest
from lora_hub.errors import NotFoundError
from lora_hub.reference import AdapterRef
from lora_hub.version import Version


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
    for version in sorted(filter(reference.selects, versions), reverse=True):
        exact = reference.at(version)
        manifest = registry.manifest(exact)
        if reference.digest is None or reference.digest == manifest_digest(manifest):
            return PublishedVersion(reference=exact, manifest=manifest)
    raise NotFoundError(
        f"`{registry.url}` has no version of `{reference.name}` that `{reference}` selects",
        hint=f"it has {', '.join(map(str, versions))}; a pre-release must be named exactly",
    )
