"""Lock files on disk: written from what references mean now, installed exactly as they say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

from lora_hub.documents.lock_file import LOCK_NAME, MAX_LOCK, LockEntry, LockFile
from lora_hub.documents.manifest import FileEntry
from lora_hub.errors import NotFoundError, PolicyError
from lora_hub.files import machine_errors, read_file, write_files
from lora_hub.reference import AdapterRef
from lora_hub.registry.find import Choice, find
from lora_hub.registry.published import Published, look_up
from lora_hub.registry.pull import Pulled, bring, find_in_store
from lora_hub.registry.registry import Registry, check_may_connect
from lora_hub.registry.store import Store
from lora_hub.registry.terms import Terms
from lora_hub.registry.trust import authorize

DEFAULT_PATH = Path(LOCK_NAME)


def read_lock(path: Path) -> LockFile:
    """Return the lock file at *path*."""
    try:
        return LockFile.parse(bytes(read_file(path, limit=MAX_LOCK)))
    except NotFoundError as error:
        raise NotFoundError(f"there is no lock file `{path}`", hint="run `lora-hub lock REF...` to write it") from error


def lock(path: Path, wanted: Iterable[tuple[AdapterRef, Registry]], terms: Terms) -> LockFile:
    """Write into the lock file at *path* what each reference means now in its registry; no weights move.

    Raises:
        UntrustedError: One of them is not trusted; nothing is written then.
    """
    locked = read_lock(path) if path.exists() else LockFile()
    locked = locked.with_entries([_lock_entry(reference, registry, terms) for reference, registry in wanted])
    with machine_errors():
        write_files(path.absolute().parent, {path.name: locked.to_bytes()})
    return locked


def _lock_entry(reference: AdapterRef, registry: Registry, terms: Terms) -> LockEntry:
    check_may_connect(registry, terms.offline)
    published = find(registry, reference, terms.policy).published
    authorize(terms.policy, registry, published, digest=reference.digest)
    version = published.reference.version
    return LockEntry(
        reference=str(reference),
        registry=registry.url,
        version=str(version) if version else None,
        commit=published.snapshot.commit,
        digest=published.digest,
        files=published.document.files,
    )


def pull_locked(
    entries: Iterable[LockEntry], open_registry: Callable[[str], Registry], store: Store, terms: Terms
) -> list[Pulled]:
    """Bring exactly what *entries* say into *store*: all of it, or nothing if one of them is another thing now.

    Raises:
        PolicyError: What a registry has is not what was locked.
    """
    planned = [_plan(entry, open_registry(entry.registry), store, terms) for entry in entries]
    return [
        plan if isinstance(plan, Pulled) else bring(Choice(published=plan[0]), plan[1], store, terms)
        for plan in planned
    ]


def _plan(entry: LockEntry, registry: Registry, store: Store, terms: Terms) -> Pulled | tuple[Published, Registry]:
    if AdapterRef.parse(entry.reference).digest not in {None, entry.digest}:
        raise PolicyError(
            f"the lock file has the digest {entry.digest} for `{entry.reference}`",
            hint=f"it was changed by hand: run `lora-hub lock {entry.reference}`",
        )
    kept = find_in_store(entry.exact, registry, store, terms, entry.digest)
    if kept is not None:
        _check_files(entry, kept.adapter.manifest.files)
        return kept
    check_may_connect(registry, terms.offline, f"`{entry.exact}` is not in the store, and")
    published = _look_up(entry, registry)
    if published.digest != entry.digest:
        raise PolicyError(
            f"`{entry.exact}` in `{registry.url}` was locked as {entry.digest} and is now {published.digest}",
            hint="a published version never changes: ask its publisher what happened before you lock the new one",
        )
    published.check_identity()
    _check_files(entry, published.document.files)
    return published, registry


def _look_up(entry: LockEntry, registry: Registry) -> Published:
    """By commit, which no tag can move; if that is gone, by what has the version now: its digest decides as ever."""
    if entry.commit is not None:
        with contextlib.suppress(NotFoundError):
            return look_up(registry, entry.exact, entry.commit)
    return find(registry, entry.exact, expected=entry.digest).published


def _check_files(entry: LockEntry, files: tuple[FileEntry, ...]) -> None:
    if entry.files != files:
        raise PolicyError(
            f"the lock file lists other files for `{entry.reference}` than {entry.digest} has",
            hint=f"it was changed by hand: run `lora-hub lock {entry.reference}`",
        )
