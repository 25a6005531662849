"""What PEFT trains, lora-hub ships: version, verify, attach and merge LoRA adapters.

    import lora_hub

    adapter = lora_hub.apply_adapter(model, "org/task@1.2.0")
    adapter.remove()                                             # the base again, bit for bit

Names are resolved on first use (PEP 562): `import lora_hub` loads neither torch nor a network library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_hub import errors
    from lora_hub.api import apply_adapter, pull, push
    from lora_hub.architecture import Architecture, Projection
    from lora_hub.checking.check import Check, Hit, finds
    from lora_hub.checking.finding import Finding, Report, Severity
    from lora_hub.checkup import check
    from lora_hub.composition import compose
    from lora_hub.documents.verified_adapter import VerifiedAdapter
    from lora_hub.extraction import extract_adapter
    from lora_hub.golden import record_golden, replay
    from lora_hub.hookspecs import hookimpl
    from lora_hub.inspection import inspect_adapters
    from lora_hub.merging import merge_checkpoint
    from lora_hub.patch.applied_adapter import AppliedAdapter
    from lora_hub.patch.on_model import adapters, adapters_in_state_dict
    from lora_hub.patch.residency import limit_memory
    from lora_hub.patch.save import save_adapter
    from lora_hub.patch.train import add_adapter
    from lora_hub.patch.use import route, use
    from lora_hub.reference import AdapterRef
    from lora_hub.rule import Block, Law, Parameter, Rule, Settings, Tasks
    from lora_hub.searching.search import search_by_objective
    from lora_hub.trainer import AdapterTrainerMixin
    from lora_hub.vouch import sign, verify, yank
    from lora_hub.weight_search import search_on_base, search_weights

__version__ = "0.1.0"

_HOMES = {
    "AdapterRef": "lora_hub.reference",
    "AdapterTrainerMixin": "lora_hub.trainer",
    "AppliedAdapter": "lora_hub.patch.applied_adapter",
    "Architecture": "lora_hub.architecture",
    "Block": "lora_hub.rule",
    "Check": "lora_hub.checking.check",
    "Finding": "lora_hub.checking.finding",
    "Hit": "lora_hub.checking.check",
    "Law": "lora_hub.rule",
    "Parameter": "lora_hub.rule",
    "Projection": "lora_hub.architecture",
    "Report": "lora_hub.checking.finding",
    "Rule": "lora_hub.rule",
    "Settings": "lora_hub.rule",
    "Severity": "lora_hub.checking.finding",
    "Tasks": "lora_hub.rule",
    "VerifiedAdapter": "lora_hub.documents.verified_adapter",
    "adapters": "lora_hub.patch.on_model",
    "adapters_in_state_dict": "lora_hub.patch.on_model",
    "add_adapter": "lora_hub.patch.train",
    "apply_adapter": "lora_hub.api",
    "check": "lora_hub.checkup",
    "compose": "lora_hub.composition",
    "extract_adapter": "lora_hub.extraction",
    "finds": "lora_hub.checking.check",
    "hookimpl": "lora_hub.hookspecs",
    "inspect_adapters": "lora_hub.inspection",
    "limit_memory": "lora_hub.patch.residency",
    "merge_checkpoint": "lora_hub.merging",
    "pull": "lora_hub.api",
    "push": "lora_hub.api",
    "record_golden": "lora_hub.golden",
    "replay": "lora_hub.golden",
    "route": "lora_hub.patch.use",
    "save_adapter": "lora_hub.patch.save",
    "search_by_objective": "lora_hub.searching.search",
    "search_on_base": "lora_hub.weight_search",
    "search_weights": "lora_hub.weight_search",
    "sign": "lora_hub.vouch",
    "use": "lora_hub.patch.use",
    "verify": "lora_hub.vouch",
    "yank": "lora_hub.vouch",
}

__all__ = [
    "AdapterRef",
    "AdapterTrainerMixin",
    "AppliedAdapter",
    "Architecture",
    "Block",
    "Check",
    "Finding",
    "Hit",
    "Law",
    "Parameter",
    "Projection",
    "Report",
    "Rule",
    "Settings",
    "Severity",
    "Tasks",
    "VerifiedAdapter",
    "__version__",
    "adapters",
    "adapters_in_state_dict",
    "add_adapter",
    "apply_adapter",
    "check",
    "compose",
    "errors",
    "extract_adapter",
    "finds",
    "hookimpl",
    "inspect_adapters",
    "limit_memory",
    "merge_checkpoint",
    "pull",
    "push",
    "record_golden",
    "replay",
    "route",
    "save_adapter",
    "search_by_objective",
    "search_on_base",
    "search_weights",
    "sign",
    "use",
    "verify",
    "yank",
]


def __getattr__(name: str) -> object:
    if name == "errors":
        return import_module("lora_hub.errors")
    if name not in _HOMES:
        raise AttributeError(f"module `lora_hub` has no attribute `{name}`")
    from lora_hub.extras import needs_torch

    with needs_torch(f"`lora_hub.{name}`"):
        value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
