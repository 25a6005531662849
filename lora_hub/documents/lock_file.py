"""The lock file ``lora-hub.lock``: which version each reference meant, so that everybody gets the same bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from lora_hub.documents.fields import Fields, canonical_json, parse_json_object
from lora_hub.documents.manifest import FileEntry, parse_files
from lora_hub.errors import DocumentError, PolicyError, UsageError
from lora_hub.reference import AdapterRef, is_commit, is_digest
from lora_hub.version import Version

SCHEMA = "lora-hub/lock/v1"
LOCK_NAME = "lora-hub.lock"
MAX_LOCK = 4 * 1024 * 1024  # bytes
_WRITE_AGAIN = "write it again with `lora-hub lock REF...`"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockEntry:
    """What one reference means: ``version`` or ``commit`` says where it lies, ``digest`` what it must be.

    ``signer`` is who vouched for it when it was locked; "pinned" if that was the user, by its digest.
    """

    reference: str
    registry: str
    digest: str
    files: tuple[FileEntry, ...]
    version: str | None = None
    commit: str | None = None
    signer: str = "pinned"

    @property
    def exact(self) -> AdapterRef:
        """``org/task@1.2.0``, or ``org/task@<commit>`` for what has no version."""
        return AdapterRef.parse(self.reference).at(Version.parse(self.version) if self.version else str(self.commit))


@dataclass(frozen=True, slots=True, kw_only=True)
class LockFile:
    """The entries of a lock file, one for each reference, sorted."""

    entries: tuple[LockEntry, ...] = ()

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Return the lock file that *content* spells.

        Raises:
            DocumentError: Malformed, or two entries of one reference.
        """
        document = parse_json_object(content, what="the lock file", limit=MAX_LOCK, hint=_WRITE_AGAIN)
        fields = Fields(document, hint=_WRITE_AGAIN)
        fields.check_schema(SCHEMA)
        entries = [_parse_entry(entry) for entry in fields.objects("adapters")]
        if len({entry.reference for entry in entries}) != len(entries):
            raise DocumentError("one reference stands there twice", context="adapters", hint=_WRITE_AGAIN)
        return cls(entries=_sorted(entries))

    def to_bytes(self) -> bytes:
        """Return the bytes of the file; same entries, same bytes."""
        return canonical_json({"schema": SCHEMA, "adapters": [dataclasses.asdict(entry) for entry in self.entries]})

    def with_entries(self, entries: Iterable[LockEntry]) -> LockFile:
        """Return a lock file with *entries* in place of those of the same references, or beside the others."""
        merged = {entry.reference: entry for entry in (*self.entries, *entries)}
        return LockFile(entries=_sorted(merged.values()))

    def entry(self, reference: AdapterRef) -> LockEntry:
        """Return the entry of *reference*; raise `PolicyError` if it is not locked."""
        for entry in self.entries:
            if entry.reference == str(reference):
                return entry
        locked = ", ".join(entry.reference for entry in self.entries) or "nothing"
        raise PolicyError(
            f"`{reference}` is not in the lock file, which has {locked}", hint=f"run `lora-hub lock {reference}`"
        )


def _sorted(entries: Iterable[LockEntry]) -> tuple[LockEntry, ...]:
    return tuple(sorted(entries, key=lambda entry: entry.reference))


def _parse_entry(fields: Fields) -> LockEntry:
    for key in ("version", "commit"):
        if key not in fields.values:
            fields.fail(key, "a string or null")
    version, commit = fields.optional_text("version"), fields.optional_text("commit")
    if (version is None and commit is None) or not (version is None or Version.is_version(version)):
        fields.fail("version", "a version, or null and a commit")
    if not (commit is None or is_commit(commit)):
        fields.fail("commit", "40 lower-case hex digits, or null")
    return LockEntry(
        reference=fields.text("reference", "a reference of the form `org/task[@version]`", _is_reference),
        registry=fields.text("registry"),
        version=version,
        commit=commit,
        digest=fields.text("digest", "`sha256:` and 64 lower-case hex digits", is_digest),
        files=parse_files(fields),
        signer=fields.text("signer"),
    )


def _is_reference(text: str) -> bool:
    try:
        return str(AdapterRef.parse(text)) == text
    except UsageError:
        return False
