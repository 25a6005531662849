"""An adapter as a directory of files: how it is read from disk, and how it is written there."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from lora_hub.documents.adapter_config import MAX_CONFIG
from lora_hub.documents.bundle import MAX_BUNDLE, signature_names
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    MAX_FILE,
    MAX_MANIFEST,
    PAYLOAD_NAMES,
    WEIGHTS_NAME,
    FileEntry,
    Manifest,
)
from lora_hub.documents.verified_adapter import VerifiedAdapter, verify
from lora_hub.errors import NotFoundError
from lora_hub.files import machine_errors, read_file, read_hashed, write_files

_LIMITS = {CONFIG_NAME: MAX_CONFIG, WEIGHTS_NAME: MAX_FILE}


def read_adapter(directory: Path) -> VerifiedAdapter:
    """Return the adapter in *directory*, its bytes checked against the manifest that lies beside them, if one does."""
    return read_with_files(directory)[0]


def read_with_files(directory: Path, *, is_own: bool = False) -> tuple[VerifiedAdapter, dict[str, Bytes]]:
    """Return the adapter in *directory*, and the files that it was proven from; the manifest may be missing.

    If the directory *is_own*, kept by lora-hub for this user, what others may have put there is refused.

    Raises:
        NotFoundError: There is no such directory, or a payload file is missing in it.
        IntegrityError: A file is not the one that the manifest describes.
        MalformedError: A document or a tensor is malformed.
    """
    files, hashed = read_files(directory, is_own=is_own)
    return verify(files, source=str(directory), hashed=hashed), files


def read_files(directory: Path, *, is_own: bool = False) -> tuple[dict[str, Bytes], tuple[FileEntry, ...]]:
    """Return the files of the adapter in *directory*, each read once, and what the payload was found to be, unproven.

    Where there is a manifest, it says how large the others are: no memory is taken for what cannot match.
    """
    with machine_errors():
        if not directory.is_dir():
            raise NotFoundError(f"there is no directory `{directory}`", hint="check the path")
    files: dict[str, Bytes] = {}
    sizes: dict[str, int] = {}
    with contextlib.suppress(NotFoundError):
        files[MANIFEST_NAME], manifest = read_manifest(directory, is_own=is_own)
        sizes = {entry.name: entry.size for entry in manifest.files}
    hashed = []
    for name, limit in _LIMITS.items():
        try:
            content, sha256 = read_hashed(directory / name, limit=limit, size=sizes.get(name), is_own=is_own)
        except NotFoundError as error:
            raise NotFoundError(f"`{directory}` has no `{name}`", hint=_hint(directory)) from error
        files[name] = content
        hashed.append(FileEntry(name=name, size=len(content), sha256=sha256))
    return files, tuple(hashed)


def _hint(directory: Path) -> str:
    if (directory / "adapter_model.bin").exists():
        return "pickles are never read: load the adapter in PEFT and save it again as safetensors"
    return "name a directory that `save_adapter` or PEFT's `save_pretrained` wrote"


def read_manifest(directory: Path, *, is_own: bool = False) -> tuple[bytes, Manifest]:
    """Return the manifest in *directory*, as bytes and parsed."""
    content = bytes(read_file(directory / MANIFEST_NAME, limit=MAX_MANIFEST, is_own=is_own))
    return content, Manifest.parse(content)


def read_bundles(directory: Path, *, is_own: bool = False) -> dict[str, Bytes]:
    """Return the signatures in *directory*, by file name, unverified."""
    with machine_errors():
        names = signature_names(path.name for path in directory.glob("model*.sig"))
    return {name: read_file(directory / name, limit=MAX_BUNDLE, is_own=is_own) for name in names}


def write_adapter(directory: Path, files: Mapping[str, Bytes]) -> None:
    """Write the *files* of an adapter into *directory*, the manifest first: it matches once all lie there.

    So whatever happens in between, and whatever lay there before, old and new files never pass as one adapter.

    Raises:
        MachineError: Disk full, no permission, or a file stands where the directory should be.
    """
    with machine_errors():
        write_files(directory, {name: files[name] for name in (MANIFEST_NAME, *PAYLOAD_NAMES) if name in files})
