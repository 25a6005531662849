"""The journal of pushes: what is about to be published, kept until it surely is.

A manifest says when it was created. A push that was cut off and runs again sends the bytes of the first try, so that it
recognises what already arrived by its digest.
"""

from __future__ import annotations

from pathlib import Path

from lora_hub.documents.fields import sha256
from lora_hub.documents.manifest import MAX_MANIFEST, Manifest, differs
from lora_hub.errors import MalformedError, NotFoundError
from lora_hub.files import machine_errors, read_file, write_files
from lora_hub.reference import AdapterRef


class Journal:
    """Manifests of pushes under way, one file each in *directory*."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def open(self, registry_url: str, reference: AdapterRef, manifest: bytes) -> bytes:
        """Return the manifest to publish: *manifest*, now written down, or the one of a push that was cut off."""
        name = _name(registry_url, reference)
        try:
            earlier = bytes(read_file(self._directory / name, limit=MAX_MANIFEST))
            Manifest.parse(earlier)
            if not differs(earlier, manifest):
                return earlier
        except (NotFoundError, MalformedError):
            pass  # there was none, or only what nobody could publish
        with machine_errors():
            write_files(self._directory, {name: manifest})
        return manifest

    def close(self, registry_url: str, reference: AdapterRef) -> None:
        """Forget the push: its outcome is known."""
        with machine_errors():
            (self._directory / _name(registry_url, reference)).unlink(missing_ok=True)


def _name(registry_url: str, reference: AdapterRef) -> str:
    return f"{sha256(f'{registry_url} {reference}'.encode())[:32]}.json"
