"""The numbers of an inspection in rows, for the command line and the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from lora_hub.inspecting.findings import SHARES, AdapterDeltas, Inspection, ModuleDelta, rank_for
from lora_hub.inspecting.layers import by_kind
from lora_hub.inspecting.markup import elided, figure_of, percent
from lora_hub.inspecting.relations import Pair, SharedModule

Table = tuple[Sequence[str], list[list[str]]]  # the names of the columns, and the rows

_PATH = 120  # characters
_ENERGIES = "/".join(f"{100 * energy:g}" for energy in SHARES)


def projections(adapter: AdapterDeltas) -> Table:
    """Return a row for each projection of *adapter*, and one for all."""
    header = (
        "PROJECTION",
        "MODULES",
        "SHAPE",
        "R",
        "MIN |D|",
        "MEDIAN",
        "MAX",
        "EFFECTIVE",
        "USED",
        f"RANK FOR {_ENERGIES} %",
    )
    groups = by_kind({module.path: module for module in adapter.modules})
    if len(groups) > 1:
        groups["all"] = list(adapter.modules)
    return header, [_projection(label, modules) for label, modules in groups.items()]


def _projection(label: str, modules: Sequence[ModuleDelta]) -> list[str]:
    norms = [module.norm for module in modules]
    return [
        label,
        f"{len(modules):,}",
        _shapes(modules),
        _range(module.r for module in modules),
        *map(figure_of, (min(norms), median(norms), max(norms))),
        f"{median(module.effective_rank for module in modules):.1f}",
        _range(module.numerical_rank for module in modules),
        " / ".join(f"{rank_for(modules, energy)}" for energy in SHARES),
    ]


def adapters(inspection: Inspection) -> Table:
    """Return a row for each adapter."""
    header = (
        "ADAPTER",
        "R",
        "ALPHA",
        "DTYPE",
        "PARAMETERS",
        "MODULES",
        "|D|",
        "EFFECTIVE",
        f"RANK FOR {_ENERGIES} %",
        "WASTED",
    )
    return header, [
        [
            adapter.name,
            f"{adapter.r}",
            f"{adapter.alpha:g}",
            adapter.dtype,
            f"{adapter.parameters:,}",
            f"{len(adapter.modules):,}",
            figure_of(adapter.norm),
            f"{adapter.effective_rank:.1f}",
            " / ".join(f"{adapter.rank_for(energy)}" for energy in SHARES),
            f"{adapter.wasted:,}",
        ]
        for adapter in inspection.adapters
    ]


def pairs(inspection: Inspection, limit: int) -> Table:
    """Return a row for each pair of adapters, those that are most alike first, at most *limit*."""
    header = ("PAIR", "MODULES", "COSINE", "OUTPUTS SHARED", "(CHANCE)", "INPUTS SHARED", "(CHANCE)")
    ordered = sorted(inspection.pairs, key=lambda pair: (-abs(pair.cosine), pair.one, pair.other))
    return header, [_pair(inspection, pair) for pair in ordered[:limit]]


def _pair(inspection: Inspection, pair: Pair) -> list[str]:
    one, other = (inspection.adapters[position].name for position in (pair.one, pair.other))
    return [
        f"{one} · {other}",
        f"{pair.modules:,}",
        f"{round(pair.cosine, 3) + 0.0:+.3f}",
        percent(pair.outputs.shared),
        percent(pair.outputs.chance),
        percent(pair.inputs.shared),
        percent(pair.inputs.chance),
    ]


def modules(adapter: AdapterDeltas, limit: int) -> Table:
    """Return a row for each module of *adapter*, in the order of the paths: at most *limit*, those that change most."""
    header = ("MODULE", "SHAPE", "R", "|D|", "SPECTRAL", "STABLE RANK", "EFFECTIVE", "USED", "DEAD")
    chosen = sorted(adapter.modules, key=lambda module: (-module.norm, module.path))[:limit]
    return header, [_module(module) for module in sorted(chosen, key=lambda module: module.path)]


def _module(module: ModuleDelta) -> list[str]:
    return [
        elided(module.path, _PATH),
        f"{module.out_features} x {module.in_features}",
        f"{module.r}",
        figure_of(module.norm),
        figure_of(module.spectral_norm),
        f"{module.stable_rank:.2f}",
        f"{module.effective_rank:.2f}",
        f"{module.numerical_rank}",
        f"{module.dead}",
    ]


def _shapes(modules: Sequence[ModuleDelta]) -> str:
    shapes = {(module.out_features, module.in_features) for module in modules}
    return " x ".join(f"{size}" for size in shapes.pop()) if len(shapes) == 1 else "various"


def _range(values: Iterable[int]) -> str:
    """Return the one value, or from which to which."""
    distinct = sorted(set(values))
    return f"{distinct[0]}" if len(distinct) == 1 else f"{distinct[0]} to {distinct[-1]}"


def shared(inspection: Inspection, limit: int) -> Table:
    """Return a row for each module that several adapters change: at most *limit*, those with most conflict."""
    header = ("MODULE", "ADAPTERS", "INTERFERENCE", "CONFLICT", "LOST", "ROWS LOOKED AT")
    chosen = sorted(inspection.shared, key=lambda module: (-module.conflict.rate, module.path))[:limit]
    return header, [_shared(module) for module in sorted(chosen, key=lambda module: module.path)]


def _shared(module: SharedModule) -> list[str]:
    return [
        elided(module.path, _PATH),
        f"{len(module.adapters)}",
        "-" if module.interference is None else f"{module.interference:.3f}",
        percent(module.conflict.rate),
        percent(module.conflict.lost_share),
        f"{module.conflict.rows:,} of {module.conflict.of:,}",
    ]
