"""LoRA adapters in vLLM by reference: a request for the model ``org/task@1.2.0`` pulls, proves and loads it.

vLLM calls `register` in each of its processes (entry point ``vllm.general_plugins``). It does nothing unless
``LORA_HUB_VLLM`` is set: to ``1``, or to ``any-base`` where the base model is served under another name than the one
that its adapters know. What may be loaded is what `lora_hub.pull` accepts: pinned on this machine, or from a directory.

https://docs.vllm.ai/en/latest/features/lora, "Using plugins"
"""

from __future__ import annotations

import asyncio
import logging
import os
from typing import Any

from lora_hub import AdapterRef, errors, pull

SWITCH = "LORA_HUB_VLLM"
_NAME = "lora-hub"
_logger = logging.getLogger(__name__)


def register() -> None:
    """Register the resolver with vLLM, if it is switched on; any number of times."""
    mode = os.environ.get(SWITCH, "")
    if mode not in {"1", "any-base"}:
        return
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    class Resolver(LoRAResolver):  # type: ignore[misc] # vLLM is not installed where types are checked
        """Answers a reference with the directory of the proven version in the local store."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:  # noqa: ANN401 - vLLM's own type
            """Return a request for the adapter *lora_name*, or None if it is not ours to answer."""
            found = await asyncio.to_thread(resolve, lora_name, base_model_name if mode == "1" else None)
            return None if found is None else LoRARequest(lora_name, *found)

    LoRAResolverRegistry.register_resolver(_NAME, Resolver())


def resolve(lora_name: str, base: str | None) -> tuple[int, str] | None:
    """Return the id and the directory of the adapter that *lora_name* refers to.

    Args:
        lora_name: What a client of the server asks for. Only a reference is answered: never a path.
        base: The model that is served, with which the adapter must have been trained; None compares nothing.

    Returns:
        A positive number of 60 bits that is the same in every process, and a directory in PEFT's layout; or None, and
        the reason in the log.
    """
    try:
        pulled = pull(AdapterRef.parse(lora_name))
    except errors.InvalidReferenceError:
        return None  # another resolver's name
    except errors.LoraHubError as error:
        _logger.warning("lora-hub does not load `%s`: %s", lora_name, error)
        return None
    known_as = {pulled.adapter.manifest.base.repo, pulled.adapter.config.base_model_name_or_path}
    if base is not None and base not in known_as:
        _logger.warning("lora-hub does not load `%s`: its base is not `%s`", lora_name, base)
        return None
    return int(pulled.digest.removeprefix("sha256:")[:15], 16) or 1, str(pulled.path)
