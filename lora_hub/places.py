"""Where lora-hub keeps things on this machine: under ``LORA_HUB_HOME`` if it is set, else where the platform says."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from lora_hub.errors import UsageError

HOME = "LORA_HUB_HOME"
_APPLICATION = "lora-hub"


def store_directory() -> Path:
    """Return the directory of the local store, which may be deleted at any time."""
    return _home() / "store" if _home_is_set() else _absolute(platformdirs.user_cache_dir(_APPLICATION)) / "store"


def trust_file() -> Path:
    """Return the trust policy of this user."""
    return (_home() if _home_is_set() else _absolute(platformdirs.user_config_dir(_APPLICATION))) / "trust.toml"


def keys_directory() -> Path:
    """Return the directory of this user's signing keys."""
    return (_home() if _home_is_set() else _absolute(platformdirs.user_data_dir(_APPLICATION))) / "keys"


def memory_file() -> Path:
    """Return the memory of what registries were seen to publish."""
    return (_home() if _home_is_set() else _absolute(platformdirs.user_state_dir(_APPLICATION))) / "seen.json"


def _home_is_set() -> bool:
    return bool(os.environ.get(HOME))


def _home() -> Path:
    return _absolute(os.environ[HOME])


def _absolute(text: str) -> Path:
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError as error:
        raise UsageError(f"`{text}` names no directory: {error}", hint=f"set `{HOME}` to a directory") from error
