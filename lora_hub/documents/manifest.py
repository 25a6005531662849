"""The manifest ``lora-hub.json``: what one version of an adapter is. Its SHA-256 is the version's identity."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from lora_hub.documents.base_model import BaseModel
from lora_hub.documents.fields import Bytes, Fields, canonical_json, is_sha256, is_time, parse_json_object, sha256
from lora_hub.documents.golden import Golden
from lora_hub.documents.lineage import Lineage
from lora_hub.documents.runs import are_runs
from lora_hub.reference import AdapterRef
from lora_hub.version import Version

SCHEMA = "lora-hub/manifest/v1"
MANIFEST_NAME = "lora-hub.json"
CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PAYLOAD_NAMES = (CONFIG_NAME, WEIGHTS_NAME)
VERSION_FILES = (*PAYLOAD_NAMES, MANIFEST_NAME)  # the manifest last: where files appear one by one, it commits them
CARD_NAME = "README.md"

MAX_MANIFEST = 256 * 1024  # bytes
MAX_FILE = 16 * 1024**3  # bytes
MAX_CARD = 1024 * 1024  # bytes
MAX_RANK = 65_536
MAX_EXCEPTIONS = 256

_CODE = re.compile(r"[A-Z]{2,8}[0-9]{3}", re.ASCII)  # of a check


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of the version: its name, its size in bytes, its SHA-256 in hex."""

    name: str
    size: int
    sha256: str

    @classmethod
    def of(cls, name: str, content: Bytes) -> Self:
        """Return the entry that describes *content*."""
        return cls(name=name, size=len(content), sha256=sha256(content))


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """The part of a fused projection that one pair of A and B adapts.

    ``rows`` are half-open runs along the output axis of the layer: B of this part is ``[sum of runs, r]``.
    """

    part: str
    r: int
    alpha: float
    rows: tuple[tuple[int, int], ...]

    @property
    def out_features(self) -> int:
        """How many outputs of the layer the part covers."""
        return sum(stop - start for start, stop in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceGroup:
    """Modules that are sliced alike; their PEFT tensors hold the parts' A and B stacked in this order."""

    modules: tuple[str, ...]
    parts: tuple[Slice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSummary:
    """What the adapter adds: rank, alpha, targets as their author named them, and how many numbers that is."""

    r: int
    alpha: float
    targets: tuple[str, ...]
    dtype: str
    parameters: int
    slices: tuple[SliceGroup, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A draft has neither name, version nor time of creation: `push` adds them to a copy."""

    lora: LoraSummary
    files: tuple[FileEntry, ...]
    base: BaseModel = BaseModel()  # noqa: RUF009 - frozen, so it may be shared
    name: str | None = None
    version: str | None = None
    created: str | None = None
    license: str | None = None
    lineage: Lineage | None = None
    golden: Golden | None = None
    exceptions: tuple[str, ...] = ()  # codes of the checks that its publisher allowed it to break

    @property
    def reference(self) -> AdapterRef | None:
        """``org/task@1.2.0``, or None for a draft."""
        return AdapterRef.parse(f"{self.name}@{self.version}") if self.name else None

    @property
    def size(self) -> int:
        """Bytes of all files that the manifest lists."""
        return sum(entry.size for entry in self.files)

    def to_bytes(self) -> bytes:
        """Return the bytes of ``lora-hub.json``; same manifest, same bytes."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "name": self.name,
            "version": self.version,
            "created": self.created,
            "license": self.license,
            "exceptions": list(self.exceptions) or None,
            "base": self.base.to_json(),
            "lora": _lora_to_json(self.lora),
            "files": [dataclasses.asdict(file) for file in self.files],
            "lineage": None if self.lineage is None else self.lineage.to_json(),
            "golden": None if self.golden is None else self.golden.to_json(),
        }
        return canonical_json(_without_none(document))

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Return the manifest that *content* spells.

        Unknown keys are allowed: within one major version of the schema they add meaning, they do not change it.

        Raises:
            DocumentError: With the path of the offending value in ``.context``.
        """
        fields = Fields(parse_json_object(content, what=f"`{MANIFEST_NAME}`", limit=MAX_MANIFEST))
        fields.check_schema(SCHEMA)
        name, version, created = _parse_identity(fields)
        return cls(
            name=name,
            version=version,
            created=created,
            license=fields.present_text("license"),
            exceptions=_parse_exceptions(fields),
            base=BaseModel.parse(fields.object("base")),
            lora=_parse_lora(fields.object("lora")),
            files=parse_files(fields),
            lineage=Lineage.parse(fields.object("lineage")) if "lineage" in fields.values else None,
            golden=Golden.parse(fields.object("golden")) if "golden" in fields.values else None,
        )


def publish(draft: bytes, *, reference: AdapterRef, created: str, exceptions: Iterable[str] = ()) -> bytes:
    """Return the manifest bytes of the published version whose draft is *draft*; what we do not know in it stays.

    *exceptions* are codes of checks that it may break, beside those that the draft allows.
    """
    document = parse_json_object(draft, what=f"`{MANIFEST_NAME}`", limit=MAX_MANIFEST)
    identity = {"name": reference.name, "version": str(reference.version), "created": created}
    allowed = sorted({*Manifest.parse(draft).exceptions, *exceptions})
    return canonical_json(document | identity | ({"exceptions": allowed} if allowed else {}))


def differs(one: bytes, other: bytes) -> bool:
    """Whether two manifests say different things, apart from when they were created."""
    documents = (parse_json_object(c, what=f"`{MANIFEST_NAME}`", limit=MAX_MANIFEST) for c in (one, other))
    first, second = (canonical_json(document | {"created": None}) for document in documents)
    return first != second


def _without_none(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None}


def _lora_to_json(lora: LoraSummary) -> dict[str, Any]:
    document: dict[str, Any] = {
        "r": lora.r,
        "alpha": lora.alpha,
        "targets": list(lora.targets),
        "dtype": lora.dtype,
        "parameters": lora.parameters,
    }
    if lora.slices:
        document["slices"] = [_group_to_json(group) for group in lora.slices]
    return document


def _group_to_json(group: SliceGroup) -> dict[str, Any]:
    parts = [{"part": s.part, "r": s.r, "alpha": s.alpha, "rows": [list(run) for run in s.rows]} for s in group.parts]
    return {"modules": list(group.modules), "parts": parts}


def _parse_identity(fields: Fields) -> tuple[str | None, str | None, str | None]:
    """Name, version and time belong together: a published manifest has all three, a draft none."""
    if not fields.values.keys() & {"name", "version", "created"}:
        return None, None, None
    name = fields.text("name", "a name of the form `org/task`", AdapterRef.is_name)
    version = fields.text("version", "a version of the form `1.2.0`", Version.is_version)
    created = fields.text("created", "a UTC time of the form `2026-01-31T12:00:00Z`", is_time)
    return name, version, created


def parse_files(fields: Fields) -> tuple[FileEntry, ...]:
    """Return the entries at ``files``: exactly the two payload files, by name; nothing else can ever be installed."""
    entries = tuple(
        FileEntry(
            name=entry.text("name", f"one of {', '.join(PAYLOAD_NAMES)}", PAYLOAD_NAMES.__contains__),
            size=entry.integer("size", low=0, high=MAX_FILE),
            sha256=entry.text("sha256", "64 lower-case hex digits", is_sha256),
        )
        for entry in fields.objects("files")
    )
    if tuple(entry.name for entry in entries) != PAYLOAD_NAMES:
        fields.fail("files", f"exactly {' and '.join(PAYLOAD_NAMES)}, in this order")
    return entries


def _parse_exceptions(fields: Fields) -> tuple[str, ...]:
    """Return the codes at ``exceptions``, which may be missing."""
    codes = fields.texts("exceptions") if "exceptions" in fields.values else ()
    if len(codes) > MAX_EXCEPTIONS or not all(map(_CODE.fullmatch, codes)):
        fields.fail("exceptions", f"at most {MAX_EXCEPTIONS} codes of checks, such as `LH113`")
    return codes


def _parse_lora(fields: Fields) -> LoraSummary:
    return LoraSummary(
        r=fields.integer("r", low=1, high=MAX_RANK),
        alpha=fields.number("alpha"),
        targets=fields.texts("targets"),
        dtype=fields.text("dtype"),
        parameters=fields.integer("parameters", low=1, high=2**48),
        slices=tuple(_parse_group(group) for group in fields.objects("slices")) if "slices" in fields.values else (),
    )


def _parse_group(fields: Fields) -> SliceGroup:
    return SliceGroup(
        modules=fields.texts("modules"),
        parts=tuple(
            Slice(
                part=part.text("part", "a lower-case word", lambda text: re.fullmatch(r"[a-z][a-z0-9]{0,31}", text)),
                r=part.integer("r", low=1, high=MAX_RANK),
                alpha=part.number("alpha"),
                rows=_parse_rows(part),
            )
            for part in fields.objects("parts")
        ),
    )


def _parse_rows(fields: Fields) -> tuple[tuple[int, int], ...]:
    runs = fields.read("rows", list, "runs `[start, stop]` in rising order", are_runs)
    return tuple((start, stop) for start, stop in runs)
