"""Lock files on disk: written from what references mean now, installed exactly as they say."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lora_hub.documents.lock_file import LOCK_NAME, MAX_LOCK, LockEntry, LockFile
from lora_hub.documents.manifest import FileEntry
from lora_hub.errors import NotFoundError, PolicyError
from lora_hub.files import machine_errors, read_file, write_files
from lora_hub.reference import AdapterRef
from lora_hub.registry.pull import Pulled, bring, find_in_store
from lora_hub.registry.registry import Registry, check_may_connect
from lora_hub.registry.resolve import Choice, resolve, resolve_at, resolve_trusted
from lora_hub.registry.store import Store
from lora_hub.registry.terms import Terms

DEFAULT_PATH = Path(LOCK_NAME)


def read_lock(path: Path) -> LockFile:
    """Return the lock file at *path*."""
    try:
        return LockFile.parse(bytes(read_file(path, limit=MAX_LOCK)))
    except NotFoundError as error:
        raise NotFoundError(f"there is no lock file `{path}`", hint="run `lora-hub lock REF...` to write it") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """What `lock` wrote, and what each reference was found to mean: what it passed over, and what is yanked."""

    file: LockFile
    choices: tuple[Choice, ...] = ()


def lock(path: Path, wanted: Iterable[tuple[AdapterRef, Registry]], terms: Terms) -> Locked:
    """Write into the lock file at *path* what each reference means now in its registry; no weights move.

    Raises:
        UntrustedError: One of them is not trusted; nothing is written then.
        PolicyError: One of them is not what it was when it was pinned, or pulled before.
    """
    _existing(path)  # what cannot be read is found before anybody is asked
    found = [(reference, registry, _find(reference, registry, terms)) for reference, registry in wanted]
    entries = [_lock_entry(reference, registry, choice) for reference, registry, choice in found]
    # Read only now: others may have written while the registries were asked.
    locked = _existing(path).with_entries(entries)
    with machine_errors():
        write_files(path.absolute().parent, {path.name: locked.to_bytes()})
    return Locked(file=locked, choices=tuple(choice for *_, choice in found))


def _existing(path: Path) -> LockFile:
    return read_lock(path) if path.exists() else LockFile()


def _find(reference: AdapterRef, registry: Registry, terms: Terms) -> Choice:
    check_may_connect(registry, offline=terms.offline)
    return resolve_trusted(reference, registry, terms)


def _lock_entry(reference: AdapterRef, registry: Registry, choice: Choice) -> LockEntry:
    published, decision = choice.published, choice.verdict.decision
    version = published.reference.version
    return LockEntry(
        reference=str(reference),
        registry=registry.url,
        version=str(version) if version else None,
        commit=published.snapshot.commit,
        digest=published.digest,
        files=published.document.files,
        signer=", ".join(map(str, decision.signers)) or ("pinned" if decision.is_pinned else "nobody"),
    )


def pull_locked(
    entries: Iterable[LockEntry], open_registry: Callable[[str], Registry], store: Store, terms: Terms
) -> Iterator[Pulled]:
    """Bring exactly what *entries* say into *store*: all of it, or nothing if one of them is another thing now.

    What does not agree is refused at once; then each is brought as it is asked for, and holds its weights: who keeps
    only its path needs memory for one at a time.

    Raises:
        PolicyError: What a registry has is not what was locked, or what was locked is not what this user pinned.
    """
    planned = [(entry, *_plan(entry, open_registry(entry.registry), store, terms)) for entry in entries]
    return (_bring(entry, registry, choice, store, terms) for entry, registry, choice in planned)


def _bring(entry: LockEntry, registry: Registry, choice: Choice | None, store: Store, terms: Terms) -> Pulled:
    kept = None if choice else find_in_store(entry.exact, registry, store, terms, entry.digest)
    # What was in the store may have been removed since.
    return kept or bring(choice or _resolve(entry, registry, terms), registry, store, terms)


def _plan(entry: LockEntry, registry: Registry, store: Store, terms: Terms) -> tuple[Registry, Choice | None]:
    """Return where *entry* comes from: its registry, and what that has if the store does not have it."""
    _check_entry(entry, registry, terms)
    if store.has(entry.digest):
        _check_files(entry, store.describe(entry.digest).manifest.files)
        return registry, None
    check_may_connect(registry, offline=terms.offline, why=f"`{entry.exact}` is not in the store, and")
    choice = _resolve(entry, registry, terms)
    _check_files(entry, choice.published.document.files)
    return registry, choice


def _check_entry(entry: LockEntry, registry: Registry, terms: Terms) -> None:
    if AdapterRef.parse(entry.reference).digest not in {None, entry.digest}:
        raise PolicyError(
            f"the lock file has the digest {entry.digest} for `{entry.reference}`",
            hint=f"it was changed by hand: run `lora-hub lock {entry.reference}`",
        )
    if terms.policy.revocation(digest=entry.digest) or terms.project.revocation(digest=entry.digest):
        raise PolicyError(f"`{entry.reference}`, {entry.digest}, is revoked", hint="lock another version")
    pin = terms.policy.pin(registry.url, entry.exact)
    if pin is not None and pin.digest != entry.digest:
        raise PolicyError(
            f"`{entry.exact}` in `{registry.url}` is locked as {entry.digest}, and you pinned {pin.digest}",
            hint=f"ask who wrote the lock file; if it is right, `lora-hub trust remove {entry.exact}`",
        )


def _resolve(entry: LockEntry, registry: Registry, terms: Terms) -> Choice:
    """By version, or by commit, which no tag can move; if the version moved, by that commit: its digest decides."""
    choice = _first_that_matches(entry, registry, terms)
    if choice.published.digest != entry.digest:
        raise PolicyError(
            f"`{entry.exact}` in `{registry.url}` was locked as {entry.digest} and is now {choice.published.digest}",
            hint="a published version never changes: ask its publisher what happened before you lock the new one",
        )
    choice.verdict.decision.require()
    return choice


def _first_that_matches(entry: LockEntry, registry: Registry, terms: Terms) -> Choice:
    if entry.commit is not None:
        with contextlib.suppress(NotFoundError):
            return resolve_at(entry.exact, entry.commit, registry, terms, entry.digest)
    return resolve(entry.exact, registry, terms, entry.digest)


def _check_files(entry: LockEntry, files: tuple[FileEntry, ...]) -> None:
    if entry.files != files:
        raise PolicyError(
            f"the lock file lists other files for `{entry.reference}` than {entry.digest} has",
            hint=f"it was changed by hand: run `lora-hub lock {entry.reference}`",
        )
