"""The trust policy on this machine: read, extended, and asked whether an adapter may be used."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from lora_hub import places
from lora_hub.documents.fields import printable
from lora_hub.documents.trust_policy import MAX_POLICY, VERSION, Pin, TrustPolicy
from lora_hub.errors import DocumentError, MachineError, NotFoundError, PolicyError, UntrustedError
from lora_hub.files import machine_errors, make_directory, read_file, write_files
from lora_hub.reference import AdapterRef
from lora_hub.registry.published import Published
from lora_hub.registry.registry import Registry

_HAS_VERSION = re.compile(r"^\s*version\s*=", re.MULTILINE)
_PATIENCE = 30  # seconds to wait for another process that changes the policy


def default_trust() -> TrustFile:
    """Return the trust policy of this user."""
    return TrustFile(places.trust_file())


class TrustFile:
    """``trust.toml``; what the user wrote into it, comments included, stays as it is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> TrustPolicy:
        """Return the policy; an empty one, which trusts nobody, if there is no file."""
        return TrustPolicy.parse(self._content())

    def add(self, pins: Iterable[Pin], *, replace: bool = False) -> list[Pin]:
        """Add *pins*, all of them or none, and return those that they replaced.

        Raises:
            PolicyError: One of them is pinned to another digest already, and *replace* is False.
        """
        with self._locked():
            text, replaced = self._extended(pins, replace=replace)
            self._write(text)
        return replaced

    def check_can_be_extended(self) -> None:
        """Raise what `add` would raise, whatever is added, before something else happens that cannot be undone."""
        digest = f"sha256:{'0' * 64}"
        self._extended([Pin(registry="none:", name="no/adapter", version="0.0.0", digest=digest)], replace=False)

    def _extended(self, pins: Iterable[Pin], *, replace: bool) -> tuple[str, list[Pin]]:
        text, policy = self._text_and_policy()
        if not policy.pins:  # and so perhaps nothing but remarks
            text = text if _HAS_VERSION.search(text) else f"version = {VERSION}\n{text}"
        known, replaced = list(policy.pins), []
        for pin in pins:
            for old in [other for other in known if other.contradicts(pin)]:
                if not replace:
                    raise _contradiction(old, pin)
                text = self._without(text, old)
                known.remove(old)
                replaced.append(old)
            if pin not in known:
                text = f"{text.rstrip()}\n\n{pin.to_toml()}"
                known.append(pin)
        try:
            TrustPolicy.parse(text.encode())
        except DocumentError as error:
            raise PolicyError(
                f"`{self.path}` cannot be extended: {error.message}", hint="write its pins as tables, `[[pin]]`"
            ) from error
        return text, replaced

    def remove(self, registry_url: str, reference: AdapterRef) -> Pin:
        """Remove the pin of the exact *reference* and return it; raise `NotFoundError` if there is none."""
        with self._locked():
            text, policy = self._text_and_policy()
            pin = policy.pin(registry_url, reference)
            if pin is None:
                raise NotFoundError(
                    f"`{reference}` in `{registry_url}` is not pinned", hint="run `lora-hub trust list` to see what is"
                )
            left = self._without(text, pin)
            if TrustPolicy.parse(left.encode()).pin(registry_url, reference) is not None:
                raise self._by_hand(pin)
            self._write(left)
        return pin

    def _content(self) -> bytes:
        try:
            content = bytes(read_file(self.path, limit=MAX_POLICY))
        except NotFoundError:
            return b""
        with machine_errors():
            self._check_owner(self.path.stat())
        return content

    def _check_owner(self, status: os.stat_result) -> None:
        """Nobody else may say whom this user trusts."""
        if status.st_uid not in {os.geteuid(), 0} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise PolicyError(
                f"`{self.path}` may be written by others", hint=f"run `chmod go-w {self.path}`, and check its owner"
            )

    def _write(self, text: str) -> None:
        with machine_errors():
            write_files(self.path.parent, {self.path.name: text.encode()}, mode=0o600)

    def _text_and_policy(self) -> tuple[str, TrustPolicy]:
        content = self._content()
        policy = TrustPolicy.parse(content)
        return content.decode(), policy

    def _without(self, text: str, pin: Pin) -> str:
        """Return *text* without *pin*, as it was written there by a program."""
        left = text.replace(pin.to_toml(), "")
        if pin in TrustPolicy.parse(left.encode()).pins:
            raise self._by_hand(pin)
        return left

    def _by_hand(self, pin: Pin) -> PolicyError:
        return PolicyError(
            f"the pin of `{pin.reference}` in `{self.path}` was written by hand", hint="change it there by hand"
        )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time reads and writes again; read alone needs no lock, since writing is one rename."""
        from filelock import FileLock, Timeout

        with machine_errors():
            make_directory(self.path.parent)
            lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
            try:
                lock.acquire(timeout=_PATIENCE)
            except Timeout as error:
                raise MachineError(
                    f"another process holds `{lock.lock_file}`", hint="wait for it to end, and run it again"
                ) from error
        try:
            yield
        finally:
            lock.release()


def _contradiction(old: Pin, new: Pin) -> PolicyError:
    return PolicyError(
        f"`{old.reference}` in `{old.registry}` is pinned to {old.digest} and would become {new.digest}",
        hint=f"if the new one is right: `lora-hub trust remove {old.reference}`, and pin it again",
    )


def authorize(policy: TrustPolicy, registry: Registry, published: Published, *, digest: str | None) -> None:
    """Return if *published* may be used: it has the *digest* that the caller named, or the one that is pinned.

    Raises:
        PolicyError: It has another digest than that.
        IntegrityError: It is another adapter or version than was asked for.
        UntrustedError: No digest is named and nothing is pinned, in a registry that others may write into.
    """
    reference, found = published.reference, published.digest
    expected = policy.expected(registry.url, reference, digest)
    if expected is not None and expected != found:
        raise PolicyError(
            f"`{reference}` in `{registry.url}` was pinned as {expected} and is now {found}",
            hint="a published version never changes: ask its publisher what happened before you pin the new one",
        )
    published.check_identity()
    if expected is None and registry.is_remote:
        raise UntrustedError(
            f"`{reference}` in `{registry.url}` is unsigned and not pinned. It is {summary(published)}, {found}",
            hint=f"if you trust it, run `{pin_command(registry, reference, found)}`, or in Python pass "
            f'`digest="{found}"`',
        )


def is_trusted(policy: TrustPolicy, registry: Registry, published: Published, *, digest: str | None) -> bool:
    """Whether *published* may be used; `authorize` says why not."""
    expected = policy.expected(registry.url, published.reference, digest)
    return expected == published.digest or (expected is None and not registry.is_remote)


def summary(published: Published) -> str:
    """Return what an adapter says of itself, in one line."""
    manifest = published.document
    base = printable(manifest.base.repo) if manifest.base.repo else "an unnamed base"
    return f"a LoRA adapter of {base}, r {manifest.lora.r}, {manifest.lora.parameters:,} parameters"


def pin_command(registry: Registry, reference: AdapterRef, digest: str) -> str:
    """Return the one line that pins exactly what was shown."""
    where = "" if registry.url == "hf://" else f" --registry {shlex.quote(registry.url)}"
    return f"lora-hub trust pin {reference} --digest {digest}{where}"


def pin_of(registry: Registry, published: Published) -> Pin:
    """Return the pin of what *registry* has now."""
    version = published.reference.version
    return Pin(
        registry=registry.url,
        name=published.reference.name,
        version=str(version) if version else None,
        commit=published.snapshot.commit,
        digest=published.digest,
    )
