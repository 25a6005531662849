"""What this user accepted from registries before: no version may become another one, and none may be hidden."""

from __future__ import annotations

from pathlib import Path

from lora_hub import places
from lora_hub.documents.seen import MAX_MEMORY, Seen, Sight
from lora_hub.errors import DocumentError, NotFoundError, PolicyError
from lora_hub.files import check_own_directory, machine_errors, read_file, write_files
from lora_hub.locked import locked
from lora_hub.reference import AdapterRef


def default_memory() -> Memory:
    """Return the memory of this user."""
    return Memory(places.memory_file())


class Memory:
    """``seen.json``. A damaged one is refused: nothing may be trusted anew just because a file was damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Seen:
        """Return all that was seen."""
        check_own_directory(self.path.parent)  # who can remove the file can make us forget
        try:
            return Seen.parse(bytes(read_file(self.path, limit=MAX_MEMORY, is_own=True)))
        except NotFoundError:
            return Seen()
        except DocumentError as error:
            raise error.within(f"`{self.path}`") from error

    def digest(self, registry_url: str, reference: AdapterRef) -> str | None:
        """Return the digest that the registry had under this exact version or commit."""
        sight = self.read().sight(registry_url, reference)
        return sight.digest if sight else None

    def check_unchanged(self, registry_url: str, reference: AdapterRef, digest: str) -> None:
        """Raise `PolicyError` if the registry had another digest under this exact version before."""
        known = self.digest(registry_url, reference)
        if known is not None and known != digest:
            raise PolicyError(
                f"`{reference}` in `{registry_url}` was {known} and is now {digest}: a published version never changes",
                hint=f"ask its publisher; if the new one is right, use it by digest: `{reference.name}@{digest}`",
            )

    def remember(self, registry_url: str, reference: AdapterRef, digest: str, *, is_yanked: bool = False) -> None:
        """Keep that the registry had *digest* under this exact version; what is known of it stays."""
        known = self.read().sight(registry_url, reference)
        if known is not None and known.is_yanked >= is_yanked:
            return
        with locked(self.path), machine_errors():
            seen = self.read()
            known = seen.sight(registry_url, reference) or Sight(digest=digest)
            sight = Sight(digest=known.digest, is_yanked=known.is_yanked or is_yanked)
            content = seen.with_sight(registry_url, reference, sight).to_bytes()
            write_files(self.path.parent, {self.path.name: content}, mode=0o600)
