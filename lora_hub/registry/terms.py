"""What holds for one call: whom to trust, what was seen before, whether the network may be used."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field

from lora_hub.documents.trust_policy import NOBODY, TrustPolicy
from lora_hub.registry.fetch import Progress, no_progress
from lora_hub.registry.memory import Memory, default_memory
from lora_hub.registry.network import is_offline
from lora_hub.registry.registry import Registry
from lora_hub.registry.trust_file import default_trust, project_policy


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What holds for all pulls of one call.

    Attributes:
        memory: What was accepted before.
        policy: Whom this user trusts.
        project: What the project in the working directory forbids besides.
        now: The time at which keys must be valid.
        offline: Whether the network must not be used.
        progress: How to show what comes.
        is_strict: Whether a directory of this machine is as foreign as any other registry.
    """

    memory: Memory
    policy: TrustPolicy = NOBODY
    project: TrustPolicy = NOBODY
    now: dt.datetime = field(default_factory=_now)
    offline: bool = False
    progress: Progress = no_progress
    is_strict: bool = False

    def is_foreign(self, registry: Registry) -> bool:
        """Whether what *registry* has needs a signature or a pin where no rule says so."""
        return registry.is_remote or self.is_strict


def current_terms(*, offline: bool = False, progress: Progress = no_progress) -> Terms:
    """Return the terms of this user: policy and memory as they are now, and what the environment says."""
    return Terms(
        memory=default_memory(),
        policy=default_trust().read(),
        project=project_policy(),
        offline=offline or is_offline(),
        progress=progress,
    )
