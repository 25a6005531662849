"""One version or commit in a registry, known by its small files only: what it claims to be, before weights move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from lora_hub.documents.adapter_config import MAX_CONFIG, AdapterConfig
from lora_hub.documents.bundle import MAX_BUNDLE, signature_names
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    MAX_FILE,
    MAX_MANIFEST,
    WEIGHTS_NAME,
    FileEntry,
    Manifest,
)
from lora_hub.documents.verified_adapter import VerifiedAdapter, check_file, derive, manifest_digest, verify
from lora_hub.errors import DocumentError, IntegrityError, LoraHubError, RegistryError
from lora_hub.reference import AdapterRef
from lora_hub.registry.fetch import Progress, no_progress, read_header, read_small, read_weights
from lora_hub.registry.registry import Registry, Snapshot

_UNHASHED = 16 * 1024 * 1024  # bytes; the Hub keeps larger files by their SHA-256


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """All files of one version, unproven: their bytes, the entries of those hashed on the way, and where they lie.

    ``is_resumed`` says whether a part of them is what an earlier run left.
    """

    files: Mapping[str, Bytes]
    hashed: tuple[FileEntry, ...]
    written: Mapping[str, Path]
    is_resumed: bool

    def verify(self, *, source: str) -> VerifiedAdapter:
        """Return the proven adapter; what was written of one that is none is removed: nobody goes on with it."""
        try:
            return verify(self.files, source=source, hashed=self.hashed)
        except LoraHubError:
            for path in self.written.values():
                path.unlink(missing_ok=True)
            raise


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a registry says that it has under an exact reference. Its digest is what a pin or a signature is about.

    Attributes:
        reference: An exact version, or a commit.
        snapshot: Its files.
        manifest: Bytes: of ``lora-hub.json``, or derived from the other files where that is missing.
        source: What to call it in an error.
        config: Bytes of ``adapter_config.json``, if they were read for the manifest.
    """

    reference: AdapterRef
    snapshot: Snapshot
    manifest: bytes = field(repr=False)
    source: str
    config: Bytes | None = field(default=None, repr=False)

    @property
    def digest(self) -> str:
        """``sha256:…`` of the manifest: the identity of this version."""
        return manifest_digest(self.manifest)

    @cached_property
    def document(self) -> Manifest:
        """The manifest, parsed."""
        try:
            return Manifest.parse(self.manifest)
        except DocumentError as error:
            raise error.within(f"`{MANIFEST_NAME}` of `{self.source}`") from error

    @property
    def exact(self) -> AdapterRef:
        """The version that it is by its manifest, also where it was found as a commit; else its reference."""
        named = self.document.reference
        return named if named is not None and self.reference.version is None else self.reference

    def check_identity(self) -> None:
        """Raise `IntegrityError` if this is another adapter or version than its reference says.

        Where there are commits, a nameless draft may lie as well.
        """
        found, wanted = self.document.reference, self.reference
        if found is None and self.snapshot.commit is not None:
            return
        if found is None or found.name != wanted.name or wanted.version not in {None, found.version}:
            raise IntegrityError(
                f"`{self.source}` is {found or 'a draft'} by its manifest ({self.digest})",
                hint="the registry was tampered with or copied wrongly: ask who runs it",
            )

    def bundles(self) -> dict[str, Bytes]:
        """Return the signatures that lie beside it, by file name, unverified."""
        names = signature_names(self.snapshot.files)
        return {name: read_small(self.snapshot, name, limit=MAX_BUNDLE, source=self.source) for name in names}

    def read(self, *, partials: Path | None = None, progress: Progress = no_progress) -> Download:
        """Return all files, still to be proven; a large one is kept under *partials* as well."""
        config = self._config_bytes()
        weights = read_weights(
            self.snapshot, self._entry(WEIGHTS_NAME), source=self.source, partials=partials, progress=progress
        )
        return Download(
            files={CONFIG_NAME: config, WEIGHTS_NAME: weights.buffer, MANIFEST_NAME: self.manifest},
            hashed=(weights.found,),
            written={} if weights.path is None else {WEIGHTS_NAME: weights.path},
            is_resumed=weights.is_resumed,
        )

    def read_config(self) -> AdapterConfig:
        """Return the config, whose bytes are those that the manifest describes."""
        content = self._config_bytes()
        check_file(self._entry(CONFIG_NAME), FileEntry.of(CONFIG_NAME, content), source=self.source)
        return AdapterConfig.parse(bytes(content))

    def _config_bytes(self) -> Bytes:
        if self.config is not None:
            return self.config
        return read_small(self.snapshot, CONFIG_NAME, limit=MAX_CONFIG, source=self.source)

    def _entry(self, name: str) -> FileEntry:
        return next(entry for entry in self.document.files if entry.name == name)


def look_up(registry: Registry, reference: AdapterRef, revision: str) -> Published:
    """Return what *registry* has at *revision*, which is that of the exact *reference*.

    Raises:
        NotFoundError: There is no such revision, or it holds no adapter.
        MalformedError: What is there describes no adapter.
    """
    snapshot = registry.snapshot(reference, revision)
    source = f"{reference} in {registry.url}"
    config = None
    if MANIFEST_NAME in snapshot.files:
        manifest = bytes(read_small(snapshot, MANIFEST_NAME, limit=MAX_MANIFEST, source=source))
    else:
        config = read_small(snapshot, CONFIG_NAME, limit=MAX_CONFIG, source=source)
        manifest = _derive(snapshot, config, source)
    return Published(reference=reference, snapshot=snapshot, manifest=manifest, source=source, config=config)


def _derive(snapshot: Snapshot, config: Bytes, source: str) -> bytes:
    """Return the manifest of what lora-hub never published: its config, its tensors, the digests of both files."""
    file = snapshot.files.get(WEIGHTS_NAME)
    if file is not None and file.sha256 is None:
        header: Bytes = read_small(snapshot, WEIGHTS_NAME, limit=_UNHASHED, source=source)
        return derive(config, header, FileEntry.of(WEIGHTS_NAME, header)).to_bytes()
    header, file = read_header(snapshot, source=source)
    if file.sha256 is None or file.size > MAX_FILE:
        raise RegistryError(f"`{source}` has weights of {file.size} bytes", hint="it is no LoRA adapter")
    return derive(config, header, FileEntry(name=WEIGHTS_NAME, size=file.size, sha256=file.sha256)).to_bytes()
