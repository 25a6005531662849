"""The signing keys of this user: one for each organisation whose adapters they publish.

``<home>/keys/org.key`` is the private key, ``org.pub`` the public one, to be given to everybody.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from lora_hub import places
from lora_hub.documents.signers import MAX_PEM, PublicKey
from lora_hub.documents.trust_entries import is_key_name
from lora_hub.errors import NotFoundError, PolicyError, UsageError
from lora_hub.files import check_own_directory, create_file, machine_errors, read_file, remove_old, write_files
from lora_hub.locked import locked
from lora_hub.signing.keys import MAX_KEY, Passphrase, PrivateKey, passphrase_from_environment

VARIABLE = "LORA_HUB_KEY"
_PRIVATE, _PUBLIC = ".key", ".pub"
_BEGIN = "-----BEGIN"
_HALF = re.compile(r"\..+\.(?:key|pub)\.[0-9a-f]{32}", re.ASCII)
_STALE = 3600  # seconds after which what is half-written belongs to nobody


def default_key_ring() -> KeyRing:
    """Return the keys of this user."""
    return KeyRing(places.keys_directory())


class KeyRing:
    """A directory of keys that nobody else may write into, and whose private keys nobody else may read."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, name: str) -> Path:
        """Return where the private key *name* lies, or would lie."""
        if not is_key_name(name):
            raise UsageError(
                f"{name!a} is no name for a key", hint="name it as the organisation whose adapters it signs"
            )
        return self._directory / f"{name}{_PRIVATE}"

    def public_path(self, name: str) -> Path:
        """Return where the public key *name* lies, or would lie."""
        return self.path(name).with_name(f"{name}{_PUBLIC}")

    def names(self) -> list[str]:
        """Return the names of the keys, sorted."""
        check_own_directory(self._directory)
        with machine_errors():
            return sorted(path.name.removesuffix(_PUBLIC) for path in self._directory.glob(f"[!.]*{_PUBLIC}"))

    def check_free(self, name: str) -> None:
        """Raise `UsageError` if there is a key *name* already."""
        check_own_directory(self._directory)
        self._sweep()
        if self.path(name).exists():
            raise _exists(self.path(name))

    def add(self, name: str, key: PrivateKey, *, passphrase: str | None) -> None:
        """Keep *key* under *name*, encrypted if a passphrase is given.

        Raises:
            UsageError: There is one already: a key is never replaced.
        """
        path = self.path(name)
        with locked(path), machine_errors():
            if path.exists():
                raise _exists(path)
            # The public half first: a crash in between leaves one that belongs to no key, and is replaced.
            write_files(path.parent, {self.public_path(name).name: key.public.pem.encode()}, mode=0o644)
            if not create_file(path, key.to_openssh(passphrase), mode=0o600):
                raise _exists(path)

    def _sweep(self) -> None:
        """Remove what killed processes left behind, which may be a key."""
        with machine_errors():
            halves = [path for path in self._directory.glob(".*") if _HALF.fullmatch(path.name) and path.is_file()]
            remove_old(halves, older_than=_STALE)

    def public(self, name: str) -> PublicKey:
        """Return the public key *name*."""
        check_own_directory(self._directory)
        path = self.public_path(name)
        try:
            return PublicKey.parse(read_file(path, limit=MAX_PEM, is_own=True).decode(errors="replace"))
        except NotFoundError as error:
            raise NotFoundError(
                f"there is no key `{name}`", hint=f"make it with `lora-hub key generate {name}`"
            ) from error

    def private(self, name: str, passphrase: Passphrase = passphrase_from_environment) -> PrivateKey | None:
        """Return the private key *name*, or None if there is none."""
        check_own_directory(self._directory)
        self._sweep()
        try:
            return read_private_key(self.path(name), passphrase)
        except NotFoundError:
            return None


def read_private_key(path: Path, passphrase: Passphrase = passphrase_from_environment) -> PrivateKey:
    """Return the private key in the file *path*; raise `PolicyError` if others may read or write it."""
    content = read_file(path, limit=MAX_KEY, is_own=True)
    with machine_errors():
        if stat.S_IMODE(path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            raise PolicyError(f"others may read the private key `{path}`", hint=f"run `chmod 600 {path}`")
    return PrivateKey.parse(content, what=f"the key `{path}`", passphrase=passphrase)


def signing_key(
    org: str,
    *,
    named: Path | None = None,
    ring: KeyRing | None = None,
    passphrase: Passphrase = passphrase_from_environment,
) -> PrivateKey | None:
    """Return the key that signs the adapters of *org*: the *named* file, `LORA_HUB_KEY` (a path, or PEM), or its own.

    None if there is none of the three.
    """
    if named is not None:
        return read_private_key(named, passphrase)
    variable = os.environ.get(VARIABLE)
    if variable and variable.lstrip().startswith(_BEGIN):
        return PrivateKey.parse(variable.encode(), what=f"`{VARIABLE}`", passphrase=passphrase)
    if variable:
        return _private_key_at(variable, passphrase)
    ring = ring or default_key_ring()
    return ring.private(org, passphrase) if is_key_name(org) else None


def _private_key_at(text: str, passphrase: Passphrase) -> PrivateKey:
    """Return the private key in the file that the variable names; what names no file may be a secret: not shown."""
    try:
        is_file = Path(text).is_file()
    except (OSError, ValueError):
        is_file = False
    if not is_file:
        raise UsageError(
            f"`{VARIABLE}` is neither the path of a file nor a private key as PEM", hint="set it to one, or unset it"
        )
    return read_private_key(Path(text), passphrase)


def _exists(path: Path) -> UsageError:
    return UsageError(
        f"`{path}` exists, and a key is never replaced",
        hint=f"use it, or move it away; if it is not trusted: "
        f"`lora-hub trust add {path.with_name(path.stem + _PUBLIC)} --scope '{path.stem}/*'`",
    )
