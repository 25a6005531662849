"""Make one adapter out of several: the recipe and the proven inputs in, the files and a report out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora_hub.adapter_files import config_of, files_of
from lora_hub.composing.exactness import reproducible
from lora_hub.composing.heads import Heads, common_heads
from lora_hub.composing.inputs import Input, common_base, common_dtype, modules_of
from lora_hub.composing.merging import Deltas, Merged, Method, merge
from lora_hub.composing.rank import Rank, fitting
from lora_hub.composing.report import ModuleReport, Report
from lora_hub.composing.rounding import rounded
from lora_hub.composing.weights import Weights, weights_of
from lora_hub.documents.adapter_layout import PREFIX, LoraModule
from lora_hub.documents.fields import Bytes
from lora_hub.documents.manifest import BaseModel
from lora_hub.documents.recipe import Recipe
from lora_hub.errors import UsageError
from lora_hub.plugin_manager import plugins

DTYPES = {"float64": torch.float64, "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Track = Callable[[Sequence[str]], Iterable[str]]  # yields what it is given, and shows how far it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Composed:
    """The three files of the new adapter by name, and the report."""

    files: Mapping[str, Bytes]
    report: Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that is known before anything is computed.

    Attributes:
        inputs: The adapters, in the order of the recipe.
        modules: Which of them adapt each module, by position, and how.
        notes: What was decided on the way.
    """

    inputs: Sequence[Input]
    recipe: Recipe
    method: Method
    weights: Weights
    base: BaseModel
    heads: Heads
    dtype: torch.dtype
    modules: Mapping[str, Mapping[int, LoraModule]]
    notes: tuple[str, ...] = ()

    @property
    def is_unchanged(self) -> bool:
        """Whether the recipe asks for the one adapter that goes in."""
        return (
            len(self.inputs) == 1
            and self.method.rule.is_linear
            and self.method.rank.kind == "exact"
            and self.recipe.dtype is None
            and all(self.weights.of(path) == (1.0,) for path in self.modules)
        )


def compose(
    inputs: Sequence[Input], recipe: Recipe, *, allow_other_base: bool = False, track: Track = iter
) -> Composed:
    """Return the adapter that *recipe* makes of *inputs*. Same recipe, same bytes in, same bytes out, on one machine.

    Computes in float64 on one thread, and rounds once. Never forms a matrix of ``[out, in]``.

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


def plan_of(inputs: Sequence[Input], recipe: Recipe, *, allow_other_base: bool = False) -> Plan:
    """Return what *recipe* means for *inputs*; raises what `compose` raises, but for what the numbers say."""
    _check_inputs(inputs, recipe)
    rule = plugins().rule(recipe.rule)
    method = Method(
        rule=rule,
        settings=rule.settings(recipe.parameters),
        space=rule.space(recipe.space),
        rank=Rank.parse(recipe.rank),
        seed=recipe.seed,
    )
    base = common_base(inputs, allow_other_base=allow_other_base)
    modules = dict(modules_of(inputs))
    widest = max(min(one.out_features, one.in_features) for m in modules.values() for one in m.values())
    if method.rank.kind == "number" and method.rank.value > widest:
        raise UsageError(
            f"the rank {method.rank.value:g} is more than any module has", hint=f"at most {widest}, min(out, in)"
        )
    return Plan(
        inputs=inputs,
        recipe=recipe,
        method=method,
        weights=weights_of(inputs, recipe),
        base=base,
        heads=common_heads(inputs),
        dtype=_dtype(inputs, recipe),
        modules=modules,
    )


def _check_inputs(inputs: Sequence[Input], recipe: Recipe) -> None:
    ids = [one.id for one in recipe.inputs]
    if not ids:
        raise UsageError("the recipe names no adapter", hint="name one at least")
    if len(set(ids)) < len(ids):
        raise UsageError(f"two adapters of the recipe have one id, of {', '.join(ids)}", hint="give each its own")
    if ids != [one.name for one in inputs]:
        raise UsageError(f"the recipe has {', '.join(ids)}, not what it is given", hint="name them alike")


def _dtype(inputs: Sequence[Input], recipe: Recipe) -> torch.dtype:
    if recipe.dtype is None:
        return common_dtype(inputs)
    if recipe.dtype not in DTYPES:
        raise UsageError(f"`{recipe.dtype}` is no dtype of an adapter", hint=f"there are {', '.join(DTYPES)}")
    return DTYPES[recipe.dtype]


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
    reports = []
    for path in track(list(plan.modules)):
        merged = _merged(plan, path)
        for side, factor in zip("AB", (merged.factors.A, merged.factors.B), strict=True):
            tensors[f"{PREFIX}{path}.lora_{side}.weight"] = _stored(factor, plan.dtype, path)
        reports.append(_report(plan, path, merged))
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


def _stored(factor: Tensor, dtype: torch.dtype, path: str) -> Tensor:
    stored = rounded(factor, dtype)
    if not stored.isfinite().all():
        raise UsageError(
            f"`{path}` has numbers that {dtype} cannot hold".replace("torch.", ""),
            hint="name a wider dtype, such as `--dtype float32`, or smaller weights",
        )
    return stored


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
    targets = tuple(sorted({name for one in plan.inputs for name in one.adapter.manifest.lora.targets}))
    files = files_of(config, tensors, base=plan.base, targets=targets, license=license, **described)
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
