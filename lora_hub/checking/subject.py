"""What is checked: one adapter, read as far as it can be, and the base that it is checked against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from lora_hub.checking.base import Base
from lora_hub.checking.fit import Fit
from lora_hub.checking.values import Values
from lora_hub.checkpoint.fingerprint import REQUESTS, compare_with_files
from lora_hub.documents.adapter_config import AdapterConfig
from lora_hub.documents.adapter_layout import Keys, LoraModule
from lora_hub.documents.base_verdict import Verdict, undecided
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import WEIGHTS_NAME, FileEntry, Manifest
from lora_hub.documents.safetensors_header import TensorInfo
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import LoraHubError, MalformedError


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One adapter under check. What could not be read is None or empty, and its error is kept.

    Attributes:
        source: The directory or the reference.
        digest: ``sha256:…`` of its manifest, if it is whole.
        beside: Bytes of every file that lies there, by name.
        files: The bytes of those that belong to an adapter and could be read.
        unread: Why the others could not.
        found: Size and SHA-256 of the payload files that were read.
        refusal: Why `verify` refuses it, or None if it is a whole adapter.
        document: ``adapter_config.json`` as it stands there.
        config: The same, parsed; without the keys in *bad_keys*.
        bad_keys: Why a key of the config cannot be accepted, by key; ``""`` is the whole document.
        manifest: ``lora-hub.json``, if it is there and can be parsed.
        bad_manifest: Why it cannot.
        tensors: Where each tensor lies in the weights.
        bad_weights: Why the file cannot be read as that of an adapter; some of *tensors* may be known all the same.
        pairs: The keys of A and B by module, also where one is missing.
        heads: The keys of replaced modules' parameters, by module.
        modules: The modules whose A and B make a pair.
        bad_modules: Why the others make none, by path.
        bad_tensors: Why a tensor has no purpose, by key.
        adapter: What `verify` made of it, if it is whole.
        base: What it is checked against.
        requires_base: Whether that which cannot be decided about the base is an error.
    """

    source: str
    digest: str | None = None
    beside: Mapping[str, int] = field(default_factory=dict)
    files: Mapping[str, Bytes] = field(default_factory=dict, repr=False)
    unread: Mapping[str, LoraHubError] = field(default_factory=dict)
    found: tuple[FileEntry, ...] = ()
    refusal: LoraHubError | None = None
    document: Mapping[str, Any] = field(default_factory=dict)
    config: AdapterConfig | None = None
    bad_keys: Mapping[str, MalformedError] = field(default_factory=dict)
    manifest: Manifest | None = None
    bad_manifest: LoraHubError | None = None
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    bad_weights: MalformedError | None = None
    pairs: Mapping[str, Keys] = field(default_factory=dict)
    heads: Mapping[str, Keys] = field(default_factory=dict)
    modules: tuple[LoraModule, ...] = ()
    bad_modules: Mapping[str, MalformedError] = field(default_factory=dict)
    bad_tensors: Mapping[str, MalformedError] = field(default_factory=dict)
    adapter: VerifiedAdapter | None = None
    base: Base | None = None
    requires_base: bool = False

    def against(self, base: Base, *, requires_base: bool = False) -> Subject:
        """Return the same adapter, to be checked against *base*."""
        return replace(self, base=base, requires_base=requires_base)

    def called(self, source: str) -> Subject:
        """Return the same adapter under another name."""
        return replace(self, source=source)

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The paths of all modules that it has a tensor of A or B for, in order."""
        return tuple(sorted(self.pairs))

    @cached_property
    def values(self) -> Values:
        """What the numbers of its tensors are: finite, zero, equal."""
        return Values(self.files.get(WEIGHTS_NAME, b""), self.tensors)

    @cached_property
    def fit(self) -> Fit | None:
        """Where its modules lie in the base, if there is one."""
        return None if self.base is None else Fit.of(self.base, (*self.paths, *self.heads))

    @cached_property
    def verdict(self) -> Verdict | None:
        """Whether the base is the one that it was trained on; None where there is no base, or no whole adapter."""
        checkpoint = self.base.checkpoint if self.base is not None else None
        if self.base is None or self.adapter is None:
            return None
        if checkpoint is None:
            return undecided("its files are out of reach")
        is_remote = self.base.repo is not None
        reads = (REQUESTS if is_remote else None) if self.base.may_sample else 0
        return compare_with_files(self.adapter, checkpoint, max_reads=reads)

    @property
    def named_base(self) -> str | None:
        """What manifest or config call the base: a repository, or whatever stands there."""
        written = self.manifest.base.repo if self.manifest else None
        return written or (self.config.base_model_name_or_path if self.config else None) or None

    @property
    def model_type(self) -> str | None:
        """The family of the base: what the base says, or else the manifest."""
        if self.base is not None:
            return self.base.model_type
        return self.manifest.base.model_type if self.manifest else None
