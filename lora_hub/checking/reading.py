"""From files to what is checked: each part is read by itself, so that one that is broken hides none of the others."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lora_hub.checking.base import Base
from lora_hub.checking.parts import read_config, read_layout, read_manifest, read_tensors
from lora_hub.checking.subject import Subject
from lora_hub.documents.adapter_config import MAX_CONFIG, AdapterConfig
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import (
    CARD_NAME,
    CONFIG_NAME,
    MANIFEST_NAME,
    MAX_CARD,
    MAX_FILE,
    MAX_MANIFEST,
    PAYLOAD_NAMES,
    VERSION_FILES,
    WEIGHTS_NAME,
    FileEntry,
    Manifest,
)
from lora_hub.documents.verified_adapter import VerifiedAdapter, manifest_digest, verify
from lora_hub.errors import IntegrityError, LoraHubError, MalformedError, NotFoundError, PolicyError
from lora_hub.files import machine_errors, read_file, read_hashed

MAX_BESIDE = 10_000  # files that are looked at in one directory
_WORTH_READING = 256 * 1024 * 1024  # bytes; what is larger and cannot be what the manifest says is not read


def read_directory(directory: Path, *, base: Base | None = None, requires_base: bool = False) -> Subject:
    """Return the adapter in *directory* as far as it can be read; whatever is wrong with it is in what comes back.

    Raises:
        NotFoundError: There is no such directory.
        MachineError: The machine refuses to list it; a file that it refuses to read is in what comes back.
    """
    with machine_errors():
        if not directory.is_dir():
            raise NotFoundError(f"there is no directory `{directory}`", hint="check the path")
    beside = files_in(directory)
    files: dict[str, Bytes] = {}
    unread: dict[str, LoraHubError] = {}
    hashed: list[FileEntry] = []
    sizes: Mapping[str, int] = {}
    for name in (MANIFEST_NAME, *PAYLOAD_NAMES):
        try:
            size = sizes.get(name) if beside.get(name, 0) > _WORTH_READING else None
            files[name] = _read(directory, name, size, hashed)
        except LoraHubError as error:
            unread[name] = error
        if name == MANIFEST_NAME:
            sizes = _sizes(files.get(name))
    with contextlib.suppress(LoraHubError):  # it says nothing then
        files[CARD_NAME] = read_file(directory / CARD_NAME, limit=MAX_CARD)
    return subject_of(
        str(directory),
        files,
        unread=unread,
        beside=beside,
        hashed=tuple(hashed),
        base=base,
        requires_base=requires_base,
    )


def files_in(directory: Path) -> dict[str, int]:
    """Return the bytes of each file in *directory*, by name; of the first `MAX_BESIDE`."""
    with machine_errors():
        paths = sorted(itertools.islice(directory.iterdir(), MAX_BESIDE))
        return {path.name: path.stat().st_size for path in paths if path.is_file()}


def _read(directory: Path, name: str, size: int | None, hashed: list[FileEntry]) -> Bytes:
    if name == MANIFEST_NAME:
        return read_file(directory / name, limit=MAX_MANIFEST)
    limit = MAX_CONFIG if name == CONFIG_NAME else MAX_FILE
    content, sha256 = read_hashed(directory / name, limit=limit, size=size)
    hashed.append(FileEntry(name=name, size=len(content), sha256=sha256))
    return content


def _sizes(manifest: Bytes | None) -> dict[str, int]:
    """Return the bytes that the manifest says the others have: no memory is taken for what cannot match."""
    try:
        return {} if manifest is None else {e.name: e.size for e in Manifest.parse(bytes(manifest)).files}
    except MalformedError:
        return {}


def subject_of(
    source: str,
    files: Mapping[str, Bytes],
    *,
    unread: Mapping[str, LoraHubError] = MappingProxyType({}),
    beside: Mapping[str, int] | None = None,
    hashed: tuple[FileEntry, ...] = (),
    base: Base | None = None,
    requires_base: bool = False,
) -> Subject:
    """Return what *files* are, strictly read if `verify` accepts them, else each part as far as it can be."""
    missing = {n: e for n, e in unread.items() if n != MANIFEST_NAME or not isinstance(e, NotFoundError)}
    known: dict[str, Any] = {
        "source": source,
        "beside": {name: len(content) for name, content in files.items()} if beside is None else beside,
        "files": files,
        "unread": missing,
        "base": base,
        "requires_base": requires_base,
    }
    refusal = next(iter(missing.values()), None)
    if refusal is None:
        try:
            return _whole(known, verify(files, source=source, hashed=hashed))
        except (MalformedError, IntegrityError, NotFoundError) as error:
            refusal = error
    return _parts(known, refusal, hashed)


def refused(source: str, error: LoraHubError, *, base: Base | None = None) -> Subject:
    """Return what is known of an adapter of which nothing could be read but the *error*."""
    return Subject(source=source, refusal=error, unread={WEIGHTS_NAME: error}, base=base)


def is_about_the_adapter(error: LoraHubError) -> bool:
    """Whether *error* says something about the adapter, rather than about machine, network or what was typed."""
    return isinstance(error, MalformedError | IntegrityError | PolicyError)


def _whole(known: Mapping[str, Any], adapter: VerifiedAdapter) -> Subject:
    layout = adapter.layout
    return Subject(
        **known,
        adapter=adapter,
        digest=adapter.digest,
        found=adapter.manifest.files,
        document=_document(known["files"]),
        config=adapter.config,
        manifest=adapter.manifest,
        tensors=adapter.tensors,
        pairs={module.path: {"A": module.lora_A, "B": module.lora_B} for module in layout.modules},
        heads=layout.heads,
        modules=layout.modules,
    )


def _document(files: Mapping[str, Bytes]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(bytes(files[CONFIG_NAME]))  # which was parsed strictly before
    return document


def _parts(known: Mapping[str, Any], refusal: LoraHubError, hashed: tuple[FileEntry, ...]) -> Subject:
    files: Mapping[str, Bytes] = known["files"]
    manifest, bad_manifest = read_manifest(files.get(MANIFEST_NAME))
    document, config, bad_keys = read_config(files.get(CONFIG_NAME))
    tensors, bad_weights = read_tensors(files.get(WEIGHTS_NAME))
    found = {entry.name: entry for entry in hashed}
    entries = [found.get(n) or FileEntry.of(n, files[n]) for n in PAYLOAD_NAMES if n in files]
    digest = manifest_digest(bytes(files[MANIFEST_NAME])) if manifest is not None else None
    layout = read_layout(config or AdapterConfig(r=8, lora_alpha=8), tensors, manifest, is_known=config is not None)
    return Subject(
        **known,
        refusal=refusal,
        digest=digest,
        found=tuple(entries),
        document=document,
        config=config,
        bad_keys=bad_keys,
        manifest=manifest,
        bad_manifest=bad_manifest,
        tensors=tensors,
        bad_weights=bad_weights,
        **layout,
    )


def files_beside(names: Iterable[str]) -> list[str]:
    """Return those of *names* that are no files of a version: nothing publishes them."""
    own = {*VERSION_FILES, "README.md"}
    return sorted(n for n in names if n not in own and not (n.startswith("model.") and n.endswith(".sig")))
