"""Which adapters are in memory: the least recently used give way, and are read and proven again when they are chosen.

Two tiers can be limited: the host's, where adapters lie as they were read, and the device's, where copies lie in the
dtype of the base. What gives way on the device is still on the host; what gives way there is on disk.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from lora_hub.errors import UsageError

if TYPE_CHECKING:
    from lora_hub.patch.applied_adapter import AppliedAdapter


class Residency:
    """The adapters of this process that are in memory, the least recently used first."""

    def __init__(self) -> None:
        self.host: int | None = None  # bytes
        self.device: int | None = None  # bytes
        self._resident: WeakKeyDictionary[AppliedAdapter, None] = WeakKeyDictionary()
        self._lock = threading.RLock()

    @property
    def is_limited(self) -> bool:
        """Whether anything may have to give way."""
        return self.host is not None or self.device is not None

    def bring(self, handles: Iterable[AppliedAdapter]) -> None:
        """Bring *handles*, which are to run, into memory: others give way if there is too much."""
        used = tuple(handles)
        for handle in used:
            handle.deltas.here()
        with self._lock:
            for handle in used:
                self._resident.pop(handle, None)
                self._resident[handle] = None
            if self.is_limited:
                self._make_room(used)

    def leave(self, handle: AppliedAdapter) -> None:
        """Forget *handle*, which was removed."""
        with self._lock:
            self._resident.pop(handle, None)

    def limit(self, host: int | None, device: int | None) -> None:
        """Set both limits, and keep to them."""
        with self._lock:
            self.host, self.device = host, device
            self._make_room(())

    def _make_room(self, used: tuple[AppliedAdapter, ...]) -> None:
        # What is active runs whenever nothing is chosen: its copies would only be made again.
        idle = [handle for handle in self._resident if handle not in used and not handle.active]
        if self.device is not None:
            placed = sum(handle.deltas.nbytes_placed for handle in self._resident)
            for handle in idle:
                if placed <= self.device:
                    break
                placed -= handle.deltas.nbytes_placed
                handle.deltas.leave_device()
                handle.patch.forget(handle)
        if self.host is not None:
            held = sum(handle.deltas.nbytes for handle in self._resident)
            for handle in idle:
                if held <= self.host:
                    break
                if handle.can_leave:
                    held -= handle.deltas.nbytes
                    handle.deltas.leave()
                    handle.patch.forget(handle)
                    del self._resident[handle]


residency = Residency()


def limit_memory(*, host: int | None = None, device: int | None = None) -> None:
    """Limit what the adapters of this process take in memory; None is no limit.

    With a limit, thousands of adapters can be applied with ``active=False``: those that were used least recently give
    way. Choosing one by `use` or `route` brings it back, from the directory or the store that it came from, where every
    byte is proven again and must have the digest it had. What is active, merged or trained, what runs, and what was
    applied from a `VerifiedAdapter` in memory stays. So do heads (``modules_to_save``).

    Args:
        host: Bytes of adapters as they were read.
        device: Bytes of copies on the device of the base, or in its dtype, besides. What `route` keeps stacked is not
            counted.

    Raises:
        UsageError: A limit that is no number of bytes.
    """
    for name, limit in (("host", host), ("device", device)):
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise UsageError(f"{name} is {limit!r}, expected a number of bytes, or None", hint="8 GiB are 8 << 30")
    residency.limit(host, device)
