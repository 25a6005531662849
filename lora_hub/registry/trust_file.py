"""The trust policy on this machine: read, and changed so that what its user wrote into it stays as it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from lora_hub import places
from lora_hub.documents.trust_changes import Change, pinning
from lora_hub.documents.trust_entries import Entry, Pin
from lora_hub.documents.trust_policy import MAX_POLICY, VERSION, TrustPolicy
from lora_hub.errors import DocumentError, NotFoundError, PolicyError, UsageError
from lora_hub.files import check_own_directory, machine_errors, read_file, write_files
from lora_hub.locked import locked
from lora_hub.reference import AdapterRef

PROJECT_FILE = "lora-hub.trust.toml"  # of a project, in the working directory: it can only narrow

_MAX_PROJECT = 256 * 1024  # bytes; somebody else wrote it
_HAS_VERSION = re.compile(r"^\s*version\s*=", re.MULTILINE)


def default_trust() -> TrustFile:
    """Return the trust policy of this user."""
    return TrustFile(places.trust_file())


def project_policy() -> TrustPolicy:
    """Return the policy of the project in the working directory; it belongs to whoever wrote the project."""
    try:
        return _parse(Path(PROJECT_FILE), bytes(read_file(Path(PROJECT_FILE), limit=_MAX_PROJECT)))
    except NotFoundError:
        return TrustPolicy()


class TrustFile:
    """``trust.toml``: its entries are removed and appended as text, so comments and everything else stay."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> TrustPolicy:
        """Return the policy; an empty one, which trusts nobody, if there is no file."""
        return _parse(self.path, self._content())

    def change(self, decide: Callable[[TrustPolicy], Change]) -> Change:
        """Make the change that *decide* makes of the policy as it is, all of it or nothing, and return it.

        Raises:
            PolicyError: What is to be removed was written by hand, or the file is such that nothing can be appended.
        """
        with locked(self.path):
            content = self._content()
            change = decide(_parse(self.path, content))
            if change.removed or change.added:
                text = self._changed(content.decode(), change)
                with machine_errors():
                    write_files(self.path.parent, {self.path.name: text.encode()}, mode=0o600)
        return change

    def check(self, decide: Callable[[TrustPolicy], Change]) -> None:
        """Raise what `change` would raise, and change nothing."""
        content = self._content()
        self._changed(content.decode(), decide(_parse(self.path, content)))

    def add(self, pins: Iterable[Pin], *, replace: bool = False) -> list[Pin]:
        """Add *pins*, all of them or none, and return those that they replaced.

        Raises:
            PolicyError: One of them is pinned to another digest already, and *replace* is False.
        """
        wanted = tuple(pins)
        change = self.change(lambda policy: pinning(policy, wanted, replace=replace))
        return [entry for entry in change.removed if isinstance(entry, Pin)]

    def remove(self, registry_url: str, reference: AdapterRef) -> Pin:
        """Remove the pin of the exact *reference* and return it; raise `NotFoundError` if there is none."""

        def decide(policy: TrustPolicy) -> Change:
            pin = policy.pin(registry_url, reference)
            if pin is None:
                raise NotFoundError(
                    f"`{reference}` in `{registry_url}` is not pinned", hint="run `lora-hub trust list` to see what is"
                )
            return Change(removed=(pin,))

        (pin,) = self.change(decide).removed
        assert isinstance(pin, Pin)  # noqa: S101 - said above
        return pin

    def check_can_be_extended(self) -> None:
        """Raise what `add` would raise, whatever is added, before something else happens that cannot be undone."""
        digest = f"sha256:{'0' * 64}"
        pin = Pin(registry="none:", name="no/adapter", version="0.0.0", digest=digest)
        self.check(lambda _policy: Change(added=(pin,)))

    def _content(self) -> bytes:
        check_own_directory(self.path.parent)
        try:
            return bytes(read_file(self.path, limit=MAX_POLICY, is_own=True))
        except NotFoundError:
            return b""

    def _changed(self, text: str, change: Change) -> str:
        if not TrustPolicy.parse(text.encode()).entries:  # and so perhaps nothing but remarks
            text = text if _HAS_VERSION.search(text) else f"version = {VERSION}\n{text}"
        for entry in change.removed:
            text = text.replace(entry.to_toml(), "")
        for entry in change.added:
            text = f"{text.rstrip()}\n\n{entry.to_toml()}"
        try:
            left = TrustPolicy.parse(text.encode()).entries
        except UnicodeEncodeError as error:
            raise UsageError("what is to be written is no text", hint="write it in Unicode") from error
        except DocumentError as error:
            raise PolicyError(
                f"`{self.path}` cannot be changed: {error.message}",
                hint="mend it by hand; entries must be tables there, such as `[[pin]]`",
            ) from error
        for entry in change.removed:
            if _is_left(entry, left, change):
                raise PolicyError(f"{entry.label} in `{self.path}` was written by hand", hint="change it there by hand")
        return text


def _parse(path: Path, content: bytes) -> TrustPolicy:
    try:
        return TrustPolicy.parse(content)
    except DocumentError as error:
        raise error.within(f"`{path}`") from error


def _is_left(removed: Entry, left: Iterable[Entry], change: Change) -> bool:
    """Whether what was *removed* still holds: its user wrote it there as well, perhaps in other words."""
    others = [entry for entry in left if entry not in change.added]
    if isinstance(removed, Pin):
        return any(isinstance(e, Pin) and not e.places.isdisjoint(removed.places) for e in others)
    return removed in others
