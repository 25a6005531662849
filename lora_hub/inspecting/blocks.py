"""What the sections of the page are made of, and what bounds them whatever the adapters are."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from lora_hub.inspecting.markup import Child, tag
from lora_hub.inspecting.tables import Table

# The JSON has everything.
MAX_DRAWN = 6  # adapters that are drawn one by one
MAX_COMPARED = 24  # in one matrix
MAX_LAYERS = 128
MAX_KINDS = 20  # projections
MAX_ROWS = 64  # modules of one adapter
MAX_REMARKS = 24
MAX_PAIRS = 24


def left_out(count: int, limit: int, what: str, which: str = "") -> Iterator[Element]:
    """Say how many of *count* things are more than the *limit*, and *which* these are."""
    if count > limit:
        more = f"1 more {what}{which} is" if count == limit + 1 else f"{count - limit:,} more {what}s{which} are"
        yield tag("p", f"{more} left out here; ", tag("code", "--json"), " has all.", class_="soft")


def table_of(table: Table, caption: str | None = None) -> Element:
    """Return *table*; what is in the first column is the header of its row."""
    header, rows = table
    heads = [tag("th", text, scope="col", class_="name" if n == 0 else None) for n, text in enumerate(header)]
    body = (
        tag("tr", tag("th", name, scope="row", class_="name"), *(tag("td", cell) for cell in cells))
        for name, *cells in rows
    )
    return tag(
        "table",
        None if caption is None else tag("caption", caption),
        tag("thead", tag("tr", *heads)),
        tag("tbody", *body),
    )


def figure(heading: str, drawing: Element, *below: Child) -> Element:
    """Return *drawing* under its *heading*, with its key or caption *below*."""
    return tag("figure", tag("h3", heading), drawing, *below)
