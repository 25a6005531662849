"""An inspection as one HTML page that loads nothing, runs no script, and says what it left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from xml.etree.ElementTree import Element

from lora_hub.inspecting import tables
from lora_hub.inspecting.blocks import (
    MAX_COMPARED,
    MAX_DRAWN,
    MAX_KINDS,
    MAX_LAYERS,
    MAX_PAIRS,
    MAX_REMARKS,
    MAX_ROWS,
    figure,
    left_out,
    table_of,
)
from lora_hub.inspecting.cells import MAX_NARROW, heat_map, scale
from lora_hub.inspecting.comparison import between, by_layer
from lora_hub.inspecting.findings import Inspection
from lora_hub.inspecting.layers import Place, by_place, labels
from lora_hub.inspecting.lines import key_of
from lora_hub.inspecting.markup import elided, figure_of, serialise, tag
from lora_hub.inspecting.remarks import remarks
from lora_hub.inspecting.spectra import retained_energy, spectra
from lora_hub.inspecting.style import STYLE

_NAME = 64  # characters

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def page(inspection: Inspection) -> bytes:
    """Return *inspection* as HTML; same inspection, same bytes."""
    inspection = _with_short_names(inspection)
    title = _title(inspection)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", STYLE),
    )
    main = tag("main", *_overview(inspection, title), *_deltas(inspection), *_spectra(inspection))
    main.extend([*between(inspection), *by_layer(inspection), *_numbers(inspection), _footer()])
    return serialise(tag("html", head, tag("body", main), lang="en"))


def _with_short_names(inspection: Inspection) -> Inspection:
    adapters = (replace(adapter, name=elided(adapter.name, _NAME)) for adapter in inspection.adapters)
    return replace(inspection, adapters=tuple(adapters))


def _title(inspection: Inspection) -> str:
    names = [adapter.name for adapter in inspection.adapters]
    return f"Inspection of {names[0]}" if len(names) == 1 else f"Inspection of {len(names)} adapters"


def _overview(inspection: Inspection, title: str) -> Iterator[Element]:
    yield tag("h1", title)
    yield tag(
        "p",
        "What the adapters change, computed from their factors A and B alone. D is the delta ",
        tag("code", "(alpha / r) · B A"),
        " of one module, |D| its Frobenius norm, its energy |D|² the sum of its squared singular values.",
        class_="soft",
    )
    note = (
        "Effective: effective rank, the exponential of the entropy of the energies of the directions, median over the "
        "modules. Rank for 90/99/99.9 %: the lowest to which all modules can be truncated and keep as much of the "
        "energy. Wasted: ranks that are stored beyond the numerical rank."
    )
    header, rows = tables.adapters(_first(inspection, MAX_COMPARED))
    if len(rows) > 1:  # the numbers that the matrices have
        rows = [[f"{n} · {name}", *cells] for n, (name, *cells) in enumerate(rows, start=1)]
    yield tag("figure", table_of((header, rows)), tag("figcaption", note))
    yield from left_out(len(inspection.adapters), MAX_COMPARED, "adapter")
    found = remarks(inspection)
    yield tag("h2", "What stands out")
    said = found[:MAX_REMARKS] or ["Nothing: every rank that is stored is used."]
    items = [tag("li", remark) for remark in said]
    yield tag("div", tag("ul", *items, class_="remarks"), class_="card")
    yield from left_out(len(found), MAX_REMARKS, "remark")


def _first(inspection: Inspection, count: int) -> Inspection:
    return Inspection(adapters=inspection.adapters[:count])


def _deltas(inspection: Inspection) -> Iterator[Element]:
    """Yield the heat maps, all on one scale."""
    drawn = inspection.adapters[:MAX_DRAWN]
    paths = {module.path: module for adapter in drawn for module in adapter.modules}
    kinds, layers = _plotted(paths)
    cells = [by_place({module.path: module.norm for module in adapter.modules}) for adapter in drawn]
    high = max((sum(n * n for n in norms) ** 0.5 for places in cells for norms in places.values()), default=0.0)
    yield tag("h2", "Where the adapters act")
    yield tag("p", "The norm |D| of every module, by layer and projection; one colour scale for all.", class_="soft")
    yield tag("div", scale(figure_of(high)))
    maps = [
        figure(adapter.name, heat_map(adapter.name, places, kinds, layers, high))
        for adapter, places in zip(drawn, cells, strict=True)
    ]
    yield tag("div", *maps, class_="pair" if len(layers) <= MAX_NARROW else None)
    yield from left_out(len(inspection.adapters), MAX_DRAWN, "adapter")
    yield from left_out(len({Place.of(path).kind for path in paths}), MAX_KINDS, "projection")
    yield from left_out(len({Place.of(path).layer for path in paths}), MAX_LAYERS, "layer")


def _plotted(paths: Mapping[str, object]) -> tuple[dict[str, str], list[int | None]]:
    """Return the projections, with their labels, and the layers that there is room for; outside of any layer first."""
    places = [Place.of(path) for path in paths]
    kinds = dict(list(labels({place.kind for place in places}).items())[:MAX_KINDS])
    layers = sorted({place.layer for place in places}, key=lambda layer: -1 if layer is None else layer)
    return kinds, layers[:MAX_LAYERS]


def _spectra(inspection: Inspection) -> Iterator[Element]:
    drawn = inspection.adapters[:MAX_DRAWN]
    yield tag("h2", "Which rank they need")
    yield tag(
        "p",
        "Singular values of the deltas relative to the first of their module: the median over the layers, and how far "
        "they spread. Truncating every module to the rank at the dashed line keeps 99 % of the energy.",
        class_="soft",
    )
    energy = figure("Energy kept by a truncation", retained_energy(drawn), key_of([one.name for one in drawn]))
    figures = (figure(adapter.name, chart, key) for adapter, chart, key in spectra(drawn))
    yield tag("div", energy, *figures, class_="pair")
    yield from left_out(len(inspection.adapters), MAX_DRAWN, "adapter")


def _numbers(inspection: Inspection) -> Iterator[Element]:
    yield tag("h2", "The numbers")
    for adapter in inspection.adapters[:MAX_DRAWN]:
        yield tag(
            "details",
            tag("summary", adapter.name),
            tag("p", tag("code", adapter.digest), class_="soft"),
            tag("div", table_of(tables.projections(adapter), "By projection"), class_="scroll"),
            tag("div", table_of(tables.modules(adapter, MAX_ROWS), "By module"), class_="scroll"),
            *left_out(len(adapter.modules), MAX_ROWS, "module", ", of those that change least,"),
            class_="card",
        )
    if inspection.pairs:
        yield tag(
            "details",
            tag("summary", "Pairs and shared modules"),
            tag("div", table_of(tables.pairs(inspection, MAX_PAIRS), "Every two adapters"), class_="scroll"),
            *left_out(len(inspection.pairs), MAX_PAIRS, "pair", ", of those that are least alike,"),
            tag("div", table_of(tables.shared(inspection, MAX_ROWS), "Modules that several adapt"), class_="scroll"),
            *left_out(len(inspection.shared), MAX_ROWS, "module", ", of those with least conflict,"),
            class_="card",
        )


def _footer() -> Element:
    text = ". This page loads nothing and runs no script; hover over a cell or a point to read its value."
    return tag("footer", "Made by ", tag("code", "lora-hub inspect"), text)
