"""Make one adapter out of several: the recipe and the proven inputs in, the files and a report out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_hub.adapter_files import config_of, files_of
from lora_hub.composing.exactness import reproducible
from lora_hub.composing.factors import dtype_name
from lora_hub.composing.inputs import Input
from lora_hub.composing.merging import Deltas, Merged, merge
from lora_hub.composing.plan import Plan, plan_of
from lora_hub.composing.rank import Rank, fitting
from lora_hub.composing.report import ModuleReport, Report
from lora_hub.documents.adapter_layout import PREFIX
from lora_hub.documents.fields import Bytes
from lora_hub.documents.recipe import Recipe
from lora_hub.errors import MalformedError, UsageError

Track = Callable[[Sequence[str]], Iterable[str]]  # yields what it is given, and shows how far it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """The three files of the new adapter by name, and the report."""

    files: Mapping[str, Bytes]
    report: Report


def compose(
    inputs: Sequence[Input], recipe: Recipe, *, allow_other_base: bool = False, track: Track = iter
) -> Composed:
    """Return the adapter that *recipe* makes of *inputs*. Same recipe, same bytes in, same bytes out, on one machine.

    Computes in float64 on one thread, and rounds once. Never forms a matrix of ``[out, in]`` that is larger than its
    factors are.

    Args:
        inputs: Its adapters, in its order, under their ids.
        recipe: What is to be done.
        allow_other_base: Whether the inputs may be of different bases of one model type.
        track: Yields the paths of the modules that it is given, and may show how far that is.

    Raises:
        UsageError: The recipe contradicts itself, or names what there is not.
        CompatibilityError: The inputs are not of one base, or replace modules by different ones.
        MalformedError: A number in an input is too large to compute with.
    """
    with reproducible():
        plan = plan_of(inputs, recipe, allow_other_base=allow_other_base)
        return _unchanged(plan) if plan.is_unchanged else _compute(_fitted(plan), track)


def _fitted(plan: Plan) -> Plan:
    """Return *plan* with the rank that `fit` comes to, which needs a look at all modules."""
    if plan.method.rank.kind != "fit":
        return plan
    needed = max(_merged(plan, path).rank for path in plan.modules)
    rank = fitting(needed)
    what = "all that is there fits" if needed <= rank else f"cut from {needed}, which is more than vLLM takes"
    note = f"every module has rank {rank}, for vLLM's max_lora_rank: {what}"
    method = dataclasses.replace(plan.method, rank=Rank("number", rank))
    return dataclasses.replace(plan, method=method, notes=(note,))


def _compute(plan: Plan, track: Track) -> Composed:
    tensors: dict[str, Tensor] = {}
    reports, too_small = [], 0
    for path in track(list(plan.modules)):
        merged = _merged(plan, path)
        factors = merged.factors.balanced() if plan.dtype is torch.float16 else merged.factors
        stored = factors.stored(plan.dtype, path)
        tensors |= {f"{PREFIX}{path}.lora_{side}.weight": getattr(stored, side) for side in "AB"}
        too_small += any(map(_is_too_small, factors, stored))
        reports.append(_report(plan, path, merged))
    if too_small:
        what = f"{too_small} of {len(reports)} modules have numbers too small for {dtype_name(plan.dtype)}"
        note = f"{what}, which are lost in part or wholly: name a wider dtype, such as `--dtype float32`"
        plan = dataclasses.replace(plan, notes=(*plan.notes, note))
    return _finished(plan, tensors, {one.path: (one.r, one.r) for one in reports}, tuple(reports))


def _merged(plan: Plan, path: str) -> Merged:
    modules, weights = plan.modules[path], plan.weights.of(path)
    counting = [position for position in modules if weights[position]]
    module = next(iter(modules.values()))
    deltas = Deltas(
        path=path,
        factors=[plan.inputs[position].factors(modules[position]) for position in counting],
        weights=[weights[position] for position in counting],
        digests=[plan.inputs[position].adapter.digest for position in counting],
    )
    return merge(deltas, plan.method, (module.out_features, module.in_features))


def _is_too_small(factor: Tensor, stored: Tensor) -> bool:
    """Whether *factor* lost more by being rounded than half of the last bit of each number, as denormals do."""
    size, limits = torch.linalg.vector_norm(factor), torch.finfo(stored.dtype)
    if size >= math.sqrt(factor.numel()) * limits.smallest_normal:  # then denormals are too few, or too small, to count
        return False
    return bool(torch.linalg.vector_norm(stored.double() - factor) > limits.eps * size)


def _report(plan: Plan, path: str, merged: Merged) -> ModuleReport:
    modules, weights = plan.modules[path], plan.weights.of(path)
    return ModuleReport(
        path=path,
        ranks=tuple(modules[i].r if i in modules else None for i in range(len(plan.inputs))),
        weights=weights,
        rank=merged.rank,
        r=merged.factors.r,
        kept=merged.kept,
        norm=merged.norm,
    )


def _unchanged(plan: Plan) -> Composed:
    """Return the one adapter as it is: its very numbers, r, alpha and slices, under PEFT's plain keys."""
    (one,) = plan.inputs
    tensors: dict[str, Tensor] = {}
    reports = []
    for path, module in one.modules.items():
        lora_A, lora_B = one.stored(module)
        tensors |= {f"{PREFIX}{path}.lora_A.weight": lora_A, f"{PREFIX}{path}.lora_B.weight": lora_B}
        merged = _merged(plan, path)
        kept_as_it_is = dataclasses.replace(_report(plan, path, merged), r=module.r)
        reports.append(kept_as_it_is)
    ranks = {path: (module.r, module.alpha) for path, module in one.modules.items()}
    options = {"use_rslora": one.adapter.config.use_rslora, "lora_dropout": one.adapter.config.lora_dropout}
    return _finished(plan, tensors, ranks, tuple(reports), options, slices=one.adapter.manifest.lora.slices)


def _finished(
    plan: Plan,
    tensors: dict[str, Tensor],
    ranks: Mapping[str, tuple[int, float]],
    reports: tuple[ModuleReport, ...],
    options: Mapping[str, Any] | None = None,
    **described: Any,  # noqa: ANN401 - what the manifest says of slices
) -> Composed:
    """Return the files of *tensors* and of the heads, and the report on them."""
    for path, parameters in plan.heads.items():
        tensors |= {f"{PREFIX}{path}.{name}": tensor for name, tensor in parameters.items()}
    task_type, license = _common(plan, "task_type"), _common(plan, "license")  # noqa: A001 - the manifest's own word
    config = config_of(ranks, base=plan.base, heads=plan.heads, task_type=task_type, **(options or {}))
    named = {one.adapter.manifest.lora.targets for one in plan.inputs}
    targets = named.pop() if len(named) == 1 else tuple(sorted(set().union(*named)))
    try:
        files = files_of(config, tensors, base=plan.base, targets=targets, license=license, **described)
    except MalformedError as error:  # it has more patterns than anybody reads
        raise UsageError(
            error.message, hint="one rank for all modules needs no patterns: name it, as `--rank 32`"
        ) from error
    return Composed(files=files, report=Report(modules=reports, notes=(*plan.notes, *_notes(plan, reports))))


def _values(plan: Plan, what: str) -> set[str | None]:
    return {getattr(one.adapter.config if what == "task_type" else one.adapter.manifest, what) for one in plan.inputs}


def _common(plan: Plan, what: str) -> str | None:
    values = _values(plan, what)
    return values.pop() if len(values) == 1 else None


def _notes(plan: Plan, reports: Sequence[ModuleReport]) -> Iterable[str]:
    for what in ("task_type", "license"):
        values = _values(plan, what)
        if len(values) > 1:
            yield f"the inputs differ in {what} ({', '.join(sorted(map(str, values)))}), so none is written"
    bases = {one.adapter.manifest.base.repo for one in plan.inputs} - {None}
    if len(bases) > 1:
        yield f"the inputs are of different bases ({', '.join(sorted(map(str, bases)))}); the first is written"
    scaled = any(weight != 1 for weight in plan.weights.own.values())
    for path in plan.heads:
        yield f"`{path}` (modules_to_save) is kept as it is" + ("; no weight scales it" if scaled else "")
    if not plan.is_unchanged and any(one.adapter.manifest.lora.slices for one in plan.inputs):
        yield "the parts of fused projections are adapted as before, but as one matrix: the manifest has no slices"
    absent = sum(len(modules) < len(plan.inputs) for modules in plan.modules.values())
    if absent:
        yield f"{absent} of {len(plan.modules)} modules are not adapted by all inputs, which count as zero there"
    zero = sum(not report.rank for report in reports)
    if zero:
        yield f"{zero} of {len(plan.modules)} modules came out as zero"
