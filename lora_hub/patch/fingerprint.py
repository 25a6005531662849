"""The fingerprint of a live base: of its weights as they are without adapters, merged or not."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_hub.documents.base_verdict import Found, Verdict, compare
from lora_hub.documents.fingerprint import Fingerprint
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import CompatibilityError
from lora_hub.patch.projections import features, is_linear, is_transposed
from lora_hub.patch.record import record_of
from lora_hub.sampling import fingerprint_of_weights, gather, shape_of
from lora_hub.tensors import DTYPE_NAMES

_CODES = {torch.int8: "I8", torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}


def fingerprint_of(modules: Mapping[str, nn.Module]) -> Fingerprint | None:
    """Return the fingerprint of the linear *modules*, by path, as they are without adapters; None if none is readable.

    What is offloaded, sharded, quantised or computed is left out, and so is what holds NaN or infinity.
    """
    weights = {path: weight for path, module in modules.items() if isinstance(weight := _weight(module), Tensor)}
    return fingerprint_of_weights(weights)


def compare_with_model(fingerprint: Fingerprint, modules: Mapping[str, nn.Module]) -> Verdict:
    """Return whether *modules*, those of a model by path, have the weights of *fingerprint*.

    A merged weight is looked at as it was before. One gather on the device for each tensor, and one transfer from it.
    """
    recorded = {tensor.path: tensor for tensor in fingerprint.tensors}
    weights, unread = dict[str, Tensor](), dict[str, str]()
    for path, tensor in recorded.items():
        weight = _weight(modules.get(path))
        if isinstance(weight, Tensor) and shape_of(weight) == tensor.shape:
            weights[path] = weight
        else:
            unread[path] = weight if isinstance(weight, str) else "of another shape"
    gathered = gather(weights, {path: recorded[path].positions() for path in weights})
    found = {
        path: Found(dtype=(DTYPE_NAMES | _CODES)[weights[path].dtype], values=content)
        for path, content in gathered.items()
    }
    return compare(fingerprint, found, unread)


def check_is_the_base(model: nn.Module, modules: Mapping[str, nn.Module], adapter: VerifiedAdapter) -> None:
    """Raise `CompatibilityError` if *model*, whose *modules* are given by path, is not what *adapter* was trained on.

    Where there is no fingerprint, or it decides nothing, nothing is said.
    """
    base = adapter.manifest.base
    if base.fingerprint is None:
        return
    verdict = compare_with_model(base.fingerprint, modules)
    if verdict.is_other:
        raise CompatibilityError(
            f"the adapter was trained on {base}, this model is another base ({_name_of(model)}): {verdict.reason}",
            hint="load the adapter's own base; `allow_other_base=True` applies it to a sibling all the same",
        )


def _name_of(model: nn.Module) -> str:
    config = getattr(model, "config", None)
    named = (getattr(config, "_name_or_path", None), getattr(config, "_commit_hash", None))
    return " at ".join(str(part) for part in named if part) or f"a {type(model).__name__} without a name"


def _weight(module: nn.Module | None) -> Tensor | str:
    """Return the weight ``[out, in]`` of *module* as it is without adapters, or why it cannot be read."""
    if module is None or not is_linear(module):
        return "not linear"
    weight = module._parameters.get("weight")  # noqa: SLF001
    record = record_of(module)
    if record is not None and record.merged is not None:
        if record.merged.correction is not None:
            return "merged without a copy of the original"
        weight = record.merged.originals.get("weight", weight)  # type: ignore[assignment]
    why_not = "computed" if weight is None else _why_unreadable(weight)
    if why_not is not None or weight is None:
        return str(why_not)
    stored = weight.detach().t() if is_transposed(module) else weight.detach()
    return stored if stored.shape == features(module)[::-1] else "packed or sharded"


def _why_unreadable(weight: Tensor) -> str | None:
    if weight.device.type == "meta":
        return "offloaded"
    # A subclass of Tensor that answers for itself: sharded over machines, or packed.
    if type(weight).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return f"a {type(weight).__name__}"
    if isinstance(weight, nn.UninitializedParameter):
        return "not initialised"
    if weight.layout is not torch.strided:
        return f"stored as {weight.layout}"
    if weight.dtype not in DTYPE_NAMES and weight.dtype not in _CODES:
        return f"stored as {weight.dtype}"
    return None if weight.dim() == 2 and weight.numel() else "packed or sharded"  # noqa: PLR2004 - a matrix
