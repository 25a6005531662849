"""The fingerprint of the base in hand: some of its weights, gathered where they are and brought here at once."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lora_hub.documents.base_verdict import Found, Verdict, compare
from lora_hub.documents.fingerprint import Fingerprint, Sampled, Shape, counts, slots, window
from lora_hub.documents.floats import decode
from lora_hub.documents.verified_adapter import VerifiedAdapter
from lora_hub.errors import CompatibilityError
from lora_hub.patch.projections import features, is_linear, is_transposed
from lora_hub.patch.record import record_of
from lora_hub.tensors import DTYPE_NAMES

_CODES = {torch.int8: "I8", torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"}


def fingerprint_of(modules: Mapping[str, nn.Module]) -> Fingerprint | None:
    """Return the fingerprint of the linear *modules*, by path, as they are without adapters; None if none is readable.

    What is offloaded, sharded, quantised or computed is left out, and so is what holds NaN or infinity.
    """
    weights = {path: weight for path, module in modules.items() if isinstance(weight := _weight(module), Tensor)}
    weights = {path: weight for path, weight in weights.items() if weight.dtype in DTYPE_NAMES}
    size = max((weight.itemsize for weight in weights.values()), default=1)
    wanted = counts({path: _shape(weight) for path, weight in weights.items()}, size)
    sampled = [_sample(group, wanted) for group in _alike({path: weights[path] for path in wanted})]
    return Fingerprint.of(itertools.chain.from_iterable(sampled))


def compare_with_model(fingerprint: Fingerprint, modules: Mapping[str, nn.Module]) -> Verdict:
    """Return whether *modules*, those of a model by path, have the weights of *fingerprint*.

    A merged weight is looked at as it was before. One gather on the device for each tensor, and one transfer from it.
    """
    recorded = {tensor.path: tensor for tensor in fingerprint.tensors}
    weights, unread = dict[str, Tensor](), dict[str, str]()
    for path, tensor in recorded.items():
        weight = _weight(modules.get(path))
        if isinstance(weight, Tensor) and _shape(weight) == tensor.shape:
            weights[path] = weight
        else:
            unread[path] = weight if isinstance(weight, str) else "of another shape"
    found: dict[str, Found] = {}
    for group in _alike(weights):
        places = _to_device([recorded[path].positions() for path in group], next(iter(group.values())).device)
        values = [weight[place[:, 0], place[:, 1]] for weight, place in zip(group.values(), places, strict=True)]
        dtype = (DTYPE_NAMES | _CODES)[values[0].dtype]
        found |= zip(group, (Found(dtype=dtype, values=content) for content in _to_bytes(values)), strict=True)
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
    if weight.dtype not in DTYPE_NAMES and weight.dtype not in _CODES:
        return f"stored as {weight.dtype}"
    return None if weight.dim() == 2 else "packed or sharded"  # noqa: PLR2004 - a matrix


def _shape(weight: Tensor) -> Shape:
    return weight.shape[0], weight.shape[1]


def _alike(weights: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return *weights* by path, those on one device and of one dtype together."""
    groups: dict[tuple[torch.device, torch.dtype], dict[str, Tensor]] = {}
    for path, weight in weights.items():
        groups.setdefault((weight.device, weight.dtype), {})[path] = weight
    return list(groups.values())


def _sample(group: Mapping[str, Tensor], wanted: Mapping[str, int]) -> Iterator[Sampled]:
    """Yield what is taken of each weight of a *group*: single ones, and between them the smallest of windows."""
    device = next(iter(group.values())).device
    places = _to_device([slots(path, _shape(group[path]), wanted[path]) for path in group], device)
    values, offsets = [], []
    for weight, place in zip(group.values(), places, strict=True):
        rows, columns = place[:, :1], place[:, 1:]
        windows = weight[rows[1::2], columns[1::2] + torch.arange(window(weight.shape[1]), device=device)]
        nearest = _nearest_to_zero(windows)
        pairs = torch.cat([weight[rows[::2], columns[::2]], windows.gather(1, nearest)], dim=1)
        values.append(pairs.view(-1))
        offsets.append(nearest.view(-1).to(torch.uint8))
    for (path, weight), value, offset in zip(group.items(), _to_bytes(values), _to_bytes(offsets), strict=True):
        dtype = DTYPE_NAMES[weight.dtype]
        if all(map(math.isfinite, decode(value, dtype))):
            yield Sampled(path=path, shape=_shape(weight), dtype=dtype, values=value, offsets=offset)


def _nearest_to_zero(windows: Tensor) -> Tensor:
    """Return ``[n, 1]``: where in each of *windows* ``[n, inputs]`` the number nearest to zero is, but for zeros."""
    sizes = windows.abs()
    usable = sizes.isfinite() & (sizes > 0)
    return torch.where(usable, sizes, torch.inf).argmin(1, keepdim=True)


def _to_device(places: Sequence[Sequence[tuple[int, int]]], device: torch.device) -> Sequence[Tensor]:
    """Return *places* as one tensor ``[n, 2]`` for each weight: views of one that went to *device* at once."""
    together = torch.tensor(list(itertools.chain.from_iterable(places)), dtype=torch.int64)
    return together.to(device).split([len(one) for one in places])  # type: ignore[no-any-return, no-untyped-call]


def _to_bytes(values: Sequence[Tensor]) -> list[bytes]:
    """Return the bytes of each of *values*, brought here at once."""
    content = torch.cat(list(values)).cpu().view(torch.uint8).numpy().tobytes()
    ends = list(itertools.accumulate(value.nbytes for value in values))
    return [content[start:end] for start, end in zip([0, *ends], ends, strict=False)]
