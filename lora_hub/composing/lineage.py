"""What a composition says of itself in the manifest of what it made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from lora_hub.composing.compose import Composed
from lora_hub.composing.report import ModuleReport, Report
from lora_hub.documents.fields import Bytes
from lora_hub.documents.lineage import BIT, MAX_TEXT, ROUNDED, TOLERANCE, Lineage, LineageBase, LineageInput
from lora_hub.documents.manifest import MANIFEST_NAME, MAX_MANIFEST, Manifest
from lora_hub.documents.recipe import Recipe
from lora_hub.errors import UsageError
from lora_hub.plugin_manager import plugins

_DIGITS = 6  # of what was measured: the last bits depend on the machine, and the manifest is not to


def files_with_lineage(
    composed: Composed,
    recipe: Recipe,
    inputs: Sequence[LineageInput],
    *,
    tool: str,
    measured: Mapping[str, float | str],
) -> dict[str, Bytes]:
    """Return the files of what *recipe*, resolved, made of *inputs*; the manifest says so, and what was *measured*.

    Raises:
        UsageError: No manifest can hold that much.
    """
    manifest = Manifest.parse(bytes(composed.files[MANIFEST_NAME]))
    lineage = Lineage(
        kind="compose",
        inputs=tuple(inputs),
        base=LineageBase(repo=manifest.base.repo, revision=manifest.base.revision),
        recipe=Lineage.recorded(recipe),
        tool=tool,
        measured={**_measured(composed.report), **measured},
        reproducible=_reproducible(recipe, composed.report, manifest.lora.dtype),
    )
    content = dataclasses.replace(manifest, lineage=lineage).to_bytes()
    if len(content) > MAX_MANIFEST:
        raise UsageError(
            f"the manifest would have {len(content)} bytes, at most {MAX_MANIFEST} are read",
            hint="compose fewer adapters at once, or with fewer weights of layers",
        )
    return {**composed.files, MANIFEST_NAME: content}


def _measured(report: Report) -> dict[str, float | str]:
    measured: dict[str, float | str] = {
        "rank_in": report.rank_in,
        "rank_out": report.rank_out,
        "retained_energy": round(report.kept, _DIGITS),
    }
    # Of several that lost as much, the first: not that of which some last bit says so.
    worst = min(report.modules, key=lambda module: round(module.kept, _DIGITS))
    if round(worst.kept, _DIGITS) < 1:
        measured |= {"worst_module": worst.path[:MAX_TEXT], "worst_retained_energy": round(worst.kept, _DIGITS)}
    return measured


def _reproducible(recipe: Recipe, report: Report, dtype: str) -> str:
    """Return what the same recipe gives elsewhere.

    Where factors are only scaled and stacked, no order of summation matters. All else is a decomposition in float64,
    of which rounding hides the last bits, unless nothing is rounded; what is streamed is found by random probes.
    """
    is_scaled = plugins().rule(recipe.rule).is_linear and recipe.weights != "norm"
    if is_scaled and all(map(_is_stacked, report.modules)):
        return BIT
    return TOLERANCE if dtype == "float64" or recipe.space == "full" else ROUNDED


def _is_stacked(module: ModuleReport) -> bool:
    stacked = sum(r for r, weight in zip(module.ranks, module.weights, strict=True) if r and weight)
    return module.rank == module.r == stacked
