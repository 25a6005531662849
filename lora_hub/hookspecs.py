"""The hooks that a plugin may implement. Each begins with ``lora_hub_``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from lora_hub.architecture import Architecture
    from lora_hub.checking.check import Check
    from lora_hub.rule import Rule

NAMESPACE = "lora_hub"

hookspec = pluggy.HookspecMarker(NAMESPACE)
hookimpl = pluggy.HookimplMarker(NAMESPACE)


@hookspec
def lora_hub_architectures() -> Iterable[Architecture]:  # type: ignore[empty-body]
    """Return the families of models that this plugin describes. Called once, when an architecture is first needed."""


@hookspec
def lora_hub_rules() -> Iterable[Rule]:  # type: ignore[empty-body]
    """Return the rules of composition that this plugin adds. Called once; what needs torch loads it when it is used."""


@hookspec
def lora_hub_checks() -> Iterable[Check]:  # type: ignore[empty-body]
    """Return the rules that `lora-hub check` and `push` check beside the built-in ones. Called once."""
