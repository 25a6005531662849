"""The verbs of lora-hub, and the only place where the registry meets the patcher."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_hub import reference as references
from lora_hub.adapter_directory import read_adapter
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import PolicyError, UsageError
from lora_hub.extras import needs_torch
from lora_hub.reference import AdapterRef, PathLike, ReferenceLike, as_reference
from lora_hub.registry import lock as locks
from lora_hub.registry import pull as pulls
from lora_hub.registry import push as pushes
from lora_hub.registry.fetch import Progress, no_progress
from lora_hub.registry.locate import RegistryLike, as_registry, online_registry, open_registry
from lora_hub.registry.lock import Locked
from lora_hub.registry.pull import Pulled
from lora_hub.registry.push import Pushed
from lora_hub.registry.store import Store, default_store
from lora_hub.registry.terms import current_terms
from lora_hub.registry.trust_file import default_trust
from lora_hub.signing.key_ring import signing_key
from lora_hub.signing.keys import Passphrase, passphrase_from_environment

if TYPE_CHECKING:
    from torch import nn

    from lora_hub.patch.applied_adapter import AppliedAdapter

_logger = logging.getLogger(__name__)


def push(
    directory: PathLike,
    reference: ReferenceLike,
    *,
    registry: RegistryLike = None,
    private: bool = False,
    key: PathLike | None = None,
    passphrase: Passphrase = passphrase_from_environment,
    allow: Iterable[str] = (),
) -> Pushed:
    """Publish the adapter in *directory* as the immutable version *reference* (``org/task@1.2.0``).

    It is signed if there is a key: *key*, ``LORA_HUB_KEY``, or the one that `generate_key` made for ``org``. The same
    content again is a success; nothing is written into *directory*. What was published on the Hub or in an object store
    and is trusted by no rule is pinned in this user's trust policy.

    Args:
        directory: What `save_adapter` or PEFT's ``save_pretrained`` wrote.
        reference: An exact version.
        registry: A URL or a directory; by default ``LORA_HUB_REGISTRY``, else the Hub.
        private: Whether a repository that does not exist yet is made a private one.
        key: The file of a private key.
        passphrase: How to get its passphrase, if it is encrypted; by default from ``LORA_HUB_KEY_PASSPHRASE``.
        allow: Codes of checks that it may break, such as ``LH113``; they are written into its manifest.

    Raises:
        UsageError: *allow* names no rule.
        VersionConflictError: The version exists with other content.
        MalformedError, IntegrityError: The directory holds no adapter that could be applied, or `check` finds an error.
        RegistryError: Registry, network or login refused; nothing half-published can be seen, and the same call again
            completes what was begun.
    """
    opened, named = online_registry(registry, private=private), as_reference(reference)
    signing = signing_key(named.org, named=None if key is None else Path(key), passphrase=passphrase)
    from lora_hub.checking.gate import Gate  # which asks plugins; a pull does not

    gate = Gate.of(Path(directory), allow)
    with gate.explained():
        return pushes.push(
            Path(directory),
            named,
            opened,
            default_store(),
            default_trust(),
            signing,
            approve=gate.approve,
            exceptions=gate.allowed,
        )


def pull(
    reference: ReferenceLike,
    *,
    registry: RegistryLike = None,
    digest: str | None = None,
    offline: bool = False,
    progress: Progress = no_progress,
) -> Pulled:
    """Bring the version that *reference* selects into the local store, every byte proven, and say where it lies.

    Args:
        reference: ``org/task`` (the newest release), ``org/task@1.2.0``, ``@^1.2``, ``@1``, ``@<commit>`` or
            ``@sha256:…``.
        registry: A URL or a directory; by default ``LORA_HUB_REGISTRY``, else the Hub.
        digest: What its manifest must have; naming it is trust enough.
        offline: Use no network; ``HF_HUB_OFFLINE=1`` says the same.
        progress: How to show what comes; ``progress(label, total bytes)`` opens a bar.

    Raises:
        NotFoundError: No such adapter or version.
        UntrustedError: No rule of the trust policy, no pin and no *digest* vouches for it.
        IntegrityError: Bytes do not match their digests.
        PolicyError: It is revoked or beyond a limit; or what was pinned or accepted before is changed or hidden now.
        RegistryError: Registry, network or login refused.
    """
    terms = current_terms(offline=offline, progress=progress)
    return pulls.pull(as_reference(reference), as_registry(registry), default_store(), terms, digest=digest)


def pull_locked(
    wanted: Iterable[ReferenceLike] = (),
    *,
    lock: PathLike = locks.DEFAULT_PATH,
    registry: RegistryLike = None,
    offline: bool = False,
    progress: Progress = no_progress,
) -> Iterator[Pulled]:
    """Bring exactly what the lock file says into the local store: all of it, or only the references *wanted*.

    What does not agree is refused at once; then each is brought as it is asked for, and holds its weights in memory.

    The digests in the lock file are trust enough. *registry*, a mirror say, stands in for those in the file.

    Raises:
        PolicyError: A reference is not locked, or a registry has something else than what was locked; nothing came.
    """
    locked = locks.read_lock(Path(lock))
    entries = [locked.entry(as_reference(reference)) for reference in wanted] or list(locked.entries)
    terms = current_terms(offline=offline, progress=progress)
    mirror = None if registry is None else as_registry(registry)
    return locks.pull_locked(entries, lambda url: mirror or open_registry(url), default_store(), terms)


def lock(
    wanted: Sequence[ReferenceLike] = (), *, lock: PathLike = locks.DEFAULT_PATH, registry: RegistryLike = None
) -> Locked:
    """Write into the lock file what the references *wanted* mean now, or what all in it mean now; return it.

    Raises:
        UntrustedError: One of them is not trusted; nothing is written then.
    """
    path, named = Path(lock), [as_reference(reference) for reference in wanted]
    if named:
        opened = as_registry(registry)
        pairs = [(reference, opened) for reference in named]
    else:
        given = None if registry is None else as_registry(registry)
        entries = locks.read_lock(path).entries
        pairs = [(AdapterRef.parse(e.reference), given or open_registry(e.registry)) for e in entries]
    return locks.lock(path, pairs, current_terms())


def load(
    source: PathLike | AdapterRef,
    *,
    registry: RegistryLike = None,
    digest: str | None = None,
    lock: PathLike | None = None,
) -> VerifiedAdapter:
    """Return the proven adapter that *source*, a directory or a reference, names; `pull` says what it raises."""
    named = references.parse(source)
    if isinstance(named, Path):
        if lock is not None:
            raise UsageError(f"`{named}` is a directory, and a lock file has references", hint="leave out one of them")
        adapter = read_adapter(named)
        _check_digest(str(named), adapter.digest, digest)
        return adapter
    return load_published(named, registry=registry, digest=digest, lock=lock).adapter


def load_published(
    reference: AdapterRef,
    *,
    registry: RegistryLike = None,
    digest: str | None = None,
    lock: PathLike | None = None,
) -> Pulled:
    """Return what `load` loads, and which version that is; what is to be known of it is logged."""
    if lock is not None:
        _check_digest(f"{reference} in {lock}", locks.read_lock(Path(lock)).entry(reference).digest, digest)
        pulled = next(pull_locked([reference], lock=lock, registry=registry))
    else:
        pulled = pull(reference, registry=registry, digest=digest)
    if pulled.skipped is not None:
        _logger.warning("%s is newer than %s, but %s", pulled.skipped, pulled.reference, pulled.skipped_because)
    if pulled.yanked is not None:
        _logger.warning("%s was yanked: %s", pulled.reference, pulled.yanked)
    return pulled


def _check_digest(what: str, found: str, named: str | None) -> None:
    if named not in {None, found}:
        raise PolicyError(f"`{what}` has the digest {found}, not {named}", hint="check what was asked for")


def store() -> Store:
    """Return the local store of this user."""
    return default_store()


def apply_adapter(
    model: nn.Module,
    source: str | os.PathLike[str] | AdapterRef | VerifiedAdapter,
    *,
    name: str | None = None,
    scale: float = 1.0,
    active: bool = True,
    replace: bool = False,
    trainable: bool = False,
    allow_other_base: bool = False,
    registry: RegistryLike = None,
    digest: str | None = None,
    lock: PathLike | None = None,
) -> AppliedAdapter:
    """Return a handle on the adapter that *source* names, now attached to *model*.

    Computes ``W x + scale * (lora_alpha / r) B A x`` in every module that the adapter has tensors for. Names, classes
    by `isinstance` and ``state_dict`` keys of the base stay; ``adapter.remove()`` gives back the same bits.

    Args:
        model: A model of transformers, or any module with linear modules of the same paths and shapes.
        source: ``org/task[@version]``, a directory (a path, or a string that starts with ``.`` or ``/``).
        name: What it is called on this model; by default the task, or the name of the directory.
        scale: Multiplies the delta.
        active: Whether it runs outside of `use`; active adapters add up.
        replace: Whether an adapter of the same name gives way.
        trainable: Whether it is to be trained on: A and B become parameters in float32 at least, heads in the dtype of
            the base, which is frozen.
        allow_other_base: Apply it although its base is of another model type, or has other weights than this model.
        registry: A URL or a directory; by default ``LORA_HUB_REGISTRY``, else the Hub.
        digest: What the digest of its manifest must be; naming it is trust enough.
        lock: A lock file: the reference means what stands there.

    Raises:
        CompatibilityError: It does not fit this model, or was trained on other weights; the model is as it was.
        MalformedError, IntegrityError, NotFoundError: There is no such adapter, or not a whole one.
        UntrustedError: Nothing vouches for it.
        PolicyError: It is revoked, or not what was pinned, locked or accepted before.
    """
    with needs_torch("applying an adapter"):
        from lora_hub.patch.attach import Options, apply
    if isinstance(source, VerifiedAdapter):
        adapter, read_again = source, None
        _check_digest(adapter.source, adapter.digest, digest)
    else:
        adapter = load(source, registry=registry, digest=digest, lock=lock)
        read_again = _reader(source, adapter)
    options = Options(
        name=name if name is not None else _default_name(source, adapter),
        scale=scale,
        active=active,
        replace=replace,
        trainable=trainable,
        allow_other_base=allow_other_base,
    )
    return apply(model, adapter, options, read_again)


def _reader(source: PathLike | AdapterRef, adapter: VerifiedAdapter) -> Callable[[], VerifiedAdapter]:
    """Return how to read *adapter*, which came from *source*, once more on this machine."""
    named = references.parse(source)
    if isinstance(named, Path):
        return functools.partial(read_adapter, named.absolute())
    return functools.partial(default_store().read, adapter.digest)


def _default_name(source: str | os.PathLike[str] | AdapterRef | VerifiedAdapter, adapter: VerifiedAdapter) -> str:
    named = None if isinstance(source, VerifiedAdapter) else references.parse(source)
    if isinstance(named, Path):
        return named.resolve().name
    published = adapter.manifest.reference
    return published.task if published is not None else "adapter"
