"""The only thing that loading accepts: the bytes of one adapter, proven against its manifest and fully read."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar

from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.adapter_layout import AdapterLayout, LoraModule, read_layout
from lora_hub.documents.base_model import BaseModel
from lora_hub.documents.fields import Bytes, printable, sha256
from lora_hub.documents.fingerprint import Fingerprint
from lora_hub.documents.finite import are_finite, is_finite
from lora_hub.documents.lineage import Lineage
from lora_hub.documents.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    PAYLOAD_NAMES,
    WEIGHTS_NAME,
    FileEntry,
    LoraSummary,
    Manifest,
    Slice,
    SliceGroup,
)
from lora_hub.documents.safetensors_header import TensorInfo, read_header
from lora_hub.documents.signers import Signer
from lora_hub.errors import IntegrityError, MalformedError, NotFoundError

T = TypeVar("T", int, float)

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)?", re.ASCII)
DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedAdapter:
    """An adapter whose bytes match its manifest and whose tensors each have one purpose. Made by `verify` only.

    Attributes:
        source: Where it came from, for messages.
        digest: ``sha256:…`` of the manifest bytes: the identity of this version.
        manifest: Parsed from those bytes, or derived from the other two files where there is none.
        config: Parsed ``adapter_config.json``.
        tensors: Where each tensor lies in *weights*.
        layout: What each tensor is for.
        signers: Who signed it, of those that the trust policy names; nobody where a digest or a directory was named.
        buffer: The bytes of ``adapter_model.safetensors`` that were hashed. Writable where torch wants it so; whoever
            writes into it breaks what was proven.
    """

    source: str
    digest: str
    manifest: Manifest
    config: AdapterConfig
    tensors: Mapping[str, TensorInfo]
    layout: AdapterLayout
    signers: tuple[Signer, ...] = ()
    buffer: Bytes = field(repr=False, compare=False)  # the digest says it all


def verify(files: Mapping[str, Bytes], *, source: str, hashed: Iterable[FileEntry] = ()) -> VerifiedAdapter:
    """Return the adapter that *files* hold, by name: the two payload files and, where there is one, the manifest.

    Args:
        files: Their bytes.
        source: What to call the adapter in an error.
        hashed: What was computed from the very bytes of some of *files* while they were read, to save a second pass.

    Raises:
        NotFoundError: A payload file is missing.
        IntegrityError: A file is not the one that the manifest describes.
        MalformedError: A document or a tensor is malformed.
    """
    for name in PAYLOAD_NAMES:
        if name not in files:
            raise NotFoundError(
                f"`{source}` has no `{name}`", hint="name a directory that `save_adapter` or PEFT wrote"
            )
    written = files.get(MANIFEST_NAME)
    manifest = Manifest.parse(bytes(written)) if written is not None else None
    known = {entry.name: entry for entry in hashed}
    found = tuple(known.get(name) or FileEntry.of(name, files[name]) for name in PAYLOAD_NAMES)
    for entry, other in zip(manifest.files if manifest else found, found, strict=True):
        check_file(entry, other, source=source)
    config = AdapterConfig.parse(bytes(files[CONFIG_NAME]))
    tensors = read_header(files[WEIGHTS_NAME])
    layout = read_layout(config, tensors, manifest.lora.slices if manifest else ())
    _check_finite(files[WEIGHTS_NAME], tensors)
    described = describe(config, layout, tensors, found)
    if manifest is not None:
        check_summary(manifest.lora, described.lora)
        check_fingerprint(manifest.base.fingerprint, layout.modules)
    manifest = manifest or described
    return VerifiedAdapter(
        source=source,
        digest=manifest_digest(bytes(written) if written is not None else manifest.to_bytes()),
        manifest=manifest,
        config=config,
        tensors=MappingProxyType(tensors),
        layout=layout,
        buffer=files[WEIGHTS_NAME],
    )


def check_summary(written: LoraSummary, found: LoraSummary) -> None:
    """Raise `MalformedError` unless the manifest, which people read, says what config and tensors say.

    That is of rank, alpha, dtype and size.
    """
    for what in ("r", "alpha", "dtype", "parameters"):
        if getattr(written, what) != getattr(found, what):
            raise MalformedError(
                f"`{MANIFEST_NAME}` says {what} is {printable(getattr(written, what))}, "
                f"config and tensors say {printable(getattr(found, what))}",
                hint=f"save the adapter again, or delete `{MANIFEST_NAME}` beside it",
            )


def check_fingerprint(fingerprint: Fingerprint | None, modules: Iterable[LoraModule]) -> None:
    """Raise `MalformedError` unless the fingerprint is of tensors that the adapter targets, in their shapes."""
    shapes = {module.path: (module.out_features, module.in_features) for module in modules}
    for tensor in fingerprint.tensors if fingerprint is not None else ():
        if shapes.get(tensor.path) != tensor.shape:
            found = shapes.get(tensor.path)
            raise MalformedError(
                f"`{MANIFEST_NAME}` has a fingerprint of `{tensor.path}` of shape {list(tensor.shape)}, "
                + (f"the adapter's is {list(found)}" if found else "which the adapter does not target"),
                hint=f"save the adapter again, or delete `{MANIFEST_NAME}` beside it",
            )


def _check_finite(content: Bytes, tensors: Mapping[str, TensorInfo]) -> None:
    if are_finite(content, tensors.values()):
        return
    for key, tensor in tensors.items():
        if not is_finite(content, tensor):
            raise MalformedError(
                f"the tensor {printable(key)} holds NaN or infinity", hint="the training diverged: train it again"
            )


def manifest_digest(content: bytes) -> str:
    """Return the identity of the version whose manifest is *content*."""
    return f"sha256:{sha256(content)}"


def check_file(entry: FileEntry, found: FileEntry, *, source: str) -> None:
    """Raise `IntegrityError` unless what was *found* is the file that *entry* describes."""
    if found != entry:
        raise IntegrityError(
            f"`{entry.name}` of `{source}` has {found.size} bytes and sha256 {found.sha256}, "
            f"the manifest says {entry.size} bytes and {entry.sha256}",
            hint=f"the file was changed or damaged: get it again (`lora-hub cache remove` and `pull`, or save again); "
            f"if you changed it on purpose, delete `{MANIFEST_NAME}` beside it",
        )


def derive(config: Bytes, header: Bytes, weights: FileEntry) -> Manifest:
    """Return the draft manifest of an adapter whose weights were not read: only what stands in their *header*.

    It is the one that `verify` derives from the whole files, if *weights* tells the truth about them.
    """
    parsed = AdapterConfig.parse(bytes(config))
    tensors = read_header(header, size=weights.size)
    layout = read_layout(parsed, tensors, ())
    return describe(parsed, layout, tensors, (FileEntry.of(CONFIG_NAME, config), weights))


def describe(
    config: AdapterConfig,
    layout: AdapterLayout,
    tensors: Mapping[str, TensorInfo],
    files: Iterable[FileEntry],
    *,
    base: BaseModel | None = None,
    targets: tuple[str, ...] | None = None,
    license: str | None = None,  # noqa: A002 - the manifest's own word
    lineage: Lineage | None = None,
) -> Manifest:
    """Return the draft manifest of *files*; *targets* is what their author called them, else the modules' own names."""
    dtypes = sorted({tensor.dtype for tensor in tensors.values()})
    parts = [part for module in layout.modules for part in module.slices or (module,)]
    return Manifest(
        base=base or BaseModel(repo=hub_name(config.base_model_name_or_path), revision=config.revision),
        license=license,
        lora=LoraSummary(
            r=most_common(part.r for part in parts),
            alpha=most_common(part.alpha for part in parts),
            targets=targets or tuple(sorted({module.path.rpartition(".")[2] for module in layout.modules})),
            dtype="+".join(DTYPE_NAMES[dtype] for dtype in dtypes),
            parameters=_parameters(layout, tensors),
            slices=_slice_groups(layout),
        ),
        files=tuple(files),
        lineage=lineage,
    )


def hub_name(name_or_path: str | None) -> str | None:
    """Return *name_or_path* if it can be a repository on the Hub; a path of somebody's machine is nobody's business."""
    return name_or_path if name_or_path and _HUB_NAME.fullmatch(name_or_path) else None


def most_common(values: Iterable[T]) -> T:
    """Return the value that occurs most often; of several, the smallest."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _parameters(layout: AdapterLayout, tensors: Mapping[str, TensorInfo]) -> int:
    """How many numbers the adapter adds: zero blocks of a fused projection are padding, not parameters."""
    adapted = sum(
        part.r * (module.in_features + part.out_features)
        for module in layout.modules
        for part in module.slices or (module,)
    )
    return adapted + sum(math.prod(tensors[key].shape) for keys in layout.heads.values() for key in keys.values())


def _slice_groups(layout: AdapterLayout) -> tuple[SliceGroup, ...]:
    groups: dict[tuple[Slice, ...], list[str]] = {}
    for module in layout.modules:
        if module.slices:
            groups.setdefault(module.slices, []).append(module.path)
    return tuple(SliceGroup(modules=tuple(modules), parts=parts) for parts, modules in groups.items())
