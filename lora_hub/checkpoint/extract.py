"""Make an adapter out of a fine-tuned checkpoint and its base: the best A and B for what changed, nothing else.

Only linear modules whose weight differs are adapted, by their full paths. What else changed (norms, biases, embeddings)
is listed, not stored, unless it is asked for. Both checkpoints are read in blocks of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_hub.adapter_files import config_of, files_of
from lora_hub.checkpoint.checkpoint import Checkpoint
from lora_hub.checkpoint.extract_delta import Difference, approximate, compare, difference_of, error_of, tensor_of
from lora_hub.checkpoint.extract_pairs import Pair, Pairs, pair_up
from lora_hub.checkpoint.extract_report import ExtractedModule, ExtractReport, LeftOut
from lora_hub.composing.exactness import reproducible
from lora_hub.composing.rank import Rank
from lora_hub.documents.adapter_layout import PREFIX
from lora_hub.documents.base_model import BaseModel
from lora_hub.documents.common_fingerprint import united
from lora_hub.documents.fields import Bytes
from lora_hub.documents.fingerprint import Fingerprint
from lora_hub.documents.verified_adapter import DTYPE_NAMES, hub_name
from lora_hub.errors import CompatibilityError, UsageError
from lora_hub.sampling import fingerprint_of_weights
from lora_hub.tensors import DTYPES

Track = Callable[[Sequence[Pair]], Iterable[Pair]]  # yields what it is given, and shows how far it is
_MOSTLY = 0.5  # of the energy
_SAMPLED = 256 * 1024 * 1024  # bytes of a weight; a larger one, which is read in blocks, has no fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Extracted:
    """The three files of the new adapter by name, and the report."""

    files: Mapping[str, Bytes]
    report: ExtractReport


def extract(
    fine: Checkpoint,
    base: Checkpoint,
    *,
    rank: Rank,
    dtype: str | None = None,
    full: Collection[str] = (),
    track: Track = iter,
) -> Extracted:
    """Return the adapter that makes *fine* of *base*, as far as *rank* goes. Same files, same bytes, on one machine.

    Args:
        fine: The fine-tuned checkpoint.
        base: What it was fine-tuned from.
        rank: How many singular values each module keeps.
        dtype: What A and B are stored in, such as ``float32``; by default what most of *fine* is stored in.
        full: Modules to take as a whole (``modules_to_save``), by path or the end of one.
        track: Yields the tensors that it is given, and may show how far that is.

    Raises:
        UsageError: No such dtype, or one that cannot hold the numbers.
        CompatibilityError: The two are not of one architecture, or no weight of a linear module changed.
        NotFoundError: A name of *full* is that of no module.
        MalformedError: A tensor that changed holds NaN or infinity.
    """
    stored_in = _dtype(dtype, fine)
    with reproducible():
        pairs = pair_up(fine, base, full)
        found = _Findings()
        for pair in track(pairs.pairs):
            _look_at(pair, rank, stored_in, found)
    _check_something_changed(found)
    return _finished(fine, base, pairs, found, stored_in)


@dataclass(slots=True)
class _Findings:
    """What comes together while the tensors are looked at."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    modules: list[ExtractedModule] = field(default_factory=list)
    base: list[Fingerprint] = field(default_factory=list)  # of each module
    heads: dict[str, None] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    unchanged: int = 0
    dtypes: Counter[tuple[str, str]] = field(default_factory=Counter)


def _dtype(name: str | None, fine: Checkpoint) -> torch.dtype:
    if name is None:
        return DTYPES[fine.main_dtype]
    by_name = {DTYPE_NAMES[key]: dtype for key, dtype in DTYPES.items()}
    if name not in by_name:
        raise UsageError(f"`{name}` is no dtype of an adapter", hint=f"there are {', '.join(by_name)}")
    return by_name[name]


def _look_at(pair: Pair, rank: Rank, dtype: torch.dtype, found: _Findings) -> None:
    if pair.whole:
        whole = tensor_of(pair.fine)
        found.heads |= dict.fromkeys(pair.whole.values())
        found.tensors |= {f"{PREFIX}{name}": whole.clone() for name in pair.whole}
        return
    if pair.base is None:
        found.left_out.append(LeftOut(name=pair.name, why="the base has no such tensor", change=None))
        return
    if pair.fine.info.dtype != pair.base.info.dtype:
        found.dtypes[pair.fine.info.dtype, pair.base.info.dtype] += 1
    difference = compare(pair.fine, pair.base)
    if difference is None:
        found.unchanged += 1
    elif pair.is_unclear:
        raise CompatibilityError(
            f"`{pair.path}` changed, and nobody says whether its weight lies [out, in] or [in, out]: no plugin "
            "describes it, nor does transformers know this model",
            hint="install transformers, or add a plugin that names this module (README, “Add an architecture”)",
        )
    elif pair.transposed is None:
        found.left_out.append(LeftOut(name=pair.name, why="no weight of a linear module", change=difference.relative))
    else:
        _extract(pair, difference, rank, dtype, found)


def _extract(pair: Pair, difference: Difference, rank: Rank, dtype: torch.dtype, found: _Findings) -> None:
    assert pair.base is not None  # noqa: S101 - for the type checker
    matrix = difference_of(pair.fine, pair.base)
    low = approximate(matrix, difference, rank, path=pair.path)
    stored = low.factors.stored(dtype, pair.path)
    B, A = (stored.A.T, stored.B.T) if pair.transposed else stored
    found.tensors |= {f"{PREFIX}{pair.path}.lora_A.weight": A, f"{PREFIX}{pair.path}.lora_B.weight": B}
    if pair.base.info.stop - pair.base.info.start <= _SAMPLED:
        before = tensor_of(pair.base)
        sampled = fingerprint_of_weights({pair.path: before.T if pair.transposed else before})
        found.base += [sampled] if sampled is not None else []
    found.modules.append(
        ExtractedModule(
            path=pair.path,
            shape=(B.shape[0], A.shape[1]),
            r=A.shape[0],
            change=difference.relative,
            norm=difference.energy**0.5,
            kept=low.kept,
            error=error_of(matrix, stored, difference.energy),
            rounding=min(1.0, difference.noise_energy / difference.energy),
        )
    )


def _check_something_changed(found: _Findings) -> None:
    if found.modules:
        return
    if found.left_out or found.heads:
        other = ", ".join(one.name for one in found.left_out[:3]) or ", ".join(found.heads)
        raise CompatibilityError(
            f"no weight of a linear module changed, only others did ({other}): LoRA has nothing to say",
            hint="ship the fine-tuned checkpoint itself",
        )
    raise CompatibilityError(
        f"nothing changed: all {found.unchanged} tensors are the same in both checkpoints",
        hint="check that the fine-tuned checkpoint and the base are the ones that you mean",
    )


def _finished(fine: Checkpoint, base: Checkpoint, pairs: Pairs, found: _Findings, dtype: torch.dtype) -> Extracted:
    name = base.config.get("_name_or_path")
    model = BaseModel(
        repo=hub_name(name if isinstance(name, str) else None),
        model_type=base.model_type,
        fingerprint=united(found.base),
    )
    config = config_of(
        {module.path: (module.r, module.r) for module in found.modules},
        base=model,
        heads=found.heads,
        others=pairs.linear,
        task_type=_task_type(fine),
    )
    report = ExtractReport(
        modules=tuple(found.modules),
        full=tuple(found.heads),
        left_out=tuple(found.left_out),
        unchanged=found.unchanged,
        dtype=str(dtype).removeprefix("torch."),
        notes=(*pairs.notes, *_notes(fine, found)),
    )
    return Extracted(files=files_of(config, found.tensors, base=model), report=report)


def _task_type(fine: Checkpoint) -> str | None:
    """Return PEFT's task of a language model; that of a classifier would make PEFT expect a head in the adapter."""
    named = fine.config.get("architectures")
    is_causal = isinstance(named, list) and any(str(one).endswith(("ForCausalLM", "LMHeadModel")) for one in named)
    return "CAUSAL_LM" if is_causal else None


def _notes(fine: Checkpoint, found: _Findings) -> Iterable[str]:
    for (one, other), count in sorted(found.dtypes.items()):
        yield (
            f"{count} tensors are {DTYPE_NAMES.get(one, one)} in the fine-tuned checkpoint and "
            f"{DTYPE_NAMES.get(other, other)} in the base: what only rounding explains counts as unchanged, elsewhere "
            "it is part of the difference"
        )
    coarse = [module for module in found.modules if module.rounding > _MOSTLY]
    if coarse:
        yield (
            f"in {len(coarse)} of {len(found.modules)} modules, most of the difference is what rounding to "
            f"{DTYPE_NAMES.get(fine.main_dtype, fine.main_dtype)} makes (`{coarse[0].path}`: {coarse[0].rounding:.0%})"
        )
    large = [m.path for m in found.modules if m.r * sum(m.shape) > m.shape[0] * m.shape[1]]
    if large:
        yield f"{len(large)} modules take more space as A and B than as a whole (`{large[0]}`): name a smaller rank"
