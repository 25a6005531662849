"""What one adapter adds to all its modules: it can leave memory, and comes back when it is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from torch import nn

from lora_hub.patch.delta import Delta

Found = Mapping[nn.Module, Delta]


class Deltas:
    """The deltas of one adapter by module, or the way to get them again.

    ``come_back`` reads and proves the adapter once more; without it, the deltas stay.
    """

    def __init__(self, found: Found, come_back: Callable[[], Found] | None = None) -> None:
        self._found: Found | None = found
        self.come_back = come_back
        self.rank = max((delta.r for delta in found.values()), default=0)  # the largest
        self.nbytes = sum(delta.nbytes for delta in found.values())  # as they were read
        self._lock = threading.Lock()

    def here(self) -> Found:
        """Return the deltas by module; they are read again if they left."""
        found = self._found
        if found is None:
            with self._lock:
                found = self._found
                if found is None and self.come_back is not None:
                    self._found = found = self.come_back()
        return found or {}

    @property
    def are_here(self) -> bool:
        """Whether they are in memory."""
        return self._found is not None

    @property
    def nbytes_placed(self) -> int:
        """How many bytes the copies take that were made to compute with, if all modules are as the first one."""
        found = self._found
        first = next(iter(found.values())) if found else None
        return self.nbytes * first.nbytes_placed // first.nbytes if first is not None and self.nbytes else 0

    def leave_device(self) -> None:
        """Drop the copies that were made to compute with."""
        for delta in (self._found or {}).values():
            delta.forget_placed()

    def leave(self) -> None:
        """Drop all, if there is a way to come back."""
        if self.come_back is not None:
            self._found = None

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()
