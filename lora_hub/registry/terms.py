"""What holds for one call: whom to trust, whether the network may be used, how to show progress."""

from __future__ import annotations

from dataclasses import dataclass

from lora_hub.documents.trust_policy import NOBODY, TrustPolicy
from lora_hub.registry.fetch import Progress, no_progress
from lora_hub.registry.network import is_offline
from lora_hub.registry.trust import default_trust


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What holds for all pulls of one call: whom to trust, whether the network may be used, how to show progress."""

    policy: TrustPolicy = NOBODY
    offline: bool = False
    progress: Progress = no_progress


DEFAULT_TERMS = Terms()


def current_terms(*, offline: bool = False, progress: Progress = no_progress) -> Terms:
    """Return the terms of this user: the trust policy as it is now, and what the environment says."""
    return Terms(policy=default_trust().read(), offline=offline or is_offline(), progress=progress)
